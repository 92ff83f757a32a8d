//! Records of what happened: counters, latencies and events.

mod cause;
mod events;
mod stats;

pub use cause::Cause;
pub use events::{Event, EventKind, Events};
pub(crate) use stats::{Counter, Recorder, Toucher};
pub use stats::{Counters, Direction, Latency, LatencyBuckets, Stats};
