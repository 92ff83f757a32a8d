//! Records of what happened: counters, latencies and events.

mod cause;
mod events;
mod stats;

pub use cause::{Cause, FaultCause};
pub use events::{Event, EventKind, Events};
pub(crate) use stats::{Counter, Recorder};
pub use stats::{Counters, Direction, FaultLatencies, Latency, LatencyBuckets, Stats};
