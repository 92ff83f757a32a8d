//! Hmmvisor's embedded guest: one freestanding program with all workloads.
//!
//! All vCPUs run the same code from [`_start`] on, in ring 3, without an operating system. vCPU 0
//! (the *leader*) sets up memory and the accelerators; then all run the workload's `run` function
//! together, meeting at barriers. Wrong data ends the run at once, with a message and an exit
//! code; a run that reaches its end has verified everything.
#![no_std]
#![no_main]

mod accel;
#[path = "../../src/catalog.rs"]
mod catalog;
mod cmdline;
mod command;
mod console;
mod control;
mod cpu;
mod csr;
mod devices;
mod exit;
mod mem;
mod memory;
mod memory_error;
mod mmio;
mod pages;
mod pattern;
mod random;
mod sync;
mod verify;
mod word;
mod workloads;

use catalog::Kind;
use core::arch::naked_asm;
use cpu::Cpu;
use hmmvisor_abi::{BootInfo, agent};

/// The ELF entry point of every vCPU; registers as in `hmmvisor_abi::boot`, which are those of a
/// call of `start`. A zero frame pointer ends stack traces.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "jmp {start}", start = sym start)
}

extern "C" fn start(boot: *const BootInfo, index: u64) -> ! {
    // SAFETY: the ABI passes the address of the boot information, which no vCPU writes.
    let boot = unsafe { &*boot };
    let cpu = Cpu::enter(boot, index);
    if cpu.is_leader() {
        match cpu.params.workload.kind {
            Kind::Crash => {}
            // All pages but the last ones are the test's.
            Kind::Agent => {
                if cpu.devices() > 0 {
                    let end = boot.memory_base + boot.memory_size;
                    memory::init(end - agent::RESERVED, agent::RESERVED);
                    devices::start(&cpu);
                }
            }
            _ => {
                memory::init(boot.memory_base, boot.memory_size);
                devices::start(&cpu);
            }
        }
    }
    cpu.barrier();
    workloads::run(&cpu);
    cpu.barrier();
    if cpu.is_leader() {
        devices::stop();
        control::exit(0);
    }
    control::park();
}
