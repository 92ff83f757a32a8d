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

/// Neighbouring pages whose contents pass from neighbouring frames of one device to neighbouring frames of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Passage {
    pub(crate) page: Page,
    /// The first frame that has the contents.
    pub(crate) from: Frame,
    /// The first frame that gets them.
    pub(crate) to: Frame,
    pub(crate) pages: u32,
}

impl Passage {
    /// The way back.
    pub(crate) fn back(self) -> Passage {
        Passage {
            from: self.to,
            to: self.from,
            ..self
        }
    }

    /// Returns whether `next` continues this passage on all sides.
    pub(crate) fn joins(&self, next: &Passage) -> bool {
        let n = self.pages;
        next.page == self.page.plus(n)
            && (next.from.0, next.to.0) == (self.from.0 + n, self.to.0 + n)
    }

    pub(super) fn range(self) -> PageRange {
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
