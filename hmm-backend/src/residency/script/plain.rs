//! The model's record of a page.

use crate::residency::Residency;

/// The model's state of one page.
#[derive(Clone, Debug)]
pub(super) struct Plain {
    pub(super) residency: Residency,
    pub(super) order: u8,
    pub(super) generation: u16,
    pub(super) pins: u64,
    pub(super) read_only: bool,
    pub(super) until: Option<u32>,
    // The same for all pages of the folio:
    pub(super) locked: bool,
    pub(super) waiters: bool,
    pub(super) mirrored: bool,
}

pub(super) const UNTOUCHED: Plain = Plain {
    residency: Residency::Untouched,
    order: 0,
    generation: 0,
    pins: 0,
    read_only: false,
    until: None,
    locked: false,
    waiters: false,
    mirrored: false,
};

impl Plain {
    pub(super) fn become_(&mut self, residency: Residency, order: u8) {
        self.residency = residency;
        self.order = order;
        self.generation = self.generation.wrapping_add(1) & 0x7fff;
        self.until = None;
        self.mirrored = false;
    }
}
