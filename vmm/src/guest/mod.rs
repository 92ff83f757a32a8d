//! Guests: small programs that know their machine, and operating systems.
//!
//! The trait [`Guest`] has one implementation for each of the two, in `program/` and in `linux/`.

mod error;
pub mod linux;
pub mod program;
mod x86;

use std::sync::Arc;

use hmm_backend::{Backend, BackendConfig};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::EventFd;

use crate::console::serial::Console;
use crate::ending::Ending;
use crate::machine::bus::Bus;
use crate::machine::kvm_machine::{Machine, MachineError};
use crate::machine::slots::SlotInfo;
use crate::outlet::Outlet;
use program::control::Control;

pub use error::GuestError;

/// What runs in a virtual machine. [`crate::vm::Vm::new`] calls all methods but the first, in this order.
pub trait Guest {
    /// Returns how managed memory is to be made for this guest, which is to have `bytes` of it.
    fn memory(&self, bytes: u64) -> BackendConfig;

    /// Makes the machine that the guest fits into, or says why the guest fits into none.
    fn machine(&self, vcpus: u32, managed: Option<Arc<Backend>>) -> Result<Machine, GuestError>;

    /// Puts the guest into memory. Faults on managed memory are served by now; `slots` are the devices that the guest is to find.
    fn load(&mut self, machine: &Machine, slots: &[SlotInfo]) -> Result<(), GuestError>;

    /// Makes the buses with the devices that this kind of guest has in any case.
    fn board(&self, machine: &Machine, parts: BoardParts<'_>) -> Result<Board, GuestError>;

    /// Makes vCPU number `index`, ready to run the guest.
    fn vcpu(&self, machine: &Machine, index: u32) -> Result<VcpuFd, MachineError>;

    /// Tells the guest what is known only when devices and vCPUs have been made. `tsc_khz` is 0 where it is unknown.
    fn describe(
        &self,
        machine: &Machine,
        accelerators: u32,
        tsc_khz: u32,
    ) -> Result<(), GuestError>;
}

/// What [`Guest::board`] makes devices of.
pub struct BoardParts<'a> {
    /// Where the serial port's output goes.
    pub(crate) output: Outlet,
    /// The control device, for guests that know it.
    pub(crate) control: &'a Arc<Control>,
    /// The end of the run, for devices that must end it.
    pub(crate) ending: &'a Arc<Ending>,
}

/// The buses of a machine, the serial port on them, and the power button of guests that know one: writing to it presses it.
pub struct Board {
    pub(crate) console: Arc<Console>,
    pub(crate) power_button: Option<EventFd>,
    pub(crate) mmio: Bus,
    pub(crate) ports: Bus,
}
