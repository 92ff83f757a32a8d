//! What a command was doing when it failed.

/// An error, and what failed because of it. As in the libraries, the text has the cause's text in it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {error}")]
struct Failed {
    what: String,
    #[source]
    error: anyhow::Error,
}

/// Returns what makes an error say what failed because of it.
pub fn failed<E: Into<anyhow::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> anyhow::Error {
    let what = what.into();
    move |error| {
        let error = error.into();
        Failed { what, error }.into()
    }
}
