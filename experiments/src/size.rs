//! Sizes as people write them: `64M`, `1G`, `4096K`, `64MiB`, `65536`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};
use thiserror::Error;

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Size(pub u64);

/// Why a text is no size.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SizeError {
    /// It is no number, or has an unknown unit.
    #[error("`{0}` is not a size; write a whole number with K, M, G or T, like 64M or 64MiB")]
    Malformed(String),
    /// It is more than 64 bits can count.
    #[error("`{0}` is more than 64 bits can count")]
    TooLarge(String),
}

const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        let malformed = || SizeError::Malformed(text.to_owned());
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(malformed());
        }
        let unit = unit.trim_start().to_ascii_uppercase();
        let unit = unit
            .strip_suffix("IB")
            .or(unit.strip_suffix('B'))
            .unwrap_or(&unit);
        let shift = match UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, shift)) => *shift,
            None if unit.is_empty() => 0,
            None => return Err(malformed()),
        };
        // All digits, so the only possible failure is their number.
        let number: Option<u64> = number.parse().ok();
        let bytes = number.and_then(|number| number.checked_mul(1 << shift));
        bytes
            .map(Size)
            .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
    }
}

impl fmt::Display for Size {
    /// Exact, except that large sizes that are no round number are given with a decimal point.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const READABLE: u64 = 100_000;
        let divides = |(_, shift): &&(&str, u32)| self.0 != 0 && self.0.is_multiple_of(1 << shift);
        match UNITS.iter().find(divides) {
            Some((unit, shift)) if self.0 >> shift < READABLE => {
                write!(f, "{} {unit}iB", self.0 >> shift)
            }
            Some(_) => write!(f, "{:.1} GiB", self.0 as f64 / f64::from(1 << 30)),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size like \"64M\", or a number of bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                let negative = || E::custom(format!("a size cannot be negative: {bytes}"));
                u64::try_from(bytes).map(Size).map_err(|_| negative())
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096K", 4 << 20),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("64MiB", 64 << 20),
            ("64 MB", 64 << 20),
            ("1G", 1 << 30),
            ("2t", 2 << 40),
            ("512B", 512),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "", "M", "-1", "+1", "1.5G", "1X", "1 M M", "0x10", "١", "1iB1",
        ] {
            assert!(
                matches!(text.parse::<Size>(), Err(SizeError::Malformed(_))),
                "{text}"
            );
        }
        for text in ["18446744073709551616", "16777216T"] {
            assert!(
                matches!(text.parse::<Size>(), Err(SizeError::TooLarge(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes_are_shown_as_people_would_write_them() {
        assert_eq!(Size(256 << 20).to_string(), "256 MiB");
        assert_eq!(Size(3 << 29).to_string(), "1536 MiB");
        assert_eq!(Size(24_684_092 << 10).to_string(), "23.5 GiB");
        assert_eq!(Size(4097).to_string(), "4097 bytes");
        assert_eq!(Size(0).to_string(), "0 bytes");
    }
}
