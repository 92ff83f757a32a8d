//! Accelerators hand the same pages on to each other: in each turn another one adds to a counter on each page, sums a block that
//! the one before has written, and writes it anew. CPUs touch the pages only before the first turn and after the last.

use super::{Count, report};
use crate::command::{atomic_add, fill, reduce};
use crate::cpu::Cpu;
use crate::devices;
use crate::memory::{PAGE_WORDS, alloc};
use crate::pattern::Pattern;
use crate::verify;
use core::ops::Range;

/// Index of the first word of a page's block.
const BLOCK: u64 = PAGE_WORDS / 2;
/// The number that an accelerator adds to each counter in its turn.
const ADDS: u64 = 1000;

pub fn run(cpu: &Cpu) {
    let (pages, turns) = (cpu.param("pages"), cpu.param("turns"));
    let len = pages * PAGE_WORDS;
    let (shared, counters) = cpu.broadcast(|| {
        (
            alloc("shared pages", len),
            alloc("the counters' indices", pages),
        )
    });
    let own_pages = pages_of(cpu.share(len));
    counters.fill(own_pages.clone(), |page| page * PAGE_WORDS + page % BLOCK);
    let mut random = cpu.common_random();
    let mut pattern = Pattern::random(&mut random);
    for page in own_pages.clone() {
        shared.fill(page * PAGE_WORDS..block(page).start, |_| 0);
        shared.fill(block(page), |i| pattern.at(i));
    }
    for turn in 0..turns {
        let device = turn % cpu.devices();
        let sum = devices::on_each(cpu, |each| {
            let pages = if each == device { 0..pages } else { 0..0 };
            pages.map(|page| reduce(shared.slice(block(page))))
        });
        let block_sum = |page| pattern.from(block(page).start).sum(PAGE_WORDS - BLOCK);
        let expected = (0..pages).map(block_sum).fold(0, u64::wrapping_add);
        verify::value("the sum of what was there before", expected, sum);
        pattern = Pattern::random(&mut random);
        devices::on_each(cpu, |each| {
            let mine = each == device;
            let pages = if mine { 0..pages } else { 0..0 };
            let add = mine.then(|| atomic_add(shared, counters, ADDS));
            pages
                .map(|page| fill(shared.slice(block(page)), pattern.from(block(page).start)))
                .chain(add)
        });
        cpu.progress(turn + 1, turns);
    }
    for page in own_pages {
        let counter = counters.get(page);
        verify::word(
            "counters after the last turn",
            shared,
            counter,
            turns * ADDS,
            shared.get(counter),
        );
        verify::words("blocks", shared, block(page), |i| pattern.at(i));
    }
    report!(
        cpu,
        "{} on {} right",
        Count(turns, "turn"),
        Count(pages, "page")
    );
}

fn pages_of(words: Range<u64>) -> Range<u64> {
    words.start / PAGE_WORDS..words.end / PAGE_WORDS
}

fn block(page: u64) -> Range<u64> {
    page * PAGE_WORDS + BLOCK..(page + 1) * PAGE_WORDS
}
