//! A radix sort from the lowest digit up: CPUs count and place, accelerators move.

use super::report;
use crate::command::scatter;
use crate::cpu::Cpu;
use crate::devices;
use crate::memory::{Words, alloc};
use crate::random::hash_below;
use crate::verify;

/// Bits of a digit.
const DIGIT: u64 = 4;
const VALUES: usize = 1 << DIGIT;

pub fn run(cpu: &Cpu) {
    let (n, digits) = (cpu.param("n"), cpu.param("digits"));
    let [mut from, mut to, places] =
        cpu.broadcast(|| ["keys", "sorted keys", "places"].map(|name| alloc(name, n)));
    let key = |i| hash_below(cpu.boot.seed, i, 1 << (DIGIT * digits));
    from.fill(cpu.share(n), key);
    for digit in 0..digits {
        cpu.barrier();
        cpu.broadcast(|| place(from, places, digit));
        devices::split(cpu, n, |part| {
            [scatter(to, from.slice(part.clone()), places.slice(part))]
        });
        (from, to) = (to, from);
        cpu.progress(digit + 1, digits);
    }
    let mut sum = 0u64;
    for i in cpu.share(n) {
        let (before, here) = (from.get(i.saturating_sub(1)), from.get(i));
        verify::value("smaller keys after a key", 0, u64::from(before > here));
        sum = sum.wrapping_add(here);
    }
    let expected = cpu.share(n).map(key).fold(0, u64::wrapping_add);
    verify::value("sum of the keys", cpu.sum(expected), cpu.sum(sum));
    report!(cpu, "{n} keys of {digits} digits sorted right");
}

/// Computes where each key goes: keys with the same digit stay in their order.
fn place(keys: Words, places: Words, digit: u64) {
    let digit = |key: u64| (key >> (DIGIT * digit)) as usize % VALUES;
    let mut counts = [0; VALUES];
    for i in 0..keys.len() {
        counts[digit(keys.get(i))] += 1;
    }
    let mut next = 0;
    for count in &mut counts {
        (*count, next) = (next, next + *count);
    }
    for i in 0..keys.len() {
        let at = &mut counts[digit(keys.get(i))];
        places.set(i, *at);
        *at += 1;
    }
}
