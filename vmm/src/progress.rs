//! The progress display of long runs, on standard error.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar that stays invisible until it is first shown.
#[derive(Clone)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A display for a run of `what`; none if standard error is no terminal.
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

    /// Output that does not disturb the display, and the other way round.
    pub fn wrap(&self, out: Box<dyn Write + Send>) -> Box<dyn Write + Send> {
        Box::new(Wrapped {
            progress: self.clone(),
            out,
        })
    }

    /// Shows how much is done, in thousandths.
    pub(crate) fn show(&self, thousandths: u32) {
        if self.0.is_hidden() {
            self.0.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.0.set_position(thousandths.into());
        self.0.tick();
    }

    /// Removes the display.
    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
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
