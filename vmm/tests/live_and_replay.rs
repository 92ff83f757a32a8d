//! A live run and the replay of its trace make the same migrations, page by page: the replay is the backend itself.
//!
//! One vCPU, and prefetching in lockstep: otherwise what a fault finds depends on who is faster.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use hmm_backend::{Event, EventKind, LinkModel, PolicySpec};
use hmmvisor_experiments::replay::{Costs, ReplayConfig, Time, replay};
use hmmvisor_experiments::trace::{Tail, TraceReader};

const HMMVISOR: &str = env!("CARGO_BIN_EXE_hmmvisor");

/// Which way and which page.
type Move = (EventKind, u32);

/// Page by page: a folio is as good as its pages.
fn moves<'e>(events: impl IntoIterator<Item = &'e Event>) -> Vec<Move> {
    let moved = |e: &&Event| matches!(e.kind, EventKind::ToDevice | EventKind::ToSystem);
    let pages = |e: &'e Event| (e.page.0..e.page.0 + e.pages).map(|page| (e.kind, page));
    events.into_iter().filter(moved).flat_map(pages).collect()
}

fn agrees(workload: &str, param: &str, device_memory: &str, engine: &str, policy: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (config, trace) = (folder.path().join("run.toml"), folder.path().join("trace"));
    fs::write(
        &config,
        format!("[engine]\nkind = '{engine}'\nlockstep = true\n"),
    )
    .unwrap();
    let output = Command::new(HMMVISOR)
        .arg("run")
        .arg(&config)
        .args(["--workload", workload, "--param", param, "--policy", policy])
        .args([
            "--memory",
            "64M",
            "--device-memory",
            device_memory,
            "--record",
        ])
        .arg(&trace)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");

    let reader = TraceReader::open(&trace).unwrap();
    assert_eq!(reader.tail(), Tail::Complete);
    assert!(reader.totals().dropped.is_empty());
    let meta = reader.meta().clone();
    let live: Vec<Event> = reader.map(Result::unwrap).collect();
    let config = ReplayConfig {
        policy: Arc::new(meta.policy.parse::<PolicySpec>().unwrap()),
        memory: meta.memory,
        device_memory: meta.device_memory,
        devices: meta.devices as u8,
        link: LinkModel::default(),
        costs: Costs::default(),
        time: Time::Trace,
        optimal: false,
        moves: true,
    };
    let replayed = replay(live.iter().copied(), &config).unwrap();
    let (live, replayed) = (moves(&live), moves(&replayed.moves));
    assert!(
        live.len() > 1000,
        "{workload}: too little happened: {}",
        live.len()
    );
    let difference = live.iter().zip(&replayed).position(|(a, b)| a != b);
    assert!(
        difference.is_none() && live.len() == replayed.len(),
        "{workload}, {engine}, {policy}: {} and {} migrations, different from number {difference:?} on: {:?} and {:?}",
        live.len(),
        replayed.len(),
        difference.map(|i| &live[i.saturating_sub(3)..(i + 5).min(live.len())]),
        difference.map(|i| &replayed[i.saturating_sub(3)..(i + 5).min(replayed.len())]),
    );
}

const POLICIES: [&str; 3] = [
    "on-demand+lru+timeslice:min=0us",
    "density+lru+timeslice:min=0us",
    "sequential+clock+timeslice:min=0us",
];

fn agrees_everywhere(workload: &str, param: &str, device_memory: &str) {
    for engine in ["remap", "copy"] {
        for policy in POLICIES {
            agrees(workload, param, device_memory, engine, policy);
        }
    }
}

#[test]
fn vecadd_with_too_little_device_memory() {
    agrees_everywhere("vecadd", "n=262144", "4M");
}

#[test]
fn stream() {
    agrees_everywhere("stream", "n=262144", "4M");
}

#[test]
fn pingpong() {
    agrees_everywhere("pingpong", "rounds=20", "4M");
}
