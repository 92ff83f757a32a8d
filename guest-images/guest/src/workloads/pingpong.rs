//! CPUs and accelerators take turns on the same pages: each page has a counter that both sides add to,
//! and in its second half a block that one side writes and the other one checks.

use super::{Count, report};
use crate::command::{atomic_add, fill, reduce};
use crate::cpu::Cpu;
use crate::devices;
use crate::memory::{PAGE_WORDS, alloc};
use crate::pattern::Pattern;
use crate::verify;
use core::ops::Range;
use core::sync::atomic::Ordering;

/// Index of the first word of a page's block.
const BLOCK: u64 = PAGE_WORDS / 2;
/// The number that an accelerator adds to each counter in its turn; a CPU adds 1.
const DEVICE_ADDS: u64 = 1000;

pub fn run(cpu: &Cpu) {
    let (pages, rounds) = (cpu.param("pages"), cpu.param("rounds"));
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
    let mut total = 0;
    for round in 0..rounds {
        let pattern = Pattern::random(&mut random);
        // Blocks are written by the CPUs in even rounds, by the accelerators in odd ones.
        let device_writes = round % 2 == 1;
        for page in own_pages.clone() {
            let counter = counters.get(page);
            let found = shared.word(counter).fetch_add(1, Ordering::Relaxed);
            verify::word(
                "counters before the CPU's turn",
                shared,
                counter,
                total,
                found,
            );
            if !device_writes {
                shared.fill(block(page), |i| pattern.at(i));
            }
        }
        let sum = devices::split(cpu, len, |part| {
            let part = pages_of(part);
            let add = atomic_add(shared, counters.slice(part.clone()), DEVICE_ADDS);
            part.map(move |page| {
                let words = shared.slice(block(page));
                if device_writes {
                    fill(words, pattern.from(block(page).start))
                } else {
                    reduce(words)
                }
            })
            .chain([add])
        });
        total += 1 + DEVICE_ADDS;
        if !device_writes {
            let block_sum = |page| pattern.from(block(page).start).sum(PAGE_WORDS - BLOCK);
            let expected = (0..pages).map(block_sum).fold(0, u64::wrapping_add);
            verify::value(
                "the accelerators' sum of what the CPUs wrote",
                expected,
                sum,
            );
        }
        for page in own_pages.clone() {
            let counter = counters.get(page);
            verify::word(
                "counters after the accelerator's turn",
                shared,
                counter,
                total,
                shared.get(counter),
            );
            verify::words("blocks", shared, block(page), |i| pattern.at(i));
        }
        cpu.progress(round + 1, rounds);
    }
    report!(
        cpu,
        "{} on {} right",
        Count(rounds, "round"),
        Count(pages, "page")
    );
}

fn pages_of(words: Range<u64>) -> Range<u64> {
    words.start / PAGE_WORDS..words.end / PAGE_WORDS
}

fn block(page: u64) -> Range<u64> {
    page * PAGE_WORDS + BLOCK..(page + 1) * PAGE_WORDS
}
