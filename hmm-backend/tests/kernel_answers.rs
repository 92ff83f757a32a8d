//! Tests faults and migrations with each answer that the kernel may give. The answers are made up, so that each
//! of them is sure to occur.

mod common;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use common::{Rig, both_engines};
use hmm_backend::engine::Engine;
use hmm_backend::pages::{Page, PageRange};
use hmm_backend::residency::Residency;
use hmm_backend::service::{Fatal, FatalCause, ServiceFailure};
use hmm_backend::testing::{KernelAnswers, KernelCall, MadeUpAnswer};

/// An answer to a call of one kind that includes one page: the pages before that page are really done.
#[derive(Clone)]
struct Line {
    call: KernelCall,
    page: Page,
    /// This many pages from there on are really done, too, although the answer does not say so.
    unreported: u32,
    errno: i32,
}

#[derive(Default)]
struct Script(Mutex<Vec<Line>>);

impl Script {
    fn say(&self, call: KernelCall, page: u32, times: usize, errno: i32) {
        self.add(call, page, 0, times, errno);
    }

    /// Behaves as Linux 6.18, which moves pages and returns an error.
    fn lie(&self, call: KernelCall, page: u32, pages: u32, errno: i32) {
        self.add(call, page, pages, 1, errno);
    }

    fn add(&self, call: KernelCall, page: u32, unreported: u32, times: usize, errno: i32) {
        let line = Line {
            call,
            page: Page(page),
            unreported,
            errno,
        };
        self.0.lock().unwrap().extend(vec![line; times]);
    }

    fn left(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

impl KernelAnswers for Script {
    fn answer(&self, call: KernelCall, pages: PageRange) -> Option<MadeUpAnswer> {
        let mut script = self.0.lock().unwrap();
        let fits = |line: &Line| line.call == call && pages.contains(line.page);
        let found = script.iter().position(fits)?;
        let line = script.remove(found);
        Some(MadeUpAnswer {
            done: line.page.0 - pages.start.0,
            unreported: line.unreported,
            errno: line.errno,
        })
    }
}

fn rig(engine: Engine) -> (Rig, Arc<Script>) {
    let script = Arc::new(Script::default());
    let policy = "on-demand+timeslice:min=0us";
    let change = |config: &mut hmm_backend::BackendConfig| config.kernel = Some(script.clone());
    (Rig::with(1024, engine, policy, change, 1), script)
}

/// Errors that are temporary. `EAGAIN` comes in two forms: after a part of the pages, and without progress.
const PASSING: [i32; 3] = [libc::EAGAIN, libc::EBUSY, libc::ENOMEM];

#[test]
fn first_touches_are_served_in_the_end() {
    both_engines(|engine| {
        let (rig, script) = rig(engine);
        for (page, errno) in (0..).zip(PASSING) {
            script.say(KernelCall::Fill, page, 3, errno);
            assert_eq!(rig.cpu(page, 0).fetch_add(7, SeqCst), 0);
            assert_eq!(rig.cpu(page, 0).load(SeqCst), 7);
        }
        assert_eq!(script.left(), 0);
        assert!(rig.fatal.lock().unwrap().is_empty());
    });
}

/// The fault service calls the kernel once more, and then the page is filled.
#[test]
fn a_page_that_is_said_to_be_there_and_is_not_is_filled() {
    both_engines(|engine| {
        let (rig, script) = rig(engine);
        script.say(KernelCall::Fill, 3, 2, libc::EEXIST);
        assert_eq!(rig.cpu(3, 0).fetch_add(1, SeqCst), 0);
        assert_eq!(rig.cpu(3, 0).load(SeqCst), 1);
        assert_eq!(script.left(), 0);
        assert!(rig.fatal.lock().unwrap().is_empty());
    });
}

/// The page was filled without a wake-up, and counts as present.
#[test]
fn a_page_that_is_filled_without_a_word_wakes_its_cpu() {
    both_engines(|engine| {
        for (page, errno) in (0..).zip(LIES) {
            let (rig, script) = rig(engine);
            script.lie(KernelCall::Fill, page, 1, errno);
            assert_eq!(rig.cpu(page, 0).fetch_add(7, SeqCst), 0);
            assert_eq!(rig.cpu(page, 0).load(SeqCst), 7);
            // The CPU resumes a moment before the word says so.
            rig.backend.settle(rig.range(page..page + 1)).unwrap();
            let word = rig.backend.word(Page(page)).unwrap();
            assert_eq!(word.residency(), Residency::System);
            assert_eq!(script.left(), 0);
        }
    });
}

/// With these errors, the kernel reports that a page is not done although it is.
const LIES: [i32; 4] = [libc::EEXIST, libc::EAGAIN, libc::EINTR, libc::ENOENT];

/// Linux 6.18's error, in a migration to the device: the contents count as where the page tables have them,
/// whatever the kernel returns.
#[test]
fn pages_taken_without_a_word_are_on_the_device() {
    both_engines(|engine| {
        for errno in LIES {
            let (rig, script) = rig(engine);
            let mut device = rig.device(64);
            for page in 0..64 {
                rig.cpu(page, 0).store(100 + u64::from(page), SeqCst);
            }
            script.lie(KernelCall::Take, 10, 5, errno);
            let range = rig.range(0..64);
            let moved = rig.backend.migrate_to_device(device.id, range).unwrap();
            assert_eq!((moved, script.left()), (64, 0), "{errno}");
            for page in 0..64 {
                assert_eq!(device.read(page, 0), Ok(100 + u64::from(page)));
            }
            assert_eq!(rig.backend.resident_bytes(range).unwrap(), 0);
            assert_eq!(rig.backend.migrate_to_system(range).unwrap(), 64);
            for page in 0..64 {
                assert_eq!(rig.cpu(page, 0).load(SeqCst), 100 + u64::from(page));
            }
            device.driver.assert_clean();
            // The frames, and the pages that engine copy recycles, can be used again.
            let moved = rig.backend.migrate_to_device(device.id, range).unwrap();
            assert_eq!(moved, 64);
        }
    });
}

/// The same in a migration to system memory, where a CPU sleeps that the kernel has not woken.
#[test]
fn pages_given_without_a_word_are_in_system_memory() {
    both_engines(|engine| {
        for errno in LIES {
            let (rig, script) = rig(engine);
            let device = rig.device(64);
            for page in 0..64 {
                rig.cpu(page, 0).store(100 + u64::from(page), SeqCst);
            }
            let range = rig.range(0..64);
            let moved = rig.backend.migrate_to_device(device.id, range).unwrap();
            assert_eq!(moved, 64);
            script.lie(KernelCall::Give, 7, 1, errno);
            assert_eq!(rig.cpu(7, 0).fetch_add(1, SeqCst), 107);
            script.lie(KernelCall::Give, 20, 9, errno);
            assert_eq!(rig.backend.migrate_to_system(range).unwrap(), 63);
            assert_eq!(script.left(), 0);
            for page in 0..64 {
                let value = rig.cpu(page, 0).load(SeqCst);
                assert_eq!(value, 100 + u64::from(page) + u64::from(page == 7));
            }
            device.driver.assert_clean();
            assert!(rig.fatal.lock().unwrap().is_empty());
        }
    });
}

/// The same while a migration is rolled back: the driver fails after the copy.
#[test]
fn pages_that_roll_back_without_a_word_are_in_system_memory() {
    both_engines(|engine| {
        let (rig, script) = rig(engine);
        let device = rig.device(64);
        for page in 0..64 {
            rig.cpu(page, 0).store(100 + u64::from(page), SeqCst);
        }
        let range = rig.range(0..64);
        device.faults.lock().unwrap().to_device_after_copy = 1;
        script.lie(KernelCall::Give, 30, 4, libc::EEXIST);
        let moved = rig.backend.migrate_to_device(device.id, range).unwrap();
        assert_eq!((moved, script.left()), (0, 0));
        assert!(rig.on_device(0..64).is_empty());
        for page in 0..64 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), 100 + u64::from(page));
        }
        device.driver.assert_clean();
    });
}

/// Exclusive access moves pages, too.
#[test]
fn exclusive_access_survives_moves_without_a_word() {
    both_engines(|engine| {
        let (rig, script) = rig(engine);
        let mut device = rig.device(64);
        for round in 0..3 {
            script.lie(KernelCall::Take, 5, 1, libc::EEXIST);
            script.lie(KernelCall::Give, 5, 1, libc::EEXIST);
            rig.cpu(5, 0).fetch_add(1, SeqCst);
            device.add_exclusively(5, 0, 10, || ()).unwrap();
            assert_eq!(rig.cpu(5, 0).load(SeqCst), 11 * (round + 1));
        }
    });
}

/// If the word says that a page is present and the page tables do not have it, a CPU's access is fatal until
/// the page is freed.
#[test]
fn a_vanished_page_is_noticed() {
    both_engines(|engine| {
        let (rig, _) = rig(engine);
        rig.cpu(3, 0).store(1, SeqCst);
        let address = rig.cpu(3, 0).as_ptr();
        // SAFETY: the page belongs to this test, which wants its contents to vanish.
        let gone = unsafe { libc::madvise(address.cast(), 4096, libc::MADV_DONTNEED) };
        assert_eq!(gone, 0);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| rig.cpu(3, 0).fetch_add(1, SeqCst));
            let fatal = rig.first_fatal();
            let fault = common::fault(&fatal[0]).unwrap();
            let seen = (fault.page, &fault.cause);
            assert_eq!(seen, (Page(3), &FatalCause::Vanished));
            drop(fatal);
            let word = rig.backend.word(Page(3)).unwrap();
            assert_eq!(word.residency(), Residency::Poisoned);
            assert_eq!(rig.backend.stats().counters.pages_vanished, 1);
            rig.backend.guest_freed(rig.range(3..4)).unwrap();
            // Another CPU's access fills the page, which wakes the sleeping thread.
            rig.cpu(3, 0).load(SeqCst);
            assert_eq!(sleeper.join().unwrap(), 0);
        });
    });
}

/// Pages that the host does not take back keep their contents; the free returns an error, and the service
/// reports it.
#[test]
fn a_free_that_the_host_refuses_frees_nothing() {
    both_engines(|engine| {
        let (rig, script) = rig(engine);
        for page in 0..8 {
            rig.cpu(page, 0).store(1, SeqCst);
        }
        script.say(KernelCall::Discard, 3, 1, libc::EINVAL);
        let error = rig.backend.guest_freed(rig.range(0..8)).unwrap_err();
        assert!(
            matches!(error, hmm_backend::Error::Discard { .. }),
            "{error}"
        );
        assert_eq!(rig.cpu(3, 0).load(SeqCst), 1);
        refused(&rig, "madvise");
        assert!(rig.backend.guest_freed(rig.range(0..8)).unwrap() > 0);
        assert_eq!(rig.cpu(3, 0).load(SeqCst), 0);
    });
}

/// Waits until the service has reported that the host has refused a call.
fn refused(rig: &Rig, call: &str) {
    let fatal = rig.first_fatal();
    let said = matches!(
        &fatal[0],
        Fatal::Service(ServiceFailure::HostFailed(what)) if what.contains(call)
    );
    assert!(said, "{:?}", fatal[0]);
    assert_eq!(fatal.len(), 1);
}

/// A CPU that the host does not wake stays asleep, and the service reports it.
#[test]
fn a_wake_up_that_the_host_refuses_is_reported() {
    both_engines(|engine| {
        let (rig, script) = rig(engine);
        // The fill reports an error although it is done, so the service has to wake the CPU.
        script.lie(KernelCall::Fill, 3, 1, libc::EEXIST);
        script.say(KernelCall::Wake, 3, 1, libc::EINVAL);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| rig.cpu(3, 0).load(SeqCst));
            refused(&rig, "UFFDIO_WAKE");
            rig.backend.abandon_faults();
            assert_eq!(sleeper.join().unwrap(), 0);
        });
    });
}

#[test]
fn faults_on_device_pages_are_served_in_the_end() {
    both_engines(|engine| {
        let (rig, script) = rig(engine);
        let device = rig.device(64);
        for page in 0..64 {
            rig.cpu(page, 0).store(100 + u64::from(page), SeqCst);
        }
        let moved = rig.backend.migrate_to_device(device.id, rig.range(0..64));
        assert_eq!(moved.unwrap(), 64);
        for (page, errno) in (0..).zip(PASSING) {
            script.say(KernelCall::Give, page, 2, errno);
            assert_eq!(rig.cpu(page, 0).load(SeqCst), 100 + u64::from(page));
        }
        assert_eq!(script.left(), 0);
        assert!(rig.fatal.lock().unwrap().is_empty());
        device.driver.assert_clean();
    });
}

#[test]
fn migrations_lose_only_the_pages_the_kernel_keeps() {
    both_engines(|engine| {
        for errno in PASSING {
            let (rig, script) = rig(engine);
            let mut device = rig.device(64);
            for page in 0..64 {
                rig.cpu(page, 0).store(100 + u64::from(page), SeqCst);
            }
            // More errors than the number of times a call is repeated.
            script.say(KernelCall::Take, 10, 100, errno);
            let range = rig.range(0..64);
            let moved = rig.backend.migrate_to_device(device.id, range).unwrap();
            let moved = moved as usize;
            assert_eq!(rig.on_device(0..64).len(), moved);
            assert!(!rig.on_device(0..64).contains(&10));
            assert_eq!(moved, 63, "{errno}");
            script.clear();
            script.say(KernelCall::Give, 20, 100, errno);
            rig.backend.migrate_to_system(range).unwrap();
            let left: Vec<u32> = rig.on_device(0..64).into_iter().collect();
            assert_eq!(left, [20]);
            script.clear();
            for page in 0..64 {
                assert_eq!(device.read(page, 0), Ok(100 + u64::from(page)));
                assert_eq!(rig.cpu(page, 0).load(SeqCst), 100 + u64::from(page));
            }
            device.driver.assert_clean();
        }
    });
}

/// Several busy pages in one call's range: each must be found after the previous one has cut the range.
#[test]
fn busy_pages_far_apart_stay_and_the_others_go() {
    both_engines(|engine| {
        let (rig, script) = rig(engine);
        let device = rig.device(64);
        for page in 0..64 {
            rig.cpu(page, 0).store(100 + u64::from(page), SeqCst);
        }
        for page in [5, 40, 63] {
            script.say(KernelCall::Take, page, 1, libc::EBUSY);
        }
        let range = rig.range(0..64);
        let moved = rig.backend.migrate_to_device(device.id, range).unwrap();
        assert_eq!((moved, script.left()), (61, 0));
        let stayed: Vec<u32> = (0..64)
            .filter(|p| !rig.on_device(0..64).contains(p))
            .collect();
        assert_eq!(stayed, [5, 40, 63]);
        for page in 0..64 {
            assert_eq!(rig.cpu(page, 0).load(SeqCst), 100 + u64::from(page));
        }
        device.driver.assert_clean();
    });
}

#[test]
fn answers_that_the_protocol_rules_out_are_fatal_for_their_page_alone() {
    both_engines(|engine| {
        for errno in [libc::ENOENT, libc::ESRCH, libc::EFAULT] {
            let (rig, script) = rig(engine);
            let device = rig.device(64);
            rig.cpu(5, 0).store(5, SeqCst);
            rig.cpu(6, 0).store(6, SeqCst);
            let moved = rig.backend.migrate_to_device(device.id, rig.range(5..7));
            assert_eq!(moved.unwrap(), 2);
            script.say(KernelCall::Give, 5, 1, errno);
            std::thread::scope(|scope| {
                let sleeper = scope.spawn(|| rig.cpu(5, 0).load(SeqCst));
                let fatal = rig.first_fatal();
                let fault = common::fault(&fatal[0]).unwrap();
                assert_eq!(fault.page, Page(5));
                let cause = &fault.cause;
                assert!(
                    matches!(cause, FatalCause::DriverFailed(_) | FatalCause::Host(_)),
                    "{cause:?}"
                );
                drop(fatal);
                assert_eq!(rig.cpu(6, 0).load(SeqCst), 6);
                // The page's contents are still on the device; when they are migrated, the CPU resumes.
                assert_eq!(rig.on_device(5..7), [5].into());
                assert_eq!(rig.backend.migrate_to_system(rig.range(5..6)).unwrap(), 1);
                assert_eq!(sleeper.join().unwrap(), 5);
            });
            device.driver.assert_clean();
        }
    });
}
