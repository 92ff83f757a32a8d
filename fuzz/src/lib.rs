//! The functions that the fuzzer calls: each module's `run` takes any bytes and panics on a mistake. Plain
//! functions, so that `cargo test` can replay the corpus without a fuzzer.

mod cli;
pub mod commands;
pub mod configuration;
mod managed;
pub mod requests;
pub mod residency;
pub mod scripts;
pub mod traces;
pub mod virtio;
