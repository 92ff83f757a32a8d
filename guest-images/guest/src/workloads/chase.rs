//! Accelerators and CPUs follow one random cycle of pointers through all of an array.

use super::{Count, report};
use crate::command::chase;
use crate::cpu::Cpu;
use crate::devices;
use crate::memory::{Words, alloc};
use crate::random::{Random, hash_below};
use crate::verify;

pub fn run(cpu: &Cpu) {
    let (len, steps) = (cpu.param("len"), cpu.param("steps"));
    let next = cpu.broadcast(|| {
        let next = alloc("the cycle", len);
        make_cycle(next, &mut cpu.random());
        next
    });
    for device in cpu.own_devices() {
        let start = hash_below(cpu.boot.seed, device, len);
        let end = devices::run(device, chase(next, start, steps));
        let expected = (0..steps).fold(start, |at, _| next.get(at));
        verify::value("end of an accelerator's walk", expected, end);
        cpu.progress(device + 1, cpu.devices());
    }
    report!(
        cpu,
        "each accelerator's {} through {} right",
        Count(steps, "step"),
        Count(len, "element")
    );
}

/// Sattolo's algorithm: a permutation that is a single cycle.
fn make_cycle(next: Words, random: &mut Random) {
    next.fill(0..next.len(), |i| i);
    for i in (1..next.len()).rev() {
        let other = random.below(i);
        let value = next.get(i);
        next.set(i, next.get(other));
        next.set(other, value);
    }
}
