//! The simplest policy: migrate the touched pages only.

use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy};

/// Migrates the faulting pages only.
#[derive(Debug, Default)]
pub struct OnDemand;

impl FaultPolicy for OnDemand {
    fn advise(&mut self, _: &BlockFault, _: &BlockView<'_>) -> Advice {
        Advice::default()
    }
}
