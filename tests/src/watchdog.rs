//! Hangs become failures.

use std::fs;
use std::io::Write;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::patient;

/// Aborts the process with a message unless it is dropped in time: a test that hangs in a join or in the kernel
/// cannot be failed in any other way.
pub struct Watchdog {
    done: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Gives `what` this many seconds, see [`patient`].
    pub fn new(what: &str, seconds: u64) -> Watchdog {
        let (what, time) = (what.to_owned(), patient(Duration::from_secs(seconds)));
        let (done, wait) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            if wait.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                let message = format!("watchdog: {what} hangs: no end after {time:?}\n");
                // Not the macro: the test harness would keep its output until the end that never comes.
                let _ = std::io::stderr().write_all(message.as_bytes());
                release_faults();
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

/// Makes all memory of this process that waits for a userfaultfd ordinary memory again. Where the kernel itself waits for
/// such a page, as KVM may while it takes a machine apart, not even a deadly signal ends that wait: the process would stay
/// for ever, and with it the userfaultfds that it waits for.
fn release_faults() {
    const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let ranges = maps.lines().filter_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let start = number(start)?;
        Some([start, number(end)? - start])
    });
    let ranges: Vec<[u64; 2]> = ranges.collect();
    for file in fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
    {
        let is_one = fs::read_link(file.path())
            .is_ok_and(|target| target.to_string_lossy().contains("[userfaultfd]"));
        let number = file.file_name().to_string_lossy().parse::<libc::c_int>();
        if let (true, Ok(fd)) = (is_one, number) {
            for mut range in ranges.clone() {
                // SAFETY: the kernel reads a structure of two 64-bit integers. Whatever this does to the process's
                // memory, it is about to abort.
                unsafe { libc::ioctl(fd, UFFDIO_UNREGISTER, &mut range) };
            }
        }
    }
}
