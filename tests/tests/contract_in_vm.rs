//! The migration contract while a guest runs: a device that goes away, frees and the VMM's own accesses never show in
//! what the guest sees.

use std::sync::atomic::Ordering::SeqCst;

use hmm_backend::observe::Cause;
use hmmvisor::{Config, Options};
use hmmvisor_testkit::driver::few_refusals;
use hmmvisor_testkit::machine::{TORTURE_PAGES, both_engines};
use hmmvisor_testkit::{GuestError, Output, Random, Setup, TestVm, each_engine, pages};

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

#[test]
fn freed_memory_goes_back_to_the_host_and_reads_as_zeros() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder().engine(engine).accelerator(128).start();
        let range = pages(0..64);
        let resident = || vm.backend().resident_bytes(range).unwrap();
        for round in 0..40 {
            assert_eq!(vm.vcpu(0).checksum(range).wait()?, 0);
            vm.vcpu(0).fill(range, round + 1).wait()?;
            assert_eq!(resident(), 64 * 4096);
            // None, some or all of it is in device memory.
            let away = round % 3 * 32;
            vm.to_device(0, 0..away as u32);
            assert_eq!(resident(), (64 - away) * 4096);
            assert_eq!(vm.vcpu(1).free(range).wait()?, 64);
            assert_eq!((resident(), vm.device(0).pages()), (0, 0));
        }
        Ok(())
    })
}

#[test]
fn the_vmm_reaches_pages_wherever_they_are() -> Result<(), GuestError> {
    each_engine(|engine| {
        // Both vCPUs and the VMM count in the same 8 pages, which move all the time. At the end all agree.
        let vm = TestVm::builder().engine(engine).scripted(32).start();
        let adding = [0, 1].map(|cpu| vm.vcpu(cpu).add_until_stopped(0..8, 1));
        let (backend, device) = (vm.backend(), vm.device(0));
        let mut random = Random(5);
        let (mut added, mut own) = ([0; 8], [0; 8]);
        for _ in 0..100 {
            let page = random.below(8) as u32;
            let index = page as usize;
            backend.migrate_to_device(device.id(), pages(0..8)).unwrap();
            // A page that only the VMM uses stays in device memory until its plain access.
            vm.to_device(0, 200 + page);
            assert_eq!(
                vm.host_word((200 + page, 3)).fetch_add(1, SeqCst),
                own[index]
            );
            own[index] += 1;
            vm.host_word(page).fetch_add(1, SeqCst);
            // The same through pins, which keep pages from moving.
            let pinned = backend.pin(pages(page..page + 1)).unwrap();
            vm.host_word(page).fetch_add(1, SeqCst);
            let moved = backend.migrate_to_device(device.id(), pinned.range());
            assert_eq!(moved.unwrap(), 0);
            added[index] += 2;
            adding.iter().for_each(|it| it.wait_rounds(1));
        }
        let [a, b] = adding.map(|it| it.stop());
        let rounds = a? + b?;
        for (page, added) in (0..).zip(added) {
            assert_eq!(vm.vcpu(0).read(page).wait()?, rounds + added);
        }
        Ok(())
    })
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
