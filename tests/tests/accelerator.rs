//! The accelerator on a real backend without a guest: this process's threads are the CPUs. While it computes, another
//! thread migrates and evicts its pages at random, and every result must be the right one.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hmm_backend::pages::{Fidelity, PAGE_SIZE, Page};
use hmm_backend::residency::Residency;
use hmmvisor_abi::accel::*;
use hmmvisor_devices::{CommandInFlight, MmioDevice};
use hmmvisor_testkit::accelerator::{FIRST, PAGES, Rig, at, command};
use hmmvisor_testkit::machine::both_engines;
use hmmvisor_testkit::{Random, pages};

/// Whole numbers as doubles: sums are exact, in whatever order they are made.
fn double(value: u64) -> u64 {
    (value as f64).to_bits()
}

/// Integer commands.
fn integers(rig: &mut Rig, random: &mut Random) {
    let n = 2000 + random.below(3000);
    let (start, step) = (random.number(), random.number());
    let value = |i: u64| start.wrapping_add(step.wrapping_mul(i));
    rig.result(OP_FILL, &[at(10), n, start, step]);
    rig.result(OP_COPY, &[at(30) + 8, at(10), n * 8]);
    rig.result(OP_VECTOR_ADD, &[at(50), at(10), at(30) + 8, n]);
    rig.expect(
        "fill, copy and add",
        50,
        (0..n).map(|i| value(i).wrapping_mul(2)),
    );
    let sum = (0..n).fold(0, |sum: u64, i| sum.wrapping_add(value(i).wrapping_mul(2)));
    assert_eq!(rig.result(OP_REDUCE, &[at(50), n]), sum);

    // The multiples of a number that shares no factor with 4096 hit every word once.
    let index = |i: u64| i * 1021 % 4096;
    rig.fill(70, (0..4096).map(index));
    rig.result(OP_FILL, &[at(10), 4096, start, step]);
    rig.result(OP_GATHER, &[at(90), at(10), at(70), 4096, 4096]);
    rig.expect("gather", 90, (0..4096).map(|i| value(index(i))));
    rig.result(OP_SCATTER, &[at(110), at(90), at(70), 4096, 4096]);
    rig.expect("scatter", 110, (0..4096).map(value));
    let end = (0..5000).fold(3, |p, _| index(p));
    assert_eq!(rig.result(OP_CHASE, &[at(70), 3, 5000, 4096]), end);

    // The accelerator and this thread count in the same words at the same time.
    rig.result(OP_FILL, &[at(130), 4096, 0, 0]);
    rig.submit(command(OP_ATOMIC_ADD, &[at(130), at(70), 4096, 7, 4096]));
    for word in 0..4096 {
        rig.cpu(130 * PAGE_SIZE + 8 * index(word))
            .fetch_add(2, Relaxed);
    }
    rig.wait();
    assert_eq!(rig.answer().0, STATUS_OK);
    rig.expect("atomic add", 130, [9; 4096]);
}

/// A vCPU that has seen a command's completion may fault on its pages at once. The backend has been told of the command's
/// accesses then, so that a recorded run has them in their order.
#[test]
fn visits_are_told_of_when_a_command_is_complete() {
    both_engines("visits", |engine| {
        let mut rig = Rig::telling(Fidelity::All, engine, "on-demand+lru", 64);
        let visits = |rig: &Rig| rig.backend.stats().counters.visits;
        for round in 0..3 {
            rig.result(OP_FILL, &[at(10), 8 * 512, 1, 1]);
            // The first time, each of the 8 pages takes a fault, which tells of the access.
            assert_eq!(visits(&rig), 8 * round);
        }
    });
}

/// Hints move nothing, but decide where the next access finds its page.
#[test]
fn what_a_guest_says_about_pages_reaches_the_policy() {
    both_engines("hints of a guest", |engine| {
        let policy = "on-demand+hints+timeslice:min=0";
        let mut rig = Rig::new(engine, policy, 64);
        rig.fill(100, 0..8 * 512);
        let on_device = |rig: &Rig| -> Vec<u32> {
            let there = |page: &u32| {
                let word = rig.backend.word(Page(*page)).unwrap();
                matches!(word.residency(), Residency::Device(_))
            };
            (100..108).filter(there).collect()
        };
        let hint = |rig: &mut Rig, page, pages, hint| {
            assert_eq!(rig.result(OP_HINT, &[at(page), pages * PAGE_SIZE, hint]), 0);
        };
        let sum = (0..8 * 512).sum::<u64>();
        hint(&mut rig, 100, 8, HINT_PREFER_SYSTEM);
        assert_eq!(rig.result(OP_REDUCE, &[at(100), 8 * 512]), sum);
        assert!(on_device(&rig).is_empty());
        // A hint does not take away the translation that the device has; moving the page does.
        hint(&mut rig, 102, 2, HINT_PREFER_NONE);
        hint(&mut rig, 104, 1, HINT_PREFER_DEVICE);
        rig.result(OP_MIGRATE, &[at(100), 8 * PAGE_SIZE, TO_DEVICE]);
        rig.result(OP_MIGRATE, &[at(100), 8 * PAGE_SIZE, TO_SYSTEM]);
        assert_eq!(rig.result(OP_REDUCE, &[at(100), 8 * 512]), sum);
        assert_eq!(on_device(&rig), [102, 103, 104]);
        rig.check_contract();
    });
}

/// The accelerator's load and store are one operation, because no vCPU and no other device reaches the page meanwhile.
fn exclusive(rig: &mut Rig) {
    rig.fill(190, [5]);
    rig.submit(command(OP_EXCLUSIVE_ADD, &[at(190), 20_000, 1]));
    for _ in 0..200 {
        rig.cpu(190 * PAGE_SIZE).fetch_add(1 << 32, Relaxed);
    }
    rig.wait();
    let (status, before, _) = rig.answer();
    assert_eq!((status, before & 0xffff_ffff), (STATUS_OK, 5));
    rig.expect("exclusive add", 190, [(200 << 32) + 20_005]);
    assert_eq!(
        rig.result(OP_EXCLUSIVE_ADD, &[at(190), 0, 1]),
        (200 << 32) + 20_005
    );
    let pinned = rig.backend.pin(pages(190..191)).unwrap();
    // The owner of the pin uses the page without faults.
    let refused = rig.run(OP_EXCLUSIVE_ADD, &[at(190), 1, 1]);
    assert_eq!(refused, (STATUS_PERMISSION, 0, at(190)));
    drop(pinned);
}

/// Commands on doubles and on compressed rows.
fn matrices(rig: &mut Rig, random: &mut Random) {
    let n = 3000;
    rig.fill(200, (0..n).map(double));
    rig.fill(220, (0..n).map(|i| double(i * 3)));
    rig.result(OP_TRIAD, &[at(240), at(200), at(220), n, double(5)]);
    rig.expect("triad", 240, (0..n).map(|i| double(16 * i)));

    let n = 20 + random.below(20);
    let [a, b]: [Vec<u64>; 2] = [(); 2].map(|()| (0..n * n).map(|_| random.below(1000)).collect());
    rig.fill(260, a.iter().copied().map(double));
    rig.fill(265, b.iter().copied().map(double));
    rig.result(OP_MATMUL, &[at(270), at(260), at(265), n]);
    let product = |row: u64, column: u64| {
        (0..n)
            .map(|k| a[(row * n + k) as usize] * b[(k * n + column) as usize])
            .sum()
    };
    rig.expect(
        "matmul",
        270,
        (0..n * n).map(|i| double(product(i / n, i % n))),
    );

    // A graph, which is also a matrix: vertex i has i mod 5 edges.
    let n = 1500;
    let mut row = vec![0];
    let mut col = Vec::new();
    for vertex in 0..n {
        col.extend((0..vertex % 5).map(|_| random.below(n)));
        row.push(col.len() as u64);
    }
    let edges = |v: u64| row[v as usize] as usize..row[v as usize + 1] as usize;
    rig.fill(300, row.iter().copied());
    rig.fill(310, col.iter().copied());
    rig.fill(320, (0..col.len() as u64).map(double));
    rig.fill(330, (0..n).map(|i| double(i % 7)));
    rig.result(OP_SPMV, &[at(340), at(300), at(310), at(320), at(330), n]);
    let product = |v| edges(v).map(|e| e as u64 * (col[e] % 7)).sum();
    rig.expect("spmv", 340, (0..n).map(|v| double(product(v))));

    let mut distance = vec![u64::MAX; n as usize];
    distance[4] = 0;
    rig.fill(350, distance.iter().copied());
    for level in 0.. {
        let mut reached = 0;
        for v in (0..n)
            .filter(|v| distance[*v as usize] == level)
            .collect::<Vec<_>>()
        {
            for target in &col[edges(v)] {
                if distance[*target as usize] == u64::MAX {
                    distance[*target as usize] = level + 1;
                    reached += 1;
                }
            }
        }
        assert_eq!(
            rig.result(OP_BFS_STEP, &[at(300), at(310), at(350), n, level]),
            reached
        );
        if reached == 0 {
            break;
        }
    }
    rig.expect("breadth-first search", 350, distance);
}

#[test]
fn every_command_is_right_amid_migrations() {
    both_engines("all commands", |engine| {
        // 16 pages: everything is evicted all the time.
        for (policy, device_pages) in [
            ("density", 256),
            ("density+timeslice:min=0", 16),
            ("on-demand+timeslice:min=0", 64),
        ] {
            let mut rig = Rig::new(engine, policy, device_pages);
            let mut random = Random(device_pages);
            rig.amid_migrations(1, |rig| {
                for _ in 0..2 {
                    integers(rig, &mut random);
                    matrices(rig, &mut random);
                }
            });
            rig.wait_for_interrupts();
            let stats = rig.accelerator.stats();
            assert_eq!((stats.commands, stats.errors), (rig.sent, 0));
            assert!(rig.backend.stats().device_pages_peak <= device_pages + 64);
        }
    });
}

#[test]
fn exclusive_operations_are_whole() {
    both_engines("exclusive operations", |engine| {
        let mut rig = Rig::new(engine, "on-demand+timeslice:min=0", 64);
        // Where the page is at first makes no difference: in system memory, or in the accelerator's own.
        exclusive(&mut rig);
        rig.result(OP_MIGRATE, &[at(190), PAGE_SIZE, TO_DEVICE]);
        exclusive(&mut rig);
    });
}

#[test]
fn hints_and_frees_do_what_they_say() {
    both_engines("hints and frees", |engine| {
        let mut rig = Rig::new(engine, "on-demand+timeslice:min=0", 64);
        rig.fill(100, 0..32 * 512);
        let here = |rig: &Rig, page| rig.backend.word(Page(page)).unwrap().residency();
        // From the middle of a page to the middle of another one: both count.
        assert_eq!(
            rig.result(OP_MIGRATE, &[at(100) + 64, 15 * PAGE_SIZE, TO_DEVICE]),
            16
        );
        assert!(matches!(here(&rig, 115), Residency::Device(_)));
        assert_eq!(here(&rig, 116), Residency::System);
        assert_eq!(
            rig.result(OP_MIGRATE, &[at(100), 32 * PAGE_SIZE, TO_SYSTEM]),
            16
        );
        assert_eq!(
            rig.result(OP_MIGRATE, &[at(100), 16 * PAGE_SIZE, TO_DEVICE]),
            16
        );
        assert_eq!(rig.result(OP_FREE, &[at(108), 16 * PAGE_SIZE]), 16);
        assert_eq!(rig.backend.resident_bytes(pages(100..124)).unwrap(), 0);
        assert_eq!(rig.result(OP_FREE, &[at(108), 16 * PAGE_SIZE]), 0);
        rig.expect("what was not freed", 100, 0..8 * 512);
        rig.expect("what was freed", 108, [0; 16 * 512]);
        rig.expect("what was not freed", 124, 24 * 512..32 * 512);
        // All of memory, with the queue in it: that is pinned and stays.
        rig.result(OP_FREE, &[at(0), u64::from(PAGES) * PAGE_SIZE]);
        assert_eq!(
            rig.result(OP_REDUCE, &[at(FIRST), (u64::from(PAGES) - FIRST) * 512]),
            0
        );
        rig.check_contract();
    });
}

/// Every command with policies that leave pages in place, migrate behind the device's back and pin.
#[test]
fn policies_of_all_kinds_keep_every_result_right() {
    for policy in [
        "access-counter:threshold=8+clock+timeslice:min=0us",
        "density+thrash:lapse=100ms,nap=50us,pin=1ms,pin_threshold=1,threshold=1+s3-fifo",
        "sequential:min_run=1,window=64+lfu",
        "first-touch+by-migration",
    ] {
        both_engines(policy, |engine| {
            let mut rig = Rig::new(engine, policy, 100);
            let mut random = Random(7);
            rig.amid_migrations(3, |rig| integers(rig, &mut random));
            let stats = rig.accelerator.stats();
            assert_eq!((stats.commands, stats.errors), (rig.sent, 0));
        });
    }
}

/// The accelerator and CPUs read copies of their own, write, and find everything right all the same.
#[test]
fn read_mostly_pages_keep_every_result_right() {
    for policy in [
        "on-demand+hints+timeslice:min=0us",
        "density:threshold=10+hints+timeslice:min=50us",
    ] {
        both_engines(policy, |engine| {
            let mut rig = Rig::new(engine, policy, 100);
            let hint = hmm_backend::pages::Hint::ReadMostly(true);
            rig.backend.hint(pages(0..PAGES), hint).unwrap();
            let mut random = Random(11);
            rig.amid_migrations(3, |rig| integers(rig, &mut random));
            // Whatever came of it amid migrations: a page that a CPU reads on the device, and then writes.
            rig.fill(100, 0..512);
            rig.result(OP_MIGRATE, &[at(100), PAGE_SIZE, TO_DEVICE]);
            rig.expect("what was migrated", 100, 0..512);
            rig.fill(100, 512..1024);
            rig.expect("what was written", 100, 512..1024);
            let stats = rig.backend.stats();
            assert!(stats.counters.duplicated > 0, "{stats:?}");
            assert!(stats.counters.collapsed > 0, "{stats:?}");
            rig.check_contract();
        });
    }
}

#[test]
fn what_the_accelerator_uses_often_comes_to_it() {
    both_engines("access counters", |engine| {
        let policy = "access-counter:threshold=200+timeslice:min=0us";
        let mut rig = Rig::new(engine, policy, 100);
        let prefetched = |rig: &Rig| {
            let to_device = rig.backend.stats().to_device;
            to_device
                .get(&hmm_backend::observe::Cause::Prefetch)
                .copied()
                .unwrap_or(0)
        };
        // 16 pages in one group of 64 KiB, and one in the next.
        rig.fill(32, (0..16 * 512 + 8).map(|i| i % 5));
        let sum = |n: u64| (0..n).map(|i| i % 5).sum::<u64>();
        // Three pages are 192 accesses of 64 bytes: not enough.
        assert_eq!(rig.result(OP_REDUCE, &[at(32), 3 * 512]), sum(3 * 512));
        assert_eq!(prefetched(&rig), 0);
        assert_eq!(rig.backend.stats().counters.mapped_in_place, 3);
        // One page more is enough: the group migrates, and nothing else. No command waits for it.
        assert_eq!(rig.result(OP_REDUCE, &[at(32), 512]), sum(512));
        while prefetched(&rig) < 16 {
            std::thread::yield_now();
        }
        rig.backend.settle(pages(32..49)).unwrap();
        for page in 32..49 {
            let residency = rig.backend.word(Page(page)).unwrap().residency();
            let here = matches!(residency, Residency::Device(_));
            assert_eq!(here, page < 48, "page {page}: {residency:?}");
        }
        let n = 16 * 512 + 8;
        assert_eq!(rig.result(OP_REDUCE, &[at(32), n]), sum(n));
        assert_eq!(prefetched(&rig), 16);
    });
}

#[test]
fn a_paused_accelerator_begins_no_command() {
    const PATIENCE: Duration = Duration::from_secs(60);
    both_engines("pause", |engine| {
        let mut rig = Rig::new(engine, "on-demand+lru", 64);
        for round in 0..20 {
            // One that is being executed is finished.
            rig.submit(command(OP_FILL, &[at(10), 8 * 512, round, 1]));
            assert!(rig.accelerator.pause(CommandInFlight::Finishes, PATIENCE));
            let completed = rig.read(REG_COMPLETED);
            rig.submit(command(OP_FILL, &[at(20), 8 * 512, round, 1]));
            // Each write sleeps for milliseconds, because nothing is completed.
            for _ in 0..3 {
                rig.write(REG_WAIT, completed);
            }
            assert_eq!(rig.read(REG_COMPLETED), completed);
            assert!(completed < rig.sent);
            // Pages migrate on request.
            let moved = rig.backend.migrate_to_system(pages(10..18)).unwrap();
            assert!(moved <= 8);
            rig.accelerator.resume();
            rig.wait();
            rig.expect(
                "what came in the pause",
                20,
                (0..8 * 512).map(|i| round + i),
            );
        }
    });
}

#[test]
fn a_command_halts_where_it_is_if_the_pause_says_so() {
    const PATIENCE: Duration = Duration::from_secs(60);
    const WORDS: u64 = 900 * 512;
    both_engines("halt", |engine| {
        let mut rig = Rig::new(engine, "on-demand+lru", 64);
        let mut halted = false;
        for round in 1..=1000 {
            let faults = rig.accelerator.stats().tlb_misses;
            rig.submit(command(OP_FILL, &[at(10), WORDS, round << 32, 1]));
            while rig.accelerator.stats().tlb_misses == faults {
                std::thread::yield_now();
            }
            assert!(rig.accelerator.pause(CommandInFlight::Halts, PATIENCE));
            let completed = rig.read(REG_COMPLETED);
            // The last page says whether the command is done; pages migrate on request meanwhile, and nothing goes on.
            rig.backend.migrate_to_system(pages(0..PAGES)).unwrap();
            let misses = rig.accelerator.stats().tlb_misses;
            let last = rig.cpu((10 * 512 + WORDS - 1) * 8).load(Relaxed) >> 32;
            assert_eq!(last == round, completed == rig.sent);
            assert_eq!(rig.accelerator.stats().tlb_misses, misses);
            halted = completed < rig.sent;
            rig.accelerator.resume();
            rig.wait();
            if halted {
                let filled = (0..WORDS).map(|i| (round << 32) + i);
                rig.expect("what went on after the pause", 10, filled);
                break;
            }
        }
        assert!(halted, "each command was at its end");
    });
}

#[test]
fn what_the_end_of_a_machine_cuts_off_does_not_count() {
    const PATIENCE: Duration = Duration::from_secs(60);
    both_engines("end", |engine| {
        let mut rig = Rig::new(engine, "on-demand+lru", 64);
        assert!(rig.accelerator.pause(CommandInFlight::Finishes, PATIENCE));
        rig.submit(command(OP_FILL, &[at(10), 512, 1, 1]));
        rig.accelerator.stop();
        let stats = rig.accelerator.stats();
        assert_eq!((stats.commands, stats.errors), (0, 0));
    });
}
