//! The operations of the backend that make no system call, for `benches/instructions.rs`, which counts their
//! instructions. Not a part of the public interface: compiled only with the feature `measure`.

use std::hint::black_box;
use std::time::Duration;

use crate::fault::{Fault, sort_and_deduplicate};
use crate::pages::time::Tick;
use crate::pages::{
    Access, BLOCK_PAGES, Block, DeviceId, Frame, MAX_ORDER, Page, PageRange, PageSet, Place,
};
use crate::policy::{BlockFault, BlockView, FaultPolicy, PolicyFactory, PolicySpec};
use crate::residency::{BlockWords, FolioLock, ResidencyTable, TryLock, WakeFaults};

/// The name of an operation, and the function that runs it the given number of times.
pub type Operation = (&'static str, fn(u32));

/// The operations to measure.
pub const OPERATIONS: [Operation; 7] = [
    ("decision on-demand", |n| decision("on-demand", n)),
    ("decision density", |n| decision("density", n)),
    ("page lock publish unlock", page_transition),
    ("2 MiB folio lock unlock", folio_lock),
    ("2 MiB folio lock publish unlock", folio_transition),
    ("2 MiB folio halved to a page", folio_halved),
    ("queue sort of 64 faults", queue_sort),
];

struct Nobody;

impl WakeFaults for Nobody {
    fn wake_faults(&self, _: PageRange) {}
}

fn table() -> ResidencyTable {
    ResidencyTable::new(BLOCK_PAGES as u32, Box::new(Nobody))
}

fn lock(table: &ResidencyTable, page: Page) -> FolioLock<'_> {
    match table.try_lock(page) {
        TryLock::Locked(lock) => lock,
        TryLock::Busy => unreachable!("there is one thread"),
    }
}

/// Asks a policy about a fault in the middle of a block and validates the advice; reads the block's words if the policy
/// looks at them. A fifth of the block is in system memory, the rest on a device.
fn decision(policy: &str, n: u32) {
    let spec: PolicySpec = policy.parse().expect("a known policy");
    let mut policy: Box<dyn FaultPolicy> = spec.fault_policy();
    let table = table();
    let block = PageRange::with_len(Page(0), BLOCK_PAGES as u32);
    for page in block.pages() {
        lock(&table, page).publish_pages(|word| match page.0 {
            0..100 => word.to_system(Tick(0)),
            _ => word.to_private(DeviceId(0), Frame(page.0), 0),
        });
    }
    for i in 0..n {
        let words = BlockWords::new(&table, block);
        let view = BlockView::of(&words);
        let fault = BlockFault {
            block: Block(0),
            pages: PageSet::from_iter([black_box(200 + i as usize % 2)]),
            access: Access::Write,
            to: Place::System,
            now: Duration::ZERO,
            waited: false,
        };
        black_box(policy.advise(&fault, &view).validated(&fault, &view));
    }
}

fn page_transition(n: u32) {
    let table = table();
    for _ in 0..n {
        lock(&table, black_box(Page(7))).publish_pages(|word| word.to_system(Tick(1)));
    }
}

fn whole_folio(table: &ResidencyTable) {
    let pages = PageRange::with_len(Page(0), BLOCK_PAGES as u32).pages();
    let locks: Vec<_> = pages.map(|page| lock(table, page)).collect();
    drop(FolioLock::merge(locks, MAX_ORDER, |word| {
        word.to_private(DeviceId(0), Frame(0), MAX_ORDER)
    }));
}

fn folio_lock(n: u32) {
    let table = table();
    whole_folio(&table);
    for _ in 0..n {
        drop(lock(&table, black_box(Page(300))));
    }
}

fn folio_transition(n: u32) {
    let table = table();
    whole_folio(&table);
    let until = black_box(Tick(1));
    for _ in 0..n {
        lock(&table, black_box(Page(300))).publish_folio(move |word| word.to_system(until));
    }
}

/// Cuts a 2 MiB folio nine times, as for a fault on one page, and merges the pieces again.
fn folio_halved(n: u32) {
    let table = table();
    whole_folio(&table);
    for _ in 0..n {
        let mut pieces = vec![lock(&table, black_box(Page(0)))];
        for _ in 0..MAX_ORDER {
            let upper = pieces[0].halve();
            pieces.insert(1, upper);
        }
        drop(FolioLock::merge(pieces, MAX_ORDER, |word| {
            word.to_private(DeviceId(0), Frame(0), MAX_ORDER)
        }));
    }
}

fn queue_sort(n: u32) {
    let fault = |i: u32| Fault {
        generation: 0,
        // Unordered, and some pages occur twice.
        page: Page(i.wrapping_mul(0x9e37_79b1) >> 26),
        access: match i % 2 {
            0 => Access::Write,
            _ => Access::Read,
        },
        thread: 1,
        since: Duration::ZERO,
        reading: 0,
    };
    let batch: Vec<Fault> = (0..64).map(fault).collect();
    for _ in 0..n {
        let mut faults = black_box(batch.clone());
        sort_and_deduplicate(&mut faults);
        black_box(faults);
    }
}
