//! Copy, scale and add, as in the STREAM benchmark, with inputs that the CPUs write in each round.

use super::{Count, Grouped, report};
use crate::command::{copy, triad};
use crate::cpu::Cpu;
use crate::devices;
use crate::memory::alloc;
use crate::random::{hash, hash_below};
use crate::verify;

pub fn run(cpu: &Cpu) {
    let (n, rounds) = (cpu.param("n"), cpu.param("rounds"));
    let [a, b, c] =
        cpu.broadcast(|| ["vector a", "vector b", "vector c"].map(|name| alloc(name, n)));
    for round in 0..rounds {
        let seed = hash(cpu.boot.seed, round);
        // Small integers, so that the doubles are exact whatever the order of operations.
        let input = |i| hash_below(seed, i, 4096);
        let factor = 2 + round % 7;
        a.fill(cpu.share(n), |i| double(input(i)));
        devices::split(cpu, n, |part| {
            let [a, b, c] = [a, b, c].map(|vector| vector.slice(part.clone()));
            [
                copy(c, a),
                triad(b, c, a, factor as f64),
                triad(a, b, c, 1.0),
            ]
        });
        verify::words("copies", c, cpu.share(n), |i| double(input(i)));
        verify::words("multiples", b, cpu.share(n), |i| {
            double(input(i) * (1 + factor))
        });
        verify::words("sums", a, cpu.share(n), |i| double(input(i) * (2 + factor)));
        cpu.progress(round + 1, rounds);
    }
    report!(
        cpu,
        "{} of {} copies, multiples and sums right",
        Count(rounds, "round"),
        Grouped(n)
    );
}

fn double(value: u64) -> u64 {
    (value as f64).to_bits()
}
