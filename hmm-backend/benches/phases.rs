//! Measures the phases of one CPU fault: 4 KiB from device memory, `on-demand`, a thread as the CPU, the
//! service on the same host CPU. The driver and the policy, which the backend calls at known points, take time
//! stamps, and so does the thread before and after its access. The event ring gives the time when the message
//! had been read. A bare userfaultfd loop is measured in turns, for comparison.
//!
//!     cargo bench -p hmm-backend --bench phases

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hmm_backend::driver::{DeviceFolio, Driver, FaultError, Finalized, ToSystem};
use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::observe::EventKind;
use hmm_backend::pages::{PAGE_SIZE, Page, PageRange};
use hmm_backend::policy::{
    Advice, BlockFault, BlockView, EvictionPolicy, FaultPolicy, PolicyFactory, PolicySpec,
};
use hmm_backend::service::ServiceConfig;
use hmm_backend::{Backend, BackendConfig};

const PAGES: u32 = 512;
const ROUNDS: usize = 9;

/// Points in the service of a fault, in order. A name in `NAMES` describes the phase that ends at the next
/// point.
#[derive(Clone, Copy)]
enum At {
    Access,
    Read,
    Asked,
    Decided,
    Driver,
    Invalidated,
    Moved,
    PageFree,
    Finalized,
    Done,
    Resumed,
}
const POINTS: usize = At::Resumed as usize + 1;
const NAMES: [&str; POINTS - 1] = [
    "fault taken, service woken, message read",
    "sorted, page and block looked at",
    "decision (policy)",
    "advice checked, folio locked and cut",
    "driver: mirrors invalidated",
    "ioctl: page moved, CPU woken",
    "words published, folio unlocked",
    "page_free and LRU in between, frame to the pool",
    "page looked at again, counted",
    "service sleeps, CPU resumes",
];

/// A time stamp for every page at every point.
struct Stamps(Box<[[AtomicU64; POINTS]]>);

impl Stamps {
    fn new() -> Arc<Stamps> {
        let page = |_| [const { AtomicU64::new(0) }; POINTS];
        Arc::new(Stamps((0..PAGES).map(page).collect()))
    }

    fn set(&self, page: u32, at: At) {
        self.0[page as usize][at as usize].store(tsc(), Ordering::Relaxed);
    }

    fn get(&self, page: u32) -> [u64; POINTS] {
        let stamps = &self.0[page as usize];
        std::array::from_fn(|i| stamps[i].load(Ordering::Relaxed))
    }
}

fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Does the same as the default driver, and takes time stamps.
struct StampingDriver(Arc<Stamps>);

impl Driver for StampingDriver {
    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        let Some(Page(page)) = migration.fault() else {
            return migration.run();
        };
        self.0.set(page, At::Driver);
        let copied = migration.copy()?;
        self.0.set(page, At::Invalidated);
        let committed = copied.commit()?;
        self.0.set(page, At::Moved);
        let done = committed.finalize();
        self.0.set(page, At::Finalized);
        Ok(done)
    }

    fn page_free(&self, folio: DeviceFolio) {
        self.0.set(folio.page.0, At::PageFree);
    }
}

struct StampingFactory(PolicySpec, Arc<Stamps>);

impl PolicyFactory for StampingFactory {
    fn fault_policy(&self) -> Box<dyn FaultPolicy> {
        Box::new(StampingPolicy(self.0.fault_policy(), self.1.clone()))
    }

    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy> {
        self.0.eviction_policy(frames)
    }

    fn name(&self) -> String {
        self.0.name()
    }
}

struct StampingPolicy(Box<dyn FaultPolicy>, Arc<Stamps>);

impl FaultPolicy for StampingPolicy {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        let page = fault.block.page(fault.pages.first().unwrap()).0;
        self.1.set(page, At::Asked);
        let advice = self.0.advise(fault, view);
        self.1.set(page, At::Decided);
        advice
    }
}

fn main() {
    // Under `cargo test --benches` there is nothing to measure.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let ticks_per_us = calibrate();
    for engine in [Engine::Remap, Engine::Copy] {
        let mut ours: [Vec<f64>; POINTS] = Default::default();
        let mut bare: [Vec<f64>; 4] = Default::default();
        for _ in 0..ROUNDS {
            for stamps in round(engine, ticks_per_us) {
                collect(&mut ours, &stamps, ticks_per_us);
            }
            for stamps in bare_round(engine) {
                collect(&mut bare, &stamps, ticks_per_us);
            }
        }
        println!(
            "engine {engine}: µs, median (p10–p90) of {} faults",
            ours[0].len()
        );
        print(&NAMES, &ours);
        println!("  a bare loop");
        let names = [NAMES[0], NAMES[5], NAMES[9]];
        print(&names, &bare);
    }
}

/// Adds the duration of each phase, and last the duration of the whole.
fn collect<const N: usize>(to: &mut [Vec<f64>; N], stamps: &[u64], ticks_per_us: f64) {
    let us = |from: u64, to: u64| to.saturating_sub(from) as f64 / ticks_per_us;
    for (to, pair) in to.iter_mut().zip(stamps.windows(2)) {
        to.push(us(pair[0], pair[1]));
    }
    to[N - 1].push(us(stamps[0], stamps[stamps.len() - 1]));
}

fn print<const N: usize>(names: &[&str], times: &[Vec<f64>; N]) {
    let quantile = |times: &[f64], q: f64| {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[(q * (sorted.len() - 1) as f64) as usize]
    };
    let whole = quantile(&times[N - 1], 0.5);
    for (name, times) in names.iter().chain(&["the whole"]).zip(times) {
        let [low, median, high] = [0.1, 0.5, 0.9].map(|q| quantile(times, q));
        let share = 100.0 * median / whole;
        println!("  {name:<50} {median:>7.2} ({low:.2}–{high:.2}) {share:>5.1} %");
    }
}

fn calibrate() -> f64 {
    let (start, from) = (std::time::Instant::now(), tsc());
    while start.elapsed() < Duration::from_millis(100) {
        std::hint::spin_loop();
    }
    (tsc() - from) as f64 / (start.elapsed().as_nanos() as f64 / 1000.0)
}

fn round(engine: Engine, ticks_per_us: f64) -> Vec<[u64; POINTS]> {
    let stamps = Stamps::new();
    let bytes = u64::from(PAGES) * PAGE_SIZE;
    let mut config = BackendConfig::new(bytes);
    config.engine = EngineChoice::Only(engine);
    let spec: PolicySpec = "on-demand+timeslice:min=0us".parse().unwrap();
    config.policy = Arc::new(StampingFactory(spec, stamps.clone()));
    config.events = 4 * PAGES as usize;
    let backend = Backend::new(config).unwrap();
    let all = PageRange::new(Page(0), Page(PAGES));
    drop(backend.pin(all).unwrap());
    let driver = Arc::new(StampingDriver(stamps.clone()));
    let device = backend.attach(bytes, driver).unwrap();
    for page in all.pages() {
        // Migrate each page as a folio of its own, as `on-demand` does.
        let moved = backend.migrate_to_device(device, PageRange::single(page));
        assert_eq!(moved.unwrap(), 1);
    }
    backend.drain_events();
    let threads = vec![Some(0)];
    let service = backend
        .start_service(
            ServiceConfig {
                threads,
                ..ServiceConfig::default()
            },
            |fault| panic!("{fault:?}"),
        )
        .unwrap();
    let base = backend.host_memory().0 as u64;
    let (now, at) = (backend.now(), tsc());
    let touching = stamps.clone();
    touch(base, move |page, point| touching.set(page, point));
    drop(service);
    // Converts from the backend's clock to time stamps.
    let to_ticks = |time: Duration| {
        let us = (time.as_nanos() as f64 - now.as_nanos() as f64) / 1000.0;
        (at as f64 + us * ticks_per_us) as u64
    };
    let events = backend.drain_events().events;
    let faults = events.iter().filter(|e| e.kind == EventKind::CpuFault);
    faults
        .map(|event| {
            let mut stamps = stamps.get(event.page.0);
            stamps[At::Done as usize] = to_ticks(event.time);
            stamps[At::Read as usize] = to_ticks(event.time - event.latency);
            stamps
        })
        // Leave out faults whose thread resumed before the service had ended: it ran on another CPU, which is
        // not measured here.
        .filter(|stamps| stamps.is_sorted())
        .collect()
}

/// Touches all pages from a thread that acts as the CPU: bound to CPU 0, with the scheduling class that does
/// not preempt the service.
fn touch(base: u64, stamp: impl Fn(u32, At) + Send + 'static) {
    let toucher = std::thread::spawn(move || {
        bind(true);
        for page in 0..PAGES {
            let at = (base + u64::from(page) * PAGE_SIZE) as *mut u8;
            stamp(page, At::Access);
            // SAFETY: the caller keeps the memory alive, and a service thread serves its faults.
            unsafe { at.write_volatile(1) };
            stamp(page, At::Resumed);
        }
    });
    toucher.join().unwrap();
}

fn bind(batch: bool) {
    // SAFETY: an empty set with one bit and a zero priority, read by the calls.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
        if batch {
            let priority = libc::sched_param { sched_priority: 0 };
            libc::sched_setscheduler(0, libc::SCHED_BATCH, &priority);
        }
    }
}

const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_MOVE: libc::c_ulong = 0xc028_aa05;

/// Runs the bare loop and returns for each page the time stamps of access, message read, page moved, resumed.
fn bare_round(engine: Engine) -> Vec<[u64; 4]> {
    let bytes = u64::from(PAGES) * PAGE_SIZE;
    let map = |populate| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | populate;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                protection,
                flags,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        start as u64
    };
    let (memory, stock) = (map(0), map(libc::MAP_POPULATE));
    // SAFETY: makes a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    assert!(fd >= 0, "userfaultfd: {}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    ioctl(&fd, UFFDIO_API, &mut [0xaau64, 0, 0]);
    ioctl(&fd, UFFDIO_REGISTER, &mut [memory, bytes, 1, 0]);
    let stamps = Stamps::new();
    let serving = stamps.clone();
    let server = std::thread::spawn(move || {
        bind(false);
        for _ in 0..PAGES {
            let mut message = [0u64; 4];
            // SAFETY: the buffer has the size of one message.
            let n = unsafe { libc::read(fd.as_raw_fd(), message.as_mut_ptr().cast(), 32) };
            assert_eq!(n, 32);
            let at = message[2] & !(PAGE_SIZE - 1);
            let page = ((at - memory) / PAGE_SIZE) as u32;
            serving.set(page, At::Read);
            let from = stock + (at - memory);
            let request = match engine {
                Engine::Remap => UFFDIO_MOVE,
                Engine::Copy => UFFDIO_COPY,
                Engine::Model => unreachable!("no memory to fault on"),
            };
            ioctl(&fd, request, &mut [at, from, PAGE_SIZE, 0, 0]);
            serving.set(page, At::Moved);
        }
    });
    let touching = stamps.clone();
    touch(memory, move |page, point| touching.set(page, point));
    server.join().unwrap();
    // SAFETY: the two mappings made above, which are not used any more.
    unsafe {
        libc::munmap(memory as *mut _, bytes as usize);
        libc::munmap(stock as *mut _, bytes as usize);
    }
    let points = [At::Access, At::Read, At::Moved, At::Resumed];
    (0..PAGES)
        .map(|page| points.map(|at| stamps.get(page)[at as usize]))
        .filter(|stamps| stamps.is_sorted())
        .collect()
}

fn ioctl<const N: usize>(fd: &OwnedFd, request: libc::c_ulong, argument: &mut [u64; N]) {
    // SAFETY: the kernel's structures for these requests are N 64-bit integers; the ranges are the two mappings.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument.as_mut_ptr()) };
    assert_eq!(result, 0, "{request:#x}: {}", io::Error::last_os_error());
}
