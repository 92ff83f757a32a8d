//! Kernels that go through memory from one end to the other.

use std::sync::atomic::Ordering;

use hmm_backend::pages::Access;

use crate::commands::error::CommandError;
use crate::commands::managed::Words;
use crate::commands::memory::{CHUNK, Element, Memory};

/// `dst[i] = start + i·step`
pub fn fill(
    memory: &mut impl Memory,
    dst: Words,
    start: u64,
    step: u64,
) -> Result<(), CommandError> {
    let mut run = dst;
    let mut value = start;
    memory.visit(Access::Write, run, |words| {
        for word in words {
            word.store(value, Ordering::Relaxed);
            value = value.wrapping_add(step);
        }
        run = run.skip(words.len() as u64);
        run
    })
}

/// `dst[i] = src[i]`
pub fn copy(memory: &mut impl Memory, dst: Words, src: Words) -> Result<(), CommandError> {
    let mut buffer = [0u64; CHUNK];
    for (start, len) in dst.chunks(CHUNK) {
        memory.read(src.at(start), &mut buffer[..len])?;
        memory.write(dst.at(start), &buffer[..len])?;
    }
    Ok(())
}

/// `out[i] = f(a[i], b[i])`
pub fn combine<T: Element>(
    memory: &mut impl Memory,
    out: Words,
    a: Words,
    b: Words,
    f: impl Fn(T, T) -> T,
) -> Result<(), CommandError> {
    let mut left = [T::from_word(0); CHUNK];
    let mut right = left;
    for (start, len) in out.chunks(CHUNK) {
        memory.read(a.at(start), &mut left[..len])?;
        memory.read(b.at(start), &mut right[..len])?;
        for (a, b) in left[..len].iter_mut().zip(&right[..len]) {
            *a = f(*a, *b);
        }
        memory.write(out.at(start), &left[..len])?;
    }
    Ok(())
}

/// The wrapping sum.
pub fn reduce(memory: &mut impl Memory, src: Words) -> Result<u64, CommandError> {
    let mut run = src;
    let mut sum = 0u64;
    memory.visit(Access::Read, run, |words| {
        for word in words {
            sum = sum.wrapping_add(word.load(Ordering::Relaxed));
        }
        run = run.skip(words.len() as u64);
        run
    })?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::memory::testing::{PlainMemory, Random};

    const LENGTHS: [usize; 6] = [0, 1, 511, 512, 513, 3000];

    #[test]
    fn fill_counts_up() {
        for len in LENGTHS {
            let mut memory = PlainMemory::new(16);
            let dst = memory.alloc(len as u64);
            let behind = memory.put(&[7u64]);
            fill(&mut memory, dst, u64::MAX - 5, 3).unwrap();
            let expected: Vec<u64> = (0..len as u64)
                .map(|i| (u64::MAX - 5).wrapping_add(3 * i))
                .collect();
            assert_eq!(memory.get::<u64>(dst), expected);
            assert_eq!(memory.get::<u64>(behind), [7]);
        }
    }

    #[test]
    fn copy_and_arithmetic_match_their_definitions() {
        for len in LENGTHS {
            let mut random = Random::new(len as u64);
            let mut memory = PlainMemory::new(32);
            let a = random.words(len, u64::MAX);
            let b = random.words(len, u64::MAX);
            let (src_a, src_b) = (memory.put(&a), memory.put(&b));
            let dst = memory.alloc(len as u64);
            copy(&mut memory, dst, src_a).unwrap();
            assert_eq!(memory.get::<u64>(dst), a);
            combine(&mut memory, dst, src_a, src_b, u64::wrapping_add).unwrap();
            let sums: Vec<u64> = a.iter().zip(&b).map(|(a, b)| a.wrapping_add(*b)).collect();
            assert_eq!(memory.get::<u64>(dst), sums);
            let total = sums.iter().fold(0u64, |sum, x| sum.wrapping_add(*x));
            assert_eq!(reduce(&mut memory, dst), Ok(total));

            let (b, c) = (random.doubles(len), random.doubles(len));
            let (src_b, src_c) = (memory.put(&b), memory.put(&c));
            combine(&mut memory, dst, src_b, src_c, |b: f64, c| b + 2.5 * c).unwrap();
            let triad: Vec<f64> = b.iter().zip(&c).map(|(b, c)| b + 2.5 * c).collect();
            assert_eq!(memory.get::<f64>(dst), triad);
        }
    }

    #[test]
    fn an_abort_ends_a_long_command() {
        let mut memory = PlainMemory::new(32);
        let (src, dst) = (memory.alloc(5000), memory.alloc(5000));
        memory.visits_left = 10;
        assert_eq!(copy(&mut memory, dst, src), Err(CommandError::Aborted));
    }
}
