//! A live run and the replay of its trace make the same migrations, page by page: the replay is the backend itself.
//!
//! One vCPU, and prefetching in lockstep: otherwise what a fault finds depends on who is faster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::Arc;

use hmm_backend::observe::{Event, EventKind};
use hmmvisor_experiments::replay::{Costs, ReplayConfig, Time, replay};
use hmmvisor_experiments::trace::{Tail, TraceReader};
use hmmvisor_policies::{Limits, PolicyChoice};

const HMMVISOR: &str = env!("CARGO_BIN_EXE_hmmvisor");

/// Which ways each page went, one after the other. Between pages the order says little: a vCPU goes on a moment before
/// the migration that it waited for is noted.
fn ways<'e>(events: impl IntoIterator<Item = &'e Event>) -> BTreeMap<u32, Vec<EventKind>> {
    let mut ways: BTreeMap<u32, Vec<EventKind>> = BTreeMap::new();
    let moved = |e: &&Event| {
        use EventKind::*;
        matches!(
            e.kind,
            ToDevice | ToSystem | BetweenDevices | Duplicated | Collapsed
        )
    };
    for event in events.into_iter().filter(moved) {
        for page in event.page.0..event.page.0 + event.pages {
            ways.entry(page).or_default().push(event.kind);
        }
    }
    ways
}

/// Returns how the pages went.
fn agrees(
    workload: &str,
    param: &str,
    device_memory: &str,
    engine: &str,
    policy: &str,
    accesses: &str,
) -> BTreeMap<u32, Vec<EventKind>> {
    agrees_with(1, workload, param, device_memory, engine, policy, accesses)
}

/// The same with this many accelerators.
fn agrees_with(
    devices: u32,
    workload: &str,
    param: &str,
    device_memory: &str,
    engine: &str,
    policy: &str,
    accesses: &str,
) -> BTreeMap<u32, Vec<EventKind>> {
    let folder = tempfile::tempdir().unwrap();
    let (config, trace) = (folder.path().join("run.toml"), folder.path().join("trace"));
    fs::write(
        &config,
        format!("[engine]\nkind = '{engine}'\nlockstep = true\n"),
    )
    .unwrap();
    let run = || {
        let output = Command::new(HMMVISOR)
            .arg("run")
            .arg(&config)
            .args(["--workload", workload, "--param", param, "--policy", policy])
            .args(["--accesses", accesses, "--memory", "64M"])
            .args([
                "--devices",
                &devices.to_string(),
                "--peer-link",
                "bandwidth=50G",
            ])
            .args(["--device-memory", device_memory, "--record"])
            .arg(&trace)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        TraceReader::open(&trace).unwrap()
    };
    // On a machine that is busy with other things, events may come faster than they are written. The trace says so, and there is
    // nothing to compare.
    let reader = (0..5)
        .map(|_| run())
        .find(|reader| reader.totals().dropped.is_empty())
        .expect("events of five runs were dropped");
    assert_eq!(reader.tail(), Tail::Complete);
    let meta = reader.meta().clone();
    let live: Vec<Event> = reader.map(Result::unwrap).collect();
    let config = ReplayConfig {
        policy: meta
            .policy
            .parse::<PolicyChoice>()
            .unwrap()
            .load(Limits::default(), Arc::new(|line| eprintln!("{line}")))
            .unwrap()
            .factory,
        memory: meta.memory,
        device_memory: meta.device_memory,
        devices: meta.devices as u8,
        links: meta.link.parse().unwrap(),
        costs: Costs::default(),
        fidelity: meta.fidelity.parse().unwrap(),
        eviction_batch: meta.eviction_batch.unwrap(),
        time: Time::Trace,
        optimal: false,
        moves: true,
    };
    let replayed = replay(live.iter().copied(), &config).unwrap();
    let hint = |event: &&Event| event.kind == EventKind::Hint;
    if live.iter().any(|event| hint(&event)) {
        let rest = live.iter().filter(|event| !hint(event)).copied();
        let without = replay(rest, &config).unwrap();
        assert!(
            ways(&without.moves) != ways(&replayed.moves),
            "{workload}, {policy}: hints do nothing"
        );
    }
    let (live, replayed) = (ways(&live), ways(&replayed.moves));
    let moves: usize = live.values().map(Vec::len).sum();
    assert!(moves > 1000, "{workload}: too little happened: {moves}");
    let pages: BTreeSet<_> = live.keys().chain(replayed.keys()).collect();
    let differs = |page: &&&u32| live.get(page) != replayed.get(page);
    let different: Vec<_> = pages.iter().filter(differs).collect();
    assert!(
        different.is_empty(),
        "{workload}, {engine}, {policy}: {} of {} pages differ; the first, {}: {:?} and {:?}",
        different.len(),
        pages.len(),
        different[0],
        live.get(different[0]),
        replayed.get(different[0]),
    );
    live
}

const POLICIES: [&str; 3] = [
    "on-demand+lru+timeslice:min=0us",
    "density+lru+timeslice:min=0us",
    "sequential+clock+timeslice:min=0us",
];

/// The guest says that its table should stay in system memory, or that its accelerator should read it there.
#[test]
fn gather_with_hints() {
    for engine in ["remap", "copy"] {
        for hint in ["hint=preferred:system", "hint=accessed-by"] {
            for policy in [
                "on-demand+lru+hints+timeslice:min=0us",
                "density+lru+hints+timeslice:min=0us",
            ] {
                agrees("gather", hint, "4M", engine, policy, "faults");
            }
        }
    }
}

fn agrees_everywhere(workload: &str, param: &str, device_memory: &str) {
    for engine in ["remap", "copy"] {
        for policy in POLICIES {
            agrees(workload, param, device_memory, engine, policy, "faults");
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

/// The accelerators take turns, so that the order of their faults does not depend on which of them is faster.
#[test]
fn relay_between_accelerators() {
    for engine in ["remap", "copy"] {
        for policy in POLICIES
            .into_iter()
            .chain(["adaptive+lru+timeslice:min=0us"])
        {
            for devices in [2, 3] {
                let ways = agrees_with(
                    devices,
                    "relay",
                    "pages=300",
                    "4M",
                    engine,
                    policy,
                    "faults",
                );
                let between = ways.values().flatten();
                let between = between.filter(|way| **way == EventKind::BetweenDevices);
                assert!(between.count() > 1000, "{engine}, {policy}");
            }
        }
    }
}

/// The accelerator tells of more than its faults, and evictions are decided by that.
#[test]
fn with_bits_and_with_all_accesses() {
    for accesses in ["bits", "all"] {
        for (workload, param) in [
            ("bfs", "vertices=32K"),
            ("spmv", "rows=32K"),
            ("pingpong", "rounds=20"),
        ] {
            for eviction in ["lru", "clock", "lfu", "s3-fifo"] {
                for faults in ["on-demand", "density"] {
                    let policy = format!("{faults}+{eviction}+timeslice:min=0us");
                    agrees(workload, param, "2M", "remap", &policy, accesses);
                }
            }
        }
    }
}

/// What vCPUs read stays on the device, too.
#[test]
fn duplicates() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("duplicate.luau");
    let text = "return { on_fault = function(page, write, device) if not device then return { duplicate = true } end end }";
    fs::write(&script, text).unwrap();
    let policy = format!("{}+lru+timeslice:min=0us", script.display());
    for engine in ["remap", "copy"] {
        let ways = agrees("vecadd", "n=262144", "4M", engine, &policy, "faults");
        let times = |kind| ways.values().flatten().filter(|way| **way == kind).count();
        assert!(times(EventKind::Duplicated) > 500, "{engine}");
        assert!(times(EventKind::Collapsed) > 500, "{engine}");
    }
}
