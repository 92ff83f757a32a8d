//! What the API costs, and how fast it answers: runs of the command without it, with a scrape a second, and with a stream of all events
//! besides, in turns; and requests to machines that are busy in several ways.
//!
//!     cargo bench -p hmmvisor --bench api

use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use hmmvisor_api::Client;
use serde_json::Value;

/// Runs of each kind.
const RUNS: usize = 7;
/// Requests of each kind.
const REQUESTS: usize = 1000;
const LARGE_REQUESTS: usize = 40;
const SCRAPE_EVERY: Duration = Duration::from_secs(1);

const FAULTING: &str =
    "--workload pingpong --param pages=1024 --policy on-demand+timeslice:min=0us --param rounds=";

fn main() {
    // Under `cargo test --benches` there is nothing to measure.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    println!(
        "p50 of a CPU fault's service, µs, {RUNS} runs each in turns: median (least–most), beside without"
    );
    for engine in ["remap", "copy"] {
        let mut faults = [const { Vec::new() }; 3];
        for _ in 0..RUNS {
            for (kind, faults) in [Kind::Without, Kind::Scraped, Kind::Streamed]
                .into_iter()
                .zip(&mut faults)
            {
                faults.push(p50_of_faults(kind, engine, &socket));
            }
        }
        let without = median(&mut faults[0].clone());
        for (what, mut faults) in ["without", "scraped", "scraped, events read"]
            .iter()
            .zip(faults)
        {
            let median = median(&mut faults);
            let (least, most) = (faults[0], faults[RUNS - 1]);
            let ratio = median / without;
            println!("  {engine}, {what:<22} {median:.2} ({least:.2}–{most:.2})  {ratio:.3}");
        }
    }

    println!("requests, ms: p50, p99");
    let endless = [FAULTING, "1000000"].concat();
    let torture = "--workload torture --vcpus 4 --param seconds=600";
    let paused = || Machine::start(&endless, &socket).paused();
    let faulting = || Machine::start(&endless, &socket);
    let tortured = || Machine::start(torture, &socket);
    times("GET /v1/vm, paused", &paused(), "/v1/vm", REQUESTS);
    times("GET /v1/vm, guest faults", &faulting(), "/v1/vm", REQUESTS);
    times(
        "GET /v1/vm, torture on 4 vCPUs",
        &tortured(),
        "/v1/vm",
        REQUESTS,
    );
    times(
        "GET /v1/metrics, paused",
        &paused(),
        "/v1/metrics",
        REQUESTS,
    );
    times(
        "GET /v1/metrics, guest faults",
        &faulting(),
        "/v1/metrics",
        REQUESTS,
    );
    let large = "--memory 8G --workload pingpong --param rounds=1000000";
    let bytes = "/v1/memory/residency/bytes?first=0&pages=2097152";
    let what = "residency of 8 GiB as bytes";
    let machine = Machine::start(large, &socket);
    times(&format!("{what}, running"), &machine, bytes, LARGE_REQUESTS);
    let machine = machine.paused();
    times(&format!("{what}, paused"), &machine, bytes, LARGE_REQUESTS);
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Without,
    Scraped,
    Streamed,
}

/// A machine that is killed when it is dropped.
struct Machine {
    child: Child,
    client: Client,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hmmvisor(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hmmvisor"));
    command.arg("run").args(args.split(' '));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Machine {
    fn start(args: &str, socket: &Path) -> Machine {
        let mut command = hmmvisor(args);
        let child = command.arg("--api").arg(socket).spawn().unwrap();
        let client = Client::new(socket);
        while client.get("/v1/vm").is_err() {
            thread::yield_now();
        }
        Machine { child, client }
    }

    fn paused(self) -> Machine {
        self.client.post("/v1/vm/pause", None::<&()>).unwrap();
        self
    }
}

fn p50_of_faults(kind: Kind, engine: &str, socket: &PathBuf) -> f64 {
    let args = format!("{FAULTING}60 --engine {engine} --json -");
    let mut command = hmmvisor(&args);
    command.stdout(Stdio::piped());
    if kind != Kind::Without {
        command.arg("--api").arg(socket);
    }
    let mut run = command.spawn().unwrap();
    let client = Client::new(socket);
    let (ended, end) = mpsc::channel::<()>();
    let reader = (kind == Kind::Streamed).then(|| {
        let client = client.clone();
        thread::spawn(move || {
            while client.get("/v1/vm").is_err() {
                thread::yield_now();
            }
            // The run's end ends the stream.
            let _ = client.lines("/v1/events", |_| ControlFlow::Continue(()));
        })
    });
    let scraper = (kind != Kind::Without).then(|| {
        thread::spawn(move || {
            while end.recv_timeout(SCRAPE_EVERY) == Err(RecvTimeoutError::Timeout) {
                let _ = client.get("/v1/metrics");
            }
        })
    });
    let mut text = String::new();
    run.stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    run.wait().unwrap();
    drop(ended);
    for thread in reader.into_iter().chain(scraper) {
        thread.join().unwrap();
    }
    let json: Value = serde_json::from_str(&text).unwrap();
    json["fault_latency_us"]["p50"].as_f64().unwrap()
}

/// Prints how long requests take.
fn times(what: &str, machine: &Machine, path: &str, requests: usize) {
    let time = || {
        let begin = Instant::now();
        machine.client.get(path).unwrap();
        begin.elapsed().as_secs_f64() * 1e3
    };
    let mut times: Vec<_> = (0..requests).map(|_| time()).collect();
    let median = median(&mut times);
    let p99 = times[(requests - 1) * 99 / 100];
    println!("  {what:<40} {median:.2} {p99:.2}");
}

/// Sorts the samples.
fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
