//! Memory as the compute kernels see it.

use std::sync::atomic::{AtomicU64, Ordering};

use hmm_backend::pages::Access;

use super::command::Direction;
use super::error::CommandError;
use super::guest_hint::GuestHint;
use super::managed::{Addresses, Words};
use crate::guest_bytes::GuestBytes;

/// Words that a kernel moves at a time through a local buffer: small enough for the first-level cache,
/// large enough to make the cost of an access small.
pub const CHUNK: usize = 512;

/// Guest memory. Implementations access one page at a time, so a kernel never needs two pages to be
/// somewhere at once.
pub trait Memory {
    /// The addresses that commands may name.
    fn addresses(&self) -> Addresses;

    /// The one way to the bytes: calls `step` with the first words of a run, as many as lie in one
    /// page, then with those of the run that `step` returned, until it returns an empty one. With
    /// [`Access::Read`], `step` must only load.
    ///
    /// vCPUs and other accelerators access the same words at the same time.
    fn visit(
        &mut self,
        access: Access,
        first: Words,
        step: impl FnMut(&[AtomicU64]) -> Words,
    ) -> Result<(), CommandError>;

    /// `n` times, adds to a word while no vCPU and no other device reaches its page; returns the word's value before.
    fn add_exclusively(&mut self, addr: u64, n: u64, value: u64) -> Result<u64, CommandError>;

    /// Migrates the pages that lie wholly or partly in the span, as a hint of the guest; returns how many moved.
    fn migrate(&mut self, span: GuestBytes, direction: Direction) -> Result<u64, CommandError>;

    /// Forgets the contents of whole pages; returns how many had any.
    fn free(&mut self, span: GuestBytes) -> Result<u64, CommandError>;

    /// Passes on what the guest says about pages.
    fn hint(&mut self, span: GuestBytes, hint: GuestHint) -> Result<(), CommandError>;

    /// Reads the elements from `addr` on.
    fn read<T: Element>(&mut self, addr: u64, out: &mut [T]) -> Result<(), CommandError> {
        let mut run = Words {
            addr,
            len: out.len() as u64,
        };
        let mut rest = out;
        self.visit(Access::Read, run, |words| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(words.len());
            for (out, word) in now.iter_mut().zip(words) {
                *out = T::from_word(word.load(Ordering::Relaxed));
            }
            rest = later;
            run = run.skip(words.len() as u64);
            run
        })
    }

    /// Writes elements from `addr` on.
    fn write<T: Element>(&mut self, addr: u64, elements: &[T]) -> Result<(), CommandError> {
        let mut run = Words {
            addr,
            len: elements.len() as u64,
        };
        let mut rest = elements;
        self.visit(Access::Write, run, |words| {
            let (now, later) = rest.split_at(words.len());
            for (word, element) in words.iter().zip(now) {
                word.store(element.to_word(), Ordering::Relaxed);
            }
            rest = later;
            run = run.skip(words.len() as u64);
            run
        })
    }

    /// Reads one word.
    fn read_word(&mut self, addr: u64) -> Result<u64, CommandError> {
        let mut word = [0];
        self.read(addr, &mut word)?;
        Ok(word[0])
    }
}

/// A type whose values are 64-bit words.
pub trait Element: Copy {
    /// The element with this bit pattern.
    fn from_word(word: u64) -> Self;
    /// The element's bit pattern.
    fn to_word(self) -> u64;
}

impl Element for u64 {
    fn from_word(word: u64) -> u64 {
        word
    }

    fn to_word(self) -> u64 {
        self
    }
}

impl Element for f64 {
    fn from_word(word: u64) -> f64 {
        f64::from_bits(word)
    }

    fn to_word(self) -> u64 {
        self.to_bits()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Plain memory for the kernels' tests.

    use super::*;
    use crate::commands::managed::Addresses;
    use hmm_backend::pages::PAGE_SIZE;

    /// Addresses memory in a vector.
    pub struct PlainMemory {
        managed: Addresses,
        words: Vec<AtomicU64>,
        allocated: u64,
        /// Aborts the command after this many visits.
        pub visits_left: u64,
    }

    impl PlainMemory {
        pub fn new(pages: u64) -> PlainMemory {
            let managed = Addresses {
                base: 0x1_0000_0000,
                bytes: pages * PAGE_SIZE,
            };
            PlainMemory {
                managed,
                words: (0..managed.bytes / 8).map(|_| AtomicU64::new(0)).collect(),
                // Nothing begins at a page boundary.
                allocated: 5,
                visits_left: u64::MAX,
            }
        }

        /// Room for `len` words.
        pub fn alloc(&mut self, len: u64) -> Words {
            let addr = self.managed.base + self.allocated * 8;
            self.allocated += len + 3;
            self.managed.words(addr, len).unwrap()
        }

        /// Room with these contents.
        pub fn put<T: Element>(&mut self, elements: &[T]) -> Words {
            let run = self.alloc(elements.len() as u64);
            self.write(run.addr, elements).unwrap();
            run
        }

        /// The contents of a run.
        pub fn get<T: Element>(&mut self, run: Words) -> Vec<T> {
            let mut out = vec![T::from_word(0); run.len as usize];
            self.read(run.addr, &mut out).unwrap();
            out
        }
    }

    impl Memory for PlainMemory {
        fn addresses(&self) -> Addresses {
            self.managed
        }

        fn visit(
            &mut self,
            _: Access,
            first: Words,
            mut step: impl FnMut(&[AtomicU64]) -> Words,
        ) -> Result<(), CommandError> {
            let mut run = first;
            while !run.is_empty() {
                self.addresses().words(run.addr, run.len)?;
                self.visits_left = self
                    .visits_left
                    .checked_sub(1)
                    .ok_or(CommandError::Aborted)?;
                let to_page_end = PAGE_SIZE - run.addr % PAGE_SIZE;
                let start = ((run.addr - self.managed.base) / 8) as usize;
                let len = run.len.min(to_page_end / 8) as usize;
                run = step(&self.words[start..start + len]);
            }
            Ok(())
        }

        fn add_exclusively(&mut self, addr: u64, n: u64, value: u64) -> Result<u64, CommandError> {
            self.addresses().words(addr, 1)?;
            let word = &self.words[((addr - self.managed.base) / 8) as usize];
            let sum = value.wrapping_mul(n);
            Ok(word.fetch_add(sum, Ordering::Relaxed))
        }

        fn migrate(&mut self, span: GuestBytes, _: Direction) -> Result<u64, CommandError> {
            let pages = self.managed.pages(span.addr, span.len)?;
            Ok(u64::from(pages.len()))
        }

        fn free(&mut self, span: GuestBytes) -> Result<u64, CommandError> {
            let pages = self.managed.pages(span.addr, span.len)?;
            let start = (pages.start.offset() / 8) as usize;
            let end = (pages.end.offset() / 8) as usize;
            for word in &self.words[start..end] {
                word.store(0, Ordering::Relaxed);
            }
            Ok(u64::from(pages.len()))
        }

        fn hint(&mut self, _: GuestBytes, _: GuestHint) -> Result<(), CommandError> {
            Ok(())
        }
    }

    /// A small random number generator (SplitMix64).
    pub struct Random(u64);

    impl Random {
        pub fn new(seed: u64) -> Random {
            Random(seed)
        }

        pub fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        pub fn below(&mut self, limit: u64) -> u64 {
            self.next() % limit
        }

        pub fn words(&mut self, len: usize, limit: u64) -> Vec<u64> {
            (0..len).map(|_| self.below(limit)).collect()
        }

        pub fn doubles(&mut self, len: usize) -> Vec<f64> {
            (0..len)
                .map(|_| self.below(1 << 20) as f64 / 1024.0 - 512.0)
                .collect()
        }
    }
}
