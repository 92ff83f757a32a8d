//! The balloon of a run: the periodic requests to its guest, and its figures in the report.

use std::time::Duration;

use hmmvisor_devices::virtio::{Balloon, BalloonFigures, Hinting, Statistics};
use serde::Serialize;

use crate::config::virtio::BalloonConfig;
use crate::run::event_loop::Periodic;

/// Returns the periodic requests to the guest that the configuration names.
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

/// Asks for hints, unless the guest is still giving them.
fn ask_for_hints(balloon: &Balloon) {
    if matches!(balloon.hinting(), Hinting::Off | Hinting::Done) {
        balloon.start_hinting();
    }
}

/// What a balloon achieved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct BalloonReport {
    /// How much the guest was to give back, in bytes.
    pub target_bytes: u64,
    /// How much it had given back by inflation, by its last statement, in bytes.
    pub actual_bytes: u64,
    /// Pages with contents that it gave back, by the way they came.
    pub pages: BalloonFigures,
    /// The last figures about its memory, if some have come.
    pub statistics: Option<Statistics>,
}

impl BalloonReport {
    /// Returns the figures as they are now.
    pub fn of(balloon: &Balloon) -> BalloonReport {
        BalloonReport {
            target_bytes: balloon.target(),
            actual_bytes: balloon.last_actual(),
            pages: balloon.figures(),
            statistics: balloon.statistics().map(|(_, figures)| figures),
        }
    }
}
