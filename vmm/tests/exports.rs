//! Exported traces, read by the programs that people use: DuckDB, Polars, and Perfetto's own schema.

mod python;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use python::{output, python};

const HMMVISOR: &str = env!("CARGO_BIN_EXE_hmmvisor");

#[test]
fn exported_traces_say_what_the_trace_says() {
    let python = python();
    for (engine, policy, workload) in [
        ("remap", "density+lru", "pingpong"),
        ("copy", "on-demand+lru", "bfs"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let trace = path("t.hmmtrace");
        output(
            Command::new(HMMVISOR)
                .args([
                    "--engine",
                    engine,
                    "--policy",
                    policy,
                    "--workload",
                    workload,
                ])
                .args(match workload {
                    "bfs" => ["--param", "vertices=4K"],
                    _ => ["--param", "rounds=6"],
                })
                .args([
                    "--vcpus",
                    "2",
                    "--devices",
                    "2",
                    "--device-memory",
                    "256K",
                    "--record",
                ])
                .arg(&trace),
        );
        let info = output(
            Command::new(HMMVISOR)
                .args(["trace", "info", "--json", "-"])
                .arg(&trace),
        );
        fs::write(path("info.json"), info).unwrap();
        for format in ["csv", "parquet", "perfetto"] {
            output(
                Command::new(HMMVISOR)
                    .args(["trace", "export", "--format", format, "-o"])
                    .args([&path(&format!("t.{format}")), &trace]),
            );
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tools/check_exports.py");
        output(
            Command::new(&python)
                .arg(script)
                .args(["info.json", "t.csv", "t.parquet", "t.perfetto"].map(path)),
        );
    }
}

#[test]
fn bad_traces_and_outputs_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let refusal = |args: &[&str], files: &[PathBuf]| {
        let output = Command::new(HMMVISOR)
            .arg("trace")
            .args(args)
            .args(files)
            .output()
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && message.contains("error: "),
            "{message}"
        );
        assert!(!message.contains("panicked"), "{message}");
        message
    };
    assert!(refusal(&["info"], &[path("nosuch")]).contains("No such file"));
    assert!(refusal(&["info", HMMVISOR], &[]).contains("is not a trace of Hmmvisor"));
    let csv = ["export", "--format", "csv", "-o"];
    assert!(refusal(&csv, &[path("x"), HMMVISOR.into()]).contains("is not a trace"));
    assert!(!path("x").exists());

    let trace = path("t.hmmtrace");
    output(
        Command::new(HMMVISOR)
            .args(["--workload", "pingpong", "--param", "rounds=2", "--record"])
            .arg(&trace),
    );
    assert!(refusal(&csv, &[trace.clone(), trace.clone()]).contains("that is the trace itself"));
    assert!(refusal(&csv, &[path("no/such"), trace.clone()]).contains("no/such"));
    assert!(refusal(&csv, &["/dev/full".into(), trace.clone()]).contains("No space left"));
    let perfetto = ["export", "--format", "perfetto", "-o"];
    assert!(refusal(&perfetto, &["/dev/full".into(), trace.clone()]).contains("No space left"));
    let json = ["export", "--format", "json", "-o"];
    assert!(refusal(&json, &[path("x"), trace.clone()]).contains("csv, parquet and perfetto"));

    // Corrupt in the middle: named, and what comes before is exported.
    let mut bytes = fs::read(&trace).unwrap();
    let end = bytes
        .windows(4)
        .rposition(|bytes| bytes == b"HEND")
        .unwrap();
    bytes[end] = b'X';
    fs::write(&trace, bytes).unwrap();
    let message = refusal(&csv, &[path("part.csv"), trace.clone()]);
    assert!(
        message.contains(&format!("is corrupt at offset {end}")),
        "{message}"
    );
    let rows = fs::read_to_string(path("part.csv")).unwrap();
    assert!(rows.lines().count() > 10, "{rows}");
    assert!(refusal(&["info"], &[trace]).contains("is corrupt at offset"));
}
