//! Why a process cannot be confined.

use std::io;
use std::path::PathBuf;

use landlock::RulesetError;
use thiserror::Error;

/// Why a process cannot be confined.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A folder for later outputs is none.
    #[error("--allow-write {}: {why}", path.display())]
    Folder {
        /// The path that was given.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A path that the configuration names cannot be allowed.
    #[error("making the sandbox: opening {}: {error}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// Landlock refuses the rules.
    #[error("making the sandbox's rules for files: {0}")]
    Landlock(#[from] RulesetError),
    /// The kernel refuses something else.
    #[error("making the sandbox: {what}: {error}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// There is a sandbox already.
    #[error("making the sandbox: this process has one already")]
    Twice,
}
