//! The command refuses bad input with a message and an exit code, and leaves nothing behind.

use std::path::Path;
use std::process::{Command, Output};

fn hmmvisor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
        .args(args)
        .output()
        .unwrap()
}

/// Runs it with arguments that it must refuse, and returns its message.
fn refusal(args: &[&str]) -> String {
    let output = hmmvisor(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{args:?}: {} {message}",
        output.status
    );
    assert!(!message.contains("panicked"), "{args:?}: {message}");
    assert!(message.contains("error: "), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?}: {:?}", output.stdout);
    message
}

#[test]
fn bad_options_are_refused() {
    for (args, expected) in [
        (
            &["--workload", "nosuch"][..],
            "unknown workload `nosuch`; there are vecadd",
        ),
        (&["--param", "n=-1"], "n=-1"),
        (&["--param", "nosuch=1"], "has no parameter `nosuch`"),
        (&["--param", "n"], "write it as NAME=VALUE"),
        (&["--vcpus", "0"], "must be from 1 to 64"),
        (&["--vcpus", "-1"], "-1"),
        (&["--devices", "17"], "must be from 1 to 16"),
        (&["--memory", "12X"], "is not a size"),
        (&["--memory", "-64M"], "is not a size"),
        (&["--memory", "3M"], "multiple of 2 MiB"),
        (&["--memory", "0"], "multiple of 2 MiB"),
        (&["--memory", "127G"], "this host's memory"),
        (&["--device-memory", "257M"], "more than guest memory"),
        (&["--device-memory", "1000"], "multiple of 4 KiB"),
        (
            &["--json", "/nosuch/report.json"],
            "its folder does not exist",
        ),
        (&["--guest", "/"], "it is a folder"),
        (&["--guest", "/dev/null"], "not a regular file"),
        (&["--guest", "/nosuch"], "No such file"),
        (
            &["nosuch"],
            "if `nosuch` was meant as a command: there are run, workloads,",
        ),
        (&["nosuch.toml"], "reading configuration file nosuch.toml"),
        (&["/dev/zero"], "not a regular file"),
        (&["--nosuch"], "--nosuch"),
    ] {
        let message = refusal(args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
}

#[test]
fn broken_configuration_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    for (text, expected) in [
        (&b"seed = "[..], "at line 1"),
        (b"[machine]\nvcpu = 1", "at line 2, column 1"),
        (b"\xff\xfe", "not UTF-8"),
    ] {
        std::fs::write(&path, text).unwrap();
        let message = refusal(&["run", path.to_str().unwrap()]);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_refused_run_leaves_no_report() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    refusal(&["--json", report.to_str().unwrap(), "--vcpus", "0"]);
    assert!(!Path::new(&report).exists());
}

#[test]
fn workloads_are_listed_with_their_parameters() {
    let output = hmmvisor(&["workloads"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("vecadd "), "{text}");
    assert!(text.contains("  n=1048576 "), "{text}");
}
