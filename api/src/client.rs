//! Requests to a machine's socket.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;

use crate::problem::Problem;

/// How long an answer may take, from the connection on; the machine's longest requests take less.
const WITHIN: Duration = Duration::from_secs(600);

/// Pause before another try to connect, where too many clients wait.
const CONNECT_AGAIN: Duration = Duration::from_millis(10);

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing answers at the socket.
    #[error("cannot connect to {path}: {error}; start the machine with `--api {path}`", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        #[source]
        error: io::Error,
    },
    /// The connection broke.
    #[error("the connection to {path} broke: {error}", path = path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        error: hyper::Error,
    },
    /// No answer came in time.
    #[error("{path} has not answered for {} s", WITHIN.as_secs(), path = path.display())]
    TimedOut {
        /// The socket.
        path: PathBuf,
    },
    /// The machine refused the request.
    #[error("{0}")]
    Refused(Problem),
    /// The answer is not one of a machine.
    #[error("{path} has answered with status {status}, and not as a machine does: {text}", path = path.display())]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// The HTTP status.
        status: u16,
        /// The beginning of the answer.
        text: String,
    },
    /// This process could not make the request.
    #[error("cannot make a request: {0}")]
    Request(String),
}

/// The body of an answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its media type.
    pub content_type: String,
    /// Its contents; empty if there is nothing to say.
    pub body: Vec<u8>,
}

/// A machine's socket. Each request makes a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Names the socket; connects to nothing.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client {
            socket: socket.into(),
        }
    }

    /// Asks for a resource, like `/v1/vm`.
    pub fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.request(Method::GET, path, None)
    }

    /// Puts a resource.
    pub fn put(&self, path: &str, body: &impl Serialize) -> Result<Answer, ClientError> {
        self.request(Method::PUT, path, Some(json(body)?))
    }

    /// Asks for something to be done.
    pub fn post(&self, path: &str, body: Option<&impl Serialize>) -> Result<Answer, ClientError> {
        self.request(Method::POST, path, body.map(json).transpose()?)
    }

    /// Ends something.
    pub fn delete(&self, path: &str) -> Result<Answer, ClientError> {
        self.request(Method::DELETE, path, None)
    }

    /// Asks for a stream of lines, and hands each over as it comes, until `line` says that it was enough or the machine
    /// ends.
    pub fn lines(
        &self,
        path: &str,
        mut line: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        runtime()?.block_on(async {
            let response = within(&self.socket, send(&self.socket, Method::GET, path, None));
            let mut response = response.await?;
            if !response.status().is_success() {
                return Err(within(&self.socket, answer(&self.socket, response))
                    .await
                    .err()
                    .unwrap_or_else(|| ClientError::Request("no error has come".to_owned())));
            }
            let mut rest = Vec::new();
            while let Some(frame) = response.body_mut().frame().await {
                // The machine has ended.
                let Ok(frame) = frame else { break };
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                rest.extend_from_slice(&data);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let whole: Vec<u8> = rest.drain(..=end).collect();
                    let text = String::from_utf8_lossy(&whole);
                    if line(text.trim_end()).is_break() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, ClientError> {
        let socket = &self.socket;
        runtime()?.block_on(within(socket, async {
            answer(socket, send(socket, method, path, body).await?).await
        }))
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(|error| ClientError::Request(error.to_string()))
}

async fn within<T>(
    socket: &Path,
    asked: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let timed_out = |_| ClientError::TimedOut {
        path: socket.to_owned(),
    };
    tokio::time::timeout(WITHIN, asked)
        .await
        .map_err(timed_out)?
}

fn json(body: &impl Serialize) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(body).map_err(|error| ClientError::Request(error.to_string()))
}

fn broken(socket: &Path) -> impl Fn(hyper::Error) -> ClientError {
    |error| ClientError::Broken {
        path: socket.to_owned(),
        error,
    }
}

/// Makes a connection and sends a request; returns the head of the answer.
async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<Response<Incoming>, ClientError> {
    let broken = broken(socket);
    let stream = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => break stream,
            // So many others want to be served that there is no room to wait in.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(CONNECT_AGAIN).await;
            }
            Err(error) => {
                return Err(ClientError::Connect {
                    path: socket.to_owned(),
                    error,
                });
            }
        }
    };
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(&broken)?;
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost");
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .map_err(|error| ClientError::Request(error.to_string()))?;
    sender.send_request(request).await.map_err(broken)
}

/// Receives the rest of an answer.
async fn answer(socket: &Path, response: Response<Incoming>) -> Result<Answer, ClientError> {
    let status = response.status();
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|it| it.to_str().ok()).unwrap_or("");
    let content_type = content_type.to_owned();
    let body = response.into_body().collect().await;
    let body = body.map_err(broken(socket))?;
    let body = body.to_bytes().to_vec();
    if status.is_success() {
        return Ok(Answer { content_type, body });
    }
    Err(match serde_json::from_slice(&body) {
        Ok(problem) => ClientError::Refused(problem),
        Err(_) => ClientError::Foreign {
            path: socket.to_owned(),
            status: status.as_u16(),
            text: String::from_utf8_lossy(&body).chars().take(200).collect(),
        },
    })
}
