//! Disks, balloon and entropy on the command line.

use std::path::Path;
use std::process::{Command, Output};

fn hmmvisor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
        .args(["--workload", "vecadd", "--param", "n=4096"])
        .args(args)
        .output()
        .unwrap()
}

fn refusal(args: &[&str]) -> String {
    let output = hmmvisor(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{args:?}: {message}"
    );
    assert!(output.stdout.is_empty(), "{args:?}");
    message
}

fn image(folder: &Path, name: &str, bytes: usize) -> String {
    let path = folder.join(name);
    std::fs::write(&path, vec![7; bytes]).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_guest_that_does_not_know_them_is_not_disturbed() {
    let folder = tempfile::tempdir().unwrap();
    let (root, data) = (
        image(folder.path(), "root.img", 4096),
        image(folder.path(), "data.img", 512),
    );
    let root = format!("{root},ro");
    let args = [
        "--disk",
        &root,
        "--disk",
        &data,
        "--balloon",
        "1M,hints=1",
        "--rng",
    ];
    let output = hmmvisor(&args);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        std::fs::read(folder.path().join("data.img")).unwrap(),
        [7; 512]
    );
}

#[test]
fn files_that_are_no_disks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = image(folder.path(), "good.img", 4096);
    let empty = image(folder.path(), "empty.img", 0);
    let odd = image(folder.path(), "odd.img", 1000);
    let there = folder.path().to_str().unwrap();
    for (args, expected) in [
        (vec!["--disk", "/nosuch/disk"], "No such file"),
        (vec!["--disk", there], "it is a folder"),
        (vec!["--disk", "/dev/null"], "not a regular file"),
        (vec!["--disk", &empty], "it is empty"),
        (vec!["--disk", &odd], "it has 1000 bytes"),
        (
            vec!["--disk", &good, "--disk", &good],
            "another disk has it open",
        ),
        (vec!["--balloon", "257M"], "more than guest memory"),
        (vec!["--balloon", "1M,hints=0"], "must be from 1"),
        (vec!["--rng", "--devices", "16"], "must be from 1 to 16"),
    ] {
        let message = refusal(&args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    // Two readers are fine.
    let reader = format!("{good},ro");
    assert!(
        hmmvisor(&["--disk", &reader, "--disk", &reader])
            .status
            .success()
    );
}
