//! A machine with an API, in a process of its own.
#![allow(dead_code, reason = "each test program uses a part of it")]

#[path = "../common/signals.rs"]
mod signals;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hmmvisor_api::Client;
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
    child: Child,
    folder: tempfile::TempDir,
    pub client: Client,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Machine {
    /// Starts one, and returns when it answers.
    pub fn start(args: &[&str]) -> Machine {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hmmvisor"));
        command.args(args).arg("--api").arg(&socket);
        command.arg("--json").arg(folder.path().join("json"));
        command.arg("--allow-write").arg(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(folder.path().join("errors")).unwrap());
        signals::heed_signals(&mut command);
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

    fn errors(&self) -> String {
        fs::read_to_string(self.path("errors")).unwrap()
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let answer = self.client.get(path).unwrap();
        serde_json::from_slice(&answer.body).unwrap()
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
    pub fn stop(self) -> Value {
        self.client.post("/v1/vm/stop", None::<&()>).unwrap();
        self.ended()
    }

    /// Waits until the run has ended; returns the report.
    pub fn ended(mut self) -> Value {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.errors());
        assert!(!self.socket().exists(), "the socket stays");
        serde_json::from_slice(&fs::read(self.path("json")).unwrap()).unwrap()
    }
}
