//! Pages that the host migrates, pins, protects, frees and checks; see `hmmvisor_abi::control::chaos`.

use crate::command::{migrate, reduce};
use crate::cpu::Cpu;
use crate::devices;
use crate::exit::fail;
use crate::memory::{PAGE_WORDS, Words};
use crate::pattern::Pattern;
use crate::random::Random;
use crate::verify;
use core::sync::atomic::{AtomicU32, Ordering};
use hmmvisor_abi::accel::TO_DEVICE;
use hmmvisor_abi::control::EXIT_WRONG_DATA;
use hmmvisor_abi::control::chaos::{CONSTANT, COUNTERS, VOLATILE};

/// The sum of the vCPUs' additions to each page's first word.
static ADDED: [AtomicU32; COUNTERS as usize] = [const { AtomicU32::new(0) }; _];

/// One vCPU's view of them.
pub struct HostPages {
    words: Words,
    vcpu: u64,
    /// The value that this vCPU wrote last into its word of each volatile page.
    written: [u64; VOLATILE as usize],
    writes: u64,
}

impl HostPages {
    /// Collective: writes the constant words.
    pub fn new(cpu: &Cpu, words: Words) -> Self {
        if cpu.is_leader() {
            let addresses = addresses(words);
            for page in 0..COUNTERS + CONSTANT {
                let first = if page < COUNTERS { 1 } else { 0 };
                words.fill(page * PAGE_WORDS + first..(page + 1) * PAGE_WORDS, |i| {
                    addresses.at(i)
                });
            }
        }
        cpu.barrier();
        Self {
            words,
            vcpu: cpu.index,
            written: [0; VOLATILE as usize],
            writes: 0,
        }
    }

    /// A few accesses; returns how many were checked.
    pub fn use_some(&mut self, random: &mut Random, device: u64) -> u64 {
        match random.below(4) {
            0 => {
                let (page, count) = (random.below(COUNTERS), 1 + random.below(256));
                for _ in 0..count {
                    // Additions of both sides to one word: a device that is not alone would lose some. The
                    // guest's half may wrap, but must not carry into the host's.
                    let add = |word: u64| {
                        Some(word & !u64::from(u32::MAX) | u64::from((word as u32).wrapping_add(1)))
                    };
                    let word = self.words.word(page * PAGE_WORDS);
                    let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
                    ADDED[page as usize].fetch_add(1, Ordering::Relaxed);
                }
                count
            }
            1 => {
                let page = random.below(COUNTERS + CONSTANT);
                self.check_page(page)
            }
            2 => {
                let page = COUNTERS + random.below(CONSTANT);
                let words = self.words.slice(page * PAGE_WORDS..(page + 1) * PAGE_WORDS);
                let expected = addresses(words).sum(PAGE_WORDS);
                if random.one_in(4) {
                    devices::run(device, migrate(words, TO_DEVICE));
                }
                let sum = devices::run(device, reduce(words));
                verify::value("an accelerator's sum of a constant page", expected, sum);
                1
            }
            _ => {
                let page = random.below(VOLATILE);
                let count = 1 + random.below(256);
                for _ in 0..count {
                    self.use_volatile(page, random);
                }
                count
            }
        }
    }

    /// The word is what was written last or, from some moment on, zero; never anything older.
    fn use_volatile(&mut self, page: u64, random: &mut Random) {
        let word = (COUNTERS + CONSTANT + page) * PAGE_WORDS + self.vcpu;
        let last = &mut self.written[page as usize];
        if random.one_in(4) {
            self.writes += 1;
            *last = (self.vcpu + 1) << 48 | self.writes;
            self.words.set(word, *last);
        } else {
            let found = self.words.get(word);
            if found != *last && found != 0 {
                let address = self.words.address() + word * 8;
                fail!(
                    EXIT_WRONG_DATA,
                    "wrong data: a page that the host frees, word {} at {address:#x}: expected {last:#x} or 0, found {found:#x}",
                    self.vcpu
                );
            }
            *last = found;
        }
    }

    fn check_page(&self, page: u64) -> u64 {
        let first = if page < COUNTERS { 1 } else { 0 };
        let addresses = addresses(self.words);
        let part = page * PAGE_WORDS + first..(page + 1) * PAGE_WORDS;
        let count = part.end - part.start;
        verify::words("a constant word", self.words, part, |i| addresses.at(i));
        count
    }

    /// All constant words and counters, when no vCPU adds; returns how many were checked.
    pub fn check_everything(&self) -> u64 {
        let mut checked = 0;
        for page in 0..COUNTERS + CONSTANT {
            checked += self.check_page(page);
        }
        for page in 0..COUNTERS {
            let found = self.words.get(page * PAGE_WORDS) as u32;
            let expected = ADDED[page as usize].load(Ordering::Relaxed);
            verify::value(
                "the vCPUs' half of a counter that a device adds to exclusively",
                expected.into(),
                found.into(),
            );
            checked += 1;
        }
        checked
    }
}

/// Each word's own address.
fn addresses(words: Words) -> Pattern {
    Pattern {
        start: words.address(),
        step: 8,
    }
}
