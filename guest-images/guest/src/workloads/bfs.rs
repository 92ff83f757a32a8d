//! Breadth-first search on the accelerators, which take turns level by level, against one on a CPU.

use super::{Count, Grouped, report};
use crate::command::bfs_step;
use crate::cpu::Cpu;
use crate::csr::Csr;
use crate::devices;
use crate::memory::{Words, alloc};
use crate::random::hash_below;
use crate::verify;

/// Distance of vertices that were not reached.
const UNREACHED: u64 = u64::MAX;

pub fn run(cpu: &Cpu) {
    let vertices = cpu.param("vertices");
    let graph = Csr::random(cpu, vertices, cpu.param("degree"));
    let source = hash_below(cpu.boot.seed, 2, vertices);
    let (dist, reference) = cpu.broadcast(|| {
        (
            alloc("distances", vertices),
            alloc("the CPU's distances", vertices),
        )
    });
    for distances in [dist, reference] {
        distances.fill(cpu.share(vertices), |vertex| {
            if vertex == source { 0 } else { UNREACHED }
        });
    }

    devices::hint(cpu, &[graph.row, graph.col]);
    let mut reached = 1;
    let mut level = 0;
    loop {
        let now = devices::on_one(
            cpu,
            level % cpu.devices(),
            bfs_step(graph.row, graph.col, dist, level),
        );
        if now == 0 {
            break;
        }
        reached += now;
        level += 1;
        cpu.progress(reached, vertices);
    }
    let expected = cpu.broadcast(|| search(&graph, source, reference));
    verify::value("reached vertices", expected, reached);
    verify::words("distances", dist, cpu.share(vertices), |vertex| {
        reference.get(vertex)
    });
    report!(
        cpu,
        "{} of {} vertices reached, in {}, all distances right",
        Grouped(reached),
        Grouped(vertices),
        Count(level, "level")
    );
}

/// The search on one CPU; the answer is the number of vertices reached.
fn search(graph: &Csr, source: u64, dist: Words) -> u64 {
    let queue = alloc("the CPU's queue", graph.rows);
    queue.set(0, source);
    let (mut head, mut tail) = (0, 1);
    while head < tail {
        let vertex = queue.get(head);
        head += 1;
        for neighbour in graph.entries(vertex).map(|entry| graph.col.get(entry)) {
            if dist.get(neighbour) == UNREACHED {
                dist.set(neighbour, dist.get(vertex) + 1);
                queue.set(tail, neighbour);
                tail += 1;
            }
        }
    }
    tail
}
