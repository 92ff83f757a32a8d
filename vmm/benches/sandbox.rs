//! What the sandbox costs: runs of the command with `--sandbox on` and `off`, in turns; and system calls of a thread before and after it
//! confines itself.
//!
//!     cargo bench -p hmmvisor --bench sandbox

use std::process::{Command, Stdio};
use std::time::Instant;

use hmmvisor::sandbox::{Kind, Mode, Paths, Sandbox};
use serde_json::Value;

/// Pairs of runs for each question.
const STARTS: usize = 60;
const FAULTS: usize = 15;
/// Rounds of system calls, of which the fastest counts, and calls in each.
const ROUNDS: usize = 40;
const CALLS: u32 = 50_000;

fn main() {
    // Under `cargo test --benches` there is nothing to measure.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let sandbox = Sandbox::new(Mode::On, &Paths::default(), || {});
    let sandbox = sandbox.unwrap().unwrap();
    println!("a system call that fails at once, ns (fastest of {ROUNDS} rounds): before, confined");
    for (kind, name, request) in [
        (Kind::Vcpu, "KVM_RUN", 0xae80),
        (Kind::Service, "UFFDIO_MOVE", 0xc028_aa05),
        (Kind::Service, "UFFDIO_WRITEPROTECT", 0xc018_aa06),
    ] {
        let sandbox = sandbox.clone();
        let thread = std::thread::spawn(move || {
            let before = nanoseconds(request);
            sandbox.confine_this_thread(kind, "bench");
            (before, nanoseconds(request))
        });
        let (before, confined) = thread.join().unwrap();
        println!("  {kind:?} {name:<20} {before:.0} {confined:.0}");
    }

    let start = ["--workload", "crash", "--param", "kind=exit"];
    let (on, off) = in_turns(STARTS, &start, |run| {
        [run.json["first_instruction_ms"].as_f64().unwrap(), run.cpu]
    });
    println!("median of {STARTS} pairs of runs (p10–p90): on, off, difference within pairs");
    say("first guest instruction, ms", &on, &off, 0);
    say("CPU time of the process, ms", &on, &off, 1);

    for engine in ["remap", "copy"] {
        let args = "--workload pingpong --param pages=1024 --param rounds=10 --policy on-demand+timeslice:min=0us --engine";
        let args: Vec<_> = args.split(' ').chain([engine]).collect();
        let (on, off) = in_turns(FAULTS, &args, |run| {
            let fault = run.json["fault_latency_us"]["p50"].as_f64().unwrap();
            let faults = run.json["cpu_faults"].as_f64().unwrap();
            [
                fault,
                run.json["elapsed_s"].as_f64().unwrap() * 1e6 / faults,
            ]
        });
        say(&format!("{engine}: service of a fault, µs"), &on, &off, 0);
        say(
            &format!("{engine}: a run's time for a fault, µs"),
            &on,
            &off,
            1,
        );
    }
}

struct Run {
    json: Value,
    /// In milliseconds.
    cpu: f64,
}

/// Runs the command so many times in each mode, and returns the figures of each run.
fn in_turns(
    pairs: usize,
    args: &[&str],
    figures: impl Fn(&Run) -> [f64; 2],
) -> (Vec<[f64; 2]>, Vec<[f64; 2]>) {
    let mut all = [Vec::new(), Vec::new()];
    for pair in 0..pairs {
        // Which one goes first must not matter.
        for mode in [pair % 2, (pair + 1) % 2] {
            let run = run(["on", "off"][mode], args);
            all[mode].push(figures(&run));
        }
    }
    all.into()
}

fn run(mode: &str, args: &[&str]) -> Run {
    let before = cpu_of_children();
    let output = Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
        .args(["run", "--json", "-", "--sandbox", mode])
        .args(args)
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let cpu = cpu_of_children() - before;
    let json = serde_json::from_slice(&output.stdout).unwrap();
    Run { json, cpu }
}

/// The CPU time of all children that have ended, in milliseconds.
fn cpu_of_children() -> f64 {
    // SAFETY: a structure of integers; all zeros is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) };
    let time = |it: libc::timeval| it.tv_sec as f64 * 1e3 + it.tv_usec as f64 / 1e3;
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// The time of a request on a descriptor that is not open.
fn nanoseconds(request: libc::c_ulong) -> f64 {
    let round = || {
        let begin = Instant::now();
        for _ in 0..CALLS {
            // SAFETY: the kernel refuses the call because of the descriptor.
            unsafe { libc::ioctl(-1, request, 0) };
        }
        begin.elapsed().as_nanos() as f64 / f64::from(CALLS)
    };
    (0..ROUNDS).map(|_| round()).fold(f64::MAX, f64::min)
}

/// Prints one of the figures of all pairs.
fn say(what: &str, on: &[[f64; 2]], off: &[[f64; 2]], which: usize) {
    let of = |runs: &[[f64; 2]]| runs.iter().map(|run| run[which]).collect::<Vec<_>>();
    let pairs = on.iter().zip(off);
    let differences = pairs.map(|(on, off)| on[which] - off[which]).collect();
    let (on, off) = (of(on), of(off));
    let ratio = median(on.clone()) / median(off.clone());
    println!(
        "  {what:<36} {} {} {:+.3}; ratio {ratio:.3}",
        quantiles(on),
        quantiles(off),
        median(differences)
    );
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn quantiles(mut samples: Vec<f64>) -> String {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize];
    format!("{:.2} ({:.2}–{:.2})", at(0.5), at(0.1), at(0.9))
}
