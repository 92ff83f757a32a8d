//! What an engine does.

use std::io;

use crate::memory::frames::DeviceMemory;
use crate::memory::guest_pages::GuestPages;
use crate::memory::presence::Presence;
use crate::memory::ranged::EngineError;
use crate::memory::run::{Fill, Passage, Run};
use crate::pages::{Page, PageRange, Permission};

/// Gets the index of a page within the range or run of a call, and why the call failed for it.
pub(in crate::memory) type Failed<'a> = dyn FnMut(u32, EngineError) + 'a;

/// An engine: it moves contents. The caller of each step holds the locks of the pages.
pub(in crate::memory) trait Mover: Send + Sync {
    /// Fills untouched pages with zeros and wakes the CPUs that wait for them. `failed` gets each page that could not be
    /// filled.
    fn fill_zero(&self, guest: &GuestPages, range: PageRange, fill: Fill, failed: &mut Failed<'_>) {
        guest.fill_zero(range, fill, failed);
    }

    /// Takes pages away from CPUs: afterwards they are missing in the guest, and the frames hold the contents.
    /// `failed` gets the pages that stay in the guest unchanged; their frames may hold dead contents.
    fn take(&self, guest: &GuestPages, run: Run, device: &DeviceMemory, failed: &mut Failed<'_>);

    /// Brings contents back to system memory: fills the missing guest pages from the frames, atomically for CPUs, and
    /// wakes the CPUs that wait for them. Read-only pages are copied by every engine, because a move cannot protect the
    /// page in the same step; their frames keep the contents.
    fn give(&self, guest: &GuestPages, run: Run, device: &DeviceMemory, failed: &mut Failed<'_>);

    /// Passes contents from one device's frames to another's, and leaves guest memory alone. `failed` gets the pages whose
    /// contents are still where they were; their new frames may hold dead contents.
    fn pass(
        &self,
        guest: &GuestPages,
        passage: Passage,
        from: &DeviceMemory,
        to: &DeviceMemory,
        failed: &mut Failed<'_>,
    );

    /// Protects pages of one block against writes by CPUs, or lifts the protection and wakes the writers. The pages
    /// must be present.
    fn set_permission(
        &self,
        guest: &GuestPages,
        range: PageRange,
        permission: Permission,
    ) -> io::Result<()> {
        guest.set_permission(range, permission)
    }

    /// Lets CPUs write again, unless the pages are read-only, and wakes the writers.
    fn lift_protection(&self, guest: &GuestPages, run: Run) {
        guest.lift_protection(run);
    }

    /// Gives the memory of system pages back to the host. Their contents must be dead or copied to a frame.
    fn discard(&self, guest: &GuestPages, range: PageRange) -> io::Result<()> {
        guest.discard(range)
    }

    /// Wakes CPUs that sleep in faults on these pages of one block. The CPUs then execute the access again.
    fn wake(&self, guest: &GuestPages, range: PageRange) {
        guest.wake_range(range);
    }

    /// Returns the state of a page that CPUs reach by its word, from the page tables.
    fn look(&self, guest: &GuestPages, page: Page) -> io::Result<Presence> {
        guest.look(page)
    }
}
