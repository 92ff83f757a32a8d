//! All vCPUs and all accelerators access shared pages at random, amid migrations and frees.
//!
//! Each shared page has *counters*, which both sides add to atomically, and a *slot* for each vCPU, which
//! only that vCPU writes and all vCPUs read. What they must hold is kept in boot memory, which never
//! migrates: [`ADDED`] and [`WRITTEN`]. Each vCPU also has *scratch* areas, which it fills, copies,
//! adds, frees and checks on both sides.
//!
//! The number of *checked* operations is exact: each word that was read and compared counts, and each single write or
//! addition, because its word is compared at the end. A sum that an accelerator made counts one.

// Said because `experiments/accesses` compiles this file from elsewhere.
#[path = "torture/host_pages.rs"]
mod host_pages;
#[path = "torture/rounds.rs"]
mod rounds;

use super::{Count, report};
use crate::catalog::TORTURE_PAGES_MAX;
use crate::command::{atomic_add, copy, fill, migrate, reduce, vector_add};
use crate::control;
use crate::cpu::{Cpu, share};
use crate::devices;
use crate::exit::fail;
use crate::memory::{PAGE_WORDS, Words, alloc};
use crate::pattern::Pattern;
use crate::random::Random;
use crate::verify;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use hmmvisor_abi::accel::{TO_DEVICE, TO_SYSTEM};
use hmmvisor_abi::control::EXIT_WRONG_DATA;
use hmmvisor_abi::map::MAX_VCPUS;

/// Counters are a page's first words.
const COUNTERS: u64 = 8;
/// The first slot's word in a page.
const SLOTS: u64 = 64;
/// The most counters that one command adds to.
const BATCH: u64 = 64;
/// Scratch areas of one vCPU.
const AREAS: usize = 4;
/// Words of an area: whole pages.
const AREA_WORDS: u64 = 4 * PAGE_WORDS;
/// Operations between two reports of progress.
const PROGRESS_OPS: u64 = 16;

/// The sum of additions to each counter.
static ADDED: [AtomicU64; (TORTURE_PAGES_MAX * COUNTERS) as usize] =
    [const { AtomicU64::new(0) }; _];
/// How often each slot was written, counting the write that may be going on.
static WRITTEN: [AtomicU32; (TORTURE_PAGES_MAX * MAX_VCPUS) as usize] =
    [const { AtomicU32::new(0) }; _];

const _: () = assert!(SLOTS >= COUNTERS && SLOTS + MAX_VCPUS <= PAGE_WORDS);

pub fn run(cpu: &Cpu) {
    if cpu.param("seconds") > 0 {
        return rounds::run(cpu);
    }
    let (ops, pages) = (cpu.param("ops"), cpu.param("pages"));
    let shared = cpu.broadcast(|| alloc("shared pages", pages * PAGE_WORDS));
    let mut torture = Torture::new(cpu, shared, AREA_WORDS);
    let own_ops = share(ops, 1, cpu.count(), cpu.index);
    let goal = own_ops.end - own_ops.start;
    for done in 0..goal {
        if done % PROGRESS_OPS == 0 {
            cpu.progress(done, goal);
        }
        torture.operation();
    }
    cpu.barrier();
    torture.check_everything();
    control::checked(torture.checked);
    let checked = cpu.sum(torture.checked);
    report!(
        cpu,
        "{} on {}, {} checked",
        Count(ops, "operation"),
        Count(pages, "shared page"),
        Count(checked, "operation")
    );
}

struct Torture<'a> {
    cpu: &'a Cpu,
    shared: Words,
    pages: u64,
    /// Memory for the index lists of this vCPU's commands.
    indices: Words,
    areas: [Words; AREAS],
    contents: [Pattern; AREAS],
    random: Random,
    /// Operations of this vCPU that were or will be checked.
    checked: u64,
}

impl<'a> Torture<'a> {
    /// With empty scratch areas of so many words, whole pages. `shared` is all the shared pages.
    fn new(cpu: &'a Cpu, shared: Words, area_words: u64) -> Self {
        Torture {
            cpu,
            shared,
            pages: shared.len() / PAGE_WORDS,
            indices: alloc("index lists", BATCH),
            areas: [(); AREAS].map(|()| alloc("scratch areas", area_words)),
            contents: [Pattern::ZERO; AREAS],
            random: cpu.random(),
            checked: 0,
        }
    }

    fn operation(&mut self) {
        match self.random.below(16) {
            0..=3 => {
                let counter = self.any_counter();
                self.add(counter);
            }
            4..=5 => self.add_on_device(),
            6..=7 => {
                let page = self.random.below(self.pages);
                self.write_slot(page);
            }
            8 => {
                let page = self.random.below(self.pages);
                self.read_slot(page, self.cpu.index);
            }
            9..=10 => self.read_any_slot(),
            11 => self.migrate(),
            12..=13 => self.change_area(),
            14 => self.check_area(),
            _ => self.check_area_on_device(),
        }
    }

    fn any_device(&mut self) -> u64 {
        self.random.below(self.cpu.devices())
    }

    fn any_counter(&mut self) -> u64 {
        self.random.below(self.pages * COUNTERS)
    }

    fn add(&mut self, counter: u64) {
        self.checked += 1;
        let value = self.random.next();
        self.shared
            .word(counter_word(counter))
            .fetch_add(value, Ordering::Relaxed);
        ADDED[counter as usize].fetch_add(value, Ordering::Relaxed);
    }

    fn add_on_device(&mut self) {
        let mut counters = [0; BATCH as usize];
        let count = 1 + self.random.below(BATCH);
        self.checked += count;
        let counters = &mut counters[..count as usize];
        for (index, counter) in (0..).zip(counters.iter_mut()) {
            *counter = self.any_counter();
            self.indices.set(index, counter_word(*counter));
        }
        let (device, value) = (self.any_device(), self.random.next());
        devices::run(
            device,
            atomic_add(self.shared, self.indices.slice(0..count), value),
        );
        for counter in counters {
            ADDED[*counter as usize].fetch_add(value, Ordering::Relaxed);
        }
    }

    fn write_slot(&mut self, page: u64) {
        self.checked += 1;
        let vcpu = self.cpu.index;
        let writes = WRITTEN[written(page, vcpu)]
            .fetch_add(1, Ordering::SeqCst)
            .wrapping_add(1);
        self.shared
            .word(slot_word(page, vcpu))
            .store(slot_value(page, vcpu, writes), Ordering::SeqCst);
    }

    fn read_any_slot(&mut self) {
        let (page, vcpu) = (
            self.random.below(self.pages),
            self.random.below(self.cpu.count()),
        );
        self.read_slot(page, vcpu);
    }

    /// A slot holds the value of its last write; while its vCPU is writing also that of the one before.
    fn read_slot(&mut self, page: u64, vcpu: u64) {
        self.checked += 1;
        let writes = || WRITTEN[written(page, vcpu)].load(Ordering::SeqCst);
        let before = writes();
        let found = self
            .shared
            .word(slot_word(page, vcpu))
            .load(Ordering::SeqCst);
        let after = writes();
        let oldest = if vcpu == self.cpu.index {
            before
        } else {
            before.saturating_sub(1)
        };
        if !(oldest..=after).any(|writes| slot_value(page, vcpu, writes) == found) {
            let address = self.shared.address() + slot_word(page, vcpu) * 8;
            fail!(
                EXIT_WRONG_DATA,
                "wrong data: slot of vCPU {vcpu} at {address:#x}: expected the value of write {oldest} to \
                 {after}, {:#x} to {:#x}, found {found:#x}",
                slot_value(page, vcpu, oldest),
                slot_value(page, vcpu, after)
            );
        }
    }

    /// Moves some shared pages or a scratch area.
    fn migrate(&mut self) {
        let words = if self.random.one_in(4) {
            self.areas[self.random.below(AREAS as u64) as usize]
        } else {
            let first = self.random.below(self.pages);
            let count = 1 + self.random.below((self.pages - first).min(64));
            self.shared
                .slice(first * PAGE_WORDS..(first + count) * PAGE_WORDS)
        };
        let direction = if self.random.one_in(2) {
            TO_DEVICE
        } else {
            TO_SYSTEM
        };
        devices::run(self.any_device(), migrate(words, direction));
    }

    fn change_area(&mut self) {
        let [to, a, b] = [(); 3].map(|()| self.random.below(AREAS as u64) as usize);
        let pattern = Pattern::random(&mut self.random);
        let device = self.any_device();
        self.contents[to] = match self.random.below(5) {
            0 => {
                self.areas[to].fill(0..self.areas[to].len(), |i| pattern.at(i));
                pattern
            }
            1 => {
                devices::run(device, fill(self.areas[to], pattern));
                pattern
            }
            2 if to != a => {
                devices::run(device, copy(self.areas[to], self.areas[a]));
                self.contents[a]
            }
            3 => {
                devices::run(
                    device,
                    vector_add(self.areas[to], self.areas[a], self.areas[b]),
                );
                self.contents[a].plus(self.contents[b])
            }
            _ => {
                devices::free_one(device, self.areas[to]);
                Pattern::ZERO
            }
        };
    }

    fn any_part_of_area(&mut self) -> (usize, Range<u64>) {
        let words = self.areas[0].len();
        let start = self.random.below(words);
        let len = 1 + self.random.below(words - start);
        (self.random.below(AREAS as u64) as usize, start..start + len)
    }

    fn check_area(&mut self) {
        let (area, part) = self.any_part_of_area();
        let contents = self.contents[area];
        self.checked += part.end - part.start;
        verify::words("a scratch area", self.areas[area], part, |i| contents.at(i));
    }

    fn check_area_on_device(&mut self) {
        let (area, part) = self.any_part_of_area();
        let expected = self.contents[area]
            .from(part.start)
            .sum(part.end - part.start);
        self.checked += 1;
        let sum = devices::run(self.any_device(), reduce(self.areas[area].slice(part)));
        verify::value("an accelerator's sum of a scratch area", expected, sum);
    }

    /// When all vCPUs are done.
    fn check_everything(&mut self) {
        for area in 0..AREAS {
            let words = self.areas[area].len();
            self.checked += words;
            verify::words(
                "a scratch area at the end",
                self.areas[area],
                0..words,
                |i| self.contents[area].at(i),
            );
        }
        let mut sum: u64 = 0;
        for page in share(self.pages, 1, self.cpu.count(), self.cpu.index) {
            self.checked += PAGE_WORDS;
            verify::words(
                "a shared page at the end",
                self.shared,
                page * PAGE_WORDS..(page + 1) * PAGE_WORDS,
                |index| {
                    let expected = expected_at_end(page, index % PAGE_WORDS);
                    sum = sum.wrapping_add(expected);
                    expected
                },
            );
        }
        let expected = self.cpu.sum(sum);
        let found = devices::split(self.cpu, self.shared.len(), |part| {
            [reduce(self.shared.slice(part))]
        });
        verify::value("the accelerators' sum of the shared pages", expected, found);
    }
}

/// The value of a word of a shared page when no vCPU and no accelerator is writing.
fn expected_at_end(page: u64, word: u64) -> u64 {
    if word < COUNTERS {
        ADDED[(page * COUNTERS + word) as usize].load(Ordering::Relaxed)
    } else if (SLOTS..SLOTS + MAX_VCPUS).contains(&word) {
        let vcpu = word - SLOTS;
        slot_value(
            page,
            vcpu,
            WRITTEN[written(page, vcpu)].load(Ordering::Relaxed),
        )
    } else {
        0
    }
}

fn counter_word(counter: u64) -> u64 {
    counter / COUNTERS * PAGE_WORDS + counter % COUNTERS
}

fn slot_word(page: u64, vcpu: u64) -> u64 {
    page * PAGE_WORDS + SLOTS + vcpu
}

fn written(page: u64, vcpu: u64) -> usize {
    (page * MAX_VCPUS + vcpu) as usize
}

/// The value of a slot after so many writes: different for each page, vCPU and write.
fn slot_value(page: u64, vcpu: u64, writes: u32) -> u64 {
    if writes == 0 {
        0
    } else {
        page << 48 | (vcpu + 1) << 32 | u64::from(writes)
    }
}
