//! All accelerators, and work spread over them.
//!
//! Accelerator `d` belongs to vCPU `d mod vCPUs`: that one drives it in collective operations and gets
//! its interrupts. Outside of them, any vCPU may use any accelerator, one vCPU at a time.

use crate::accel::Accel;
use crate::command;
use crate::cpu::{Cpu, share};
use crate::exit::fail;
use crate::memory::{self, PAGE_WORDS, Words};
use crate::sync::SpinLock;
use core::ops::Range;
use hmmvisor_abi::accel::{
    Command, HINT_ACCESSED, HINT_PREFER_DEVICE, HINT_PREFER_SYSTEM, HINT_READ_MOSTLY,
};
use hmmvisor_abi::control::EXIT_USAGE;
use hmmvisor_abi::map::MAX_ACCELS;

/// Elements that one command of a split operation works on: enough to be worth a command, few enough
/// for a queue to have several of them.
const CHUNK: u64 = 128 * PAGE_WORDS;

static DEVICES: [SpinLock<Option<Accel>>; MAX_ACCELS as usize] = [const { SpinLock::new(None) }; _];

/// Sets up all accelerators; done by the leader.
pub fn start(cpu: &Cpu) {
    if cpu.devices() == 0 {
        fail!(
            EXIT_USAGE,
            "workload {} needs an accelerator",
            cpu.params.workload.name
        );
    }
    let interrupts = cpu.param("wait") == 1;
    for device in 0..cpu.devices() {
        let accel = Accel::start(cpu.boot, device, interrupts.then_some(device % cpu.count()));
        *DEVICES[device as usize].lock() = Some(accel);
    }
}

/// Disables the queues of all accelerators that were set up; done by the leader.
pub fn stop() {
    for device in &DEVICES {
        if let Some(accel) = &mut *device.lock() {
            accel.disable();
        }
    }
}

/// Uses one accelerator, with its lock held.
pub fn with<R>(device: u64, work: impl FnOnce(&mut Accel) -> R) -> R {
    work(
        DEVICES[device as usize]
            .lock()
            .as_mut()
            .expect("the leader sets up all accelerators"),
    )
}

/// Executes a command on one accelerator; the answer is its result.
pub fn run(device: u64, command: Command) -> u64 {
    with(device, |accel| accel.run(command))
}

/// Gives each accelerator its commands and waits for all; the answer is the sum of the results.
/// Collective, with barriers at both ends: the devices see what the vCPUs did before and the other way
/// round.
pub fn on_each<I: IntoIterator<Item = Command>>(cpu: &Cpu, commands: impl Fn(u64) -> I) -> u64 {
    cpu.barrier();
    for device in cpu.own_devices() {
        with(device, |accel| {
            commands(device)
                .into_iter()
                .for_each(|command| accel.push(command));
            accel.kick();
        });
    }
    cpu.sum(
        cpu.own_devices()
            .map(|device| with(device, Accel::finish))
            .fold(0, u64::wrapping_add),
    )
}

/// The same for one accelerator and one command.
pub fn on_one(cpu: &Cpu, device: u64, command: Command) -> u64 {
    on_each(cpu, |each| (each == device).then_some(command))
}

/// Spreads work on `len` elements over the accelerators: `commands` says how to do a range of it.
/// Otherwise like `on_each`.
pub fn split<I>(cpu: &Cpu, len: u64, commands: impl Fn(Range<u64>) -> I) -> u64
where
    I: IntoIterator<Item = Command>,
{
    let commands = &commands;
    on_each(cpu, |device| {
        let part = share(len, PAGE_WORDS, cpu.devices(), device);
        let end = part.end;
        part.step_by(CHUNK as usize)
            .flat_map(move |start| commands(start..end.min(start + CHUNK)))
    })
}

/// Tells accelerators that pieces of memory are no longer needed; they read as zeros then. Collective.
pub fn free(cpu: &Cpu, pieces: &[Words]) {
    on_each(cpu, |device| {
        pieces
            .iter()
            .skip(device as usize)
            .step_by(cpu.devices() as usize)
            .map(|words| command::free(*words))
    });
}

/// Tells accelerators what the parameter `hint` says about pieces of memory, if anything. Collective.
pub fn hint(cpu: &Cpu, pieces: &[Words]) {
    let hint = match cpu.param("hint") {
        0 => return,
        1 => HINT_PREFER_SYSTEM,
        2 => HINT_PREFER_DEVICE,
        3 => HINT_ACCESSED,
        _ => HINT_READ_MOSTLY,
    };
    on_each(cpu, |device| {
        // Of these, each accelerator says only that it accesses the pieces; one speaks for all about the rest.
        let says = device == 0 || hint == HINT_ACCESSED;
        let pieces = if says { pieces } else { &[] };
        pieces.iter().map(move |words| command::hint(*words, hint))
    });
}

/// The same as `free` for one piece, by one accelerator and without the other vCPUs.
pub fn free_one(device: u64, words: Words) {
    run(device, command::free(words));
}

/// Frees a piece and makes it available for another `alloc`.
pub fn release(device: u64, words: Words) {
    free_one(device, words);
    memory::give_back(words);
}
