//! The end of a run: stopping the machine, within bounds.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use hmmvisor_devices::thread::{self, Joined};
use hmmvisor_torture::Figures;

use super::recording::{Recording, RecordingFigures};
use super::signals::{self, Signals};
use super::torture::Torture;
use crate::console::thread::ConsoleThread;
use crate::ending::failure::Failure;
use crate::ending::{End, Ending};
use crate::outlet::OutletFigures;
use crate::vm::Vm;

/// How long the machine may take to stop. Milliseconds are usual; its threads have bounds of their own, which add up to less
/// unless several of them hang.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How much of the time between a signal and the end of the process is left for making and writing the report.
const REPORT_WITHIN: Duration = Duration::from_millis(250);

/// The parts of a run that are stopped at its end.
pub(super) struct Stopping {
    pub(super) end: End,
    pub(super) vm: Vm,
    pub(super) torture: Torture,
    pub(super) console: Option<ConsoleThread>,
    pub(super) recording: Option<Recording>,
}

/// The results of the parts that have stopped.
pub(super) struct Stopped {
    pub(super) end: End,
    pub(super) chaos: Option<Figures>,
    pub(super) recording: Option<RecordingFigures>,
    pub(super) output: OutletFigures,
}

impl Stopping {
    /// Stops everything but the recording: how long that takes to finish depends on the reader of the trace.
    fn stop(mut self) -> (Stopped, Option<Recording>) {
        let chaos = self.torture.stop(&mut self.vm, &mut self.end);
        drop(self.console);
        let stopped = Stopped {
            chaos,
            recording: None,
            output: self.vm.written().cloned().unwrap_or_default(),
            end: self.end,
        };
        (stopped, self.recording)
    }
}

/// The thread that stops the machine at the end. A thread of the machine that never ends delays this thread, but not the run's
/// end.
pub(super) struct Stopper {
    give: mpsc::Sender<Stopping>,
    thread: thread::Thread<Option<(Stopped, Option<Recording>)>>,
}

impl Stopper {
    /// Starts the thread early: at the end the system may have no thread left.
    pub(super) fn start(ending: &Arc<Ending>) -> io::Result<Stopper> {
        let (give, take) = mpsc::channel::<Stopping>();
        let body = move || take.recv().ok().map(Stopping::stop);
        let thread = thread::spawn("stop", ending.on_panic(), body)?;
        Ok(Stopper { give, thread })
    }

    pub(super) fn stop(self, stopping: Stopping, signals: Option<&Signals>) -> Stopped {
        let Stopper { give, mut thread } = self;
        let end = stopping.end.clone();
        let recording = stopping.recording.as_ref();
        let trace = recording.map(|recording| recording.file().clone());
        let failure = match give.send(stopping) {
            Ok(()) => Failure::NotStopped(STOP_WITHIN.as_secs()),
            Err(_) => Failure::Panicked {
                thread: "stop".to_owned(),
            },
        };
        let ended = signals::wait_for(signals, STOP_WITHIN, REPORT_WITHIN, |limit| {
            thread.wait(limit)
        });
        let failure = match (ended, thread.join_within(Duration::ZERO)) {
            (_, Joined::Ended(Some((stopped, recording)))) => {
                let finish = |recording: Recording| recording.finish(signals, REPORT_WITHIN);
                return Stopped {
                    recording: recording.map(finish),
                    ..stopped
                };
            }
            (_, Joined::Running) => failure,
            (_, Joined::Ended(None) | Joined::Panicked) => Failure::Panicked {
                thread: "stop".to_owned(),
            },
        };
        Stopped {
            recording: trace.map(|trace| trace.unfinished(&failure.to_string())),
            chaos: None,
            output: OutletFigures::default(),
            // An earlier failure or signal is the better explanation.
            end: match end {
                End::Failed(_) | End::Signal(_) | End::Exit(1..) => end,
                _ => End::Failed(failure),
            },
        }
    }
}
