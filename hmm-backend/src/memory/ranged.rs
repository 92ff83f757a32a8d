//! Kernel calls on ranges of pages, which may handle only a part of the range.

use std::io;

use crate::memory::uffd::Progress;
use crate::pages::PAGE_SIZE;

/// Why a page could not be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The kernel or another process holds a reference to the page, or the address space is changing.
    #[error("the page is in use by the kernel")]
    Busy,
    /// There is no memory for the destination.
    #[error("out of memory")]
    NoMemory,
    /// Both the source and the destination have a page.
    #[error("another page is already at its destination")]
    InTheWay,
    /// Neither the source nor the destination has the page.
    #[error("the kernel has lost it: it is neither at its source nor at its destination")]
    Lost,
    /// An error that the protocol rules out, with its error number.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Unexpected(i32),
}

impl From<i32> for EngineError {
    fn from(errno: i32) -> EngineError {
        match errno {
            libc::EAGAIN | libc::EBUSY | libc::EINTR => EngineError::Busy,
            libc::ENOMEM => EngineError::NoMemory,
            libc::EEXIST => EngineError::InTheWay,
            other => EngineError::Unexpected(other),
        }
    }
}

impl From<EngineError> for io::Error {
    fn from(error: EngineError) -> io::Error {
        match error {
            EngineError::NoMemory => io::Error::from_raw_os_error(libc::ENOMEM),
            EngineError::Unexpected(errno) => io::Error::from_raw_os_error(errno),
            error => io::Error::other(error),
        }
    }
}

/// Number of attempts at a page for which the kernel answers `EAGAIN` without progress.
const AGAIN_ATTEMPTS: u32 = 32;

/// Makes a kernel call for `pages` pages. It continues after partial progress, repeats the call on `EAGAIN` a bounded
/// number of times, and reports and skips pages that fail otherwise. After a page has used up all repeats, each
/// following page gets one attempt, until there is progress.
pub(super) fn each(
    pages: u32,
    mut failed: impl FnMut(u32, EngineError),
    mut call: impl FnMut(u32, u32) -> Progress,
) {
    let mut at = 0;
    let mut again = 0;
    while at < pages {
        let progress = call(at, pages - at);
        let done = (progress.done / PAGE_SIZE) as u32;
        at += done;
        if done > 0 {
            again = 0;
        }
        match progress.error {
            None => {}
            Some(libc::EAGAIN) if done > 0 => {}
            Some(libc::EAGAIN) if again < AGAIN_ATTEMPTS => {
                again += 1;
                std::thread::yield_now();
            }
            Some(errno) if at < pages => {
                failed(at, errno.into());
                at += 1;
                if errno != libc::EAGAIN {
                    again = 0;
                }
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_progress_is_continued_and_failing_pages_are_skipped() {
        let mut answers = vec![
            Progress {
                done: 2 * PAGE_SIZE,
                error: Some(libc::EAGAIN),
            },
            Progress {
                done: 0,
                error: Some(libc::EAGAIN),
            },
            Progress {
                done: PAGE_SIZE,
                error: Some(libc::EBUSY),
            },
            Progress {
                done: 4 * PAGE_SIZE,
                error: None,
            },
        ]
        .into_iter();
        let mut calls = Vec::new();
        let mut failures = Vec::new();
        each(
            8,
            |page, error| failures.push((page, error)),
            |at, left| {
                calls.push((at, left));
                answers.next().unwrap()
            },
        );
        assert_eq!(calls, [(0, 8), (2, 6), (2, 6), (4, 4)]);
        assert_eq!(failures, [(3, EngineError::Busy)]);
    }

    #[test]
    fn endless_eagain_is_given_up() {
        let (mut failures, mut calls) = (0, 0);
        each(
            512,
            |_, e| failures += (e == EngineError::Busy) as u32,
            |_, _| {
                calls += 1;
                Progress {
                    done: 0,
                    error: Some(libc::EAGAIN),
                }
            },
        );
        assert_eq!((failures, calls), (512, AGAIN_ATTEMPTS + 512));
    }
}
