//! Tests what policies do besides advice on faults: wishes, hints, frees, ticks, and pages that devices use in
//! place.

mod common;

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Rig, both_engines};
use hmm_backend::engine::Engine;
use hmm_backend::mirror::Target;
use hmm_backend::observe::Cause;
use hmm_backend::pages::{DeviceId, Hint, Page, PageRange, PageSet, Place};
use hmm_backend::policy::{
    Advice, BlockFault, BlockView, EvictionPolicy, FaultPolicy, Lru, PolicyFactory, Seen, Wish,
};

const DEVICE: Place = Place::Device(DeviceId(0));

/// A policy that returns what the test wants, and records what it is told.
#[derive(Clone, Default)]
struct Script {
    /// The wishes for the next faults, one list for each, the last one first.
    wishes: Arc<Mutex<Vec<Vec<Wish>>>>,
    /// The wishes for the next ticks, in the same form.
    ticks: Arc<Mutex<Vec<Vec<Wish>>>>,
    stay: bool,
    slow: bool,
    /// What the policy was told, as text.
    heard: Arc<Mutex<Vec<String>>>,
    ticked: Arc<AtomicU32>,
}

impl FaultPolicy for Script {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        assert_eq!(view.pages, 1024);
        if self.slow {
            // Work for longer than advice may take.
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(2) {
                std::hint::spin_loop();
            }
        }
        Advice {
            stay: self.stay && fault.to != Place::System,
            migrate: self.wishes.lock().unwrap().pop().unwrap_or_default(),
            ..Advice::default()
        }
    }
    fn remote_access_threshold(&self) -> Option<u32> {
        Some(7)
    }
    fn remote_accesses(&mut self, seen: &BlockFault, count: u32, _: &BlockView<'_>) -> PageSet {
        let first = seen.block.first_page().0;
        let pages: Vec<_> = seen.pages.iter().collect();
        let heard = format!("used {pages:?} in block at {first}, {count} times");
        self.heard.lock().unwrap().push(heard);
        // Return one page that the device has used, and one that it has not used.
        [seen.pages.first().unwrap(), 500].into_iter().collect()
    }
    fn hinted(&mut self, pages: PageRange, hint: Hint) {
        let heard = format!("{}..{} {hint}", pages.start.0, pages.end.0);
        self.heard.lock().unwrap().push(heard);
    }
    fn freed(&mut self, pages: PageRange) {
        let heard = format!("freed {}..{}", pages.start.0, pages.end.0);
        self.heard.lock().unwrap().push(heard);
    }
    fn tick_interval(&self) -> Option<Duration> {
        Some(Duration::from_millis(1))
    }
    fn tick(&mut self, _: Duration, _: Seen) -> Vec<Wish> {
        self.ticked.fetch_add(1, SeqCst);
        self.ticks.lock().unwrap().pop().unwrap_or_default()
    }
}

impl PolicyFactory for Script {
    fn fault_policy(&self) -> Box<dyn FaultPolicy> {
        Box::new(self.clone())
    }
    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy> {
        Box::new(Lru::new(frames))
    }
    fn name(&self) -> String {
        "script".into()
    }
}

impl Script {
    fn rig(&self, engine: Engine) -> Rig {
        let policy = Arc::new(self.clone());
        Rig::with(1024, engine, "on-demand", |c| c.policy = policy, 1)
    }

    fn wishes(&self, wishes: &[Wish]) {
        self.wishes.lock().unwrap().push(wishes.to_vec());
    }

    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

fn wish(pages: std::ops::Range<u32>, to: Place) -> Wish {
    Wish {
        pages: PageRange::new(Page(pages.start), Page(pages.end)),
        to,
    }
}

#[test]
fn wishes_are_served_without_a_fault_on_their_pages() {
    both_engines(|engine| {
        let script = Script::default();
        let rig = script.rig(engine);
        let mut device = rig.device(512);
        for page in 500..530 {
            rig.cpu(page, 0).store(u64::from(page), SeqCst);
        }
        // The wish crosses a block border, is served in more than one piece, and includes untouched pages.
        script.wishes(&[wish(500..700, DEVICE), wish(0..10, DEVICE)]);
        rig.cpu(1000, 0).store(1, SeqCst);
        rig.wait_for(|s| s.to_device.get(&Cause::Prefetch) == Some(&210));
        assert_eq!(rig.on_device(0..1024).len(), 210);
        assert_eq!(rig.backend.stats().device_faults, 0);
        // The wish of a device's fault brings pages back.
        script.wishes(&[wish(510..520, Place::System)]);
        device.write(900, 0, 1).unwrap();
        rig.wait_for(|s| s.to_system.get(&Cause::Prefetch) == Some(&10));
        assert!(rig.on_device(510..520).is_empty());
        for page in 500..530 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), u64::from(page));
        }
        assert_eq!(rig.backend.stats().counters.advice_cut, 0);
        device.driver.assert_clean();
    });
}

#[test]
fn a_wish_takes_pages_from_another_device() {
    both_engines(|engine| {
        let script = Script::default();
        let rig = script.rig(engine);
        let (mut one, other) = (rig.device(64), rig.device(64));
        for page in 0..8 {
            one.write(page, 0, page.into()).unwrap();
        }
        script.wishes(&[wish(0..8, Place::Device(other.id))]);
        rig.cpu(1000, 0).store(1, SeqCst);
        rig.wait_for(|s| s.between_devices.get(&Cause::Prefetch) == Some(&8));
        assert_eq!(rig.on_device(0..8).len(), 8);
        assert_eq!(rig.backend.stats().pages_to_system(), 0);
        for page in 0..8 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), u64::from(page));
        }
        one.driver.assert_clean();
        other.driver.assert_clean();
    });
}

#[test]
fn impossible_wishes_are_cut_and_counted() {
    both_engines(|engine| {
        let script = Script::default();
        let rig = script.rig(engine);
        let device = rig.device(512);
        let cut = |n| rig.wait_for(|s| s.counters.advice_cut == n);
        // Beyond the end of memory: the part that exists migrates.
        script.wishes(&[wish(1020..1030, DEVICE)]);
        rig.cpu(1, 0).store(1, SeqCst);
        rig.wait_for(|s| s.to_device.get(&Cause::Prefetch) == Some(&4));
        cut(1);
        for (n, bad) in [
            wish(2000..2001, DEVICE),
            wish(0..10, Place::Device(DeviceId(3))),
            wish(700..5000, DEVICE),
        ]
        .into_iter()
        .enumerate()
        {
            script.wishes(&[bad]);
            rig.cpu(2 + n as u32, 0).store(1, SeqCst);
            cut(2 + n as u64);
        }
        // A policy may have at most eight wishes at a time: one of these nine is cut.
        script.wishes(&[wish(100..101, DEVICE); 9]);
        rig.cpu(10, 0).store(1, SeqCst);
        cut(5);
        // Wishes of ticks are cut, too.
        script
            .ticks
            .lock()
            .unwrap()
            .push(vec![wish(5000..5001, DEVICE); 10]);
        cut(6 + 8);
        drop(device);
    });
}

#[test]
fn a_full_queue_drops_the_oldest_wishes() {
    let script = Script::default();
    let mut rig = script.rig(Engine::Remap);
    let mut device = rig.device(512);
    rig.stop_service();
    for page in 0..33 {
        script.wishes(&[wish(100..101, DEVICE); 8]);
        device.write(page, 0, 1).unwrap();
    }
    assert_eq!(rig.backend.stats().counters.wishes_dropped, 8);
}

#[test]
fn policies_hear_of_hints_frees_and_time() {
    both_engines(|engine| {
        let script = Script::default();
        let rig = script.rig(engine);
        let hint = Hint::PreferredLocation(Some(DEVICE));
        rig.backend.hint(rig.range(500..600), hint).unwrap();
        assert_eq!(
            script.heard(),
            ["500..512 preferred:device0", "512..600 preferred:device0"]
        );
        let error = rig.backend.hint(rig.range(1000..1025), hint).unwrap_err();
        assert!(error.to_string().contains("0x400 pages"), "{error}");
        rig.backend.guest_freed(rig.range(510..513)).unwrap();
        assert_eq!(script.heard(), ["freed 510..512", "freed 512..513"]);
        // Ticks need no fault, and their wishes are served.
        let device = rig.device(64);
        script.ticks.lock().unwrap().push(vec![wish(3..5, DEVICE)]);
        rig.wait_for(|_| script.ticked.load(SeqCst) > 3);
        rig.wait_for(|s| s.to_device.get(&Cause::Prefetch) == Some(&2));
        assert_eq!(rig.on_device(0..512), [3, 4].into());
        drop(device);
    });
}

#[test]
fn a_wish_for_system_memory_makes_devices_fault_again() {
    both_engines(|engine| {
        let script = Script {
            stay: true,
            ..Script::default()
        };
        let rig = script.rig(engine);
        let mut device = rig.device(64);
        rig.cpu(7, 0).store(70, SeqCst);
        rig.cpu(8, 0).store(80, SeqCst);
        assert_eq!((device.read(7, 0), device.read(8, 0)), (Ok(70), Ok(80)));
        assert_eq!(device.target(7), Some(Target::System));
        script.wishes(&[wish(7..8, Place::System)]);
        rig.cpu(9, 0).store(1, SeqCst);
        rig.wait_for(|s| s.counters.invalidations == 1);
        rig.backend.settle(rig.range(7..8)).unwrap();
        assert_eq!(
            (device.target(7), device.target(8)),
            (None, Some(Target::System))
        );
        assert_eq!(device.read(7, 0), Ok(70));
        assert_eq!(rig.backend.stats().counters.mapped_in_place, 3);
    });
}

#[test]
fn a_slow_decision_is_counted() {
    let script = Script {
        slow: true,
        ..Script::default()
    };
    let rig = script.rig(Engine::Remap);
    rig.cpu(7, 0).store(1, SeqCst);
    rig.wait_for(|s| s.counters.advice_late == 1);
}

#[test]
fn what_a_device_uses_often_in_place_migrates() {
    both_engines(|engine| {
        let script = Script {
            stay: true,
            ..Script::default()
        };
        let rig = script.rig(engine);
        let mut device = rig.device(64);
        assert_eq!(device.mirror().remote_access_threshold(), Some(7));
        rig.cpu(514, 0).store(3, SeqCst);
        assert_eq!(device.read(514, 0), Ok(3));
        let used = rig.range(514..520);
        device.mirror().used_in_place(used, 9).unwrap();
        assert_eq!(
            script.heard(),
            ["used [2, 3, 4, 5, 6, 7] in block at 512, 9 times"]
        );
        rig.wait_for(|s| s.to_device.get(&Cause::Prefetch) == Some(&1));
        assert_eq!(rig.on_device(0..1024), [514].into());
        assert_eq!(
            rig.backend.stats().counters.advice_cut,
            1,
            "page 500 was not asked for"
        );
        let beyond = rig.range(1020..1030);
        assert!(device.mirror().used_in_place(beyond, 9).is_err());
        assert_eq!(device.read(514, 0), Ok(3));
        assert!(matches!(device.target(514), Some(Target::Device(_))));
    });
}

/// The built-in modifier `hints` on a live backend: hints decide where a page is after a device's access.
#[test]
fn hints_place_pages() {
    both_engines(|engine| {
        let rig = Rig::new(512, engine, "on-demand+hints+timeslice:min=0us");
        let mut device = rig.device(64);
        let hint = |pages, hint: &str| {
            let hint = hint.parse().unwrap();
            rig.backend.hint(rig.range(pages), hint).unwrap();
        };
        hint(0..10, "preferred:system");
        hint(10..20, "read-mostly");
        hint(20..30, "accessed-by:device0");
        for page in (0..40).step_by(10) {
            rig.cpu(page, 0).store(5, SeqCst);
            assert_eq!(device.read(page, 0), Ok(5));
        }
        assert_eq!(rig.on_device(0..40), [10, 30].into());
        // A page that the device touches first goes to system memory, too.
        device.write(1, 0, 6).unwrap();
        assert_eq!(rig.on_device(0..10), [].into());
        assert_eq!(rig.cpu(1, 0).load(SeqCst), 6);
        // A CPU or a device that touches a read-mostly page gets it; after a CPU's read, the device keeps its
        // copy as well.
        device.write(11, 0, 7).unwrap();
        assert_eq!(rig.cpu(10, 0).load(SeqCst), 5);
        assert_eq!(rig.on_device(10..20), [11].into());
        assert!(rig.backend.word(Page(10)).unwrap().residency().duplicated());
        hint(0..512, "preferred:none");
        rig.cpu(2, 0).store(8, SeqCst);
        assert_eq!(device.read(2, 0), Ok(8));
        assert_eq!(rig.on_device(0..10), [2].into());
    });
}
