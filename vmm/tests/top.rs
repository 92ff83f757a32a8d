//! `top` in a real pseudo-terminal: what it shows, what its keys do, and that the terminal is afterwards as it was.
#![cfg(feature = "tui")]

#[path = "common/signals.rs"]
mod signals;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hmmvisor_api::{Client, Policy, Recording, Vm, VmState};
use serde::de::DeserializeOwned;

const HMMVISOR: &str = env!("CARGO_BIN_EXE_hmmvisor");
/// Longer than anything here takes, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One test at a time: each keeps both of a small host's CPUs busy.
static TURN: Mutex<()> = Mutex::new(());

/// A machine whose guest faults all the time.
struct Machine {
    child: Killed,
    folder: tempfile::TempDir,
    client: Client,
    /// Ends after the child, because fields are dropped in this order.
    _turn: MutexGuard<'static, ()>,
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "never came: {what}");
        std::thread::yield_now();
    }
}

impl Machine {
    fn start() -> Machine {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api");
        let mut command = Command::new(HMMVISOR);
        command.args(["--workload", "pingpong", "--param", "rounds=1000000"]);
        command.args(["--memory", "16M"]);
        command.arg("--api").arg(&socket);
        command.arg("--allow-write").arg(folder.path());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let machine = Machine {
            _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner),
            child: Killed(command.spawn().unwrap()),
            client: Client::new(socket),
            folder,
        };
        wait_until("an answer", || machine.client.get("/v1/vm").is_ok());
        machine
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let answer = self.client.get(path).unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    fn top(&self, rows: u16, columns: u16, environment: &[(&str, &str)]) -> Top {
        Top::start(self, rows, columns, environment)
    }
}

/// `top` in a terminal, and what that shows.
struct Top {
    child: Killed,
    keyboard: File,
    /// Kept open, so that the terminal's settings can be read when `top` has ended.
    slave: OwnedFd,
    settings: libc::termios,
    output: std::sync::mpsc::Receiver<Vec<u8>>,
    screen: vt100::Parser,
    written: Vec<u8>,
}

fn settings(terminal: &OwnedFd) -> libc::termios {
    // SAFETY: a structure of integers, which the call fills.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &mut settings), 0);
        settings
    }
}

impl Top {
    fn start(machine: &Machine, rows: u16, columns: u16, environment: &[(&str, &str)]) -> Top {
        let (mut master, mut slave) = (0, 0);
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the call writes two descriptors, which are then ours.
        let (master, slave) = unsafe {
            let opened = libc::openpty(
                &mut master,
                &mut slave,
                std::ptr::null_mut(),
                std::ptr::null(),
                &size,
            );
            assert_eq!(opened, 0);
            (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
        };
        let before = settings(&slave);
        let copy = || Stdio::from(slave.try_clone().unwrap());
        let mut command = Command::new(HMMVISOR);
        command.args(["top", "--every", "50", "--record"]);
        command.arg(machine.folder.path().join("top.trace"));
        command.arg(machine.folder.path().join("api"));
        command.stdin(copy()).stdout(copy()).stderr(copy());
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        command.envs(environment.iter().copied());
        signals::heed_signals(&mut command);
        let own = || {
            // SAFETY: system calls that are allowed between fork and exec; descriptor 0 is the terminal.
            unsafe {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls that are allowed between fork and exec, and touches no memory.
        unsafe { command.pre_exec(own) };
        let child = Killed(command.spawn().unwrap());
        let mut reader = File::from(master.try_clone().unwrap());
        let (send, output) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Top {
            child,
            keyboard: File::from(master),
            slave,
            settings: before,
            output,
            screen: vt100::Parser::new(rows, columns, 0),
            written: Vec::new(),
        }
    }

    fn read(&mut self) {
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(20)) {
            self.screen.process(&bytes);
            self.written.extend(bytes);
        }
    }

    /// Waits until the screen has this text; returns the screen.
    fn shows(&mut self, text: &str) -> String {
        let begin = Instant::now();
        loop {
            self.read();
            let screen = self.screen.screen().contents();
            if screen.contains(text) {
                return screen;
            }
            assert!(begin.elapsed() < PATIENCE, "`{text}` never came:\n{screen}");
        }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the end; the terminal must be as it was.
    fn ended(mut self) -> ExitStatus {
        let begin = Instant::now();
        let status = loop {
            self.read();
            if let Some(status) = self.child.0.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < PATIENCE, "top does not end");
        };
        let after = settings(&self.slave);
        assert_eq!(
            (after.c_iflag, after.c_oflag, after.c_lflag, after.c_cflag),
            (
                self.settings.c_iflag,
                self.settings.c_oflag,
                self.settings.c_lflag,
                self.settings.c_cflag
            ),
            "{status}"
        );
        // What it wrote last may still be on its way.
        let begin = Instant::now();
        while self.screen.screen().alternate_screen() || self.screen.screen().hide_cursor() {
            assert!(begin.elapsed() < PATIENCE, "the screen is not as it was");
            self.read();
        }
        status
    }
}

#[test]
fn it_fits_into_a_small_terminal_and_its_keys_steer() {
    let machine = Machine::start();
    let mut top = machine.top(24, 80, &[]);
    let screen = top.shows("pingpong");
    for text in [
        "running for",
        "CPU faults",
        "device faults",
        "in: demand",
        "between",
        "out: demand",
        "out: prefetch",
        "out: evicted",
        "vCPU faults/s  0: ",
        "faults/s in ",
        "/s out ",
        "CPU fault",
        "p50",
        "p99",
        "device0 [",
        "of 16.0 MiB",
        "policy ",
        "q quit",
    ] {
        assert!(screen.contains(text), "no `{text}`:\n{screen}");
    }
    assert_eq!(screen.lines().count(), 24, "{screen}");
    // Some memory has contents, and a map shows where.
    assert!(
        screen
            .lines()
            .nth(2)
            .is_some_and(|row| !row.trim().is_empty()),
        "{screen}"
    );

    top.press("p");
    top.shows("PAUSED");
    assert_eq!(machine.get::<Vm>("/v1/vm").state, VmState::Paused);
    top.press("e");
    top.shows("pages evicted");
    top.press("p");
    top.shows("running for");
    wait_until("running", || {
        machine.get::<Vm>("/v1/vm").state == VmState::Running
    });
    top.press("r");
    top.shows(", recording");
    top.press("r");
    top.shows("events in");
    let recording: Recording = machine.get("/v1/recording");
    assert!(
        !recording.active && recording.error.is_none(),
        "{recording:?}"
    );
    top.press("osequential+fifx\x7fo\r");
    top.shows("sequential+fifo decides");
    top.shows("policy sequential");
    assert!(
        machine
            .get::<Policy>("/v1/policy")
            .policy
            .starts_with("sequential")
    );
    // A mistake is shown, and changes nothing.
    top.press("onosuch\r");
    top.shows("unknown policy 'nosuch'");
    assert!(
        machine
            .get::<Policy>("/v1/policy")
            .policy
            .starts_with("sequential")
    );
    top.press("o\x1b");
    top.shows("q quit");
    top.press("q");
    assert!(top.ended().success());
}

#[test]
fn the_terminal_is_restored_at_any_end() {
    let machine = Machine::start();
    for (signal, code) in [
        (libc::SIGTERM, 143),
        (libc::SIGHUP, 129),
        (libc::SIGINT, 130),
    ] {
        let mut top = machine.top(24, 80, &[]);
        top.shows("q quit");
        // SAFETY: sends a signal to the child.
        unsafe { libc::kill(top.child.0.id() as i32, signal) };
        assert_eq!(top.ended().code(), Some(code));
    }
    let mut top = machine.top(24, 80, &[]);
    top.shows("q quit");
    // Ctrl-C.
    top.press("\x03");
    assert!(top.ended().success());
    // The machine ends.
    let mut top = machine.top(50, 132, &[]);
    top.shows("q quit");
    machine.client.post("/v1/vm/stop", None::<&()>).unwrap();
    assert!(top.ended().success());
}

#[test]
fn without_colour_there_is_none() {
    let machine = Machine::start();
    let coloured = |environment: &[(&str, &str)]| {
        let mut top = machine.top(24, 80, environment);
        top.shows("pingpong");
        top.press("q");
        top.read();
        let text = String::from_utf8_lossy(&top.written).into_owned();
        assert!(top.ended().success());
        text.contains("\x1b[38;") || text.contains("\x1b[35m") || text.contains("\x1b[34m")
    };
    assert!(coloured(&[]));
    assert!(!coloured(&[("NO_COLOR", "1")]));
    drop(machine.child);
}

#[test]
fn it_needs_a_terminal_and_a_machine() {
    let output = Command::new(HMMVISOR)
        .args(["top", "/no/such/socket"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("needs a terminal"), "{error}");
}
