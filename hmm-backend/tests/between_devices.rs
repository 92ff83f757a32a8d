//! Tests migrations from one device's private memory directly to another's.

mod common;

use std::collections::HashSet;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Device, Rig, both_engines};
use hmm_backend::BackendConfig;
use hmm_backend::driver::{DeviceFolio, Driver, FaultError, MigrateError};
use hmm_backend::engine::Engine;
use hmm_backend::links::{LinkMatrix, LinkModel, Route};
use hmm_backend::mirror::{DeviceMmu, MirrorError};
use hmm_backend::observe::{Cause, EventKind};
use hmm_backend::pages::{Access, DeviceId, PAGE_SIZE, Page, PageRange, Permission, Place};
use hmm_backend::policy::{
    Advice, BlockFault, BlockView, EvictionPolicy, FaultPolicy, Lru, PolicyFactory,
};
use hmm_backend::residency::Residency;
use hmm_backend::testing::{KernelAnswers, KernelCall, MadeUpAnswer};

/// Only the pages that an access or a call names move, and nothing holds them.
const EXACT: &str = "on-demand+timeslice:min=0us";
/// A device fault brings the rest of its block along.
const BLOCKS: &str = "density:threshold=1+timeslice:min=0us";

/// Writes its number to each page and migrates them to the device.
fn fill(rig: &Rig, device: &Device, pages: std::ops::Range<u32>) {
    for page in pages.clone() {
        rig.cpu(page, 0).store(page.into(), SeqCst);
    }
    assert_eq!(migrate(rig, device, pages.clone()), pages.end - pages.start);
}

/// Requests a migration to a device; returns how many pages have moved.
fn migrate(rig: &Rig, device: &Device, pages: std::ops::Range<u32>) -> u32 {
    let moved = rig.backend.migrate_to_device(device.id, rig.range(pages));
    moved.unwrap() as u32
}

/// Returns the device in whose private memory the page is.
fn home(rig: &Rig, page: u32) -> Option<DeviceId> {
    rig.backend.settle(rig.range(page..page + 1)).unwrap();
    match rig.backend.word(Page(page)).unwrap().residency() {
        Residency::Device(place) => Some(place.device),
        _ => None,
    }
}

#[test]
fn two_devices_pass_pages_to_and_fro_without_system_memory() {
    both_engines(|engine| {
        let rig = Rig::with(1024, engine, BLOCKS, |c| c.lockstep = true, 1);
        let mut devices = [rig.device(600), rig.device(600)];
        fill(&rig, &devices[0], 0..512);
        let system = || rig.backend.resident_bytes(rig.range(0..1024)).unwrap();
        let memory = |device: &Device| rig.backend.device_resident_bytes(device.id).unwrap();
        let before = rig.backend.stats();
        assert_eq!(system(), 0);
        for round in 1..=6u64 {
            let at = (round % 2) as usize;
            for page in 0..512 {
                assert_eq!(devices[at].add(page, 0, 1), Ok(u64::from(page) + round - 1));
                assert_eq!(home(&rig, page), Some(devices[at].id));
                assert_eq!(system(), 0, "a page of system memory is in use");
            }
            assert_eq!(devices[1 - at].driver.live(), 0);
            if engine == Engine::Remap {
                assert_eq!(
                    memory(&devices[1 - at]),
                    0,
                    "the pages themselves have moved"
                );
            }
        }
        let stats = rig.backend.stats();
        assert_eq!(stats.pages_between_devices(), 6 * 512);
        assert_eq!(stats.pages_to_system(), 0);
        assert_eq!(stats.to_device, before.to_device);
        assert_eq!(
            stats.device_pages_peak, 512,
            "a page is at one place at a time"
        );
        assert_eq!(stats.counters.flushes_refused, 0);
        let sum = |of: &dyn Fn(&Device) -> u64| devices.iter().map(of).sum::<u64>();
        assert_eq!(stats.page_free_calls, sum(&|d| d.driver.freed()));
        let events = rig.backend.drain_events().events;
        let passed = events
            .iter()
            .filter(|e| e.kind == EventKind::BetweenDevices);
        let pages: u64 = passed.map(|e| u64::from(e.pages)).sum();
        assert_eq!(pages, 6 * 512);
        for device in &devices {
            device.driver.assert_clean();
        }
        for page in 0..512 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), u64::from(page) + 6);
        }
        // A CPU's page is there a moment before its folio is freed.
        rig.wait_for(|_| devices.iter().all(|d| d.driver.live() == 0));
    });
}

#[test]
fn each_byte_crosses_the_host_once_or_not_at_all() {
    both_engines(|engine| {
        let own: LinkModel = "latency=1us,bandwidth=300G".parse().unwrap();
        for peer in [None, Some(own)] {
            let rig = Rig::with(512, engine, EXACT, |c| c.links.peer = peer, 1);
            let mut devices = [rig.device(64), rig.device(64)];
            fill(&rig, &devices[0], 0..16);
            for page in 0..16 {
                devices[1].add(page, 0, 1).unwrap();
            }
            let (a, b) = (Place::Device(devices[0].id), Place::Device(devices[1].id));
            let all = rig.backend.link_traffic();
            let bytes = |from, to| -> u64 {
                let those = all.iter().filter(|it| (it.from, it.to) == (from, to));
                those.map(|it| it.bytes).sum()
            };
            assert_eq!(bytes(Place::System, a), 16 * PAGE_SIZE);
            assert_eq!(bytes(a, b), 16 * PAGE_SIZE);
            assert_eq!(bytes(a, Place::System) + bytes(Place::System, b), 0);
            let between = all.iter().find(|it| (it.from, it.to) == (a, b)).unwrap();
            assert_eq!(between.transfers, 16);
            match peer {
                None => assert_eq!(between.route, Route::Host),
                Some(own) => assert_eq!((between.route, between.model), (Route::Peer, own)),
            }
        }
    });
}

#[test]
fn a_part_of_a_folio_moves_and_the_rest_stays() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, EXACT);
        let mut devices = [rig.device(512), rig.device(512)];
        fill(&rig, &devices[0], 0..512);
        assert_eq!(devices[1].add(77, 0, 1), Ok(77));
        for page in 0..512 {
            let at = usize::from(page == 77);
            assert_eq!(home(&rig, page), Some(devices[at].id), "page {page}");
        }
        // Nine halvings leave nine pieces beside the one that has gone.
        assert_eq!((devices[0].driver.live(), devices[1].driver.live()), (9, 1));
        // The pieces become one folio again, and that of the other device joins them.
        assert_eq!(migrate(&rig, &devices[1], 0..512), 511);
        assert_eq!(devices[0].driver.live(), 0);
        for page in 0..512 {
            assert_eq!(
                devices[1].read(page, 0),
                Ok(u64::from(page) + u64::from(page == 77))
            );
        }
        // Into memory in pieces: the source's large folios are cut for it.
        let mut small = rig.device(24);
        assert_eq!(migrate(&rig, &small, 0..24), 24);
        for page in 0..24 {
            assert_eq!(home(&rig, page), Some(small.id), "page {page}");
            assert_eq!(small.read(page, 0), Ok(page.into()));
        }
        for device in devices.iter().chain([&small]) {
            device.driver.assert_clean();
        }
        assert_eq!(rig.backend.stats().pages_to_system(), 0);
    });
}

#[test]
fn a_folio_that_does_not_fit_is_cut_for_the_room_there_is() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, EXACT);
        let mut devices = [rig.device(64), rig.device(3)];
        fill(&rig, &devices[0], 0..4);
        assert_eq!(devices[0].driver.live(), 1);
        // Three frames: two pages, one page, and one page that stays.
        assert_eq!(migrate(&rig, &devices[1], 0..4), 3);
        assert_eq!((devices[0].driver.live(), devices[1].driver.live()), (1, 2));
        for page in 0..4 {
            let at = usize::from(page < 3);
            assert_eq!(home(&rig, page), Some(devices[at].id), "page {page}");
            assert_eq!(devices[at].read(page, 0), Ok(page.into()));
        }
        for device in &devices {
            device.driver.assert_clean();
        }
    });
}

#[test]
fn pages_in_scattered_frames_become_one_folio() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, EXACT);
        let mut devices = [rig.device(64), rig.device(64)];
        // Neighbouring pages get neighbouring frames in the opposite order.
        for page in (0..8).rev() {
            devices[0].write(page, 0, page.into()).unwrap();
        }
        assert_eq!(devices[0].driver.live(), 8);
        assert_eq!(migrate(&rig, &devices[1], 0..8), 8);
        assert_eq!((devices[0].driver.live(), devices[1].driver.live()), (0, 1));
        for page in 0..8 {
            assert_eq!(devices[1].read(page, 0), Ok(page.into()));
        }
    });
}

#[test]
fn a_request_takes_pages_from_every_place() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, EXACT);
        let mut devices = [rig.device(64), rig.device(64), rig.device(64)];
        fill(&rig, &devices[0], 0..8);
        fill(&rig, &devices[1], 8..16);
        for page in 16..24 {
            rig.cpu(page, 0).store(page.into(), SeqCst);
        }
        rig.backend.memory_failure(Page(3)).unwrap();
        let pinned = rig.backend.pin(rig.range(16..17)).unwrap();
        assert_eq!(migrate(&rig, &devices[2], 0..32), 32 - 2);
        let stats = rig.backend.stats();
        assert_eq!(stats.between_devices[&Cause::User], 15);
        for page in (0..24).filter(|page| ![3, 16].contains(page)) {
            assert_eq!(home(&rig, page), Some(devices[2].id), "page {page}");
            assert_eq!(devices[2].read(page, 0), Ok(page.into()));
        }
        assert!(matches!(
            devices[2].read(3, 0),
            Err(MirrorError::Fatal { .. })
        ));
        drop(pinned);
        for device in &devices {
            device.driver.assert_clean();
        }
    });
}

#[test]
fn what_the_source_refuses_goes_through_system_memory() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, EXACT);
        let mut devices = [rig.device(64), rig.device(64)];
        fill(&rig, &devices[0], 0..8);
        devices[0].faults.lock().unwrap().flush = 2;
        assert_eq!(devices[1].add(0, 0, 1), Ok(0));
        assert_eq!(home(&rig, 0), Some(devices[1].id));
        assert_eq!(migrate(&rig, &devices[1], 1..8), 7);
        let stats = rig.backend.stats();
        assert_eq!(stats.counters.flushes_refused, 2);
        assert_eq!(
            (stats.pages_to_system(), stats.pages_between_devices()),
            (8, 0)
        );
        // The driver has changed its mind.
        assert_eq!(devices[0].add(0, 0, 1), Ok(1));
        assert_eq!(rig.backend.stats().pages_between_devices(), 1);
        for device in &devices {
            device.driver.assert_clean();
        }
    });
}

#[test]
fn pages_are_unharmed_when_the_destination_fails() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, EXACT);
        let mut devices = [rig.device(64), rig.device(64)];
        fill(&rig, &devices[0], 0..16);
        for after_copy in [0, 1] {
            {
                let mut faults = devices[1].faults.lock().unwrap();
                faults.to_device_after_copy = after_copy;
                faults.to_device_before_copy = 1 - after_copy;
            }
            assert_eq!(migrate(&rig, &devices[1], 0..16), 0);
            assert_eq!((devices[0].driver.live(), devices[1].driver.live()), (1, 0));
            for page in 0..16 {
                assert_eq!(home(&rig, page), Some(devices[0].id));
                assert_eq!(devices[0].read(page, 0), Ok(page.into()));
            }
        }
        // The frames are as good as new.
        assert_eq!(migrate(&rig, &devices[1], 0..16), 16);
        for page in 0..16 {
            assert_eq!(devices[1].read(page, 0), Ok(page.into()));
        }
        for device in &devices {
            device.driver.assert_clean();
        }
    });
}

#[test]
fn a_device_without_room_uses_the_page_in_place() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, EXACT);
        let mut devices = [rig.device(64), rig.device(1)];
        // The only frame holds a page that its driver keeps.
        devices[1].write(100, 0, 1).unwrap();
        devices[1].faults.lock().unwrap().to_ram = vec![FaultError::Retry; 100];
        fill(&rig, &devices[0], 0..1);
        assert_eq!(devices[1].add(0, 0, 1), Ok(0));
        let residency = rig.backend.word(Page(0)).unwrap().residency();
        assert_eq!(residency, Residency::System);
        assert_eq!(rig.backend.stats().pages_between_devices(), 0);
    });
}

#[test]
fn read_only_pages_stay_read_only_on_the_way() {
    both_engines(|engine| {
        let rig = Rig::with(512, engine, BLOCKS, |c| c.lockstep = true, 1);
        let mut devices = [rig.device(64), rig.device(64)];
        fill(&rig, &devices[0], 0..16);
        let some = rig.range(4..7);
        rig.backend
            .set_permission(some, Permission::ReadOnly)
            .unwrap();
        for page in 0..16 {
            assert_eq!(devices[1].read(page, 0), Ok(page.into()));
            assert_eq!(home(&rig, page), Some(devices[1].id));
            let written = devices[1].write(page, 0, page.into());
            match (4..7).contains(&page) {
                true => assert_eq!(written, Err(MirrorError::Permission(Page(page)))),
                false => assert_eq!(written, Ok(())),
            }
        }
        assert_eq!(rig.backend.stats().pages_to_system(), 0);
        for page in 0..16 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), page.into());
        }
    });
}

#[test]
fn the_source_s_hold_delays_the_other_device() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+timeslice:min=20ms");
        let mut devices = [rig.device(64), rig.device(64)];
        assert_eq!(devices[0].add(0, 0, 1), Ok(0));
        assert_eq!(devices[1].add(0, 0, 1), Ok(1));
        let stats = rig.backend.stats();
        assert_eq!(
            (stats.pages_between_devices(), stats.pages_to_system()),
            (1, 0)
        );
        assert!(stats.counters.faults_deferred > 0);
    });
}

#[test]
fn a_fault_takes_pages_from_one_place_and_leaves_held_ones() {
    both_engines(|engine| {
        let policy = "density:threshold=1+timeslice:min=1s";
        let rig = Rig::with(512, engine, policy, |c| c.lockstep = true, 1);
        let mut devices = [rig.device(256), rig.device(256), rig.device(64)];
        // Requests hold nothing.
        fill(&rig, &devices[0], 0..8);
        fill(&rig, &devices[2], 16..24);
        let began = Instant::now();
        devices[0].write(8, 0, 1).unwrap();
        assert_eq!(devices[1].read(0, 0), Ok(0));
        for page in 0..8 {
            assert_eq!(home(&rig, page), Some(devices[1].id), "page {page}");
        }
        for page in 16..24 {
            assert_eq!(home(&rig, page), Some(devices[2].id), "page {page}");
        }
        // On a machine that is busy with other things, the hold of a second may be over.
        let held = home(&rig, 8) == Some(devices[0].id);
        assert!(held || began.elapsed() > Duration::from_millis(500));
    });
}

#[test]
fn cpus_and_two_devices_lose_no_addition() {
    both_engines(|engine| {
        const TIMES: u32 = 300;
        const PAGES: u32 = 6;
        let rig = Rig::new(512, engine, BLOCKS);
        // One of them has room for a part of the pages only.
        let mut devices = [rig.device(64), rig.device(4)];
        std::thread::scope(|scope| {
            for device in &mut devices {
                scope.spawn(|| {
                    for n in 0..TIMES * PAGES {
                        device.add(n % PAGES, 0, 1).unwrap();
                    }
                });
            }
            scope.spawn(|| {
                for n in 0..TIMES * PAGES {
                    rig.cpu(n % PAGES, 0).fetch_add(1, SeqCst);
                }
            });
        });
        for page in 0..PAGES {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), u64::from(3 * TIMES));
        }
        for device in &devices {
            device.driver.assert_clean();
        }
    });
}

/// Notes which link the policy sees at each fault.
#[derive(Clone, Default)]
struct Links(Arc<Mutex<Vec<(Place, LinkModel)>>>);

impl FaultPolicy for Links {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        assert_eq!(view.links.host(DeviceId(0)), view.links.default);
        self.0.lock().unwrap().push((fault.to, view.link));
        Advice::default()
    }
}

impl PolicyFactory for Links {
    fn fault_policy(&self) -> Box<dyn FaultPolicy> {
        Box::new(self.clone())
    }
    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy> {
        Box::new(Lru::new(frames))
    }
    fn name(&self) -> String {
        "links".into()
    }
}

#[test]
fn policies_see_the_link_from_where_the_page_is() {
    let seen = Links::default();
    let policy = Arc::new(seen.clone());
    let links = "latency=7us; device1: latency=5us; device0-device1: latency=1us";
    let links: LinkMatrix = links.parse().unwrap();
    let configure = |c: &mut BackendConfig| {
        c.policy = policy;
        c.links = links.clone();
    };
    let rig = Rig::with(512, Engine::Copy, EXACT, configure, 1);
    let mut devices = [rig.device(64), rig.device(64)];
    let [a, b] = [0, 1].map(|n| Place::Device(devices[n].id));
    devices[0].write(3, 0, 1).unwrap();
    devices[1].write(3, 0, 2).unwrap();
    assert_eq!(rig.cpu(3, 0).load(SeqCst), 2);
    devices[1].write(3, 0, 3).unwrap();
    let (one, two) = (links.host(DeviceId(0)), links.host(DeviceId(1)));
    let own = links.peer(DeviceId(0), DeviceId(1)).unwrap();
    assert_eq!(
        *seen.0.lock().unwrap(),
        [(a, one), (b, own), (Place::System, two), (b, two)]
    );
}

/// The translations of a device, for its driver to look at.
#[derive(Clone, Default)]
struct Translations(Arc<Mutex<HashSet<Page>>>);

impl DeviceMmu for Translations {
    fn invalidate(&mut self, pages: PageRange) {
        self.0.lock().unwrap().retain(|page| !pages.contains(*page));
    }
}

/// Notes the calls about its device's folios.
#[derive(Default)]
struct Notes {
    calls: Mutex<Vec<(&'static str, Page)>>,
    translations: Translations,
}

impl Driver for Notes {
    fn flush(&self, folios: &[DeviceFolio], to: DeviceId) -> Result<(), MigrateError> {
        assert_eq!(to, DeviceId(1));
        let translated = self.translations.0.lock().unwrap();
        for folio in folios {
            assert!(
                !translated.contains(&folio.page),
                "the device still uses it"
            );
            self.calls.lock().unwrap().push(("flush", folio.page));
        }
        Ok(())
    }

    fn page_free(&self, folio: DeviceFolio) {
        self.calls.lock().unwrap().push(("free", folio.page));
    }
}

#[test]
fn the_source_is_asked_to_flush_when_it_uses_the_pages_no_more() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, EXACT);
        let driver = Arc::new(Notes::default());
        let id = rig.backend.attach(64 * PAGE_SIZE, driver.clone()).unwrap();
        let translations = driver.translations.clone();
        let mut mirror = rig.backend.mirror(id, translations.clone()).unwrap();
        let mut other = rig.device(64);
        mirror
            .fault(Page(5), Access::Write, |_, mapping| {
                translations.0.lock().unwrap().insert(mapping.page);
            })
            .unwrap();
        assert_eq!(translations.0.lock().unwrap().len(), 1);
        assert_eq!(other.read(5, 0), Ok(0));
        let calls = driver.calls.lock().unwrap().clone();
        assert_eq!(calls, [("flush", Page(5)), ("free", Page(5))]);
    });
}

/// Answers calls that pass page 5, as often as there are answers left.
#[derive(Default)]
struct Answers(Mutex<Vec<MadeUpAnswer>>);

impl KernelAnswers for Answers {
    fn answer(&self, call: KernelCall, pages: PageRange) -> Option<MadeUpAnswer> {
        if call != KernelCall::Pass || !pages.contains(Page(5)) {
            return None;
        }
        let answer = self.0.lock().unwrap().pop()?;
        let done = Page(5).0 - pages.start.0;
        Some(MadeUpAnswer { done, ..answer })
    }
}

fn with_answers() -> (Rig, [Device; 2], Arc<Answers>) {
    let answers = Arc::new(Answers::default());
    let its = answers.clone();
    let rig = Rig::with(512, Engine::Remap, EXACT, |c| c.kernel = Some(its), 1);
    let devices = [rig.device(64), rig.device(64)];
    fill(&rig, &devices[0], 0..16);
    (rig, devices, answers)
}

fn answer(errno: i32, unreported: u32) -> MadeUpAnswer {
    MadeUpAnswer {
        done: 0,
        unreported,
        errno,
    }
}

#[test]
fn pages_that_the_kernel_does_not_move_stay_behind() {
    let (rig, mut devices, answers) = with_answers();
    *answers.0.lock().unwrap() = vec![answer(libc::EBUSY, 0)];
    assert_eq!(migrate(&rig, &devices[1], 0..16), 15);
    for page in 0..16 {
        let at = usize::from(page != 5);
        assert_eq!(home(&rig, page), Some(devices[at].id), "page {page}");
    }
    for page in 0..16 {
        assert_eq!(devices[1].read(page, 0), Ok(page.into()));
    }
    for device in &devices {
        device.driver.assert_clean();
    }
}

#[test]
fn pages_that_the_kernel_has_moved_and_denies_are_there() {
    let (rig, mut devices, answers) = with_answers();
    *answers.0.lock().unwrap() = vec![answer(libc::EEXIST, 1)];
    assert_eq!(migrate(&rig, &devices[1], 0..16), 16);
    for page in 0..16 {
        assert_eq!(home(&rig, page), Some(devices[1].id), "page {page}");
        assert_eq!(devices[1].read(page, 0), Ok(page.into()));
    }
}

#[test]
fn a_page_that_cannot_go_back_stays_where_it_is() {
    let (rig, mut devices, answers) = with_answers();
    // The way there succeeds, the driver fails, and the way back of one page fails.
    *answers.0.lock().unwrap() = vec![answer(libc::EBUSY, 0), answer(libc::EEXIST, 1)];
    devices[1].faults.lock().unwrap().to_device_after_copy = 1;
    assert_eq!(migrate(&rig, &devices[1], 0..16), 0);
    for page in 0..16 {
        let at = usize::from(page == 5);
        assert_eq!(home(&rig, page), Some(devices[at].id), "page {page}");
    }
    assert_eq!(devices[1].driver.live(), 1);
    for page in 0..16 {
        assert_eq!(devices[1].read(page, 0), Ok(page.into()));
    }
    for device in &devices {
        device.driver.assert_clean();
    }
}
