//! Tests that refusals of drivers and of the kernel harm no duplicate.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use hmm_backend::driver::FaultError;
use hmm_backend::pages::PageRange;
use hmm_backend::residency::Residency;
use hmm_backend::testing::{KernelAnswers, KernelCall, MadeUpAnswer};

use crate::common::{Device, Rig, both_engines};
use crate::{counters, duplicates, read_mostly, residency, rig};

/// The driver refuses, or abandons the migration half-way: the page stays as it was, and the fault is served in
/// the end.
#[test]
fn drivers_that_refuse_harm_nothing() {
    both_engines(|engine| {
        let rig = rig(engine);
        let mut device = rig.device(64);
        let refuse = |device: &Device| {
            let mut faults = device.faults.lock().unwrap();
            faults.to_ram = vec![FaultError::Retry, FaultError::OutOfMemory];
            faults.to_ram_after_copy = 2;
        };
        rig.cpu(0, 0).store(10, SeqCst);
        assert_eq!(device.read(0, 0), Ok(10));
        refuse(&device);
        assert_eq!(rig.cpu(0, 0).load(SeqCst), 10);
        assert_eq!(duplicates(&rig, 0..1), [0]);
        assert_eq!(device.read(0, 0), Ok(10));
        refuse(&device);
        assert_eq!(rig.cpu(0, 0).fetch_add(1, SeqCst), 10);
        assert_eq!(residency(&rig, 0), Residency::System);
        assert_eq!(device.read(0, 0), Ok(11));
        assert_eq!(counters(&rig).faults_retried, 8);
        assert_eq!(rig.cpu(0, 0).load(SeqCst), 11);
        // A pin tries again until the driver agrees.
        refuse(&device);
        drop(rig.backend.pin(rig.range(0..1)).unwrap());
        assert_eq!(rig.cpu(0, 0).load(SeqCst), 11);
        device.driver.assert_clean();
    });
}

/// Lets the next few calls that give pages back to CPUs do only a part of their pages.
struct Halting(AtomicU32);

impl KernelAnswers for Halting {
    fn answer(&self, call: KernelCall, pages: PageRange) -> Option<MadeUpAnswer> {
        let left = |n: u32| n.checked_sub(1);
        if call != KernelCall::Give || self.0.fetch_update(SeqCst, SeqCst, left).is_err() {
            return None;
        }
        let (done, errno) = match pages.len() {
            1 => (0, libc::EBUSY),
            n => (n / 2, libc::ENOMEM),
        };
        Some(MadeUpAnswer {
            done,
            errno,
            ..MadeUpAnswer::default()
        })
    }
}

#[test]
fn a_kernel_that_refuses_harms_nothing() {
    both_engines(|engine| {
        let answers = Arc::new(Halting(AtomicU32::new(0)));
        let kernel = answers.clone();
        let change = |config: &mut hmm_backend::BackendConfig| config.kernel = Some(kernel);
        let rig = Rig::with(
            512,
            engine,
            "density:threshold=1+hints+timeslice:min=0us",
            change,
            1,
        );
        read_mostly(&rig, 0..512);
        let mut device = rig.device(64);
        let all = rig.range(0..16);
        assert_eq!(rig.backend.migrate_to_device(device.id, all).unwrap(), 16);
        for page in 0..16 {
            device.write(page, 0, 10 + u64::from(page)).unwrap();
        }
        answers.0.store(3, SeqCst);
        for page in 0..16 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), 10 + u64::from(page));
            assert_eq!(device.read(page, 0), Ok(10 + u64::from(page)));
        }
        assert_eq!(duplicates(&rig, 0..16).len(), 16);
        assert_eq!(answers.0.load(SeqCst), 0, "the kernel has refused");
        device.driver.assert_clean();
    });
}
