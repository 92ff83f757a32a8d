//! A run ends when it is to end: by signals at any moment, whatever is opened, read or written, and by the watchdog; and with
//! an error when something that it should have written was lost.

mod common;
#[path = "common/signals.rs"]
mod signals;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use signals::heed_signals;
use tempfile::TempDir;

/// Longer than any end takes, even on a busy host; an idle one takes well below a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process that is killed when the test fails.
struct Run(Child);

impl Run {
    fn start(command: &mut Command) -> Run {
        Run(command.spawn().unwrap())
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so the number is its.
        unsafe { libc::kill(self.0.id() as i32, signal) };
    }

    fn is_over(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Waits for the end.
    fn end(&mut self, what: &str) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "still running: {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until a thread of this name runs, or the process is over.
    fn wait_for_thread(&mut self, name: &str) {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.0.id()));
        let named = |task: io::Result<fs::DirEntry>| {
            let comm = fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
            (comm.trim() == name).then_some(())
        };
        let begin = Instant::now();
        while !self.is_over() {
            let found = fs::read_dir(&tasks).map(|mut tasks| tasks.any(|it| named(it).is_some()));
            if found.unwrap_or(false) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "there is no thread {name}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            stderr.read_to_string(&mut text).unwrap();
        }
        text
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hmmvisor(folder: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hmmvisor"));
    command.args(args).current_dir(folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped());
    heed_signals(&mut command);
    command
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A pipe with a name, at which nothing is at the other end.
fn fifo(folder: &TempDir, name: &str) -> PathBuf {
    let path = folder.path().join(name);
    let c = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a path that ends with a zero.
    assert_eq!(unsafe { libc::mkfifo(c.as_ptr(), 0o600) }, 0);
    path
}

/// A pipe that is full soon, since it is not read.
fn unread() -> (io::PipeReader, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    make_small(&writer);
    (reader, writer)
}

/// Leaves a pipe room for a page.
fn make_small(pipe: &impl AsRawFd) {
    // SAFETY: takes numbers; a pipe of another size is as good.
    unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
}

/// Waits until the writer of a small pipe has to wait for its reader: for `poll`, its one page is full with its first byte.
fn wait_until_full(reader: &impl AsRawFd) {
    let mut readable = libc::pollfd {
        fd: reader.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, which lives until the call returns.
    let ready = unsafe { libc::poll(&mut readable, 1, PATIENCE.as_millis() as libc::c_int) };
    assert_eq!(ready, 1, "nothing comes into the pipe");
}

/// Writes 4 KiB to the serial port, `times` times if there is a number, then exits with 0.
fn flood(folder: &TempDir, times: Option<u32>) -> &'static str {
    let count = times.unwrap_or(1).to_le_bytes();
    let mut code = vec![0xbb];
    code.extend(count); // mov ebx, count
    // mov edx, 0x3f8; mov esi, 0x200000; mov ecx, 0x1000; rep outsb
    code.extend([
        0xba, 0xf8, 3, 0, 0, 0xbe, 0, 0, 0x20, 0, 0xb9, 0, 0x10, 0, 0, 0xf3, 0x6e,
    ]);
    match times {
        // dec ebx; jnz to the first of these
        Some(_) => code.extend([0xff, 0xcb, 0x75, 0xeb]),
        // jmp
        None => code.extend([0xeb, 0xed]),
    }
    code.extend(common::MOV_EAX_CONTROL);
    // mov dword [rax], 0
    code.extend([0xc7, 0, 0, 0, 0, 0]);
    fs::write(folder.path().join("flood.elf"), common::elf(&code)).unwrap();
    "flood.elf"
}

fn json(folder: &TempDir, name: &str) -> Value {
    let text = fs::read_to_string(folder.path().join(name)).expect("the JSON report");
    serde_json::from_str(&text).unwrap()
}

fn ended_by(status: ExitStatus, signal: i32) -> bool {
    status.code() == Some(128 + signal) || status.signal() == Some(signal)
}

#[test]
fn signals_end_a_run_that_opens_what_never_answers() {
    let inputs = [
        &["run", "PIPE"][..],
        &["run", "--guest", "PIPE"],
        &["run", "--kernel", "PIPE"],
        &["run", "--kernel", "kernel", "--initrd", "PIPE"],
        &["run", "--disk", "PIPE"],
        &["run", "--policy", "PIPE.luau"],
        &["run", "--record", "PIPE"],
        &["run", "--console", "PIPE"],
        &["run", "--param", "n=1", "--json", "PIPE"],
        &["trace", "import", "--format", "csv", "PIPE", "-o", "x"],
        &["trace", "info", "PIPE"],
        &["replay", "PIPE"],
        &["sweep", "PIPE"],
        &["report", "PIPE", "-o", "x.html"],
    ];
    for (number, args) in inputs.into_iter().enumerate() {
        let folder = folder();
        fifo(&folder, "PIPE");
        fifo(&folder, "PIPE.luau");
        fs::write(folder.path().join("kernel"), "no kernel").unwrap();
        let signal = [libc::SIGINT, libc::SIGTERM][number % 2];
        let mut run = Run::start(&mut hmmvisor(&folder, args));
        run.wait_for_thread(if args[0] == "run" {
            "signals"
        } else {
            "hmmvisor"
        });
        run.signal(signal);
        let status = run.end(&args.join(" "));
        // What is refused at once needs no signal; what runs without what it waits for is interrupted.
        let refused = matches!(status.code(), Some(1 | 2));
        assert!(refused || ended_by(status, signal), "{args:?}: {status}");
    }
}

#[test]
fn signals_end_a_run_at_any_moment() {
    let folder = folder();
    // From before `main` to the middle of the guest's work.
    for pause in [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233] {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            let args = "run --workload torture --param seconds=1000 --param chaos=on --devices 2";
            let args: Vec<_> = args.split(' ').collect();
            let mut run = Run::start(&mut hmmvisor(&folder, &args));
            thread::sleep(Duration::from_millis(pause));
            run.signal(signal);
            let status = run.end("torture");
            assert!(ended_by(status, signal), "{status}: {}", run.stderr());
        }
    }
}

#[test]
fn a_second_signal_ends_at_once_too() {
    let folder = folder();
    let args = ["run", "--workload", "torture", "--param", "seconds=1000"];
    let mut run = Run::start(&mut hmmvisor(&folder, &args));
    run.wait_for_thread("vcpu0");
    run.signal(libc::SIGINT);
    run.signal(libc::SIGTERM);
    let status = run.end("torture");
    assert!(
        ended_by(status, libc::SIGINT) || ended_by(status, libc::SIGTERM),
        "{status}"
    );
}

/// As `timeout` sends it: to the command, and to its group. On a busy machine there may be no time for a report, but not each time.
#[test]
fn the_same_signal_at_the_same_time_is_one() {
    let reports = (0..10).any(|_| {
        let folder = folder();
        let args = ["run", "--workload", "torture", "--param", "seconds=1000"];
        let args = [&args[..], &["--json", "j"]].concat();
        let mut run = Run::start(&mut hmmvisor(&folder, &args));
        run.wait_for_thread("vcpu0");
        run.signal(libc::SIGTERM);
        // While the first one is pending, the kernel makes one of both.
        thread::sleep(Duration::from_millis(10));
        run.signal(libc::SIGTERM);
        let status = run.end("torture");
        assert_eq!(status.code(), Some(143));
        !run.stderr().contains("without a summary") && json(&folder, "j")["end"] == "signal"
    });
    assert!(reports, "each run was ended by the second signal");
}

/// Signals that have nothing to do with ending a run by default do no worse than SIGTERM.
#[test]
fn other_signals_end_a_run_in_good_order() {
    for (signal, name) in [
        (libc::SIGUSR1, "SIGUSR1"),
        (libc::SIGALRM, "SIGALRM"),
        (libc::SIGXCPU, "`ulimit -t`"),
    ] {
        let folder = folder();
        let args = ["run", "--workload", "torture", "--param", "seconds=1000"];
        let mut run = Run::start(&mut hmmvisor(&folder, &args));
        run.wait_for_thread("vcpu0");
        run.signal(signal);
        let status = run.end("torture");
        let said = run.stderr();
        assert_eq!(status.code(), Some(128 + signal), "{said}");
        assert!(said.contains(name), "{said}");
    }
}

/// Starts a run that ends by itself after a second, with a signal ignored as by `nohup`.
fn ignoring(folder: &TempDir, args: &[&str], signal: i32) -> Run {
    let mut command = hmmvisor(folder, args);
    let ignore = move || {
        // SAFETY: sets a disposition, in the child.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: the closure makes one system call and touches no memory.
    unsafe { command.pre_exec(ignore) };
    Run::start(&mut command)
}

#[test]
fn what_was_ignored_at_the_start_stays_ignored() {
    let folder = folder();
    let script = "return { on_fault = function(page) return page, 1 end }";
    fs::write(folder.path().join("p.luau"), script).unwrap();
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        for policy in [&[][..], &["--policy", "p.luau"]] {
            let args = ["run", "--workload", "torture", "--param", "seconds=1"];
            let args = [&args[..], policy].concat();
            let mut run = ignoring(&folder, &args, signal);
            run.wait_for_thread("vcpu0");
            run.signal(signal);
            let status = run.end("torture");
            assert_eq!(status.code(), Some(0), "signal {signal}: {}", run.stderr());
        }
    }
}

#[test]
fn the_runs_of_a_sweep_ignore_what_it_ignores() {
    let folder = folder();
    let sweep = "title = \"t\"\npolicies = [\"on-demand\"]\ndevice_memory = [\"1M\"]\n[[workload]]\nname = \"torture\"\nmode = \"live\"\nparams = { seconds = 1 }\n";
    fs::write(folder.path().join("s.toml"), sweep).unwrap();
    let mut command = hmmvisor(&folder, &["sweep", "s.toml"]);
    let ignore = || {
        // SAFETY: sets a disposition and makes a group, in the child.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            libc::setpgid(0, 0);
        }
        Ok(())
    };
    // SAFETY: the closure makes two system calls and touches no memory.
    unsafe { command.pre_exec(ignore) };
    let mut run = Run::start(&mut command);
    thread::sleep(Duration::from_millis(500));
    // SAFETY: the group is the sweep's.
    unsafe { libc::kill(-(run.0.id() as i32), libc::SIGHUP) };
    let status = run.end("the sweep");
    assert_eq!(status.code(), Some(0), "{}", run.stderr());
}

#[test]
fn output_that_is_not_read_delays_neither_signals_nor_the_watchdog() {
    for (signal, code) in [
        (Some(libc::SIGINT), 130),
        (Some(libc::SIGTERM), 143),
        (None, 1),
    ] {
        let folder = folder();
        let guest = flood(&folder, None);
        let (_reader, writer) = unread();
        // Longer than the vCPU waits for the reader: what it drops from then on is no sign of life.
        let args = ["run", "--guest", guest, "--watchdog", "4", "--json", "j"];
        let mut run = Run::start(hmmvisor(&folder, &args).stdout(writer));
        if let Some(signal) = signal {
            run.wait_for_thread("vcpu0");
            run.signal(signal);
        }
        let status = run.end("a guest whose output is not read");
        let said = run.stderr();
        assert_eq!(status.code(), Some(code), "{said}");
        // After a signal it is written if there is time.
        if signal.is_some() && said.contains("without a summary") {
            continue;
        }
        let json = json(&folder, "j");
        let error = json["error"].as_str().unwrap();
        match signal {
            Some(_) => assert!(error.contains("interrupted"), "{error}"),
            None => {
                assert!(error.contains("no sign of life"), "{error}");
                assert!(json["output"]["dropped_bytes"].as_u64().unwrap() > 0);
            }
        }
    }
}

#[test]
fn a_guest_whose_output_is_not_read_comes_to_its_end_and_that_is_an_error() {
    let folder = folder();
    let guest = flood(&folder, Some(7));
    let (_reader, writer) = unread();
    let args = ["run", "--guest", guest, "--json", "j"];
    let mut run = Run::start(hmmvisor(&folder, &args).stdout(writer));
    let status = run.end("a guest whose output is not read");
    assert_eq!(status.code(), Some(1), "{}", run.stderr());
    let json = json(&folder, "j");
    assert_eq!(json["guest_exit"], 0);
    assert!(
        json["error"]
            .as_str()
            .unwrap()
            .contains("were not read in time")
    );
}

/// The codes of the embedded guest say nothing about a guest of the user's.
#[test]
fn the_exit_code_of_a_guest_of_the_users_is_its_own() {
    let folder = folder();
    for code in [1, 2, 3, 9] {
        let guest = common::code(&[
            &common::MOV_EAX_CONTROL,
            &[0xba, code, 0, 0, 0],
            &[0x89, 0x10, 0xeb, 0xfe],
        ]);
        fs::write(folder.path().join("g"), common::elf(&guest)).unwrap();
        let mut run = Run::start(&mut hmmvisor(&folder, &["run", "--guest", "g"]));
        let status = run.end("a guest that exits");
        let said = run.stderr();
        assert_eq!(status.code(), Some(code.into()), "{said}");
        let expected = format!("the guest exited with code {code}: see its output");
        assert!(said.contains(&expected), "{said}");
    }
}

#[test]
fn a_slow_reader_gets_everything() {
    let folder = folder();
    let guest = flood(&folder, Some(7));
    let (mut reader, writer) = unread();
    let mut run = Run::start(hmmvisor(&folder, &["run", "--guest", guest]).stdout(writer));
    let (mut bytes, mut total) = ([0; 4096], 0);
    loop {
        match reader.read(&mut bytes).unwrap() {
            0 => break,
            length => total += length,
        }
        if total < 20_000 {
            thread::sleep(Duration::from_millis(5));
        }
    }
    assert_eq!(
        run.end("a guest whose output is read slowly").code(),
        Some(0)
    );
    assert!(total > 7 * 4096, "{total}");
}

#[test]
fn json_and_summary_that_are_not_read_do_not_delay_the_end() {
    let folder = folder();
    for args in [
        &["run", "--param", "n=1K", "--json", "-"][..],
        &["run", "--param", "n=1K"],
    ] {
        let (mut reader, writer) = unread();
        // Full before the run begins.
        let mut full = writer.try_clone().unwrap();
        io::Write::write_all(&mut full, &[b'x'; 4096]).unwrap();
        let mut run = Run::start(hmmvisor(&folder, args).stdout(writer));
        let status = run.end("a run whose report is not read");
        let said = run.stderr();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("it is not taken"), "{said}");
        drop(full);
        let _ = reader.read(&mut [0]).unwrap();
    }
}

#[test]
fn a_trace_that_is_not_read_delays_neither_signals_nor_the_end() {
    for signal in [Some(libc::SIGINT), None] {
        let folder = folder();
        let path = fifo(&folder, "trace");
        // A reader that does not read.
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap();
        // So small that the shortest trace fills it.
        make_small(&reader);
        let seconds = if signal.is_some() {
            "seconds=1000"
        } else {
            "seconds=1"
        };
        let args = ["run", "--workload", "torture", "--param", seconds];
        let args = [&args[..], &["--record", "trace", "--json", "j"]].concat();
        let mut run = Run::start(&mut hmmvisor(&folder, &args));
        if let Some(signal) = signal {
            run.wait_for_thread("vcpu0");
            wait_until_full(&reader);
            run.signal(signal);
        }
        let status = run.end("a run whose trace is not read");
        let said = run.stderr();
        match signal {
            Some(signal) => {
                assert!(ended_by(status, signal), "{status}: {said}");
                if !said.contains("without a summary") {
                    json(&folder, "j");
                }
            }
            None => {
                assert_eq!(status.code(), Some(1), "{said}");
                assert!(said.contains("trace"), "{said}");
                assert!(json(&folder, "j")["recording"]["error"].is_string());
            }
        }
    }
}

#[test]
fn a_trace_that_nothing_takes_from_the_start_is_an_error() {
    let folder = folder();
    let (_reader, mut writer) = unread();
    // Full before the run begins.
    io::Write::write_all(&mut writer, &[b'x'; 4096]).unwrap();
    let args = ["run", "--param", "n=1K", "--record", "-"];
    let mut run = Run::start(hmmvisor(&folder, &args).stdout(writer));
    let status = run.end("a run whose trace is not read");
    let said = run.stderr();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("nothing has taken its beginning"), "{said}");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let folder = folder();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let arguments = ["run", "--workload", "pingpong", "--param", "rounds=2"];
    let console = [&arguments[..], &["--console", "/dev/full"]].concat();
    let trace = [&arguments[..], &["--record", "/dev/full"]].concat();
    let json = [&arguments[..], &["--json", "-"]].concat();
    for (args, stdout) in [
        (&arguments[..], Stdio::from(full())),
        (&console, Stdio::null()),
        (&trace, Stdio::null()),
        (&json, Stdio::from(full())),
    ] {
        let mut run = Run::start(hmmvisor(&folder, args).stdout(stdout));
        let status = run.end("a run with a full disk");
        let said = run.stderr();
        assert_eq!(status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("No space left"), "{args:?}: {said}");
    }
}

#[test]
fn loading_a_guest_of_many_segments_ends_by_a_signal() {
    // 65,000 segments that all take the same 8 MiB of the file.
    let (count, size) = (65_000u32, 8u64 << 20);
    let folder = folder();
    let base = 64 + 56 * u64::from(count);
    let mut file = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    file.extend([0x20_0000u64, 64, 0].iter().flat_map(|n| n.to_le_bytes()));
    file.extend([0; 4]);
    let sizes = [64u16, 56, count as u16, 64, 0, 0];
    file.extend(sizes.iter().flat_map(|n| n.to_le_bytes()));
    let mut header = Vec::new();
    header.extend([1u32, 7].iter().flat_map(|n| n.to_le_bytes()));
    let numbers = [base, 0x20_0000, 0x20_0000, size, size, 4096];
    header.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    file.extend(header.repeat(count as usize));
    let path = folder.path().join("g.elf");
    fs::write(&path, &file).unwrap();
    let grown = OpenOptions::new().write(true).open(&path).unwrap();
    grown.set_len(base + size).unwrap();
    let mut run = Run::start(&mut hmmvisor(&folder, &["run", "--guest", "g.elf"]));
    run.wait_for_thread("accelerator0");
    run.signal(libc::SIGINT);
    let status = run.end("loading a guest");
    let refused = status.code() == Some(1);
    assert!(refused || ended_by(status, libc::SIGINT), "{status}");
}
