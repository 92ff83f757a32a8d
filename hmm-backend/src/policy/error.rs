//! Errors in policy specifications.

use super::fault::PlacementError;

/// An error in a policy specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// There is no such component.
    #[error("unknown policy '{name}'; there are: {known}")]
    Unknown {
        /// The given name.
        name: String,
        /// The names of all components.
        known: String,
    },
    /// The component has no such parameter.
    #[error("policy '{policy}' has no parameter '{param}'; it has: {known}")]
    UnknownParam {
        /// The component.
        policy: &'static str,
        /// The given parameter.
        param: String,
        /// The parameters of the component.
        known: String,
    },
    /// The value of a parameter is not usable.
    #[error("policy '{policy}', parameter '{param}': '{value}' is not {expected}")]
    BadValue {
        /// The component.
        policy: &'static str,
        /// The parameter.
        param: &'static str,
        /// The given value.
        value: String,
        /// A description of usable values.
        expected: String,
    },
    /// A parameter without a default was not given.
    #[error("policy '{policy}' needs parameter '{param}': write {policy}:{param}=...")]
    Missing {
        /// The component.
        policy: &'static str,
        /// The parameter.
        param: &'static str,
    },
    /// A file that a parameter names cannot be used.
    #[error("policy '{policy}', placement file {file}: {error}")]
    File {
        /// The component.
        policy: &'static str,
        /// The file.
        file: String,
        /// What is wrong with the file, and in which line.
        #[source]
        error: PlacementError,
    },
    /// Two components decide about the same thing.
    #[error("policies '{first}' and '{second}' both decide about {kind}; name one of them")]
    Twice {
        /// The first.
        first: &'static str,
        /// The second.
        second: &'static str,
        /// What both decide about.
        kind: &'static str,
    },
    /// A parameter was given twice.
    #[error("policy '{policy}', parameter '{param}' is given twice; give it once")]
    RepeatedParam {
        /// The component.
        policy: &'static str,
        /// The parameter.
        param: &'static str,
    },
    /// A modifier was named twice.
    #[error("policy '{0}' is named twice; name it once, with all its parameters")]
    Repeated(&'static str),
}
