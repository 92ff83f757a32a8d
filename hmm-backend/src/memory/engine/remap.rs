//! Engine `remap`: pages move with `UFFDIO_MOVE` (Linux 6.8).

use super::blank::Blank;
use super::mover::{Failed, Mover};
use crate::memory::frames::DeviceMemory;
use crate::memory::guest_pages::GuestPages;
use crate::memory::kernel::{self, Effect, KernelCall};
use crate::memory::run::{Fill, Passage, Run};
use crate::pages::{BLOCK_PAGES, Error, PageRange, Permission};

/// Moves pages. Device memory must be registered with a userfaultfd.
#[derive(Default)]
pub(in crate::memory) struct Remap {
    blank: Option<Blank>,
}

impl Remap {
    /// Fills untouched blocks as a whole, in huge pages where the host has some.
    pub(in crate::memory) fn filling_blocks() -> Result<Remap, Error> {
        Ok(Remap {
            blank: Some(Blank::new()?),
        })
    }
}

impl Mover for Remap {
    fn fill_zero(&self, guest: &GuestPages, range: PageRange, fill: Fill, failed: &mut Failed<'_>) {
        let whole = u64::from(range.len()) == BLOCK_PAGES && fill == Fill::Memory;
        let blank = self.blank.as_ref().filter(|_| whole).and_then(Blank::zeros);
        let Some(blank) = blank else {
            return guest.fill_zero(range, fill, failed);
        };
        let uffd = guest.shard(range.start);
        let effect = Effect::Moved {
            src: blank.address(0),
            dst: guest.address(range.start),
        };
        let fill = |at: u32, left: u32| {
            let start = guest.address(range.start.plus(at));
            // SAFETY: the pages are locked by the caller and untouched; the zeros belong to this call.
            unsafe { uffd.move_pages(start, blank.address(at), kernel::bytes(left)) }
        };
        let late = |at| guest.wake_range(PageRange::single(range.start.plus(at)));
        let call = KernelCall::Fill;
        guest.kernel.each(call, range, effect, failed, late, fill);
    }

    fn take(&self, guest: &GuestPages, run: Run, device: &DeviceMemory, failed: &mut Failed<'_>) {
        let (src, dst) = (guest.address(run.page), device.address(run.frame));
        let uffd = device.uffd();
        // No CPU sleeps for a frame.
        let late = |_| ();
        let effect = Effect::Moved { src, dst };
        let call = KernelCall::Take;
        guest
            .kernel
            .each(call, run.range(), effect, failed, late, |at, n| {
                let offset = kernel::bytes(at);
                // SAFETY: the caller holds the pages' locks and has just allocated the frames.
                unsafe { uffd.move_pages(dst + offset, src + offset, kernel::bytes(n)) }
            });
    }

    fn give(&self, guest: &GuestPages, run: Run, device: &DeviceMemory, failed: &mut Failed<'_>) {
        if run.permission == Permission::ReadOnly {
            return guest.give_copies(run, device.address(run.frame), failed);
        }
        let uffd = guest.shard(run.page);
        let (src, dst) = (device.address(run.frame), guest.address(run.page));
        let late = |at| guest.wake_range(PageRange::single(run.page.plus(at)));
        let effect = Effect::Moved { src, dst };
        let call = KernelCall::Give;
        guest
            .kernel
            .each(call, run.range(), effect, failed, late, |at, n| {
                let (offset, len) = (kernel::bytes(at), kernel::bytes(n));
                // SAFETY: the caller holds the pages' locks, and the words say that the frames hold the contents and
                // that the guest pages are missing.
                unsafe { uffd.move_pages(dst + offset, src + offset, len) }
            });
    }

    fn pass(
        &self,
        guest: &GuestPages,
        passage: Passage,
        from: &DeviceMemory,
        to: &DeviceMemory,
        failed: &mut Failed<'_>,
    ) {
        let (src, dst) = (from.address(passage.from), to.address(passage.to));
        let uffd = to.uffd();
        let effect = Effect::Moved { src, dst };
        // No CPU sleeps for a frame.
        let late = |_| ();
        let (call, range) = (KernelCall::Pass, passage.range());
        guest
            .kernel
            .each(call, range, effect, failed, late, |at, n| {
                let offset = kernel::bytes(at);
                // SAFETY: the caller holds the pages' locks, and their words name the source's frames, which no device
                // uses any more; the destination's frames have just been allocated, or emptied by the way there.
                unsafe { uffd.move_pages(dst + offset, src + offset, kernel::bytes(n)) }
            });
    }
}
