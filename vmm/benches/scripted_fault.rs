//! What one CPU fault costs with a scripted policy and with the built-in one that decides the same, as a vCPU sees it: from
//! the access to the next instruction, with pages migrated from device memory. Both sides take turns in one run.
//!
//!     cargo bench -p hmmvisor --bench scripted_fault

#[path = "../tests/common/mod.rs"]
mod common;

use std::arch::global_asm;
use std::io;
use std::sync::Arc;

use hmm_backend::driver::DefaultDriver;
use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::pages::{Page, PageRange};
use hmm_backend::policy::PolicyFactory;
use hmm_backend::{Backend, BackendConfig};
use hmmvisor::End;
use hmmvisor::guest::program::Program;
use hmmvisor::vm::{Hooks, Managed, Vm, VmConfig};
use hmmvisor_abi::map;
use hmmvisor_policies::{Limits, PolicyChoice};
use vm_memory::{Bytes, GuestAddress};

/// Pages the vCPU touches in a round, each in another 64 KiB: so `density` decides for each of them, too.
const PAGES: u64 = 256;
/// Pages from one that is touched to the next.
const STRIDE: u64 = 32;
/// Rounds of each side, taken in turns.
const ROUNDS: usize = 41;

/// Where the guest finds the base of its pages; then the results, one 32-bit number of time-stamp ticks for each page.
const ORDERS: u64 = 0x30_0000;
const RESULTS: u64 = ORDERS + 0x1000;

// Position-independent; never runs in this process.
global_asm!(
    ".pushsection .rodata.touch, \"a\"",
    ".globl touch_begin",
    "touch_begin:",
    "  mov r8, {orders}",
    "  mov rdi, [r8]",
    "  mov r10, {results}",
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
    "  add rdi, {stride} * 4096",
    "  dec r9",
    "  jnz 2b",
    "  mov rbx, {control}",
    "  mov qword ptr [rbx + {exit}], 0",
    ".globl touch_end",
    "touch_end:",
    ".popsection",
    orders = const ORDERS,
    results = const RESULTS,
    pages = const PAGES,
    stride = const STRIDE,
    control = const map::CONTROL,
    exit = const hmmvisor_abi::control::EXIT,
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

fn policy(spec: &str) -> Arc<dyn PolicyFactory> {
    let folder = match spec.contains(".luau") {
        true => concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/"),
        false => "",
    };
    let choice: PolicyChoice = format!("{folder}{spec}+timeslice:min=0us").parse().unwrap();
    let log = Arc::new(|line: &str| panic!("{line}"));
    choice.load(Limits::default(), log).unwrap().factory
}

/// 10th percentile, median and 90th percentile.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [0.1, 0.5, 0.9].map(|q| values[(q * (values.len() - 1) as f64) as usize])
}

fn main() {
    // Under `cargo test --benches` there is nothing to measure.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    println!(
        "One CPU fault with migration to system memory, us at the vCPU: median (p10-p90) of {ROUNDS} rounds of {PAGES} faults; \
         ratio: of neighbouring rounds' medians"
    );
    for engine in [Engine::Remap, Engine::Copy] {
        for (script, built_in) in [("on_demand.luau", "on-demand"), ("density.luau", "density")] {
            compare(engine, script, built_in);
        }
    }
}

fn compare(engine: Engine, script: &str, built_in: &str) {
    let policies = [policy(script), policy(built_in)];
    let mut all = [Vec::new(), Vec::new()];
    let mut ratios = Vec::new();
    for turn in 0..ROUNDS {
        let mut medians = [0.0; 2];
        // Neither is always the first.
        for side in [turn % 2, 1 - turn % 2] {
            let times = round(engine, policies[side].clone());
            medians[side] = spread(times.clone())[1];
            all[side].extend(times);
        }
        ratios.push(medians[0] / medians[1]);
    }
    let [[a, b, c], [d, e, f]] = all.map(spread);
    let [low, ratio, high] = spread(ratios);
    println!(
        "  {engine:<6} {script:<15}{b:>7.2} ({a:.2}-{c:.2})   {built_in:<10}{e:>7.2} ({d:.2}-{f:.2})   \
         medians {:.3}, ratio {ratio:.3} ({low:.3}-{high:.3})",
        b / e
    );
}

/// One run of the guest: microseconds of each access.
fn round(engine: Engine, policy: Arc<dyn PolicyFactory>) -> Vec<f64> {
    let total = PAGES * STRIDE;
    let mut config = BackendConfig::new(total * 4096);
    config.engine = EngineChoice::Only(engine);
    config.policy = policy;
    let backend = Backend::new(config).unwrap();
    let mut vm = Vm::new(VmConfig {
        vcpus: 1,
        vcpu_cpus: vec![0],
        managed: Some(Managed {
            backend: backend.clone(),
            service: vec![Some(0)],
            devices: Vec::new(),
            on_memory_error: Default::default(),
            foreign: Vec::new(),
        }),
        guest: Box::new(Program::new(common::elf(&touch()), "", 0)),
        console: Box::new(io::sink()),
        hooks: Hooks::default(),
    })
    .unwrap();
    let ram = vm.machine().ram().clone();
    ram.write_obj(map::MANAGED, GuestAddress(ORDERS)).unwrap();
    let range = PageRange::new(Page(0), Page(total as u32));
    // Real memory behind every page, then each in a folio of its own: what on-demand leads to.
    drop(backend.pin(range).unwrap());
    let device = backend
        .attach(total * 4096, Arc::new(DefaultDriver))
        .unwrap();
    for page in range.pages() {
        let moved = backend.migrate_to_device(device, PageRange::single(page));
        assert_eq!(moved.unwrap(), 1);
    }
    vm.start().unwrap();
    let end = common::wait(&vm);
    assert!(matches!(end, End::Exit(0)), "{end:?}");
    vm.stop();
    let tsc_khz: u64 = ram.read_obj(GuestAddress(map::BOOT_INFO + 88)).unwrap();
    let ticks = (0..PAGES).map(|i| ram.read_obj::<u32>(GuestAddress(RESULTS + i * 4)).unwrap());
    let times = ticks.map(|ticks| f64::from(ticks) * 1000.0 / tsc_khz as f64);
    times.collect()
}
