//! What one CPU fault costs, as a vCPU sees it: from the access to the next instruction, with the page migrated
//! from device memory. Beside it, in the same run and on the same guest, two bare userfaultfd loops (read, one
//! ioctl, which also wakes): one left to the scheduler and one pinned to the first vCPU's CPU. They keep no
//! state and serve one thread; nothing can be much faster. Then the faults that all vCPUs together take per second,
//! and what more userfaultfds and service threads make of them.
//!
//!     cargo bench -p hmmvisor --bench fault

#[path = "../tests/common/mod.rs"]
mod common;

use std::arch::global_asm;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use hmm_backend::driver::DefaultDriver;
use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::pages::{Page, PageRange};
use hmm_backend::policy::PolicySpec;
use hmm_backend::{Backend, BackendConfig};
use hmmvisor::End;
use hmmvisor::guest::program::Program;
use hmmvisor::vm::{Hooks, Managed, Vm, VmConfig};
use hmmvisor_abi::map;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Pages each vCPU touches in a round.
const PAGES: u64 = 256;
/// Rounds of each kind, taken in turns.
const ROUNDS: usize = 7;

/// Where the guest finds what to do: base of its pages, bytes for each vCPU, number of vCPUs; then a counter of
/// vCPUs that are done; then the results, one 32-bit number of time-stamp ticks for each page.
const ORDERS: u64 = 0x30_0000;
const DONE: u64 = ORDERS + 24;
const RESULTS: u64 = ORDERS + 0x1000;
/// Boot RAM that the bare loops serve; beyond the guest's few bytes of code, below the stacks.
const BARE: u64 = 0x40_0000;

const _: () = assert!(RESULTS + 8 * PAGES * 4 <= BARE);
const _: () = assert!(BARE + 8 * PAGES * 4096 <= map::IMAGE_END);

// rsi = vCPU. Position-independent; never runs in this process.
global_asm!(
    ".pushsection .rodata.touch, \"a\"",
    ".globl touch_begin",
    "touch_begin:",
    "  mov r8, {orders}",
    "  mov rax, [r8 + 8]",
    "  imul rax, rsi",
    "  mov rdi, [r8]",
    "  add rdi, rax",
    "  mov r10, {results}",
    "  imul r9, rsi, {pages} * 4",
    "  add r10, r9",
    "  mov r9, {pages}",
    "2:",
    "  rdtsc",
    "  shl rdx, 32",
    "  lea r11, [rax + rdx]",
    "  mov byte ptr [rdi], 1",
    "  rdtsc",
    "  shl rdx, 32",
    "  add rax, rdx",
    "  sub rax, r11",
    "  mov [r10], eax",
    "  add r10, 4",
    "  add rdi, 4096",
    "  dec r9",
    "  jnz 2b",
    "  lock inc qword ptr [r8 + 24]",
    "  mov rbx, {control}",
    "  test rsi, rsi",
    "  jz 3f",
    "  mov qword ptr [rbx + {park}], 0",
    "3:",
    "  mov rax, [r8 + 24]",
    "  cmp rax, [r8 + 16]",
    "  je 4f",
    "  mov qword ptr [rbx + {yield_}], 0",
    "  jmp 3b",
    "4:",
    "  mov qword ptr [rbx + {exit}], 0",
    ".globl touch_end",
    "touch_end:",
    ".popsection",
    orders = const ORDERS,
    results = const RESULTS,
    pages = const PAGES,
    control = const map::CONTROL,
    exit = const hmmvisor_abi::control::EXIT,
    park = const hmmvisor_abi::control::PARK,
    yield_ = const hmmvisor_abi::control::YIELD,
);

fn touch() -> Vec<u8> {
    unsafe extern "C" {
        static touch_begin: u8;
        static touch_end: u8;
    }
    let (begin, end) = (&raw const touch_begin, &raw const touch_end);
    // SAFETY: the two labels enclose constant bytes of this program.
    unsafe { std::slice::from_raw_parts(begin, end.offset_from(begin) as usize) }.to_vec()
}

/// Who serves the faults.
#[derive(Clone, Copy, PartialEq)]
enum Server {
    Hmmvisor,
    BareUnpinned,
    BarePinned,
}

fn main() {
    // Under `cargo test --benches` there is nothing to measure.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    println!(
        "One 4 KiB CPU fault with migration to system memory, µs at the vCPU: median (p10–p90)"
    );
    println!(
        "{:<7} {:>6}  {:>22}  {:>22}  {:>22}  {:>14}",
        "engine", "vCPUs", "bare, unpinned", "bare, pinned", "hmmvisor", "of better bare"
    );
    let mut throughput = Vec::new();
    for engine in [Engine::Remap, Engine::Copy] {
        for vcpus in [1, 2, 4, 8] {
            let mut samples: [Vec<f64>; 3] = Default::default();
            let mut rates: [Vec<f64>; 3] = Default::default();
            for _ in 0..ROUNDS {
                for (i, server) in [Server::BareUnpinned, Server::BarePinned, Server::Hmmvisor]
                    .into_iter()
                    .enumerate()
                {
                    let times = round(server, engine, vcpus, Shape::usual(vcpus));
                    rates[i].push(rate(&times));
                    samples[i].extend(times);
                }
            }
            let [unpinned, pinned, ours] = samples.map(Quantiles::of);
            let ratio = ours.median / unpinned.median.min(pinned.median);
            println!(
                "{engine:<7} {vcpus:>6}  {unpinned:>22}  {pinned:>22}  {ours:>22}  {ratio:>13.2}x"
            );
            throughput.push((engine, vcpus, rates.map(Quantiles::of)));
        }
    }
    println!("\nFaults per second, all vCPUs together: median of {ROUNDS} rounds (p10–p90)");
    for (engine, vcpus, [unpinned, pinned, ours]) in throughput {
        println!("{engine:<7} {vcpus:>6}  {unpinned:>22}  {pinned:>22}  {ours:>22}");
    }
    println!("\nThe same by userfaultfds and service threads, engine remap");
    println!(
        "{:>6}  {:>22}  {:>22}  {:>22}  {:>22}",
        "vCPUs", "1 and 1", "1 and 2", "2 and 1", "2 and 2"
    );
    for vcpus in [2, 8] {
        let mut rates: [Vec<f64>; 4] = Default::default();
        for _ in 0..ROUNDS {
            for (i, (shards, threads)) in [(1, 1), (1, 2), (2, 1), (2, 2)].into_iter().enumerate() {
                let shape = Shape { shards, threads };
                rates[i].push(rate(&round(Server::Hmmvisor, Engine::Remap, vcpus, shape)));
            }
        }
        let [a, b, c, d] = rates.map(Quantiles::of);
        println!("{vcpus:>6}  {a:>22}  {b:>22}  {c:>22}  {d:>22}");
    }
}

/// How the service is laid out.
#[derive(Clone, Copy)]
struct Shape {
    /// Userfaultfds.
    shards: usize,
    /// Service threads, bound to one CPU each.
    threads: usize,
}

impl Shape {
    /// As the VMM does by default: a thread for each CPU that has vCPUs.
    fn usual(vcpus: u32) -> Shape {
        Shape {
            shards: 1,
            threads: 2.min(vcpus as usize),
        }
    }
}

/// Faults per second of a round: a vCPU does little else than fault, and the slowest ends the round.
fn rate(times: &[f64]) -> f64 {
    let vcpus = times.chunks(PAGES as usize);
    let slowest = vcpus.map(|t| t.iter().sum::<f64>()).fold(0.0, f64::max);
    times.len() as f64 / slowest * 1e6
}

struct Quantiles {
    p10: f64,
    median: f64,
    p90: f64,
}

impl Quantiles {
    fn of(mut samples: Vec<f64>) -> Quantiles {
        samples.sort_by(f64::total_cmp);
        let at = |q: f64| samples[(q * (samples.len() - 1) as f64) as usize];
        Quantiles {
            p10: at(0.1),
            median: at(0.5),
            p90: at(0.9),
        }
    }
}

impl std::fmt::Display for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.median < 1000.0 { 1 } else { 0 };
        let text = format!(
            "{:.digits$} ({:.digits$}–{:.digits$})",
            self.median, self.p10, self.p90
        );
        f.pad(&text)
    }
}

/// One run of the guest: microseconds of each access.
fn round(server: Server, engine: Engine, vcpus: u32, shape: Shape) -> Vec<f64> {
    let total = u64::from(vcpus) * PAGES;
    let mut config = BackendConfig::new(16 << 20);
    config.engine = EngineChoice::Only(engine);
    config.shards = shape.shards;
    config.policy = Arc::new("on-demand+timeslice:min=0us".parse::<PolicySpec>().unwrap());
    let backend = Backend::new(config).unwrap();
    let cpus = 2.min(vcpus as usize);
    let mut vm = Vm::new(VmConfig {
        vcpus,
        vcpu_cpus: (0..cpus).collect(),
        managed: Some(Managed {
            backend: backend.clone(),
            service: (0..shape.threads).map(Some).collect(),
            devices: Vec::new(),
            on_memory_error: Default::default(),
            foreign: Vec::new(),
        }),
        guest: Box::new(Program::new(common::elf(&touch()), "", 0)),
        console: Box::new(io::sink()),
        hooks: Hooks::default(),
    })
    .unwrap();
    let base = if server == Server::Hmmvisor {
        map::MANAGED
    } else {
        BARE
    };
    let ram = vm.machine().ram().clone();
    ram.write_obj([base, PAGES * 4096, u64::from(vcpus)], GuestAddress(ORDERS))
        .unwrap();

    let bare = if server == Server::Hmmvisor {
        let range = PageRange::new(Page(0), Page(total as u32));
        // Real memory behind every page, then each in a folio of its own: what on-demand leads to.
        drop(backend.pin(range).unwrap());
        let device = backend
            .attach(total * 4096, Arc::new(DefaultDriver))
            .unwrap();
        for page in range.pages() {
            let moved = backend
                .migrate_to_device(device, PageRange::single(page))
                .unwrap();
            assert_eq!(moved, 1);
        }
        None
    } else {
        let start = ram.get_host_address(GuestAddress(BARE)).unwrap() as u64;
        let cpu = (server == Server::BarePinned).then_some(0);
        Some(BareLoop::start(start, total * 4096, engine, cpu))
    };
    vm.start().unwrap();
    let end = common::wait(&vm);
    assert!(matches!(end, End::Exit(0)), "{end:?}");
    vm.stop();
    let tsc_khz: u64 = ram.read_obj(GuestAddress(map::BOOT_INFO + 88)).unwrap();
    let mut ticks = vec![0u32; total as usize];
    for (i, ticks) in ticks.iter_mut().enumerate() {
        *ticks = ram.read_obj(GuestAddress(RESULTS + i as u64 * 4)).unwrap();
    }
    drop(vm);
    drop(bare);
    assert_eq!(
        ram.read_obj::<u64>(GuestAddress(DONE)).unwrap(),
        u64::from(vcpus)
    );
    ticks
        .iter()
        .map(|t| f64::from(*t) * 1000.0 / tsc_khz as f64)
        .collect()
}

const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_MOVE: libc::c_ulong = 0xc028_aa05;

/// Read a message, fill the page by one ioctl, which wakes the vCPU; nothing else.
struct BareLoop {
    thread: Option<thread::JoinHandle<()>>,
}

impl BareLoop {
    fn start(start: u64, len: u64, engine: Engine, cpu: Option<usize>) -> BareLoop {
        // SAFETY: a new anonymous mapping for the pages that are given away.
        let stock = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        assert_ne!(stock, libc::MAP_FAILED);
        let stock = stock as u64;
        // Blocking: the simplest loop there is.
        // SAFETY: makes a new descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        assert!(fd >= 0, "userfaultfd: {}", io::Error::last_os_error());
        // SAFETY: the descriptor is new, and no other value owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        ioctl(&fd, UFFDIO_API, &mut [0xaau64, 0, 0]);
        // SAFETY: untouched boot RAM; the guest sees zeros either way.
        unsafe { libc::madvise(start as *mut _, len as usize, libc::MADV_DONTNEED) };
        ioctl(&fd, UFFDIO_REGISTER, &mut [start, len, 1, 0]);
        let thread = thread::spawn(move || {
            if let Some(cpu) = cpu {
                pin(cpu);
            }
            for _ in 0..len / 4096 {
                let mut message = [0u64; 4];
                // SAFETY: the buffer has the size of one message.
                let n = unsafe { libc::read(fd.as_raw_fd(), message.as_mut_ptr().cast(), 32) };
                assert_eq!(n, 32);
                let page = message[2] & !4095;
                let from = stock + (page - start);
                match engine {
                    Engine::Model => unreachable!("no guest runs on it"),
                    Engine::Remap => ioctl(&fd, UFFDIO_MOVE, &mut [page, from, 4096, 0, 0]),
                    Engine::Copy => ioctl(&fd, UFFDIO_COPY, &mut [page, from, 4096, 0, 0]),
                }
            }
            // SAFETY: the mapping made above; what is left of it is no longer used.
            unsafe { libc::munmap(stock as *mut _, len as usize) };
        });
        BareLoop {
            thread: Some(thread),
        }
    }
}

impl Drop for BareLoop {
    fn drop(&mut self) {
        self.thread.take().map(thread::JoinHandle::join);
    }
}

fn ioctl<const N: usize>(fd: &OwnedFd, request: libc::c_ulong, argument: &mut [u64; N]) {
    // SAFETY: the kernel's structures for these requests are N 64-bit integers; the ranges are boot RAM and the
    // stock of pages.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument.as_mut_ptr()) };
    assert_eq!(result, 0, "{request:#x}: {}", io::Error::last_os_error());
}

fn pin(cpu: usize) {
    // SAFETY: an empty set with one bit, read by the call.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}
