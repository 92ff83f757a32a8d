//! Deterministic pseudo-random numbers: splitmix64, as a generator and as a function.
//!
//! The function gives every element of an array a value that can be computed again when the array
//! is verified.

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A value that depends on all bits of `seed` and of `index`.
pub fn hash(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(GAMMA));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The same, less than `bound`.
pub fn hash_below(seed: u64, index: u64, bound: u64) -> u64 {
    scale(hash(seed, index), bound)
}

/// A generator.
pub struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    /// One of many independent sequences of a seed.
    pub fn new(seed: u64, sequence: u64) -> Self {
        Self {
            seed: hash(seed, sequence),
            drawn: 0,
        }
    }

    pub fn next(&mut self) -> u64 {
        self.drawn += 1;
        hash(self.seed, self.drawn)
    }

    /// A number less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        scale(self.next(), bound)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A fixed permutation of the numbers below a bound, which puts neighbours far apart.
#[derive(Clone, Copy)]
pub struct Shuffle {
    len: u64,
    factor: u64,
}

impl Shuffle {
    /// One of the permutations of the numbers less than `len`.
    pub fn new(seed: u64, len: u64) -> Self {
        let factor = (hash_below(seed, 0, len).max(1)..)
            .find(|factor| gcd(*factor, len) == 1)
            .expect("the next multiple of len plus 1 is one");
        Self { len, factor }
    }

    /// The number to which it takes `index`.
    pub fn of(self, index: u64) -> u64 {
        ((u128::from(index) * u128::from(self.factor)) % u128::from(self.len)) as u64
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn scale(value: u64, bound: u64) -> u64 {
    ((u128::from(value) * u128::from(bound)) >> 64) as u64
}
