//! Events while the block device executes a request: migrations, a reset, the end.

use std::fs;
use std::sync::Arc;
use std::sync::mpsc;

use hmm_backend::pages::Permission::Writable;
use hmmvisor_devices::MmioDevice;
use hmmvisor_devices::virtio::VirtioDevice;
use hmmvisor_testkit::machine::both_engines;
use hmmvisor_testkit::pages;
use hmmvisor_testkit::virtio::*;

use crate::block::{ALL, DATA, IN, OK, OUT, STATUS_AT, header, image, pattern, request, rig};

/// Holds the driver of the device that only migrates where it is to give pages back, until told otherwise.
fn hold(rig: &Rig) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (arrived, wait) = mpsc::channel();
    let (go, gate) = mpsc::channel();
    let mut gate = Some(gate);
    rig.driver.refuse(move |_| {
        if let Some(gate) = gate.take() {
            arrived.send(()).unwrap();
            let _ = gate.recv();
        }
        None
    });
    (wait, go)
}

/// So many requests to write a page to the disk, whose page is being given back when this returns; until told to go on.
fn writes_in_hand(rig: &mut Rig, requests: usize) -> mpsc::Sender<()> {
    rig.put(at(DATA), &[9; 4096]);
    rig.to_device(DATA..DATA + 1);
    let (arrived, go) = hold(rig);
    for _ in 0..requests {
        let chain = [
            header(rig, OUT, 0),
            (at(DATA), 4096, 0),
            (STATUS_AT, 1, WRITE),
        ];
        rig.add(0, &chain);
    }
    rig.kick(0);
    arrived.recv().unwrap();
    go
}

/// While the device waits for the second page of a request, the first stays where it is.
#[test]
fn pages_under_io_do_not_migrate() {
    let file = image();
    both_engines("block", |engine| {
        let mut rig = rig(engine, file.path(), Writable, ALL);
        rig.put(at(DATA), &[5; 4096]);
        rig.put(at(DATA + 9), &[6; 4096]);
        rig.to_device(DATA + 9..DATA + 10);
        let (arrived, go) = hold(&rig);
        let chain = [
            header(&rig, OUT, 0),
            (at(DATA), 4096, 0),
            (at(DATA + 9), 4096, 0),
            (STATUS_AT, 1, WRITE),
        ];
        rig.add(0, &chain);
        rig.kick(0);
        arrived.recv().unwrap();
        let first = pages(DATA as u32..DATA as u32 + 1);
        assert_eq!(rig.backend.word(first.start).unwrap().pins(), 1);
        assert_eq!(rig.backend.migrate_to_device(rig.other, first).unwrap(), 0);
        assert_eq!(rig.backend.guest_freed(first).unwrap(), 0);
        assert_eq!(rig.used(0), 0);
        go.send(()).unwrap();
        rig.take(0);
        assert_eq!(rig.get(STATUS_AT, 1), [OK]);
        rig.to_device(DATA..DATA + 1);
        let disk = fs::read(&file).unwrap();
        assert_eq!((disk[0], disk[4096], disk[8192]), (5, 6, pattern(8192)));
        rig.finish();
    });
}

/// The write that resets the device ends when the device has let go, and what was in flight is not answered.
#[test]
fn a_reset_waits_for_the_request_in_hand() {
    let file = image();
    both_engines("block", |engine| {
        let mut rig = rig(engine, file.path(), Writable, ALL);
        let go = writes_in_hand(&mut rig, 3);
        let device = rig.device.clone();
        let reset = std::thread::spawn(move || {
            device.write(STATUS, &0u32.to_le_bytes());
        });
        // The registers are reset at once; the write is not over before the device has let go.
        while rig.read(STATUS) != 0 {
            std::thread::yield_now();
        }
        assert!(!reset.is_finished());
        go.send(()).unwrap();
        reset.join().unwrap();
        assert!(rig.pinned().is_empty(), "{:?}", rig.pinned());
        // At most the one in hand was carried out.
        assert!(rig.used(0) <= 1, "{}", rig.used(0));
        assert_eq!(rig.read(INTERRUPT_STATUS), 0);
        // All is well again.
        rig.start(ALL, &[64]);
        assert_eq!(
            request(&mut rig, IN, 0, &[(at(DATA + 1), 512, WRITE)]).0,
            OK
        );
        rig.finish();
    });
}

/// A vCPU that sleeps in a reset wakes when the device stops, and so do all others.
#[test]
fn stopping_amid_requests_ends() {
    let file = image();
    both_engines("block", |engine| {
        let mut rig = rig(engine, file.path(), Writable, ALL);
        let go = writes_in_hand(&mut rig, 1);
        let writing = |device: Arc<VirtioDevice>| {
            std::thread::spawn(move || device.write(STATUS, &0u32.to_le_bytes()))
        };
        let reset = writing(rig.device.clone());
        let device = rig.device.clone();
        let stop = std::thread::spawn(move || device.stop());
        // The device's thread is still at its driver's gate.
        reset.join().unwrap();
        assert!(!stop.is_finished());
        go.send(()).unwrap();
        stop.join().unwrap();
        // A register write to a device that has stopped does not sleep.
        rig.write(STATUS, 0);
        rig.finish();
    });
}
