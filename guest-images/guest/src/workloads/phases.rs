//! Phases that use the same memory in different ways: accelerators stream through it, then they look up random
//! elements, then CPUs and accelerators take turns.

use super::report;
use crate::command::{gather, reduce, vector_add};
use crate::cpu::Cpu;
use crate::devices;
use crate::memory::{PAGE_WORDS, alloc};
use crate::pattern::Pattern;
use crate::random::{hash, hash_below};
use crate::verify;

/// A look-up for so many elements.
const SPARSE: u64 = 16;

pub fn run(cpu: &Cpu) {
    let (n, phases, passes) = (cpu.param("n"), cpu.param("phases"), cpu.param("passes"));
    let lookups = n.div_ceil(SPARSE);
    let (a, b, c, places, found) = cpu.broadcast(|| {
        (
            alloc("vector a", n),
            alloc("vector b", n),
            alloc("sums", n),
            alloc("places", lookups),
            alloc("elements that were looked up", lookups),
        )
    });
    let mut random = cpu.common_random();
    let (in_a, in_b) = (Pattern::random(&mut random), Pattern::random(&mut random));
    let in_c = in_a.plus(in_b);
    a.fill(cpu.share(n), |i| in_a.at(i));
    b.fill(cpu.share(n), |i| in_b.at(i));
    for phase in 0..phases {
        let seed = hash(cpu.boot.seed, phase);
        for pass in 0..passes {
            match phase % 3 {
                0 => {
                    devices::split(cpu, n, |part| {
                        [vector_add(
                            c.slice(part.clone()),
                            a.slice(part.clone()),
                            b.slice(part),
                        )]
                    });
                }
                1 => {
                    let place = |i| hash_below(hash(seed, pass), i, n);
                    places.fill(cpu.share(lookups), place);
                    devices::split(cpu, lookups, |part| {
                        [gather(found.slice(part.clone()), c, places.slice(part))]
                    });
                    verify::words("looked up", found, cpu.share(lookups), |i| {
                        in_c.at(place(i))
                    });
                }
                _ => {
                    for i in cpu.share(n).step_by(PAGE_WORDS as usize) {
                        c.set(i, c.get(i));
                    }
                    let sum = devices::split(cpu, n, |part| [reduce(c.slice(part))]);
                    verify::value("sum of the sums", in_c.sum(n), sum);
                }
            }
        }
        cpu.progress(phase + 1, phases);
    }
    // Without a phase there are no sums yet.
    if phases > 0 {
        verify::words("sums", c, cpu.share(n), |i| in_c.at(i));
    }
    report!(cpu, "{phases} phases of {passes} passes right");
}
