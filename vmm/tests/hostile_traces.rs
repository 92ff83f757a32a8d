//! Small files whose numbers are absurd: no command's time or memory is set by them. What is refused is said shortly, and leaves
//! nothing behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{Access, DeviceId, Page, PageRange};
use hmmvisor_experiments::trace::{TraceKind, TraceMeta, TraceReader, TraceWriter};

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
        // Where device memory is smaller than what one event names, unoptimized code takes minutes.
        let policy = ["replay", "--policy", "hints+access-counter"];
        ends(command(&policy).args(["--device-memory", "2G"]));
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

/// What a shell's command line says on standard error in a folder, with `hmmvisor` as the program. It fails, and soon.
fn refusal(folder: &Path, line: &str) -> String {
    let begun = Instant::now();
    let output = Command::new("timeout")
        .args(["--signal=KILL", "100", "bash", "-c"])
        .arg(format!("hmmvisor() {{ \"$HMMVISOR\" \"$@\"; }}; {line}"))
        .env("HMMVISOR", HMMVISOR)
        .current_dir(folder)
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{line}: {message}");
    assert!(message.contains("error: "), "{line}: {message}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{line}");
    message
}

/// What compresses to next to nothing names no more pages than a small file may.
#[test]
fn a_small_file_cannot_name_many_pages() {
    let folder = tempfile::tempdir().unwrap();
    let meta = TraceMeta {
        kind: TraceKind::Access,
        memory: 1 << 30,
        devices: 1,
        ..TraceMeta::default()
    };
    let trace = folder.path().join("t");
    let mut writer = TraceWriter::create(&trace, &meta).unwrap();
    let event = |number: u64| Event {
        device: number.is_multiple_of(2).then_some(DeviceId(0)),
        access: Some(Access::Read),
        pages: 4096,
        ..Event::new(
            Duration::from_nanos(number * 4096),
            EventKind::Access,
            PageRange::single(Page(0)),
        )
    };
    writer
        .write(&(0..50_000).map(event).collect::<Vec<_>>())
        .unwrap();
    writer.finish().unwrap();
    let message = refusal(
        folder.path(),
        "hmmvisor replay t --policy density --device-memory 64M --no-optimal",
    );
    assert!(message.contains("too many for a file of "), "{message}");
    // One copy of 64 MiB is nothing unusual.
    let mut writer = TraceWriter::create(&trace, &meta).unwrap();
    let copy = Event {
        pages: 16_384,
        ..event(0)
    };
    writer.write(&[copy]).unwrap();
    writer.finish().unwrap();
    let mut replay = Command::new(HMMVISOR);
    replay.args(["replay", "--policy", "density", "--device-memory", "128M"]);
    let replayed = replay.arg(&trace).output().unwrap();
    assert!(replayed.status.success(), "{replayed:?}");
}

#[test]
fn a_report_does_not_replace_what_a_sweep_keeps() {
    let folder = tempfile::tempdir().unwrap();
    let sweep = folder.path().join("sweep");
    fs::create_dir(&sweep).unwrap();
    for name in ["journal.jsonl", "results.csv", "results.parquet"] {
        fs::write(sweep.join(name), name).unwrap();
    }
    symlink("sweep/results.csv", folder.path().join("link")).unwrap();
    for (sweep_is, output, what) in [
        ("sweep", "sweep/journal.jsonl", "the sweep's journal"),
        ("sweep", "sweep/results.csv", "the sweep's table"),
        (
            "sweep",
            "sweep/../sweep/results.parquet",
            "the sweep's table",
        ),
        ("sweep", "link", "the sweep's table"),
        (
            "sweep/journal.jsonl",
            "sweep/results.csv",
            "the sweep's table",
        ),
    ] {
        let message = refusal(
            folder.path(),
            &format!("hmmvisor report {sweep_is} -o {output}"),
        );
        assert!(message.contains(&format!("that is {what}")), "{message}");
    }
    // A journal in the current folder.
    let message = refusal(&sweep, "hmmvisor report journal.jsonl -o results.csv");
    assert!(message.contains("that is the sweep's table"), "{message}");
    for name in ["journal.jsonl", "results.csv", "results.parquet"] {
        assert_eq!(fs::read_to_string(sweep.join(name)).unwrap(), name);
    }
}

#[test]
fn what_is_no_journal_is_refused_at_once_and_in_few_words() {
    let folder = tempfile::tempdir().unwrap();
    let refused = || {
        refusal(
            folder.path(),
            "ulimit -v 2000000; hmmvisor report . -o x.html",
        )
    };
    let journal = folder.path().join("journal.jsonl");
    symlink("/dev/zero", &journal).unwrap();
    let message = refused();
    assert!(message.contains("it is not a regular file"), "{message}");
    fs::remove_file(&journal).unwrap();
    let made = Command::new("mkfifo").arg(&journal).status().unwrap();
    assert!(made.success());
    assert!(refused().contains("it is not a regular file"));
    fs::remove_file(&journal).unwrap();
    // A line without an end.
    fs::File::create(&journal)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    assert!(refused().contains("line 1: longer than 16777216 bytes"));
    let long = "A".repeat(100_000);
    let header = r#"{"format":1,"sweep":"s","title":"","question":"","version":"","runs":1,"shard":{"number":1,"of":1}}"#;
    for text in [
        format!("{{\"format\":\"{long}\"}}\n"),
        format!("{{\"format\":1,\"{long}\":1}}\n"),
        format!("{header}\n{{\"run\":\"{long}\"}}\n"),
    ] {
        fs::write(&journal, text).unwrap();
        let message = refused();
        assert!(message.len() < 1000, "{message}");
        assert!(message.contains("AAA…"), "{message}");
    }
}

/// Some file systems have no files without names: the name that a file has meanwhile is not what the user asked for.
#[test]
fn the_limit_on_open_files_is_named_for_the_users_own_path() {
    let folder = tempfile::tempdir().unwrap();
    let meta = TraceMeta::default();
    let writer = TraceWriter::create(&folder.path().join("t"), &meta).unwrap();
    writer.finish().unwrap();
    let message = refusal(
        folder.path(),
        "ulimit -n 4; hmmvisor trace export t --format csv -o x",
    );
    assert!(message.contains("writing the events to x: "), "{message}");
    assert!(message.contains("raise `ulimit -n`"), "{message}");
    assert!(!message.contains(".part"), "{message}");
}

#[test]
fn what_cannot_even_begin_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("bad"), "page\nx\n").unwrap();
    fs::write(folder.path().join("none"), "page\n").unwrap();
    fs::write(folder.path().join("good"), "page\n1\n").unwrap();
    for input in [".", "bad", "none", "<(exit)"] {
        refusal(
            folder.path(),
            &format!("hmmvisor trace import --format csv {input} -o t"),
        );
        assert!(!folder.path().join("t").exists(), "{input}");
    }
    // Its messages go through a pipe.
    let import = "(ulimit -f 0; hmmvisor trace import --format csv good -o t)";
    let message = refusal(folder.path(), import);
    assert!(message.contains("raise `ulimit -f`"), "{message}");
    assert!(!folder.path().join("t").exists());
    // An empty file that was there is empty again.
    fs::write(folder.path().join("t"), "").unwrap();
    refusal(folder.path(), "hmmvisor trace import --format csv bad -o t");
    assert_eq!(fs::metadata(folder.path().join("t")).unwrap().len(), 0);
    // What came before something wrong stays.
    fs::write(folder.path().join("late"), "page\n1\nx\n").unwrap();
    refusal(
        folder.path(),
        "hmmvisor trace import --format csv late -o t",
    );
    assert_eq!(
        TraceReader::open(&folder.path().join("t")).unwrap().count(),
        1
    );
}
