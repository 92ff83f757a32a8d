//! The modelled cost of transfers between system memory and a device's memory.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A link as an affine function: each transfer takes `latency` plus the time for its bytes at `bandwidth`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkModel {
    /// Fixed time of one transfer.
    pub latency: Duration,
    /// Bytes per second; not 0.
    pub bandwidth: u64,
}

impl Default for LinkModel {
    /// About what PCIe 4.0 with 16 lanes gives in practice: 10 µs and 25 GB/s.
    fn default() -> Self {
        LinkModel {
            latency: Duration::from_micros(10),
            bandwidth: 25_000_000_000,
        }
    }
}

impl LinkModel {
    /// Returns how long a transfer of `bytes` bytes takes.
    pub fn time(&self, bytes: u64) -> Duration {
        let bandwidth = self.bandwidth.max(1);
        let nanoseconds = match bytes.checked_mul(1_000_000_000) {
            Some(product) => product / bandwidth,
            // More than 18 GB: a division of 128 bits, which takes longer.
            None => {
                let exact = u128::from(bytes) * 1_000_000_000 / u128::from(bandwidth);
                exact.min(u64::MAX.into()) as u64
            }
        };
        self.latency + Duration::from_nanos(nanoseconds)
    }
}

impl fmt::Display for LinkModel {
    /// Writes the form that [`FromStr`] parses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latency = scaled(self.latency.as_nanos(), &["ns", "us", "ms"]);
        let bandwidth = scaled(self.bandwidth.into(), &["", "K", "M", "G"]);
        write!(f, "latency={latency},bandwidth={bandwidth}")
    }
}

/// Formats a number in the largest of these units, each 1000 times the one before, in which it is a whole number.
fn scaled(mut number: u128, units: &[&str]) -> String {
    let mut unit = 0;
    while unit + 1 < units.len() && number > 0 && number.is_multiple_of(1000) {
        number /= 1000;
        unit += 1;
    }
    format!("{number}{}", units[unit])
}

impl FromStr for LinkModel {
    type Err = String;

    /// Parses `latency=10us,bandwidth=25G`: a time in ns, us or ms, and bytes per second with K, M or G for powers of
    /// 1000. A part that is not given has its default.
    fn from_str(text: &str) -> Result<LinkModel, String> {
        let mut link = LinkModel::default();
        let mut named: Vec<&str> = Vec::new();
        for part in text.split(',') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if named.contains(&name.trim()) {
                return Err(format!("link {} is given twice; give it once", name.trim()));
            }
            named.push(name.trim());
            let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, unit) = value.split_at(digits);
            let number: Option<u64> = number.parse().ok();
            let scaled = |scale: u64| number.and_then(|n| n.checked_mul(scale));
            match (name.trim(), unit.trim()) {
                ("latency", "ns" | "us" | "ms") => {
                    let scale = match unit.trim() {
                        "ns" => 1,
                        "us" => 1000,
                        _ => 1_000_000,
                    };
                    link.latency = scaled(scale)
                        .map(Duration::from_nanos)
                        .filter(|time| *time <= Duration::from_secs(1))
                        .ok_or_else(|| format!("link latency '{value}' is not a time up to 1 s"))?;
                }
                ("bandwidth", "" | "K" | "M" | "G") => {
                    let scale = match unit.trim() {
                        "" => 1,
                        "K" => 1000,
                        "M" => 1_000_000,
                        _ => 1_000_000_000,
                    };
                    link.bandwidth = scaled(scale).filter(|n| *n > 0).ok_or_else(|| {
                        format!("link bandwidth '{value}' is not a number of bytes per second")
                    })?;
                }
                ("latency", _) => {
                    return Err(format!("link latency '{value}' is not a time such as 10us"));
                }
                ("bandwidth", _) => {
                    return Err(format!(
                        "link bandwidth '{value}' is not a number of bytes per second such as 25G"
                    ));
                }
                (other, _) => {
                    return Err(format!(
                        "a link has no '{other}'; it has: latency, bandwidth, like latency=10us,bandwidth=25G"
                    ));
                }
            }
        }
        Ok(link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_printed_as_they_are_parsed() {
        let link: LinkModel = "latency=2us,bandwidth=12G".parse().unwrap();
        assert_eq!(link.to_string(), "latency=2us,bandwidth=12G");
        for text in ["latency=0ns,bandwidth=1", "latency=1500ns,bandwidth=12500M"] {
            let link: LinkModel = text.parse().unwrap();
            assert_eq!(link.to_string(), text);
        }
        assert_eq!(link.time(12_000), Duration::from_micros(3));
        assert_eq!("bandwidth=25G".parse(), Ok(LinkModel::default()));
        for (text, message) in [
            ("latency=2", "not a time"),
            ("latency=2s", "not a time"),
            ("latency=2000ms", "up to 1 s"),
            ("bandwidth=0", "not a number"),
            ("bandwidth=99999999999G", "not a number"),
            ("speed=3", "has no 'speed'"),
            ("latency=1us,latency=2us", "link latency is given twice"),
            ("", "has no ''"),
        ] {
            let error = text.parse::<LinkModel>().unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
