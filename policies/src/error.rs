//! What can be wrong with a script.

use std::io;
use std::path::PathBuf;

use hmm_backend::PolicyError;

/// Why a script cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The file cannot be read.
    #[error("reading policy script {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// The file is too large to be a script.
    #[error("policy script {} has {size} bytes; a script has at most {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The most there may be.
        limit: u64,
    },
    /// It cannot be compiled, its top level fails, or what it returns is no policy. The text begins with file and line.
    #[error("policy script {0}")]
    Script(String),
    /// Two parts of a policy specification that decide the same.
    #[error("policy '{spec}': {why}")]
    Spec {
        /// The specification.
        spec: String,
        /// What is wrong.
        why: String,
    },
    /// What is not a script.
    #[error("{0}{hint}", hint = or_a_script(.0))]
    Policy(PolicyError),
}

impl From<PolicyError> for ScriptError {
    fn from(error: PolicyError) -> ScriptError {
        ScriptError::Policy(error)
    }
}

/// The backend's policies know nothing of scripts.
fn or_a_script(error: &PolicyError) -> &'static str {
    match error {
        PolicyError::Unknown { .. } => "; or a script: a file whose name ends in .luau",
        _ => "",
    }
}
