//! The migration contract while a guest runs: a device that goes away, frees and the VMM's own accesses never show in
//! what the guest sees.

use std::sync::atomic::Ordering::SeqCst;

use hmm_backend::{Cause, Page, Residency};
use hmmvisor::{Config, Options};
use hmmvisor_testkit::driver::few_refusals;
use hmmvisor_testkit::machine::{TORTURE_PAGES, address, both_engines, guest};
use hmmvisor_testkit::{Asm, Output, Random, Reg, Setup, pages};

#[test]
fn a_default_run_shows_every_part_of_the_contract() {
    let options = Options {
        console: Box::new(Output::default()),
        ..Options::default()
    };
    let report = hmmvisor::run(&Config::default(), options).unwrap();
    assert!(report.verified(), "{:?}", report.error());
    let stats = &report.stats;
    assert!(
        stats.cpu_faults > 0 && stats.device_faults > 0,
        "{stats:#?}"
    );
    for cause in [Cause::Demand, Cause::Prefetch] {
        assert!(
            stats.to_device[&cause] > 0 && stats.to_system[&cause] > 0,
            "{stats:#?}"
        );
    }
    assert!(stats.to_system[&Cause::Eviction] > 0, "{stats:#?}");
    assert!(
        stats.page_free_calls > 0 && stats.pages_freed > 0,
        "{stats:#?}"
    );
}

#[test]
fn a_device_can_go_away_while_the_guest_runs() {
    both_engines("detaching under a guest", |engine| {
        let mut machine = Setup {
            engine,
            workload: "torture ops=1000 pages=64".into(),
            ..Setup::default()
        }
        .start();
        let mut random = Random(3);
        let mut detached = 0;
        while machine.runs() && detached < 40 {
            let (device, driver) = machine.attach(128);
            driver.refuse(few_refusals());
            // Pages of the guest, and some that only the VMM uses.
            let mine = 1000..1064;
            mine.clone()
                .for_each(|page| machine.word(page, 9).store(page.into(), SeqCst));
            let start = random.below(TORTURE_PAGES.into()) as u32;
            for range in [mine.clone(), start..start + 64] {
                machine
                    .backend
                    .migrate_to_device(device, pages(range))
                    .unwrap();
            }
            assert!(machine.on_device(device) > 0);
            machine.backend.detach(device).unwrap();
            assert_eq!((machine.on_device(device), driver.live()), (0, 0));
            assert!(
                machine
                    .backend
                    .migrate_to_device(device, pages(0..1))
                    .is_err()
            );
            for page in mine {
                assert_eq!(machine.word(page, 9).load(SeqCst), u64::from(page));
            }
            driver.assert_clean();
            detached += 1;
        }
        machine.expect_verified();
        assert!(detached > 0);
        assert!(machine.backend.stats().to_system[&Cause::Detach] > 0);
    });
}

/// The page in which [`filler`] and the host tell each other what to do.
const FLAG: u32 = 100;

/// A guest that ORs the first words of pages `0..64` into one, writes them, says so (1), and once more as often as it
/// is told to (2). When told to end (3), it exits with what it has found: 0 if every word always was.
fn filler() -> Option<Vec<u8>> {
    let code = Asm::new()
        .only_vcpu(0)
        .set(Reg::Rsi, 0)
        .set(Reg::Rbx, address(FLAG));
    let round = code.here();
    let code = code.set(Reg::Rdi, address(0)).set(Reg::Rcx, 64);
    let each = code.here();
    let code = code
        .or_load(Reg::Rsi, Reg::Rdi)
        .store(Reg::Rdi, Reg::Rcx)
        .add_value(Reg::Rdi, 4096)
        .repeat(Reg::Rcx, each)
        .set(Reg::Rcx, 1)
        .store(Reg::Rbx, Reg::Rcx);
    let wait = code.here();
    guest(
        code.load(Reg::Rcx, Reg::Rbx)
            .compare(Reg::Rcx, 1)
            .jump_if_equal(wait)
            .compare(Reg::Rcx, 2)
            .jump_if_equal(round)
            .exit(Reg::Rsi),
    )
}

#[test]
fn freed_memory_goes_back_to_the_host_and_reads_as_zeros() {
    both_engines("frees under a guest", |engine| {
        let mut machine = Setup {
            engine,
            // Nothing comes along, so it is known where each page is.
            policy: "on-demand+timeslice:min=0",
            guest: filler(),
            ..Setup::default()
        }
        .start();
        let accelerator = machine.vm.accelerators()[0].device_id();
        let range = pages(0..64);
        for round in 0..40 {
            while machine.word(FLAG, 0).load(SeqCst) != 1 {
                assert!(machine.runs());
                std::thread::yield_now();
            }
            assert!(machine.backend.resident_bytes(range).unwrap() == 64 * 4096);
            // None, some or all of it is in device memory.
            let (goal, mut moved) = (round % 3 * 32, 0);
            while moved < u64::from(goal) {
                // A page that has just woken the guest may still be busy.
                let range = pages(0..goal);
                moved += machine
                    .backend
                    .migrate_to_device(accelerator, range)
                    .unwrap();
            }
            assert_eq!(
                machine.backend.resident_bytes(range).unwrap(),
                (64 - moved) * 4096
            );
            assert_eq!(machine.backend.guest_freed(range).unwrap(), 64);
            assert_eq!(machine.backend.resident_bytes(range).unwrap(), 0);
            assert_eq!(machine.on_device(accelerator), 0);
            machine
                .word(FLAG, 0)
                .store(if round == 39 { 3 } else { 2 }, SeqCst);
        }
        machine.expect_verified();
    });
}

#[test]
fn the_vmm_reaches_pages_wherever_they_are() {
    both_engines("accesses of the VMM", |engine| {
        // Both vCPUs and the VMM count in the same 8 pages, which move all the time. At the end all agree.
        const TURNS: u64 = 30_000;
        let code = Asm::new().set(Reg::Rdx, 1).set(Reg::Rbx, TURNS);
        let turn = code.here();
        let code = code.set(Reg::Rdi, address(0)).set(Reg::Rcx, 8);
        let each = code.here();
        let code = code
            .atomic_add(Reg::Rdi, Reg::Rdx)
            .add_value(Reg::Rdi, 4096)
            .repeat(Reg::Rcx, each)
            .repeat(Reg::Rbx, turn)
            .set(Reg::Rdi, address(FLAG))
            .atomic_add(Reg::Rdi, Reg::Rdx);
        let wait = code.here();
        let code = code
            .load(Reg::Rcx, Reg::Rdi)
            .compare(Reg::Rcx, 2)
            .jump_unless_equal(wait)
            .set(Reg::Rcx, 0);
        let mut machine = Setup {
            engine,
            // Nothing comes along, so it is known where each page is.
            policy: "on-demand+timeslice:min=0",
            guest: guest(code.exit(Reg::Rcx)),
            ..Setup::default()
        }
        .start();
        let (device, driver) = machine.attach(32);
        let mut random = Random(5);
        let (mut added, mut away, mut own) = (0, 0, [0; 8]);
        while machine.runs() {
            let page = random.below(8) as u32;
            machine
                .backend
                .migrate_to_device(device, pages(0..8))
                .unwrap();
            machine
                .backend
                .migrate_to_device(device, pages(200..208))
                .unwrap();
            // A page that only the VMM uses stays in device memory until its plain access (if it was not still
            // busy with the last one).
            let word = machine.backend.word(Page(200 + page)).unwrap();
            away += u64::from(matches!(word.residency(), Residency::Device { .. }));
            assert_eq!(
                machine.word(200 + page, 3).fetch_add(1, SeqCst),
                own[page as usize]
            );
            own[page as usize] += 1;
            machine.word(page, 0).fetch_add(1, SeqCst);
            // The same through pins, which keep pages from moving.
            let pinned = machine.backend.pin(pages(page..page + 1)).unwrap();
            machine.word(page, 0).fetch_add(1, SeqCst);
            assert_eq!(
                machine
                    .backend
                    .migrate_to_device(device, pinned.range())
                    .unwrap(),
                0
            );
            added += 2;
        }
        // The machine has not been stopped: faults are still served.
        let total = (0..8)
            .map(|page| machine.word(page, 0).load(SeqCst))
            .sum::<u64>();
        machine.expect_verified();
        assert_eq!(total, 2 * 8 * TURNS + added);
        assert!(added > 0 && away > 0);
        driver.assert_clean();
    });
}

#[test]
fn frees_of_unused_memory_race_with_the_guest() {
    both_engines("frees beside a guest", |engine| {
        let mut machine = Setup {
            engine,
            // Nothing comes along, so it is known where each page is.
            policy: "on-demand+timeslice:min=0",
            workload: "torture ops=1000 pages=64".into(),
            ..Setup::default()
        }
        .start();
        let (device, driver) = machine.attach(64);
        let mut random = Random(9);
        // Far behind what the guest uses.
        let unused = 2048..4096;
        let mut freed = 0;
        while machine.runs() {
            let start = unused.start + random.below(2000) as u32;
            let range = pages(start..start + 1 + random.below(48) as u32);
            for page in range.pages() {
                assert_eq!(machine.word(page.0, 1).swap(0xdead, SeqCst), 0, "{page:?}");
            }
            if random.below(2) == 0 {
                machine.backend.migrate_to_device(device, range).unwrap();
            }
            // The guest's own pages on their way to the same device make it short of memory.
            let from = random.below(TORTURE_PAGES.into()) as u32;
            machine
                .backend
                .migrate_to_device(device, pages(from..from + 32))
                .unwrap();
            assert_eq!(
                machine.backend.guest_freed(range).unwrap(),
                u64::from(range.len())
            );
            assert_eq!(machine.backend.resident_bytes(range).unwrap(), 0);
            freed += u64::from(range.len());
        }
        machine.expect_verified();
        assert!(freed > 0 && machine.backend.stats().pages_freed >= freed);
        driver.assert_clean();
    });
}
