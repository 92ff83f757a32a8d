//! The virtual machine monitor: KVM, vCPUs, guests, configuration.
//!
//! [`run()`] takes a [`Config`] to a [`Report`]; that is what the `hmmvisor` command does. Those who want
//! to look at a guest, or disturb it, while it runs put together a [`vm::Vm`] themselves.
//!
//! | module | what |
//! |---|---|
//! | `run` | from a configuration to a report |
//! | `api` | what a running machine answers at its socket |
//! | `config` | what to run, checked |
//! | `host` | what the host offers: CPUs, memory, files |
//! | `vm` | a virtual machine put together |
//! | `machine` | the parts of it that are KVM's, and what connects devices to them |
//! | `guest` | what runs in it: a small program, or an operating system's kernel |
//! | `console` | the serial port, and its output and input on the host |
//! | `messages` | what the process says on standard error |
//! | `outlet` | the thread that writes output out of a bounded queue: the console's, and messages |
//! | `ending` | how a run ends: the reasons, and the event that says so |

pub mod api;
pub mod config;
pub mod console;
pub mod ending;
pub mod guest;
pub mod host;
pub mod machine;
pub mod messages;
pub mod outlet;
pub mod run;
pub mod sandbox;
pub mod vm;

pub use config::Config;
pub use console::thread::Input;
pub use ending::End;
pub use ending::failure::Failure;
pub use hmmvisor_experiments::size;
pub use machine::memory_errors::OnMemoryError;
pub use run::recording::RecordingFigures;
pub use run::report::Report;
pub use run::{Options, RunError, run};
