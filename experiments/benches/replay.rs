//! Accesses replayed in each second of a core's time, under built-in policies. What else the machine does hardly counts:
//! the time is this thread's own on its core.
//!
//!     cargo bench -p hmmvisor-experiments --bench replay

use std::sync::Arc;
use std::time::Duration;

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{Access, DeviceId, Page, PageRange};
use hmm_backend::policy::{LinkMatrix, PolicySpec};
use hmmvisor_experiments::replay::{Costs, ReplayConfig, Time, replay};

const PAGES: u32 = 16384;
const ACCESSES: u32 = 10_000_000;
const ROUNDS: usize = 5;

fn main() {
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    println!("{ACCESSES} accesses, 64 MiB; M accesses/s: median of {ROUNDS} (least, most); faults");
    const DEVICE: Option<DeviceId> = Some(DeviceId(0));
    let sweep = |i: u32| (i / 64 % PAGES, DEVICE);
    // A hash; half of the accesses go to a sixteenth of the pages.
    let skewed = |i: u32| {
        let random = i
            .wrapping_mul(2_654_435_761)
            .rotate_left(15)
            .wrapping_mul(0x9e37_79b1);
        let among = if random & 1 == 0 { PAGES / 16 } else { PAGES };
        ((random >> 8) % among, DEVICE)
    };
    let turns = |i: u32| {
        (
            i / 32 % PAGES,
            if (i / (32 * PAGES)).is_multiple_of(2) {
                None
            } else {
                DEVICE
            },
        )
    };
    type Pattern = dyn Fn(u32) -> (u32, Option<DeviceId>);
    let patterns: [(&str, u64, &Pattern); 4] = [
        ("device sweeps, fits", 64, &sweep),
        ("device sweeps, 3/4 fit", 48, &sweep),
        ("device random, 15/16 fit", 60, &skewed),
        ("CPU and device in turns", 64, &turns),
    ];
    for policy in ["on-demand", "density"] {
        for (name, device_memory, pattern) in patterns {
            let mut rates = Vec::new();
            let mut faults = 0;
            for _ in 0..ROUNDS {
                let events = (0..ACCESSES).map(|i| {
                    let (page, device) = pattern(i);
                    let pages = PageRange::single(Page(page));
                    Event {
                        device,
                        access: Some(Access::Write),
                        ..Event::new(Duration::ZERO, EventKind::Access, pages)
                    }
                });
                let config = ReplayConfig {
                    fidelity: hmm_backend::pages::Fidelity::default(),
                    eviction_batch: hmm_backend::EVICTION_BATCH,
                    policy: Arc::new(policy.parse::<PolicySpec>().expect("a policy there is")),
                    memory: u64::from(PAGES) * 4096,
                    device_memory: device_memory << 20,
                    devices: 1,
                    links: LinkMatrix::default(),
                    costs: Costs::default(),
                    time: Time::Modelled,
                    optimal: false,
                    moves: false,
                };
                let start = cpu_time();
                let done = replay(events, &config).expect("nothing is wrong with the trace");
                rates.push(f64::from(ACCESSES) / (cpu_time() - start).as_secs_f64() / 1e6);
                faults = done.cpu_faults + done.device_faults;
            }
            rates.sort_by(f64::total_cmp);
            println!(
                "{policy:<10} {name:<26} {:>6.1} ({:.1}–{:.1})  {faults:>9}",
                rates[ROUNDS / 2],
                rates[0],
                rates[ROUNDS - 1]
            );
        }
    }
}

/// How long this thread has been on a core.
fn cpu_time() -> Duration {
    let figures = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    let on_core = figures.split(' ').next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(on_core.expect("the first figure is nanoseconds"))
}
