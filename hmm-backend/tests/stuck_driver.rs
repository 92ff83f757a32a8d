//! Tests a driver's call that does not return: it is reported, and no other fault waits for it.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::{Rig, both_engines};
use hmm_backend::driver::{DeviceFolio, Driver, FaultError, Finalized, ToSystem};
use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::observe::EventKind;
use hmm_backend::pages::{Page, PageRange};
use hmm_backend::policy::PolicySpec;
use hmm_backend::service::ServiceConfig;
use hmm_backend::{Backend, BackendConfig};

/// A driver whose call for a fault on page 0 blocks until the test releases it.
#[derive(Default)]
struct Stuck {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default, PartialEq, PartialOrd)]
enum State {
    #[default]
    Idle,
    Stuck,
    LetGo,
}

impl Stuck {
    fn now(&self, state: State) {
        *self.state.lock().unwrap() = state;
        self.changed.notify_all();
    }

    fn wait_for(&self, wanted: State) {
        let mut state = self.state.lock().unwrap();
        while *state < wanted {
            state = self.changed.wait(state).unwrap();
        }
    }
}

impl Driver for Stuck {
    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        if migration.fault() == Some(Page(0)) {
            self.now(State::Stuck);
            self.wait_for(State::LetGo);
        }
        migration.run()
    }

    fn page_free(&self, _: DeviceFolio) {}
}

fn backend(engine: Engine) -> (Arc<Backend>, Arc<Stuck>, PageRange) {
    let mut config = BackendConfig::new(4 << 20);
    config.engine = EngineChoice::Only(engine);
    config.policy = Arc::new("on-demand+timeslice:min=0us".parse::<PolicySpec>().unwrap());
    config.events = 1000;
    let backend = Backend::new(config).unwrap();
    let driver = Arc::new(Stuck::default());
    let device = backend.attach(2 << 20, driver.clone()).unwrap();
    let some = PageRange::with_len(Page(0), 8);
    backend.migrate_to_device(device, some).unwrap();
    (backend, driver, some)
}

/// The threads of all services of this program that have begun.
static BEGUN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Configures one service thread, so that a stuck driver blocks the only one.
fn service() -> ServiceConfig {
    ServiceConfig {
        slow_driver: Duration::from_millis(20),
        on_begin: |name| {
            assert_eq!(std::thread::current().name(), Some(name));
            BEGUN.lock().unwrap().insert(name.to_owned());
        },
        ..ServiceConfig::default()
    }
}

#[test]
fn a_stuck_driver_is_reported_and_others_are_served() {
    both_engines(|engine| {
        let (backend, driver, _) = backend(engine);
        let service = backend
            .start_service(service(), |f| panic!("{f:?}"))
            .unwrap();
        let stuck = std::thread::scope(|scope| {
            let stuck = scope.spawn(|| Rig::word_of(&backend, 0).fetch_add(1, SeqCst));
            driver.wait_for(State::Stuck);
            // Other faults are served: on a page of the same device, and on an untouched page.
            assert_eq!(Rig::word_of(&backend, 1).load(SeqCst), 0);
            Rig::word_of(&backend, 700).store(1, SeqCst);
            assert!(!stuck.is_finished());
            driver.now(State::LetGo);
            stuck.join().unwrap()
        });
        assert_eq!((stuck, Rig::word_of(&backend, 0).load(SeqCst)), (0, 1));
        assert_eq!(backend.stats().counters.slow_driver_calls, 1);
        // Also the thread that has taken the place of the stuck one has called the hook.
        let expected = ["hmm-fault+0", "hmm-fault0", "hmm-watch"].map(str::to_owned);
        assert!(BEGUN.lock().unwrap().is_superset(&expected.into()));
        let events = backend.drain_events().events;
        let slow = events.iter().find(|e| e.kind == EventKind::SlowDriver);
        let slow = slow.expect("an event");
        assert_eq!(slow.page, Page(0));
        assert!(slow.device.is_some() && slow.latency >= Duration::from_millis(20));
        drop(service);
    });
}

#[test]
fn a_service_ends_although_a_driver_does_not_return() {
    both_engines(|engine| {
        let (backend, driver, _) = backend(engine);
        let service = backend
            .start_service(service(), |f| panic!("{f:?}"))
            .unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| Rig::word_of(&backend, 0).load(SeqCst));
            driver.wait_for(State::Stuck);
            assert_eq!(
                Rig::word_of(&backend, 1).load(SeqCst),
                0,
                "a stand-in thread serves the fault"
            );
            drop(service);
            assert!(backend.word(Page(0)).unwrap().locked());
            // The thread that was blocked in the driver completes the migration.
            driver.now(State::LetGo);
        });
    });
}
