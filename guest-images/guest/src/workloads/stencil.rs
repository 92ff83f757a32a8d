//! A stencil: in each step, every row of one grid becomes the sum of the rows above and below it in the other grid.

use super::report;
use crate::command::vector_add;
use crate::cpu::{Cpu, share};
use crate::devices;
use crate::memory::{Words, alloc};
use crate::pattern::Pattern;
use crate::random::hash_below;
use crate::verify;

pub fn run(cpu: &Cpu) {
    let n = cpu.param("n");
    // Rows at the edges lack a neighbour, so each step has one row less at each end.
    let steps = cpu.param("steps").min((n - 1) / 2);
    let [mut from, mut to] =
        cpu.broadcast(|| ["a grid", "the other grid"].map(|name| alloc(name, n * n)));
    let pattern = Pattern::random(&mut cpu.common_random());
    from.fill(cpu.share(n * n), |i| pattern.at(i));
    // Neighbours of an element are as far above it as below, so each step doubles it.
    let mut factor = 1;
    let row = |grid: Words, row: u64| grid.slice(row * n..(row + 1) * n);
    let check = |grid: Words, at: u64, factor: u64| {
        verify::words("a row", grid, at * n..(at + 1) * n, |i| {
            pattern.at(i).wrapping_mul(factor)
        });
    };
    for step in 1..=steps {
        let rows = n - 2 * step;
        devices::on_each(cpu, |device| {
            share(rows, 1, cpu.devices(), device).map(move |at| {
                let at = at + step;
                vector_add(row(to, at), row(from, at - 1), row(from, at + 1))
            })
        });
        factor *= 2;
        (from, to) = (to, from);
        if cpu.is_leader() {
            // As a test for convergence would.
            check(from, step + hash_below(cpu.boot.seed, step, rows), factor);
        }
        cpu.progress(step, steps);
    }
    for at in share(n - 2 * steps, 1, cpu.count(), cpu.index) {
        check(from, at + steps, factor);
    }
    report!(cpu, "{steps} steps on {n} by {n} elements right");
}
