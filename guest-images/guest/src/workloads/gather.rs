//! Random gathers, then random scatters of what was gathered.

use super::{Grouped, report};
use crate::command::{gather, scatter};
use crate::cpu::Cpu;
use crate::devices;
use crate::memory::alloc;
use crate::random::{Shuffle, hash, hash_below};
use crate::verify;

pub fn run(cpu: &Cpu) {
    let (n, len) = (cpu.param("n"), cpu.param("len"));
    let [table_seed, index_seed, rest_seed, spread_seed] =
        [0, 1, 2, 3].map(|which| hash(cpu.boot.seed, which));
    let (table, indices, gathered, scattered) = cpu.broadcast(|| {
        (
            alloc("the table", len),
            alloc("indices", n),
            alloc("gathered values", n),
            alloc("the second table", len),
        )
    });

    let source = |i| hash_below(index_seed, i, len);
    let value = |i| hash(table_seed, source(i));
    table.fill(cpu.share(len), |i| hash(table_seed, i));
    indices.fill(cpu.share(n), source);
    devices::hint(cpu, &[table]);
    devices::split(cpu, n, |part| {
        [gather(
            gathered.slice(part.clone()),
            table,
            indices.slice(part),
        )]
    });
    verify::words("gathered values", gathered, cpu.share(n), value);
    cpu.progress(1, 2);

    // Scattered to different places, so that there is one right result; the other places keep theirs.
    let count = n.min(len);
    let target = Shuffle::new(spread_seed, len);
    let target = |i: u64| target.of(i);
    let rest = |i| hash(rest_seed, i);
    scattered.fill(cpu.share(len), rest);
    indices.fill(cpu.share(n), target);
    devices::split(cpu, count, |part| {
        [scatter(
            scattered,
            gathered.slice(part.clone()),
            indices.slice(part),
        )]
    });
    for i in cpu.share(count) {
        verify::word(
            "scattered values",
            scattered,
            target(i),
            value(i),
            scattered.get(target(i)),
        );
        scattered.set(target(i), rest(target(i)));
    }
    cpu.barrier();
    verify::words(
        "values that scatters must not touch",
        scattered,
        cpu.share(len),
        rest,
    );
    cpu.progress(2, 2);
    report!(
        cpu,
        "{} gathered and {} scattered values right",
        Grouped(n),
        Grouped(count)
    );
}
