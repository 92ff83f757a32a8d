//! The page about one run.

mod activity;
mod latency;
mod residency;
mod room;
mod thrashing;
mod timeline;

use std::time::Duration;

use hmm_backend::limits::Refusal;
use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::PAGE_SIZE;

use self::activity::Activity;
use self::latency::Latencies;
use self::residency::ResidencyPlot;
use self::thrashing::Thrashing;
use crate::figures::time;
use crate::report::drawing::axis::{Unit, number};
use crate::report::drawing::page::{HtmlPage, Table};
use crate::size::Size;

/// More memory than any guest can have; metadata that says more are damaged.
const MOST_PAGES: u64 = 1 << 30;

/// The description of a run, besides its events.
#[derive(Clone, Debug)]
pub struct RunMeta {
    /// The page's title, such as the trace file's name.
    pub title: String,
    /// Bytes of guest memory whose pages migrate.
    pub memory: u64,
    /// The guest-physical address of the first of them.
    pub base: u64,
    /// Memory of each device, in bytes.
    pub device_memory: Vec<u64>,
    /// The policy.
    pub policy: String,
    /// More facts for the first table: name and value.
    pub facts: Vec<(String, String)>,
    /// Events that were lost while recording.
    pub dropped: u64,
}

/// Reads events and makes the page.
pub struct RunReport {
    meta: RunMeta,
    begin: Option<Duration>,
    now: u64,
    residency: ResidencyPlot,
    activity: Activity,
    latencies: Latencies,
    thrashing: Thrashing,
    totals: Totals,
    refusal: Option<Refusal>,
}

#[derive(Default)]
struct Totals {
    events: u64,
    cpu_faults: u64,
    device_faults: u64,
    to_device: u64,
    between_devices: u64,
    to_system: u64,
    fatal: u64,
    outside: u64,
}

impl RunReport {
    /// Begins. Takes a byte for each page of the 2 MiB blocks in which any is in use, and some hundred for each run of
    /// pages that migrated together, up to 230 MiB, whatever the number of events.
    pub fn new(meta: RunMeta) -> RunReport {
        let pages = (meta.memory / PAGE_SIZE).min(MOST_PAGES) as usize;
        RunReport {
            begin: None,
            now: 0,
            residency: ResidencyPlot::new(pages),
            activity: Activity::new(),
            latencies: Latencies::new(),
            thrashing: Thrashing::new(pages),
            totals: Totals::default(),
            refusal: None,
            meta,
        }
    }

    /// Returns the host's refusal of memory for more events, if there was one. Events that are added after it do not count.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }

    /// Takes the next event. Threads' events may be a little out of order: time does not go back here.
    pub fn add(&mut self, event: &Event) {
        if self.refusal.is_some() {
            return;
        }
        let begin = *self.begin.get_or_insert(event.time);
        let time = event.time.saturating_sub(begin).as_nanos();
        // A thousand years fit.
        self.now = self.now.max(
            u64::try_from(time)
                .unwrap_or(u64::MAX / 4)
                .min(u64::MAX / 4),
        );
        let totals = &mut self.totals;
        totals.events += 1;
        let end = u64::from(event.page.0) + u64::from(event.pages);
        totals.outside += u64::from(end * PAGE_SIZE > self.meta.memory);
        match event.kind {
            EventKind::CpuFault => totals.cpu_faults += 1,
            EventKind::DeviceFault => totals.device_faults += 1,
            EventKind::ToDevice => totals.to_device += u64::from(event.pages),
            EventKind::ToSystem | EventKind::Duplicated => {
                totals.to_system += u64::from(event.pages);
            }
            EventKind::BetweenDevices => totals.between_devices += u64::from(event.pages),
            EventKind::Fatal => totals.fatal += 1,
            _ => {}
        }
        self.activity.add(event, self.now);
        self.latencies.add(event);
        let followed = self.residency.add(event, self.now);
        self.refusal = followed
            .and_then(|()| self.thrashing.add(event, self.now))
            .err();
    }

    /// Returns the page, as HTML.
    pub fn finish(self) -> String {
        let meta = &self.meta;
        let lead = format!("A run under policy {}, as its events tell it.", meta.policy);
        let mut page = HtmlPage::new(&meta.title, &lead);
        self.facts(&mut page);
        page.heading("Residency");
        self.residency.draw(&mut page, meta.base);
        page.heading("Faults and bytes");
        match self.totals.events {
            0 => page.paragraph("The run has no events."),
            _ => self.activity.draw(&mut page),
        }
        page.heading("Latency");
        self.latencies.draw(&mut page);
        self.thrashing.draw(&mut page, meta.base);
        page.finish()
    }

    fn facts(&self, page: &mut HtmlPage) {
        let (meta, totals) = (&self.meta, &self.totals);
        let bytes = |pages: u64| {
            let bytes = (pages * PAGE_SIZE) as f64;
            format!(
                "{} pages ({})",
                number(pages as f64),
                Unit::bytes(bytes).show(bytes)
            )
        };
        let devices: Vec<String> = meta
            .device_memory
            .iter()
            .map(|size| Size(*size).to_string())
            .collect();
        let duration = self.now as f64;
        let mut facts = vec![
            ("policy".to_owned(), meta.policy.clone()),
            ("guest memory".to_owned(), Size(meta.memory).to_string()),
            ("device memory".to_owned(), devices.join(", ")),
            ("most of it in use".to_owned(), bytes(self.residency.peak())),
            ("duration".to_owned(), time(duration)),
            (
                "faults of CPUs".to_owned(),
                number(totals.cpu_faults as f64),
            ),
            (
                "faults of devices".to_owned(),
                number(totals.device_faults as f64),
            ),
            ("moved to devices".to_owned(), bytes(totals.to_device)),
            ("moved to system memory".to_owned(), bytes(totals.to_system)),
            (
                "moved between devices".to_owned(),
                bytes(totals.between_devices),
            ),
            (
                "thrashing pages".to_owned(),
                match self.thrashing.count() {
                    Some(pages) => number(pages as f64),
                    None => "not known".to_owned(),
                },
            ),
            ("events".to_owned(), number(totals.events as f64)),
        ];
        facts.extend(meta.facts.iter().cloned());
        for (name, count) in [
            (
                "events lost while recording: what follows is incomplete",
                meta.dropped,
            ),
            ("pages that could not be supplied", totals.fatal),
            (
                "events about pages outside of guest memory, left out of plots",
                totals.outside,
            ),
        ] {
            if count > 0 {
                facts.push((name.to_owned(), number(count as f64)));
            }
        }
        let mut table = Table::new(&["<", "<"]);
        for (name, value) in facts {
            table.row(&[name, value]);
        }
        page.table(table);
    }
}
