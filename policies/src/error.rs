//! The errors of loading a script.

use std::io;
use std::path::PathBuf;

use hmm_backend::pages::Fidelity;
use hmm_backend::policy::{PolicyError, PolicyFile};

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
        /// The file's size in bytes.
        size: u64,
        /// The most bytes that a script may have.
        limit: u64,
    },
    /// The script cannot be compiled, its top level fails, what it returns is no policy, or it does not read a parameter. The text
    /// begins with the file, and with the line if there is one.
    #[error("policy script {0}")]
    Script(String),
    /// Another file names this file as its policy's, without saying what was in it.
    #[error(
        "policy file {} is named, but not what was in it then; if that is the policy to use, name it with --policy",
        path.display()
    )]
    NotRecorded {
        /// The file.
        path: PathBuf,
    },
    /// The file's content has changed since it was recorded.
    #[error(
        "policy file {} is not the one that was used: its SHA-256 is {found}, and was {expected}; if it is the policy to use nevertheless, name it with --policy",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// The digest that was recorded.
        expected: String,
        /// The digest now.
        found: String,
    },
    /// Two parts of a policy specification decide the same.
    #[error("policy '{spec}': {why}")]
    Spec {
        /// The specification.
        spec: String,
        /// What is wrong.
        why: String,
    },
    /// The script needs to know more of accesses than devices tell.
    #[error("policy script {} needs devices that tell of their accesses ({needed}), and they tell {told}: add --accesses {needed}", path.display())]
    Told {
        /// The script's file.
        path: PathBuf,
        /// How much it needs.
        needed: Fidelity,
        /// How much they tell.
        told: Fidelity,
    },
    /// A region's policy decides about evictions, and devices belong to no region. The text says which part, and that it decides.
    #[error("{0} about evictions, which have no region; name it in [policy] spec")]
    Eviction(String),
    /// A part of the specification that is no script is wrong.
    #[error("{0}{hint}", hint = or_a_script(.0))]
    Policy(#[from] PolicyError),
}

impl ScriptError {
    /// Returns an error unless the file's content is the one that was recorded.
    pub(crate) fn unless_same(
        found: &PolicyFile,
        expected: &PolicyFile,
    ) -> Result<(), ScriptError> {
        match found.sha256 == expected.sha256 {
            true => Ok(()),
            false => Err(ScriptError::Changed {
                path: found.path.clone(),
                expected: expected.sha256.clone(),
                found: found.sha256.clone(),
            }),
        }
    }
}

/// Returns what to add to an error of the backend's policies, which know nothing of scripts.
fn or_a_script(error: &PolicyError) -> &'static str {
    match error {
        PolicyError::Unknown { .. } => "; or a script: a file whose name ends in .luau",
        _ => "",
    }
}
