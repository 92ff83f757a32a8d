//! `--record`: the trace says what the summary says, and survives whatever ends the run or the disk.

#[path = "common/signals.rs"]
mod signals;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use hmm_backend::{Event, EventKind};
use hmmvisor_experiments::trace::{Tail, TraceKind, TraceReader};
use serde_json::Value;

const HMMVISOR: &str = env!("CARGO_BIN_EXE_hmmvisor");

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn events(reader: TraceReader) -> Vec<Event> {
    reader.map(Result::unwrap).collect()
}

#[test]
fn a_trace_says_what_the_report_says() {
    for engine in ["remap", "copy"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.hmmtrace");
        let output = Command::new(HMMVISOR)
            .args([
                "--workload",
                "pingpong",
                "--param",
                "rounds=5",
                "--seed",
                "3",
            ])
            .args([
                "--vcpus", "2", "--engine", engine, "--json", "-", "--record",
            ])
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let report = report(&output);
        let reader = TraceReader::open(&path).unwrap();
        assert_eq!(reader.tail(), Tail::Complete);
        let (meta, totals) = (reader.meta().clone(), reader.totals().clone());
        assert_eq!(meta.kind, TraceKind::Live);
        assert_eq!(meta.workload.as_deref(), Some("pingpong"));
        // Given ones and those with their defaults.
        assert_eq!(meta.params["rounds"], "5");
        assert_eq!(meta.params["pages"], "64");
        assert_eq!((meta.seed, meta.vcpus, meta.devices), (3, 2, 1));
        assert_eq!((meta.memory, meta.device_memory), (256 << 20, 16 << 20));
        assert_eq!((meta.engine.as_str(), &meta.policy), (engine, &meta.policy));
        assert_eq!(report["policy"], meta.policy.as_str());
        assert!(totals.dropped.is_empty(), "{totals:?}");
        let vcpus: Vec<_> = totals.threads.values().copied().collect();
        assert_eq!(totals.threads.len(), 2, "{totals:?}");
        assert!(vcpus.contains(&0) && vcpus.contains(&1));

        let events = events(reader);
        assert_eq!(report["recording"]["events"], events.len() as u64);
        let of = |kind| events.iter().filter(move |event| event.kind == kind);
        let pages = |kind| of(kind).map(|event| u64::from(event.pages)).sum::<u64>();
        assert_eq!(report["pages_to_device"], pages(EventKind::ToDevice));
        assert_eq!(report["pages_to_system"], pages(EventKind::ToSystem));
        assert_eq!(report["device_faults"], of(EventKind::DeviceFault).count());
        assert_eq!(report["cpu_faults"], of(EventKind::CpuFault).count());
        // Only vCPUs fault: every thread is known.
        let faulted: std::collections::BTreeSet<u32> = of(EventKind::CpuFault)
            .map(|event| totals.threads[&event.thread])
            .collect();
        assert!(!faulted.is_empty());
    }
}

/// A process that does not outlive a test that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a trace that is being written has events.
fn wait_for_events(path: &Path) {
    let begin = Instant::now();
    while !TraceReader::open(path).is_ok_and(|reader| reader.totals().events > 0) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no events");
        std::thread::yield_now();
    }
}

/// A run that will not end by itself, with events in its trace already.
fn endless(path: &Path) -> Killed {
    let args = ["--workload", "pingpong", "--param", "rounds=1000000"];
    let mut command = Command::new(HMMVISOR);
    command.args(args).arg("--record").arg(path);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    signals::heed_signals(&mut command);
    let child = Killed(command.spawn().unwrap());
    wait_for_events(path);
    child
}

#[test]
fn a_killed_run_leaves_its_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.hmmtrace");
    let mut child = endless(&path);
    // SIGKILL.
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let reader = TraceReader::open(&path).unwrap();
    assert!(
        matches!(reader.tail(), Tail::Unfinished | Tail::Truncated { .. }),
        "{:?}",
        reader.tail()
    );
    assert_eq!(reader.meta().workload.as_deref(), Some("pingpong"));
    let totals = reader.totals().clone();
    assert_eq!(totals.threads.values().copied().collect::<Vec<_>>(), [0]);
    let events = events(reader);
    assert_eq!(events.len() as u64, totals.events);
    assert!(events.iter().any(|event| event.kind == EventKind::CpuFault));
}

#[test]
fn an_interrupted_run_closes_its_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.hmmtrace");
    let mut child = endless(&path);
    // SAFETY: the child has not been waited for, so the id is its.
    unsafe { libc::kill(child.0.id() as i32, libc::SIGINT) };
    assert_eq!(child.0.wait().unwrap().code(), Some(130));
    let reader = TraceReader::open(&path).unwrap();
    assert_eq!(reader.tail(), Tail::Complete);
}

#[test]
fn a_full_disk_ends_the_trace_but_not_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    // A real file system that is full soon, in a mount namespace of its own; the trace is copied out of it.
    let script = format!(
        "mount -t tmpfs -o size=16k full {folder} && cd {folder} && \
         \"$0\" --workload pingpong --param pages=256 --param rounds=60 --policy on-demand+timeslice:min=0us \
           --json - --record t; code=$?; cp t /proc/self/fd/9/copy; exit $code"
    );
    let out = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["-m", "bash", "-c"])
        .arg(format!("exec 9<{}; {script}", out.path().display()))
        .arg(HMMVISOR)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("writing trace t: No space left on device")
            && errors.contains("the run went on"),
        "{errors}"
    );
    let report = report(&output);
    assert_eq!(report["verified"], true, "{errors}");
    let recording = &report["recording"];
    let lost: u64 = recording["dropped"]
        .as_object()
        .unwrap()
        .values()
        .map(|n| n.as_u64().unwrap())
        .sum();
    assert!(lost > 0, "{recording}");

    // Everything that the report says was written is there.
    let reader = TraceReader::open(&out.path().join("copy")).unwrap();
    // And no half of a block behind it.
    assert!(
        matches!(reader.tail(), Tail::Unfinished | Tail::Complete),
        "{:?}",
        reader.tail()
    );
    let events = events(reader);
    assert!(!events.is_empty());
    assert_eq!(recording["events"], events.len() as u64);
}
