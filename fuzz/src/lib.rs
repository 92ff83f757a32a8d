//! What the fuzzer calls: each module's `run` takes any bytes and panics where something is wrong. Plain
//! functions, so that `cargo test` can replay the corpus without a fuzzer.

pub mod commands;
pub mod configuration;
pub mod residency;

/// The command line is part of the program, not of its library.
#[path = "../../vmm/src/cli.rs"]
#[allow(dead_code)]
mod cli;
