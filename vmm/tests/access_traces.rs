//! Access traces made without a machine against what the same workload does on one.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use hmm_backend::{Event, EventKind, PageRange};
use hmmvisor_experiments::trace::{Tail, TraceKind, TraceReader};

const HMMVISOR: &str = env!("CARGO_BIN_EXE_hmmvisor");

/// The command queue: the first pages that the guest allocates. Live, it is pinned, so its pages never fault.
const QUEUE: std::ops::Range<u32> = 0..4;

fn run(args: &[&str], output: &Path) -> Vec<Event> {
    let result = Command::new(HMMVISOR)
        .args(args)
        .arg(output)
        .output()
        .unwrap();
    assert!(result.status.success(), "{args:?}: {result:?}");
    let reader = TraceReader::open(output).unwrap();
    assert_eq!(reader.tail(), Tail::Complete);
    assert!(reader.totals().dropped.is_empty(), "{:?}", reader.totals());
    reader.map(Result::unwrap).collect()
}

/// The pages in the order of their first accesses, and whether a device was the first.
fn first_touches(events: &[Event]) -> Vec<(u32, bool)> {
    let touches = [
        EventKind::CpuFault,
        EventKind::DeviceFault,
        EventKind::Access,
    ];
    let mut seen = BTreeSet::new();
    let mut first = Vec::new();
    for event in events.iter().filter(|event| touches.contains(&event.kind)) {
        for page in PageRange::new(event.page, event.page.plus(event.pages)).pages() {
            if !QUEUE.contains(&page.0) && seen.insert(page.0) {
                first.push((page.0, event.device.is_some()));
            }
        }
    }
    first
}

#[test]
fn a_live_run_touches_the_same_pages_in_the_same_order() {
    for (workload, params) in [
        ("vecadd", &["n=24000", "rounds=2"][..]),
        ("stream", &["n=16000", "rounds=2"]),
        ("pingpong", &["pages=12", "rounds=4"]),
        ("gather", &["n=9000", "len=7000"]),
        ("chase", &["len=6000", "steps=8000"]),
        ("bfs", &["vertices=2000", "degree=4"]),
        ("matmul", &["n=24"]),
        ("spmv", &["rows=2000", "degree=4"]),
        ("churn", &["rounds=5", "pages=128"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut common = vec!["--memory", "16M", "--seed", "7"];
        for param in params {
            common.extend(["--param", param]);
        }
        let mut generated = vec!["trace", "generate", workload];
        generated.extend(&common);
        generated.push("--output");
        let generated = run(&generated, &folder.path().join("generated"));
        for engine in ["remap", "copy"] {
            let mut live = vec!["run", "--workload", workload, "--engine", engine];
            live.extend(["--policy", "on-demand", "--device-memory", "16M"]);
            live.extend(&common);
            live.push("--record");
            let live = run(&live, &folder.path().join("live"));
            let (live, generated) = (first_touches(&live), first_touches(&generated));
            assert!(!live.is_empty());
            assert!(
                live == generated,
                "{workload}, {engine}: {} live, {} generated; the first difference is number {:?}",
                live.len(),
                generated.len(),
                live.iter().zip(&generated).position(|(a, b)| a != b)
            );
        }
    }
}

#[test]
fn a_generated_trace_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t");
    run(
        &[
            "trace", "generate", "pingpong", "--param", "pages=8", "--vcpus", "2", "-o",
        ],
        &path,
    );
    let reader = TraceReader::open(&path).unwrap();
    let meta = reader.meta();
    assert_eq!(
        (meta.kind, meta.workload.as_deref()),
        (TraceKind::Access, Some("pingpong"))
    );
    assert_eq!(
        (&*meta.params["pages"], &*meta.params["rounds"]),
        ("8", "20")
    );
    assert_eq!(
        (meta.vcpus, meta.devices, meta.memory, meta.seed),
        (2, 1, 256 << 20, 1)
    );
    let threads: Vec<_> = reader
        .totals()
        .threads
        .iter()
        .map(|(a, b)| (*a, *b))
        .collect();
    assert_eq!(threads, [(1, 0), (2, 1)]);

    for (args, expected) in [
        (&["nosuch"][..], "unknown workload"),
        (&["crash"], "it crashes"),
        (&["vecadd", "--memory", "1M"], "not enough memory"),
        (&["vecadd", "--vcpus", "65"], "from 1 to 64"),
    ] {
        let output = Command::new(HMMVISOR)
            .args(["trace", "generate"])
            .args(args)
            .arg("-o")
            .arg(folder.path().join("refused"))
            .output()
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}
