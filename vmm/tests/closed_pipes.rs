//! `hmmvisor … | head`: the reader of the output may stop reading, and that is no error.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};

/// A pipe whose reader has closed its end.
fn closed() -> Stdio {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn hmmvisor(folder: &Path, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hmmvisor"));
    command.args(args.split_whitespace()).current_dir(folder);
    command
}

const SWEEP: &str = r#"
title = "A sweep"
policies = ["on-demand"]
device_memory = ["1M"]
[[workload]]
name = "pingpong"
mode = "model"
memory = "16M"
params = { pages = 16, rounds = 4 }
"#;

#[test]
fn nobody_need_read_what_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::write(path.join("s.toml"), SWEEP).unwrap();
    for args in [
        "run --workload pingpong --param rounds=2 --record run.trace --json -",
        "trace generate pingpong --param rounds=2 -o accesses.trace",
        "trace info run.trace",
        "trace info run.trace --json -",
        "trace export run.trace --format csv -o run.csv",
        "trace export run.trace --format csv -o /dev/stdout",
        "trace export run.trace --format perfetto -o /dev/stdout",
        "replay run.trace",
        "replay accesses.trace --policy density --device-memory 1M --json -",
        "sweep s.toml",
        "sweep s.toml -o part --shard 1/1",
        "sweep merge part -o whole",
        "report run.trace -o run.html",
        "report s -o s.html",
        "workloads",
        "policies",
        "check",
        "--help",
        "--version",
    ] {
        let mut child = hmmvisor(path, args)
            .stdout(closed())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut message = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut message).unwrap();
        assert!(child.wait().unwrap().success(), "{args}: {message}");
        assert!(!message.contains("panicked"), "{args}: {message}");
        assert!(!message.contains("error"), "{args}: {message}");
    }
}

#[test]
fn nobody_need_read_errors_and_warnings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let trace = path.join("t.trace");
    let generate = "trace generate pingpong --param rounds=2 -o t.trace";
    assert!(hmmvisor(path, generate).output().unwrap().status.success());
    // Without its end: read, with a warning.
    let length = std::fs::metadata(&trace).unwrap().len();
    let file = File::options().write(true).open(&trace).unwrap();
    file.set_len(length - 1).unwrap();
    for (args, code) in [
        ("replay t.trace --policy density --device-memory 1M", 0),
        // It needs a policy and a size of device memory.
        ("replay t.trace", 2),
        ("sweep nosuch.toml", 1),
        ("run nosuch.toml", 1),
        ("--nosuch", 2),
    ] {
        let mut command = hmmvisor(path, args);
        let status = command.stdout(closed()).stderr(closed()).status().unwrap();
        assert_eq!(status.code(), Some(code), "{args}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    for args in ["workloads", "policies"] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = hmmvisor(Path::new("."), args)
            .stdout(full)
            .output()
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("writing to standard output"), "{message}");
    }
}
