//! A disk that is full, by the process's limit of file sizes, which needs no privileges.

use super::*;

use hmmvisor_experiments::sweep::{JOURNAL, SweepError, journal::Journal};
use std::process::Command;

const OUT: &str = "SWEEP_TEST_FOLDER";

/// Runs a test of this file in a process whose files cannot grow beyond `blocks` blocks of 512 bytes.
fn limited(test: &str, blocks: u32, out: &Path) {
    // Its output goes through a pipe: a file would be limited, too.
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" --exact {test} --ignored"
        ))
        .arg(std::env::current_exe().unwrap())
        .env(OUT, out)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
}

#[test]
#[ignore = "part of finished_runs_outlive_a_full_disk"]
fn inside_with_a_full_disk() {
    let out = PathBuf::from(std::env::var_os(OUT).unwrap());
    let error = Folder::new()
        .sweep(SWEEP)
        .unwrap()
        .start(&settings(&out), &Fake::default())
        .unwrap_err();
    let SweepError::Write { finished, .. } = &error else {
        panic!("{error}")
    };
    assert!((1..24).contains(finished), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(JOURNAL) && text.contains("File too large"),
        "{text}"
    );
    assert_eq!(
        Journal::read(&out.join(JOURNAL)).unwrap().rows.len(),
        *finished
    );
}

#[test]
#[cfg(target_os = "linux")]
fn finished_runs_outlive_a_full_disk() {
    let folder = Folder::new();
    let out = folder.path("out");
    limited("disk_full::inside_with_a_full_disk", 8, &out);
    // Room again.
    let kept = Journal::read(&out.join(JOURNAL)).unwrap().rows.len();
    let fake = Fake::default();
    let resume = Settings {
        resume: true,
        ..settings(&out)
    };
    let done = folder.sweep(SWEEP).unwrap().start(&resume, &fake).unwrap();
    assert_eq!((done.skipped, done.runs), (kept, 24 - kept));
}
