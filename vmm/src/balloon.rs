//! The balloon of a configuration, what is asked of its guest now and then, and what came of it.

use std::str::FromStr;
use std::time::Duration;

use hmmvisor_devices::virtio::{Balloon, BalloonFigures, Hinting, Statistics};
use serde::{Deserialize, Serialize};

use crate::event_loop::Periodic;
use crate::size::Size;

/// `[balloon]`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
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

/// What the configuration wants to be asked of the guest again and again.
pub(crate) fn questions<'a>(config: &BalloonConfig, balloon: &'a Balloon) -> Vec<Periodic<'a>> {
    let mut questions = Vec::new();
    let mut ask = |every: Option<u64>, question: fn(&Balloon)| {
        let every = every.map(Duration::from_secs);
        questions.extend(every.map(|every| Periodic::new(every, move || question(balloon))));
    };
    ask(config.hints, ask_for_hints);
    ask(config.statistics, Balloon::request_statistics);
    questions
}

/// A guest that is still at it is left to it.
fn ask_for_hints(balloon: &Balloon) {
    if matches!(balloon.hinting(), Hinting::Off | Hinting::Done) {
        balloon.start_hinting();
    }
}

/// What a balloon was good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct BalloonReport {
    /// What the guest was to give back, in bytes.
    pub target_bytes: u64,
    /// What it had given back by inflation, as it last said, in bytes.
    pub actual_bytes: u64,
    /// Pages with contents that it gave back, by the way they came.
    pub pages: BalloonFigures,
    /// The last figures about its memory, if some have come.
    pub statistics: Option<Statistics>,
}

impl BalloonReport {
    /// How it is now.
    pub fn of(balloon: &Balloon) -> BalloonReport {
        BalloonReport {
            target_bytes: balloon.target(),
            actual_bytes: balloon.last_actual(),
            pages: balloon.figures(),
            statistics: balloon.statistics().map(|(_, figures)| figures),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
