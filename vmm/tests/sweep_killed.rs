//! A sweep that is killed takes its live runs with it, and can be gone on with.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

/// A run that ends, and then one that does not.
const SWEEP: &str = r#"
title = "Killed"
policies = ["on-demand"]
device_memory = ["1M"]
[[workload]]
name = "pingpong"
mode = "live"
memory = "16M"
params = { pages = 16, rounds = 4 }
[[workload]]
name = "crash"
mode = "live"
memory = "16M"
params = { kind = "hang" }
"#;

fn hmmvisor(folder: &Path, args: &[&str]) -> Command {
    // A shell that runs these tests in the background makes them ignore SIGINT, and commands inherit that.
    let mut command = Command::new("env");
    command.args(["--default-signal", env!("CARGO_BIN_EXE_hmmvisor")]);
    command.args(args).current_dir(folder);
    command
}

/// The process that `parent` has started and that runs a guest.
fn live_run(parent: u32) -> Option<i32> {
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        // Behind the name, which may hold anything: state, parent.
        let stat = read("stat")?;
        let (_, behind) = stat.rsplit_once(')')?;
        let of: u32 = behind.split_whitespace().nth(1)?.parse().ok()?;
        // Before `exec` it has the command line of the sweep.
        (of == parent && read("cmdline")?.contains("kind=hang")).then_some(pid)
    })
}

/// Waits for a process that is not this one's child to end.
fn ends(process: &OwnedFd) -> bool {
    let mut poll = libc::pollfd {
        fd: process.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: it is one structure, which lives during the call.
    let ready = unsafe { libc::poll(&mut poll, 1, 60_000) };
    assert!(ready >= 0, "{}", io::Error::last_os_error());
    ready == 1
}

fn pidfd(pid: i32) -> OwnedFd {
    // SAFETY: the call takes plain numbers and returns a descriptor that no other value owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd as i32)
    }
}

fn journal(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("s/journal.jsonl")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Kills a sweep with a signal as soon as its first run is in the journal, and the one is there that does not end. Returns
/// the journal.
fn kill_in_the_second_run(folder: &Path, mut sweep: Child, signal: i32) -> Vec<String> {
    let run = loop {
        assert!(sweep.try_wait().unwrap().is_none(), "the sweep has ended");
        match live_run(sweep.id()) {
            // The second one begins before the first one is in the journal.
            Some(run) if journal(folder).len() == 2 => break run,
            _ => thread::yield_now(),
        }
    };
    let run = pidfd(run);
    // SAFETY: the call takes plain numbers, and the sweep has not been waited for: the number is still its own.
    assert_eq!(unsafe { libc::kill(sweep.id() as i32, signal) }, 0);
    assert_eq!(sweep.wait().unwrap().signal(), Some(signal));
    let ended = ends(&run);
    if !ended {
        // SAFETY: the call takes plain numbers and null, and a descriptor that is open.
        unsafe {
            let null = std::ptr::null::<libc::siginfo_t>();
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                run.as_raw_fd(),
                libc::SIGKILL,
                null,
                0,
            );
        }
    }
    assert!(ended, "the run outlives its sweep");
    journal(folder)
}

#[test]
fn no_run_outlives_its_sweep() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGKILL] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("s.toml"), SWEEP).unwrap();
        let start = |args: &[&str]| {
            let sweep = hmmvisor(path, args).stderr(Stdio::null()).spawn();
            kill_in_the_second_run(path, sweep.unwrap(), signal)
        };
        let first = start(&["sweep", "s.toml", "--jobs", "1"]);
        // It goes on with the second run, and keeps the first.
        let again = start(&["sweep", "s.toml", "--jobs", "1", "--resume"]);
        assert_eq!(again, first);
        let report = hmmvisor(path, &["report", "s", "-o", "s.html"]);
        assert!({ report }.output().unwrap().status.success());
        let html = fs::read_to_string(path.join("s.html")).unwrap();
        assert!(html.contains("1 of 2 runs are missing"), "{html}");
    }
}
