//! Engine `model`: there are no contents, only the books.

use std::io;

use super::mover::{Failed, Mover};
use crate::memory::frames::DeviceMemory;
use crate::memory::guest_pages::GuestPages;
use crate::memory::presence::Presence;
use crate::memory::run::{Fill, Passage, Run};
use crate::pages::{Page, PageRange, Permission};

/// Makes no system call: what the words say is all there is.
pub(in crate::memory) struct Model;

impl Mover for Model {
    fn fill_zero(&self, _: &GuestPages, _: PageRange, _: Fill, _: &mut Failed<'_>) {}

    fn take(&self, _: &GuestPages, _: Run, _: &DeviceMemory, _: &mut Failed<'_>) {}

    fn give(&self, _: &GuestPages, _: Run, _: &DeviceMemory, _: &mut Failed<'_>) {}

    fn pass(
        &self,
        _: &GuestPages,
        _: Passage,
        _: &DeviceMemory,
        _: &DeviceMemory,
        _: &mut Failed<'_>,
    ) {
    }

    fn set_permission(&self, _: &GuestPages, _: PageRange, _: Permission) -> io::Result<()> {
        Ok(())
    }

    fn lift_protection(&self, _: &GuestPages, _: Run) {}

    fn discard(&self, _: &GuestPages, _: PageRange) -> io::Result<()> {
        Ok(())
    }

    fn wake(&self, _: &GuestPages, _: PageRange) {}

    fn look(&self, _: &GuestPages, _: Page) -> io::Result<Presence> {
        Ok(Presence::REACHED)
    }
}
