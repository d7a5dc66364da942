//! Sizes on the command line.

use std::fmt;

/// How much memory a tree may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryMax {
    /// As much as there is.
    Unlimited,
    /// Bytes.
    Bytes(u64),
}

impl fmt::Display for MemoryMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u32, &str); 4] = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        let Self::Bytes(bytes) = *self else {
            return f.write_str("none");
        };
        let unit = UNITS
            .iter()
            .find(|(shift, _)| bytes != 0 && bytes % (1 << shift) == 0);
        match unit {
            Some((shift, unit)) => write!(f, "{}{unit}", bytes >> shift),
            None => write!(f, "{bytes}"),
        }
    }
}

/// Parses `4G`, `512MiB`, `1.5G`, `1000000` or `none`, in powers of 1024 as systemd does.
pub fn parse_memory_max(word: &str) -> Result<MemoryMax, String> {
    let wrong = || format!("{word:?} is no size: give one like 4G or 512M, or none");
    if word.eq_ignore_ascii_case("none") || word.eq_ignore_ascii_case("infinity") {
        return Ok(MemoryMax::Unlimited);
    }
    let end = word
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(word.len());
    let (number, unit) = word.split_at(end);
    let unit = unit.trim().to_ascii_uppercase();
    let unit = unit
        .strip_suffix("IB")
        .or(unit.strip_suffix('B'))
        .unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let factor = 1_u64 << shift;
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor).ok_or_else(wrong)?,
        Err(_) => (number.parse::<f64>().map_err(|_| wrong())? * factor as f64) as u64,
    };
    if bytes == 0 {
        Err(wrong())
    } else {
        Ok(MemoryMax::Bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_systemd_reads_them() {
        for (word, bytes) in [
            ("4G", 4 << 30),
            ("4g", 4 << 30),
            ("512MiB", 512 << 20),
            ("1.5G", 3 << 29),
            ("64kB", 64 << 10),
            ("1000000", 1_000_000),
        ] {
            assert_eq!(
                parse_memory_max(word),
                Ok(MemoryMax::Bytes(bytes)),
                "{word}"
            );
        }
        assert_eq!(parse_memory_max("none"), Ok(MemoryMax::Unlimited));
        for wrong in [
            "",
            "G",
            "0",
            "4X",
            "-1",
            "1e9",
            "4 GG",
            "99999999999T",
            "1.2.3M",
        ] {
            assert!(parse_memory_max(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_shown_as_they_are_given() {
        for word in ["4G", "512M", "1000000", "1T", "none"] {
            assert_eq!(parse_memory_max(word).unwrap().to_string(), word);
        }
    }
}
