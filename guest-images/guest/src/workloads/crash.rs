//! Ways to fail, for tests of how the virtual machine monitor reports them.

use crate::control;
use crate::cpu::Cpu;
use core::arch::asm;
use core::hint::spin_loop;

/// An address that no memory map of a guest ever has: behind the largest managed memory.
const NOWHERE: u64 = 1 << 40;

pub fn run(cpu: &Cpu) {
    if !cpu.is_leader() {
        return;
    }
    match cpu.param("kind") {
        0 => load(0),
        // SAFETY: the exception ends the run; nothing comes after it.
        1 => unsafe { asm!("ud2", options(noreturn)) },
        2 => control::exit(1),
        3 => panic!("asked to panic"),
        4 => loop {
            spin_loop();
        },
        // SAFETY: nothing is mapped there: the page fault ends the run, nothing comes after it.
        _ => unsafe { asm!("jmp {address}", address = in(reg) NOWHERE, options(noreturn)) },
    }
    panic!("survived the crash");
}

/// Reads from an address that is not mapped.
fn load(address: u64) {
    // SAFETY: the page fault ends the run; should it not, reading memory changes nothing.
    unsafe { asm!("mov {value}, [{address}]", value = out(reg) _, address = in(reg) address) }
}
