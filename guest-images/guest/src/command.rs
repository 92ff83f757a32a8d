//! Accelerator commands made from pieces of memory, so that addresses and lengths fit together.

use crate::memory::Words;
use crate::pattern::Pattern;
use hmmvisor_abi::accel::*;

/// A command; arguments that are not given are zero, the queue fills in flags and tag.
pub fn command(opcode: u32, given: &[u64]) -> Command {
    let mut args = [0; 6];
    args[..given.len()].copy_from_slice(given);
    Command {
        opcode,
        flags: 0,
        tag: 0,
        args,
    }
}

pub fn fill(to: Words, pattern: Pattern) -> Command {
    command(
        OP_FILL,
        &[to.address(), to.len(), pattern.start, pattern.step],
    )
}

pub fn copy(to: Words, from: Words) -> Command {
    same_len(to, from);
    command(OP_COPY, &[to.address(), from.address(), from.bytes()])
}

/// `c = a + b`, integers.
pub fn vector_add(c: Words, a: Words, b: Words) -> Command {
    same_len(c, a);
    same_len(c, b);
    command(
        OP_VECTOR_ADD,
        &[c.address(), a.address(), b.address(), c.len()],
    )
}

/// `a = b + factor·c`, doubles.
pub fn triad(a: Words, b: Words, c: Words, factor: f64) -> Command {
    same_len(a, b);
    same_len(a, c);
    command(
        OP_TRIAD,
        &[
            a.address(),
            b.address(),
            c.address(),
            a.len(),
            factor.to_bits(),
        ],
    )
}

/// Result: the sum.
pub fn reduce(from: Words) -> Command {
    command(OP_REDUCE, &[from.address(), from.len()])
}

/// `to[i] = from[indices[i]]`.
pub fn gather(to: Words, from: Words, indices: Words) -> Command {
    same_len(to, indices);
    command(
        OP_GATHER,
        &[
            to.address(),
            from.address(),
            indices.address(),
            indices.len(),
            from.len(),
        ],
    )
}

/// `to[indices[i]] = from[i]`.
pub fn scatter(to: Words, from: Words, indices: Words) -> Command {
    same_len(from, indices);
    command(
        OP_SCATTER,
        &[
            to.address(),
            from.address(),
            indices.address(),
            indices.len(),
            to.len(),
        ],
    )
}

/// `c = a·b`, `n × n` doubles.
pub fn matmul(c: Words, a: Words, b: Words, n: u64) -> Command {
    command(OP_MATMUL, &[c.address(), a.address(), b.address(), n])
}

/// `y = M·x`.
pub fn spmv(y: Words, row: Words, col: Words, val: Words, x: Words) -> Command {
    command(
        OP_SPMV,
        &[
            y.address(),
            row.address(),
            col.address(),
            val.address(),
            x.address(),
            y.len(),
        ],
    )
}

/// Result: vertices reached.
pub fn bfs_step(row: Words, col: Words, dist: Words, level: u64) -> Command {
    command(
        OP_BFS_STEP,
        &[
            row.address(),
            col.address(),
            dist.address(),
            dist.len(),
            level,
        ],
    )
}

/// `base[indices[i]] += value`.
pub fn atomic_add(base: Words, indices: Words, value: u64) -> Command {
    command(
        OP_ATOMIC_ADD,
        &[
            base.address(),
            indices.address(),
            indices.len(),
            value,
            base.len(),
        ],
    )
}

/// Result: where `steps` steps from `start` lead.
pub fn chase(base: Words, start: u64, steps: u64) -> Command {
    command(OP_CHASE, &[base.address(), start, steps, base.len()])
}

/// `direction` is `TO_DEVICE` or `TO_SYSTEM`.
pub fn migrate(words: Words, direction: u64) -> Command {
    command(OP_MIGRATE, &[words.address(), words.bytes(), direction])
}

/// For whole pages.
pub fn free(words: Words) -> Command {
    command(
        OP_FREE,
        &[
            words.address(),
            words.bytes().next_multiple_of(crate::memory::PAGE),
        ],
    )
}

/// `hint` is one of `HINT_*`.
pub fn hint(words: Words, hint: u64) -> Command {
    command(OP_HINT, &[words.address(), words.bytes(), hint])
}

fn same_len(a: Words, b: Words) {
    assert!(a.len() == b.len(), "{a:?} and {b:?} differ in length");
}
