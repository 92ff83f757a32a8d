//! The virtual machine monitor: KVM, vCPUs, guests, configuration.
//!
//! [`run()`] takes a [`Config`] to a [`Report`]; that is what the `hmmvisor` command does. Those who want
//! to look at a guest, or disturb it, while it runs put together a [`vm::Vm`] themselves.
//!
//! | module | what |
//! |---|---|
//! | `run` | from a configuration to a report |
//! | `config`, `placement` | what to run, checked; on which host CPUs |
//! | `policy_scripts` | scripts among the policies, reloaded when they change |
//! | `report`, `summary` | the figures, for programs and for people |
//! | `outputs` | the files that a run is made of, and those that it writes |
//! | `recording` | events into a trace |
//! | `host` | what the host offers: CPUs, memory, files |
//! | `check` | whether this host can run guests |
//! | `vm` | a virtual machine put together |
//! | `machine` | the parts of it that are KVM's, and what connects devices to them |
//! | `guest` | what runs in it: a small program, or an operating system's kernel |
//! | `virtio`, `balloon` | the virtio devices of a configuration; what one of them is asked, and was good for |
//! | `console` | the serial port, and its output and input on the host |
//! | `chaos` | what the host does to a guest that runs `torture` |
//! | `ending` | how a run ends: the reasons, and the event that says so |
//! | `event_loop`, `signals`, `progress` | what waits for the end |

pub mod balloon;
mod chaos;
pub mod check;
pub mod config;
pub mod console;
pub mod ending;
mod event_loop;
pub mod guest;
pub mod host;
pub mod machine;
pub mod outputs;
pub mod placement;
mod policy_scripts;
pub mod progress;
mod recording;
pub mod report;
mod run;
pub mod signals;
pub mod summary;
pub mod virtio;
pub mod vm;

pub use chaos::ChaosFigures;
pub use config::Config;
pub use console::thread::Input;
pub use ending::End;
pub use ending::failure::Failure;
pub use hmmvisor_experiments::size;
pub use machine::memory_errors::OnMemoryError;
pub use recording::RecordingFigures;
pub use report::Report;
pub use run::{Options, RunError, run};
