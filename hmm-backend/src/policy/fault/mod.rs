//! Fault policies: what moves with a faulting page.

mod access_counter;
mod adaptive;
mod density;
mod first_touch;
mod on_demand;
mod placement;
mod sequential;

pub use access_counter::AccessCounter;
pub use adaptive::Adaptive;
pub use density::Density;
pub use first_touch::FirstTouch;
pub use on_demand::OnDemand;
pub(super) use placement::Placement;
pub use placement::{PlacementError, Static};
pub use sequential::Sequential;
