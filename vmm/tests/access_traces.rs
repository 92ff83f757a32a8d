//! Access traces made without a machine against what the same workload does on one.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::PageRange;
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

/// The pages in the order of their first accesses, and whether a device was the first. A live trace has faults in the order in which
/// they were recorded; a vCPU runs again, and has its accelerator fault, a moment before its own fault is.
fn first_touches(events: &[Event]) -> Vec<(u32, bool)> {
    let touches = [
        EventKind::CpuFault,
        EventKind::DeviceFault,
        EventKind::Access,
    ];
    let mut seen = BTreeSet::new();
    let mut first = Vec::new();
    let mut events: Vec<_> = events
        .iter()
        .filter(|event| touches.contains(&event.kind))
        .collect();
    events.sort_by_key(|event| event.time.saturating_sub(event.latency));
    for event in events {
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
        ("stencil", &["n=90", "steps=3"]),
        ("join", &["n=3000", "probes=7000"]),
        ("sort", &["n=6000", "digits=3"]),
        ("zipf", &["len=9000", "n=3000", "rounds=2"]),
        ("tree", &["nodes=900", "walks=300"]),
        ("phases", &["n=9000", "phases=4", "passes=2"]),
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

    for (args, code, expected) in [
        (&["nosuch"][..], 2, "unknown workload"),
        (&["crash"], 2, "it crashes"),
        (&["vecadd", "--memory", "1M"], 1, "not enough memory"),
        (&["vecadd", "--vcpus", "65"], 2, "from 1 to 64"),
    ] {
        let output = Command::new(HMMVISOR)
            .args(["trace", "generate"])
            .args(args)
            .arg("-o")
            .arg(folder.path().join("refused"))
            .output()
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

/// What a replay as JSON says of the policy's script.
#[test]
fn a_replay_says_how_its_script_did() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let generate =
        "trace generate pingpong --param pages=64 --param rounds=4 --memory 16M --output";
    run(&generate.split(' ').collect::<Vec<_>>(), &trace);
    let output = |policy: &str, json: &[&str]| {
        Command::new(HMMVISOR)
            .args(["replay", "--device-memory", "1M", "--policy", policy])
            .args(json)
            .arg(&trace)
            .output()
            .unwrap()
    };
    let replay = |policy: &str| -> (serde_json::Value, String, Option<i32>) {
        let done = output(policy, &["--json", "-"]);
        let json = serde_json::from_slice(&done.stdout).unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        (json, said, done.status.code())
    };
    let path = folder.path().join("policy.luau");
    let path = path.to_str().unwrap();
    let script = |text: &str| {
        std::fs::write(path, format!("return {{ on_fault = {text} }}")).unwrap();
        replay(path)
    };

    let (json, said, code) = script("function(page) return page + 1, 8 end");
    assert_eq!(code, Some(0), "{said}");
    assert!(json["scripts"]["decisions"].as_u64() > Some(0), "{json}");
    assert_eq!(json["scripts"]["failures"], 0, "{json}");
    assert_eq!(json["advice_cut"], 0, "{json}");
    // What there is for people goes to standard error then; nothing went wrong.
    assert!(
        said.starts_with("trace  ") && !said.contains("hmmvisor: "),
        "{said}"
    );

    // More pages than a wish may have.
    let (json, ..) = script("function(page) return page, 1e9 end");
    assert!(json["advice_cut"].as_u64() > Some(0), "{json}");
    assert_eq!(json["scripts"]["failures"], 0, "{json}");

    // Its failures are few: the figures are the script's.
    let (json, said, code) = script(
        "function(page) state.n = (state.n or 0) + 1 return if state.n == 2 then 'x' else page end",
    );
    assert_eq!(
        (code, &json["scripts"]["failures"]),
        (Some(0), &1.into()),
        "{said}"
    );

    let (json, said, code) = script("function() error('broken') end");
    assert_eq!(code, Some(1), "{said}");
    assert!(json["scripts"]["failures"].as_u64() >= Some(16), "{json}");
    assert_eq!(json["scripts"]["decisions"], 0, "{json}");
    assert!(
        json["scripts"]["instances_off"].as_u64() > Some(0),
        "{json}"
    );
    assert!(
        said.contains("error: the policy script failed in ")
            && said.contains(" and was given up; density decided in its place"),
        "{said}"
    );
    // For people, the figures are marked as not the script's.
    let text = String::from_utf8(output(path, &[]).stdout).unwrap();
    assert!(
        text.contains("policy.luau (SCRIPT FAILED: density decided in its place)"),
        "{text}"
    );

    let (json, ..) = replay("density");
    assert_eq!(
        (&json["scripts"], &json["advice_cut"]),
        (&serde_json::Value::Null, &0.into())
    );
}
