//! The parts of a virtual machine that are KVM's, and what connects devices to them.
//!
//! | module | what |
//! |---|---|
//! | `kvm` | opening `/dev/kvm`: what is needed of it |
//! | `kvm_machine` | memory slots, interrupt controller, vCPUs |
//! | `guest_memory` | the VMM's own view of managed memory |
//! | `interrupts`, `slots`, `bus` | an interrupt line, a window and a doorbell for each device |
//! | `vcpu`, `vcpu_threads`, `pause` | running vCPUs, pausing and stopping them |
//! | `exception` | what a guest's ring-0 code says of an exception |
//! | `memory_errors`, `machine_check` | pages that cannot be supplied: telling the vCPU, telling the guest |

pub mod bus;
pub mod exception;
pub mod guest_memory;
pub mod interrupts;
pub mod kvm;
pub mod kvm_machine;
pub(crate) mod machine_check;
pub mod memory_errors;
pub mod pause;
pub(crate) mod slots;
pub mod vcpu;
pub mod vcpu_threads;
