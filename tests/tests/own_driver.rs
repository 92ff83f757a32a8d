//! A complete driver, checked by the conformance suite and in a virtual machine: the code that `docs/testing.md` and
//! `docs/driver-conformance.md` show, word for word.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use hmm_backend::driver::{
    DeviceFolio, Driver, FaultError, Finalized, MigrateError, ToDevice, ToSystem,
};
use hmm_backend::pages::Frame;
use hmmvisor_testkit::conformance::{self, Subject};
use hmmvisor_testkit::{GuestError, Residency, TestVm, WayPoint, each_engine};

/// Keeps a record of each folio in its device's memory. The cookie is the record's number.
#[derive(Default)]
struct MyDriver(Mutex<Records>);

#[derive(Default)]
struct Records {
    /// Number of frames and first frame of each folio, by its cookie.
    folios: HashMap<u64, (u32, Frame)>,
    last_cookie: u64,
    complaints: Vec<String>,
}

impl Records {
    fn add(&mut self, pages: u32, frame: Frame) -> u64 {
        self.last_cookie += 1;
        self.folios.insert(self.last_cookie, (pages, frame));
        self.last_cookie
    }
}

impl Driver for MyDriver {
    // Pages come. The lock on the records is released before `copy`, because `page_free` and `folio_split` may be
    // called from inside it.
    fn migrate_to_device(&self, mut migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        migration.set_cookies(|folio| self.0.lock().unwrap().add(folio.pages(), folio.frame));
        let copied = migration.copy()?;
        // The frames hold the contents, and nothing can change them: program the hardware here.
        Ok(copied.commit().finalize())
    }

    // Pages go, because a CPU touched one, to make room, or because the device is detached.
    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        let copied = migration.copy()?;
        // The device's translations are gone: wait for the hardware here.
        Ok(copied.commit()?.finalize())
    }

    // A folio is no longer in use. This comes once for each cookie.
    fn page_free(&self, folio: DeviceFolio) {
        let mut records = self.0.lock().unwrap();
        if records.folios.remove(&folio.cookie) != Some((folio.pages(), folio.frame)) {
            let complaint = format!("page_free of a folio that has no record: {folio:?}");
            records.complaints.push(complaint);
        }
    }

    // A folio is cut in two. The lower half keeps the cookie; the result is that of the upper half.
    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        let mut records = self.0.lock().unwrap();
        let half = folio.pages() / 2;
        records.folios.insert(folio.cookie, (half, folio.frame));
        records.add(half, Frame(folio.frame.0 + half))
    }
}

/// What the conformance suite may look at besides the driver's answers.
struct Mine(Arc<MyDriver>);

impl Subject for Mine {
    fn driver(&self) -> Arc<dyn Driver> {
        self.0.clone()
    }

    fn live(&self) -> Option<usize> {
        Some(self.0.0.lock().unwrap().folios.len())
    }

    fn complaints(&self) -> Vec<String> {
        self.0.0.lock().unwrap().complaints.clone()
    }
}

#[test]
fn my_driver_keeps_the_contract() {
    // A new driver for each rule.
    conformance::run_subject(|| Mine(Arc::default())).assert_passed();
}

#[test]
fn my_driver_gives_a_page_back_to_a_vcpu() -> Result<(), GuestError> {
    each_engine(|engine| {
        let driver = Arc::new(MyDriver::default());
        let builder = TestVm::builder().engine(engine);
        let vm = builder.driver(16, driver.clone()).start();
        vm.vcpu(0).fill(0..4, 1000).wait()?;
        vm.to_device(0, 0..4);
        let gate = vm.device(0).hold(WayPoint::ToSystemAfterCopy);
        let verify = vm.vcpu(1).verify(0..4, 1000);
        assert!(gate.wait_arrived().contains(0) && !verify.is_done());
        gate.release();
        verify.wait()?;
        assert_eq!(vm.residency(0), Residency::System);
        Ok(())
    })
}

/// The pieces of Rust that a document shows.
fn shown(document: &str) -> impl Iterator<Item = &str> {
    let pieces = document.split("```rust\n").skip(1);
    pieces.filter_map(|rest| rest.split("```").next())
}

#[test]
fn the_documents_show_this_driver() {
    let source = include_str!("own_driver.rs");
    let conformance = include_str!("../../docs/driver-conformance.md");
    let testing = include_str!("../../docs/testing.md");
    // `connect` needs a device; the first piece is the trait.
    let checked =
        shown(conformance).filter(|it| !it.contains("fn connect") && !it.starts_with("pub trait"));
    let mut pieces = 0;
    for code in checked {
        assert!(source.contains(code), "only in the document:\n{code}");
        pieces += 1;
    }
    assert_eq!(pieces, 4);
    let both = shown(testing).filter(|code| source.contains(code));
    assert_eq!(both.count(), 2);
}
