//! The entropy device.

use std::sync::Arc;

use hmmvisor_devices::virtio::{VirtioDevice, rng};
use hmmvisor_testkit::machine::both_engines;
use hmmvisor_testkit::virtio::{EVENT_IDX, FIRST, Rig, VERSION_1, WRITE, at};
use hmmvisor_testkit::{Engine, Residency};

pub fn rig(engine: Engine) -> Rig {
    let mut rig = Rig::new(engine, |ram, irq| {
        Arc::new(VirtioDevice::new(rng(), ram, irq).expect("a device"))
    });
    rig.start(VERSION_1, &[8]);
    rig
}

#[test]
fn bytes_come_and_differ() {
    both_engines("entropy", |engine| {
        let mut rig = rig(engine);
        assert_eq!(rig.run(0, &[(at(FIRST), 64, WRITE)]), 64);
        assert_eq!(
            rig.run(
                0,
                &[(at(FIRST + 1) - 4, 8, WRITE), (at(FIRST + 2), 56, WRITE)]
            ),
            64
        );
        let first = rig.get(at(FIRST), 64);
        let mut second = rig.get(at(FIRST + 1) - 4, 8);
        second.extend(rig.get(at(FIRST + 2), 56));
        assert_ne!(first, second);
        assert!(first.iter().any(|byte| *byte != 0));
        rig.finish();
    });
}

#[test]
fn a_large_request_gets_a_part() {
    both_engines("entropy", |engine| {
        let mut rig = rig(engine);
        assert_eq!(rig.run(0, &[(at(FIRST), 1 << 20, WRITE)]), 4096);
        assert_eq!(rig.get(at(FIRST + 1), 4096), [0; 4096]);
        rig.finish();
    });
}

#[test]
fn a_page_on_a_device_comes_back_for_it() {
    both_engines("entropy", |engine| {
        let mut rig = rig(engine);
        let there = at(FIRST) + 100;
        rig.put(there, b"kept");
        rig.to_device(FIRST..FIRST + 1);
        assert_eq!(rig.run(0, &[(there + 4, 16, WRITE)]), 16);
        let word = rig
            .backend
            .word(hmm_backend::pages::Page(FIRST as u32))
            .unwrap();
        assert_eq!(word.residency(), Residency::System);
        assert_eq!(rig.get(there, 4), b"kept");
        assert_ne!(rig.get(there + 4, 16), [0; 16]);
        assert_eq!(rig.driver.live(), 0);
        rig.finish();
    });
}

/// More requests than slots; interrupts and doorbells only where they are needed.
#[test]
fn event_indices_go_round() {
    both_engines("entropy", |engine| {
        let mut rig = rig(engine);
        rig.start(VERSION_1 | EVENT_IDX, &[4]);
        for round in 0..20u16 {
            // The driver has seen all completions so far, and asks for an interrupt at the next.
            let [_, available, _] = Rig::rings(0);
            rig.half(available + 4 + 2 * 4)
                .store(round, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(rig.run(0, &[(at(FIRST), 8, WRITE)]), 8);
        }
        rig.finish();
    });
}
