//! Every limit of the host that ends a command is named, whichever request it refuses; none ends it by a signal, a panic or not
//! at all.

use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Longer than any of these commands takes, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// A run that is over at once where nothing is refused.
const RUN: &[&str] = &[
    "run",
    "--workload",
    "pingpong",
    "--param",
    "rounds=2",
    "--devices",
    "2",
];

fn hmmvisor(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hmmvisor"));
    command.args(args);
    command
}

/// What becomes of it. It must not take for ever.
fn outcome(mut command: Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id() as libc::pid_t;
    let (report, done) = mpsc::channel();
    let waiter = std::thread::spawn(move || report.send(child.wait_with_output()).unwrap());
    let Ok(output) = done.recv_timeout(PATIENCE) else {
        // SAFETY: the child has not been waited for, so the number is its own.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        waiter.join().unwrap();
        panic!("{command:?} does not end");
    };
    waiter.join().unwrap();
    output.unwrap()
}

/// Whether it was refused something; then it must say what limits it.
fn refused(what: &str, output: &Output, limit: &str) -> bool {
    // `check` tells on standard output.
    let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.signal(), None, "{what}: {text}");
    assert!(!text.contains("panicked"), "{what}: {text}");
    match output.status.code() {
        Some(0) => false,
        Some(1) => {
            assert!(text.contains(limit), "{what}: {text}");
            assert!(!text.contains("run as root"), "{what}: {text}");
            true
        }
        other => panic!("{what}: exit code {other:?}: {text}"),
    }
}

/// The soft and hard limit of a resource, for the process that the command becomes.
fn limited(command: &mut Command, resource: libc::__rlimit_resource_t, limit: u64) {
    let set = move || {
        let limit = libc::rlimit {
            rlim_cur: limit,
            rlim_max: limit,
        };
        // SAFETY: the structure is valid throughout the call.
        match unsafe { libc::setrlimit(resource, &limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec, the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(set) };
}

/// Runs it with each of these limits; some must be too low and, unless the command needs more than all of them, some enough.
fn with_each(
    args: &[&str],
    resource: libc::__rlimit_resource_t,
    limits: impl Iterator<Item = u64>,
    name: &str,
) -> (usize, usize) {
    let (mut too_low, mut enough) = (0, 0);
    for limit in limits {
        let mut command = hmmvisor(args);
        limited(&mut command, resource, limit);
        match refused(&format!("{args:?} with {limit}"), &outcome(command), name) {
            true => too_low += 1,
            false => enough += 1,
        }
    }
    (too_low, enough)
}

#[test]
fn open_files() {
    // With fewer, the program's libraries cannot be opened.
    let (too_low, enough) = with_each(RUN, libc::RLIMIT_NOFILE, 4..=40, "`ulimit -n`");
    assert!(too_low > 10 && enough > 5, "{too_low}, {enough}");
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("t");
    let generate = [
        "trace",
        "generate",
        "pingpong",
        "--memory",
        "4M",
        "-o",
        trace.to_str().unwrap(),
    ];
    let (too_low, enough) = with_each(&generate, libc::RLIMIT_NOFILE, 4..=8, "`ulimit -n`");
    assert!(enough > 0, "{too_low}, {enough}");
    let few = [4, 6, 10, 40].into_iter();
    let (too_low, enough) = with_each(&["check"], libc::RLIMIT_NOFILE, few, "`ulimit -n`");
    assert!(too_low > 0 && enough > 0, "{too_low}, {enough}");
}

#[test]
fn address_space() {
    let mib = |n: u64| n << 20;
    let steps = (48..1200).step_by(48).map(mib);
    let (too_low, enough) = with_each(RUN, libc::RLIMIT_AS, steps, "`ulimit -v`");
    assert!(too_low > 3 && enough > 3, "{too_low}, {enough}");

    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("t");
    let generate = [
        "trace",
        "generate",
        "pingpong",
        "--memory",
        "256M",
        "--vcpus",
        "2",
        "-o",
        trace.to_str().unwrap(),
    ];
    let steps = (48..640).step_by(32).map(mib);
    let (too_low, enough) = with_each(&generate, libc::RLIMIT_AS, steps, "`ulimit -v`");
    assert!(too_low > 3 && enough > 3, "{too_low}, {enough}");

    let replay = [
        "replay",
        trace.to_str().unwrap(),
        "--policy",
        "density+lru",
        "--device-memory",
        "1M",
    ];
    let steps = (48..640).step_by(64).map(mib);
    let (too_low, enough) = with_each(&replay, libc::RLIMIT_AS, steps, "`ulimit -v`");
    assert!(too_low > 0 && enough > 0, "{too_low}, {enough}");
}

/// With so little that a process begins at all; the allocator has none left then.
const LEAST_DATA: u64 = 4 << 20;

#[test]
fn data() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (trace, script, page) = (path("t"), path("d.luau"), path("x"));
    let text = "return { on_fault = function(page) return page, 1 end }";
    fs::write(&script, text).unwrap();
    let mut record = RUN.to_vec();
    record.extend(["--memory", "16M", "--record", &trace]);
    assert!(!refused("a run", &outcome(hmmvisor(&record)), "nothing"));

    let mib = |n: u64| n << 20;
    let low = || {
        [LEAST_DATA]
            .into_iter()
            .chain((16..160).step_by(16).map(mib))
    };
    let replay = ["replay", &trace, "--policy", &script];
    let export = [
        "trace", "export", &trace, "--format", "parquet", "-o", &page,
    ];
    let report = ["report", &trace, "-o", &page];
    let mut small = RUN.to_vec();
    small.extend(["--memory", "16M", "--device-memory", "1M"]);
    for args in [&replay[..], &export, &report, &small] {
        let (too_low, enough) = with_each(args, libc::RLIMIT_DATA, low(), "`ulimit -d`");
        assert!(too_low > 3 && enough > 0, "{args:?}: {too_low}, {enough}");
    }
    let generate = ["trace", "generate", "pingpong", "-o", &path("g")];
    let steps = (48..640).step_by(64).map(mib);
    let (too_low, enough) = with_each(&generate, libc::RLIMIT_DATA, steps, "`ulimit -d`");
    assert!(too_low > 3 && enough > 0, "{too_low}, {enough}");
}

#[test]
fn stack() {
    let sizes = || {
        [64, 100, 256, 512, 1 << 10, 8 << 10]
            .map(|kib| kib << 10)
            .into_iter()
    };
    for args in [RUN, &["check"], &["policies"], &["trace", "info", "--help"]] {
        let outcomes = with_each(args, libc::RLIMIT_STACK, sizes(), "`ulimit -s`");
        assert_eq!(outcomes, (4, 2), "{args:?}");
    }
}

#[test]
fn size_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (json, record, trace) = (path("json"), path("record"), path("trace"));
    let mut with_json = RUN.to_vec();
    with_json.extend(["--json", &json]);
    let mut with_record = RUN.to_vec();
    with_record.extend(["--record", &record]);
    let generate = [
        "trace", "generate", "pingpong", "--memory", "4M", "-o", &trace,
    ];
    for args in [&with_json[..], &with_record[..], &generate[..]] {
        let (too_low, _) = with_each(args, libc::RLIMIT_FSIZE, [100].into_iter(), "`ulimit -f`");
        assert_eq!(too_low, 1, "{args:?}");
    }
}

/// A control group of our own, with a limit. It goes when this does.
struct Group(PathBuf);

impl Group {
    /// None, with the reason on standard error, where this process may make none.
    fn new(controller: &str, name: &str, limits: &[(&str, &str)]) -> Option<Group> {
        let attempt = || -> io::Result<Group> {
            let version_1 = Path::new("/sys/fs/cgroup").join(controller);
            let parent = match version_1.is_dir() {
                true => version_1,
                false => {
                    let root = PathBuf::from("/sys/fs/cgroup");
                    fs::write(
                        root.join("cgroup.subtree_control"),
                        format!("+{controller}"),
                    )?;
                    root
                }
            };
            let folder = parent.join(format!("hmmvisor-{name}-{}", std::process::id()));
            fs::create_dir(&folder)?;
            let group = Group(folder);
            let Some((file, limit)) = limits.iter().find(|(file, _)| group.0.join(file).exists())
            else {
                return Err(io::Error::other(format!("no controller {controller}")));
            };
            fs::write(group.0.join(file), limit)?;
            Ok(group)
        };
        match attempt() {
            Ok(group) => Some(group),
            Err(error) => {
                eprintln!("no control group can be made here ({error}): its limit is not tried");
                None
            }
        }
    }

    /// The command, begun in the group.
    fn within(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/bin/sh");
        let enter = "echo $$ >\"$0\" && exec \"$@\"";
        command.args(["-c", enter]).arg(self.0.join("cgroup.procs"));
        command.arg(env!("CARGO_BIN_EXE_hmmvisor")).args(args);
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel may take a moment to see that the last process has ended.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn threads_of_the_control_group() {
    let (mut too_low, mut enough) = (0, 0);
    for limit in 1..=16 {
        let text = limit.to_string();
        let Some(group) = Group::new("pids", &text, &[("pids.max", &text)]) else {
            return;
        };
        match refused(
            &format!("{RUN:?} with pids.max {limit}"),
            &outcome(group.within(RUN)),
            "pids.max",
        ) {
            true => too_low += 1,
            false => enough += 1,
        }
        // What it cannot try, it says.
        let check = outcome(group.within(&["check"]));
        refused(&format!("check with pids.max {limit}"), &check, "pids.max");
    }
    assert!(too_low > 3 && enough > 0, "{too_low}, {enough}");
}

#[test]
fn memory_of_the_control_group() {
    let megabytes = (64 << 20).to_string();
    let limits = [
        ("memory.max", &megabytes[..]),
        ("memory.limit_in_bytes", &megabytes[..]),
    ];
    let Some(group) = Group::new("memory", "tight", &limits) else {
        return;
    };
    let name = group.0.file_name().unwrap().to_str().unwrap();
    assert!(refused("a run", &outcome(group.within(RUN)), name));
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("t");
    let generate = [
        "trace",
        "generate",
        "pingpong",
        "-o",
        trace.to_str().unwrap(),
    ];
    assert!(refused(
        "trace generate",
        &outcome(group.within(&generate)),
        name
    ));
    // What fits does run.
    let mut small = RUN.to_vec();
    small.extend(["--memory", "16M", "--device-memory", "1M"]);
    assert!(!refused(
        "a small run",
        &outcome(group.within(&small)),
        name
    ));
    let check = outcome(group.within(&["check"]));
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(
        said.contains(name) && said.contains("of 64.0 MiB"),
        "{said}"
    );
}

#[test]
fn threads_of_the_user() {
    // A user that has no other processes: this many threads are the command's own. Root itself is not held to the limit.
    const NOBODY_ELSE: libc::uid_t = 61_234;
    // SAFETY: the call has no arguments and cannot fail.
    let root = unsafe { libc::geteuid() == 0 };
    if !root {
        eprintln!("only root can become a user without other processes: the limit is not tried");
        return;
    }
    let (mut too_low, mut enough) = (0, 0);
    for limit in [1, 2, 3, 6, 12] {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(folder.path(), Some(NOBODY_ELSE), None).unwrap();
        let trace = folder.path().join("t");
        let args = [
            "trace",
            "generate",
            "pingpong",
            "--memory",
            "4M",
            "--vcpus",
            "4",
            "-o",
            trace.to_str().unwrap(),
        ];
        // Where that user may run it.
        let program = folder.path().join("hmmvisor");
        fs::copy(env!("CARGO_BIN_EXE_hmmvisor"), &program).unwrap();
        let mut command = Command::new(&program);
        command.args(args);
        limited(&mut command, libc::RLIMIT_NPROC, limit);
        command.uid(NOBODY_ELSE);
        match refused(
            &format!("{args:?} with {limit} threads"),
            &outcome(command),
            "`ulimit -u`",
        ) {
            true => too_low += 1,
            false => enough += 1,
        }
    }
    assert!(too_low > 1 && enough > 0, "{too_low}, {enough}");
}
