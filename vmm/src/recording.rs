//! `--record`: a thread that takes events out of the backend's rings and writes them into a trace.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hmm_backend::limits;
use hmm_backend::{Backend, EventKind};
use hmmvisor_experiments::output::Output;
use hmmvisor_experiments::trace::{Dropped, TraceError, TraceMeta, TraceWriter};
use serde::Serialize;

use crate::vcpu_threads::ThreadIds;

/// Events that each of the backend's threads keeps until they are taken: what a thread can produce in many
/// times [`DRAIN`]. 72 bytes each, reserved as needed.
pub const RING: usize = 1 << 16;

/// How often the rings are emptied.
const DRAIN: Duration = Duration::from_millis(10);

/// How much of the end a killed run may lose: events are in the file after this and [`DRAIN`].
const FLUSH: Duration = Duration::from_millis(80);

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
    thread: JoinHandle<RecordingFigures>,
    path: PathBuf,
}

impl Recording {
    /// Writes the beginning of the trace and starts the thread.
    pub fn start(
        output: Output,
        meta: &TraceMeta,
        backend: &Arc<Backend>,
        threads: &ThreadIds,
    ) -> Result<Recording, TraceError> {
        let path = output.path().to_owned();
        let writer = TraceWriter::new(output, meta)?;
        let (stop, stopped) = mpsc::channel();
        let recorder = Recorder {
            writer,
            backend: backend.clone(),
            threads: threads.clone(),
            error: None,
        };
        let named = path.clone();
        let thread = thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || recorder.run(named, &stopped))
            .map_err(|error| TraceError::Io {
                what: "starting a thread that writes",
                path: path.clone(),
                error,
            })?;
        Ok(Recording { stop, thread, path })
    }

    /// Takes the last events and closes the trace. To be called when everything that makes events has stopped.
    pub fn finish(self) -> RecordingFigures {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|_| RecordingFigures {
            error: Some(format!(
                "the thread that writes trace {} panicked",
                self.path.display()
            )),
            path: self.path,
            ..RecordingFigures::default()
        })
    }
}

struct Recorder {
    writer: TraceWriter,
    backend: Arc<Backend>,
    threads: ThreadIds,
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
        let result = self.writer.write(&events.events);
        self.note(result);
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
        let output = crate::outputs::trace(&mut Files::default(), &path).unwrap();
        let recording = Recording::start(output, &TraceMeta::default(), &backend, &ids).unwrap();
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
