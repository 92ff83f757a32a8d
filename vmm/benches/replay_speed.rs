//! How fast replays are beside libCacheSim: the same requests, the same misses, one thread each, in turns.
//!
//! `cargo bench -p hmmvisor --bench replay_speed`

#[path = "../tests/cache_traces/mod.rs"]
mod cache_traces;
#[path = "../tests/python/mod.rs"]
mod python;

use std::time::{Duration, Instant};

use cache_traces::sides::{Optimal, libcachesim, replayed};
use cache_traces::{Random, traces};

const REQUESTS: usize = 600_000;
const PAGES: u32 = 20_000;
const FRAMES: u64 = 4000;

/// Misses, and the shortest time of three.
fn ours(pages: &[u32], name: &str) -> (u64, Duration) {
    let policy = format!("on-demand+{name}+timeslice:min=0us");
    let times = (0..3).map(|_| {
        let began = Instant::now();
        let outcome = replayed(pages, FRAMES, &policy, Optimal::LeftOut);
        (outcome.pages_to_device, began.elapsed())
    });
    times.min_by_key(|(_, time)| *time).unwrap()
}

fn main() {
    let python = python::python();
    println!(
        "{REQUESTS} requests for {PAGES} pages, {FRAMES} frames; millions of requests a second"
    );
    println!(
        "{:16} {:8} {:>8} {:>8} {:>12} {:>6}",
        "trace", "policy", "misses", "here", "libCacheSim", "ratio"
    );
    for (shape, pages) in traces(REQUESTS, PAGES, &mut Random(1)) {
        let theirs = libcachesim(&python, &pages, FRAMES);
        for name in ["lru", "fifo", "clock", "lfu", "s3-fifo"] {
            let (misses, time) = ours(&pages, name);
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
