//! The sandbox: whole runs under it, and calls that each kind of thread may make and may not make, in processes of their own.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, BufRead};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use hmmvisor::messages::{self, Format, Threshold};
use hmmvisor::sandbox::{EXIT_CODE, Kind, Mode, Paths, Sandbox};
use tempfile::TempDir;

/// Longer than any of these runs takes to get there, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(30);

fn hmmvisor(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
        .arg("run")
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Tells the test `child` what to do: mode, kind, thread's name and call, separated by spaces.
const TASK: &str = "SANDBOX_TEST_TASK";
/// A folder with the files `out/json`, `scripts/script`, `later/` and `other/file`.
const FOLDER: &str = "SANDBOX_TEST_FOLDER";

const CHILD: [&str; 5] = [
    "--exact",
    "child",
    "--ignored",
    "--nocapture",
    "--test-threads=1",
];

/// A call for the child, and what becomes of it.
struct Trial {
    name: &'static str,
    call: fn(&Path) -> i64,
}

const fn trial(name: &'static str, call: fn(&Path) -> i64) -> Trial {
    Trial { name, call }
}

fn path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn open(path_: &Path, flags: i32) -> i64 {
    let path_ = path(path_);
    // SAFETY: the kernel reads a string that ends with a zero.
    unsafe {
        libc::syscall(
            libc::SYS_openat,
            libc::AT_FDCWD,
            path_.as_ptr(),
            flags,
            0o600,
        )
    }
}

/// Makes a system call whose arguments are harmless: descriptors that are not open, addresses that are not there.
fn call(number: i64, arguments: [i64; 4]) -> i64 {
    let [a, b, c, d] = arguments;
    // SAFETY: the callers below pass integers and null pointers with which the kernel refuses the call or changes nothing that matters
    // to a process which is about to end.
    unsafe { libc::syscall(number, a, b, c, d) }
}

/// A request of `ioctl` on a descriptor that is not open.
fn ioctl(request: i64) -> i64 {
    call(libc::SYS_ioctl, [-1, request, 0, 0])
}

fn map(protection: i32) -> i64 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: makes a new mapping that nothing uses.
    unsafe { libc::syscall(libc::SYS_mmap, 0, 4096, protection, flags, -1, 0) }
}

const CREATE: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;

/// What a thread that is confined tries.
const TRIALS: &[Trial] = &[
    // No kind of thread may make these.
    trial("execve", |_| call(libc::SYS_execve, [0; 4])),
    trial("ptrace", |_| call(libc::SYS_ptrace, [0; 4])),
    trial("socket", |_| {
        call(libc::SYS_socket, [libc::AF_INET.into(), 1, 0, 0])
    }),
    trial("connect", |_| call(libc::SYS_connect, [-1, 0, 0, 0])),
    trial("kill", |_| call(libc::SYS_kill, [1, 0, 0, 0])),
    trial("tgkill", |_| call(libc::SYS_tgkill, [1, 1, 0, 0])),
    trial("mmap", |_| map(libc::PROT_READ | libc::PROT_EXEC)),
    trial("mprotect", |_| {
        call(libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC.into(), 0])
    }),
    trial("rt_sigaction", |_| {
        call(libc::SYS_rt_sigaction, [1, 0, 0, 8])
    }),
    trial("seccomp", |_| call(libc::SYS_seccomp, [0; 4])),
    trial("capset", |_| call(libc::SYS_capset, [0; 4])),
    trial("setuid", |_| call(libc::SYS_setuid, [0; 4])),
    trial("memfd_create", |_| call(libc::SYS_memfd_create, [0; 4])),
    trial("io_uring_setup", |_| call(libc::SYS_io_uring_setup, [0; 4])),
    trial("process_vm_readv", |_| {
        call(libc::SYS_process_vm_readv, [1, 0, 0, 0])
    }),
    trial("prctl", |_| {
        call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0, 0])
    }),
    trial("fcntl", |_| {
        call(libc::SYS_fcntl, [-1, libc::F_SETOWN.into(), 1, 0])
    }),
    trial("type into a terminal", |_| ioctl(libc::TIOCSTI as i64)),
    // Some kinds may make these.
    trial("clone3", |_| call(libc::SYS_clone3, [0; 4])),
    trial("userfaultfd", |_| {
        call(libc::SYS_userfaultfd, [-1, 0, 0, 0])
    }),
    trial("linkat", |_| call(libc::SYS_linkat, [-1, 0, -1, 0])),
    trial("accept4", |_| call(libc::SYS_accept4, [-1, 0, 0, 0])),
    trial("pwritev", |_| call(libc::SYS_pwritev, [-1, 0, 0, 0])),
    trial("rt_sigtimedwait", |_| {
        call(libc::SYS_rt_sigtimedwait, [0; 4])
    }),
    trial("epoll_wait", |_| call(libc::SYS_epoll_wait, [-1, 0, 0, 0])),
    trial("sched_setaffinity", |_| {
        call(libc::SYS_sched_setaffinity, [0; 4])
    }),
    trial("KVM_RUN", |_| ioctl(0xae80)),
    trial("UFFDIO_MOVE", |_| ioctl(0xc028_aa05)),
    trial("UFFDIO_REGISTER", |_| ioctl(0xc020_aa00)),
    trial("UFFDIO_UNREGISTER", |_| ioctl(0x8010_aa01)),
    trial("make a file", |folder| {
        open(&folder.join("other/new"), CREATE)
    }),
    // All kinds may make these.
    trial("write", |_| call(libc::SYS_write, [-1, 0, 0, 0])),
    trial("futex", |_| call(libc::SYS_futex, [0; 4])),
    trial("memory", |_| map(libc::PROT_READ | libc::PROT_WRITE)),
    trial("read a file", |folder| {
        open(&folder.join("other/file"), libc::O_CLOEXEC)
    }),
    trial("panic", |_| {
        i64::from(std::panic::catch_unwind(|| panic!("on purpose")).is_ok())
    }),
    trial("start a thread", |_| {
        let recorder = hmmvisor_devices::thread::spawn("recorder", |_| {}, || ());
        i64::from(recorder.is_err())
    }),
    // Landlock says which files.
    trial("make the output", |folder| {
        open(&folder.join("out/new"), CREATE)
    }),
    trial("write over the output", |folder| {
        open(&folder.join("out/json"), libc::O_WRONLY | libc::O_TRUNC)
    }),
    trial("write beside the output", |folder| {
        open(&folder.join("out/beside"), libc::O_WRONLY)
    }),
    trial("read the script", |folder| {
        open(&folder.join("scripts/script"), libc::O_CLOEXEC)
    }),
    trial("make a file later", |folder| {
        open(&folder.join("later/new"), CREATE)
    }),
];

/// The kinds, each with a name that its threads have.
const KINDS: [(Kind, &str); Kind::ALL.len()] = [
    (Kind::Main, "main"),
    (Kind::Vcpu, "vcpu0"),
    (Kind::Service, "hmm-fault0"),
    (Kind::ServiceWatch, "hmm-watch"),
    (Kind::Accelerator, "accelerator0"),
    (Kind::Virtio, "virtio-blk0"),
    (Kind::Recorder, "recorder"),
    (Kind::Output, "output"),
    (Kind::Console, "console"),
    (Kind::Signals, "signals"),
    (Kind::Scripts, "script-reload"),
    (Kind::Helper, "progress"),
    (Kind::Stop, "stop"),
    (Kind::Chaos, "chaos"),
    (Kind::Api, "api"),
];

/// Does what the test that has started this process asks for.
#[test]
#[ignore = "the tests below start it in processes of their own"]
fn child() {
    let task = std::env::var(TASK).unwrap();
    let [mode, thread, name] = task.splitn(3, ' ').collect::<Vec<_>>()[..] else {
        panic!("{task}");
    };
    let folder = std::path::PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let paths = Paths {
        outputs: vec![folder.join("out/json")],
        scripts: vec![folder.join("scripts/script")],
        allow_write: vec![folder.join("later")],
        userfaultfd: true,
    };
    let mode: Mode = mode.parse().unwrap();
    messages::start(Format::Text, Threshold::default());
    let sandbox = Sandbox::new(mode, &paths, || {}).unwrap().unwrap();
    let trial = TRIALS.iter().find(|trial| trial.name == name).unwrap();
    sandbox.confine_new_threads().unwrap();
    let Some((kind, _)) = KINDS.into_iter().find(|(_, it)| *it == thread) else {
        // As the command does it: the thread's name says what it may do.
        let thread = hmmvisor_devices::thread::spawn(thread, |_| {}, move || (trial.call)(&folder));
        thread.unwrap().join_within(PATIENCE);
        return;
    };
    let its_name = thread.to_owned();
    let body = move || {
        sandbox.confine_this_thread(kind, &its_name);
        // Twice: in the mode that logs, it is told once.
        (trial.call)(&folder);
        let result = (trial.call)(&folder);
        let error = io::Error::last_os_error();
        let text = match result {
            -1 => format!("errno {}\n", error.raw_os_error().unwrap()),
            _ => "done\n".to_owned(),
        };
        // SAFETY: the kernel reads the text. The process ends here, without what the test harness still has to do.
        unsafe {
            libc::write(1, text.as_ptr().cast(), text.len());
            libc::_exit(0)
        }
    };
    let thread = std::thread::Builder::new().name(thread.to_owned());
    thread.spawn(body).unwrap().join().unwrap();
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["out", "scripts", "later", "other"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    for name in ["out/json", "out/beside", "scripts/script", "other/file"] {
        fs::write(folder.path().join(name), "text").unwrap();
    }
    folder
}

/// What became of a trial.
#[derive(Debug, PartialEq, Eq)]
enum Became {
    Done,
    Refused(i32),
    /// The process has ended, with this message.
    Violation(String),
}

fn child_process(mode: Mode, thread: &str, trial: &str, folder: &Path) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(CHILD)
        .env(TASK, format!("{mode} {thread} {trial}"))
        .env(FOLDER, folder)
        .output()
        .unwrap()
}

fn attempt(mode: Mode, thread: &str, trial: &str) -> (Became, String) {
    let folder = folder();
    let output = child_process(mode, thread, trial, folder.path());
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    let what = format!("{thread}, {trial}: {}\n{said}\n{errors}", output.status);
    let became = match output.status.code() {
        Some(0) => match said.lines().last().and_then(|it| it.rsplit_once(' ')) {
            Some((before, errno)) if before.ends_with("errno") => {
                Became::Refused(errno.parse().unwrap())
            }
            _ => {
                assert!(said.ends_with("done\n"), "{what}");
                Became::Done
            }
        },
        Some(EXIT_CODE) => Became::Violation(errors.clone()),
        _ => panic!("{what}"),
    };
    (became, errors)
}

/// The trials that no kind may make: the first ones.
fn never() -> &'static [Trial] {
    let end = TRIALS.iter().position(|it| it.name == "clone3").unwrap();
    &TRIALS[..end]
}

#[test]
fn a_forbidden_call_of_any_kind_of_thread_ends_the_process() {
    for (_, thread) in KINDS {
        for trial in never() {
            let (Became::Violation(message), _) = attempt(Mode::On, thread, trial.name) else {
                panic!("{thread} has made {}", trial.name);
            };
            let call = match trial.name {
                "type into a terminal" => "ioctl (16) with arguments 0xffffffffffffffff, 0x5412",
                name => name,
            };
            let expected = format!("thread {thread} made the system call {call}");
            assert!(message.contains(&expected), "{message}");
            assert!(message.contains("`--sandbox log`"), "{message}");
        }
    }
}

#[test]
fn each_kind_makes_its_own_calls_and_no_others() {
    // The threads that may make each call.
    let own = BTreeMap::from([
        ("clone3", &["main", "hmm-watch", "api"][..]),
        ("userfaultfd", &["chaos"]),
        ("linkat", &["main", "recorder", "api"]),
        ("accept4", &["api"]),
        ("pwritev", &["virtio-blk0"]),
        ("rt_sigtimedwait", &["signals"]),
        ("epoll_wait", &["main", "api"]),
        ("sched_setaffinity", &["vcpu0", "hmm-fault0", "hmm-watch"]),
        ("KVM_RUN", &["vcpu0"]),
        (
            "UFFDIO_MOVE",
            &[
                "main",
                "vcpu0",
                "hmm-fault0",
                "hmm-watch",
                "accelerator0",
                "virtio-blk0",
                "stop",
                "chaos",
                "api",
            ],
        ),
        ("UFFDIO_REGISTER", &["chaos"]),
        ("UFFDIO_UNREGISTER", &["main", "stop", "chaos", "api"]),
        // These make files where Landlock allows it.
        ("make a file", &["main", "recorder", "api"]),
    ]);
    for (name, threads) in own {
        for (_, thread) in KINDS {
            let (became, _) = attempt(Mode::On, thread, name);
            let violation = matches!(became, Became::Violation(_));
            let may = threads.contains(&thread);
            assert_eq!(!violation, may, "{thread}, {name}: {became:?}");
        }
    }
}

#[test]
fn all_threads_have_memory_and_locks_and_survive_a_panic() {
    for (_, thread) in KINDS {
        for (name, expected) in [
            ("write", Became::Refused(libc::EBADF)),
            ("futex", Became::Refused(libc::EFAULT)),
            ("memory", Became::Done),
            ("panic", Became::Done),
        ] {
            assert_eq!(
                attempt(Mode::On, thread, name).0,
                expected,
                "{thread}, {name}"
            );
        }
    }
}

#[test]
fn only_files_that_were_named_are_opened() {
    let denied = || Became::Refused(libc::EACCES);
    for (_, thread) in KINDS {
        // Not a violation: looking for the reason of another error opens files, too.
        assert_eq!(
            attempt(Mode::On, thread, "read a file").0,
            denied(),
            "{thread}"
        );
    }
    for thread in ["main", "recorder"] {
        for (name, expected) in [
            // The first of the two attempts has made it.
            ("make the output", Became::Refused(libc::EEXIST)),
            ("write over the output", Became::Done),
            ("write beside the output", denied()),
            ("make a file", denied()),
            ("read the script", denied()),
            ("make a file later", Became::Refused(libc::EEXIST)),
        ] {
            assert_eq!(
                attempt(Mode::On, thread, name).0,
                expected,
                "{thread}, {name}"
            );
        }
    }
    for (thread, name, expected) in [
        ("script-reload", "read the script", Became::Done),
        ("vcpu0", "read the script", denied()),
        ("api", "make a file later", Became::Refused(libc::EEXIST)),
        ("api", "make the output", denied()),
    ] {
        assert_eq!(
            attempt(Mode::On, thread, name).0,
            expected,
            "{thread}, {name}"
        );
    }
}

#[test]
fn a_log_tells_each_call_once_and_lets_it_pass() {
    for (thread, name, expected) in [
        (
            "vcpu0",
            "socket",
            "thread vcpu0 makes the system call socket (41)",
        ),
        (
            "main",
            "execve",
            "thread main makes the system call execve (59)",
        ),
        (
            "accelerator0",
            "KVM_RUN",
            "thread accelerator0 makes the system call ioctl (16)",
        ),
        (
            "console",
            "read a file",
            "thread console makes the system call openat (257)",
        ),
    ] {
        let (became, errors) = attempt(Mode::Log, thread, name);
        assert!(!matches!(became, Became::Violation(_)), "{errors}");
        assert_eq!(errors.matches("hmmvisor: sandbox: ").count(), 1, "{errors}");
        assert!(errors.contains(expected), "{errors}");
    }
    let (became, errors) = attempt(Mode::Log, "vcpu0", "memory");
    assert_eq!(became, Became::Done);
    assert!(!errors.contains("hmmvisor: sandbox: "), "{errors}");
}

#[test]
fn threads_of_a_confined_thread_have_its_rights() {
    for thread in ["main", "api"] {
        // A thread of another kind, which would confine itself if it could.
        let became = attempt(Mode::On, thread, "start a thread").0;
        assert_eq!(became, Became::Done, "{thread}");
    }
}

#[test]
fn a_thread_that_is_in_no_row_does_not_begin() {
    let folder = folder();
    for (name, code) in [("unheard-of", 1), ("vcpu7", EXIT_CODE)] {
        let output = child_process(Mode::On, name, "socket", folder.path());
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(errors.contains(&format!("thread {name}")), "{errors}");
    }
}

/// A run that goes on until it is killed, or dropped.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        // Fails if it is over.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The threads of a process, each with some fields of its status.
fn threads(process: u32) -> Vec<(String, BTreeMap<String, String>)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let status = |task: io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        let fields = status.lines().filter_map(|line| line.split_once(":\t"));
        let fields: BTreeMap<_, _> = fields
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Some((fields.get("Name")?.clone(), fields))
    };
    tasks.filter_map(status).collect()
}

/// A run with every kind of thread that a configuration can have.
fn long_run(folder: &Path, mode: &str) -> Run {
    fs::write(folder.join("disk.img"), vec![0; 4096]).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/stride.luau");
    fs::copy(script, folder.join("stride.luau")).unwrap();
    let args = "run --workload torture --param seconds=600 --param chaos=on --vcpus 2 --devices 2 --memory 64M \
        --policy stride.luau+lru --disk disk.img --balloon 0 --rng --record trace --json json --console console --sandbox";
    let run = Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
        .args(args.split_ascii_whitespace())
        .arg(mode)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Run(run)
}

#[test]
fn every_thread_of_a_run_is_confined() {
    let folder = tempfile::tempdir().unwrap();
    let run = long_run(folder.path(), "on");
    let expected = [
        "hmmvisor",
        "vcpu0",
        "vcpu1",
        "hmm-fault0",
        "hmm-watch",
        "accelerator0",
        "accelerator1",
        "virtio-blk0",
        "virtio-balloon",
        "virtio-rng",
        "recorder",
        "output",
        "messages",
        "signals",
        "script-reload",
        "memory-errors",
        "stop",
        "chaos",
    ];
    let begin = Instant::now();
    let threads = loop {
        let threads = threads(run.0.id());
        // A thread that has just begun has the name of the one that has started it.
        let is_there = |name: &&str| threads.iter().any(|(its, _)| its == name);
        let is_confined = |(_, status): &(_, BTreeMap<_, _>)| status["Seccomp"] == "2";
        if expected.iter().all(is_there) && threads.iter().all(is_confined) {
            break threads;
        }
        let not = threads.iter().filter(|it| !is_confined(it)).map(|it| &it.0);
        assert!(begin.elapsed() < PATIENCE, "{:?}", not.collect::<Vec<_>>());
        std::thread::yield_now();
    };
    for (name, status) in threads {
        assert_eq!(status["Seccomp"], "2", "{name}");
        assert_eq!(status["NoNewPrivs"], "1", "{name}");
        let held = u64::from_str_radix(&status["CapPrm"], 16).unwrap();
        // It attaches devices, which takes userfaultfds.
        let may = if name == "chaos" { 1 << 19 } else { 0 };
        assert_eq!(held & !may, 0, "{name}");
        assert_eq!(status["CapInh"], "0000000000000000", "{name}");
    }
}

#[test]
fn without_the_sandbox_nothing_is_confined() {
    let folder = tempfile::tempdir().unwrap();
    let run = long_run(folder.path(), "off");
    let begin = Instant::now();
    while !threads(run.0.id()).iter().any(|(name, _)| name == "vcpu1") {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    let own = fs::read_to_string("/proc/self/status").unwrap();
    for (name, status) in threads(run.0.id()) {
        for field in ["Seccomp", "NoNewPrivs", "CapPrm"] {
            let line = format!("{field}:\t{}\n", status[field]);
            assert!(own.contains(&line), "{name}: {line}");
        }
    }
}

#[test]
fn outputs_are_new_or_replace_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (inner, far) = (folder.path().join("run"), folder.path().join("far"));
    fs::create_dir(&inner).unwrap();
    fs::create_dir(&far).unwrap();
    std::os::unix::fs::symlink(far.join("report"), inner.join("linked")).unwrap();
    let args = "--workload vecadd --param n=4096 --record trace --console console --json";
    for json in ["json", "linked", "/dev/null"] {
        let args: Vec<_> = args.split(' ').chain([json]).collect();
        // The second time, files are there.
        for _ in 0..2 {
            let output = hmmvisor(&inner, &args);
            assert!(output.status.success(), "{json}: {}", text(&output.stderr));
        }
    }
    for file in [inner.join("json"), far.join("report")] {
        let report: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        assert_eq!(report["verified"], true);
    }
    for file in ["trace", "console"] {
        assert!(inner.join(file).metadata().unwrap().len() > 0, "{file}");
    }
    let names = fs::read_dir(&inner).unwrap();
    let names: Vec<_> = names.map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
}

/// Runs the command in a mount namespace of its own, where `script` has prepared the way; `$0` is the command.
fn in_namespace(folder: &Path, script: &str) -> Output {
    Command::new("unshare")
        .args(["-m", "bash", "-e", "-c", script])
        .arg(env!("CARGO_BIN_EXE_hmmvisor"))
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn an_ordinary_user_needs_the_two_devices_only() {
    let folder = tempfile::tempdir().unwrap();
    // The devices belong to a group; the user is in it, and has no capability. The command lies where the user can reach it.
    let output = in_namespace(
        folder.path(),
        r#"
        mount -t tmpfs -o mode=755 none "$PWD"
        cd "$PWD"
        cp "$0" command
        for device in kvm userfaultfd; do
            mknod -m 660 $device c $(stat -c '%Hr %Lr' /dev/$device)
            chgrp 12345 $device
            mount --bind $device /dev/$device
        done
        mkdir home
        chown 54321 home
        cd -P home
        exec setpriv --reuid 54321 --regid 54321 --groups 12345 --inh-caps=-all --bounding-set=-all \
            ../command run --workload torture --param seconds=1 --param chaos=on --memory 16M --device-memory 512K \
            --vcpus 2 --record trace --json -
        "#,
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verified"], true);
}

#[test]
fn root_writes_into_the_folder_of_a_user() {
    let folder = tempfile::tempdir().unwrap();
    // As with `sudo`: nobody else may write there, and root only because it is root.
    let output = in_namespace(
        folder.path(),
        r#"
        chown 54321 .
        chmod 700 .
        "$0" run --workload vecadd --param n=4096 --record trace --json json
        "$0" run --workload vecadd --param n=4096 --record trace --json json
        "#,
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    for file in ["trace", "json"] {
        assert!(folder.path().join(file).metadata().unwrap().len() > 0);
    }
}

/// Reads lines until one contains `expected`.
fn wait_for_line(lines: &mut impl Iterator<Item = io::Result<String>>, expected: &str) {
    let mut seen = String::new();
    for line in lines {
        let line = line.unwrap();
        if line.contains(expected) {
            return;
        }
        seen += &line;
    }
    panic!("no {expected:?} in {seen}");
}

#[test]
fn a_script_is_read_again_in_its_folder_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (folder, policy) in [("inside", "stride"), ("outside", "markov")] {
        fs::create_dir(path(folder)).unwrap();
        let script = format!("{}/../policies/{policy}.luau", env!("CARGO_MANIFEST_DIR"));
        fs::copy(script, path(folder).join("script.luau")).unwrap();
    }
    let link = path("inside").join("link.luau");
    let lead_to = |target: &Path| {
        let new = path("new");
        std::os::unix::fs::symlink(target, &new).unwrap();
        fs::rename(new, &link).unwrap();
    };
    lead_to(&path("inside").join("script.luau"));
    let mut run = Command::new(env!("CARGO_BIN_EXE_hmmvisor"));
    run.args([
        "run",
        "--workload",
        "torture",
        "--param",
        "seconds=600",
        "--memory",
        "16M",
    ]);
    run.args(["--device-memory", "1M", "--policy"]).arg(&link);
    let run = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut run = Run(run.unwrap());
    let begin = Instant::now();
    while !threads(run.0.id()).iter().any(|(name, _)| name == "vcpu0") {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    let mut lines = io::BufReader::new(run.0.stderr.take().unwrap()).lines();
    lead_to(&path("outside").join("script.luau"));
    wait_for_line(&mut lines, "Permission denied");
    lead_to(&path("inside").join("script.luau"));
    wait_for_line(&mut lines, "reloaded");
}

#[test]
fn wrong_values_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    fs::write(
        folder.path().join("mode.toml"),
        "[sandbox]\nmode = \"loud\"\n",
    )
    .unwrap();
    fs::write(
        folder.path().join("key.toml"),
        "[sandbox]\nseccomp = true\n",
    )
    .unwrap();
    for (args, expected) in [
        (
            &["--sandbox", "yes"][..],
            "`yes` is none of on, log and off",
        ),
        (&["mode.toml"], "`loud` is none of on, log and off"),
        (&["key.toml"], "unknown field `seccomp`"),
        (
            &["--allow-write", "nosuch"],
            "--allow-write nosuch: No such file or directory",
        ),
        (
            &["--allow-write", "file"],
            "--allow-write file: it is not a folder",
        ),
    ] {
        let output = hmmvisor(folder.path(), args);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
        assert!(message.contains(expected), "{args:?}: {message}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}
