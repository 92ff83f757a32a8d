//! Walks through a tree whose nodes are scattered over memory, between random nodes and the root.

use super::report;
use crate::command::chase;
use crate::cpu::{Cpu, share};
use crate::devices;
use crate::memory::alloc;
use crate::random::{Shuffle, hash, hash_below};
use crate::verify;

/// Words of a node: a cache line. The first one points to the parent.
const NODE: u64 = 8;
/// Children of a node.
const CHILDREN: u64 = 4;

pub fn run(cpu: &Cpu) {
    let (nodes, walks) = (cpu.param("nodes"), cpu.param("walks"));
    let tree = cpu.broadcast(|| alloc("the tree", nodes * NODE));
    let [place_seed, walk_seed] = [0, 1].map(|which| hash(cpu.boot.seed, which));
    let shuffle = Shuffle::new(place_seed, nodes);
    // The root is node 0.
    let place = |node| (shuffle.of(node) + 1) % nodes * NODE;
    for node in share(nodes, 1, cpu.count(), cpu.index) {
        tree.set(place(node), place(parent(node)));
    }
    let reached = devices::on_each(cpu, |device| {
        share(walks, 1, cpu.devices(), device).map(move |walk| {
            let node = hash_below(walk_seed, walk, nodes);
            chase(tree, place(node), depth(node))
        })
    });
    let expected = walks.wrapping_mul(place(0));
    verify::value("ends of the walks", expected, reached);
    cpu.progress(1, 1);
    report!(cpu, "{walks} walks through {nodes} nodes right");
}

fn parent(node: u64) -> u64 {
    node.saturating_sub(1) / CHILDREN
}

/// Steps to the root.
fn depth(node: u64) -> u64 {
    match node {
        0 => 0,
        node => 1 + depth(parent(node)),
    }
}
