//! The options of `run`: the command line is part of the program, not of its library.

#[path = "../../vmm/src/cli/run.rs"]
#[allow(dead_code)]
pub mod run;

/// Only named in messages.
fn commands() -> &'static str {
    "run"
}

/// What the options call a wrong command line; the program gives it an exit code of its own.
mod mistake {
    use std::fmt;

    #[derive(Debug)]
    pub struct Mistake(pub String);

    impl fmt::Display for Mistake {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl std::error::Error for Mistake {}
}
