//! The kernel's answers to calls that fill or move pages, and the answers that tests make up instead.

use std::sync::Arc;

use super::ranged::{self, EngineError};
use crate::page::{PAGE_SIZE, PageRange};
use crate::uffd::Progress;

/// A call of the kernel about pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KernelCall {
    /// Fills untouched pages with zeros.
    Fill,
    /// Takes contents away from CPUs, towards a device.
    Take,
    /// Gives contents to CPUs.
    Give,
}

/// What the kernel is made to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MadeUpAnswer {
    /// So many pages are done for real first.
    pub done: u32,
    /// Then this error, such as `libc::EAGAIN`.
    pub errno: i32,
}

/// For tests: answers that a kernel gives only now and then. Set in [`crate::BackendConfig::kernel`].
pub trait KernelAnswers: Send + Sync {
    /// The call about these pages is about to be made; with an answer, this is what comes of it. A call that got
    /// only a part of its way is made again for the rest, and asked about again.
    fn answer(&self, call: KernelCall, pages: PageRange) -> Option<MadeUpAnswer>;
}

/// Makes ranged calls.
#[derive(Clone, Default)]
pub(super) struct Kernel(Option<Arc<dyn KernelAnswers>>);

impl Kernel {
    pub(super) fn new(answers: Option<Arc<dyn KernelAnswers>>) -> Kernel {
        Kernel(answers)
    }

    fn made_up(&self, call: KernelCall, pages: PageRange) -> Option<MadeUpAnswer> {
        self.0.as_ref()?.answer(call, pages)
    }

    /// Drives a call over all of `pages` ([`ranged::each`]): `real(at, n)` makes it for `n` pages from index `at`.
    pub(super) fn each(
        &self,
        call: KernelCall,
        pages: PageRange,
        failed: impl FnMut(u32, EngineError),
        mut real: impl FnMut(u32, u32) -> Progress,
    ) {
        ranged::each(pages.len(), failed, |at, left| {
            let rest = PageRange::with_len(pages.start.plus(at), left);
            let Some(answer) = self.made_up(call, rest) else {
                return real(at, left);
            };
            let nothing = Progress {
                done: 0,
                error: None,
            };
            let progress = match answer.done.min(left) {
                0 => nothing,
                n => real(at, n),
            };
            Progress {
                error: progress.error.or(Some(answer.errno)),
                ..progress
            }
        });
    }
}

/// The bytes of so many pages.
pub(super) fn bytes(pages: u32) -> u64 {
    u64::from(pages) * PAGE_SIZE
}
