//! How strictly a run is confined.

use std::fmt::{self, Display};
use std::str::FromStr;

/// How strictly a run is confined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Threads may do what the table of their kind allows. Anything else ends the run.
    #[default]
    On,
    /// Threads may do everything. The system calls that `On` would not allow are told on standard error, each once.
    Log,
    /// Threads may do everything.
    Off,
}

const NAMES: [(Mode, &str); 3] = [(Mode::On, "on"), (Mode::Log, "log"), (Mode::Off, "off")];

impl Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(mode, _)| mode == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        let mode = NAMES.iter().find(|(_, name)| *name == text);
        mode.map(|(mode, _)| *mode)
            .ok_or_else(|| format!("`{text}` is none of on, log and off"))
    }
}
