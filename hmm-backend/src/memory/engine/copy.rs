//! Engine `copy`: device memory is kept apart, and contents are copied.

use std::io;

use super::mover::{Failed, Mover};
use super::recycle::Recycler;
use crate::memory::frames::DeviceMemory;
use crate::memory::guest_pages::GuestPages;
use crate::memory::kernel::{self, Effect, Kernel, KernelCall};
use crate::memory::run::{Passage, Run};
use crate::memory::uffd::Progress;
use crate::pages::{Error, PageRange, Permission};

/// Copies contents.
#[derive(Default)]
pub(in crate::memory) struct Copy {
    /// On kernels that can move pages: they are moved out before they are copied.
    recycler: Option<Recycler>,
}

impl Copy {
    /// Keeps this many bytes of used pages, to bring contents back in them.
    pub(in crate::memory) fn recycling(bytes: u64, kernel: Kernel) -> Result<Copy, Error> {
        Ok(Copy {
            recycler: Some(Recycler::new(bytes, kernel)?),
        })
    }
}

impl Mover for Copy {
    fn take(&self, guest: &GuestPages, run: Run, device: &DeviceMemory, failed: &mut Failed<'_>) {
        let src = guest.address(run.page);
        if let Some(recycler) = &self.recycler {
            let dst = device.address(run.frame);
            // SAFETY: the caller holds the pages' locks and has just allocated the frames.
            unsafe { recycler.take(run.range(), src, dst, failed) };
            return;
        }
        // No CPU sleeps for a frame.
        let late = |_| ();
        let (call, range) = (KernelCall::Take, run.range());
        let effect = Effect::Dropped { src };
        // A second call is made only after one has failed. A failed call may have dropped a part of its pages,
        // and a page that is gone cannot be copied again: from then on each page is checked first.
        let mut calls = 0;
        let take = |at: u32, n: u32| {
            let in_doubt = calls > 0;
            calls += 1;
            let n = if in_doubt { 1 } else { n };
            let part = Run {
                pages: n,
                ..run.skip(at)
            };
            let look = || guest.look(part.page);
            let gone = in_doubt && look().is_ok_and(|it| it.exact && !it.there);
            let done = match gone {
                true => Ok(()),
                false => copy_and_drop(guest, part, device),
            };
            match done {
                Ok(()) => Progress {
                    done: kernel::bytes(n),
                    error: None,
                },
                // The call handles all of its pages or none, as far as is known. Temporary errors have already
                // been repeated.
                Err(error) => Progress {
                    done: 0,
                    error: match error.raw_os_error() {
                        Some(libc::EAGAIN) => Some(libc::EBUSY),
                        errno => errno.or(Some(libc::EIO)),
                    },
                },
            }
        };
        guest.kernel.each(call, range, effect, failed, late, take);
    }

    fn give(&self, guest: &GuestPages, run: Run, device: &DeviceMemory, failed: &mut Failed<'_>) {
        let recycled = match &self.recycler {
            // A move could not protect the pages in the same step.
            Some(recycler) if run.permission == Permission::Writable => {
                let (src, dst) = (device.address(run.frame), guest.address(run.page));
                let mut late = |at| guest.wake_range(PageRange::single(run.page.plus(at)));
                let uffd = guest.shard(run.page);
                // SAFETY: the caller holds the pages' locks, and the words say that the frames hold the contents and
                // that the guest pages are missing.
                unsafe { recycler.give(uffd, run.range(), src, dst, &mut *failed, &mut late) }
            }
            _ => 0,
        };
        if recycled < run.pages {
            let rest = run.skip(recycled);
            let failed = |at, error| failed(recycled + at, error);
            guest.give_copies(rest, device.address(rest.frame), failed);
        }
    }

    fn pass(
        &self,
        _: &GuestPages,
        passage: Passage,
        from: &DeviceMemory,
        to: &DeviceMemory,
        _: &mut Failed<'_>,
    ) {
        let bytes = kernel::bytes(passage.pages) as usize;
        let (src, dst) = (from.address(passage.from), to.address(passage.to));
        // SAFETY: the caller holds the pages' locks, their words name the source's frames, and no device uses them; the
        // destination's frames belong to the caller. The mappings of two devices do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(src as *const u8, dst as *mut u8, bytes) };
    }
}

/// Takes pages by copying them into their frames under write protection, and dropping them.
fn copy_and_drop(guest: &GuestPages, run: Run, device: &DeviceMemory) -> io::Result<()> {
    let start = guest.address(run.page);
    let taken = guest
        .set_permission(run.range(), Permission::ReadOnly)
        .and_then(|()| {
            // SAFETY: the source is present (system pages always are) and can no longer change; the frames belong to
            // the caller. The two mappings do not overlap.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    start as *const u8,
                    device.address(run.frame) as *mut u8,
                    run.bytes() as usize,
                );
            }
            // SAFETY: the frames hold the contents, and no CPU can change the pages any more.
            unsafe { guest.mapping.discard(run.page.offset(), run.bytes()) }
        });
    if taken.is_err() {
        // The failed call may have protected a part of the range.
        guest.lift_protection(run);
    }
    taken
}
