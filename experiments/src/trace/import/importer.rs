//! Makes events of what the importers of formats read.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{Access, DeviceId, Hint, PageRange};

use super::addresses::{self, Addresses};
use crate::trace::error::TraceError;
use crate::trace::limits::{self, Named};
use crate::trace::meta::Machine;
use crate::trace::writer::TraceWriter;

/// What goes wrong on the way.
pub(super) enum Failure {
    Trace(TraceError),
    Input(io::Error),
    /// Number of the line, and why.
    Line(u64, String),
}

impl From<TraceError> for Failure {
    fn from(error: TraceError) -> Failure {
        Failure::Trace(error)
    }
}

/// Why an event is not taken.
pub(super) enum Refused {
    Why(String),
    Trace(TraceError),
}

impl Refused {
    /// Adds the line of the input to the reason.
    pub(super) fn at(self, line: u64) -> Failure {
        match self {
            Refused::Why(why) => Failure::Line(line, why),
            Refused::Trace(error) => Failure::Trace(error),
        }
    }
}

impl From<String> for Refused {
    fn from(why: String) -> Refused {
        Refused::Why(why)
    }
}

impl From<TraceError> for Refused {
    fn from(error: TraceError) -> Refused {
        Refused::Trace(error)
    }
}

/// Makes events of accesses.
pub(super) struct Importer {
    pub(super) writer: TraceWriter,
    pub(super) addresses: Addresses,
    /// The last access, which may be repeated.
    pending: Option<Event>,
    /// Events so far.
    pub(super) events: u64,
    pub(super) named: Named,
    /// Accesses to pages so far.
    accesses: u64,
    /// Threads' numbers to vCPUs'.
    pub(super) threads: BTreeMap<u32, u32>,
    /// One more than the highest device.
    devices: u32,
    /// One more than the highest page.
    pages: u32,
    /// Whether the input has times of its own.
    own_times: bool,
}

impl Importer {
    /// Makes an importer that has imported nothing yet.
    pub(super) fn new(writer: TraceWriter) -> Importer {
        Importer {
            writer,
            addresses: Addresses::default(),
            pending: None,
            events: 0,
            named: Named::default(),
            accesses: 0,
            threads: BTreeMap::new(),
            devices: 0,
            pages: 0,
            own_times: false,
        }
    }

    /// Notes that the thread runs on this vCPU; an error if it is known to run on another one.
    pub(super) fn thread(&mut self, thread: u32, vcpu: u32) -> Result<(), String> {
        match self.threads.get(&thread) {
            Some(known) if *known == vcpu => Ok(()),
            Some(known) => Err(format!(
                "thread {thread} is on vCPU {vcpu} here and on vCPU {known} before; a trace knows one of each: leave out the column `thread`"
            )),
            None if self.threads.len() == limits::THREADS => Err(format!(
                "it is of one more than {} threads, the most that a trace can tell of",
                limits::THREADS
            )),
            None => {
                self.threads.insert(thread, vcpu);
                Ok(())
            }
        }
    }

    /// Imports accesses to pages, `repeats` times each. They are merged with the accesses before if these are by the
    /// same CPU or device to the same pages, unless they are writes after reads. Without a time, the number of
    /// accesses before is the time.
    pub(super) fn access(
        &mut self,
        pages: PageRange,
        access: Access,
        device: Option<u8>,
        thread: u32,
        time: Option<u64>,
        repeats: u32,
    ) -> Result<(), Refused> {
        self.own_times |= time.is_some();
        let event = Event {
            device: device.map(DeviceId),
            access: Some(access),
            thread,
            repeats,
            ..Event::new(
                Duration::from_nanos(time.unwrap_or(self.accesses)),
                EventKind::Access,
                pages,
            )
        };
        let accesses = self.accesses.saturating_add(event.accesses());
        if accesses > limits::ACCESSES {
            return Err(
                format!("with it there are more than {} accesses", limits::ACCESSES).into(),
            );
        }
        self.accesses = accesses;
        if let Some(last) = &mut self.pending
            && (last.page, last.pages) == (event.page, event.pages)
            && (last.device, last.thread) == (event.device, event.thread)
            && (last.access == event.access || last.access == Some(Access::Write))
            && let Some(sum) = last.repeats.checked_add(repeats)
        {
            last.repeats = sum;
            return Ok(());
        }
        self.flush()?;
        self.push(&event);
        self.pending = Some(event);
        Ok(())
    }

    /// Imports that pages are freed.
    pub(super) fn freed(
        &mut self,
        pages: PageRange,
        device: Option<u8>,
        thread: u32,
        time: Option<u64>,
    ) -> Result<(), Refused> {
        self.own_times |= time.is_some();
        self.put(Event {
            device: device.map(DeviceId),
            thread,
            ..Event::new(
                Duration::from_nanos(time.unwrap_or(self.accesses)),
                EventKind::Freed,
                pages,
            )
        })
    }

    /// Imports a hint about pages.
    pub(super) fn hint(
        &mut self,
        pages: PageRange,
        hint: Hint,
        time: Option<u64>,
    ) -> Result<(), Refused> {
        self.own_times |= time.is_some();
        let time = Duration::from_nanos(time.unwrap_or(self.accesses));
        self.put(Event {
            hint: Some(hint),
            ..Event::new(time, EventKind::Hint, pages)
        })
    }

    pub(super) fn put(&mut self, event: Event) -> Result<(), Refused> {
        self.flush()?;
        self.push(&event);
        Ok(self.writer.write(&[event])?)
    }

    /// Writes the access that waits.
    pub(super) fn flush(&mut self) -> Result<(), TraceError> {
        match self.pending.take() {
            Some(event) => self.writer.write(&[event]),
            None => Ok(()),
        }
    }

    /// Counts a new event, and the pages and devices that it names.
    pub(super) fn push(&mut self, event: &Event) {
        self.named.add(event);
        self.events += 1;
        self.pages = self.pages.max(event.page.0 + event.pages);
        let device = event.device.map_or(0, |device| u32::from(device.0) + 1);
        self.devices = self.devices.max(device);
    }

    /// Tells the writer what is known only now.
    pub(super) fn describe(&mut self) {
        let vcpus = self
            .threads
            .values()
            .max()
            .map_or(1, |vcpu| vcpu.saturating_add(1));
        let memory = addresses::whole_blocks(self.pages.into());
        self.writer.threads(std::mem::take(&mut self.threads));
        self.writer.machine(Machine {
            memory,
            vcpus,
            devices: self.devices,
        });
        self.writer.mapping(self.addresses.mapping());
        if self.own_times {
            self.writer.own_times();
        }
    }
}
