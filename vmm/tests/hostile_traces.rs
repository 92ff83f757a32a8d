//! Small trace files whose numbers are absurd: no command's time or memory is set by them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hmm_backend::{Access, DeviceId, Event, EventKind, Page, PageRange};
use hmmvisor_experiments::trace::{TraceKind, TraceMeta, TraceWriter};

const HMMVISOR: &str = env!("CARGO_BIN_EXE_hmmvisor");

/// A trace of a thousand events of one kind with as many pages as there can be.
fn write(path: &Path, kind: EventKind, meta: &TraceMeta) {
    let pages = match kind {
        EventKind::DeviceFault | EventKind::Freed | EventKind::Access => 1 << 20,
        EventKind::Pinned | EventKind::Unpinned | EventKind::Hint => 1 << 20,
        _ => 512,
    };
    let event = |number: u64| Event {
        device: number.is_multiple_of(2).then_some(DeviceId(0)),
        access: Some(Access::Write),
        latency: Duration::from_nanos(i64::MAX as u64),
        pages,
        repeats: u32::MAX,
        ..Event::new(
            Duration::from_nanos(number << 52),
            kind,
            PageRange::single(Page((number * 512) as u32)),
        )
    };
    let mut writer = TraceWriter::create(path, meta).unwrap();
    writer.dropped(kind, u64::MAX - 1);
    writer
        .write(&(0..1000).map(event).collect::<Vec<_>>())
        .unwrap();
    writer.finish().unwrap();
}

/// Whether a command ends by itself, whatever it says; panics are never right.
fn ends(command: &mut Command) {
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        matches!(output.status.code(), Some(0 | 1)),
        "{command:?}: {}: {message}",
        output.status
    );
}

fn every_command_ends(kind: TraceKind, memory: u64) {
    let folder = tempfile::tempdir().unwrap();
    let (trace, out) = (folder.path().join("t"), folder.path().join("out"));
    let meta = TraceMeta {
        kind,
        memory,
        base: Some(u64::MAX - 5),
        vcpus: u32::MAX,
        devices: u32::MAX,
        device_memory: 1 << 20,
        policy: "density+lru".to_owned(),
        ..TraceMeta::default()
    };
    for event in EventKind::ALL {
        write(&trace, event, &meta);
        let command = |args: &[&str]| {
            // Walking the pages one by one would take hours.
            let mut command = Command::new("timeout");
            command.args(["--signal=KILL", "100", HMMVISOR]);
            command.args(args).arg(&trace);
            command
        };
        ends(&mut command(&["trace", "info"]));
        if kind == TraceKind::Access {
            let policy = ["replay", "--policy", "hints+access-counter"];
            ends(&mut command(&policy));
        }
        ends(command(&["report"]).arg("-o").arg(&out));
        for format in ["csv", "parquet", "perfetto"] {
            ends(
                command(&["trace", "export", "--format", format])
                    .arg("-o")
                    .arg(&out),
            );
        }
    }
}

#[test]
fn of_a_live_run_with_much_memory() {
    every_command_ends(TraceKind::Live, 1 << 40);
}

#[test]
fn of_accesses_with_more_memory_than_there_is() {
    every_command_ends(TraceKind::Access, 1 << 60);
}
