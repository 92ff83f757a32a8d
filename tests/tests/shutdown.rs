//! A busy machine can be stopped at any moment, with faults outstanding, and leaves nothing behind.
//!
//! One test only: it looks at what the whole process holds.

use std::sync::Arc;

use hmm_backend::driver::FaultError;
use hmmvisor_testkit::machine::TORTURE_PAGES;
use hmmvisor_testkit::process::backend_mappings;
use hmmvisor_testkit::{ENGINES, Machine, Random, Resources, Setup, Watchdog, pages};

/// The answer to faults on pages of the device that the guest does not use.
#[derive(Clone, Copy, Debug)]
enum Faults {
    /// They are served.
    Served,
    /// They are put off again and again: at any moment some are.
    PutOff,
    /// They are fatal: the vCPU that faults sleeps until the end.
    Fatal,
}

/// A machine in the middle of its work.
fn busy(random: &mut Random, faults: Faults) -> Machine {
    let mut machine = Setup {
        engine: random.pick(&ENGINES),
        vcpus: random.pick(&[1, 2, 4]),
        devices: random.pick(&[1, 2]),
        device_pages: random.pick(&[16, 128]),
        service_threads: random.pick(&[1, 2, 3]),
        policy: random.pick(&[
            "density",
            "on-demand+timeslice:min=0",
            "density+timeslice:min=2ms",
        ]),
        seed: random.number(),
        workload: "torture seconds=1000 pages=64".into(),
        ..Setup::default()
    }
    .build();
    let (device, driver) = machine.attach(64);
    let far = 100 + random.below(700);
    machine.vm.start().unwrap();
    let progress = |machine: &Machine| {
        let stats = machine.backend.stats();
        stats.cpu_faults + stats.device_faults
    };
    while machine.runs() && progress(&machine) < far {
        std::thread::yield_now();
    }
    match faults {
        Faults::Served => {}
        Faults::PutOff => driver.refuse(|_| Some(FaultError::Retry)),
        Faults::Fatal => driver.refuse(|_| Some(FaultError::Fatal("no more".into()))),
    }
    // From here on the guest runs into pages that do not come back (if they do not).
    while machine.runs() && progress(&machine) < far + 100 && driver.refused() < 1 + far % 8 {
        let start = random.below(TORTURE_PAGES.into()) as u32;
        let some = pages(start..start + 16);
        machine.backend.migrate_to_device(device, some).unwrap();
    }
    machine
}

fn end(mut machine: Machine, way: u64) {
    match way {
        0 => machine.vm.stop(),
        1 => {
            machine.vm.stop();
            machine.vm.stop();
        }
        2 => std::thread::spawn(move || drop(machine)).join().unwrap(),
        _ => drop(machine),
    }
}

#[test]
fn machines_stop_at_any_moment_and_leave_nothing_behind() {
    // What is made once for all, such as the signal handler, is not left behind. This thread's watchdog is always
    // the same one, so that it counts as nothing.
    let round = |number: u64| {
        let mut random = Random(number);
        let faults = [Faults::Served, Faults::PutOff, Faults::Fatal][number as usize % 3];
        let machine = busy(&mut random, faults);
        let (backend, ranges) = (
            Arc::downgrade(&machine.backend),
            machine.backend.host_ranges(),
        );
        end(machine, random.below(4));
        assert_eq!(
            backend.strong_count(),
            0,
            "the memory is still in use: {faults:?}"
        );
        ranges
    };
    {
        let _watchdog = Watchdog::new("the first machine", 60);
        round(0);
    }
    let before = Resources::now();
    assert_eq!((before.files("kvm"), before.files("userfaultfd")), (0, 0));
    {
        let _watchdog = Watchdog::new("a machine that never ran", 60);
        let machine = Setup::default().build();
        let (device, _) = machine.attach(16);
        machine
            .backend
            .migrate_to_device(device, pages(0..16))
            .unwrap();
    }
    before.expect_again("a machine that never ran");
    for number in 1..=36 {
        let ranges = {
            let _watchdog = Watchdog::new(&format!("machine number {number}"), 60);
            round(number)
        };
        before.expect_again(&format!("machine number {number}"));
        assert_eq!(backend_mappings(&ranges), Vec::<String>::new());
    }
}
