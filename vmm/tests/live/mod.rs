//! A machine with an API, in a process of its own.
#![allow(dead_code, reason = "each test program uses a part of it")]

#[path = "../common/signals.rs"]
mod signals;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use hmmvisor_api::{Client, ClientError, Migrate, Migrated, Pages, Pin, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Longer than anything in these tests takes, even on a busy host.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A guest that faults all the time, and has not finished when the test has.
pub const PINGPONG: [&str; 4] = ["--workload", "pingpong", "--param", "rounds=1000000"];

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "never came: {what}");
        std::thread::yield_now();
    }
}

pub struct Machine {
    pub child: Child,
    pub folder: tempfile::TempDir,
    pub client: Client,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command, which heeds signals whatever the test's parent ignores.
pub fn hmmvisor(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hmmvisor"));
    command.args(args).stdin(Stdio::null());
    signals::heed_signals(&mut command);
    command
}

impl Machine {
    /// Starts one whose guest faults all the time; returns when it answers.
    pub fn start(more: &[&str]) -> Machine {
        Machine::with(&[&PINGPONG, more].concat())
    }

    /// Starts one that runs `torture` while drivers fail and devices come and go.
    pub fn tortured(engine: &str, more: &[&str]) -> Machine {
        let torture = "--workload torture --param seconds=3 --param chaos=on --devices 2 --engine";
        let args: Vec<_> = torture.split(' ').chain([engine]).collect();
        Machine::with(&[&args[..], more].concat())
    }

    /// Starts one, and returns when it answers.
    pub fn with(args: &[&str]) -> Machine {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api");
        let mut command = hmmvisor(args);
        command.arg("--api").arg(&socket);
        command.arg("--json").arg(folder.path().join("json"));
        command.arg("--allow-write").arg(folder.path());
        command.stdout(Stdio::null());
        command.stderr(fs::File::create(folder.path().join("errors")).unwrap());
        let mut machine = Machine {
            child: command.spawn().unwrap(),
            client: Client::new(socket),
            folder,
        };
        wait_until("an answer", || {
            if let Some(status) = machine.child.try_wait().unwrap() {
                panic!("the machine has ended: {status}: {}", machine.errors());
            }
            machine.client.get("/v1/vm").is_ok()
        });
        machine
    }

    /// The machine's socket.
    pub fn socket(&self) -> PathBuf {
        self.path("api")
    }

    /// A file in a folder into which the machine may write.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn errors(&self) -> String {
        fs::read_to_string(self.path("errors")).unwrap()
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let answer = self.client.get(path).unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    pub fn put<T: DeserializeOwned>(&self, path: &str, body: impl Serialize) -> T {
        let answer = self.client.put(path, &body).unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    pub fn post<T: DeserializeOwned>(&self, path: &str, body: impl Serialize) -> T {
        let answer = self.client.post(path, Some(&body)).unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    pub fn act(&self, path: &str) {
        self.client.post(path, None::<&()>).unwrap();
    }

    pub fn text(&self, path: &str) -> String {
        String::from_utf8(self.client.get(path).unwrap().body).unwrap()
    }

    /// What is wrong with a request that is refused.
    pub fn refused(&self, method: &str, path: &str, body: impl Serialize) -> Problem {
        let answer = match method {
            "GET" => self.client.get(path),
            "PUT" => self.client.put(path, &body),
            "DELETE" => self.client.delete(path),
            _ => self.client.post(path, Some(&body)),
        };
        match answer {
            Err(ClientError::Refused(problem)) => problem,
            other => panic!("{method} {path}: {other:?}"),
        }
    }

    /// Returns how many pages moved.
    pub fn migrate(&self, first: u32, pages: u32, to: &str) -> u64 {
        let to = to.to_owned();
        let body = Migrate { first, pages, to };
        self.post::<Migrated>("/v1/memory/migrate", body).pages
    }

    /// Pauses the machine with all pages in system memory: nothing but requests moves pages then.
    pub fn empty_and_pause(&self) {
        self.act("/v1/vm/pause");
        self.migrate(0, 65536, "system");
    }

    pub fn pin(&self, first: u32, pages: u32) -> Pin {
        self.post("/v1/memory/pins", Pages { first, pages })
    }

    /// Bytes of memory that the process has.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).unwrap();
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kibibytes = line.trim().trim_end_matches(" kB");
        kibibytes.parse::<u64>().unwrap() << 10
    }

    /// Number of descriptors that are open in the process.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(path).unwrap().count()
    }

    /// Ends the run by the API; returns the report.
    pub fn stop(mut self) -> Value {
        self.act("/v1/vm/stop");
        self.ended()
    }

    /// Waits until the run has ended; returns the report.
    pub fn ended(&mut self) -> Value {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.errors());
        assert!(!self.socket().exists(), "the socket stays");
        serde_json::from_slice(&fs::read(self.path("json")).unwrap()).unwrap()
    }

    pub fn ctl(&self, args: &[&str]) -> Output {
        let mut command = hmmvisor(&["ctl"]);
        command.arg(self.path("api")).args(args).output().unwrap()
    }

    pub fn ctl_says(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }
}
