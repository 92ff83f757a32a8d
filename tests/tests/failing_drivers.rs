//! A driver that refuses to give pages back: for a while, which the guest must not notice, or for ever, which ends the run
//! with the page's name, never with wrong data.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use hmm_backend::driver::FaultError;
use hmm_backend::engine::Engine;
use hmm_backend::pages::Page;
use hmm_backend::residency::Residency;
use hmmvisor::size::Size;
use hmmvisor::{End, Failure, Report};
use hmmvisor_abi::control::EXIT_PANIC;
use hmmvisor_testkit::driver::few_refusals;
use hmmvisor_testkit::machine::{TORTURE_PAGES, address, both_engines, guest};
use hmmvisor_testkit::{Asm, CheckedDriver, Machine, Random, Reg, Setup, pages};

#[test]
fn refusals_for_a_while_are_invisible_to_the_guest() {
    both_engines("a guest with a reluctant driver", |engine| {
        for workload in ["torture ops=1000", "vecadd n=80000 rounds=3"] {
            let mut machine = Setup {
                engine,
                workload: workload.to_owned(),
                ..Setup::default()
            }
            .build();
            let (device, driver) = machine.attach(64);
            driver.refuse(few_refusals());
            machine.vm.start().unwrap();
            let moved = machine.disturb(device, TORTURE_PAGES, &mut Random(1));
            machine.expect_verified();
            assert!(
                moved > 0 && driver.refused() > 0,
                "nothing was refused: the test is void"
            );
            driver.assert_clean();
            for accelerator in machine.vm.accelerators() {
                assert_eq!(accelerator.stats().contract_violations, 0);
            }
        }
    });
}

/// A machine whose vCPU 1 loads one word of page 5 and exits with it, while vCPU 0 spins. The page is in the memory of
/// a device with this driver.
fn loader(engine: Engine) -> (Machine, Arc<CheckedDriver>) {
    let code = Asm::new()
        .only_vcpu(1)
        .set(Reg::Rdi, address(5))
        .load(Reg::Rdx, Reg::Rdi)
        .exit(Reg::Rdx);
    let machine = Setup {
        engine,
        guest: guest(code),
        ..Setup::default()
    }
    .build();
    let (device, driver) = machine.attach(16);
    machine.word(5, 0).store(77, SeqCst);
    let moved = machine.backend.migrate_to_device(device, pages(5..6));
    assert_eq!(moved.unwrap(), 1);
    (machine, driver)
}

/// The report that `hmmvisor` would make of this end.
fn report(end: End) -> Report {
    Report {
        fidelity: hmm_backend::pages::Fidelity::default(),
        vcpu_faults: Vec::new(),
        accelerators: Vec::new(),
        links: Vec::new(),
        end: Some(end),
        workload: None,
        kernel: None,
        guest: None,
        engine: Engine::Copy,
        scripts: None,
        policy: String::new(),
        policy_exact: String::new(),
        vcpus: 2,
        devices: 1,
        memory: Size(0),
        seed: 1,
        stats: Default::default(),
        elapsed: Default::default(),
        first_instruction: None,
        overhead: None,
        operations_checked: 0,
        rounds: 0,
        chaos: None,
        replay: None,
        recording: None,
        balloon: None,
        drivers: Default::default(),
        output: Default::default(),
        left_behind: Vec::new(),
    }
}

#[test]
fn a_page_that_cannot_be_supplied_ends_the_run_with_its_name() {
    let lost = || FaultError::Fatal("the link is down".into());
    for (error, cause) in [
        (lost(), "the link is down"),
        (FaultError::Retry, "it stays busy"),
        (FaultError::OutOfMemory, "the host has no memory for it"),
    ] {
        both_engines(cause, |engine| {
            let (mut machine, driver) = loader(engine);
            let answer = error.clone();
            driver.refuse(move |_| Some(answer.clone()));
            machine.vm.start().unwrap();
            let end = machine.finish();
            let End::Failed(Failure::Page {
                page: 5,
                address: 0x1_0000_5000,
                vcpu: Some(1),
                cause: found,
                ..
            }) = &end
            else {
                panic!("{end:?}");
            };
            assert!(found.starts_with(cause), "{found}");
            let report = report(end);
            assert_ne!(report.exit_code(), 0);
            let message = report.error().unwrap();
            for part in ["page 0x5 ", "0x100005000", "vCPU 1", cause] {
                assert!(message.contains(part), "{message}");
            }
            // Its contents are still in the device.
            let word = machine.backend.word(Page(5)).unwrap();
            assert!(matches!(word.residency(), Residency::Device(_)), "{word:?}");
            driver.refuse_nothing();
            let pinned = machine.backend.pin(pages(5..6)).unwrap();
            // SAFETY: the page is pinned: present as long as the guard lives; no thread writes it.
            assert_eq!(unsafe { pinned.host().cast::<u64>().read_volatile() }, 77);
            driver.assert_clean();
        });
    }
}

#[test]
fn a_page_that_arrives_late_is_no_failure() {
    both_engines("a guest with a patient driver", |engine| {
        let (mut machine, driver) = loader(engine);
        driver.refuse(few_refusals());
        machine.vm.start().unwrap();
        assert_eq!(machine.finish(), End::Exit(77));
        assert_eq!(
            machine.backend.stats().counters.faults_retried,
            driver.refused()
        );
        assert!(driver.refused() > 0);
    });
}

#[test]
fn a_device_that_breaks_down_never_means_wrong_data() {
    both_engines("a guest with a broken device", |engine| {
        for seed in 0..3 {
            let mut machine = Setup {
                engine,
                seed,
                workload: "torture seconds=100".into(),
                ..Setup::default()
            }
            .build();
            let (device, driver) = machine.attach(64);
            // It works for a while, then every page in it is lost for ever.
            let mut left = 50 * seed;
            driver.refuse(move |_| match left.checked_sub(1) {
                Some(less) => {
                    left = less;
                    None
                }
                None => Some(FaultError::Fatal("broken down".into())),
            });
            machine.vm.start().unwrap();
            let moved = machine.disturb(device, TORTURE_PAGES, &mut Random(seed));
            let end = machine.finish();
            let said = machine.output.text();
            match &end {
                // Either a vCPU or the VMM's own disturbance met the page first ...
                End::Failed(Failure::Page { cause, .. }) => assert_eq!(cause, "broken down"),
                // ... or an accelerator, whose command fails; the guest panics over that.
                End::Exit(code) => {
                    assert_eq!(*code, EXIT_PANIC, "{said}");
                    assert!(said.contains("status 4 (device fault"), "{said}");
                }
                other => panic!("{other:?}"),
            }
            assert!(!said.contains("wrong data"), "{said}");
            assert!(moved > 0 && driver.refused() > 0);
            driver.assert_clean();
        }
    });
}
