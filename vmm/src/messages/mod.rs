//! What the process says beside the guest's output and the figures: messages on standard error, lines for people or JSON objects.
//!
//! Messages are events of [`tracing`]; [`start`] has them written. A message is written by the thread that has it, unless a `Queue`
//! lives: then a thread of its own writes, because those that serve faults and requests must not wait for a reader. A process that
//! ends on the spot, in a signal handler for instance, says so with `last_words`.

mod last_words;
mod text;

use std::io::{self, Write};
use std::panic;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hmmvisor_policies::Log;
use parking_lot::RwLock;
use tracing::level_filters::LevelFilter;

use crate::outlet::{MayClose, Outlet, OutletThread};
use text::Text;

pub(crate) use last_words::last_words;

/// How messages are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// `hmmvisor: ` and the message.
    #[default]
    Text,
    /// A JSON object for each: `timestamp`, `level`, `message`, and what belongs to the message.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            _ => Err(format!("`{text}` is neither text nor json")),
        }
    }
}

/// Which messages are written: those of this weight and above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Threshold(LevelFilter);

impl Default for Threshold {
    fn default() -> Threshold {
        Threshold(LevelFilter::WARN)
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Threshold, String> {
        match text {
            "error" => Ok(Threshold(LevelFilter::ERROR)),
            "warn" => Ok(Threshold(LevelFilter::WARN)),
            "info" => Ok(Threshold(LevelFilter::INFO)),
            _ => Err(format!("`{text}` is none of error, warn and info")),
        }
    }
}

/// Where a `Queue` takes messages.
static OUTLET: RwLock<Option<Outlet>> = RwLock::new(None);

/// Has messages written from now on; only the first call of a process counts. Without it, none are.
pub fn start(format: Format, threshold: Threshold) {
    let lines = tracing_subscriber::fmt()
        .with_max_level(threshold.0)
        .with_writer(|| StandardError);
    let started = match format {
        Format::Text => lines.event_format(Text).try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    };
    if started.is_ok() && format == Format::Json {
        last_words::are_json();
        let before = panic::take_hook();
        // A thread that has panicked says so like all else, unless a backtrace is wanted.
        match std::env::var_os("RUST_BACKTRACE") {
            Some(wanted) if wanted != "0" => panic::set_hook(before),
            _ => panic::set_hook(Box::new(|panic| tracing::error!("{panic}"))),
        }
    }
}

/// A thread that writes the messages while it lives.
pub(crate) struct Queue(OutletThread);

/// How long writing the last messages may take.
const LAST_MESSAGES: Duration = Duration::from_millis(100);

impl Queue {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread.
    pub(crate) fn start() -> io::Result<Queue> {
        let thread = Outlet::start("messages", Box::new(MayClose(io::stderr())), |_| {})?;
        *OUTLET.write() = Some(thread.outlet().clone());
        Ok(Queue(thread))
    }
}

impl Drop for Queue {
    /// Writes the messages so far.
    fn drop(&mut self) {
        *OUTLET.write() = None;
        self.0.finish(LAST_MESSAGES);
    }
}

/// Returns what takes the messages of policy scripts.
pub fn of_scripts() -> Log {
    Arc::new(|line| tracing::warn!("policy script {line}"))
}

/// Takes whole messages.
struct StandardError;

impl Write for StandardError {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        // The lock is not held while a message is written, which may take long.
        let outlet = OUTLET.read().clone();
        match outlet {
            Some(outlet) => outlet.offer(message),
            // There is nowhere to say that this failed.
            None => drop(MayClose(io::stderr()).write_all(message)),
        }
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
