//! The guest in C of `guest-images/c`, built with the command that the documents give.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hmm_backend::engine::{Engine, EngineChoice};
use hmmvisor::size::Size;
use hmmvisor::{Config, End, Options};
use hmmvisor_testkit::Output;
use hmmvisor_testkit::machine::both_engines;

/// The folder of the header and the guest.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-images/c");

/// The compiler's options in the command that the header gives.
fn options(header: &str) -> Vec<String> {
    let commands = header
        .lines()
        .filter_map(|line| line.strip_prefix(" *\tcc "));
    let [command] = commands.collect::<Vec<_>>()[..] else {
        panic!("the header gives one command");
    };
    let document = include_str!("../../docs/guest-abi.md");
    assert!(
        document.contains(&format!("    cc {command}\n")),
        "docs/guest-abi.md gives the same command: cc {command}"
    );
    let options = command.strip_suffix(" guest.c -o guest").unwrap();
    options.split(' ').map(str::to_owned).collect()
}

/// Builds the guest in this folder.
fn build(folder: &Path) -> PathBuf {
    let header = fs::read_to_string(Path::new(SOURCES).join("hmmvisor_guest.h")).unwrap();
    let guest = folder.join("guest");
    let output = Command::new(std::env::var_os("CC").unwrap_or("cc".into()))
        .args(["-Wall", "-Wextra", "-Werror"])
        .args(options(&header))
        .arg(Path::new(SOURCES).join("sum.c"))
        .arg("-o")
        .arg(&guest)
        .output()
        .expect("the C compiler `cc`, which the workspace's dependencies need, too");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    guest
}

/// Runs the guest with this much managed memory. Returns how it ended, and what it printed.
fn run(guest: &Path, memory: u64, engine: Engine) -> (End, String) {
    let mut config = Config {
        guest: Some(guest.to_owned()),
        ..Config::default()
    };
    config.machine.memory = Size(memory);
    config.machine.vcpus = 2;
    config.devices.memory = Size(64 << 10);
    config.engine.kind = EngineChoice::Only(engine);
    let output = Output::default();
    let options = Options {
        console: Box::new(output.clone()),
        ..Options::default()
    };
    let end = hmmvisor::run(&config, options).unwrap().end.unwrap();
    (end, output.text())
}

#[test]
fn the_guest_in_c_adds_up_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let guest = build(folder.path());
    both_engines("a guest in C", |engine| {
        let (end, text) = run(&guest, 16 << 20, engine);
        assert_eq!((end, &*text), (End::Exit(0), "sum: right\n"));
        let (end, text) = run(&guest, 8 << 20, engine);
        assert_eq!(
            (end, text.contains("9 MiB of memory")),
            (End::Exit(3), true)
        );
    });
}

#[test]
fn the_document_shows_the_code_of_the_guest() {
    let document = include_str!("../../docs/guest-abi.md");
    let guest = fs::read_to_string(Path::new(SOURCES).join("sum.c")).unwrap();
    let shown: Vec<&str> = document
        .split("```c\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert_eq!(shown.len(), 2);
    for code in shown {
        assert!(guest.contains(code), "only in the document:\n{code}");
    }
}
