//! Rounds, for as long as asked: each with sizes and a mix of operations drawn from the run's seed and the round's
//! number alone, from the same empty state, so that any of them can be the first one.

use super::host_pages::HostPages;
use super::{ADDED, AREAS, COUNTERS, Torture, WRITTEN, written};
use crate::command::fill;
use crate::control;
use crate::cpu::{Cpu, share};
use crate::devices;
use crate::memory::{PAGE_WORDS, Words, alloc};
use crate::pattern::Pattern;
use crate::random::{Random, hash};
use crate::verify;
use crate::workloads::{Count, Grouped, report};
use core::sync::atomic::Ordering;
use hmmvisor_abi::control::chaos;
use hmmvisor_abi::map::MAX_VCPUS;

/// Pages of the largest scratch area.
const AREA_PAGES: u64 = 16;
/// Kinds of operations, in [`Torture::draw`].
const KINDS: usize = 10;

/// The parameters of a round.
struct Draws {
    /// Shared pages in use.
    pages: u64,
    area_pages: u64,
    /// Operations of each vCPU, where a burst is one.
    ops: u64,
    /// How often each kind of operation comes.
    weights: [u64; KINDS],
    /// The longest burst, and how many neighbouring pages it is on.
    burst: u64,
    burst_pages: u64,
    /// Whether an accelerator or a vCPU clears the shared pages in the end.
    clear_on_device: bool,
}

impl Draws {
    fn new(seed: u64, round: u64, pages: u64) -> Self {
        let mut random = Random::new(hash(seed, round), u64::MAX);
        let mut weights = [0; KINDS].map(|_: u64| random.below(8));
        // At least some work for the vCPUs alone: that is the cheap kind.
        weights[0] += 4;
        Self {
            pages: 1 + random.below(pages),
            area_pages: 1 + random.below(AREA_PAGES),
            ops: 64 + random.below(512),
            weights,
            burst: 256 << random.below(7),
            burst_pages: 1 + random.below(8),
            clear_on_device: random.one_in(2),
        }
    }
}

pub fn run(cpu: &Cpu) {
    let (pages, limit) = (cpu.param("pages"), cpu.param("seconds") * 1_000_000_000);
    let first = cpu.param("round");
    // First in memory are the pages that vCPUs free, then those that are never freed.
    let whole: [Words; AREAS] =
        [(); AREAS].map(|()| alloc("scratch areas", AREA_PAGES * PAGE_WORDS));
    cpu.barrier();
    let all = cpu.broadcast(|| {
        alloc(
            "shared pages and the host's",
            (pages + chaos::PAGES) * PAGE_WORDS,
        )
    });
    let mut torture = Torture::new(cpu, all.slice(0..pages * PAGE_WORDS), PAGE_WORDS);
    let mut host_pages = HostPages::new(cpu, all.slice(pages * PAGE_WORDS..all.len()));
    if cpu.is_leader() {
        control::chaos(all.address(), pages);
    }
    let begin = cpu.broadcast(control::time_ns);
    let mut round = first;
    let mut elapsed = 0;
    let mut total = 0;
    // At least one, however late it is.
    while elapsed < limit {
        if cpu.is_leader() {
            control::round(round);
        }
        cpu.barrier();
        let draws = Draws::new(cpu.boot.seed, round, pages);
        torture.shared = all.slice(0..draws.pages * PAGE_WORDS);
        torture.pages = draws.pages;
        torture.areas = whole.map(|words| words.slice(0..draws.area_pages * PAGE_WORDS));
        torture.random = Random::new(hash(cpu.boot.seed, round), cpu.index);
        for _ in 0..draws.ops {
            torture.draw(&draws, &mut host_pages);
        }
        cpu.barrier();
        torture.check_everything();
        torture.checked += host_pages.check_everything();
        cpu.barrier();
        torture.clear(&draws);
        control::checked(torture.checked);
        total += core::mem::take(&mut torture.checked);
        round += 1;
        elapsed = cpu.broadcast(control::time_ns) - begin;
        cpu.progress(elapsed.min(limit), limit);
    }
    let total = cpu.sum(total);
    let rounds = round - first;
    report!(
        cpu,
        "{} from round {} on, {} checked",
        Count(rounds, "round"),
        Grouped(first),
        Count(total, "operation")
    );
}

impl Torture<'_> {
    fn draw(&mut self, draws: &Draws, host_pages: &mut HostPages) {
        let mut left = self.random.below(draws.weights.iter().sum());
        let mut kind = 0;
        while left >= draws.weights[kind] {
            left -= draws.weights[kind];
            kind += 1;
        }
        match kind {
            0 => self.burst(draws),
            1 => {
                let counter = self.any_counter();
                self.add(counter);
            }
            2 => self.add_on_device(),
            3 => {
                let page = self.random.below(self.pages);
                self.write_slot(page);
            }
            4 => self.read_any_slot(),
            5 => self.migrate(),
            6 => self.change_area(),
            7 => self.check_area(),
            8 => self.check_area_on_device(),
            _ => {
                let device = self.any_device();
                self.checked += host_pages.use_some(&mut self.random, device);
            }
        }
    }

    /// Many accesses to a few pages, which only this pays for their migration.
    fn burst(&mut self, draws: &Draws) {
        let count = 1 + self.random.below(draws.burst);
        let pages = draws.burst_pages.min(self.pages);
        let first = self.random.below(self.pages - pages + 1);
        for _ in 0..count {
            let choice = self.random.next();
            let page = first + (choice >> 32) % pages;
            match choice % 4 {
                0 => self.add(page * COUNTERS + (choice >> 8) % COUNTERS),
                1 => self.write_slot(page),
                2 => self.read_slot(page, self.cpu.index),
                _ => self.read_slot(page, (choice >> 8) % self.cpu.count()),
            }
        }
    }

    /// Back to the state before the round; scratch areas are freed and must read as zeros. Collective.
    fn clear(&mut self, draws: &Draws) {
        for area in 0..AREAS {
            let device = self.any_device();
            devices::free_one(device, self.areas[area]);
            let words = self.areas[area].len();
            self.checked += words;
            verify::words("a freed scratch area", self.areas[area], 0..words, |_| 0);
        }
        self.contents = [Pattern::ZERO; AREAS];
        for page in share(self.pages, 1, self.cpu.count(), self.cpu.index) {
            let words = self
                .shared
                .slice(page * PAGE_WORDS..(page + 1) * PAGE_WORDS);
            if draws.clear_on_device {
                let device = self.any_device();
                devices::run(device, fill(words, Pattern::ZERO));
            } else {
                words.fill(0..PAGE_WORDS, |_| 0);
            }
            for counter in page * COUNTERS..(page + 1) * COUNTERS {
                ADDED[counter as usize].store(0, Ordering::Relaxed);
            }
            for vcpu in 0..MAX_VCPUS {
                WRITTEN[written(page, vcpu)].store(0, Ordering::Relaxed);
            }
        }
        self.cpu.barrier();
    }
}
