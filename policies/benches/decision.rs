//! What a scripted decision costs, beside the built-in one, and what that makes of a whole fault. Both sides take turns in
//! one run, so that a busy machine disturbs them alike.
//!
//!     cargo bench -p hmmvisor-policies --bench decision
//!
//! With the name of a script (`-- density.luau`), only its decisions.

#[path = "../tests/views/mod.rs"]
mod views;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hmm_backend::driver::DefaultDriver;
use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::pages::{DeviceId, PAGE_SIZE, Page, PageRange, PageSet, Place};
use hmm_backend::policy::{BlockFault, BlockView, FaultPolicy, PolicyFactory};
use hmm_backend::service::ServiceConfig;
use hmm_backend::{Backend, BackendConfig};
use hmmvisor_policies::{Limits, PolicyChoice};
use views::{Random, each_view};

/// Rounds in which both sides take turns.
const ROUNDS: usize = 41;
/// Decisions in a round.
const DECISIONS: usize = 2000;

fn factory(spec: &str) -> Arc<dyn PolicyFactory> {
    let text = match spec.contains(".luau") {
        true => format!("{}/{spec}", env!("CARGO_MANIFEST_DIR")),
        false => spec.to_owned(),
    };
    let choice: PolicyChoice = text.parse().unwrap();
    let log = Arc::new(|line: &str| panic!("{line}"));
    choice.load(Limits::default(), log).unwrap().factory
}

/// Median with the 10th and the 90th percentile.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [0.1, 0.5, 0.9].map(|q| values[(q * (values.len() - 1) as f64) as usize])
}

fn main() {
    // Under `cargo test --benches` there is nothing to measure.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    println!(
        "decision, ns: median (p10-p90) of {ROUNDS} rounds of {DECISIONS}, faults on random single pages"
    );
    for (script, built_in) in [
        ("on_demand.luau", "on-demand"),
        ("density.luau", "density"),
        ("stride.luau", "on-demand"),
        ("markov.luau", "on-demand"),
        ("learned.luau", "on-demand"),
        ("thrash_guard.luau", "density"),
        ("hot_cold.luau", "on-demand"),
    ] {
        if only.as_ref().is_none_or(|only| only == script) {
            decisions(script, built_in);
        }
    }
    if only.is_some() {
        return;
    }
    println!("whole fault of a thread, no VM, us: median (p10-p90); ratio: of the rounds' medians");
    for engine in [Engine::Remap, Engine::Copy] {
        whole_faults(engine, "on_demand.luau", "on-demand");
        whole_faults(engine, "density.luau", "density");
    }
}

fn decisions(script: &str, built_in: &str) {
    let (scripted, built) = (factory(script), factory(built_in));
    let (mut scripted, mut built) = (scripted.fault_policy(), built.fault_policy());
    let (script, built_in) = (script.to_owned(), built_in.to_owned());
    let mut random = Random(9);
    each_view(1, 3, move |fault, view| {
        let faults: Vec<BlockFault> = (0..DECISIONS as u64)
            .map(|i| BlockFault {
                pages: PageSet::from_iter([random.below(512) as usize]),
                to: match random.below(2) {
                    0 => Place::System,
                    _ => Place::Device(DeviceId(0)),
                },
                now: Duration::from_micros(50 * i),
                ..*fault
            })
            .collect();
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            times[0].push(round(&mut *scripted, &faults, view));
            times[1].push(round(&mut *built, &faults, view));
        }
        let [[a, b, c], [d, e, f]] = times.map(spread);
        println!("  {script:<18}{b:>6.0} ({a:.0}-{c:.0})   {built_in:<10}{e:>5.0} ({d:.0}-{f:.0})");
    });
}

fn round(policy: &mut dyn FaultPolicy, faults: &[BlockFault], view: &BlockView<'_>) -> f64 {
    let started = Instant::now();
    for fault in faults {
        black_box(policy.advise(fault, view));
    }
    started.elapsed().as_nanos() as f64 / faults.len() as f64
}

/// Blocks of memory in a round of whole faults.
const BLOCKS: u32 = 4;

fn whole_faults(engine: Engine, script: &str, built_in: &str) {
    let none = "+timeslice:min=0us";
    let policies = [script, built_in].map(|spec| factory(&format!("{spec}{none}")));
    let mut all = [Vec::new(), Vec::new()];
    let mut ratios = Vec::new();
    for turn in 0..ROUNDS {
        let mut medians = [0.0; 2];
        // Neither is always the first.
        for side in [turn % 2, 1 - turn % 2] {
            let times = faults(engine, policies[side].clone());
            medians[side] = spread(times.clone())[1];
            all[side].extend(times);
        }
        ratios.push(medians[0] / medians[1]);
    }
    let [low, ratio, high] = spread(ratios);
    let [[a, b, c], [d, e, f]] = all.map(spread);
    println!(
        "  {engine:<7}{script:<18}{b:>6.2} ({a:.2}-{c:.2})   {built_in:<10}{e:>6.2} ({d:.2}-{f:.2})   ratio {ratio:.3} ({low:.3}-{high:.3})"
    );
}

/// Times of faults on pages that come back from a device one by one, in us.
fn faults(engine: Engine, policy: Arc<dyn PolicyFactory>) -> Vec<f64> {
    let pages = BLOCKS * 512;
    let bytes = u64::from(pages) * PAGE_SIZE;
    let mut config = BackendConfig::new(bytes);
    config.engine = EngineChoice::Only(engine);
    config.policy = policy;
    let backend = Backend::new(config).unwrap();
    let all = PageRange::new(Page(0), Page(pages));
    drop(backend.pin(all).unwrap());
    let device = backend.attach(bytes, Arc::new(DefaultDriver)).unwrap();
    for page in all.pages() {
        let moved = backend.migrate_to_device(device, PageRange::single(page));
        assert_eq!(moved.unwrap(), 1);
    }
    let config = ServiceConfig {
        threads: vec![Some(0)],
        ..ServiceConfig::default()
    };
    let service = backend
        .start_service(config, |fault| panic!("{fault:?}"))
        .unwrap();
    let base = backend.host_memory().0 as usize;
    let toucher = std::thread::spawn(move || {
        bind();
        let mut times = Vec::new();
        for page in 0..pages as usize {
            let at = (base + page * PAGE_SIZE as usize) as *mut u8;
            let started = Instant::now();
            // SAFETY: managed memory, kept by the caller, whose faults are served.
            unsafe { at.write_volatile(1) };
            let time = started.elapsed();
            // Pages that had been brought along are there.
            if time > Duration::from_micros(2) {
                times.push(time.as_nanos() as f64 / 1e3);
            }
        }
        times
    });
    let times = toucher.join().unwrap();
    drop(service);
    times
}

/// To the first CPU, as a thread that lets the service finish.
fn bind() {
    // SAFETY: an empty set with one bit and a zero priority, read by the calls.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
        let priority = libc::sched_param { sched_priority: 0 };
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &priority);
    }
}
