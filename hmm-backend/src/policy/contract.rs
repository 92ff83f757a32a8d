//! The traits that a policy implements and the backend calls.

use std::sync::Arc;
use std::time::Duration;

use super::advice::{Advice, Wish};
use super::file::PolicyFile;
use super::view::{BlockFault, BlockView, Seen};
use crate::pages::{Access, BLOCK_PAGES, Frame, Hint, Page, PageRange, PageSet};

const _: () = assert!(BLOCK_PAGES == 512, "page sets and views cover one block");

/// Decides what to do about faults. One instance serves one shard of guest memory.
pub trait FaultPolicy: Send {
    /// Returns the advice for the faults on one block. The faulting pages are served whatever it says.
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice;

    /// Called when a device asks for the translation of a page that is in its memory already: the first use of a page that was
    /// brought before the device needed it.
    fn used(&mut self, page: Page) {
        let _ = page;
    }

    /// The number of accesses in place by a device to a 64 KiB group of system memory after which
    /// [`Self::remote_accesses`] is called; `None` if it is never called.
    fn remote_access_threshold(&self) -> Option<u32> {
        None
    }

    /// Called when the device `seen.to` has accessed the pages `seen.pages` in place, in system memory, `count` times
    /// each or more since they got there. Returns the pages that should migrate to the device.
    fn remote_accesses(&mut self, seen: &BlockFault, count: u32, view: &BlockView<'_>) -> PageSet {
        let _ = (seen, count, view);
        PageSet::EMPTY
    }

    /// The guest or the user has given a hint about these pages.
    fn hinted(&mut self, pages: PageRange, hint: Hint) {
        let _ = (pages, hint);
    }

    /// The guest has freed these pages: what the policy knows about them is out of date.
    fn freed(&mut self, pages: PageRange) {
        let _ = pages;
    }

    /// The interval at which [`Self::tick`] is called; `None` if it is never called.
    fn tick_interval(&self) -> Option<Duration> {
        None
    }

    /// Called at about the interval of [`Self::tick_interval`]. Returns pages that should migrate, as at most 8
    /// wishes.
    fn tick(&mut self, now: Duration, seen: Seen) -> Vec<Wish> {
        let _ = (now, seen);
        Vec::new()
    }
}

/// Chooses the folios to evict. One instance serves one device and is told of every folio in the device's memory.
pub trait EvictionPolicy: Send {
    /// A new folio of `1 << order` frames from `head` on holds the pages from `page` on.
    fn allocated(&mut self, head: Frame, order: u8, page: Page);
    /// The device used the folio this many times since it was allocated, or since the last notice. The access that the folio was
    /// allocated for does not count. The notice may be late: the folio may be gone already.
    fn touched(&mut self, head: Frame, times: u32);
    /// The folio was proposed and could not be evicted; other folios should be proposed next. The folio may be gone
    /// already.
    fn refused(&mut self, head: Frame) {
        self.touched(head, 1);
    }
    /// A folio was cut into halves of this order; the upper half starts at `upper`.
    fn split(&mut self, head: Frame, upper: Frame, order: u8);
    /// The folio was freed.
    fn freed(&mut self, head: Frame);
    /// Returns the folios to evict first, with at least `frames` frames in total if there are as many. If the device has
    /// accessed bits, the policy may look at them in `bits`.
    fn victims(&mut self, frames: u32, bits: &mut dyn AccessedBits) -> Vec<Frame>;
}

/// The accessed and dirty bits in a device's page table ([`crate::pages::Fidelity::Bits`]).
pub trait AccessedBits {
    /// Whether the device has such bits.
    fn there(&self) -> bool;
    /// Tests and clears the bits of the folio that starts at `head`. Returns how the device has accessed it since the bits were
    /// cleared last, or since the folio was allocated; `None` if not at all, or if there are no bits.
    fn take(&mut self, head: Frame) -> Option<Access>;
}

/// The bits of a device that has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBits;

impl AccessedBits for NoBits {
    fn there(&self) -> bool {
        false
    }

    fn take(&mut self, _: Frame) -> Option<Access> {
        None
    }
}

/// Creates the policies of a backend.
pub trait PolicyFactory: Send + Sync {
    /// Creates the policy for one shard of guest memory.
    fn fault_policy(&self) -> Box<dyn FaultPolicy>;
    /// Creates the policy for one device with this many frames.
    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy>;
    /// Returns a separate factory for one backend, or `None` to use this one. A factory whose policies share state
    /// needs this, because policies of another backend must not see that state. It has the same name and files. Called once for each backend.
    fn for_backend(&self) -> Option<Arc<dyn PolicyFactory>> {
        None
    }
    /// The name in reports.
    fn name(&self) -> String;
    /// The name with everything that determines the behaviour: all parameters, including defaults, and checksums of
    /// the files that the policy was read from. Policies with equal exact names behave the same.
    fn exact(&self) -> String {
        self.name()
    }
    /// The files that the policy was read from, with the checksums of their contents at that time.
    fn files(&self) -> Vec<PolicyFile> {
        Vec::new()
    }
}
