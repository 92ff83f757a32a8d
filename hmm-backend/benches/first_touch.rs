//! Measures a sequential first touch of memory that is on a device: the time per page under `on-demand` and
//! under `density`, in turns in one run. A plain thread acts as the CPU. The thread and the service are each
//! bound to a CPU, once to the same one and once to two.
//!
//!     cargo bench -p hmm-backend --bench first_touch

use std::sync::Arc;
use std::time::Instant;

use hmm_backend::driver::DefaultDriver;
use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::observe::Cause;
use hmm_backend::pages::{DeviceId, PAGE_SIZE, Page, PageRange};
use hmm_backend::policy::PolicySpec;
use hmm_backend::service::{FaultService, ServiceConfig};
use hmm_backend::{Backend, BackendConfig};

const PAGES: u32 = 4 * 512;
const ROUNDS: usize = 15;
const POLICIES: [&str; 2] = ["on-demand", "density"];
/// The least ratio that `density` should reach.
const TARGET: f64 = 20.0;

fn main() {
    // Under `cargo test --benches` there is nothing to measure.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    println!(
        "First touch of {PAGES} pages on a device, one after the other; µs per page: median (min–max) of {ROUNDS} rounds"
    );
    println!(
        "{:<7} {:<13} {:>20} {:>20} {:>7} {:>16} {:>18}",
        "engine",
        "service",
        "on-demand",
        "density",
        "ratio",
        "faults per 2 MiB",
        "prefetched (own)"
    );
    for engine in [Engine::Remap, Engine::Copy] {
        for (name, cpu) in [("same CPU", 0), ("another CPU", 1)] {
            let rigs = POLICIES.map(|policy| Rig::new(engine, policy, cpu));
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..ROUNDS {
                for (rig, times) in rigs.iter().zip(&mut times) {
                    times.push(rig.round());
                }
            }
            let [on_demand, density] = &times;
            let ratio = median(on_demand) / median(density);
            let stats = rigs[1].backend.stats();
            let blocks = f64::from(PAGES) / 512.0 * ROUNDS as f64;
            let moved = |cause| stats.to_system.get(&cause).copied().unwrap_or(0);
            println!(
                "{:<7} {:<13} {:>20} {:>20} {:>6.1}x {:>16.1} {:>17.1}%",
                engine.to_string(),
                name,
                spread(on_demand),
                spread(density),
                ratio,
                (stats.cpu_faults - stats.first_touch_faults) as f64 / blocks,
                100.0 * moved(Cause::Prefetch) as f64 / stats.pages_to_system() as f64,
            );
            if ratio < TARGET {
                println!("        below the target of {TARGET}x");
            }
        }
    }
}

struct Rig {
    _service: FaultService,
    backend: Arc<Backend>,
    device: DeviceId,
}

impl Rig {
    fn new(engine: Engine, policy: &str, cpu: usize) -> Rig {
        let mut config = BackendConfig::new(u64::from(PAGES) * PAGE_SIZE);
        config.engine = EngineChoice::Only(engine);
        let policy = format!("{policy}+timeslice:min=0us");
        config.policy = Arc::new(policy.parse::<PolicySpec>().unwrap());
        let backend = Backend::new(config).unwrap();
        let device = backend
            .attach(u64::from(PAGES) * PAGE_SIZE, Arc::new(DefaultDriver))
            .unwrap();
        let all = PageRange::new(Page(0), Page(PAGES));
        drop(backend.pin(all).unwrap());
        let threads = vec![Some(cpu)];
        let service = backend
            .start_service(
                ServiceConfig {
                    threads,
                    ..ServiceConfig::default()
                },
                |fault| panic!("{fault:?}"),
            )
            .unwrap();
        Rig {
            _service: service,
            backend,
            device,
        }
    }

    /// Runs one round and returns the microseconds per page.
    fn round(&self) -> f64 {
        let all = PageRange::new(Page(0), Page(PAGES));
        let mut on_device = 0;
        while on_device < PAGES {
            // Prefetches of the last round may still be in motion, so migrate until all pages are on the
            // device.
            self.backend.migrate_to_device(self.device, all).unwrap();
            let words = all.pages().map(|p| self.backend.word(p).unwrap());
            let is_device = |w: &hmm_backend::residency::Word| {
                matches!(w.residency(), hmm_backend::residency::Residency::Device(_))
            };
            on_device = words.filter(is_device).count() as u32;
        }
        let base = self.backend.host_memory().0 as usize;
        let toucher = std::thread::spawn(move || {
            pin_to_first_cpu();
            let start = Instant::now();
            for page in 0..PAGES as usize {
                let at = (base + page * PAGE_SIZE as usize) as *mut u8;
                // SAFETY: managed memory, which the service fills; it lives as long as the backend.
                unsafe { at.write_volatile(1) };
            }
            start.elapsed()
        });
        toucher.join().unwrap().as_secs_f64() * 1e6 / f64::from(PAGES)
    }
}

/// Binds the thread to CPU 0 and gives it the scheduling class `SCHED_BATCH`, like a vCPU: then the service
/// thread is not preempted when it wakes the thread.
fn pin_to_first_cpu() {
    // SAFETY: an empty set with one bit and a zero priority, read by the calls.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
        let priority = libc::sched_param { sched_priority: 0 };
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &priority);
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn spread(samples: &[f64]) -> String {
    let min = samples.iter().copied().fold(f64::MAX, f64::min);
    let max = samples.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({min:.2}–{max:.2})", median(samples))
}
