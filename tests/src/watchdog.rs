//! Hangs become failures.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// Aborts the process with a message unless it is dropped in time: a test that hangs in a join or in the kernel
/// cannot be failed in any other way.
pub struct Watchdog {
    done: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Gives `what` this many seconds.
    pub fn new(what: &str, seconds: u64) -> Watchdog {
        let what = what.to_owned();
        let (done, wait) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            if wait.recv_timeout(Duration::from_secs(seconds)) == Err(RecvTimeoutError::Timeout) {
                eprintln!("watchdog: {what} hangs: no end after {seconds} s");
                std::process::abort();
            }
        });
        Watchdog {
            done: Some(done),
            thread: Some(thread),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(thread) = self.thread.take() {
            // It either ends now or has aborted the process.
            let _ = thread.join();
        }
    }
}
