//! Areas of random sizes are allocated, used on both sides, freed and allocated again, by all vCPUs at
//! once.

use super::{Count, report};
use crate::command::{fill, reduce, vector_add};
use crate::cpu::Cpu;
use crate::devices;
use crate::memory::{self, PAGE_WORDS, Words, alloc};
use crate::pattern::Pattern;
use crate::random::Random;
use crate::verify;

/// Areas of one vCPU.
const AREAS: usize = 8;

/// Allocated memory with known contents.
#[derive(Clone, Copy)]
struct Area {
    words: Words,
    contents: Pattern,
}

pub fn run(cpu: &Cpu) {
    let (rounds, pages) = (cpu.param("rounds"), cpu.param("pages"));
    let largest = (pages / (cpu.count() * AREAS as u64)).max(1);
    let mut random = cpu.random();
    let mut areas = [None; AREAS];
    let mut frees = 0;
    for round in 0..rounds {
        for slot in &mut areas {
            let device = random.below(cpu.devices());
            *slot = match *slot {
                None => Some(allocate(largest, device, &mut random)),
                Some(area) if random.one_in(2) => {
                    free(area, device, &mut random);
                    frees += 1;
                    None
                }
                Some(area) => Some(double(area, device)),
            };
        }
        cpu.progress(round + 1, rounds);
    }
    for area in areas.into_iter().flatten() {
        check(area);
        devices::release(0, area.words);
    }
    let frees = cpu.sum(frees);
    report!(
        cpu,
        "{} right, {} of up to {} freed and reused",
        Count(rounds, "round"),
        Count(frees, "area"),
        Count(largest, "page")
    );
}

fn allocate(largest: u64, device: u64, random: &mut Random) -> Area {
    let words = alloc("an area", (1 + random.below(largest)) * PAGE_WORDS);
    // Whether it was never used or freed: it must be empty.
    if random.one_in(2) {
        check(Area {
            words,
            contents: Pattern::ZERO,
        });
    } else {
        verify::value("sum of a new area", 0, devices::run(device, reduce(words)));
    }
    let contents = Pattern::random(random);
    if random.one_in(4) {
        devices::run(device, fill(words, contents));
    } else {
        words.fill(0..words.len(), |i| contents.at(i));
    }
    Area { words, contents }
}

/// Adds an area to itself on an accelerator.
fn double(area: Area, device: u64) -> Area {
    devices::run(device, vector_add(area.words, area.words, area.words));
    Area {
        contents: area.contents.plus(area.contents),
        ..area
    }
}

/// Frees an area, of which each side may have made the last use, and sometimes looks at it before it
/// can be allocated again.
fn free(area: Area, device: u64, random: &mut Random) {
    if random.one_in(2) {
        check(area);
    }
    devices::free_one(device, area.words);
    if random.one_in(2) {
        check(Area {
            contents: Pattern::ZERO,
            ..area
        });
    }
    memory::give_back(area.words);
}

fn check(area: Area) {
    let what = if area.contents.step == 0 {
        "an empty area"
    } else {
        "an area in use"
    };
    verify::words(what, area.words, 0..area.words.len(), |i| {
        area.contents.at(i)
    });
}
