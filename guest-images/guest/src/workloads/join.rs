//! A hash join: the accelerators put the rows of one table into a hash table, then look up those of a longer one.

use super::report;
use crate::command::{gather, scatter};
use crate::cpu::Cpu;
use crate::devices;
use crate::memory::alloc;
use crate::random::{Shuffle, hash, hash_below};
use crate::verify;

pub fn run(cpu: &Cpu) {
    let (n, probes) = (cpu.param("n"), cpu.param("probes"));
    // Half of the slots stay empty.
    let slots = 2 * n;
    let [value_seed, slot_seed, key_seed] = [0, 1, 2].map(|which| hash(cpu.boot.seed, which));
    let (table, values, places, wanted, found) = cpu.broadcast(|| {
        (
            alloc("the hash table", slots),
            alloc("the first table's rows", n),
            alloc("their places", n),
            alloc("places that are looked up", probes),
            alloc("rows that were found", probes),
        )
    });
    let shuffle = Shuffle::new(slot_seed, slots);
    let value = |key| hash(value_seed, key);
    let key = |probe| hash_below(key_seed, probe, n);
    values.fill(cpu.share(n), value);
    places.fill(cpu.share(n), |key| shuffle.of(key));
    devices::split(cpu, n, |part| {
        [scatter(
            table,
            values.slice(part.clone()),
            places.slice(part),
        )]
    });
    cpu.progress(1, 2);
    wanted.fill(cpu.share(probes), |probe| shuffle.of(key(probe)));
    devices::split(cpu, probes, |part| {
        [gather(found.slice(part.clone()), table, wanted.slice(part))]
    });
    verify::words("rows that were found", found, cpu.share(probes), |probe| {
        value(key(probe))
    });
    cpu.progress(2, 2);
    report!(cpu, "{probes} rows joined with {n} right");
}
