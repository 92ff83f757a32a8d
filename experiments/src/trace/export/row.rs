//! An event as a row of a table.

use std::collections::BTreeMap;

use hmm_backend::{Access, Event};

/// The names of a row's columns, in order.
pub const COLUMNS: [&str; 12] = [
    "time_ns",
    "kind",
    "page",
    "pages",
    "device",
    "cause",
    "access",
    "thread",
    "vcpu",
    "latency_ns",
    "hint",
    "repeats",
];

/// An event's columns; those that do not apply are none.
pub struct Row {
    pub time: i64,
    pub kind: &'static str,
    pub page: i64,
    pub pages: i64,
    pub device: Option<i32>,
    pub cause: Option<&'static str>,
    pub access: Option<&'static str>,
    pub thread: i64,
    pub vcpu: Option<i32>,
    pub latency: i64,
    pub hint: Option<String>,
    pub repeats: i64,
}

impl Row {
    /// With the trace's threads and their vCPUs.
    pub fn new(event: &Event, threads: &BTreeMap<u32, u32>) -> Row {
        // Tables have signed numbers; the largest is 292 years.
        let nanos = |time: std::time::Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        Row {
            time: nanos(event.time),
            kind: event.kind.name(),
            page: event.page.0.into(),
            pages: event.pages.into(),
            device: event.device.map(|device| device.0.into()),
            cause: event.cause.map(|cause| cause.name()),
            access: event.access.map(access_name),
            thread: event.thread.into(),
            vcpu: threads.get(&event.thread).map(|vcpu| *vcpu as i32),
            latency: nanos(event.latency),
            hint: event.hint.map(|hint| hint.to_string()),
            repeats: event.repeats.into(),
        }
    }
}

/// The name in tables.
pub fn access_name(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
    }
}
