//! The names of the two ways to move contents between guest memory and device memory, and the choice between
//! them. The ways themselves are in `memory.rs`.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::uffd::probe_userfaultfd;

/// A migration engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// Moves pages with `UFFDIO_MOVE` (Linux 6.8).
    Remap,
    /// Copies contents.
    Copy,
}

impl Engine {
    /// The name in configurations and reports.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Remap => "remap",
            Engine::Copy => "copy",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which engine to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EngineChoice {
    /// `remap` where the kernel has it, else `copy`.
    #[default]
    Auto,
    /// This one, or an error.
    Only(Engine),
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(EngineChoice::Auto),
            "remap" => Ok(EngineChoice::Only(Engine::Remap)),
            "copy" => Ok(EngineChoice::Only(Engine::Copy)),
            _ => Err(format!(
                "unknown engine '{s}'; there are: auto, remap, copy"
            )),
        }
    }
}

impl EngineChoice {
    /// The engine, if this kernel can run it.
    pub(crate) fn resolve(self) -> Result<Engine, Error> {
        let support = probe_userfaultfd()?;
        let need = |engine: Engine, there, feature, since| {
            if there {
                Ok(engine)
            } else {
                Err(Error::EngineUnsupported {
                    engine: engine.name(),
                    feature,
                    since,
                })
            }
        };
        match self {
            EngineChoice::Auto if support.remap => Ok(Engine::Remap),
            EngineChoice::Only(Engine::Remap) => need(
                Engine::Remap,
                support.remap,
                "UFFDIO_MOVE",
                "since Linux 6.8",
            ),
            _ => need(
                Engine::Copy,
                support.write_protect,
                "userfaultfd write protection",
                "since Linux 5.7",
            ),
        }
    }
}
