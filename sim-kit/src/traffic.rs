//! Seeded traffic: the same seed gives the same sizes and pauses.

use std::str::FromStr;
use std::time::{Duration, Instant};

/// `SplitMix64`: small, seedable, and good enough to choose sizes and moments.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Starts the sequence of `seed`; `stream` gives each peer and caller one of its own.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut dice = Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        dice.roll();
        dice
    }

    /// The next 64 bits.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        match high.saturating_sub(low).checked_add(1) {
            Some(span) => low + self.roll() % span,
            None => self.roll(),
        }
    }
}

/// Payload sizes: one (`64`, `1M`) or a range (`0..64K`), in which small and large are equally likely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Smallest.
    pub low: usize,
    /// Largest.
    pub high: usize,
}

impl Sizes {
    /// Draws one: first how many bits it has, then which.
    pub fn draw(self, dice: &mut Dice) -> usize {
        if self.low == self.high {
            return self.low;
        }
        let bits = |n: usize| u64::from(usize::BITS - n.leading_zeros());
        let bits = dice.between(bits(self.low), bits(self.high));
        let (from, to) = if bits == 0 {
            (0, 0)
        } else {
            (1u64 << (bits - 1), (1u64 << bits) - 1)
        };
        let (low, high) = (self.low as u64, self.high as u64);
        dice.between(from.clamp(low, high), to.clamp(low, high)) as usize
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (low, high) = match text.split_once("..") {
            Some((low, high)) => (size(low)?, size(high.trim_start_matches('='))?),
            None => (size(text)?, size(text)?),
        };
        if low > high {
            return Err(format!(
                "sizes {text} run backwards: give the smaller one first"
            ));
        }
        if high > 16 << 20 {
            return Err(format!(
                "size {text} is beyond the largest slot: at most 16M"
            ));
        }
        Ok(Self { low, high })
    }
}

/// A number of bytes: `64`, `16K`, `1M`.
pub fn size(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits
        .parse::<usize>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| format!("{text:?} is not a size: write bytes as 64, 16K or 1M"))
}

/// Pauses between calls that keep their mean although the runtime's timer counts in milliseconds: what is
/// owed adds up until it is worth a sleep, and what was overslept is taken off again.
#[derive(Debug)]
pub struct Pacer {
    gap: Duration,
    owed: Duration,
}

impl Pacer {
    /// Pauses of `gap` on average, each anything from none to twice that.
    pub fn new(gap: Duration) -> Self {
        Self {
            gap,
            owed: Duration::ZERO,
        }
    }

    /// Waits for the next pause, if one is due.
    pub async fn pause(&mut self, dice: &mut Dice) {
        if self.gap.is_zero() {
            return;
        }
        self.owed += Duration::from_nanos(dice.between(0, 2 * self.gap.as_nanos() as u64));
        if self.owed >= Duration::from_millis(1) {
            let start = Instant::now();
            tokio::time::sleep(self.owed).await;
            self.owed = self.owed.saturating_sub(start.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_the_sequence_and_a_stream_changes_it() {
        let roll = |seed, stream| -> Vec<u64> {
            let mut dice = Dice::new(seed, stream);
            (0..8).map(|_| dice.roll()).collect()
        };
        assert_eq!(roll(1, 2), roll(1, 2));
        assert_ne!(roll(1, 2), roll(1, 3));
        assert_ne!(roll(1, 2), roll(2, 2));
    }

    #[test]
    fn sizes_stay_in_range_and_reach_both_sides_of_the_inline_limit() {
        let sizes: Sizes = "0..64K".parse().expect("a range");
        let mut dice = Dice::new(7, 0);
        let drawn: Vec<usize> = (0..2000).map(|_| sizes.draw(&mut dice)).collect();
        assert!(drawn.iter().all(|size| *size <= 64 << 10));
        assert!(drawn.iter().any(|size| *size <= 16));
        assert!(drawn.iter().any(|size| *size > 32 << 10));
    }

    #[test]
    fn sizes_parse_or_say_what_is_wrong() {
        assert_eq!(
            "1M".parse::<Sizes>(),
            Ok(Sizes {
                low: 1 << 20,
                high: 1 << 20
            })
        );
        assert_eq!(
            "16..1K".parse::<Sizes>(),
            Ok(Sizes {
                low: 16,
                high: 1024
            })
        );
        for bad in [
            "",
            "x",
            "5..1",
            "17M",
            "1..",
            "99999999999999999999",
            "18446744073709551615K",
        ] {
            assert!(bad.parse::<Sizes>().is_err(), "{bad} parsed");
        }
    }
}
