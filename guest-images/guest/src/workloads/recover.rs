//! Reads the last pages of managed memory, which nothing else uses, and recovers from those that cannot be
//! supplied: each access fails on each vCPU, with the page's address; after a free, the pages can be used again.

use super::{Count, Grouped, report};
use crate::command::command;
use crate::cpu::Cpu;
use crate::devices;
use crate::exit::fail;
use crate::memory::{PAGE, PAGE_WORDS};
use crate::memory_error::MemoryError;
use crate::verify;
use hmmvisor_abi::accel::{OP_FREE, OP_REDUCE};
use hmmvisor_abi::control::{EXIT_USAGE, EXIT_WRONG_DATA};

pub fn run(cpu: &Cpu) {
    let (pages, rounds) = (cpu.param("pages"), cpu.param("rounds"));
    let end = cpu.boot.memory_base + cpu.boot.memory_size;
    // The front is for queues.
    if pages * PAGE > cpu.boot.memory_size / 2 {
        fail!(
            EXIT_USAGE,
            "{pages} pages are more than half of managed memory; use fewer, or more memory"
        );
    }
    let page = |number: u64| end - (pages - number) * PAGE;
    let mut lost = 0;
    let mut reasons = 0;
    for round in 0..rounds {
        cpu.barrier();
        lost = 0;
        for number in 0..pages {
            if let Err(error) = cpu.try_read(page(number)) {
                is_about(error, page(number));
                fails_each_time(cpu, page(number), error.reason);
                lost += 1;
                reasons |= 1 << error.reason;
            }
        }
        verify::value(
            "sum of the vCPUs' lost pages",
            lost * cpu.count(),
            cpu.sum(lost),
        );
        cpu.progress(round + 1, rounds);
    }
    verify::value("lost pages", cpu.param("lost"), lost);
    if lost > 0 && cpu.param("reason") != 0 {
        verify::value("reasons", 1 << cpu.param("reason"), reasons);
    }

    cpu.barrier();
    if cpu.is_leader() {
        for number in 0..pages {
            if cpu.try_read(page(number)).is_err() {
                devices::run(0, command(OP_FREE, &[page(number), PAGE]));
                works(cpu, page(number));
            }
            is_the_same_to_devices(cpu, page(number));
        }
    }
    report!(
        cpu,
        "{} of {} lost, all usable again",
        Grouped(lost),
        Count(pages, "page")
    );
}

/// All kinds of access, anywhere in the page, and nothing is changed by them.
fn fails_each_time(cpu: &Cpu, page: u64, reason: u64) {
    let mut random = cpu.random();
    let word = page + random.below(PAGE_WORDS) * 8;
    for result in [
        cpu.try_read(word).map(|_| ()),
        cpu.try_write(word, !0),
        cpu.try_fetch_add(word, 1).map(|_| ()),
        cpu.try_compare_exchange(word, 0, 1).map(|_| ()),
    ] {
        match result {
            Ok(()) => verify::value("accesses to a lost page that succeed", 0, 1),
            Err(error) => {
                is_about(error, page);
                verify::value("reason of the next error", reason, error.reason);
            }
        }
    }
}

/// Zeros at first, then what is written.
fn works(cpu: &Cpu, page: u64) {
    let good = |what, expected, found: Result<u64, MemoryError>| match found {
        Ok(found) => verify::value(what, expected, found),
        Err(error) => verify::value("reason of an error on a new page", 0, error.reason),
    };
    for word in (page..page + PAGE).step_by(8) {
        good("word of a new page", 0, cpu.try_read(word));
    }
    good("word before an addition", 0, cpu.try_fetch_add(page, 5));
    good(
        "word before an exchange",
        5,
        cpu.try_compare_exchange(page, 5, 7),
    );
    good(
        "word before a failing exchange",
        7,
        cpu.try_compare_exchange(page, 5, 9),
    );
    good("word before a store", 7, cpu.try_read(page));
    good("a store", 0, cpu.try_write(page, 11).map(|()| 0));
    good("word after a store", 11, cpu.try_read(page));
}

/// Accelerators and vCPUs see the same.
fn is_the_same_to_devices(cpu: &Cpu, page: u64) {
    let mut sum: u64 = 0;
    for word in (page..page + PAGE).step_by(8) {
        match cpu.try_read(word) {
            Ok(value) => sum = sum.wrapping_add(value),
            Err(error) => fail!(
                EXIT_WRONG_DATA,
                "wrong data: {error}, of a page that is there"
            ),
        }
    }
    for device in 0..cpu.devices() {
        let found = devices::run(device, command(OP_REDUCE, &[page, PAGE_WORDS]));
        verify::value("an accelerator's sum of a page", sum, found);
    }
}

fn is_about(error: MemoryError, page: u64) {
    verify::value("address of a memory error", page, error.address);
}
