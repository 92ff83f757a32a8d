//! A summary of a trace.

use std::collections::BTreeMap;
use std::fmt;

use hmm_backend::observe::Event;
use hmm_backend::text::printable;
use serde::Serialize;

use super::error::TraceError;
use super::meta::{TraceMeta, TraceTotals};
use super::reader::{Tail, TraceReader};
use crate::figures::{count, grouped};
use crate::size::Size;

/// Figures about a trace.
#[derive(Clone, Debug, Serialize)]
pub struct TraceInfo {
    /// Its description.
    pub meta: TraceMeta,
    /// Events that were lost when it was recorded, and which threads ran vCPUs.
    #[serde(flatten)]
    pub totals: TraceTotals,
    /// `complete`, `unfinished`, `truncated` or `corrupt`.
    pub state: &'static str,
    /// The reason, if it is not complete.
    pub problem: Option<String>,
    /// Events and pages by kind of event.
    pub kinds: BTreeMap<&'static str, KindInfo>,
    /// Different pages in all events together.
    pub distinct_pages: u64,
    /// The first event's time in nanoseconds.
    pub first_ns: u64,
    /// The last event's time in nanoseconds.
    pub last_ns: u64,
    /// Accesses of an access trace, one for each page and time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accesses: Option<u64>,
}

/// Figures about the events of a kind.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Serialize)]
pub struct KindInfo {
    /// The number of events.
    pub events: u64,
    /// The sum of their pages.
    pub pages: u64,
}

impl TraceInfo {
    /// Reads a trace to its end. If it is corrupt somewhere, the figures are of what comes before, and the error says where.
    pub fn read(mut trace: TraceReader) -> (TraceInfo, Option<TraceError>) {
        let (state, problem) = tail(trace.tail());
        let mut info = TraceInfo {
            meta: trace.meta().clone(),
            totals: trace.totals().clone(),
            state,
            problem,
            kinds: BTreeMap::new(),
            distinct_pages: 0,
            first_ns: u64::MAX,
            last_ns: 0,
            accesses: None,
        };
        let mut accesses = 0u64;
        let mut pages = Pages::default();
        let mut events = 0;
        let mut error = None;
        for event in &mut trace {
            match event {
                Ok(event) => {
                    info.add(&event);
                    pages.add(&event);
                    accesses = accesses.saturating_add(event.accesses());
                    events += 1;
                }
                Err(found) => {
                    info.state = "corrupt";
                    info.problem = Some(found.to_string());
                    error = Some(found);
                }
            }
        }
        if events == 0 {
            info.first_ns = 0;
        }
        info.totals.events = events;
        info.distinct_pages = pages.count();
        info.accesses = (info.meta.kind == super::TraceKind::Access).then_some(accesses);
        (info, error)
    }

    fn add(&mut self, event: &Event) {
        let kind = self.kinds.entry(event.kind.name()).or_default();
        kind.events += 1;
        kind.pages += u64::from(event.pages);
        let time = u64::try_from(event.time.as_nanos()).unwrap_or(u64::MAX);
        // Threads' events may be a little out of order.
        self.first_ns = self.first_ns.min(time);
        self.last_ns = self.last_ns.max(time);
    }
}

fn tail(tail: Tail) -> (&'static str, Option<String>) {
    match tail {
        Tail::Complete => ("complete", None),
        Tail::Unfinished => (
            "unfinished",
            Some(
                "it has no end: its recording was stopped; all that was flushed is there"
                    .to_owned(),
            ),
        ),
        Tail::Truncated {
            offset,
            present,
            missing,
        } => (
            "truncated",
            Some(format!(
                "it ends in the middle of the block at offset {offset}: {present} bytes of it are there, at least {missing} are missing"
            )),
        ),
        Tail::Corrupt { offset, why } => (
            "corrupt",
            Some(format!("it is corrupt at offset {offset}: {why}")),
        ),
    }
}

/// A set of pages, as ranges that do not touch: start to end. However large an event's range is, it adds one at most.
#[derive(Default)]
struct Pages(BTreeMap<u32, u32>);

impl Pages {
    fn add(&mut self, event: &Event) {
        let range = event.within(u32::MAX);
        let (mut start, mut end) = (range.start.0, range.end.0);
        if start == end {
            return;
        }
        // Ranges that it touches are merged into it, and each is removed once.
        while let Some((first, last)) = self.0.range(..=end).next_back() {
            let (first, last) = (*first, *last);
            if last < start {
                break;
            }
            if first <= start && end <= last {
                return;
            }
            self.0.remove(&first);
            (start, end) = (start.min(first), end.max(last));
        }
        self.0.insert(start, end);
    }

    fn count(&self) -> u64 {
        self.0
            .iter()
            .map(|(start, end)| u64::from(end - start))
            .sum()
    }
}

impl fmt::Display for TraceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.meta.kind {
            super::TraceKind::Live => "live trace",
            super::TraceKind::Access => "access trace",
        };
        writeln!(
            f,
            "{kind} of {}, {}, by hmmvisor {}",
            printable(self.meta.name()),
            self.state,
            printable(&self.meta.hmmvisor)
        )?;
        if let Some(problem) = &self.problem {
            writeln!(f, "{}", printable(problem))?;
        }
        self.origin(f)?;
        self.contents(f)
    }
}

/// Writes a line of the summary, unless it has no value.
fn line(f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    match value.is_empty() {
        true => Ok(()),
        // Much of it is what the file says.
        false => writeln!(f, "  {name:<16}{}", printable(value)),
    }
}

impl TraceInfo {
    /// Writes what ran, on which machine.
    fn origin(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meta = &self.meta;
        let params = meta.params.iter();
        let params: Vec<_> = params.map(|(k, v)| format!("{k}={v}")).collect();
        line(f, "parameters", &params.join(" "))?;
        line(f, "source", meta.source.as_deref().unwrap_or_default())?;
        let device_memory = match (meta.device_memory, meta.device_kind.as_str()) {
            // Access traces have none.
            (0, _) => String::new(),
            (bytes, "") => format!(", {} of device memory each", Size(bytes)),
            (bytes, kind) => format!(", {} of {kind} device memory each", Size(bytes)),
        };
        let machine = format!(
            "{}, {}, {} of managed memory{device_memory}",
            count(meta.vcpus.into(), "vCPU"),
            count(meta.devices.into(), "accelerator"),
            Size(meta.memory),
        );
        line(f, "machine", &machine)?;
        line(f, "engine", &meta.engine)?;
        line(f, "policy", &meta.policy)?;
        line(f, "seed", &meta.seed.to_string())
    }

    /// Writes how many events there are, of which kinds, from when to when.
    fn contents(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "events", &grouped(self.totals.events))?;
        for (name, kind) in &self.kinds {
            let (events, pages) = (grouped(kind.events), grouped(kind.pages));
            line(f, "", &format!("{name:<16}{events:>13}, {pages:>13} pages"))?;
        }
        let dropped = self.totals.dropped.iter();
        let dropped: Vec<_> = dropped
            .map(|(kind, n)| format!("{kind} {}", grouped(*n)))
            .collect();
        match dropped.is_empty() {
            true => line(f, "dropped", "none")?,
            false => line(f, "dropped", &dropped.join(", "))?,
        }
        line(f, "distinct pages", &grouped(self.distinct_pages))?;
        if let Some(accesses) = self.accesses {
            line(f, "accesses", &grouped(accesses))?;
        }
        // Times of other access traces are numbers of accesses, and are not shown.
        if self.accesses.is_none() || self.totals.own_times {
            let seconds = |ns: u64| ns as f64 / 1e9;
            let (first, last) = (seconds(self.first_ns), seconds(self.last_ns));
            line(f, "time", &format!("{first:.6} s to {last:.6} s"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm_backend::observe::EventKind;
    use hmm_backend::pages::{Page, PageRange};
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    proptest! {
        #[test]
        fn ranges_are_counted_as_pages(ranges in prop::collection::vec((0u32..60, 0u32..12), 0..40)) {
            let (mut pages, mut each) = (Pages::default(), BTreeSet::new());
            for (start, len) in ranges {
                let range = PageRange::with_len(Page(start), len);
                pages.add(&Event::new(Duration::ZERO, EventKind::Access, range));
                each.extend(start..start + len);
                prop_assert_eq!(pages.count(), each.len() as u64);
            }
        }
    }
}
