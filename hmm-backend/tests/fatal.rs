//! Tests that a fault that cannot be resolved is reported to the service's user, once for each CPU that took
//! it.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::pages::{PAGE_SIZE, Page, PageRange, Permission};
use hmm_backend::service::{Fatal, FatalCause, FatalFault, ServiceConfig};
use hmm_backend::{Backend, BackendConfig};

/// Longer than any report takes, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);

/// Returns whether a thread of this process sleeps in a page fault.
fn sleeps_in_a_fault(thread: u32) -> bool {
    // The kernel prints -1 for a thread that is blocked, but not in a system call.
    let call = fs::read_to_string(format!("/proc/self/task/{thread}/syscall"));
    call.is_ok_and(|call| call.starts_with("-1"))
}

/// Returns managed memory without a fault service.
fn unserved(engine: Engine) -> Arc<Backend> {
    let mut config = BackendConfig::new(512 * PAGE_SIZE);
    config.engine = EngineChoice::Only(engine);
    Backend::new(config).unwrap()
}

/// Sends this thread's id and returns the first word of a page.
fn word_of<'a>(backend: &'a Backend, page: u64, id: &mpsc::Sender<u32>) -> &'a AtomicU64 {
    let (base, _) = backend.host_memory();
    let address = base as u64 + page * PAGE_SIZE;
    // SAFETY: gettid has no preconditions.
    id.send(unsafe { libc::gettid() } as u32).unwrap();
    // SAFETY: inside managed memory, which is mapped as long as the backend is borrowed, aligned, and only accessed
    // atomically.
    unsafe { AtomicU64::from_ptr(address as *mut u64) }
}

/// Waits until these threads all sleep in a page fault.
fn until_in_faults<'a>(threads: impl IntoIterator<Item = &'a u32> + Clone) {
    while !threads
        .clone()
        .into_iter()
        .all(|thread| sleeps_in_a_fault(*thread))
    {
        std::thread::yield_now();
    }
}

/// The fault of a report; the service itself does not fail in these tests.
fn fault(fatal: Fatal) -> FatalFault {
    match fatal {
        Fatal::Fault(fault) => fault,
        Fatal::Service(failure) => panic!("{failure}"),
    }
}

#[test]
fn threads_that_touch_a_lost_page_at_once_are_all_named() {
    for engine in [Engine::Remap, Engine::Copy] {
        let backend = unserved(engine);
        backend.memory_failure(Page(7)).unwrap();
        let (send, started) = mpsc::channel();
        let before = backend.now();
        std::thread::scope(|scope| {
            let read = |id: mpsc::Sender<u32>| word_of(&backend, 7, &id).load(SeqCst);
            let sleepers = [send.clone(), send].map(|id| scope.spawn(move || read(id)));
            let threads: BTreeSet<u32> = started.iter().take(2).collect();
            until_in_faults(&threads);
            // Start the service only now, so that it reads both messages at once.
            let (send, reports) = mpsc::channel();
            let service = backend.start_service(ServiceConfig::default(), move |fatal| {
                send.send(fault(fatal)).unwrap();
            });
            let service = service.unwrap();
            // If a report is missing, its sleeping thread must be woken before an assertion can fail.
            let next = |_| reports.recv_timeout(PATIENCE).ok();
            let reports: Vec<_> = (0..2).map_while(next).collect();
            let current = reports.iter().all(|fault| backend.is_current(fault));
            backend.guest_freed(PageRange::single(Page(7))).unwrap();
            let outdated = !reports.iter().any(|fault| backend.is_current(fault));
            drop(service);
            backend.abandon_faults();
            // A freed page reads as zeros.
            assert_eq!(sleepers.map(|sleeper| sleeper.join().unwrap()), [0, 0]);

            let named: BTreeSet<u32> = reports.iter().map(|fault| fault.thread).collect();
            assert_eq!(named, threads);
            for fault in &reports {
                let expected = (Page(7), &FatalCause::ContentsLost);
                assert_eq!((fault.page, &fault.cause), expected);
                assert!(fault.since >= before);
            }
            assert!(current && outdated);
        });
    }
}

#[test]
fn a_reader_beside_a_writer_of_a_read_only_page_just_reads() {
    for engine in [Engine::Remap, Engine::Copy] {
        let backend = unserved(engine);
        let page = PageRange::single(Page(7));
        backend.set_permission(page, Permission::ReadOnly).unwrap();
        let (first, started) = mpsc::channel();
        let second = first.clone();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| word_of(&backend, 7, &first).store(1, SeqCst));
            let writes = started.recv().unwrap();
            let reader = scope.spawn(|| word_of(&backend, 7, &second).load(SeqCst));
            let reads = started.recv().unwrap();
            until_in_faults(&[writes, reads]);
            let (send, reports) = mpsc::channel();
            let service = backend.start_service(ServiceConfig::default(), move |fatal| {
                send.send(fault(fatal)).unwrap();
            });
            let service = service.unwrap();
            let report = reports.recv_timeout(PATIENCE);
            let deadline = Instant::now() + PATIENCE;
            while !reader.is_finished() && Instant::now() < deadline {
                std::thread::yield_now();
            }
            let was_read = reader.is_finished();
            // Also wakes a reader that the service has forgotten, before an assertion can fail.
            backend.set_permission(page, Permission::Writable).unwrap();
            assert_eq!(reader.join().unwrap() & !1, 0);
            writer.join().unwrap();
            drop(service);

            assert!(was_read);
            // The page's arrival wakes the writer, too. It tries again, which is another fault with another
            // report.
            for report in [report.unwrap()].into_iter().chain(reports.try_iter()) {
                let (thread, cause) = (report.thread, &report.cause);
                assert_eq!((thread, cause), (writes, &FatalCause::ReadOnly));
                assert!(!backend.is_current(&report));
            }
        });
    }
}
