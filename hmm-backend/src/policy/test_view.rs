//! Hand-made blocks for the tests of policies.

use std::time::Duration;

use super::{BlockFault, BlockView};
use crate::pages::time::Tick;
use crate::pages::{Access, Block, DeviceId, Frame, PageSet, Place};
use crate::residency::{BlockWords, Word};

/// Returns the words of a block whose pages in `system` are in system memory and those in `device` on device 0; all
/// other pages are untouched.
pub(crate) fn block(len: usize, system: &PageSet, device: &PageSet) -> BlockWords<'static> {
    let word = |i| {
        if device.contains(i) {
            Word(0).to_private(DeviceId(0), Frame(i as u32), 0)
        } else if system.contains(i) {
            Word(0).to_system(Tick(0))
        } else {
            Word(0)
        }
    };
    BlockWords::read((0..len).map(word).collect())
}

pub(crate) fn view<'a>(words: &'a BlockWords<'_>) -> BlockView<'a> {
    BlockView::of(words)
}

pub(crate) fn fault(pages: impl IntoIterator<Item = usize>, to: Place) -> BlockFault {
    BlockFault {
        block: Block(0),
        pages: pages.into_iter().collect(),
        access: Access::Write,
        to,
        now: Duration::ZERO,
        waited: false,
    }
}
