//! What the command prints. All of it goes through here, because the standard library's `println!` panics when the pipe
//! that it writes to has been closed.

use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use hmm_backend::limits::{Refusal, Resource};
use hmmvisor::run::signals::{self, Signals};
use hmmvisor_devices::thread::{self, Joined};
use hmmvisor_experiments::output::{Files, Output, shown};
use hmmvisor_experiments::steady::write_all;
use serde::Serialize;

use super::failed::failed;

/// How long the end of a run waits for a reader of its summary.
pub const READ_WITHIN: Duration = Duration::from_secs(2);
/// How long it waits for a busy disk to store a file.
pub const STORED_WITHIN: Duration = Duration::from_secs(60);
/// After a signal, waiting ends this long before the process must be gone.
const RESERVE: Duration = Duration::from_millis(50);
/// What an output is called that is for programs.
const JSON: &str = "the JSON object";

/// Writes to standard output. A reader that has closed the pipe, like `head`, has read enough: that is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match write_all(&mut out, text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(failed("writing to standard output")),
    }
}

/// Says what has been done: on standard output, or on standard error if an output of the command goes there.
pub fn status(files: &Files, text: &str) -> Result<()> {
    match files.use_stdout() {
        true => {
            note(text);
            Ok(())
        }
        false => print(text),
    }
}

/// Prints what a command has found out for people: on standard output, or on standard error if an output of the command
/// goes there.
pub fn summary(files: &Files, text: &str) -> Result<()> {
    if !files.use_stdout() {
        return print(text);
    }
    // There is nowhere to say that this failed.
    let _ = io::stderr().write_all(text.as_bytes());
    Ok(())
}

/// Opens where the figures go as one JSON object, if they go anywhere.
pub fn json_output(files: &mut Files, path: Option<&Path>) -> Result<Option<Output>> {
    let open = |path| files.whole(JSON, path);
    Ok(path.map(open).transpose()?)
}

/// Writes the figures as one JSON object.
pub fn put_json(output: Option<Output>, figures: &impl Serialize) -> Result<()> {
    match output {
        Some(output) => put(output, JSON, &(serde_json::to_string(figures)? + "\n")),
        None => Ok(()),
    }
}

/// Writes an output as a whole. A closed pipe is no error: its reader has what it wanted.
pub fn put(mut output: Output, what: &str, text: &str) -> Result<()> {
    let path = output.path().to_owned();
    let written = write_all(&mut output, text.as_bytes()).and_then(|()| output.commit());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(failed(format!("writing {what} to {}", shown(&path)))),
    }
}

/// Says something on standard error that is not the result.
pub fn note(text: &str) {
    tracing::warn!("{text}");
}

/// Does in a thread of its own what may never end, such as writing into a pipe that is not read, and waits for it for at most
/// `limit`. A thread that has not finished then ends with the process.
pub fn within(
    signals: Option<&Signals>,
    limit: Duration,
    what: &str,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    let mut thread = thread::spawn("report", |_| {}, work)
        .map_err(|error| Refusal::new(Resource::Thread, error))
        .map_err(failed(format!("{what}: starting a thread for it")))?;
    signals::wait_for(signals, limit, RESERVE, |step| thread.wait(step));
    match thread.join_within(Duration::ZERO) {
        Joined::Ended(result) => result,
        Joined::Panicked => bail!("{what}: the thread panicked; this is a bug in Hmmvisor"),
        Joined::Running => bail!("{what}: it is not taken; is there a reader?"),
    }
}

/// Says what went wrong at the end of a command. A reader of standard error that does not read delays the end for a bounded time.
pub fn say(signals: Option<&Signals>, text: String) {
    let text = Arc::new(text);
    let its = text.clone();
    match thread::spawn("report", |_| {}, move || tracing::error!("{its}")) {
        Ok(mut thread) => {
            signals::wait_for(signals, READ_WITHIN, RESERVE, |limit| thread.wait(limit));
        }
        // The message matters more than the bound.
        Err(_) => tracing::error!("{text}"),
    }
}
