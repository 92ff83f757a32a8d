//! The modelled cost of transfers between system memory and devices' memories, and from device to device.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::pages::{DeviceId, Place};

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
        LinkModel::DEFAULT
    }
}

impl LinkModel {
    /// The default, as a constant.
    const DEFAULT: LinkModel = LinkModel {
        latency: Duration::from_micros(10),
        bandwidth: 25_000_000_000,
    };

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

/// The links of a machine: between system memory and each device, and between devices.
///
/// Two devices without a link of their own reach each other over the host: bytes cross the source's link up and the destination's
/// link down at the same time, without a stop in system memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LinkMatrix {
    /// Between system memory and the devices that have none of their own.
    pub default: LinkModel,
    /// Between system memory and single devices.
    pub hosts: BTreeMap<DeviceId, LinkModel>,
    /// Between the pairs of devices that are not in `peers`; `None`: over the host.
    pub peer: Option<LinkModel>,
    /// Between pairs of devices, the lower number first; `None`: over the host.
    pub peers: BTreeMap<(DeviceId, DeviceId), Option<LinkModel>>,
}

impl From<LinkModel> for LinkMatrix {
    /// Returns a matrix in which every device has this link to system memory, and none to another device.
    fn from(default: LinkModel) -> LinkMatrix {
        LinkMatrix {
            default,
            ..LinkMatrix::default()
        }
    }
}

impl LinkMatrix {
    /// The default, as a constant.
    pub(crate) const DEFAULT: LinkMatrix = LinkMatrix {
        default: LinkModel::DEFAULT,
        hosts: BTreeMap::new(),
        peer: None,
        peers: BTreeMap::new(),
    };

    /// Sets one entry. `name` is `default`, `peer`, `device1` (to system memory) or `device0-device1`; `text` is a link, and between
    /// devices also `host`. Returns an error for another name, and for a device or pair that has an entry already.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        let link = || -> Result<LinkModel, String> {
            text.parse().map_err(|error| format!("{name}: {error}"))
        };
        let peer = || match text.trim() {
            "host" => Ok(None),
            _ => link()
                .map(Some)
                .map_err(|error| format!("{error}, or host")),
        };
        let twice = || format!("{name} is given twice; give it once");
        match named(name)? {
            Named::Default => self.default = link()?,
            Named::Peer => self.peer = peer()?,
            Named::Host(device) => {
                if self.hosts.insert(device, link()?).is_some() {
                    return Err(twice());
                }
            }
            Named::Pair(a, b) => {
                if self.peers.insert((a, b), peer()?).is_some() {
                    return Err(twice());
                }
            }
        }
        Ok(())
    }

    /// Returns whether all devices have the same links.
    pub fn is_uniform(&self) -> bool {
        self.hosts.is_empty() && self.peers.is_empty()
    }

    /// Returns the highest number of a device that an entry names.
    pub fn last_device(&self) -> Option<DeviceId> {
        let pairs = self.peers.keys().map(|(_, higher)| *higher);
        pairs.chain(self.hosts.keys().copied()).max()
    }

    /// Returns the link between system memory and a device.
    pub fn host(&self, device: DeviceId) -> LinkModel {
        self.hosts.get(&device).copied().unwrap_or(self.default)
    }

    /// Returns the link that two devices have of their own, if there is one.
    pub fn peer(&self, a: DeviceId, b: DeviceId) -> Option<LinkModel> {
        let pair = (a.min(b), a.max(b));
        self.peers.get(&pair).copied().unwrap_or(self.peer)
    }

    /// Returns the cost of a direct transfer from one place to another. Over the host, two devices have the latency of both
    /// links, and the bandwidth of the slower one. Within one place, a transfer costs nothing.
    pub fn between(&self, from: Place, to: Place) -> LinkModel {
        match (from, to) {
            (Place::Device(a), Place::Device(b)) if a != b => {
                self.peer(a, b).unwrap_or_else(|| {
                    let (up, down) = (self.host(a), self.host(b));
                    LinkModel {
                        latency: up.latency + down.latency,
                        bandwidth: up.bandwidth.min(down.bandwidth),
                    }
                })
            }
            (Place::System, Place::Device(device)) | (Place::Device(device), Place::System) => {
                self.host(device)
            }
            (Place::System, Place::System) | (Place::Device(_), Place::Device(_)) => LinkModel {
                latency: Duration::ZERO,
                bandwidth: u64::MAX,
            },
        }
    }
}

/// What an entry of a matrix is about.
enum Named {
    Default,
    Peer,
    Host(DeviceId),
    /// The lower number first.
    Pair(DeviceId, DeviceId),
}

/// Reads the name of an entry.
fn named(name: &str) -> Result<Named, String> {
    let device = |name: &str| {
        let number = name.strip_prefix("device")?;
        number.parse().ok().map(DeviceId)
    };
    let unknown = || {
        format!(
            "`{name}` is no link; there are default, peer, device0, device1, … for single devices, and device0-device1, … for pairs"
        )
    };
    match (name, name.split_once('-')) {
        ("default", _) => Ok(Named::Default),
        ("peer", _) => Ok(Named::Peer),
        (_, None) => device(name).map(Named::Host).ok_or_else(unknown),
        (_, Some((a, b))) => match (device(a), device(b)) {
            (Some(a), Some(b)) if a == b => Err(format!("{name}: a device has no link to itself")),
            (Some(a), Some(b)) => Ok(Named::Pair(a.min(b), a.max(b))),
            _ => Err(unknown()),
        },
    }
}

impl fmt::Display for LinkMatrix {
    /// Writes the form that [`FromStr`] parses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = |link: &Option<LinkModel>| match link {
            Some(link) => link.to_string(),
            None => "host".to_owned(),
        };
        write!(f, "{}", self.default)?;
        if self.peer.is_some() {
            write!(f, "; peer: {}", peer(&self.peer))?;
        }
        for (device, link) in &self.hosts {
            write!(f, "; device{}: {link}", device.0)?;
        }
        for ((a, b), link) in &self.peers {
            write!(f, "; device{}-device{}: {}", a.0, b.0, peer(link))?;
        }
        Ok(())
    }
}

impl FromStr for LinkMatrix {
    type Err = String;

    /// Parses the default link, and after semicolons more entries: `latency=10us,bandwidth=25G; peer: latency=1us,bandwidth=300G;
    /// device0-device1: host`.
    fn from_str(text: &str) -> Result<LinkMatrix, String> {
        let mut parts = text.split(';');
        let default = parts
            .next()
            .unwrap_or_default()
            .trim()
            .parse::<LinkModel>()?;
        let mut links = LinkMatrix::from(default);
        for part in parts {
            let (name, link) = part.split_once(':').ok_or_else(|| {
                format!(
                    "`{}` is no link of a device, like device1: bandwidth=5G",
                    part.trim()
                )
            })?;
            links.set(name.trim(), link.trim())?;
        }
        Ok(links)
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
    fn devices_without_a_link_reach_each_other_over_the_host() {
        let link = |text: &str| text.parse::<LinkModel>().unwrap();
        let [a, b, c] = [0, 1, 2].map(DeviceId);
        let mut links = LinkMatrix::from(link("latency=10us,bandwidth=20G"));
        links.hosts.insert(b, link("latency=5us,bandwidth=10G"));
        let between = |links: &LinkMatrix, from, to| {
            let model = links.between(Place::Device(from), Place::Device(to));
            model.to_string()
        };
        assert_eq!(between(&links, a, b), "latency=15us,bandwidth=10G");
        assert_eq!(between(&links, b, a), "latency=15us,bandwidth=10G");
        assert_eq!(between(&links, a, c), "latency=20us,bandwidth=20G");
        assert_eq!(
            between(&links, a, a),
            "latency=0ns,bandwidth=18446744073709551615"
        );
        assert_eq!(
            links.between(Place::Device(b), Place::System),
            links.host(b)
        );
        assert_eq!(
            links.between(Place::System, Place::Device(a)),
            links.default
        );
        let own = link("latency=1us,bandwidth=300G");
        links.peers.insert((a, b), Some(own));
        assert_eq!((links.peer(a, b), links.peer(b, a)), (Some(own), Some(own)));
        assert_eq!(links.peer(a, c), None);
        links.peer = Some(own);
        links.peers.insert((a, b), None);
        assert_eq!((links.peer(a, b), links.peer(a, c)), (None, Some(own)));
    }

    #[test]
    fn matrices_are_printed_as_they_are_parsed() {
        let text = "latency=10us,bandwidth=25G; peer: latency=1us,bandwidth=300G; device1: latency=5us,bandwidth=5G; \
                    device0-device2: host; device1-device2: latency=2us,bandwidth=50G";
        let links: LinkMatrix = text.parse().unwrap();
        assert_eq!(links.to_string(), text);
        assert_eq!(links.last_device(), Some(DeviceId(2)));
        assert!(!links.is_uniform());
        let plain: LinkMatrix = "bandwidth=25G".parse().unwrap();
        assert_eq!(plain, LinkMatrix::default());
        assert!(plain.is_uniform() && plain.last_device().is_none());
        let with = |more: &str| format!("latency=1us; {more}").parse::<LinkMatrix>();
        for (more, message) in [
            (
                "peer: latency=NaN",
                "peer: link latency 'NaN' is not a time",
            ),
            (
                "peer: bandwidth=0",
                "is not a number of bytes per second, or host",
            ),
            ("device1: host", "device1: a link has no 'host'"),
            ("device1", "`device1` is no link of a device"),
            ("device1-: host", "`device1-` is no link"),
            ("device1-device1: host", "no link to itself"),
            (
                "device0-device1: host; device1-device0: host",
                "device1-device0 is given twice",
            ),
            (
                "device1: latency=1us; device01: latency=1us",
                "device01 is given twice",
            ),
            ("device300: latency=1us", "`device300` is no link"),
            ("peers: latency=1us", "`peers` is no link"),
        ] {
            let error = with(more).unwrap_err();
            assert!(error.contains(message), "{more}: {error}");
        }
    }

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
