//! Calls that fill or move pages, and what really came of them.
//!
//! What the kernel says of a page that it did not move is not believed without a look at the page tables. Linux 6.18
//! moves pages with `UFFDIO_MOVE` and answers `EEXIST`: after an `EAGAIN` inside the call (another thread splits the same huge
//! page) the call repeats the move, which succeeds, but keeps the error, repeats the move once more and finds the page in its own way
//! (`move_pages` in the kernel's `mm/userfaultfd.c` does not clear `err`; since the batching of 2025). Who took the
//! kernel at its word would leave the page's contents in a frame that is about to be used for something else.
//!
//! Tests make up answers with [`KernelAnswers`], this one among them.

use std::sync::Arc;

use super::host_failure::HostFailures;
use super::presence::PageTables;
use super::ranged::{self, EngineError};
use crate::memory::uffd::Progress;
use crate::pages::{PAGE_SIZE, PageRange};

/// A call of the kernel about pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KernelCall {
    /// Fills untouched pages with zeros.
    Fill,
    /// Takes contents away from CPUs, towards a device.
    Take,
    /// Gives contents to CPUs.
    Give,
    /// Gives the memory of dead contents back to the host. All or nothing: `done` and `unreported` do not count.
    Discard,
    /// Changes whether CPUs may write. All or nothing, too.
    Protect,
    /// Wakes CPUs. All or nothing, too.
    Wake,
}

/// What the kernel is made to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MadeUpAnswer {
    /// So many pages are done for real first, and the kernel says so.
    pub done: u32,
    /// So many pages behind them are done for real, and the kernel does not say so: as Linux 6.18 does with `EEXIST`.
    pub unreported: u32,
    /// Then this error, such as `libc::EAGAIN`.
    pub errno: i32,
}

/// For tests: answers that a kernel gives only now and then. Set in [`crate::BackendConfig::kernel`].
pub trait KernelAnswers: Send + Sync {
    /// The call about these pages is about to be made; with an answer, this is what comes of it. A call that got
    /// only a part of its way is made again for the rest, and asked about again.
    fn answer(&self, call: KernelCall, pages: PageRange) -> Option<MadeUpAnswer>;
}

/// What a call does to pages, with the host addresses of the first ones: how it is found out what became of them.
#[derive(Clone, Copy)]
pub(super) enum Effect {
    /// Pages move to where they were missing.
    Moved { src: u64, dst: u64 },
    /// Pages come into being where they were missing.
    Made { dst: u64 },
    /// Pages are gone, after their contents were copied.
    Dropped { src: u64 },
}

/// Makes ranged calls.
#[derive(Clone)]
pub(super) struct Kernel {
    answers: Option<Arc<dyn KernelAnswers>>,
    tables: Arc<PageTables>,
    pub(super) host_failures: Arc<HostFailures>,
}

impl Kernel {
    pub(super) fn new(answers: Option<Arc<dyn KernelAnswers>>) -> Kernel {
        Kernel {
            answers,
            tables: Arc::new(PageTables::open()),
            host_failures: Arc::default(),
        }
    }

    pub(super) fn tables(&self) -> &PageTables {
        &self.tables
    }

    fn made_up(&self, call: KernelCall, pages: PageRange) -> Option<MadeUpAnswer> {
        self.answers.as_ref()?.answer(call, pages)
    }

    /// Makes a call that is about all of `pages` or none.
    pub(super) fn whole(
        &self,
        call: KernelCall,
        pages: PageRange,
        real: impl FnOnce() -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        match self.made_up(call, pages) {
            Some(answer) => Err(std::io::Error::from_raw_os_error(answer.errno)),
            None => real(),
        }
    }

    /// Drives a call over all of `pages` ([`ranged::each`]): `real(at, n)` makes it for `n` pages from index `at`.
    /// Pages that the kernel says it has not done are looked for: `late` gets those that are at their destination all
    /// the same, whose sleepers the kernel has not woken; `failed` gets the others.
    pub(super) fn each(
        &self,
        call: KernelCall,
        pages: PageRange,
        effect: Effect,
        mut failed: impl FnMut(u32, EngineError),
        mut late: impl FnMut(u32),
        mut real: impl FnMut(u32, u32) -> Progress,
    ) {
        let answered = |at, left: u32| {
            let rest = PageRange::with_len(pages.start.plus(at), left);
            let Some(answer) = self.made_up(call, rest) else {
                return real(at, left);
            };
            // A call may be about fewer pages than it is asked for.
            let mut progress = Progress {
                done: 0,
                error: None,
            };
            let wanted = answer.done.min(left);
            while progress.error.is_none() && progress.done < bytes(wanted) {
                let done = (progress.done / PAGE_SIZE) as u32;
                let more = real(at + done, wanted - done);
                progress.done += more.done;
                progress.error = more.error;
            }
            if progress.error.is_none() && answer.unreported > 0 {
                let n = answer.unreported.min(left - wanted);
                real(at + wanted, n);
            }
            Progress {
                error: progress.error.or(Some(answer.errno)),
                ..progress
            }
        };
        let look = |at, error| match self.outcome(effect, at, error) {
            Ok(()) => late(at),
            Err(error) => failed(at, error),
        };
        ranged::each(pages.len(), look, answered);
    }

    /// What became of the page at this index, of which the kernel says that it failed with `error`. Only this call
    /// could have had its effect on it.
    fn outcome(&self, effect: Effect, at: u32, error: EngineError) -> Result<(), EngineError> {
        let look = |first: u64| {
            self.tables.look(first + bytes(at)).map_err(|error| {
                let call = "looking for a page in /proc/self/pagemap and with mincore";
                self.host_failures.note(call, &error);
                EngineError::Unexpected(error.raw_os_error().unwrap_or(libc::EIO))
            })
        };
        // With nothing in the way, the next attempt finds a way.
        let failed = match error {
            EngineError::InTheWay => EngineError::Busy,
            error => error,
        };
        match effect {
            Effect::Moved { src, dst } => {
                let (stayed, arrived) = (look(src)?, look(dst)?);
                match (stayed.there, arrived.there) {
                    (false, true) => Ok(()),
                    (true, true) => Err(EngineError::InTheWay),
                    (false, false) if stayed.exact && arrived.exact => Err(EngineError::Lost),
                    (_, false) => Err(failed),
                }
            }
            Effect::Made { dst } => look(dst)?.there.then_some(()).ok_or(failed),
            Effect::Dropped { src } => {
                let stayed = look(src)?;
                (stayed.exact && !stayed.there).then_some(()).ok_or(error)
            }
        }
    }
}

/// The bytes of so many pages.
pub(super) fn bytes(pages: u32) -> u64 {
    u64::from(pages) * PAGE_SIZE
}
