//! Random sparse matrices and graphs in compressed sparse rows.

use crate::cpu::Cpu;
use crate::memory::{Words, alloc};
use crate::random::{hash, hash_below};
use core::ops::Range;

/// Row `r` has the columns `col[row[r]..row[r + 1]]`.
#[derive(Clone, Copy)]
pub struct Csr {
    pub rows: u64,
    pub row: Words,
    pub col: Words,
}

impl Csr {
    /// A random one with 1 to `2·degree - 1` entries in each row; collective.
    pub fn random(cpu: &Cpu, rows: u64, degree: u64) -> Self {
        let seed = cpu.boot.seed;
        let csr = cpu.broadcast(|| {
            let row = alloc("the row index", rows + 1);
            let mut entries = 0;
            for index in 0..rows {
                row.set(index, entries);
                entries += 1 + hash_below(seed, index, 2 * degree - 1);
            }
            row.set(rows, entries);
            Self {
                rows,
                row,
                col: alloc("the column index", entries),
            }
        });
        csr.col.fill(cpu.share(csr.col.len()), |entry| {
            hash_below(hash(seed, 1), entry, rows)
        });
        cpu.barrier();
        csr
    }

    /// The range of a row's entries.
    pub fn entries(&self, row: u64) -> Range<u64> {
        self.row.get(row)..self.row.get(row + 1)
    }
}
