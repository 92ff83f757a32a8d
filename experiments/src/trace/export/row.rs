//! An event as a row of a table.

use std::collections::BTreeMap;

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::Access;

/// The names of a row's columns, in order.
pub const COLUMNS: [&str; 13] = [
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
    "hold_ns",
    "hint",
    "repeats",
];

/// An event's columns; those that do not apply are none.
pub struct ExportRow {
    /// The event's time, in nanoseconds.
    pub time: i64,
    /// The name of the event's kind.
    pub kind: &'static str,
    /// The first page's number in managed memory.
    pub page: i64,
    /// The number of pages.
    pub pages: i64,
    /// The device's number.
    pub device: Option<i32>,
    /// The name of a migration's cause.
    pub cause: Option<&'static str>,
    /// `read` or `write`.
    pub access: Option<&'static str>,
    /// The thread's number.
    pub thread: Option<i64>,
    /// The vCPU that the thread runs.
    pub vcpu: Option<i32>,
    /// How long a fault was served, in nanoseconds.
    pub latency: Option<i64>,
    /// How long advice has pages stay where they go, in nanoseconds.
    pub hold: Option<i64>,
    /// The text of a hint.
    pub hint: Option<String>,
    /// How many accesses the event stands for.
    pub repeats: i64,
}

impl ExportRow {
    /// Makes the row of an event. `threads` has the trace's threads and their vCPUs.
    pub fn new(event: &Event, threads: &BTreeMap<u32, u32>) -> ExportRow {
        // Tables have signed numbers; the largest is 292 years.
        let nanos = |time: std::time::Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let duration = |kinds: &[EventKind]| {
            let applies = kinds.contains(&event.kind);
            applies.then(|| nanos(event.latency))
        };
        let vcpu = threads.get(&event.thread);
        ExportRow {
            time: nanos(event.time),
            kind: event.kind.name(),
            page: event.page.0.into(),
            pages: event.pages.into(),
            device: event.device.map(|device| device.0.into()),
            cause: event.cause.map(|cause| cause.name()),
            access: event.access.map(access_name),
            thread: (event.thread != 0 || vcpu.is_some()).then_some(event.thread.into()),
            vcpu: vcpu.map(|vcpu| *vcpu as i32),
            latency: duration(&[EventKind::CpuFault, EventKind::DeviceFault]),
            hold: duration(&[EventKind::Advice]),
            hint: event.hint.map(|hint| hint.to_string()),
            repeats: event.repeats.into(),
        }
    }
}

/// Returns the name of an access in tables.
pub fn access_name(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm_backend::pages::{Page, PageRange};
    use std::time::Duration;

    /// A mean over a column must not count rows that the column says nothing about.
    #[test]
    fn columns_that_do_not_apply_are_absent() {
        let threads = BTreeMap::from([(7, 2)]);
        let page = PageRange::single(Page(1));
        let row = |kind, thread, latency| {
            let event = Event {
                thread,
                latency: Duration::from_nanos(latency),
                ..Event::new(Duration::ZERO, kind, page)
            };
            let row = ExportRow::new(&event, &threads);
            (row.thread, row.vcpu, row.latency, row.hold)
        };
        let fault = row(EventKind::CpuFault, 7, 5);
        assert_eq!(fault, (Some(7), Some(2), Some(5), None));
        // As fast as the clock can tell.
        let fast = row(EventKind::DeviceFault, 0, 0);
        assert_eq!(fast, (None, None, Some(0), None));
        assert_eq!(row(EventKind::Advice, 0, 5), (None, None, None, Some(5)));
        for kind in [
            EventKind::ToDevice,
            EventKind::Pinned,
            EventKind::Access,
            EventKind::SlowDriver,
        ] {
            assert_eq!(row(kind, 0, 5), (None, None, None, None), "{kind:?}");
        }
    }
}
