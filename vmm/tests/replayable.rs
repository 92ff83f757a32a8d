//! Traces that cannot be replayed as the run that they are of: `replay` and `sweep` say so.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{Page, PageRange};
use hmmvisor_experiments::trace::{TraceMeta, TraceWriter};

const SWEEP: &str = "
title = \"Recorded\"
policies = [\"on-demand\"]
device_memory = [\"1M\"]
[[trace]]
name = \"t\"
files = [\"t\"]
";

fn hmmvisor(folder: &Path, args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
        .args(args.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap()
}

/// Writes a trace with one fault, of which so many more were lost, and a sweep of it.
fn record(folder: &Path, policy: &str, device_kind: &str, lost: u64) {
    let meta = TraceMeta {
        policy: policy.to_owned(),
        device_kind: device_kind.to_owned(),
        ..machine()
    };
    record_of(folder, &meta, lost);
}

/// The description of a run on a small machine.
fn machine() -> TraceMeta {
    TraceMeta {
        policy: "density".to_owned(),
        memory: 4 << 20,
        device_memory: 1 << 20,
        devices: 1,
        vcpus: 1,
        ..TraceMeta::default()
    }
}

/// The same of a run with this description.
fn record_of(folder: &Path, meta: &TraceMeta, lost: u64) {
    let mut writer = TraceWriter::create(&folder.join("t"), meta).unwrap();
    let page = PageRange::single(Page(3));
    let fault = Event::new(Duration::from_micros(1), EventKind::CpuFault, page);
    writer.write(&[fault]).unwrap();
    writer.dropped(EventKind::CpuFault, lost);
    writer.finish().unwrap();
    fs::write(folder.join("s.toml"), SWEEP).unwrap();
}

/// Runs the program and returns whether it succeeds and what it says.
fn says(folder: &Path, args: &str) -> (bool, String) {
    let output = hmmvisor(folder, args);
    let errors = String::from_utf8(output.stderr).unwrap();
    (output.status.success(), errors)
}

#[test]
fn a_sound_trace_is_replayed_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    record(folder.path(), "density+lru+timeslice", "private", 0);
    assert_eq!(says(folder.path(), "replay t"), (true, String::new()));
    let (swept, error) = says(folder.path(), "sweep s.toml");
    assert!(swept, "{error}");
}

/// What devices told, and what transfers cost, are as in the recorded run; what a trace says of them may be anything.
#[test]
fn a_trace_may_say_anything_of_its_run() {
    let folder = tempfile::tempdir().unwrap();
    let meta = TraceMeta {
        fidelity: "bits".to_owned(),
        link: "latency=7us,bandwidth=3G".to_owned(),
        eviction_batch: Some(1),
        ..machine()
    };
    record_of(folder.path(), &meta, 0);
    let text = String::from_utf8(hmmvisor(folder.path(), "replay t").stdout).unwrap();
    assert!(text.contains("accesses told   bits"), "{text}");
    assert!(text.contains("latency=7us,bandwidth=3G"), "{text}");
    let of_fidelity = |fidelity: &str| TraceMeta {
        fidelity: fidelity.to_owned(),
        ..machine()
    };
    let of_link = |link: &str| TraceMeta {
        link: link.to_owned(),
        ..machine()
    };
    let long = "x".repeat(100_000);
    for (meta, option) in [
        (of_fidelity("some"), "--accesses all"),
        (of_fidelity(&long), "--accesses all"),
        (of_link("bandwidth=0"), "--link latency=1us"),
        (of_link(&long), "--link latency=1us"),
    ] {
        record_of(folder.path(), &meta, 0);
        let (replayed, error) = says(folder.path(), "replay t");
        let name = option.split(' ').next().unwrap();
        assert!(
            !replayed && error.contains(&format!("give it with {name}")),
            "{error}"
        );
        assert!(error.len() < 1000, "{} bytes", error.len());
        assert!(
            says(folder.path(), &format!("replay t {option}")).0,
            "{option}"
        );
    }
}

#[test]
fn lost_events_are_told_by_replays_and_refused_by_sweeps() {
    let folder = tempfile::tempdir().unwrap();
    record(folder.path(), "density", "private", 5);
    let (replayed, warning) = says(folder.path(), "replay t");
    let lost = "5 events were lost when it was recorded (cpu-fault 5)";
    assert!(replayed && warning.contains(lost), "{warning}");
    let (swept, error) = says(folder.path(), "sweep s.toml");
    assert!(!swept && error.contains(lost), "{error}");
}

#[test]
fn coherent_device_memory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    record(folder.path(), "density", "coherent", 0);
    for command in ["replay t", "sweep s.toml"] {
        let (done, error) = says(folder.path(), command);
        let expected = "t: it was recorded with coherent device memory";
        assert!(!done && error.contains(expected), "{command}: {error}");
    }
}

#[test]
fn policies_that_cannot_be_taken_from_the_trace_are_to_be_given() {
    let folder = tempfile::tempdir().unwrap();
    for (policy, why) in [
        (
            "density+lru+timeslice; memory 0 MiB to 4 MiB: on-demand+lru+timeslice",
            "policies for parts of memory",
        ),
        ("chaotic", "it was recorded with policy `chaotic`"),
    ] {
        record(folder.path(), policy, "private", 0);
        let (replayed, error) = says(folder.path(), "replay t");
        assert!(!replayed && error.contains(why), "{error}");
        assert!(error.contains("give a policy with --policy"), "{error}");
        let (replayed, error) = says(folder.path(), "replay t --policy density");
        assert!(replayed, "{error}");
    }
}
