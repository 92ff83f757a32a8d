//! Many threads at once.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;

use hmm_backend::Backend;
use hmm_backend::pages::{DeviceId, Page};

use crate::Random;
use crate::conformance::bench::{Bench, Checked, pattern, same};
use crate::conformance::{DeviceAccess, Evidence};

/// Pages that all threads add to; twice as many as the device has.
const SHARED: Range<u32> = 0..128;
/// Pages that are freed all the time.
const FREED: Range<u32> = 512..600;

pub fn concurrent(bench: &mut Bench) -> Checked {
    const OPERATIONS: u32 = 1500;
    let added = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let Bench { backend, units, .. } = &mut *bench;
    let (backend, id) = (&*backend, units[0].id);
    let device = &mut units[0].device;
    std::thread::scope(|scope| {
        let (added, stop) = (&added, &stop);
        let workers = [1, 2].map(|seed| {
            scope.spawn(move || {
                let mut random = Random(seed);
                for _ in 0..OPERATIONS {
                    let page = random.below(SHARED.len() as u64) as u32;
                    crate::word(backend, page, 5).fetch_add(1, SeqCst);
                    added.fetch_add(1, SeqCst);
                    let page = FREED.start + random.below(FREED.len() as u64) as u32;
                    crate::word(backend, page, 0).store(1, SeqCst);
                }
            })
        });
        let on_device = scope.spawn(move || {
            let mut random = Random(3);
            for _ in 0..OPERATIONS {
                let page = random.below(SHARED.len() as u64) as u32;
                device.add(Page(page), 5, 1)?;
                added.fetch_add(1, SeqCst);
            }
            Ok(())
        });
        for seed in [4, 5] {
            scope.spawn(move || disturb(backend, id, seed, stop));
        }
        let mut checked = Ok(());
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
        match on_device.join() {
            Ok(Ok(())) => {}
            Ok(Err::<(), crate::conformance::AccessRefused>(error)) => {
                checked = Err(Evidence::new("a device's write", "no error", error));
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
        stop.store(true, SeqCst);
        checked
    })?;
    bench.check_books("after many threads' work")?;
    let sum = SHARED.map(|page| bench.cpu(page, 5).load(SeqCst)).sum();
    same(
        || "sum of what many threads added".into(),
        0,
        added.load(SeqCst),
        sum,
    )
}

/// Migrates and frees until told to stop.
fn disturb(backend: &Backend, id: DeviceId, seed: u64, stop: &AtomicBool) {
    let mut random = Random(seed);
    while !stop.load(SeqCst) {
        let start = random.below(SHARED.len() as u64) as u32;
        let end = SHARED.end.min(start + 1 + random.below(32) as u32);
        // Results say how much moved, which is chance.
        let _ = match random.below(3) {
            0 => backend.migrate_to_device(id, crate::pages(start..end)),
            1 => backend.migrate_to_device(id, crate::pages(FREED)),
            _ => backend.guest_freed(crate::pages(FREED)),
        };
    }
}

pub fn no_global_lock(bench: &mut Bench) -> Checked {
    bench.fill(0..8);
    // A folio of its own for page 0: what the device uses of a folio is not known page by page.
    bench.all_to_device(0..1)?;
    bench.all_to_device(1..4)?;
    // The device uses page 0: to take it away, the driver's copy phase has to wait for the guard.
    let found = bench.unit().device.read(Page(0), 0);
    let found = found.map_err(|error| Evidence::new("a device's read", "contents", error))?;
    same(|| "word 0 on the device".into(), 0, pattern(0, 0), found)?;
    let patience = bench.patience;
    let Bench { backend, units, .. } = &mut *bench;
    let (backend, id) = (&*backend, units[0].id);
    let witness = units[0].witness.clone();
    let guard = units[0].device.mirror.lock();
    std::thread::scope(|scope| {
        let held = scope.spawn(|| backend.migrate_to_system(crate::pages(0..1)));
        while !guard.wanted() && !held.is_finished() {
            std::thread::yield_now();
        }
        let (say, hear) = mpsc::channel();
        type Act<'a> = Box<dyn FnOnce() + Send + 'a>;
        let others: [(&str, u32, Act<'_>); 3] = [
            (
                "a free by the guest",
                1,
                Box::new(|| drop(backend.guest_freed(crate::pages(1..2)))),
            ),
            (
                "a migration to the system",
                2,
                Box::new(|| drop(backend.migrate_to_system(crate::pages(2..3)))),
            ),
            (
                "a migration to the device",
                5,
                Box::new(|| drop(backend.migrate_to_device(id, crate::pages(5..6)))),
            ),
        ];
        let mut checked = Ok(());
        for (what, page, act) in others {
            let say = say.clone();
            scope.spawn(move || {
                act();
                let _ = say.send(());
            });
            if checked.is_ok()
                && hear.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout)
            {
                let calls = witness.running().join(", ");
                let what = format!("{what} while the migration of page 0 waits");
                let evidence = Evidence::new(what, "an end", format!("none; under way: {calls}"));
                checked = Err(evidence.at(Page(page)));
            }
        }
        // Now all threads can continue.
        drop(guard);
        checked
    })?;
    bench.to_system(0..8)?;
    bench.expect_filled("after it all", 0..1)?;
    bench.expect_zeros("freed", 1..2)?;
    bench.expect_filled("after it all", 2..8)
}
