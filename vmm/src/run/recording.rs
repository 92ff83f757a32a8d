//! `--record`: a thread that takes events out of the backend's rings and writes them into a trace.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use hmm_backend::limits;
use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{DeviceId, Fidelity, PAGE_SIZE, Page, PageRange};
use hmm_backend::policy::PolicyFile;
use hmm_backend::residency::Residency;
use hmm_backend::{Backend, EventReader, EventTap};
use hmmvisor_devices::thread::{self, Joined, Thread};
use hmmvisor_experiments::output::Output;
use hmmvisor_experiments::trace::{Dropped, TraceError, TraceKind, TraceMeta, TraceWriter};
use serde::Serialize;

use crate::config::Config;
use crate::ending::Ending;
use crate::machine::vcpu_threads::ThreadIds;
use crate::run::signals::{self, Signals};

/// Events that the ring of each of the backend's threads can hold: many times what a thread produces in [`DRAIN`]. An event has 72
/// bytes, which are reserved as needed.
const RING: usize = 1 << 16;
/// The same where accelerators tell of every access: millions a second.
const RING_OF_ACCESSES: usize = 1 << 20;

/// How often the rings are emptied.
const DRAIN: Duration = Duration::from_millis(10);

/// How often the file is flushed: a run that is killed loses the events of this time and of [`DRAIN`].
const FLUSH: Duration = Duration::from_millis(80);

/// The most events that are written at a time; each such piece is a sign of progress.
const PIECE: usize = 1 << 14;

/// How long the end of a run waits for a trace that makes no progress, for instance into a pipe that is not read.
const STALL: Duration = Duration::from_secs(5);

/// How long it waits while the file takes the place of an earlier one, which shows no progress.
const STORED_WITHIN: Duration = Duration::from_secs(60);

/// How long it waits for a trace that makes progress: as long as that takes, unless a signal comes.
const NO_LIMIT: Duration = Duration::from_secs(1 << 32);

/// The figures of a recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RecordingFigures {
    /// The trace.
    pub path: PathBuf,
    /// Events in it.
    pub events: u64,
    /// Its size.
    pub bytes: u64,
    /// Events that are not in it, by kind: because they came too fast, or could not be written.
    pub dropped: Dropped,
    /// Why the trace is not complete, if the system refused to write it.
    pub error: Option<String>,
}

/// A recording in progress.
pub struct Recording {
    /// Dropping it ends the thread.
    stop: Sender<()>,
    thread: Thread<RecordingFigures>,
    progress: Arc<RecordingProgress>,
    file: RecordingFile,
}

/// The progress of the thread that writes.
#[derive(Default)]
struct RecordingProgress {
    /// Pieces of events that have been written.
    pieces: AtomicU64,
    /// Everything is written, and the file is taking its place.
    storing: AtomicBool,
}

/// The file of a trace.
#[derive(Clone)]
pub(crate) struct RecordingFile {
    path: PathBuf,
    /// Whether an earlier file is there, which is replaced when the trace is complete.
    replaces: bool,
}

impl RecordingFile {
    /// Returns the path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Says what an error that ended the writing leaves behind.
    fn left(&self) -> &'static str {
        match self.replaces {
            true => "what was there before still is",
            false => "the trace is good up to there",
        }
    }

    /// Returns the figures of a trace whose thread has not ended.
    pub(crate) fn unfinished(self, why: &str) -> RecordingFigures {
        let left = self.left();
        RecordingFigures {
            error: Some(format!(
                "writing trace {}: {why}; {left}",
                self.path.display()
            )),
            path: self.path,
            ..RecordingFigures::default()
        }
    }
}

/// What a recording begins with.
pub struct Begin {
    /// Where the trace goes.
    pub output: Output,
    /// The events that it gets.
    pub events: EventReader,
    /// The memory of a run that goes on already: the trace says first where its pages are. None where the run begins with it.
    pub memory: Option<Arc<Backend>>,
}

/// Says where pages with contents are: runs of pages, each within a block. Each page is there at some moment during the
/// iteration.
fn placed(backend: &Backend) -> impl Iterator<Item = Event> {
    let time = backend.now();
    let all = PageRange::new(Page(0), Page(backend.pages()));
    all.split_by_block().flat_map(move |block| {
        // A block that is partly in the hole has no words of its own; it is looked at page by page.
        let words = backend
            .words(block)
            .map(|words| words.into_iter().map(Some).collect());
        let words: Vec<_> = words.unwrap_or_else(|_| {
            let word = |page| backend.word(page).ok();
            block.pages().map(word).collect()
        });
        let mut runs: Vec<Event> = Vec::new();
        for (page, word) in block.pages().zip(words) {
            let device = match word.map(|word| word.residency()) {
                None | Some(Residency::Untouched | Residency::Poisoned) => continue,
                Some(Residency::System | Residency::Exclusive(_)) => None,
                // A duplicate takes up a frame.
                Some(
                    Residency::Device(its) | Residency::Coherent(its) | Residency::Duplicated(its),
                ) => Some(its.device),
            };
            match runs.last_mut() {
                Some(run) if run.device == device && run.page.0 + run.pages == page.0 => {
                    run.pages += 1;
                }
                _ => runs.push(Event {
                    device,
                    ..Event::new(time, EventKind::Placed, PageRange::single(page))
                }),
            }
        }
        runs
    })
}

/// Returns a reader whose events have room until the recording takes them.
pub(super) fn reader(tap: &Arc<EventTap>, told: Fidelity) -> EventReader {
    let ring = match told {
        Fidelity::Faults | Fidelity::Bits => RING,
        Fidelity::All => RING_OF_ACCESSES,
    };
    // As many as the rings of all threads hold.
    tap.reader(ring, 16 * ring)
}

impl Recording {
    /// Starts the thread, which writes the beginning of the trace; an error if that is refused, or not taken in time.
    pub fn start(
        begin: Begin,
        meta: TraceMeta,
        threads: &ThreadIds,
        ending: &Arc<Ending>,
    ) -> Result<Recording, TraceError> {
        let Begin {
            output,
            events,
            memory,
        } = begin;
        let file = RecordingFile {
            path: output.path().to_owned(),
            replaces: output.replaces(),
        };
        let (stop, stopped) = mpsc::channel();
        let (started, begun) = mpsc::channel();
        let progress = Arc::<RecordingProgress>::default();
        let (its, its_progress) = (file.clone(), progress.clone());
        let threads = threads.clone();
        // Sending fails only where the receiver is gone because the run has ended.
        let body = move || match TraceWriter::new(output, &meta) {
            Err(error) => {
                let _ = started.send(Err(error));
                RecordingFigures::default()
            }
            Ok(mut writer) => {
                let mut events_there = memory.iter().flat_map(|memory| placed(memory));
                let written = loop {
                    let piece: Vec<_> = events_there.by_ref().take(PIECE).collect();
                    match writer.write(&piece) {
                        Ok(()) if !piece.is_empty() => {}
                        written => break written,
                    }
                };
                let begun = written.is_ok();
                // The receiver is gone if it has waited too long: the recording was refused.
                let is_wanted = started.send(written).is_ok();
                if !begun || !is_wanted {
                    return RecordingFigures::default();
                }
                let recorder = Recorder {
                    writer,
                    events,
                    threads,
                    progress: its_progress,
                    error: None,
                };
                recorder.run(its, &stopped)
            }
        };
        let thread = thread::spawn("recorder", ending.on_panic(), body);
        let failed = |what, error| TraceError::Io {
            what,
            path: file.path.clone(),
            error,
        };
        let thread = thread.map_err(|error| failed("starting a thread that writes", error))?;
        match begun.recv_timeout(STALL) {
            Ok(begun) => begun?,
            Err(RecvTimeoutError::Timeout) => {
                let why = format!("nothing has taken its beginning for {} s", STALL.as_secs());
                let error = io::Error::new(io::ErrorKind::TimedOut, why);
                return Err(failed("writing", error));
            }
            // A panic, which has been reported already.
            Err(RecvTimeoutError::Disconnected) => {
                let error = io::Error::other("the thread that writes it panicked");
                return Err(failed("writing", error));
            }
        }
        Ok(Recording {
            stop,
            thread,
            progress,
            file,
        })
    }

    /// Returns the trace's file.
    pub(crate) fn file(&self) -> &RecordingFile {
        &self.file
    }

    /// Takes the last events and closes the trace. Call it when everything that makes events has stopped.
    /// Gives up a trace that makes no progress any more, and after a signal one that needs more time than `reserve` leaves.
    pub fn finish(mut self, signals: Option<&Signals>, reserve: Duration) -> RecordingFigures {
        drop(self.stop);
        let mut seen = 0;
        let mut since = Instant::now();
        signals::wait_for(signals, NO_LIMIT, reserve, |limit| {
            let now = self.progress.pieces.load(Ordering::Relaxed);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            let patience = match self.progress.storing.load(Ordering::Relaxed) {
                true => STORED_WITHIN,
                false => STALL,
            };
            self.thread.wait(limit) || since.elapsed() >= patience
        });
        match self.thread.join_within(Duration::ZERO) {
            Joined::Ended(figures) => figures,
            Joined::Panicked => self.file.unfinished("the thread that writes it panicked"),
            Joined::Running => self.file.unfinished("what is written is not taken"),
        }
    }
}

struct Recorder {
    writer: TraceWriter,
    events: EventReader,
    threads: ThreadIds,
    progress: Arc<RecordingProgress>,
    /// The first failure.
    error: Option<TraceError>,
}

impl Recorder {
    fn run(mut self, file: RecordingFile, stopped: &Receiver<()>) -> RecordingFigures {
        let mut flushed = Instant::now();
        while stopped.recv_timeout(DRAIN) == Err(RecvTimeoutError::Timeout) {
            self.drain();
            if flushed.elapsed() >= FLUSH {
                self.writer.threads(self.threads.all());
                let result = self.writer.flush();
                self.note(result);
                flushed = Instant::now();
            }
        }
        self.drain();
        self.writer.threads(self.threads.all());
        let ended = self.writer.end();
        self.note(ended);
        let (totals, bytes) = (self.writer.totals().clone(), self.writer.length());
        let result = match self.error {
            // The earlier file stays: it is worth more than a trace with a gap.
            Some(error) => Err(error),
            None => {
                self.progress.pieces.fetch_add(1, Ordering::Relaxed);
                self.progress.storing.store(true, Ordering::Relaxed);
                self.writer.commit()
            }
        };
        let failed = |error: TraceError| {
            let error = limits::explain(&error);
            Some(format!("{error}; the run went on, and {}", file.left()))
        };
        let (events, bytes, error) = match result {
            Ok(()) => (totals.events, bytes, None),
            Err(error) if file.replaces => (0, 0, failed(error)),
            Err(error) => (totals.events, bytes, failed(error)),
        };
        RecordingFigures {
            path: file.path,
            events,
            bytes,
            dropped: totals.dropped,
            error,
        }
    }

    fn drain(&mut self) {
        let events = self.events.take();
        for kind in EventKind::ALL {
            self.writer.dropped(kind, events.dropped(kind));
        }
        for piece in events.events.chunks(PIECE) {
            let result = self.writer.write(piece);
            self.note(result);
            self.progress.pieces.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Keeps the first error. A full disk does not end the run: events that cannot be written count as lost, and the report says so.
    fn note(&mut self, result: Result<(), TraceError>) {
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
    }
}

/// Returns what the trace's head says of the run.
pub(super) fn meta(
    config: &Config,
    backend: &Backend,
    cmdline: &str,
    workload: Option<String>,
    policy_files: Vec<PolicyFile>,
) -> TraceMeta {
    // All parameters, also those with their defaults.
    let params = cmdline
        .split_whitespace()
        .filter_map(|word| word.split_once('='));
    let params = params.filter(|(name, _)| *name != "workload");
    TraceMeta {
        kind: TraceKind::Live,
        hmmvisor: env!("CARGO_PKG_VERSION").to_owned(),
        workload,
        params: params
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        guest: config
            .boot
            .kernel
            .as_ref()
            .or(config.guest.as_ref())
            .map(|path| path.display().to_string()),
        seed: config.seed,
        policy: backend.policy_name(),
        policy_files: policy_files
            .into_iter()
            .map(|file| (file.path.display().to_string(), file.sha256))
            .collect(),
        engine: backend.engine().to_string(),
        vcpus: config.machine.vcpus,
        devices: config.devices.count,
        memory: u64::from(backend.pages()) * PAGE_SIZE,
        base: config.boot.kernel.as_ref().map(|_| 0),
        device_memory: largest_memory(config, backend),
        device_kind: config.devices.kind.to_string(),
        fidelity: config.devices.accesses.to_string(),
        eviction_batch: Some(config.devices.eviction_batch),
        link: config.links.matrix.to_string(),
        source: None,
    }
}

/// Returns the size that accelerators' memories have now; of several sizes, the largest.
fn largest_memory(config: &Config, backend: &Backend) -> u64 {
    let devices = (0..config.devices.count as u8).map(DeviceId);
    let sizes = devices.filter_map(|device| backend.device_usage(device).ok());
    let largest = sizes
        .map(|usage| u64::from(usage.capacity) * PAGE_SIZE)
        .max();
    // Before there are accelerators.
    largest.unwrap_or(config.devices.memory.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm_backend::BackendConfig;
    use hmmvisor_experiments::output::Files;
    use hmmvisor_experiments::trace::{Tail, TraceReader};

    #[test]
    fn what_does_not_fit_is_counted_by_kind() {
        let backend = Backend::new(BackendConfig::new(2 << 20)).unwrap();
        let events = EventTap::new(backend.clone()).reader(2, 100);
        // This thread's ring is full before it is emptied.
        for _ in 0..5 {
            backend.guest_freed(PageRange::single(Page(3))).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let ids = ThreadIds::new(1);
        let ending = Arc::new(Ending::new().unwrap());
        let meta = TraceMeta::default();
        let output = crate::run::outputs::trace(&mut Files::default(), &path).unwrap();
        let begin = Begin {
            output,
            events,
            memory: None,
        };
        let recording = Recording::start(begin, meta, &ids, &ending).unwrap();
        let figures = recording.finish(None, Duration::ZERO);
        assert_eq!(figures.error, None);
        assert_eq!(figures.events, 2);
        assert_eq!(figures.dropped, Dropped::from([("freed".to_owned(), 3)]));
        let trace = TraceReader::open(&path).unwrap();
        assert_eq!(trace.tail(), Tail::Complete);
        assert_eq!(trace.totals().dropped, figures.dropped);
        assert_eq!(trace.count(), 2);
    }
}
