//! Modifiers, which change the advice of a fault policy.

mod hints;
mod lapse;
mod modified;
mod thrash;
#[cfg(test)]
mod thrash_tests;

pub use hints::Hints;
pub(super) use modified::{Modified, Timeslice};
pub use thrash::{Thrash, ThrashParams};
