//! The virtio devices that a configuration names.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use hmmvisor_experiments::size::Size;

/// `[[disk]]`
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table [[disk]]")]
pub struct DiskConfig {
    /// The image: raw, a multiple of 512 bytes.
    pub file: PathBuf,
    /// The guest must not write it.
    #[serde(default)]
    pub read_only: bool,
}

impl FromStr for DiskConfig {
    type Err = String;

    /// `FILE` or `FILE,ro`.
    fn from_str(text: &str) -> Result<DiskConfig, String> {
        let (file, read_only) = match text.strip_suffix(",ro") {
            Some(file) => (file, true),
            None => (text, false),
        };
        if text.ends_with(",rw") {
            return Err(
                "there is no `,rw`: a disk is writable without `,ro`, the only flag".to_owned(),
            );
        }
        if file.is_empty() {
            return Err("write it as FILE or FILE,ro".to_owned());
        }
        Ok(DiskConfig {
            file: file.into(),
            read_only,
        })
    }
}

/// `[balloon]`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "the table [balloon]")]
pub struct BalloonConfig {
    /// How much of its memory the guest is to give back.
    pub size: Size,
    /// How many seconds are between two times that the guest is asked to name its free pages; never if there is none.
    pub hints: Option<u64>,
    /// How many seconds are between two times that the guest is asked for figures about its memory.
    pub statistics: Option<u64>,
}

impl FromStr for BalloonConfig {
    type Err = String;

    /// `SIZE`, `SIZE,hints=SECONDS`, `SIZE,statistics=SECONDS` or both.
    fn from_str(text: &str) -> Result<BalloonConfig, String> {
        let mut words = text.split(',');
        let size = words.next().unwrap_or_default();
        let mut config = BalloonConfig {
            size: size.parse().map_err(|error| format!("{error}"))?,
            ..BalloonConfig::default()
        };
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let place = match name {
                "hints" => &mut config.hints,
                "statistics" => &mut config.statistics,
                _ => {
                    return Err(format!(
                        "unknown `{name}`; write it as SIZE[,hints=SECONDS][,statistics=SECONDS]"
                    ));
                }
            };
            let seconds = value
                .parse()
                .map_err(|_| format!("`{name}` takes a number of seconds, not `{value}`"))?;
            if place.replace(seconds).is_some() {
                return Err(format!("`{name}` is given twice; give it once"));
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read_only_where_it_says_so() {
        let disk = |text: &str| text.parse::<DiskConfig>();
        let config = |file: &str, read_only| DiskConfig {
            file: file.into(),
            read_only,
        };
        assert_eq!(disk("a.img"), Ok(config("a.img", false)));
        assert_eq!(disk("a,b.img,ro"), Ok(config("a,b.img", true)));
        assert!(
            disk("a.img,rw")
                .unwrap_err()
                .contains("`,ro`, the only flag")
        );
        assert!(disk(",ro").unwrap_err().contains("FILE,ro"));
        assert!(disk("").is_err());
    }

    #[test]
    fn what_a_balloon_is_asked_follows_its_size() {
        let parse = |text: &str| text.parse::<BalloonConfig>();
        let config = |size, hints, statistics| BalloonConfig {
            size: Size(size),
            hints,
            statistics,
        };
        assert_eq!(parse("64M"), Ok(config(64 << 20, None, None)));
        assert_eq!(parse("0,hints=5"), Ok(config(0, Some(5), None)));
        assert_eq!(
            parse("1M,statistics=2,hints=60"),
            Ok(config(1 << 20, Some(60), Some(2)))
        );
        assert!(parse("").is_err());
        assert!(parse("hints=5").is_err());
        assert!(parse("1M,hint=5").unwrap_err().contains("unknown `hint`"));
        assert!(parse("1M,hints").unwrap_err().contains("seconds, not ``"));
        assert!(parse("1M,hints=-1").unwrap_err().contains("not `-1`"));
    }
}
