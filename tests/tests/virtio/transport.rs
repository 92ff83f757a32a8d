//! The transport, where it takes more than registers.

use hmmvisor_devices::MmioDevice;
use hmmvisor_testkit::Engine;
use hmmvisor_testkit::machine::both_engines;
use hmmvisor_testkit::virtio::*;

use super::entropy;

/// Queues that are nowhere or cannot be.
#[test]
fn bad_queues_need_a_reset() {
    both_engines("transport", |engine| {
        let mut rig = entropy::rig(engine);
        let end = at(u64::from(PAGES));
        let [descriptors, available, used] = Rig::rings(0);
        for (size, rings) in [
            (8, [0, 0, 0]),
            (8, [end, available, used]),
            (8, [end - 64, available, used]),
            (8, [descriptors, end - 2, used]),
            (8, [descriptors, available, end - 4]),
            (8, [descriptors, available, u64::MAX - 3]),
            (8, [u64::MAX - 15, available, used]),
            // Out of line.
            (8, [descriptors + 8, available, used]),
            (8, [descriptors, available + 1, used]),
            (8, [descriptors, available, used + 2]),
            (0, [descriptors, available, used]),
            (7, [descriptors, available, used]),
            (128, [descriptors, available, used]),
            (u16::MAX, [descriptors, available, used]),
        ] {
            rig.negotiate(VERSION_1);
            rig.set_up_at(0, size, rings);
            rig.write(STATUS, WORKING);
            let why = rig.wait_for_needs_reset();
            assert!(!why.is_empty());
            // It does nothing any more, whatever it is told.
            rig.kick(0);
            rig.write(QUEUE_READY, 0);
            rig.write(QUEUE_READY, 1);
            assert!(rig.pinned().is_empty(), "{size} {rings:x?}");
        }
        rig.start(VERSION_1, &[8]);
        assert_eq!(rig.run(0, &[(at(FIRST), 8, WRITE)]), 8);
        rig.finish();
    });
}

/// A queue is stopped and started while the device works; when the write is over, its memory is the driver's again.
#[test]
fn a_queue_stops_and_starts() {
    both_engines("transport", |engine| {
        let mut rig = entropy::rig(engine);
        for _ in 0..10 {
            assert_eq!(rig.run(0, &[(at(FIRST), 8, WRITE)]), 8);
            assert_eq!(rig.pinned(), [0, 1, 2]);
            rig.write(QUEUE_READY, 0);
            assert_eq!(rig.read(QUEUE_READY), 0);
            assert!(rig.pinned().is_empty(), "{:?}", rig.pinned());
            rig.set_up(0, 8);
        }
        rig.finish();
    });
}

/// A driver that does not want interrupts gets none.
#[test]
fn interrupts_can_be_refused() {
    let mut rig = entropy::rig(Engine::Remap);
    let [_, available, _] = Rig::rings(0);
    assert_eq!(rig.run(0, &[(at(FIRST), 8, WRITE)]), 8);
    assert_eq!((rig.interrupts(), rig.read(INTERRUPT_STATUS)), (1, 1));
    rig.write(INTERRUPT_ACK, 1);
    assert_eq!(rig.read(INTERRUPT_STATUS), 0);

    rig.half(available)
        .store(1, std::sync::atomic::Ordering::SeqCst);
    let before = rig.interrupts();
    rig.add(0, &[(at(FIRST), 8, WRITE)]);
    rig.kick(0);
    // When the queue has been dropped, the request is either done or never will be: no interrupt in any case.
    while rig.used(0) != 2 {
        std::thread::yield_now();
    }
    rig.write(QUEUE_READY, 0);
    assert_eq!(rig.interrupts(), before);
    rig.finish();
}

#[test]
fn resets_at_any_time_leave_nothing() {
    both_engines("transport", |engine| {
        let mut rig = entropy::rig(engine);
        for round in 0..50 {
            rig.start(VERSION_1, &[8]);
            for _ in 0..round % 5 {
                rig.add(0, &[(at(FIRST), 4096, WRITE)]);
                rig.kick(0);
            }
            rig.write(STATUS, 0);
            assert_eq!((rig.pinned(), rig.read(STATUS)), (vec![], 0));
            assert_eq!(rig.read(INTERRUPT_STATUS), 0);
        }
        rig.device.stop();
        rig.device.stop();
        rig.finish();
    });
}
