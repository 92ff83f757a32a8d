//! What becomes of faults and migrations under each answer the kernel may give: made up, so that each is sure to come.

mod common;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use common::{Rig, both_engines};
use hmm_backend::{
    Engine, FatalCause, KernelAnswers, KernelCall, MadeUpAnswer, Page, PageRange, Residency,
};

/// Errors to be given to calls of one kind when they come to one page: the pages before it are done for real.
#[derive(Default)]
struct Script(Mutex<Vec<(KernelCall, Page, i32)>>);

impl Script {
    fn say(&self, call: KernelCall, page: u32, times: usize, errno: i32) {
        let answer = (call, Page(page), errno);
        self.0.lock().unwrap().extend([answer].repeat(times));
    }

    fn left(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl KernelAnswers for Script {
    fn answer(&self, call: KernelCall, pages: PageRange) -> Option<MadeUpAnswer> {
        let mut script = self.0.lock().unwrap();
        let fits = |(c, page, _): &(KernelCall, Page, _)| *c == call && pages.contains(*page);
        let found = script.iter().position(fits)?;
        let (_, page, errno) = script.remove(found);
        let done = page.0 - pages.start.0;
        Some(MadeUpAnswer { done, errno })
    }
}

fn rig(engine: Engine) -> (Rig, Arc<Script>) {
    let script = Arc::new(Script::default());
    let policy = "on-demand+timeslice:min=0us";
    let change = |config: &mut hmm_backend::BackendConfig| config.kernel = Some(script.clone());
    (Rig::with(1024, engine, policy, change, 1), script)
}

/// Answers that pass by themselves. `EAGAIN` comes in two forms: after a part of the pages, and without progress.
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

#[test]
fn a_page_that_is_there_already_is_not_filled_again() {
    both_engines(|engine| {
        let (rig, script) = rig(engine);
        script.say(KernelCall::Fill, 3, 1, libc::EEXIST);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| rig.cpu(3, 0).fetch_add(1, SeqCst));
            // Said to be there, so it counts as system memory, and the CPU was woken; as it is not, the CPU faults
            // again, is woken again, and so on, until a free says that it is not there.
            rig.wait_for(|stats| stats.other["faults_stale"] > 2);
            let word = rig.backend.word(Page(3)).unwrap();
            assert_eq!(word.residency(), Residency::System);
            rig.backend.guest_freed(rig.range(3..4)).unwrap();
            assert_eq!(sleeper.join().unwrap(), 0);
        });
        assert!(rig.fatal.lock().unwrap().is_empty());
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
            // More often than a call is repeated.
            script.say(KernelCall::Take, 10, 100, errno);
            let range = rig.range(0..64);
            let moved = rig.backend.migrate_to_device(device.id, range).unwrap();
            let moved = moved as usize;
            assert_eq!(rig.on_device(0..64).len(), moved);
            assert!(!rig.on_device(0..64).contains(&10));
            assert_eq!(moved, 63, "{errno}");
            script.0.lock().unwrap().clear();
            script.say(KernelCall::Give, 20, 100, errno);
            rig.backend.migrate_to_system(range).unwrap();
            let left: Vec<u32> = rig.on_device(0..64).into_iter().collect();
            assert_eq!(left, [20]);
            script.0.lock().unwrap().clear();
            for page in 0..64 {
                assert_eq!(device.read(page, 0), Ok(100 + u64::from(page)));
                assert_eq!(rig.cpu(page, 0).load(SeqCst), 100 + u64::from(page));
            }
            device.driver.assert_clean();
        }
    });
}

#[test]
fn answers_that_the_protocol_rules_out_are_fatal_for_their_page_alone() {
    both_engines(|engine| {
        for errno in [libc::ENOENT, libc::ESRCH, libc::EEXIST] {
            let (rig, script) = rig(engine);
            let device = rig.device(64);
            rig.cpu(5, 0).store(5, SeqCst);
            rig.cpu(6, 0).store(6, SeqCst);
            let moved = rig.backend.migrate_to_device(device.id, rig.range(5..7));
            assert_eq!(moved.unwrap(), 2);
            script.say(KernelCall::Give, 5, 1, errno);
            std::thread::scope(|scope| {
                let sleeper = scope.spawn(|| rig.cpu(5, 0).load(SeqCst));
                let mut fatal = rig.fatal.lock().unwrap();
                while fatal.is_empty() {
                    fatal = rig.fatal_seen.wait(fatal).unwrap();
                }
                assert_eq!(fatal[0].page, Page(5));
                let cause = &fatal[0].cause;
                assert!(
                    matches!(cause, FatalCause::DriverFailed(_) | FatalCause::Host(_)),
                    "{cause:?}"
                );
                drop(fatal);
                assert_eq!(rig.cpu(6, 0).load(SeqCst), 6);
                // Its contents are where they were; when they come, the CPU goes on.
                assert_eq!(rig.on_device(5..7), [5].into());
                assert_eq!(rig.backend.migrate_to_system(rig.range(5..6)).unwrap(), 1);
                assert_eq!(sleeper.join().unwrap(), 5);
            });
            device.driver.assert_clean();
        }
    });
}
