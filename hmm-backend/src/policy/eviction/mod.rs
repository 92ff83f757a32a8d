//! Eviction policies: which folios leave a device's memory first.

mod aging;
mod by_migration;
mod clock;
mod fifo;
mod ghost;
mod lfu;
mod lists;
mod lru;
#[cfg(test)]
mod model;
mod s3_fifo;
#[cfg(test)]
mod tests;

pub use by_migration::ByMigration;
pub use clock::Clock;
pub use fifo::Fifo;
pub use lfu::Lfu;
pub use lru::Lru;
pub use s3_fifo::{Fill, S3Fifo};
