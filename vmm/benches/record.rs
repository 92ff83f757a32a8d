//! What recording a trace costs a run that does little else than fault: the same guest with and without `--record`, in
//! turns, in one process.
//!
//!     cargo bench -p hmmvisor --bench record

use std::io;

use hmmvisor::{Config, Options, Report};

/// Pairs of runs.
const ROUNDS: usize = 15;

fn main() {
    // Under `cargo test --benches` there is nothing to measure.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    println!("median of {ROUNDS} pairs of runs (p10–p90), with recording / without");
    for (engine, policy, turns) in [
        ("remap", "on-demand+timeslice:min=0us", "10"),
        ("copy", "on-demand+timeslice:min=0us", "10"),
        ("remap", "density+timeslice:min=0us", "150"),
    ] {
        let mut config = Config::default();
        config.workload.name = Some("pingpong".to_owned());
        config.workload.params = vec![
            ("pages".to_owned(), "1024".to_owned()),
            ("rounds".to_owned(), turns.to_owned()),
        ];
        config.engine.kind = engine.parse().unwrap();
        config.policy.spec = policy.parse().unwrap();
        let with = Config {
            record: Some(folder.path().join("t.hmmtrace")),
            ..config.clone()
        };
        let (mut times, mut latencies, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = None;
        for round in 0..ROUNDS {
            // Who goes first must not matter.
            let (plain, recorded) = if round % 2 == 0 {
                let plain = run(&config);
                (plain, run(&with))
            } else {
                let recorded = run(&with);
                (run(&config), recorded)
            };
            let seconds = |(report, _): &(Report, f64)| report.elapsed.as_secs_f64();
            times.push(seconds(&recorded) / seconds(&plain));
            cpu.push(recorded.1 / plain.1);
            latencies.push(recorded.0.stats.fault_latency.p50 / plain.0.stats.fault_latency.p50);
            last = recorded.0.recording;
        }
        let recording = last.expect("it was asked for");
        println!(
            "{engine:<6} {policy:<28} time {}, CPU time {}, median fault {}; {} events, {:.2} bytes each, {} dropped",
            quantiles(times),
            quantiles(cpu),
            quantiles(latencies),
            recording.events,
            recording.bytes as f64 / recording.events as f64,
            recording.dropped.values().sum::<u64>(),
        );
    }
}

/// A run, and the CPU time of the process for it, in seconds.
fn run(config: &Config) -> (Report, f64) {
    let begin = cpu_time();
    let options = Options {
        console: Box::new(io::sink()),
        ..Options::default()
    };
    let report = hmmvisor::run(config, options).unwrap();
    assert_eq!(report.error(), None);
    (report, cpu_time() - begin)
}

fn cpu_time() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the one structure.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn quantiles(mut samples: Vec<f64>) -> String {
    samples.sort_by(f64::total_cmp);
    let at = |q: f64| samples[(q * (samples.len() - 1) as f64) as usize];
    format!("{:.3} ({:.3}–{:.3})", at(0.5), at(0.1), at(0.9))
}
