//! A key-value store: accelerators answer requests for keys of which few are popular, CPUs change some of the values.

use super::report;
use crate::command::gather;
use crate::cpu::Cpu;
use crate::devices;
use crate::memory::alloc;
use crate::random::{Shuffle, hash, hash_below};
use crate::verify;

/// One request in so many is checked, and its value changed.
const CHANGED: usize = 64;
/// Added to a value at each change; the bits below name the value's place.
const CHANGE: u64 = 1 << 40;

pub fn run(cpu: &Cpu) {
    let (len, n, rounds) = (cpu.param("len"), cpu.param("n"), cpu.param("rounds"));
    let (values, keys, answers) = cpu.broadcast(|| {
        (
            alloc("values", len),
            alloc("requested keys", n),
            alloc("answers", n),
        )
    });
    // Popular keys are not neighbours.
    let place = Shuffle::new(cpu.boot.seed, len);
    values.fill(cpu.share(len), |at| at);
    for round in 0..rounds {
        let seed = hash(cpu.boot.seed, round);
        keys.fill(cpu.share(n), |i| place.of(popular(seed, i, len)));
        devices::split(cpu, n, |part| {
            [gather(
                answers.slice(part.clone()),
                values,
                keys.slice(part),
            )]
        });
        for i in cpu.share(n).step_by(CHANGED) {
            let expected = values.get(keys.get(i));
            verify::words("answers", answers, i..i + 1, |_| expected);
        }
        cpu.barrier();
        if cpu.is_leader() {
            for i in (0..n).step_by(CHANGED) {
                let key = keys.get(i);
                values.set(key, values.get(key).wrapping_add(CHANGE));
            }
        }
        cpu.progress(round + 1, rounds);
    }
    cpu.barrier();
    for at in cpu.share(len) {
        verify::value("a value's place", at, values.get(at) % CHANGE);
    }
    report!(cpu, "{rounds} rounds of {n} requests right");
}

/// The popularity rank of a request's key, near Zipf's law with exponent 1: each power of two of ranks has an equal
/// share of the requests, and within it all ranks do.
fn popular(seed: u64, request: u64, len: u64) -> u64 {
    let octave = hash_below(hash(seed, 0), request, u64::from(len.ilog2()) + 1);
    let first = 1u64 << octave;
    first - 1 + hash_below(hash(seed, 1), request, first.min(len + 1 - first))
}
