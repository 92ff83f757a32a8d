//! How fast replays are: beside libCacheSim (the same requests, the same misses, in the same run), and under fault policies
//! that prefetch. In processor time of one thread: what else the machine does hardly counts.
//!
//! `cargo bench -p hmmvisor --bench replay_speed`

#[path = "../tests/cache_traces/mod.rs"]
mod cache_traces;
#[path = "../tests/python/mod.rs"]
mod python;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_traces::sides::{Optimal, libcachesim, replayed};
use cache_traces::{Random, traces};
use hmm_backend::observe::Event;
use hmm_backend::pages::{Fidelity, PAGE_SIZE};
use hmm_backend::policy::{LinkMatrix, PolicySpec};
use hmmvisor_accesses::Settings;
use hmmvisor_experiments::replay::{Costs, ReplayConfig, Replayed, Time, replay};

const REQUESTS: usize = 600_000;
const PAGES: u32 = 20_000;
const FRAMES: u64 = 4000;
const ROUNDS: usize = 3;

fn main() {
    println!(
        "{REQUESTS} requests for {PAGES} pages, {FRAMES} frames; millions of requests a second of processor time"
    );
    println!(
        "{:16} {:8} {:>8} {:>8} {:>12} {:>6}",
        "trace", "policy", "misses", "here", "libCacheSim", "ratio"
    );
    beside_libcachesim();
    println!("`chase`, frames for half of its pages; millions of accesses a second");
    with_prefetch();
}

fn beside_libcachesim() {
    let python = python::python();
    for (shape, pages) in traces(REQUESTS, PAGES, &mut Random(1)) {
        let theirs = libcachesim(&python, &pages, FRAMES);
        for name in ["lru", "fifo", "clock", "lfu", "s3-fifo", "belady"] {
            let (misses, time) = match name {
                "belady" => optimum(&pages),
                eviction => {
                    let (outcome, time) = measured(|| under(&pages, eviction, Optimal::LeftOut));
                    (outcome.pages_to_device, time)
                }
            };
            let (their_misses, their_time) = theirs[name];
            let same = if misses == their_misses { "" } else { "!" };
            let speed = |seconds: f64| pages.len() as f64 / seconds / 1e6;
            let (here, there) = (speed(time.as_secs_f64()), speed(their_time));
            println!(
                "{shape:16} {name:8} {misses:>7}{same:1} {here:>8.2} {there:>12.2} {:>6.2}",
                here / there
            );
        }
    }
}

fn under(pages: &[u32], eviction: &str, optimal: Optimal) -> Replayed {
    let policy = format!("on-demand+{eviction}+timeslice:min=0us");
    replayed(pages, FRAMES, &policy, optimal)
}

/// The misses of Belady's algorithm, and the time that it adds to a replay.
fn optimum(pages: &[u32]) -> (u64, Duration) {
    let (outcome, with) = measured(|| under(pages, "fifo", Optimal::Computed));
    let (_, without) = measured(|| under(pages, "fifo", Optimal::LeftOut));
    let optimal = outcome.optimal.expect("it was asked for");
    (optimal.pages_to_device, with.saturating_sub(without))
}

fn with_prefetch() {
    let events = chase();
    let pages = |event: &Event| event.page.0..event.page.0 + event.pages;
    let mut all: Vec<u32> = events.iter().flat_map(pages).collect();
    all.sort_unstable();
    all.dedup();
    for name in ["on-demand", "sequential", "density", "thrash", "adaptive"] {
        let policy: PolicySpec = name.parse().expect("a policy there is");
        let config = ReplayConfig {
            policy: Arc::new(policy),
            memory: u64::from(all.last().map_or(0, |last| last + 1)) * PAGE_SIZE,
            device_memory: all.len() as u64 / 2 * PAGE_SIZE,
            devices: 1,
            links: LinkMatrix::default(),
            costs: Costs::default(),
            fidelity: Fidelity::default(),
            eviction_batch: hmm_backend::EVICTION_BATCH,
            time: Time::Modelled,
            optimal: false,
            moves: false,
        };
        let (outcome, time) = measured(|| {
            replay(events.iter().copied(), &config).expect("nothing is wrong with the trace")
        });
        let faults = outcome.cpu_faults + outcome.device_faults;
        let moved = outcome.pages_to_device + outcome.pages_to_system;
        let speed = outcome.accesses as f64 / time.as_secs_f64() / 1e6;
        println!("{name:16} {speed:>8.2}   {faults} faults, {moved} pages moved");
    }
}

/// The accesses of the built-in workload that follows pointers at random.
fn chase() -> Vec<Event> {
    let events = Arc::new(Mutex::new(Vec::new()));
    let settings = Settings {
        workload: "chase".into(),
        ..Settings::default()
    };
    let list = events.clone();
    let sink = move |event| list.lock().expect("no thread panics with it").push(event);
    hmmvisor_accesses::generate(&settings, sink).expect("a workload there is");
    let mut events = events.lock().expect("no thread panics with it");
    std::mem::take(&mut events)
}

/// The result, and the shortest processor time of some rounds.
fn measured<R>(run: impl Fn() -> R) -> (R, Duration) {
    let rounds = (0..ROUNDS).map(|_| {
        let began = processor_time();
        let result = run();
        (result, processor_time() - began)
    });
    let shortest = rounds.min_by_key(|(_, time)| *time);
    shortest.expect("there are some")
}

/// How long this thread has been on a processor.
fn processor_time() -> Duration {
    let figures = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    let on_processor = figures.split(' ').next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(on_processor.expect("the first figure is nanoseconds"))
}
