//! Vector addition: data goes back and forth between CPUs and accelerators, and is freed at the end.

use super::{Count, report};
use crate::command::vector_add;
use crate::cpu::Cpu;
use crate::devices;
use crate::memory::alloc;
use crate::pattern::Pattern;
use crate::verify;

pub fn run(cpu: &Cpu) {
    let (n, rounds) = (cpu.param("n"), cpu.param("rounds"));
    let mut random = cpu.common_random();
    let [mut a, mut b, mut c] =
        cpu.broadcast(|| ["vector a", "vector b", "vector c"].map(|name| alloc(name, n)));
    let (mut in_a, mut in_b) = (Pattern::random(&mut random), Pattern::random(&mut random));
    a.fill(cpu.share(n), |i| in_a.at(i));
    b.fill(cpu.share(n), |i| in_b.at(i));
    devices::hint(cpu, &[a, b, c]);
    for round in 0..rounds {
        devices::split(cpu, n, |part| {
            [vector_add(
                c.slice(part.clone()),
                a.slice(part.clone()),
                b.slice(part),
            )]
        });
        let in_c = in_a.plus(in_b);
        verify::words("sums", c, cpu.share(n), |i| in_c.at(i));
        cpu.progress(round + 1, rounds);
        (a, b, c) = (b, c, a);
        (in_a, in_b) = (in_b, in_c);
    }
    devices::free(cpu, &[a, b, c]);
    for freed in [a, b, c] {
        verify::words("freed memory", freed, cpu.share(n), |_| 0);
    }
    report!(
        cpu,
        "{} of {} right, freed memory reads as zeros",
        Count(rounds, "round"),
        Count(n, "sum")
    );
}
