//! The embedded guest's workloads without a virtual machine: which pages they access, in which order.
//!
//! This crate compiles the guest's own sources, all but the few that touch hardware, and runs them in this process.
//! The modules that replace those are `mmio` (devices), `word` (words of managed memory, which report each access) and
//! `exit`. Accelerators' commands are executed by the accelerator's own kernels. So a trace has the accesses of the
//! guest's own code, with no model of it to keep up to date; and a workload verifies its results here, too.
//!
//! One vCPU runs at a time, until it waits for another one: the same parameters always give the same trace.

#[path = "../../../guest-images/guest/src/accel.rs"]
#[allow(dead_code, reason = "some workloads do not run here")]
mod accel;
#[path = "../../../guest-images/src/catalog.rs"]
#[allow(dead_code, reason = "some workloads do not run here")]
mod catalog;
#[path = "../../../guest-images/guest/src/cmdline.rs"]
mod cmdline;
#[path = "../../../guest-images/guest/src/command.rs"]
#[allow(dead_code, reason = "some workloads do not run here")]
mod command;
#[path = "../../../guest-images/guest/src/console.rs"]
#[allow(dead_code, reason = "failures are reported otherwise here")]
mod console;
#[path = "../../../guest-images/guest/src/control.rs"]
#[allow(dead_code, reason = "some workloads do not run here")]
mod control;
#[path = "../../../guest-images/guest/src/cpu.rs"]
mod cpu;
#[path = "../../../guest-images/guest/src/csr.rs"]
mod csr;
#[path = "../../../guest-images/guest/src/devices.rs"]
#[allow(dead_code, reason = "some workloads do not run here")]
mod devices;
mod exit;
mod machine;
#[path = "../../../guest-images/guest/src/memory.rs"]
#[allow(dead_code, reason = "some workloads do not run here")]
mod memory;
mod mmio;
#[path = "../../../guest-images/guest/src/pages.rs"]
mod pages;
#[path = "../../../guest-images/guest/src/pattern.rs"]
mod pattern;
#[path = "../../../guest-images/guest/src/random.rs"]
mod random;
mod run;
#[path = "../../../guest-images/guest/src/sync.rs"]
#[allow(dead_code, reason = "some workloads do not run here")]
mod sync;
mod turns;
#[path = "../../../guest-images/guest/src/verify.rs"]
mod verify;
mod word;
mod workloads;

pub use run::{AccessError, Settings, check, generate};
