//! The progress display of long runs, on standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use hmmvisor_devices::thread::{self, Thread};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::ending::Ending;
use crate::guest::program::control::Control;

/// Runs shorter than this show no progress.
const FIRST_TICK: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);
/// How long the terminal may take to remove the display.
const REMOVE_WITHIN: Duration = Duration::from_millis(100);

/// A progress bar that stays invisible until it is first shown.
#[derive(Clone)]
pub struct Progress(ProgressBar);

/// The thread that draws: a terminal may make it wait. Removes the display when it is dropped.
pub(crate) struct ProgressThread {
    stop: Option<Sender<()>>,
    thread: Option<Thread<()>>,
}

impl Progress {
    /// Makes a display for a run of `what`; none if standard error is no terminal.
    pub fn on_terminal(what: &str) -> Option<Progress> {
        if !io::stderr().is_terminal() {
            return None;
        }
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::hidden());
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {prefix}  {elapsed}  {wide_bar} {percent:>3}%")
        {
            bar.set_style(style);
        }
        Some(Progress(bar.with_prefix(what.to_owned())))
    }

    /// Wraps an output so that it and the display do not overwrite each other.
    pub fn wrap(&self, out: Box<dyn Write + Send>) -> Box<dyn Write + Send> {
        Box::new(Wrapped {
            progress: self.clone(),
            out,
        })
    }

    /// Starts to show the progress that the guest reports.
    pub(crate) fn start(
        &self,
        control: &Arc<Control>,
        ending: &Arc<Ending>,
    ) -> io::Result<ProgressThread> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (bar, control) = (self.0.clone(), control.clone());
        let body = move || {
            let mut tick = FIRST_TICK;
            while stopped.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
                if bar.is_hidden() {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                }
                bar.set_position(control.progress().into());
                bar.tick();
                tick = TICK;
            }
            bar.finish_and_clear();
        };
        Ok(ProgressThread {
            stop: Some(stop),
            thread: Some(thread::spawn("progress", ending.on_panic(), body)?),
        })
    }
}

impl Drop for ProgressThread {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join_within(REMOVE_WITHIN);
        }
    }
}

struct Wrapped {
    progress: Progress,
    out: Box<dyn Write + Send>,
}

impl Write for Wrapped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.progress.0.suspend(|| self.out.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
