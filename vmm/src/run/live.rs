//! The figures of a run while it goes on, and the recordings that are begun and ended meanwhile: what its API asks for.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hmm_backend::{Backend, EventTap};
use hmmvisor_api as api;
use hmmvisor_devices::Accelerator;
use hmmvisor_devices::virtio::Balloon;
use hmmvisor_experiments::output::{Files, Output, OutputError};
use hmmvisor_experiments::trace::TraceError;
use hmmvisor_policies::{ScriptFigures, Scripts};
use parking_lot::Mutex;

use super::balloon::BalloonReport;
use super::recording::{self, Begin, Recording, RecordingFigures};
use super::report::{AcceleratorReport, DriverReport, Report};
use super::{outputs, policy_scripts};
use crate::api::{Refusal, Run};
use crate::config::Config;
use crate::config::console_choice::ConsoleChoice;
use crate::ending::{End, Ending};
use crate::guest::program::control::Control;
use crate::machine::vcpu_threads::ThreadIds;
use crate::sandbox::Mode;

/// What a run's figures come from.
pub(super) struct Observed {
    pub(super) config: Config,
    pub(super) backend: Arc<Backend>,
    pub(super) tap: Arc<EventTap>,
    /// The workload's name, if there is one.
    pub(super) workload: Option<String>,
    /// The guest's command line.
    pub(super) cmdline: String,
    pub(super) control: Arc<Control>,
    pub(super) accelerators: Vec<Arc<Accelerator>>,
    pub(super) balloon: Arc<OnceLock<Balloon>>,
    pub(super) threads: ThreadIds,
    pub(super) ending: Arc<Ending>,
    /// All scripts that have decided.
    pub(super) scripts: Mutex<Vec<Arc<Scripts>>>,
    pub(super) recordings: Mutex<Recordings>,
    /// From when the time to the first instruction counts.
    pub(super) started: Instant,
    /// When the guest first accessed a device.
    pub(super) first_exit: Arc<OnceLock<Instant>>,
    /// When the vCPUs were started.
    pub(super) began: OnceLock<Instant>,
}

/// The recordings of a run: one at a time.
#[derive(Default)]
pub(super) struct Recordings {
    running: Option<Recording>,
    last: Option<RecordingFigures>,
    /// The run has ended, and no recording begins any more.
    closed: bool,
}

impl Observed {
    /// Returns the figures as they are now. Those of what is taken at the end only are none.
    pub(super) fn report(&self, end: Option<End>) -> Report {
        let first_exit = self.first_exit.get();
        let report = Report::new(&self.config, &self.backend, end);
        Report {
            vcpu_faults: self.threads.faults(&self.backend),
            accelerators: AcceleratorReport::of(&self.accelerators, &report.links),
            workload: self.workload.clone(),
            scripts: self.scripts(),
            elapsed: self.began.get().map_or(Duration::ZERO, Instant::elapsed),
            first_instruction: first_exit.map(|exit| exit.duration_since(self.started)),
            operations_checked: self.control.checked(),
            rounds: self.control.rounds(),
            balloon: self.balloon.get().map(BalloonReport::of),
            drivers: DriverReport::of(&self.accelerators),
            ..report
        }
    }

    /// Returns the figures of all scripts together; none if there are none.
    fn scripts(&self) -> Option<ScriptFigures> {
        policy_scripts::sum(self.scripts.lock().iter().map(|script| script.figures()))
    }

    /// Starts the recording that the configuration asks for, into an output that is open.
    pub(super) fn start_recording(&self, begin: Begin) -> Result<(), TraceError> {
        let recording = self.recording_of(begin)?;
        self.recordings.lock().running = Some(recording);
        Ok(())
    }

    fn recording_of(&self, begin: Begin) -> Result<Recording, TraceError> {
        let files = self.backend.policy_files();
        let workload = self.workload.clone();
        let meta = recording::meta(&self.config, &self.backend, &self.cmdline, workload, files);
        Recording::start(begin, meta, &self.threads, &self.ending)
    }

    /// Ends the time in which recordings begin; returns the one that runs.
    pub(super) fn close_recordings(&self) -> Option<Recording> {
        let mut recordings = self.recordings.lock();
        recordings.closed = true;
        recordings.running.take()
    }

    /// Returns the figures of the last recording that a request ended.
    pub(super) fn last_recording(&self) -> Option<RecordingFigures> {
        self.recordings.lock().last.clone()
    }

    /// Opens a trace, unless the path is that of another file of the run.
    fn open_trace(&self, path: &Path) -> Result<Output, Refusal> {
        let wrong = |error: &dyn ToString| Refusal::bad("path", error.to_string());
        if path.as_os_str() == "-" {
            return Err(wrong(&"a recording on request goes into a file; name one"));
        }
        let mut files = Files::default();
        outputs::inputs(&self.config, &mut files);
        if let Some(json) = &self.config.json {
            files.reads("the JSON report", json);
        }
        if let ConsoleChoice::File(console) = &self.config.console {
            files.reads("the console", console);
        }
        outputs::trace(&mut files, path).map_err(|error| match &error {
            OutputError::System { error: cause, .. }
                if cause.kind() == ErrorKind::PermissionDenied
                    && self.config.sandbox.mode == Mode::On =>
            {
                let hint = "a recording on request needs a file in a folder of --allow-write";
                wrong(&format!("{error}; {hint}"))
            }
            _ => wrong(&error),
        })
    }
}

impl Run for Observed {
    fn report(&self) -> String {
        self.report(self.ending.get().cloned()).to_json()
    }

    fn uses(&self, scripts: Vec<Arc<Scripts>>) {
        self.scripts.lock().extend(scripts);
    }

    fn record(&self, path: &Path) -> Result<(), Refusal> {
        let mut recordings = self.recordings.lock();
        if recordings.closed {
            return Err(Refusal::conflict("the run has ended"));
        }
        if let Some(running) = &recordings.running {
            let running = running.file().path().display();
            let detail = format!("{running} is being recorded; end that first");
            return Err(Refusal::conflict(detail));
        }
        let begin = Begin {
            output: self.open_trace(path)?,
            // From here on, so that what moves while the trace begins is in it, too.
            events: recording::reader(&self.tap, self.config.devices.accesses),
            memory: Some(self.backend.clone()),
        };
        let recording = self.recording_of(begin);
        recordings.running = Some(recording.map_err(|error| Refusal::bad("path", error))?);
        Ok(())
    }

    fn end_recording(&self) -> Result<api::Recording, Refusal> {
        let running = self.recordings.lock().running.take();
        let Some(running) = running else {
            let detail = "nothing is being recorded; PUT /v1/recording begins a recording";
            return Err(Refusal::conflict(detail));
        };
        let figures = running.finish(None, Duration::ZERO);
        self.recordings.lock().last = Some(figures);
        Ok(self.recording())
    }

    fn recording(&self) -> api::Recording {
        let recordings = self.recordings.lock();
        let last = recordings.last.clone().unwrap_or_default();
        match &recordings.running {
            Some(running) => api::Recording {
                active: true,
                path: Some(running.file().path().display().to_string()),
                ..api::Recording::default()
            },
            None => api::Recording {
                active: false,
                path: recordings
                    .last
                    .as_ref()
                    .map(|it| it.path.display().to_string()),
                events: last.events,
                bytes: last.bytes,
                dropped: last.dropped.values().sum(),
                error: last.error,
            },
        }
    }
}
