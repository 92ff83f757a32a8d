//! Kernels whose addresses come from memory.

use std::sync::atomic::{AtomicU64, Ordering};

use hmm_backend::pages::Access;

use crate::commands::error::CommandError;
use crate::commands::managed::Words;
use crate::commands::memory::{CHUNK, Memory};

/// `dst[i] = src[idx[i]]`
pub fn gather(
    memory: &mut impl Memory,
    dst: Words,
    src: Words,
    idx: Words,
) -> Result<(), CommandError> {
    let mut indices = [0u64; CHUNK];
    let mut values = [0u64; CHUNK];
    for (start, len) in idx.chunks(CHUNK) {
        read_indices(memory, idx.at(start), &mut indices[..len], src.len)?;
        gather_chunk(memory, src, &indices[..len], &mut values[..len])?;
        memory.write(dst.at(start), &values[..len])?;
    }
    Ok(())
}

/// `dst[idx[i]] = src[i]`
pub fn scatter(
    memory: &mut impl Memory,
    dst: Words,
    src: Words,
    idx: Words,
) -> Result<(), CommandError> {
    let mut indices = [0u64; CHUNK];
    let mut values = [0u64; CHUNK];
    for (start, len) in idx.chunks(CHUNK) {
        read_indices(memory, idx.at(start), &mut indices[..len], dst.len)?;
        memory.read(src.at(start), &mut values[..len])?;
        visit_each(memory, Access::Write, dst, &indices[..len], |at, word| {
            word.store(values[at], Ordering::Relaxed);
        })?;
    }
    Ok(())
}

/// `base[idx[i]] += value`, atomically
pub fn atomic_add(
    memory: &mut impl Memory,
    base: Words,
    idx: Words,
    value: u64,
) -> Result<(), CommandError> {
    let mut indices = [0u64; CHUNK];
    for (start, len) in idx.chunks(CHUNK) {
        read_indices(memory, idx.at(start), &mut indices[..len], base.len)?;
        visit_each(memory, Access::Write, base, &indices[..len], |_, word| {
            word.fetch_add(value, Ordering::Relaxed);
        })?;
    }
    Ok(())
}

/// `p = base[p]`, `steps` times from `start`; returns the last `p`.
pub fn chase(
    memory: &mut impl Memory,
    base: Words,
    start: u64,
    steps: u64,
) -> Result<u64, CommandError> {
    let mut p = start;
    if steps == 0 {
        return Ok(p);
    }
    let mut left = steps;
    memory.visit(Access::Read, base.word(p), |word| {
        p = word[0].load(Ordering::Relaxed);
        left -= 1;
        if left == 0 || p >= base.len {
            return Words::NONE;
        }
        base.word(p)
    })?;
    match p < base.len {
        true => Ok(p),
        false => Err(CommandError::Index(p)),
    }
}

/// Reads indices and checks that they are below `limit`.
pub(super) fn read_indices(
    memory: &mut impl Memory,
    addr: u64,
    out: &mut [u64],
    limit: u64,
) -> Result<(), CommandError> {
    memory.read(addr, out)?;
    match out.iter().find(|index| **index >= limit) {
        None => Ok(()),
        Some(index) => Err(CommandError::Index(*index)),
    }
}

/// `out[i] = src[indices[i]]`; the indices are checked and there is at least one.
pub(super) fn gather_chunk<T: crate::commands::memory::Element>(
    memory: &mut impl Memory,
    src: Words,
    indices: &[u64],
    out: &mut [T],
) -> Result<(), CommandError> {
    visit_each(memory, Access::Read, src, indices, |at, word| {
        out[at] = T::from_word(word.load(Ordering::Relaxed));
    })
}

/// Calls `act` with each number `i` and the word `run[indices[i]]`; the indices are checked and there is at least one.
pub(super) fn visit_each(
    memory: &mut impl Memory,
    access: Access,
    run: Words,
    indices: &[u64],
    mut act: impl FnMut(usize, &AtomicU64),
) -> Result<(), CommandError> {
    let mut at = 0;
    memory.visit(access, run.word(indices[0]), |word| {
        act(at, &word[0]);
        at += 1;
        let next = indices.get(at);
        next.map_or(Words::NONE, |index| run.word(*index))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::memory::testing::{PlainMemory, Random};

    #[test]
    fn gather_scatter_and_add_match_their_definitions() {
        for (n, len) in [(0, 1), (1, 1), (512, 2000), (1300, 700)] {
            let mut random = Random::new(n as u64);
            let mut memory = PlainMemory::new(32);
            let idx = random.words(n, len as u64);
            let table = random.words(len, u64::MAX);
            let values = random.words(n, u64::MAX);
            let (idx_at, table_at) = (memory.put(&idx), memory.put(&table));
            let values_at = memory.put(&values);

            let dst = memory.alloc(n as u64);
            gather(&mut memory, dst, table_at, idx_at).unwrap();
            let expected: Vec<u64> = idx.iter().map(|i| table[*i as usize]).collect();
            assert_eq!(memory.get::<u64>(dst), expected);

            let mut expected = table.clone();
            scatter(&mut memory, table_at, values_at, idx_at).unwrap();
            for (i, value) in idx.iter().zip(&values) {
                expected[*i as usize] = *value;
            }
            assert_eq!(memory.get::<u64>(table_at), expected);

            atomic_add(&mut memory, table_at, idx_at, u64::MAX).unwrap();
            for i in &idx {
                expected[*i as usize] = expected[*i as usize].wrapping_sub(1);
            }
            assert_eq!(memory.get::<u64>(table_at), expected);
        }
    }

    #[test]
    fn indices_out_of_range_are_refused() {
        let mut memory = PlainMemory::new(8);
        let (idx, table, other) = (memory.put(&[0u64, 4]), memory.alloc(4), memory.alloc(2));
        let refused = Err(CommandError::Index(4));
        assert_eq!(gather(&mut memory, other, table, idx), refused);
        assert_eq!(scatter(&mut memory, table, other, idx), refused);
        assert_eq!(atomic_add(&mut memory, table, idx, 1), refused);
        assert_eq!(chase(&mut memory, idx, 1, 1), Err(CommandError::Index(4)));
        assert_eq!(
            gather(&mut memory, other, Words::NONE, idx),
            Err(CommandError::Index(0))
        );
    }

    #[test]
    fn chase_follows_the_cycle() {
        let mut memory = PlainMemory::new(16);
        let next: Vec<u64> = (0..3001).map(|i| (i + 1000) % 3001).collect();
        let base = memory.put(&next);
        assert_eq!(chase(&mut memory, base, 17, 0), Ok(17));
        assert_eq!(chase(&mut memory, base, 17, 1), Ok(1017));
        let expected = (17 + 5000 * 1000) % 3001;
        assert_eq!(chase(&mut memory, base, 17, 5000), Ok(expected));
    }
}
