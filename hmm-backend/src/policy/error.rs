//! What can be wrong with a policy specification.

use super::fault::PlacementError;

/// What is wrong with a policy specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No such component.
    #[error("unknown policy '{name}'; there are: {known}")]
    Unknown {
        /// What was given.
        name: String,
        /// All names.
        known: String,
    },
    /// No such parameter.
    #[error("policy '{policy}' has no parameter '{param}'; it has: {known}")]
    UnknownParam {
        /// The component.
        policy: &'static str,
        /// What was given.
        param: String,
        /// Its parameters.
        known: String,
    },
    /// A parameter without a usable value.
    #[error("policy '{policy}', parameter '{param}': '{value}' is not {expected}")]
    BadValue {
        /// The component.
        policy: &'static str,
        /// The parameter.
        param: &'static str,
        /// What was given.
        value: String,
        /// What was expected.
        expected: String,
    },
    /// A parameter that has no default.
    #[error("policy '{policy}' needs parameter '{param}': write {policy}:{param}=...")]
    Missing {
        /// The component.
        policy: &'static str,
        /// The parameter.
        param: &'static str,
    },
    /// A file that a parameter names.
    #[error("policy '{policy}', placement file {file}: {error}")]
    File {
        /// The component.
        policy: &'static str,
        /// The file.
        file: String,
        /// What is wrong with it, and where.
        error: PlacementError,
    },
    /// Two components for one decision.
    #[error("policies '{first}' and '{second}' both decide about {kind}; name one of them")]
    Twice {
        /// The first.
        first: &'static str,
        /// The second.
        second: &'static str,
        /// What both decide.
        kind: &'static str,
    },
    /// A parameter twice.
    #[error("policy '{policy}', parameter '{param}' is given twice; give it once")]
    RepeatedParam {
        /// The component.
        policy: &'static str,
        /// The parameter.
        param: &'static str,
    },
    /// A modifier twice.
    #[error("policy '{0}' is named twice; name it once, with all its parameters")]
    Repeated(&'static str),
}
