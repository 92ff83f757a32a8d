//! The device's own accesses.

use std::sync::atomic::Ordering::SeqCst;

use hmm_backend::pages::{Page, Permission};

use crate::conformance::bench::{Bench, Checked, same};
use crate::conformance::{AccessRefused, Evidence};

/// Two pages that take turns in the only frame, and a fresh one.
const A: u32 = 3;
const B: u32 = 9;
const FRESH: u32 = 20;

fn write(bench: &mut Bench, page: u32, word: usize, value: u64) -> Checked {
    let written = bench.access().write(Page(page), word, value);
    written
        .map_err(|error| Evidence::new("a write by the device", "no error", error).at(Page(page)))
}

fn expect_read(bench: &mut Bench, when: &str, page: u32, word: usize, expected: u64) -> Checked {
    let found = bench.access().read(Page(page), word);
    let found = found
        .map_err(|error| Evidence::new("a read by the device", "no error", error).at(Page(page)))?;
    same(
        || format!("read by the device, {when}"),
        page,
        expected,
        found,
    )
}

fn expect_cpu(bench: &Bench, when: &str, page: u32, word: usize, expected: u64) -> Checked {
    let found = bench.cpu(page, word).load(SeqCst);
    same(|| format!("read by a CPU, {when}"), page, expected, found)
}

pub fn invalidation(bench: &mut Bench) -> Checked {
    const WORD: usize = 17;
    // An old translation of A leads into the frame that is B's by then, and never into an empty one.
    write(bench, A, WORD, 1)?;
    expect_read(bench, "after its own write", A, WORD, 1)?;
    bench.to_system(A..A + 1)?;
    bench.cpu(A, WORD).store(2, SeqCst);
    bench.cpu(B, WORD).store(100, SeqCst);
    bench.all_to_device(B..B + 1)?;
    expect_read(bench, "after a CPU's write", A, WORD, 2)?;
    bench.to_system(A..B + 1)?;
    bench.all_to_device(B..B + 1)?;
    write(bench, A, WORD, 3)?;
    expect_cpu(
        bench,
        "after the device's write to another page",
        B,
        WORD,
        100,
    )?;
    expect_cpu(bench, "after the device's write", A, WORD, 3)
}

pub fn reuse(bench: &mut Bench) -> Checked {
    const WORD: usize = 31;
    const SECRET: u64 = 0x5ec2_e700;
    write(bench, A, WORD, SECRET)?;
    bench.free(A..A + 1)?;
    expect_read(bench, "in a frame used before", FRESH, WORD, 0)?;
    // While the frame is in use: what a wrong translation leads to is there.
    expect_read(bench, "after the guest freed it", A, WORD, 0)?;
    expect_cpu(bench, "after it was in a frame used before", FRESH, WORD, 0)
}

pub fn read_only(bench: &mut Bench) -> Checked {
    const WORD: usize = 2;
    bench.cpu(A, WORD).store(7, SeqCst);
    let set = |permission| {
        let set = bench
            .backend
            .set_permission(crate::pages(A..A + 1), permission);
        set.map_err(|error| Evidence::new("making a page read-only", "no error", error))
    };
    set(Permission::ReadOnly)?;
    // With a translation to read by, and without.
    for read_first in [true, false] {
        if read_first {
            expect_read(bench, "while read-only", A, WORD, 7)?;
        } else {
            bench.to_system(A..A + 1)?;
        }
        let written = bench.access().write(Page(A), WORD, 8);
        if written != Err(AccessRefused::Permission) {
            let evidence = Evidence::new(
                "a write by the device to a read-only page",
                "no permission",
                format!("{written:?}"),
            );
            return Err(evidence.at(Page(A)));
        }
    }
    expect_cpu(bench, "after a refused write", A, WORD, 7)?;
    let lifted = bench
        .backend
        .set_permission(crate::pages(A..A + 1), Permission::Writable);
    lifted.map_err(|error| Evidence::new("making a page writable", "no error", error))?;
    write(bench, A, WORD, 9)?;
    expect_cpu(bench, "after the device's write", A, WORD, 9)
}
