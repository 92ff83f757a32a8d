//! Kernel calls that fill or move pages, and a check of their real effect.
//!
//! If the kernel says that it did not move a page, the page tables decide. Linux 6.18 may move pages with
//! `UFFDIO_MOVE` and answer `EEXIST` all the same: after an `EAGAIN` inside the call (another thread splits the same
//! huge page) the call repeats the move, which succeeds, but keeps the error, repeats the move once more and finds
//! the moved page in its own way (`move_pages` in the kernel's `mm/userfaultfd.c` does not clear `err`; since the
//! batching of 2025). A caller that trusted the answer would leave the page's contents in a frame that is about to be
//! used for something else.
//!
//! Tests inject answers with [`KernelAnswers`], this one among them.

use std::sync::Arc;

use super::host_failure::HostFailures;
use super::presence::PageTables;
use super::ranged::{self, EngineError};
use crate::memory::uffd::Progress;
use crate::pages::{PAGE_SIZE, PageRange};

/// A kind of kernel call on pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KernelCall {
    /// Fills untouched pages with zeros.
    Fill,
    /// Takes contents away from CPUs, to a device.
    Take,
    /// Gives contents to CPUs.
    Give,
    /// Passes contents from one device to another.
    Pass,
    /// Gives the memory of dead contents back to the host. It works on all pages or none, so an injected answer's
    /// `done` and `unreported` do not apply.
    Discard,
    /// Changes whether CPUs may write. On all pages or none, too.
    Protect,
    /// Wakes CPUs. On all pages or none, too.
    Wake,
}

/// An injected answer of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MadeUpAnswer {
    /// Number of pages that the call really handles first and reports as done.
    pub done: u32,
    /// Number of further pages that the call really handles but does not report, as Linux 6.18 does with `EEXIST`.
    pub unreported: u32,
    /// The error number returned afterwards, such as `libc::EAGAIN`.
    pub errno: i32,
}

/// For tests: injects answers that a kernel gives only rarely. Set in [`crate::BackendConfig::kernel`].
pub trait KernelAnswers: Send + Sync {
    /// Called before each kernel call on these pages. `Some` replaces the kernel's answer; `None` makes the real
    /// call. A call that handled only a part of the pages is repeated for the rest, and this function is called
    /// again.
    fn answer(&self, call: KernelCall, pages: PageRange) -> Option<MadeUpAnswer>;
}

/// The effect of a call on pages, with the host addresses of the first page. It tells where to look for what really
/// happened.
#[derive(Clone, Copy)]
pub(super) enum Effect {
    /// Pages move from `src` to `dst`, where they were missing.
    Moved { src: u64, dst: u64 },
    /// Pages are created at `dst`, where they were missing.
    Made { dst: u64 },
    /// Pages are dropped from `src` after their contents were copied.
    Dropped { src: u64 },
}

/// Makes kernel calls on ranges of pages.
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

    /// Makes a call that handles all of `pages` or none.
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

    /// Makes a call for all of `pages` ([`ranged::each`]): `real(at, n)` makes it for `n` pages from index `at`.
    /// Pages that the kernel reports as failed are checked in the page tables. `late` gets those that have arrived
    /// all the same: the kernel has not woken the CPUs that sleep for them. `failed` gets those that really failed.
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
            // The real call may handle fewer pages than it was asked for, so it is repeated until `wanted` pages are
            // done.
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

    /// Checks what happened to the page at this index, for which the kernel reported `error`. Because the caller
    /// holds the page's lock, only this call can have moved it.
    fn outcome(&self, effect: Effect, at: u32, error: EngineError) -> Result<(), EngineError> {
        let look = |first: u64| {
            self.tables.look(first + bytes(at)).map_err(|error| {
                let call = "looking for a page in /proc/self/pagemap and with mincore";
                self.host_failures.note(call, &error);
                EngineError::Unexpected(error.raw_os_error().unwrap_or(libc::EIO))
            })
        };
        // `EEXIST` although no page is in the way: report it as busy, so that the caller tries again.
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

/// The number of bytes in `pages` pages.
pub(super) fn bytes(pages: u32) -> u64 {
    u64::from(pages) * PAGE_SIZE
}
