//! The engines: three ways to move contents between guest memory and device memory.

mod blank;
mod choice;
mod copy;
mod model;
mod mover;
mod recycle;
mod remap;

pub use choice::{Engine, EngineChoice};
pub(super) use copy::Copy;
pub(super) use model::Model;
pub(super) use mover::Mover;
pub(super) use remap::Remap;
