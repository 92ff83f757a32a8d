//! Measures bulk migration of 256 MiB each way, and, for comparison, bare loops of the same system calls in 2
//! MiB pieces and `memcpy` on touched memory. All run in turns in one process. `copy` runs with three amounts
//! of memory that it may recycle: none (in place, as on kernels without `UFFDIO_MOVE`), the default, and as
//! much as is migrated. `remap` runs with small pages and with huge pages, which move as a whole.
//!
//!     cargo bench -p hmm-backend --bench bulk

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use hmm_backend::driver::DefaultDriver;
use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::pages::{PAGE_SIZE, Page, PageRange};
use hmm_backend::{Backend, BackendConfig};

const BYTES: u64 = 256 << 20;
const PIECE: u64 = 2 << 20;
/// Bytes measured at a time, in turns. Small, so that the compared runs see the same load of the machine.
const SLICE: u64 = 16 << 20;
/// Number of rigs. The physical pages that a rig gets change its speed by some percent, so several rigs are
/// made, in turns.
const RIGS: usize = 7;
/// Number of rounds with each pair of rigs.
const ROUNDS: usize = 9;

fn main() {
    // Under `cargo test --benches` there is nothing to measure.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    println!("256 MiB, GB/s: median (10 %–90 %) of {RIGS} x {ROUNDS} rounds");
    println!(
        "{:<13} {:<10} {:>20} {:>20} {:>20} {:>9} {:>10}",
        "engine", "direction", "hmmvisor", "bare calls", "memcpy", "of bare", "of memcpy"
    );
    let source = Area::new(BYTES, Backing::Small);
    let copy = Area::new(BYTES, Backing::Small);
    source.touch();
    copy.touch();
    let recycles = |bytes| {
        let name = format!("copy, {} MiB", bytes >> 20);
        (Engine::Copy, Backing::Small, bytes, name)
    };
    let only = std::env::args().nth(1).unwrap_or_default();
    for (engine, backing, recycled, name) in [
        (Engine::Remap, Backing::Small, 0, "remap".to_string()),
        (Engine::Remap, Backing::Huge, 0, "remap, huge".to_string()),
        recycles(0),
        recycles(2 << 20),
        recycles(BYTES),
    ] {
        if !only.starts_with('-') && !name.starts_with(&only) {
            continue;
        }
        let mut ours = [Vec::new(), Vec::new()];
        let mut bare = [Vec::new(), Vec::new()];
        let mut memcpy = [Vec::new(), Vec::new()];
        for pair in 0..RIGS {
            // The rig that is made first gets the better memory, so the order alternates.
            let first = (pair % 2 == 0).then(|| Rig::new(engine, backing, recycled));
            let bare_rig = BareRig::new(engine, backing);
            let rig = first.unwrap_or_else(|| Rig::new(engine, backing, recycled));
            for round in 0..ROUNDS {
                for (direction, (ours, bare)) in ours.iter_mut().zip(&mut bare).enumerate() {
                    for at in (0..BYTES).step_by(SLICE as usize) {
                        // The rig that runs second finds the kernel's code and data in the caches, so they take
                        // turns.
                        let mine = || rate(|| rig.migrate(direction == 0, at));
                        let plain = || rate(|| bare_rig.migrate(direction == 0, at));
                        let sample = if (at / SLICE).is_multiple_of(2) {
                            [mine(), plain()]
                        } else {
                            let second = plain();
                            [mine(), second]
                        };
                        // The first round is not counted: it makes the page tables.
                        if round > 0 {
                            ours.push(sample[0]);
                            bare.push(sample[1]);
                        }
                    }
                    // memcpy runs after them, because it evicts the caches of both.
                    for at in (0..BYTES).step_by(SLICE as usize) {
                        if round > 0 {
                            memcpy[direction].push(rate(|| copy_slice(&source, &copy, at)));
                        }
                    }
                }
            }
        }
        for (direction, ours, bare, memcpy) in [
            ("to device", &ours[0], &bare[0], &memcpy[0]),
            ("to system", &ours[1], &bare[1], &memcpy[1]),
        ] {
            println!(
                "{:<13} {:<10} {:>20} {:>20} {:>20} {:>8.2}x {:>9.2}x",
                name,
                direction,
                spread(ours),
                spread(bare),
                spread(memcpy),
                median_ratio(ours, bare),
                median_ratio(ours, memcpy),
            );
        }
    }
}

fn copy_slice(source: &Area, copy: &Area, start: u64) {
    for at in (start..start + SLICE).step_by(PIECE as usize) {
        // SAFETY: both areas have that many bytes and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(source.at(at), copy.at(at), PIECE as usize) };
    }
}

/// Returns the rate in GB/s. It uses the thread's own CPU time: the work does not sleep, and the time of other
/// threads and processes is not counted.
fn rate(work: impl FnOnce()) -> f64 {
    let start = cpu_seconds();
    work();
    SLICE as f64 / (cpu_seconds() - start) / 1e9
}

fn cpu_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills in the structure.
    let ret = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(ret, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Returns the median of the ratios of samples that were taken one after the other, so that other load of the
/// machine affects both.
fn median_ratio(ours: &[f64], other: &[f64]) -> f64 {
    let ratios: Vec<f64> = ours.iter().zip(other).map(|(o, b)| o / b).collect();
    median(&ratios)
}

fn spread(samples: &[f64]) -> String {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |q: f64| sorted[(q * (sorted.len() - 1) as f64) as usize];
    format!("{:.1} ({:.1}–{:.1})", median(samples), at(0.1), at(0.9))
}

/// The size of the host's pages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backing {
    Small,
    /// 2 MiB, where the host has some: `/sys/kernel/mm/transparent_hugepage/enabled` must not say `never`.
    Huge,
}

struct Rig {
    backend: Arc<Backend>,
    device: hmm_backend::pages::DeviceId,
}

impl Rig {
    fn new(engine: Engine, backing: Backing, recycled: u64) -> Rig {
        let mut config = BackendConfig::new(BYTES);
        config.fill_blocks = backing == Backing::Huge;
        config.engine = EngineChoice::Only(engine);
        config.recycled = recycled;
        let backend = Backend::new(config).unwrap();
        let device = backend.attach(BYTES, Arc::new(DefaultDriver)).unwrap();
        // A pin puts memory behind every page.
        drop(
            backend
                .pin(PageRange::new(Page(0), Page(backend.pages())))
                .unwrap(),
        );
        Rig { backend, device }
    }

    fn migrate(&self, to_device: bool, at: u64) {
        let pages = (SLICE / PAGE_SIZE) as u32;
        let slice = PageRange::with_len(Page((at / PAGE_SIZE) as u32), pages);
        let moved = if to_device {
            self.backend.migrate_to_device(self.device, slice).unwrap()
        } else {
            self.backend.migrate_to_system(slice).unwrap()
        };
        assert_eq!(moved, u64::from(pages));
    }
}

/// An anonymous mapping, aligned to 2 MiB.
struct Area(u64);

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: `BYTES` from the aligned start belong to the mapping made in `new`, which is not used any more.
        unsafe { libc::munmap(self.0 as *mut _, BYTES as usize) };
    }
}

impl Area {
    fn new(bytes: u64, backing: Backing) -> Area {
        // SAFETY: a new mapping.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                (bytes + PIECE) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        if backing == Backing::Huge {
            // SAFETY: the range is the new mapping.
            unsafe { libc::madvise(start, (bytes + PIECE) as usize, libc::MADV_HUGEPAGE) };
        }
        Area((start as u64).next_multiple_of(PIECE))
    }

    fn at(&self, offset: u64) -> *mut u8 {
        (self.0 + offset) as *mut u8
    }

    fn touch(&self) {
        for offset in (0..BYTES).step_by(4096) {
            // SAFETY: inside the mapping.
            unsafe { self.at(offset).write_volatile(1) };
        }
    }
}

const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_MOVE: libc::c_ulong = 0xc028_aa05;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;

/// Makes the same system calls as the backend, without its bookkeeping.
struct BareRig {
    engine: Engine,
    uffd: OwnedFd,
    system: Area,
    device: Area,
}

impl BareRig {
    fn new(engine: Engine, backing: Backing) -> BareRig {
        // SAFETY: makes a new descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) } as i32;
        assert!(fd >= 0, "userfaultfd: {}", io::Error::last_os_error());
        let rig = BareRig {
            engine,
            // SAFETY: the descriptor is new and has no other owner.
            uffd: unsafe { OwnedFd::from_raw_fd(fd) },
            system: Area::new(BYTES, backing),
            device: Area::new(BYTES, backing),
        };
        rig.system.touch();
        rig.ioctl(UFFDIO_API, &mut [0xaa, 0, 0]);
        let mode = if engine == Engine::Copy { 3 } else { 1 };
        rig.ioctl(UFFDIO_REGISTER, &mut [rig.system.0, BYTES, mode, 0]);
        if engine == Engine::Remap {
            rig.ioctl(UFFDIO_REGISTER, &mut [rig.device.0, BYTES, 1, 0]);
        }
        rig
    }

    fn migrate(&self, to_device: bool, start: u64) {
        for at in (start..start + SLICE).step_by(PIECE as usize) {
            let (system, device) = (self.system.0 + at, self.device.0 + at);
            match (self.engine, to_device) {
                (Engine::Remap, true) => {
                    self.ioctl(UFFDIO_MOVE, &mut [device, system, PIECE, 0, 0])
                }
                (Engine::Remap, false) => {
                    self.ioctl(UFFDIO_MOVE, &mut [system, device, PIECE, 0, 0])
                }
                (Engine::Copy, true) => {
                    self.ioctl(UFFDIO_WRITEPROTECT, &mut [system, PIECE, 1]);
                    // SAFETY: inside the two mappings; then the system copy is dropped.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            self.system.at(at),
                            self.device.at(at),
                            PIECE as usize,
                        );
                        libc::madvise(system as *mut _, PIECE as usize, libc::MADV_DONTNEED);
                    }
                }
                (Engine::Model, _) => unreachable!("nothing to move"),
                (Engine::Copy, false) => {
                    self.ioctl(UFFDIO_COPY, &mut [system, device, PIECE, 0, 0])
                }
            }
        }
    }

    fn ioctl<const N: usize>(&self, request: libc::c_ulong, argument: &mut [u64; N]) {
        // SAFETY: the kernel's structures for these requests are N 64-bit integers; the ranges are this rig's.
        let result = unsafe { libc::ioctl(self.uffd.as_raw_fd(), request, argument.as_mut_ptr()) };
        assert_eq!(result, 0, "{request:#x}: {}", io::Error::last_os_error());
    }
}
