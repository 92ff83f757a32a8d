//! Faults that cannot be resolved are reported to whoever can answer them: for each CPU that took one.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;
use std::time::Duration;

use hmm_backend::{
    Backend, BackendConfig, Engine, EngineChoice, FatalCause, PAGE_SIZE, Page, PageRange,
    ServiceConfig,
};

/// Longer than any report takes, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether a thread of this process sleeps in a page fault.
fn sleeps_in_a_fault(thread: u32) -> bool {
    // No system call, and not running.
    let call = fs::read_to_string(format!("/proc/self/task/{thread}/syscall"));
    call.is_ok_and(|call| call.starts_with("-1"))
}

#[test]
fn threads_that_touch_a_lost_page_at_once_are_all_named() {
    for engine in [Engine::Remap, Engine::Copy] {
        let mut config = BackendConfig::new(512 * PAGE_SIZE);
        config.engine = EngineChoice::Only(engine);
        let backend = Backend::new(config).unwrap();
        backend.memory_failure(Page(7)).unwrap();
        let (base, _) = backend.host_memory();
        let address = base as u64 + 7 * PAGE_SIZE;
        let (send, started) = mpsc::channel();
        let before = backend.now();
        std::thread::scope(|scope| {
            let read = |send: mpsc::Sender<u32>| {
                // SAFETY: gettid has no preconditions.
                send.send(unsafe { libc::gettid() } as u32).unwrap();
                // SAFETY: inside managed memory, which outlives the scope, aligned, and only accessed atomically.
                unsafe { AtomicU64::from_ptr(address as *mut u64) }.load(SeqCst)
            };
            let sleepers = [send.clone(), send].map(|send| scope.spawn(move || read(send)));
            let threads: BTreeSet<u32> = started.iter().take(2).collect();
            while !threads.iter().all(|thread| sleeps_in_a_fault(*thread)) {
                std::thread::yield_now();
            }
            // Only now is there anybody who reads the messages: both at once.
            let (send, reports) = mpsc::channel();
            let service = backend.start_service(ServiceConfig::default(), move |fault| {
                send.send(fault).unwrap();
            });
            let service = service.unwrap();
            // Should one be missing, its sleeper must be woken before anything can fail.
            let next = |_| reports.recv_timeout(PATIENCE).ok();
            let reports: Vec<_> = (0..2).map_while(next).collect();
            let current = reports.iter().all(|fault| backend.is_current(fault));
            backend.guest_freed(PageRange::single(Page(7))).unwrap();
            let outdated = !reports.iter().any(|fault| backend.is_current(fault));
            drop(service);
            backend.abandon_faults();
            // Zeros are right for a freed page.
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
