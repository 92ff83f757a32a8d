//! Errors of the API: of its socket, and of requests.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hmmvisor_api::Problem;

/// Why a machine has no API.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Another process listens at the socket.
    #[error("the API's socket {path} is in use: a process answers there; choose another path", path = .0.display())]
    InUse(PathBuf),
    /// Something else than a socket is at this path.
    #[error("{path} exists and is no socket; choose another path for the API", path = .0.display())]
    NoSocket(PathBuf),
    /// The metrics cannot be served by TCP.
    #[error("the metrics' address {address}: {error}; choose another one with --metrics")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        error: io::Error,
    },
    /// The thread that answers cannot be started.
    #[error("cannot start the thread of the API: {0}")]
    Thread(#[source] io::Error),
    /// The socket cannot be made.
    #[error("the API's socket {path}: {what}: {error}{}", advice(error), path = path.display())]
    Socket {
        /// The path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        error: io::Error,
    },
}

/// Says what would be right where a socket cannot be made.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; make its folder first",
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => {
            "; a socket's path has at most 107 bytes"
        }
        _ => "",
    }
}

/// A request that is refused.
pub(crate) struct Refusal(Problem);

impl Refusal {
    /// The request is wrong.
    pub(crate) fn bad(field: &str, detail: impl ToString) -> Refusal {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "the request is wrong",
            Some(field),
            detail,
        )
    }

    /// The request is right, but cannot be carried out now.
    pub(crate) fn conflict(detail: impl ToString) -> Refusal {
        Refusal::new(StatusCode::CONFLICT, "not possible now", None, detail)
    }

    /// What the request is about does not exist.
    pub(super) fn missing(title: &str, detail: impl ToString) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, title, None, detail)
    }

    /// The same, about this field of the request.
    pub(super) fn about(mut self, field: &str) -> Refusal {
        if self.0.field.is_some() {
            self.0.field = Some(field.to_owned());
        }
        self
    }

    /// An error of the backend in a request whose field names a device.
    pub(super) fn of_device(field: &str, error: hmm_backend::Error) -> Refusal {
        match error {
            hmm_backend::Error::NoDevice(_) => Refusal::bad(field, error),
            other => other.into(),
        }
    }

    pub(super) fn new(
        status: StatusCode,
        title: &str,
        field: Option<&str>,
        detail: impl ToString,
    ) -> Refusal {
        Refusal(Problem {
            status: status.as_u16(),
            title: title.to_owned(),
            detail: detail.to_string(),
            field: field.map(str::to_owned),
        })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::BAD_REQUEST);
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        (
            status,
            [(header::CONTENT_TYPE, "application/problem+json")],
            body,
        )
            .into_response()
    }
}

impl From<hmm_backend::Error> for Refusal {
    fn from(error: hmm_backend::Error) -> Refusal {
        use hmm_backend::Error::*;
        match error {
            OutOfRange { .. } | NotWholeBlocks(_) => Refusal::bad("first, pages", error),
            Cancelled { .. } => Refusal::new(StatusCode::CONFLICT, "cancelled", None, error),
            other => Refusal::conflict(other),
        }
    }
}
