//! The API of a running machine: what is said over its socket. Server, client and tests share these types.
//!
//! | module | what |
//! |---|---|
//! | `vm` | the machine as a whole, its balloon, its recording |
//! | `memory` | where pages are, moving them, and what may be done with them |
//! | `policy` | what decides where |
//! | `devices` | the accelerators, and provoking their drivers |
//! | `operations` | requests that take long, while they are carried out |
//! | `events` | what has happened |
//! | `problem` | errors, as RFC 9457 has them |
//! | `client` | requests to a machine's socket |
//!
//! The crate knows neither KVM nor the backend.

mod client;
mod devices;
mod events;
mod memory;
mod operations;
mod policy;
mod problem;
mod vm;

pub use client::{Answer, Client, ClientError};
pub use devices::{
    Device, Devices, Outcome, Provocation, Provocations, Provoke, SetDevice, WayPoint,
};
pub use events::Event;
pub use memory::{
    Byte, Hint, Memory, Migrate, Migrated, Pages, Permission, Pin, Pins, Poison, Protect,
    Residency, Run, Where,
};
pub use operations::{Doing, Operation, Operations};
pub use policy::{Policy, SetPolicy};
pub use problem::Problem;
pub use vm::{Balloon, Pause, PausedCommands, Record, Recording, SetBalloon, Vm, VmState};
