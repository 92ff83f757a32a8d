//! What is in a trace, in a few numbers.

use std::collections::BTreeMap;
use std::fmt;

use hmm_backend::{Block, Event, EventKind, PageSet, printable};
use serde::Serialize;

use super::error::TraceError;
use super::meta::{TraceMeta, TraceTotals};
use super::reader::{Tail, TraceReader};

/// Figures about a trace.
#[derive(Clone, Debug, Serialize)]
pub struct TraceInfo {
    /// What it says about itself.
    pub meta: TraceMeta,
    /// Events that were lost when it was recorded, and which threads ran vCPUs.
    #[serde(flatten)]
    pub totals: TraceTotals,
    /// `complete`, `unfinished`, `truncated` or `corrupt`.
    pub state: &'static str,
    /// What that means, if it is not complete.
    pub problem: Option<String>,
    /// Events and pages by kind of event.
    pub kinds: BTreeMap<&'static str, KindInfo>,
    /// Different pages in all events together.
    pub distinct_pages: u64,
    /// The first event's time in nanoseconds.
    pub first_ns: u64,
    /// The last event's time in nanoseconds.
    pub last_ns: u64,
    /// Accesses of an access trace whose times count them; those that were merged into its last event are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accesses: Option<u64>,
}

/// Figures about the events of a kind.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Serialize)]
pub struct KindInfo {
    /// How many.
    pub events: u64,
    /// Sum of their pages.
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
            first_ns: 0,
            last_ns: 0,
            accesses: None,
        };
        let counted = info.meta.kind == super::TraceKind::Access && !info.totals.own_times;
        let mut accesses = 0;
        let mut pages = Pages {
            limit: info.meta.pages(),
            blocks: BTreeMap::new(),
            count: 0,
        };
        let mut events = 0;
        let mut error = None;
        for event in &mut trace {
            match event {
                Ok(event) => {
                    info.add(&event, events == 0);
                    pages.add(&event);
                    accesses = accesses.max(accesses_until(&event));
                    events += 1;
                }
                Err(found) => {
                    info.state = "corrupt";
                    info.problem = Some(found.to_string());
                    error = Some(found);
                }
            }
        }
        info.totals.events = events;
        info.distinct_pages = pages.count;
        info.accesses = counted.then_some(accesses);
        (info, error)
    }

    fn add(&mut self, event: &Event, first: bool) {
        let kind = self.kinds.entry(event.kind.name()).or_default();
        kind.events += 1;
        kind.pages += u64::from(event.pages);
        let time = u64::try_from(event.time.as_nanos()).unwrap_or(u64::MAX);
        // Threads' events may be a little out of order.
        self.first_ns = if first { time } else { self.first_ns.min(time) };
        self.last_ns = self.last_ns.max(time);
    }
}

/// How many accesses there were with this event, if times count them.
fn accesses_until(event: &Event) -> u64 {
    let before = u64::try_from(event.time.as_nanos()).unwrap_or(u64::MAX);
    before.saturating_add(u64::from(event.kind == EventKind::Access))
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

/// A set of pages that takes memory for those that are in it.
struct Pages {
    /// Pages of the machine: an event that says it has more cannot make this grow without bounds.
    limit: u32,
    blocks: BTreeMap<Block, PageSet>,
    count: u64,
}

impl Pages {
    fn add(&mut self, event: &Event) {
        for part in event.within(self.limit).split_by_block() {
            let block = part.start.block();
            let pages = self.blocks.entry(block).or_insert(PageSet::EMPTY);
            let before = pages.count();
            let start = part.start.index_in_block();
            pages.insert_range(start..start + part.len() as usize);
            self.count += (pages.count() - before) as u64;
        }
    }
}

impl fmt::Display for TraceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meta = &self.meta;
        let kind = match meta.kind {
            super::TraceKind::Live => "live trace",
            super::TraceKind::Access => "access trace",
        };
        let what = meta
            .workload
            .as_deref()
            .or(meta.guest.as_deref())
            .unwrap_or("a guest");
        writeln!(
            f,
            "{kind} of {}, {}, by hmmvisor {}",
            printable(what),
            self.state,
            printable(&meta.hmmvisor)
        )?;
        if let Some(problem) = &self.problem {
            writeln!(f, "{}", printable(problem))?;
        }
        let mut line = |name: &str, value: String| match value.is_empty() {
            true => Ok(()),
            // Much of it is what the file says.
            false => writeln!(f, "  {name:<16}{}", printable(&value)),
        };
        let params: Vec<_> = meta
            .params
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        line("parameters", params.join(" "))?;
        line("source", meta.source.clone().unwrap_or_default())?;
        line(
            "machine",
            format!(
                "{} vCPUs, {} accelerators, {} MiB of managed memory, {} KiB {}device memory",
                meta.vcpus,
                meta.devices,
                meta.memory >> 20,
                meta.device_memory >> 10,
                match meta.device_kind.as_str() {
                    "" => String::new(),
                    kind => format!("{kind} "),
                }
            ),
        )?;
        line("engine", meta.engine.clone())?;
        line("policy", meta.policy.clone())?;
        line("seed", meta.seed.to_string())?;
        line("events", self.totals.events.to_string())?;
        for (name, kind) in &self.kinds {
            line(
                "",
                format!("{name:<16}{:>12}, {:>12} pages", kind.events, kind.pages),
            )?;
        }
        let dropped = self
            .totals
            .dropped
            .iter()
            .map(|(kind, n)| format!("{kind} {n}"));
        let dropped = dropped.collect::<Vec<_>>().join(", ");
        line(
            "dropped",
            if dropped.is_empty() {
                "none".to_owned()
            } else {
                dropped
            },
        )?;
        line("distinct pages", self.distinct_pages.to_string())?;
        match self.accesses {
            None => line(
                "time",
                format!(
                    "{:.6} s to {:.6} s",
                    self.first_ns as f64 / 1e9,
                    self.last_ns as f64 / 1e9
                ),
            ),
            Some(accesses) => line("accesses", accesses.to_string()),
        }
    }
}
