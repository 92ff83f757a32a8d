//! What a policy is: the traits that the backend calls.

use std::sync::Arc;
use std::time::Duration;

use super::advice::{Advice, Wish};
use super::file::PolicyFile;
use super::view::{BlockFault, BlockView, Seen};
use crate::pages::{BLOCK_PAGES, Frame, Hint, Page, PageRange, PageSet};

const _: () = assert!(BLOCK_PAGES == 512, "page sets and views cover one block");

/// Decides about faults. One instance serves one shard of guest memory.
pub trait FaultPolicy: Send {
    /// Called once for the faults on one block. The faulting pages are served in any case.
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice;

    /// How many accesses of a device to a 64 KiB group in place, in system memory, make [`Self::remote_accesses`]
    /// be called; never if `None`.
    fn remote_access_threshold(&self) -> Option<u32> {
        None
    }

    /// The device `seen.to` has used these pages of a block in place, in system memory, `count` times each or more
    /// since they got there. Returns those that should migrate to it.
    fn remote_accesses(&mut self, seen: &BlockFault, count: u32, view: &BlockView<'_>) -> PageSet {
        let _ = (seen, count, view);
        PageSet::EMPTY
    }

    /// Somebody has said something about these pages.
    fn hinted(&mut self, pages: PageRange, hint: Hint) {
        let _ = (pages, hint);
    }

    /// The guest has freed these pages: what was known about them is history.
    fn freed(&mut self, pages: PageRange) {
        let _ = pages;
    }

    /// How often [`Self::tick`] is wanted; never if `None`.
    fn tick_interval(&self) -> Option<Duration> {
        None
    }

    /// Some time has passed. Returns what should migrate, at most 8 wishes.
    fn tick(&mut self, now: Duration, seen: Seen) -> Vec<Wish> {
        let _ = (now, seen);
        Vec::new()
    }
}

/// Decides about victims. One instance serves one device; it is told of every folio there.
pub trait EvictionPolicy: Send {
    /// `1 << order` frames from `head` hold as many pages from `page` now.
    fn allocated(&mut self, head: Frame, order: u8, page: Page);
    /// The device used the folio. The notice may be late: the folio may be gone.
    fn touched(&mut self, head: Frame);
    /// The folio was proposed and could not be evicted: others are to be proposed next. It may be gone by now.
    fn refused(&mut self, head: Frame) {
        self.touched(head);
    }
    /// A folio has been cut into halves of this order; the upper half starts at `upper`.
    fn split(&mut self, head: Frame, upper: Frame, order: u8);
    /// The folio is no longer there.
    fn freed(&mut self, head: Frame);
    /// The folios to evict first, of at least `frames` frames together if there are as many.
    fn victims(&mut self, frames: u32) -> Vec<Frame>;
}

/// Makes the policies of a backend.
pub trait PolicyFactory: Send + Sync {
    /// The policy for one shard of guest memory.
    fn fault_policy(&self) -> Box<dyn FaultPolicy>;
    /// The policy for one device with this many frames.
    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy>;
    /// The factory of the policies of one backend, if it is not this one: they may share what those of another backend
    /// must not see. Asked once for each backend.
    fn for_backend(&self) -> Option<Arc<dyn PolicyFactory>> {
        None
    }
    /// The name in reports.
    fn name(&self) -> String;
    /// Everything that decides: all parameters, also those that have their defaults, and checksums of the files it was
    /// read from. Two policies with the same do the same.
    fn exact(&self) -> String {
        self.name()
    }
    /// The files that it was read from, as they were then.
    fn files(&self) -> Vec<PolicyFile> {
        Vec::new()
    }
}
