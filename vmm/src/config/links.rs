//! `[links]`: what transfers between system memory and accelerators cost, and whether they take that time.

use std::collections::BTreeMap;
use std::str::FromStr;

use hmm_backend::links::{LinkModel, Pacing};
use hmm_backend::pages::DeviceId;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// The links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinksConfig {
    /// The link of accelerators that have none of their own.
    pub default: LinkModel,
    /// Links of single accelerators.
    pub others: BTreeMap<DeviceId, LinkModel>,
    /// Whether transfers take their time.
    pub pacing: Pacing,
}

/// The table as it is written: `default`, `enforce`, and `device0`, `device1`, ….
#[derive(Deserialize)]
#[serde(expecting = "a table with default, enforce and device0, device1, …")]
struct Table {
    default: Option<String>,
    #[serde(default)]
    enforce: bool,
    #[serde(flatten)]
    devices: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for LinksConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<LinksConfig, D::Error> {
        let table = Table::deserialize(deserializer)?;
        let link = |text: &str| text.parse::<LinkModel>().map_err(D::Error::custom);
        let mut others = BTreeMap::new();
        for (name, text) in &table.devices {
            let number = name.strip_prefix("device").and_then(|it| it.parse().ok());
            let number = number.ok_or_else(|| {
                D::Error::custom(format!(
                    "`{name}` is no link; there are default, enforce, and device0, device1, … for single accelerators"
                ))
            })?;
            others.insert(DeviceId(number), link(text)?);
        }
        Ok(LinksConfig {
            default: match &table.default {
                Some(text) => link(text)?,
                None => LinkModel::default(),
            },
            others,
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
    fn links_of_a_file() {
        let links: LinksConfig =
            toml::from_str("enforce = true\ndevice1 = 'bandwidth=1G'").unwrap();
        assert_eq!(links.pacing, Pacing::Enforced);
        assert_eq!(links.default, LinkModel::default());
        assert_eq!(links.others.len(), 1);
        assert_eq!(links.others[&DeviceId(1)].bandwidth, 1_000_000_000);
        for (text, error) in [
            ("device1 = 'bandwidth=0'", "bandwidth"),
            ("default = 'bandwidth=NaN'", "bandwidth"),
            ("devices = 'bandwidth=1G'", "`devices` is no link"),
            ("device300 = 'bandwidth=1G'", "`device300` is no link"),
        ] {
            let told = toml::from_str::<LinksConfig>(text).unwrap_err().to_string();
            assert!(told.contains(error), "{text}: {told}");
        }
    }
}
