//! The API of a running machine: HTTP/1.1 on a Unix socket ([docs/api.md](../../../docs/api.md)), and its metrics by TCP.
//!
//! | module | what |
//! |---|---|
//! | `server`, `patience` | the sockets, and the thread that serves them; how long a connection lasts, how many carry streams |
//! | `routes` | the resources, and the document that describes them |
//! | `extract` | bodies and queries of requests, checked |
//! | `live` | the machine that is asked about; `memory`, `policy`, `devices`: its parts |
//! | `operations` | requests that take long, while they are carried out |
//! | `provoke` | drivers that fail at a request |
//! | `events`, `metrics` | the stream of events; the figures for Prometheus |
//! | `asked` | requests without a socket, for the fuzzer |
//! | `error` | why there is no API; why a request is refused |
//!
//! Only the API's threads know of tokio. A run without a socket has none of them.

#[cfg(feature = "fuzzing")]
mod asked;
mod devices;
mod error;
mod events;
mod extract;
mod live;
mod memory;
mod metrics;
mod operations;
mod patience;
mod policy;
mod provoke;
mod routes;
mod server;

#[cfg(feature = "fuzzing")]
pub use asked::{Reply, Resources};
pub use error::ApiError;
pub(crate) use error::Refusal;
pub(crate) use live::{Live, Run};
pub(crate) use memory::PinBoard;
pub(crate) use operations::OperationBoard;
pub(crate) use patience::OpenStreams;
pub(crate) use provoke::Provoker;
pub use routes::openapi;
pub(crate) use server::{ApiServer, Listeners};
