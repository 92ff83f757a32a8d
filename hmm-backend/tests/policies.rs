//! Tests policies that advise nonsense or something unusual: the backend stays correct whatever they advise.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use common::Rig;
use hmm_backend::BackendConfig;
use hmm_backend::engine::Engine;
use hmm_backend::mirror::MirrorError;
use hmm_backend::observe::{Cause, EventKind};
use hmm_backend::pages::{Frame, Page, PageSet, Place};
use hmm_backend::policy::{
    AccessedBits, Advice, BlockFault, BlockView, EvictionPolicy, FaultPolicy, Lru, PolicyFactory,
};

/// A factory of policies that call the given functions.
struct Policies {
    advise: fn(&BlockFault) -> Advice,
    victims: fn(frames: u32) -> Option<Vec<Frame>>,
}

struct Advises(fn(&BlockFault) -> Advice);

impl FaultPolicy for Advises {
    fn advise(&mut self, fault: &BlockFault, _: &BlockView<'_>) -> Advice {
        (self.0)(fault)
    }
}

struct Victims(Lru, u32, fn(frames: u32) -> Option<Vec<Frame>>);

impl EvictionPolicy for Victims {
    fn allocated(&mut self, head: Frame, order: u8, page: Page) {
        self.0.allocated(head, order, page);
    }
    fn touched(&mut self, head: Frame, times: u32) {
        self.0.touched(head, times);
    }
    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        self.0.split(head, upper, order);
    }
    fn freed(&mut self, head: Frame) {
        self.0.freed(head);
    }
    fn victims(&mut self, frames: u32, bits: &mut dyn AccessedBits) -> Vec<Frame> {
        (self.2)(self.1).unwrap_or_else(|| self.0.victims(frames, bits))
    }
}

impl PolicyFactory for Policies {
    fn fault_policy(&self) -> Box<dyn FaultPolicy> {
        Box::new(Advises(self.advise))
    }
    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy> {
        Box::new(Victims(Lru::new(frames), frames, self.victims))
    }
    fn name(&self) -> String {
        "test".into()
    }
}

fn with_policies(advise: fn(&BlockFault) -> Advice, victims: fn(u32) -> Option<Vec<Frame>>) -> Rig {
    let policies = Policies { advise, victims };
    let change = |c: &mut BackendConfig| {
        c.policy = Arc::new(policies);
        c.events = 4096;
    };
    Rig::with(512, Engine::Remap, "on-demand", change, 1)
}

#[test]
fn nonsense_victims_lose_nothing() {
    let nothing: fn(u32) -> Option<Vec<Frame>> = |_| Some(Vec::new());
    let nonsense: fn(u32) -> Option<Vec<Frame>> =
        |n| Some(vec![Frame(n), Frame(u32::MAX), Frame(0), Frame(0)]);
    for (victims, lockstep) in [nothing, nonsense]
        .into_iter()
        .flat_map(|victims| [(victims, false), (victims, true)])
    {
        let policies = Policies {
            advise: |_| Advice::default(),
            victims,
        };
        let change = |c: &mut BackendConfig| {
            c.policy = Arc::new(policies);
            c.lockstep = lockstep;
        };
        let rig = Rig::with(512, Engine::Remap, "on-demand", change, 1);
        let mut device = rig.device(4);
        for page in 0..20 {
            device.write(page, 0, u64::from(page)).unwrap();
        }
        rig.backend.detach(device.id).unwrap();
        for page in 0..20 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), u64::from(page));
        }
    }
}

/// Each of the 60 rounds is throttled for a second: the test would take a minute if a detach did not end the
/// throttle.
#[test]
fn a_device_that_is_throttled_can_be_detached_at_once() {
    let throttled = |fault: &BlockFault| Advice {
        throttle: match fault.to {
            Place::System => Duration::ZERO,
            Place::Device(_) => Duration::from_secs(1),
        },
        ..Advice::default()
    };
    let rig = with_policies(throttled, |_| None);
    for round in 1..=60 {
        let mut device = rig.device(4);
        let id = device.id;
        std::thread::scope(|scope| {
            let access = scope.spawn(move || device.read(7, 0));
            rig.wait_for(|s| s.counters.faults_deferred == round);
            rig.backend.detach(id).unwrap();
            assert_eq!(access.join().unwrap(), Err(MirrorError::Detached));
        });
    }
}

#[test]
fn a_deferred_fault_does_not_steal_for_a_cpu_that_went_on() {
    let throttled = |fault: &BlockFault| Advice {
        throttle: match fault.to {
            Place::System => Duration::from_millis(50),
            Place::Device(_) => Duration::ZERO,
        },
        ..Advice::default()
    };
    let rig = with_policies(throttled, |_| None);
    let device = rig.device(64);
    rig.backend
        .migrate_to_device(device.id, rig.range(3..4))
        .unwrap();
    std::thread::scope(|scope| {
        let cpu = scope.spawn(|| rig.cpu(3, 0).load(SeqCst));
        rig.wait_for(|s| s.counters.faults_deferred == 1);
        rig.backend.migrate_to_system(rig.range(3..4)).unwrap();
        cpu.join().unwrap();
        rig.backend
            .migrate_to_device(device.id, rig.range(3..4))
            .unwrap();
        // The fault on page 9 is put off after the one on page 3. So when it is served, the first one has been
        // handled.
        rig.backend
            .migrate_to_device(device.id, rig.range(9..10))
            .unwrap();
        scope.spawn(|| rig.cpu(9, 0).load(SeqCst)).join().unwrap();
        assert_eq!(
            rig.on_device(0..512),
            [3].into(),
            "page 3 left the device although no CPU waited for it"
        );
    });
}

/// If the policy were asked twice, a policy that counts faults would count the fault twice.
#[test]
fn a_policy_is_asked_once_about_a_fault_that_waits_for_a_hold() {
    let holds = |_: &BlockFault| Advice {
        hold: Duration::from_millis(20),
        ..Advice::default()
    };
    let rig = with_policies(holds, |_| None);
    let mut device = rig.device(4);
    device.write(3, 0, 1).unwrap();
    assert_eq!(rig.cpu(3, 0).load(SeqCst), 1);
    device.write(3, 0, 2).unwrap();
    rig.wait_for(|s| s.counters.faults_deferred == 2);
    let events = rig.backend.drain_events().events;
    let asked = events.iter().filter(|e| e.kind == EventKind::Advice);
    assert_eq!(asked.count(), 3);
}

#[test]
fn a_fault_that_was_throttled_is_known_to_have_waited() {
    let throttles = |fault: &BlockFault| Advice {
        throttle: Duration::from_millis(1),
        hold: Duration::from_nanos(fault.waited.into()),
        ..Advice::default()
    };
    let rig = with_policies(throttles, |_| None);
    let mut device = rig.device(4);
    device.write(3, 0, 1).unwrap();
    assert_eq!(rig.cpu(3, 0).load(SeqCst), 1);
    rig.wait_for(|s| s.cpu_faults == 1);
    let events = rig.backend.drain_events().events;
    let asked = events.iter().filter(|e| e.kind == EventKind::Advice);
    let waited: Vec<_> = asked.map(|e| e.latency.as_nanos()).collect();
    assert_eq!(waited, [0, 1, 0, 1]);
}

/// Pages that a fault's migration prefetches have the cause prefetch, page by page in the events, as in the
/// counters.
#[test]
fn events_and_counters_agree_about_causes() {
    let greedy = |_: &BlockFault| Advice {
        prefetch: PageSet::from_range(0..64),
        ..Advice::default()
    };
    let rig = with_policies(greedy, |_| None);
    let mut device = rig.device(512);
    for page in [5, 100, 40] {
        device.write(page, 0, 1).unwrap();
    }
    rig.cpu(9, 0).load(SeqCst);
    rig.wait_for(|s| s.pages_to_system() == 64);
    let stats = rig.backend.stats();
    let events = rig.backend.drain_events();
    let sum = |kind, cause| -> u64 {
        let those = events.events.iter();
        let those = those.filter(|e| e.kind == kind && e.cause == Some(cause));
        those.map(|e| u64::from(e.pages)).sum()
    };
    for cause in [Cause::Demand, Cause::Prefetch] {
        assert_eq!(sum(EventKind::ToDevice, cause), stats.to_device[&cause]);
        assert_eq!(sum(EventKind::ToSystem, cause), stats.to_system[&cause]);
    }
    assert_eq!(stats.to_device[&Cause::Demand], 2);
}
