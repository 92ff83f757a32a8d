//! `--record`: a thread that takes events out of the backend's rings and writes them into a trace.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use hmm_backend::limits;
use hmm_backend::{Backend, EventKind};
use hmmvisor_devices::thread::{self, Joined, Thread};
use hmmvisor_experiments::output::Output;
use hmmvisor_experiments::trace::{Dropped, TraceError, TraceMeta, TraceWriter};
use serde::Serialize;

use crate::ending::Ending;
use crate::vcpu_threads::ThreadIds;

/// Events that each of the backend's threads keeps until they are taken: what a thread can produce in many
/// times [`DRAIN`]. 72 bytes each, reserved as needed.
pub const RING: usize = 1 << 16;

/// How often the rings are emptied.
const DRAIN: Duration = Duration::from_millis(10);

/// How much of the end a killed run may lose: events are in the file after this and [`DRAIN`].
const FLUSH: Duration = Duration::from_millis(80);

/// Events that are written at a time: each such piece is a sign of progress.
const PIECE: usize = 1 << 14;

/// How long the end of a run waits for a trace that makes no progress: one that goes into a pipe that is not read, for instance.
const STALL: Duration = Duration::from_secs(5);

/// What became of a recording.
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
    /// Dropped to end the thread.
    stop: Sender<()>,
    thread: Thread<RecordingFigures>,
    /// Counts the thread's pieces of work.
    progress: Arc<AtomicU64>,
    path: PathBuf,
}

impl Recording {
    /// Writes the beginning of the trace and starts the thread.
    pub fn start(
        output: Output,
        meta: &TraceMeta,
        backend: &Arc<Backend>,
        threads: &ThreadIds,
        ending: &Arc<Ending>,
    ) -> Result<Recording, TraceError> {
        let path = output.path().to_owned();
        let writer = TraceWriter::new(output, meta)?;
        let (stop, stopped) = mpsc::channel();
        let progress = Arc::new(AtomicU64::new(0));
        let recorder = Recorder {
            writer,
            backend: backend.clone(),
            threads: threads.clone(),
            progress: progress.clone(),
            error: None,
        };
        let named = path.clone();
        let body = move || recorder.run(named, &stopped);
        let thread = thread::spawn("recorder", ending.on_panic(), body);
        let thread = thread.map_err(|error| TraceError::Io {
            what: "starting a thread that writes",
            path: path.clone(),
            error,
        })?;
        Ok(Recording {
            stop,
            thread,
            progress,
            path,
        })
    }

    /// Takes the last events and closes the trace. To be called when everything that makes events has stopped.
    /// A trace that makes no progress any more is given up.
    pub fn finish(mut self) -> RecordingFigures {
        drop(self.stop);
        let mut seen = self.progress.load(Ordering::Relaxed);
        while !self.thread.wait(STALL) {
            let now = self.progress.load(Ordering::Relaxed);
            if now == seen {
                break;
            }
            seen = now;
        }
        match self.thread.join_within(Duration::ZERO) {
            Joined::Ended(figures) => figures,
            Joined::Panicked => unfinished(self.path, "the thread that writes it panicked"),
            Joined::Running => unfinished(self.path, "what is written is not taken"),
        }
    }
}

/// A trace whose thread has not come to its end.
pub(crate) fn unfinished(path: PathBuf, why: &str) -> RecordingFigures {
    RecordingFigures {
        error: Some(format!(
            "writing trace {}: {why}; the trace is good up to there",
            path.display()
        )),
        path,
        ..RecordingFigures::default()
    }
}

struct Recorder {
    writer: TraceWriter,
    backend: Arc<Backend>,
    threads: ThreadIds,
    progress: Arc<AtomicU64>,
    /// The first failure.
    error: Option<TraceError>,
}

impl Recorder {
    fn run(mut self, path: PathBuf, stopped: &Receiver<()>) -> RecordingFigures {
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
        let replaces = self.writer.replaces();
        let result = match self.error {
            // What was there before is worth more than a trace with a gap.
            Some(error) => Err(error),
            None => self.writer.commit(),
        };
        let failed = |error: TraceError, kept: &str| {
            let error = limits::explain(&error);
            Some(format!("{error}; the run went on, {kept}"))
        };
        let (events, bytes, error) = match result {
            Ok(()) => (totals.events, bytes, None),
            Err(error) if replaces => (0, 0, failed(error, "and what was there before still is")),
            Err(error) => {
                let error = failed(error, "the trace is good up to there");
                (totals.events, bytes, error)
            }
        };
        RecordingFigures {
            path,
            events,
            bytes,
            dropped: totals.dropped,
            error,
        }
    }

    fn drain(&mut self) {
        let events = self.backend.drain_events();
        for kind in EventKind::ALL {
            self.writer.dropped(kind, events.dropped(kind));
        }
        for piece in events.events.chunks(PIECE) {
            let result = self.writer.write(piece);
            self.note(result);
            self.progress.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A full disk is no reason to end the run: what cannot be written counts as lost, and the run's end says so.
    fn note(&mut self, result: Result<(), TraceError>) {
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm_backend::{BackendConfig, Page, PageRange};
    use hmmvisor_experiments::output::Files;
    use hmmvisor_experiments::trace::{Tail, TraceReader};

    #[test]
    fn what_does_not_fit_is_counted_by_kind() {
        let backend = Backend::new(BackendConfig {
            events: 2,
            ..BackendConfig::new(2 << 20)
        })
        .unwrap();
        // This thread's ring is full before anybody empties it.
        for _ in 0..5 {
            backend.guest_freed(PageRange::single(Page(3))).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let ids = ThreadIds::new(1);
        let ending = Arc::new(Ending::new().unwrap());
        let meta = TraceMeta::default();
        let output = crate::outputs::trace(&mut Files::default(), &path).unwrap();
        let recording = Recording::start(output, &meta, &backend, &ids, &ending).unwrap();
        let figures = recording.finish();
        assert_eq!(figures.error, None);
        assert_eq!(figures.events, 2);
        assert_eq!(figures.dropped, Dropped::from([("freed".to_owned(), 3)]));
        let trace = TraceReader::open(&path).unwrap();
        assert_eq!(trace.tail(), Tail::Complete);
        assert_eq!(trace.totals().dropped, figures.dropped);
        assert_eq!(trace.count(), 2);
    }
}
