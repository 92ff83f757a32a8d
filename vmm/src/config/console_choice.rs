//! Where a guest's serial output goes, and where its input comes from.

use std::convert::Infallible;
use std::fmt::{self, Display};
use std::path::PathBuf;
use std::str::FromStr;

/// Where the serial port's output goes, and where its input comes from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ConsoleChoice {
    /// An interactive terminal if standard input is one, otherwise as [`ConsoleChoice::Stdio`].
    #[default]
    Auto,
    /// Standard input and output, whatever they are, byte for byte.
    Stdio,
    /// Output to a file; no input.
    File(PathBuf),
}

impl FromStr for ConsoleChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<ConsoleChoice, Infallible> {
        Ok(match text {
            "auto" => ConsoleChoice::Auto,
            "stdio" => ConsoleChoice::Stdio,
            file => ConsoleChoice::File(file.into()),
        })
    }
}

impl Display for ConsoleChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConsoleChoice::Auto => f.write_str("auto"),
            ConsoleChoice::Stdio => f.write_str("stdio"),
            ConsoleChoice::File(path) => path.display().fmt(f),
        }
    }
}
