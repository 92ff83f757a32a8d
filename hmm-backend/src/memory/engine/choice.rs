//! The names of the engines that move contents between guest memory and device memory, and the choice between them.

use std::fmt;
use std::str::FromStr;

use crate::memory::UffdSupport;
use crate::pages::Error;

/// A migration engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// Moves pages with `UFFDIO_MOVE` (Linux 6.8).
    Remap,
    /// Copies contents.
    Copy,
    /// Moves nothing: pages have no contents, only residency words. For replays; a guest cannot run with it.
    Model,
}

impl Engine {
    /// The name in configurations and reports.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Remap => "remap",
            Engine::Copy => "copy",
            Engine::Model => "model",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The engine that the user asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EngineChoice {
    /// `remap` if the kernel supports it, else `copy`.
    #[default]
    Auto,
    /// This engine; an error if the kernel does not support it.
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
    /// Returns the engine to use with this kernel. If an engine was asked for by name, it is returned or the call
    /// fails with [`Error::EngineUnsupported`]; it is never replaced by another one.
    pub(crate) fn resolve(self, support: &UffdSupport) -> Result<Engine, Error> {
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
            EngineChoice::Only(Engine::Model) => Ok(Engine::Model),
            EngineChoice::Auto if support.remap && support.write_protect => Ok(Engine::Remap),
            // Both engines need write protection for read-only pages.
            EngineChoice::Only(Engine::Remap) if support.write_protect => need(
                Engine::Remap,
                support.remap,
                "UFFDIO_MOVE",
                "since Linux 6.8",
            ),
            EngineChoice::Only(engine) => need(
                engine,
                support.write_protect,
                "userfaultfd write protection",
                "since Linux 5.7",
            ),
            EngineChoice::Auto => need(
                Engine::Copy,
                support.write_protect,
                "userfaultfd write protection",
                "since Linux 5.7",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kernel_gets_what_it_can_run_or_a_clear_error() {
        let support = |write_protect, remap| UffdSupport {
            via: "test",
            write_protect,
            remap,
            poison: false,
            thread_id: true,
        };
        let (new, old, ancient) = (
            support(true, true),
            support(true, false),
            support(false, false),
        );
        let resolve = |name: &str, support| {
            let choice: EngineChoice = name.parse().unwrap();
            choice.resolve(support).map_err(|error| error.to_string())
        };
        assert_eq!(resolve("auto", &new), Ok(Engine::Remap));
        assert_eq!(resolve("auto", &old), Ok(Engine::Copy));
        assert_eq!(resolve("copy", &new), Ok(Engine::Copy));
        assert_eq!(
            resolve("remap", &old).unwrap_err(),
            "engine remap: this kernel has no UFFDIO_MOVE (since Linux 6.8); use a newer kernel or another engine"
        );
        assert!(resolve("copy", &ancient).is_err() && resolve("auto", &ancient).is_err());
        assert_eq!(
            "fast".parse::<EngineChoice>().unwrap_err(),
            "unknown engine 'fast'; there are: auto, remap, copy"
        );
    }
}
