//! Medians and spreads.

use std::fmt;

/// Repeated measurements of one thing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        let place = self.0.partition_point(|sample| *sample < value);
        self.0.insert(place, value);
    }

    pub(crate) fn median(&self) -> f64 {
        match self.0.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => self.0[n / 2],
            n => f64::midpoint(self.0[n / 2 - 1], self.0[n / 2]),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest sample that this share of all are at most.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        let sample = self.0.get(rank.saturating_sub(1));
        sample.copied().unwrap_or(f64::NAN)
    }

    /// Shown as by [`shown`](Self::shown), with the quartiles in brackets.
    pub(crate) fn quartiles(&self) -> Shown<'_> {
        Shown(self, [0.25, 0.75])
    }

    /// Shown with as many decimals as the magnitude deserves: `0.865 (0.84..0.88)`.
    pub(crate) fn shown(&self) -> Shown<'_> {
        Shown(self, [0.0, 1.0])
    }
}

/// Samples with the shares up to which the bracket goes.
pub(crate) struct Shown<'a>(&'a Samples, [f64; 2]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.0.is_empty() {
            return f.write_str("-");
        }
        let [low, high] = self.1.map(|share| self.0.quantile(share));
        let median = self.0.median();
        let decimals = match median.abs() {
            size if size < 2.0 => 3,
            size if size < 20.0 => 1,
            _ => 0,
        };
        write!(
            f,
            "{median:.decimals$} ({low:.decimals$}..{high:.decimals$})"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;

    #[test]
    fn median_and_spread() {
        let mut samples = Samples::default();
        assert_eq!(samples.shown().to_string(), "-");
        for value in [0.9, 0.7, 0.8] {
            samples.push(value);
        }
        assert_eq!(samples.shown().to_string(), "0.800 (0.700..0.900)");
        samples.push(100.0);
        assert!((samples.median() - 0.85).abs() < 1e-9);
        assert_eq!(samples.quartiles().to_string(), "0.850 (0.700..0.900)");
        assert!((samples.quantile(0.99) - 100.0).abs() < 1e-9);
        assert_eq!(samples.shown().to_string(), "0.850 (0.700..100.000)");
    }
}
