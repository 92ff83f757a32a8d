//! Sparse matrices and graphs in compressed rows.

use std::sync::atomic::Ordering;

use hmm_backend::pages::Access;

use super::indexed::{gather_chunk, read_indices, visit_each};
use crate::commands::error::CommandError;
use crate::commands::managed::Words;
use crate::commands::memory::{CHUNK, Memory};

/// `y = M·x`. Each row is summed up in ascending order.
pub fn spmv(
    memory: &mut impl Memory,
    y: Words,
    row: Words,
    col: u64,
    val: u64,
    x: Words,
) -> Result<(), CommandError> {
    let entries = memory.read_word(row.at(y.len))?;
    let col = memory.addresses().words(col, entries)?;
    let val = memory.addresses().words(val, entries)?;
    let mut starts = [0u64; CHUNK + 1];
    let mut columns = [0u64; CHUNK];
    let mut values = [0f64; CHUNK];
    let mut factors = [0f64; CHUNK];
    for (first_row, rows) in y.chunks(CHUNK) {
        let starts = &mut starts[..=rows];
        read_row_starts(memory, row.at(first_row), starts, entries)?;
        let mut sums = [0f64; CHUNK];
        let mut r = 0;
        let in_rows = col.slice(starts[0], starts[rows]);
        for (start, len) in in_rows.chunks(CHUNK) {
            let start = starts[0] + start;
            read_indices(memory, col.at(start), &mut columns[..len], x.len)?;
            memory.read(val.at(start), &mut values[..len])?;
            gather_chunk(memory, x, &columns[..len], &mut factors[..len])?;
            for i in 0..len {
                while starts[r + 1] <= start + i as u64 {
                    r += 1;
                }
                sums[r] += values[i] * factors[i];
            }
        }
        memory.write(y.at(first_row), &sums[..rows])?;
    }
    Ok(())
}

/// Gives each unreached neighbour of a vertex at `level` the next level; returns how many got it.
pub fn bfs_step(
    memory: &mut impl Memory,
    row: Words,
    col: u64,
    dist: Words,
    level: u64,
) -> Result<u64, CommandError> {
    let entries = memory.read_word(row.at(dist.len))?;
    let col = memory.addresses().words(col, entries)?;
    let mut starts = [0u64; CHUNK + 1];
    let mut levels = [0u64; CHUNK];
    let mut reached = 0;
    for (first_vertex, vertices) in dist.chunks(CHUNK) {
        let levels = &mut levels[..vertices];
        memory.read(dist.at(first_vertex), levels)?;
        if !levels.contains(&level) {
            continue;
        }
        let starts = &mut starts[..=vertices];
        read_row_starts(memory, row.at(first_vertex), starts, entries)?;
        for v in (0..vertices).filter(|v| levels[*v] == level) {
            let neighbours = col.slice(starts[v], starts[v + 1]);
            reached += reach(memory, neighbours, dist, level + 1)?;
        }
    }
    Ok(reached)
}

/// Sets the distance of those vertices that have none; returns how many that were.
fn reach(
    memory: &mut impl Memory,
    vertices: Words,
    dist: Words,
    level: u64,
) -> Result<u64, CommandError> {
    const UNREACHED: u64 = u64::MAX;
    let mut targets = [0u64; CHUNK];
    let mut reached = 0;
    for (start, len) in vertices.chunks(CHUNK) {
        let targets = &mut targets[..len];
        read_indices(memory, vertices.at(start), targets, dist.len)?;
        visit_each(memory, Access::Write, dist, targets, |_, word| {
            // Atomic, so that accelerators that share a graph reach each vertex once.
            let is_new = word.load(Ordering::Relaxed) == UNREACHED
                && word
                    .compare_exchange(UNREACHED, level, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            reached += u64::from(is_new);
        })?;
    }
    Ok(reached)
}

/// Reads where rows start (the last one: where they end) and checks that they ascend and end within the
/// entries. The guest may change them at any time: what was read is what counts.
fn read_row_starts(
    memory: &mut impl Memory,
    addr: u64,
    starts: &mut [u64],
    entries: u64,
) -> Result<(), CommandError> {
    memory.read(addr, starts)?;
    if let Some(pair) = starts.windows(2).find(|pair| pair[0] > pair[1]) {
        return Err(CommandError::Index(pair[0]));
    }
    match starts.last() {
        Some(end) if *end > entries => Err(CommandError::Index(*end)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::memory::testing::{PlainMemory, Random};

    /// Random rows with up to `degree` entries; every seventh is empty.
    fn rows(random: &mut Random, n: usize, degree: u64) -> (Vec<u64>, Vec<u64>) {
        let mut row = vec![0];
        let mut col = vec![];
        for i in 0..n {
            let entries = if i % 7 == 3 {
                0
            } else {
                random.below(degree + 1)
            };
            col.extend(random.words(entries as usize, n as u64));
            row.push(col.len() as u64);
        }
        (row, col)
    }

    #[test]
    fn spmv_equals_the_double_loop() {
        for (n, degree) in [(0, 0), (1, 3), (600, 9), (1025, 4), (5, 2000)] {
            let mut random = Random::new(n as u64);
            let mut memory = PlainMemory::new(128);
            let (row, col) = rows(&mut random, n, degree);
            let (val, x) = (random.doubles(col.len()), random.doubles(n));
            let y_at = memory.alloc(n as u64);
            let (row_at, col_at) = (memory.put(&row), memory.put(&col));
            let (val_at, x_at) = (memory.put(&val), memory.put(&x));
            spmv(&mut memory, y_at, row_at, col_at.addr, val_at.addr, x_at).unwrap();
            let expected: Vec<f64> = (0..n)
                .map(|i| {
                    (row[i] as usize..row[i + 1] as usize)
                        .fold(0.0, |sum, j| sum + val[j] * x[col[j] as usize])
                })
                .collect();
            assert_eq!(memory.get::<f64>(y_at), expected, "n = {n}");
        }
    }

    #[test]
    fn bfs_finds_the_distances() {
        const N: usize = 1500;
        let mut random = Random::new(3);
        let mut memory = PlainMemory::new(128);
        let (row, col) = rows(&mut random, N, 3);
        let mut expected = vec![u64::MAX; N];
        expected[9] = 0;
        let (row_at, col_at) = (memory.put(&row), memory.put(&col));
        let dist_at = memory.put(&expected);
        for level in 0.. {
            let mut reached = 0;
            for v in 0..N {
                if expected[v] != level {
                    continue;
                }
                for target in &col[row[v] as usize..row[v + 1] as usize] {
                    if expected[*target as usize] == u64::MAX {
                        expected[*target as usize] = level + 1;
                        reached += 1;
                    }
                }
            }
            let result = bfs_step(&mut memory, row_at, col_at.addr, dist_at, level);
            assert_eq!(result, Ok(reached));
            assert_eq!(memory.get::<u64>(dist_at), expected);
            if reached == 0 {
                assert!(level > 5);
                break;
            }
        }
    }

    #[test]
    fn bad_rows_are_refused() {
        let mut memory = PlainMemory::new(8);
        let end = memory.addresses().base + memory.addresses().bytes;
        let (col, dist) = (memory.put(&[0u64, 1, 2]), memory.put(&[0u64, u64::MAX]));
        let mut step = |row: [u64; 3]| {
            let row = memory.put(&row);
            let bfs = bfs_step(&mut memory, row, col.addr, dist, 0);
            let (val, y) = (memory.alloc(3), memory.alloc(2));
            let spmv = spmv(&mut memory, y, row, col.addr, val.addr, dist);
            (bfs, spmv)
        };
        let both = |error| (Err(error), Err(error));
        assert_eq!(step([0, u64::MAX, 2]), both(CommandError::Index(u64::MAX)));
        assert_eq!(step([2, 1, 2]), both(CommandError::Index(2)));
        assert_eq!(step([0, 1, u64::MAX]), both(CommandError::Address(end)));
        assert_eq!(step([0, 3, 3]), both(CommandError::Index(2)));
    }
}
