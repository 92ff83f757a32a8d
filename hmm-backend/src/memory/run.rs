//! Pages and frames that one kernel call handles.

use super::kernel;
use crate::pages::{Frame, Page, PageRange, Permission};

/// The extent of one kernel call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// The pages of one block, because the next block may belong to another userfaultfd.
    Block,
    Everywhere,
}

/// Neighbouring pages and the neighbouring frames that their contents move to or from, for one kernel call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) page: Page,
    pub(crate) frame: Frame,
    pub(crate) pages: u32,
    /// What CPUs may do with these pages.
    pub(crate) permission: Permission,
}

impl Run {
    /// The run without its first `n` pages.
    pub(super) fn skip(self, n: u32) -> Run {
        Run {
            page: self.page.plus(n),
            frame: Frame(self.frame.0 + n),
            pages: self.pages - n,
            ..self
        }
    }

    pub(super) fn bytes(self) -> u64 {
        kernel::bytes(self.pages)
    }

    pub(crate) fn range(self) -> PageRange {
        PageRange::with_len(self.page, self.pages)
    }
}

/// How an untouched page is filled with zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fill {
    /// With the kernel's shared zero page, until a CPU writes.
    ZeroPage,
    /// With memory of its own, because a write follows.
    Memory,
    /// With write-protected memory, because CPUs may not write the page.
    ReadOnly,
}
