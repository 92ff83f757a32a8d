//! Dense matrices.

use crate::commands::error::CommandError;
use crate::commands::managed::Words;
use crate::commands::memory::Memory;

/// Rows and columns of a tile. Three tiles fit into the second-level cache.
const TILE: usize = 64;

type Tile = [[f64; TILE]; TILE];

/// `C = A·B` for row-major `n × n` matrices. Each element is summed up in ascending order of the inner
/// index, starting from 0: the result is bit for bit that of the plain triple loop.
pub fn matmul(
    memory: &mut impl Memory,
    c: Words,
    a: Words,
    b: Words,
    n: u64,
) -> Result<(), CommandError> {
    let mut a_tile = Box::new([[0.0; TILE]; TILE]);
    let mut b_tile = a_tile.clone();
    let mut c_tile = a_tile.clone();
    let tiles = || Words { addr: 0, len: n }.chunks(TILE);
    for (i, rows) in tiles() {
        for (j, columns) in tiles() {
            c_tile.as_flattened_mut().fill(0.0);
            for (k, depth) in tiles() {
                read_tile(memory, a.at(i * n + k), n, &mut a_tile[..rows], depth)?;
                read_tile(memory, b.at(k * n + j), n, &mut b_tile[..depth], columns)?;
                multiply_add(&mut c_tile[..rows], &a_tile, &b_tile, depth);
            }
            for (r, row) in c_tile[..rows].iter().enumerate() {
                memory.write(c.at((i + r as u64) * n + j), &row[..columns])?;
            }
        }
    }
    Ok(())
}

fn read_tile(
    memory: &mut impl Memory,
    addr: u64,
    n: u64,
    rows: &mut [[f64; TILE]],
    columns: usize,
) -> Result<(), CommandError> {
    for (r, row) in rows.iter_mut().enumerate() {
        memory.read(addr + r as u64 * n * 8, &mut row[..columns])?;
    }
    Ok(())
}

/// `c += a·b`. The columns beyond those in use hold old numbers; their products are not used.
fn multiply_add(c: &mut [[f64; TILE]], a: &Tile, b: &Tile, depth: usize) {
    for (c_row, a_row) in c.iter_mut().zip(a) {
        for (factor, b_row) in a_row[..depth].iter().zip(b) {
            for (c, b) in c_row.iter_mut().zip(b_row) {
                *c += factor * b;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::memory::testing::{PlainMemory, Random};

    #[test]
    fn equals_the_triple_loop() {
        for n in [0usize, 1, 7, 64, 65, 130] {
            let mut random = Random::new(n as u64);
            let mut memory = PlainMemory::new(128);
            let (a, b) = (random.doubles(n * n), random.doubles(n * n));
            let (a_at, b_at) = (memory.put(&a), memory.put(&b));
            let c_at = memory.alloc((n * n) as u64);
            let behind = memory.put(&[7u64]);
            matmul(&mut memory, c_at, a_at, b_at, n as u64).unwrap();
            let mut expected = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..n {
                    for k in 0..n {
                        expected[i * n + j] += a[i * n + k] * b[k * n + j];
                    }
                }
            }
            assert_eq!(memory.get::<f64>(c_at), expected, "n = {n}");
            assert_eq!(memory.get::<u64>(behind), [7]);
        }
    }
}
