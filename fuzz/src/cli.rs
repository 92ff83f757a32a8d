//! The options of `run`: the command line is part of the program, not of its library.

#[path = "../../vmm/src/cli/run.rs"]
#[allow(dead_code)]
pub mod run;

/// Only named in messages.
fn commands() -> &'static str {
    "run"
}
