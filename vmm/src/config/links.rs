//! `[links]`: what transfers between system memory and accelerators, and between accelerators, cost, and whether they take that
//! time.

use std::collections::BTreeMap;
use std::str::FromStr;

use hmm_backend::links::{LinkMatrix, LinkModel, Pacing};
use hmm_backend::pages::DeviceId;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// The links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinksConfig {
    /// What they cost.
    pub matrix: LinkMatrix,
    /// Whether `matrix.peer` was given: otherwise either all pairs have an entry, or none has.
    pub peer_given: bool,
    /// Whether transfers take their time.
    pub pacing: Pacing,
}

impl LinksConfig {
    /// Returns the first pair of this many accelerators that has no entry although others have one.
    pub fn hole(&self, count: u32) -> Option<(DeviceId, DeviceId)> {
        let peers = &self.matrix.peers;
        if self.peer_given || peers.is_empty() {
            return None;
        }
        let devices = || (0..count as u8).map(DeviceId);
        let pairs = devices().flat_map(|a| devices().map(move |b| (a, b)));
        let mut pairs = pairs.filter(|(a, b)| a < b);
        pairs.find(|pair| !peers.contains_key(pair))
    }
}

/// The table as it is written: `enforce`, and the entries of [`LinkMatrix::set`].
#[derive(Deserialize)]
#[serde(
    expecting = "a table with default, peer, enforce, device0, device1, … and device0-device1, …"
)]
struct Table {
    #[serde(default)]
    enforce: bool,
    #[serde(flatten)]
    links: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for LinksConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<LinksConfig, D::Error> {
        let table = Table::deserialize(deserializer)?;
        let mut matrix = LinkMatrix::default();
        for (name, text) in &table.links {
            matrix.set(name, text).map_err(D::Error::custom)?;
        }
        Ok(LinksConfig {
            matrix,
            peer_given: table.links.contains_key("peer"),
            pacing: match table.enforce {
                true => Pacing::Enforced,
                false => Pacing::Accounted,
            },
        })
    }
}

/// A link of the command line: `latency=10us,bandwidth=25G`, with `,enforce` if transfers take that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkOption {
    /// The link of all accelerators.
    pub model: LinkModel,
    /// Whether transfers take its time.
    pub pacing: Pacing,
}

impl FromStr for LinkOption {
    type Err = String;

    fn from_str(text: &str) -> Result<LinkOption, String> {
        let (enforced, parts): (Vec<&str>, Vec<&str>) =
            text.split(',').partition(|part| part.trim() == "enforce");
        let model = match parts.is_empty() {
            true => LinkModel::default(),
            false => parts.join(",").parse()?,
        };
        let pacing = match enforced.len() {
            0 => Pacing::Accounted,
            1 => Pacing::Enforced,
            _ => return Err("`enforce` is given twice; give it once".to_owned()),
        };
        Ok(LinkOption { model, pacing })
    }
}

/// The link between accelerators on the command line: `latency=1us,bandwidth=300G`, or `host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerOption(pub Option<LinkModel>);

impl FromStr for PeerOption {
    type Err = String;

    fn from_str(text: &str) -> Result<PeerOption, String> {
        let mut matrix = LinkMatrix::default();
        matrix.set("peer", text)?;
        Ok(PeerOption(matrix.peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_the_command_line() {
        let slow: LinkOption = "latency=1ms,bandwidth=1G,enforce".parse().unwrap();
        assert_eq!(slow.pacing, Pacing::Enforced);
        assert_eq!(slow.model.to_string(), "latency=1ms,bandwidth=1G");
        let only: LinkOption = "enforce".parse().unwrap();
        assert_eq!(
            (only.model, only.pacing),
            (LinkModel::default(), Pacing::Enforced)
        );
        for (text, error) in [
            ("", "a link has no ''"),
            ("latency=NaN", "is not a time"),
            ("bandwidth=0", "is not a number"),
            ("enforce,enforce", "given twice"),
            ("enforced", "a link has no 'enforced'"),
        ] {
            let told = text.parse::<LinkOption>().unwrap_err();
            assert!(told.contains(error), "{text}: {told}");
        }
    }

    #[test]
    fn pairs_are_all_there_or_have_a_rest() {
        let hole = |text: &str, count| {
            let links: LinksConfig = toml::from_str(text).unwrap();
            links.hole(count).map(|(a, b)| (a.0, b.0))
        };
        let two = "device0-device1 = 'bandwidth=300G'\ndevice2-device0 = 'host'";
        assert_eq!(hole("device1 = 'bandwidth=1G'", 3), None);
        assert_eq!(hole(two, 3), Some((1, 2)));
        assert_eq!(hole(&format!("{two}\npeer = 'host'"), 3), None);
        assert_eq!(hole(&format!("{two}\ndevice2-device1 = 'host'"), 3), None);
        assert_eq!(hole("device0-device1 = 'host'", 2), None);
    }

    #[test]
    fn links_of_a_file() {
        let links: LinksConfig =
            toml::from_str("enforce = true\ndevice1 = 'bandwidth=1G'").unwrap();
        assert_eq!(links.pacing, Pacing::Enforced);
        assert_eq!(links.matrix.default, LinkModel::default());
        assert_eq!(links.matrix.hosts.len(), 1);
        assert_eq!(links.matrix.hosts[&DeviceId(1)].bandwidth, 1_000_000_000);
        for (text, error) in [
            ("device1 = 'bandwidth=0'", "bandwidth"),
            ("default = 'bandwidth=NaN'", "bandwidth"),
            ("devices = 'bandwidth=1G'", "`devices` is no link"),
            ("device300 = 'bandwidth=1G'", "`device300` is no link"),
            (
                "device0-device1 = 'bandwidth=0'",
                "device0-device1: link bandwidth",
            ),
            ("peer = 'latency=NaN'", "peer: link latency"),
            ("device1-device1 = 'host'", "no link to itself"),
            (
                "device0-device1 = 'host'\ndevice1-device0 = 'host'",
                "given twice",
            ),
        ] {
            let told = toml::from_str::<LinksConfig>(text).unwrap_err().to_string();
            assert!(told.contains(error), "{text}: {told}");
        }
    }
}
