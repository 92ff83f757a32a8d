//! The API of real machines, asked by the shared client, by sockets and by the command `ctl`.

#[path = "common/signals.rs"]
mod signals;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hmm_backend::observe as backend;
use hmm_backend::policy::PolicySpec;
use hmmvisor_api::{
    Byte, Client, ClientError, Device, Devices, Doing, Event, Memory, Migrate, Migrated, Operation,
    Operations, Outcome, Pages, Pin, Pins, Policy, Problem, Provocations, Provoke, Record,
    Recording, Residency, SetDevice, SetPolicy, Vm, VmState, WayPoint, Where,
};
use hmmvisor_experiments::replay::{Costs, ReplayConfig, Time, replay};
use hmmvisor_experiments::trace::{Tail, TraceReader};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const HMMVISOR: &str = env!("CARGO_BIN_EXE_hmmvisor");
/// Longer than anything here takes, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine that runs until it is stopped.
struct Machine {
    child: Child,
    folder: tempfile::TempDir,
    client: Client,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hmmvisor(args: &[&str]) -> Command {
    let mut command = Command::new(HMMVISOR);
    command.args(args).stdin(Stdio::null());
    signals::heed_signals(&mut command);
    command
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "never came: {what}");
        std::thread::yield_now();
    }
}

const PINGPONG: [&str; 4] = ["--workload", "pingpong", "--param", "rounds=1000000"];

impl Machine {
    /// Starts one whose guest faults all the time.
    fn start(more: &[&str]) -> Machine {
        Machine::with(&[&PINGPONG, more].concat())
    }

    fn with(args: &[&str]) -> Machine {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api");
        let mut command = hmmvisor(args);
        command.arg("--api").arg(&socket);
        command.arg("--json").arg(folder.path().join("json"));
        command.arg("--allow-write").arg(folder.path());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
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

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        let mut errors = self.child.stderr.take().unwrap();
        errors.read_to_string(&mut text).unwrap();
        text
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let answer = self.client.get(path).unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    fn put<T: DeserializeOwned>(&self, path: &str, body: impl Serialize) -> T {
        let answer = self.client.put(path, &body).unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: impl Serialize) -> T {
        let answer = self.client.post(path, Some(&body)).unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    fn act(&self, path: &str) {
        self.client.post(path, None::<&()>).unwrap();
    }

    fn text(&self, path: &str) -> String {
        String::from_utf8(self.client.get(path).unwrap().body).unwrap()
    }

    /// What is wrong with a request that is refused.
    fn refused(&self, method: &str, path: &str, body: impl Serialize) -> Problem {
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
    fn migrate(&self, first: u32, pages: u32, to: &str) -> u64 {
        let to = to.to_owned();
        let body = Migrate { first, pages, to };
        self.post::<Migrated>("/v1/memory/migrate", body).pages
    }

    /// Pauses the machine with all pages in system memory: nothing but requests moves pages then.
    fn empty_and_pause(&self) {
        self.act("/v1/vm/pause");
        self.migrate(0, 65536, "system");
    }

    fn pin(&self, first: u32, pages: u32) -> Pin {
        self.post("/v1/memory/pins", Pages { first, pages })
    }

    /// Ends the run by the API; returns the report.
    fn stop(mut self) -> Value {
        self.act("/v1/vm/stop");
        self.ended()
    }

    fn ended(&mut self) -> Value {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.errors());
        assert!(!self.path("api").exists(), "the socket stays");
        serde_json::from_slice(&fs::read(self.path("json")).unwrap()).unwrap()
    }

    fn ctl(&self, args: &[&str]) -> Output {
        let mut command = hmmvisor(&["ctl"]);
        command.arg(self.path("api")).args(args).output().unwrap()
    }

    fn ctl_says(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The samples of a scrape, by name with labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    lines.map(sample).collect()
}

#[test]
fn a_machine_is_watched_and_steered() {
    let machine = Machine::start(&["--vcpus", "2", "--devices", "2"]);
    let vm: Vm = machine.get("/v1/vm");
    assert_eq!((vm.state, vm.vcpus, vm.devices), (VmState::Running, 2, 2));
    assert_eq!(vm.workload.as_deref(), Some("pingpong"));
    assert_eq!(
        (vm.memory_bytes, vm.device_memory_bytes),
        (256 << 20, 16 << 20)
    );
    wait_until("pages with contents", || {
        machine.get::<Memory>("/v1/memory").untouched_pages < 65536
    });
    let memory: Memory = machine.get("/v1/memory");
    let everywhere = memory.untouched_pages
        + memory.system_pages
        + memory.device_pages
        + memory.coherent_pages
        + memory.duplicated_pages
        + memory.exclusive_pages
        + memory.poisoned_pages;
    assert_eq!((memory.pages, everywhere), (65536, 65536));

    // Pages that the guest does not use.
    let range = "first=60000&pages=100";
    let residency = |places: &[(u32, u32, Where, Option<u8>)]| {
        let answer: Residency = machine.get(&format!("/v1/memory/residency?{range}"));
        let runs = answer.runs.iter();
        let runs: Vec<_> = runs
            .map(|it| (it.first, it.pages, it.place, it.device))
            .collect();
        assert_eq!(runs, places);
        let path = format!("/v1/memory/residency/bytes?{range}");
        let answer = machine.client.get(&path).unwrap();
        assert_eq!(answer.content_type, "application/octet-stream");
        let bytes = places.iter().flat_map(|(_, pages, place, device)| {
            std::iter::repeat_n(Byte::new(*place, *device, false).0, *pages as usize)
        });
        assert_eq!(answer.body, bytes.collect::<Vec<u8>>());
    };
    residency(&[(60000, 100, Where::Untouched, None)]);
    let pin = machine.pin(60000, 50);
    residency(&[
        (60000, 50, Where::System, None),
        (60050, 50, Where::Untouched, None),
    ]);
    let migrate = |first, pages, to: &str| machine.migrate(first, pages, to);
    // Pinned.
    assert_eq!(migrate(60000, 50, "device1"), 0);
    assert_eq!(machine.get::<Pins>("/v1/memory/pins").pins, [pin]);
    machine
        .client
        .delete(&format!("/v1/memory/pins/{}", pin.pin))
        .unwrap();
    assert_eq!(machine.get::<Pins>("/v1/memory/pins").pins, []);
    assert_eq!(migrate(60000, 50, "device1"), 50);
    residency(&[
        (60000, 50, Where::Device, Some(1)),
        (60050, 50, Where::Untouched, None),
    ]);
    let device: Device = machine.get("/v1/devices/1");
    assert!(device.attached && device.used_pages >= 50, "{device:?}");
    assert_eq!(device.capacity_pages, 4096);
    // Back, a part of it.
    assert_eq!(migrate(60000, 20, "system"), 20);
    machine
        .client
        .post(
            "/v1/memory/protect",
            Some(&json!({"first": 60000, "pages": 10, "permission": "read-only"})),
        )
        .unwrap();
    let answer: Residency = machine.get("/v1/memory/residency?first=60000&pages=20");
    let runs: Vec<_> = answer
        .runs
        .iter()
        .map(|it| (it.pages, it.read_only))
        .collect();
    assert_eq!(runs, [(10, true), (10, false)]);
    let hint = json!({"first": 60000, "pages": 10, "hint": "preferred:device1"});
    machine.client.post("/v1/memory/hint", Some(&hint)).unwrap();
    machine
        .client
        .post("/v1/memory/poison", Some(&json!({"page": 60019})))
        .unwrap();
    assert_eq!(machine.get::<Memory>("/v1/memory").poisoned_pages, 1);

    let report = machine.stop();
    assert_eq!(report["end"], "quit");
    assert!(report["migrations_to_device"]["user"].as_u64().unwrap() >= 50);
}

/// Policies of all kinds, again and again, while drivers fail and devices come and go.
#[test]
fn a_torture_is_verified_while_its_policy_changes() {
    let policies = [
        json!({"spec": "on-demand+fifo"}),
        json!({"spec": "adaptive+s3-fifo"}),
        json!({"spec": "four.luau", "script": "return { on_fault = function(page) return page, 4 end }"}),
        json!({"spec": "sequential+clock+thrash"}),
        json!({"spec": "density", "region": {"first": 512, "pages": 1024}}),
    ];
    for engine in ["remap", "copy"] {
        let mut machine = Machine::with(&[
            "--workload",
            "torture",
            "--param",
            "seconds=3",
            "--param",
            "chaos=on",
            "--devices",
            "2",
            "--engine",
            engine,
        ]);
        let again = policies.iter().cycle();
        let taken = again.map_while(|policy| machine.client.put("/v1/policy", policy).ok());
        let changes = taken.count();
        assert!(changes > 50, "{changes}");
        let report = machine.ended();
        assert_eq!(report["verified"], true, "{report}");
    }
}

/// Accelerators' memories shrink and grow while the guest checks what is in them.
#[test]
fn a_torture_is_verified_while_memories_change_their_size() {
    for engine in ["remap", "copy"] {
        let mut machine = Machine::with(&[
            "--workload",
            "torture",
            "--param",
            "seconds=3",
            "--param",
            "chaos=on",
            "--devices",
            "2",
            "--device-memory",
            "512K",
            "--device-memory-max",
            "2M",
            "--engine",
            engine,
        ]);
        let device: Device = machine.get("/v1/devices/1");
        assert_eq!(
            (device.capacity_pages, device.capacity_max_pages),
            (128, 512)
        );
        let sizes = [512, 1, 64, 300, 5, 128, 20].into_iter().cycle();
        let mut changed = 0;
        for (n, pages) in sizes.enumerate() {
            let path = format!("/v1/devices/{}", n % 2);
            let memory_bytes = pages * 4096;
            match machine.client.put(&path, &SetDevice { memory_bytes }) {
                Ok(answer) => {
                    let device: Device = serde_json::from_slice(&answer.body).unwrap();
                    assert_eq!(u64::from(device.capacity_pages), pages, "{device:?}");
                    assert!(u64::from(device.used_pages) <= pages, "{device:?}");
                    changed += 1;
                }
                // Drivers fail on purpose here: its pages could not leave for a second.
                Err(ClientError::Refused(problem)) if problem.detail.contains("keeps its size") => {
                }
                Err(
                    ClientError::Connect { .. }
                    | ClientError::Broken { .. }
                    | ClientError::TimedOut { .. },
                ) => break,
                Err(ClientError::Refused(problem)) if problem.detail.contains("has ended") => break,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(changed > 5, "{changed}");
        let report = machine.ended();
        assert_eq!(report["verified"], true, "{report}");
    }
}

#[test]
fn a_memory_that_cannot_shrink_keeps_its_size() {
    let machine = Machine::start(&["--devices", "2"]);
    machine.empty_and_pause();
    let memory_bytes = 64 << 12;
    machine.migrate(60000, 100, "device1");
    let fail = Provoke {
        at: WayPoint::ToSystemBeforeCopy,
        outcome: Outcome::Fail,
        times: None,
    };
    let provocations = "/v1/devices/1/provocations";
    let _: Provocations = machine.post(provocations, fail);
    let problem = machine.refused("PUT", "/v1/devices/1", SetDevice { memory_bytes });
    assert_eq!(problem.status, 409, "{problem:?}");
    assert!(problem.detail.contains("36 pages"), "{problem:?}");
    let device: Device = machine.get("/v1/devices/1");
    assert_eq!((device.capacity_pages, device.used_pages), (4096, 100));
    machine.client.delete(provocations).unwrap();
    let device: Device = machine.put("/v1/devices/1", SetDevice { memory_bytes });
    assert_eq!((device.capacity_pages, device.used_pages), (64, 64));
    machine.migrate(60000, 100, "device1");
    assert_eq!(machine.get::<Device>("/v1/devices/1").used_pages, 64);
    let report = machine.stop();
    assert!(report["migrations_to_system"]["eviction"].as_u64().unwrap() >= 36);
}

#[test]
fn long_requests_are_followed_and_cancelled() {
    let machine = Machine::start(&["--devices", "2", "--device-memory", "64M"]);
    machine.empty_and_pause();
    let provocations = "/v1/devices/1/provocations";
    let delay = |at| {
        let outcome = Outcome::DelayMs(10_000);
        let times = None;
        let _: Provocations = machine.post(provocations, Provoke { at, outcome, times });
    };
    /// Has a request begin in another thread, cancels it while its driver waits, and returns what it is answered.
    fn cancelled(machine: &Machine, path: &str, body: Option<Value>) -> (Operation, Problem) {
        std::thread::scope(|scope| {
            let request = scope.spawn(|| machine.client.post(path, body.as_ref()));
            let operations = || machine.get::<Operations>("/v1/operations").operations;
            wait_until("an operation", || {
                operations().iter().any(|it| it.total_pages > 0)
            });
            let begun = operations()[0];
            assert!(!begun.cancelled && begun.done_pages < begun.total_pages);
            // One of the two at a time.
            if begun.doing == Doing::Detach {
                for (method, path) in [("POST", path), ("PUT", "/v1/devices/1")] {
                    let body = json!({"memory_bytes": 4096});
                    let problem = machine.refused(method, path, body);
                    assert_eq!(problem.status, 409, "{problem:?}");
                    let number = format!("operation {}", begun.operation);
                    assert!(problem.detail.contains(&number), "{problem:?}");
                }
            }
            let path = format!("/v1/operations/{}", begun.operation);
            let answer = machine.client.delete(&path).unwrap();
            let now: Operation = serde_json::from_slice(&answer.body).unwrap();
            assert!(now.cancelled, "{now:?}");
            machine.client.delete("/v1/devices/1/provocations").unwrap();
            let problem = match request.join().unwrap() {
                Err(ClientError::Refused(problem)) => problem,
                other => panic!("{other:?}"),
            };
            assert_eq!((problem.status, problem.title.as_str()), (409, "cancelled"));
            assert_eq!(operations(), []);
            (begun, problem)
        })
    }

    delay(WayPoint::ToDeviceCopied);
    let migrate = json!({"first": 40000, "pages": 16384, "to": "device1"});
    let (begun, problem) = cancelled(&machine, "/v1/memory/migrate", Some(migrate));
    assert_eq!((begun.doing, begun.device), (Doing::Migrate, Some(1)));
    assert_eq!(begun.total_pages, 16384);
    assert!(problem.detail.contains("of 16384 pages"), "{problem:?}");
    let moved = machine.get::<Device>("/v1/devices/1").used_pages;
    assert!(moved > 0 && moved < 16384, "{moved}");
    assert_eq!(machine.migrate(40000, 16384, "system"), u64::from(moved));

    // Each page is a folio of its own, so that it takes more than one call of the driver.
    for page in 0..100 {
        assert_eq!(machine.migrate(60000 + 2 * page, 1, "device1"), 1);
    }
    delay(WayPoint::ToSystemCopied);
    let (begun, problem) = cancelled(&machine, "/v1/devices/1/detach", None);
    assert_eq!((begun.doing, begun.device), (Doing::Detach, Some(1)));
    assert!(problem.detail.contains("of 100 pages"), "{problem:?}");
    let device: Device = machine.get("/v1/devices/1");
    assert!(device.attached, "{device:?}");
    assert!((1..100).contains(&device.used_pages), "{device:?}");
    assert_eq!(machine.migrate(50000, 10, "device1"), 10);
    // What is not cancelled ends as it should.
    machine.act("/v1/devices/1/detach");
    let device: Device = machine.get("/v1/devices/1");
    assert_eq!((device.attached, device.used_pages), (false, 0));
    machine.stop();
}

#[test]
fn policies_are_replaced_and_bad_ones_change_nothing() {
    let machine = Machine::start(&[]);
    let spec = |spec: &str| SetPolicy {
        spec: spec.to_owned(),
        script: None,
        region: None,
    };
    let script = |name: &str, text: &str| SetPolicy {
        script: Some(text.to_owned()),
        ..spec(name)
    };
    let begin: Policy = machine.get("/v1/policy");
    let after: Policy = machine.put("/v1/policy", spec("sequential+fifo"));
    assert!(after.policy.starts_with("sequential"), "{after:?}");
    assert_ne!(after, begin);
    assert_eq!(machine.get::<Policy>("/v1/policy"), after);

    for (request, field, says) in [
        (spec("denisty"), "spec", "unknown policy 'denisty'"),
        (spec("mine.luau"), "script", "its text has to be here"),
        (script("density", "return {}"), "spec", "names no script"),
        (script("mine.luau", "return {"), "script", "mine.luau:1"),
        (script("mine.luau", "return 7"), "script", "mine.luau"),
    ] {
        let text = serde_json::to_string(&request).unwrap();
        for (method, path) in [("PUT", "/v1/policy"), ("POST", "/v1/policy/check")] {
            let problem = machine.refused(method, path, &request);
            assert_eq!(problem.status, 400, "{text}: {problem:?}");
            assert_eq!(problem.field.as_deref(), Some(field), "{text}: {problem:?}");
            assert!(problem.detail.contains(says), "{text}: {problem:?}");
        }
        assert_eq!(machine.get::<Policy>("/v1/policy"), after, "{text}");
    }
    let in_region = |first, pages| SetPolicy {
        region: Some(Pages { first, pages }),
        ..spec("on-demand")
    };
    let problem = machine.refused("PUT", "/v1/policy", in_region(3, 512));
    assert_eq!(problem.field.as_deref(), Some("region"), "{problem:?}");
    let problem = machine.refused("PUT", "/v1/policy", in_region(65024, 1024));
    assert_eq!(problem.status, 400, "{problem:?}");
    assert_eq!(machine.get::<Policy>("/v1/policy"), after);

    let both: Policy = machine.put("/v1/policy", in_region(512, 1024));
    assert!(both.policy.contains("on-demand"), "{both:?}");
    // A check uses nothing.
    let would: Policy = machine.post("/v1/policy/check", spec("density+lru"));
    assert!(would.policy.starts_with("density"), "{would:?}");
    assert_eq!(machine.get::<Policy>("/v1/policy"), both);

    let text = "return { on_fault = function(fault) return nil end }";
    let mine: Policy = machine.put("/v1/policy", script("mine.luau+fifo", text));
    assert!(mine.policy.starts_with("mine.luau+fifo"), "{mine:?}");
    // Its decisions are counted while the run goes on, and at its end.
    wait_until("a decision of the script", || {
        let stats: Value = machine.get("/v1/stats");
        stats["scripts"]["decisions"].as_u64() > Some(0)
    });
    let report = machine.stop();
    assert_eq!(report["policy"], mine.policy.as_str());
    assert!(report["scripts"]["decisions"].as_u64() > Some(0));
}

#[test]
fn wrong_requests_say_what_would_be_right() {
    let machine = Machine::start(&[]);
    let nothing = json!(null);
    let migrate =
        |first: u32, pages: u32, to: &str| json!({"first": first, "pages": pages, "to": to});
    for (method, path, body, status, field, says) in [
        (
            "GET",
            "/v1/nothing",
            nothing.clone(),
            404,
            None,
            "openapi.json",
        ),
        (
            "DELETE",
            "/v1/vm",
            nothing.clone(),
            405,
            None,
            "no such method",
        ),
        (
            "GET",
            "/v1/memory/residency?first=0",
            nothing.clone(),
            400,
            Some("query"),
            "pages",
        ),
        (
            "GET",
            "/v1/memory/residency?first=0&pages=1&x=1",
            nothing.clone(),
            400,
            Some("query"),
            "x",
        ),
        (
            "GET",
            "/v1/memory/residency?first=65536&pages=1",
            nothing.clone(),
            400,
            Some("first, pages"),
            "0 to 65535",
        ),
        (
            "GET",
            "/v1/memory/residency?first=0&pages=0",
            nothing.clone(),
            400,
            Some("first, pages"),
            "at least one",
        ),
        (
            "GET",
            "/v1/memory/residency?first=4294967295&pages=4294967295",
            nothing.clone(),
            400,
            Some("first, pages"),
            "0 to 65535",
        ),
        (
            "POST",
            "/v1/memory/migrate",
            migrate(0, 1, "gpu"),
            400,
            Some("to"),
            "device0",
        ),
        (
            "POST",
            "/v1/memory/migrate",
            migrate(0, 1, "device7"),
            400,
            Some("to"),
            "7",
        ),
        (
            "POST",
            "/v1/memory/migrate",
            migrate(65535, 2, "system"),
            400,
            Some("first, pages"),
            "0 to 65535",
        ),
        (
            "POST",
            "/v1/memory/migrate",
            json!({"first": 0, "pages": 1, "to": "system", "unit": "KiB"}),
            400,
            Some("unit"),
            "unknown field",
        ),
        (
            "POST",
            "/v1/memory/migrate",
            json!({"first": "0K", "pages": 1, "to": "system"}),
            400,
            Some("first"),
            "invalid type",
        ),
        (
            "POST",
            "/v1/memory/migrate",
            json!({"first": 0, "pages": 1}),
            400,
            Some("body"),
            "missing field `to`",
        ),
        (
            "POST",
            "/v1/memory/poison",
            json!({"page": 65536}),
            400,
            Some("page"),
            "0 to 65535",
        ),
        (
            "POST",
            "/v1/memory/hint",
            json!({"first": 0, "pages": 1, "hint": "hot"}),
            400,
            Some("hint"),
            "read-mostly",
        ),
        (
            "POST",
            "/v1/memory/protect",
            json!({"first": 0, "pages": 1, "permission": "rw"}),
            400,
            Some("permission"),
            "read-write",
        ),
        (
            "DELETE",
            "/v1/memory/pins/9",
            nothing.clone(),
            404,
            None,
            "no pin 9",
        ),
        (
            "DELETE",
            "/v1/memory/pins/x",
            nothing.clone(),
            404,
            None,
            "number",
        ),
        (
            "POST",
            "/v1/vm/power-button",
            nothing.clone(),
            409,
            None,
            "--kernel",
        ),
        ("GET", "/v1/devices/1", nothing.clone(), 404, None, "0 to 0"),
        (
            "PUT",
            "/v1/devices/1",
            json!({"memory_bytes": 4096}),
            404,
            None,
            "0 to 0",
        ),
        (
            "PUT",
            "/v1/devices/0",
            json!({"memory_bytes": 5000}),
            400,
            Some("memory_bytes"),
            "multiple of 4096",
        ),
        (
            "PUT",
            "/v1/devices/0",
            json!({"memory_bytes": 32 << 20}),
            400,
            Some("memory_bytes"),
            "--device-memory-max",
        ),
        (
            "DELETE",
            "/v1/operations/5",
            nothing.clone(),
            404,
            None,
            "no operation 5",
        ),
        (
            "POST",
            "/v1/devices/0/provocations",
            json!({"at": "to-device-committed", "outcome": "fail"}),
            400,
            Some("outcome"),
            "delay",
        ),
        (
            "POST",
            "/v1/devices/0/provocations",
            json!({"at": "flush", "outcome": {"delay-ms": 10001}}),
            400,
            Some("outcome.delay-ms"),
            "10000",
        ),
        (
            "POST",
            "/v1/devices/0/provocations",
            json!({"at": "flush", "outcome": "fail", "times": 0}),
            400,
            Some("times"),
            "at least once",
        ),
        (
            "GET",
            "/v1/events?kinds=cpu-faults",
            nothing.clone(),
            400,
            Some("kinds"),
            "cpu-fault",
        ),
        (
            "GET",
            "/v1/balloon",
            nothing.clone(),
            404,
            None,
            "--balloon",
        ),
        (
            "DELETE",
            "/v1/recording",
            nothing.clone(),
            409,
            None,
            "nothing is being recorded",
        ),
        (
            "PUT",
            "/v1/recording",
            json!({"path": "/no/such/folder/t"}),
            400,
            Some("path"),
            "make it first",
        ),
    ] {
        let problem = machine.refused(method, path, &body);
        let what = format!("{method} {path} {body}: {problem:?}");
        assert_eq!(problem.status, status, "{what}");
        assert_eq!(problem.field.as_deref(), field, "{what}");
        assert!(problem.detail.contains(says), "{what}");
    }
    // Not HTTP's own kinds of mistakes alone: what is no JSON, and what is too large.
    let raw = |head: &str, body: &[u8]| {
        let mut stream = UnixStream::connect(machine.path("api")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "POST /v1/memory/poison HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // The machine may close the connection before it has read all.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let json = "Content-Type: application/json\r\n";
    assert!(raw(json, b"{\"page\": 1").starts_with("HTTP/1.1 400"));
    assert!(raw(json, b"{\"page\": 1} 2").starts_with("HTTP/1.1 400"));
    let answer = raw("", b"{\"page\": 1}");
    assert!(answer.starts_with("HTTP/1.1 415"), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    let answer = raw(json, &vec![b' '; 2 << 20]);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let memory: Memory = machine.get("/v1/memory");
    assert_eq!((memory.poisoned_pages, memory.read_only_pages), (0, 0));
    machine.stop();
}

#[test]
fn the_figures_go_on_and_end_as_the_report() {
    for engine in ["remap", "copy"] {
        let metrics = ["--metrics", "0"];
        let more = ["--engine", engine, "--devices", "2", "--vcpus", "2"];
        let machine = Machine::start(&[metrics, [more[0], more[1]]].concat());
        let first: Value = machine.get("/v1/stats");
        assert_eq!(first["end"], Value::Null);
        wait_until("more faults", || {
            let now: Value = machine.get("/v1/stats");
            now["cpu_faults"].as_u64() > first["cpu_faults"].as_u64()
                && now["elapsed_s"].as_f64() > first["elapsed_s"].as_f64()
        });

        let paused: Vm = machine.post("/v1/vm/pause", json!(null));
        assert_eq!(paused.state, VmState::Paused);
        // What had begun ends; then nothing moves any more.
        let scrape = || samples(&machine.text("/v1/metrics"));
        let still = |mut it: BTreeMap<String, f64>| {
            it.remove("hmmvisor_uptime_seconds");
            it
        };
        let mut last = still(scrape());
        wait_until("nothing moves", || {
            std::thread::sleep(Duration::from_millis(20));
            let now = still(scrape());
            std::mem::replace(&mut last, now.clone()) == now
        });
        // By TCP it is the same.
        let vm: Vm = machine.get("/v1/vm");
        let mut stream = TcpStream::connect(vm.metrics.unwrap()).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        assert_eq!(still(samples(body)), last);

        let report = machine.stop();
        let value = |name: &str| last[&format!("hmmvisor_{name}")];
        let number = |value: &Value| value.as_f64().unwrap();
        let mut compared = 0;
        let mut same = |name: &str, expected: &Value| {
            assert_eq!(value(name), number(expected), "{engine}: {name}");
            compared += 1;
        };
        for name in [
            "cpu_faults",
            "first_touch_faults",
            "device_faults",
            "page_free_calls",
            "pages_freed",
        ] {
            same(&format!("{name}_total"), &report[name]);
        }
        same("device_pages_peak", &report["device_pages_peak"]);
        for (name, count) in report["counters"].as_object().unwrap() {
            // Prometheus's conventions have no bits.
            let name = name.replace("bits_read", "access_flags_read");
            same(&format!("{name}_total"), count);
        }
        for (to, name) in [
            ("device", "migrations_to_device"),
            ("system", "migrations_to_system"),
            ("other-device", "migrations_between_devices"),
        ] {
            for (cause, pages) in report[name].as_object().unwrap() {
                same(
                    &format!("migrated_pages_total{{to=\"{to}\",cause=\"{cause}\"}}"),
                    pages,
                );
            }
        }
        for (side, name) in [
            ("cpu", "fault_latency_us"),
            ("device", "device_fault_latency_us"),
        ] {
            // The causes of a side add up to the side's figure.
            let of_side = format!("hmmvisor_fault_latency_seconds_count{{side=\"{side}\",cause=");
            let counts = last.iter().filter(|(name, _)| name.starts_with(&of_side));
            let counts: Vec<_> = counts.map(|(_, count)| *count).collect();
            assert_eq!(counts.len(), 5, "{side}");
            let sum: f64 = counts.iter().sum();
            assert_eq!(Some(sum), report[name]["count"].as_f64(), "{side}");
        }
        let faults = report["vcpu_faults"].as_array().unwrap();
        for (vcpu, faults) in faults.iter().enumerate() {
            same(&format!("vcpu_faults_total{{vcpu=\"{vcpu}\"}}"), faults);
        }
        // No other thread of this machine touches guest memory.
        let of_vcpus: f64 = faults.iter().map(number).sum();
        assert_eq!(of_vcpus, number(&report["cpu_faults"]));
        for (n, it) in report["accelerators"]
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
        {
            for name in ["commands", "errors", "faults", "guest_faults"] {
                let name_there = format!("accelerator_{name}_total{{device=\"{n}\"}}");
                same(&name_there, &it[name]);
            }
            assert!(it["bytes_in"].as_u64() > Some(0), "{it}");
            assert!(it["bytes_out"].as_u64() > Some(0), "{it}");
        }
        for link in report["links"].as_array().unwrap() {
            let label = |name: &str| link[name].as_str().unwrap();
            let labels = format!(
                "{{from=\"{}\",to=\"{}\",route=\"{}\"}}",
                label("from"),
                label("to"),
                label("route")
            );
            same(&format!("link_transfers_total{labels}"), &link["transfers"]);
            same(&format!("link_bytes_total{labels}"), &link["bytes"]);
        }
        assert!(compared > 50, "{compared}");
        assert!(report["cpu_faults"].as_u64() > Some(0));
    }
}

#[test]
fn a_paused_machine_serves_requests_and_goes_on() {
    let machine = Machine::start(&["--vcpus", "2", "--watchdog", "2"]);
    let faults = || {
        let stats: Value = machine.get("/v1/stats");
        stats["cpu_faults"].as_u64().unwrap()
    };
    let problem = machine.refused("POST", "/v1/vm/pause?commands=drop", ());
    assert_eq!(problem.field.as_deref(), Some("query"), "{problem:?}");
    for commands in ["finish", "halt"].into_iter().cycle().take(20) {
        machine.act(&format!("/v1/vm/pause?commands={commands}"));
        machine.act("/v1/vm/pause");
        assert_eq!(machine.get::<Vm>("/v1/vm").state, VmState::Paused);
        let pages = |to: &str| machine.migrate(60000, 512, to);
        machine.pin(60000, 512);
        let pins: Pins = machine.get("/v1/memory/pins");
        machine
            .client
            .delete(&format!("/v1/memory/pins/{}", pins.pins[0].pin))
            .unwrap();
        assert_eq!((pages("device0"), pages("system")), (512, 512));
        machine.act("/v1/vm/resume");
        assert_eq!(machine.get::<Vm>("/v1/vm").state, VmState::Running);
        let before = faults();
        wait_until("faults after the pause", || faults() > before);
    }
    // The guest gives no sign of life in a pause, and that is no hang.
    machine.act("/v1/vm/pause");
    let before = faults();
    std::thread::sleep(Duration::from_millis(3500));
    assert_eq!(faults(), before);
    machine.act("/v1/vm/resume");
    wait_until("faults after the long pause", || faults() > before);
    // A paused machine ends, too.
    machine.act("/v1/vm/pause");
    assert_eq!(machine.stop()["end"], "quit");
}

#[test]
fn a_fault_that_fails_in_a_pause_is_taken_again_afterwards() {
    let machine = Machine::start(&[]);
    let path = "/v1/devices/0/provocations";
    let body = Provoke {
        at: WayPoint::ToSystemBeforeCopy,
        outcome: Outcome::Fail,
        times: None,
    };
    machine.post::<Provocations>(path, body);
    // The vCPU sleeps in a fault that is tried again for about a second.
    wait_until("a failure", || {
        machine.get::<Provocations>(path).provocations[0].happened > 0
    });
    machine.act("/v1/vm/pause");
    // By now it has failed for good, and the vCPU would have been kicked for longer than it may be deaf.
    std::thread::sleep(Duration::from_millis(4500));
    assert_eq!(machine.get::<Vm>("/v1/vm").state, VmState::Paused);
    machine.client.delete(path).unwrap();
    machine.act("/v1/vm/resume");
    let faults = || machine.get::<Value>("/v1/stats")["cpu_faults"].as_u64();
    let before = faults();
    wait_until("more faults", || faults() > before);
    assert_eq!(machine.stop()["error"], Value::Null);
}

#[test]
fn events_are_streamed_and_filtered() {
    let machine = Machine::start(&[]);
    let mut seen = Vec::new();
    let result = machine.client.lines("/v1/events", |line| {
        seen.push(serde_json::from_str::<Event>(line).unwrap());
        match seen.len() < 2000 {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    });
    result.unwrap();
    let kinds: std::collections::BTreeSet<_> = seen
        .iter()
        .map(|event| match event {
            Event::Happened { kind, .. } => kind.as_str(),
            Event::Dropped { .. } => "dropped",
        })
        .collect();
    for kind in ["cpu-fault", "device-fault", "to-device", "to-system"] {
        assert!(kinds.contains(kind), "{kinds:?}");
    }
    assert!(seen.iter().any(|event| matches!(
        event,
        Event::Happened { kind, vcpu: Some(0), latency_us: Some(us), access: Some(_), .. } if kind == "cpu-fault" && *us > 0.0
    )));

    // Only what is asked for; and the end of the run ends the stream.
    std::thread::scope(|scope| {
        let (begun, begin) = std::sync::mpsc::channel();
        let client = machine.client.clone();
        let reader = scope.spawn(move || {
            let mut kinds = BTreeMap::new();
            let result = client.lines("/v1/events?kinds=to-system", |line| {
                match serde_json::from_str::<Event>(line).unwrap() {
                    Event::Happened { kind, .. } => *kinds.entry(kind).or_insert(0) += 1,
                    Event::Dropped { .. } => {}
                }
                let _ = begun.send(());
                ControlFlow::Continue(())
            });
            result.unwrap();
            kinds
        });
        begin.recv_timeout(PATIENCE).unwrap();
        machine.act("/v1/vm/stop");
        let kinds = reader.join().unwrap();
        assert_eq!(kinds.into_keys().collect::<Vec<_>>(), ["to-system"]);
    });
}

#[test]
fn a_client_that_does_not_read_is_told_what_it_has_missed() {
    // The default policy soon has few faults.
    let machine = Machine::start(&["--vcpus", "2", "--policy", "on-demand+lru"]);
    let mut slow = UnixStream::connect(machine.path("api")).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    slow.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    // Others are served, and so is the guest.
    let faults = || {
        let stats: Value = machine.get("/v1/stats");
        stats["cpu_faults"].as_u64().unwrap() + stats["device_faults"].as_u64().unwrap()
    };
    let before = faults();
    wait_until("many events", || faults() > before + 30_000);
    let mut text = String::new();
    let mut buffer = [0; 1 << 16];
    wait_until("a line about dropped events", || {
        let n = slow.read(&mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        text.contains("{\"dropped\":{")
    });
    drop(slow);
    machine.stop();
}

#[test]
fn a_recording_begins_and_ends_while_the_machine_runs() {
    let machine = Machine::start(&[]);
    let idle: Recording = machine.get("/v1/recording");
    assert_eq!(idle, Recording::default());
    let path = machine.path("first.trace");
    let body = |path: &Path| Record {
        path: path.display().to_string(),
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let problem = machine.refused("PUT", "/v1/recording", body(&elsewhere.path().join("t")));
    assert!(problem.detail.contains("--allow-write"), "{problem:?}");
    let begun: Recording = machine.put("/v1/recording", body(&path));
    assert!(begun.active && begun.path.as_deref() == path.to_str());
    let problem = machine.refused("PUT", "/v1/recording", body(&machine.path("second.trace")));
    assert_eq!(problem.status, 409);
    assert!(problem.detail.contains("first.trace"), "{problem:?}");
    wait_until("events in the trace", || {
        TraceReader::open(&path).is_ok_and(|reader| reader.totals().events > 1000)
    });
    let answer = machine.client.delete("/v1/recording").unwrap();
    let ended: Recording = serde_json::from_slice(&answer.body).unwrap();
    assert!(
        !ended.active && ended.events > 1000 && ended.error.is_none(),
        "{ended:?}"
    );
    let reader = TraceReader::open(&path).unwrap();
    assert_eq!(reader.tail(), Tail::Complete);
    assert_eq!(reader.totals().events, ended.events);
    assert_eq!(reader.meta().workload.as_deref(), Some("pingpong"));
    // Where the report goes is no place for a trace.
    let problem = machine.refused("PUT", "/v1/recording", body(&machine.path("json")));
    assert_eq!(problem.field.as_deref(), Some("path"), "{problem:?}");
    // One that the run's end ends.
    let path = machine.path("second.trace");
    machine.put::<Recording>("/v1/recording", body(&path));
    let report = machine.path("json");
    let folder = machine.folder.path().to_owned();
    wait_until("events in the second trace", || {
        TraceReader::open(&path).is_ok_and(|reader| reader.totals().events > 0)
    });
    machine.act("/v1/vm/stop");
    let mut machine = machine;
    let value = machine.ended();
    assert!(report.starts_with(&folder));
    assert_eq!(value["recording"]["path"], path.to_str().unwrap());
    let reader = TraceReader::open(&path).unwrap();
    assert_eq!(reader.tail(), Tail::Complete);
    assert_eq!(value["recording"]["events"], reader.totals().events);
}

/// A trace that begins in the middle of a run says first where pages are. Its replay makes the same migrations as the run.
#[test]
fn a_recording_in_the_middle_says_where_pages_are() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("run.toml");
    fs::write(&config, "[engine]\nlockstep = true\n").unwrap();
    let policy = "on-demand+lru+timeslice:min=0us";
    let config = ["run", config.to_str().unwrap(), "--policy", policy];
    let machine = Machine::with(&[&config[..], &PINGPONG].concat());
    wait_until("pages that have moved", || {
        let stats: Value = machine.get("/v1/stats");
        stats["pages_to_device"].as_u64() > Some(200)
    });
    // Some pages that the guest does not use, on either side.
    machine.act("/v1/vm/pause");
    machine.pin(60000, 700);
    machine.client.delete("/v1/memory/pins/0").unwrap();
    assert_eq!(machine.migrate(60100, 50, "device0"), 50);
    let at_first = machine.get::<Memory>("/v1/memory");
    let path = machine.path("t");
    let record = Record {
        path: path.display().to_string(),
    };
    machine.put::<Recording>("/v1/recording", record);
    machine.act("/v1/vm/resume");
    wait_until("events in the trace", || {
        TraceReader::open(&path).is_ok_and(|reader| reader.totals().events > 2000)
    });
    machine.act("/v1/vm/pause");
    machine.client.delete("/v1/recording").unwrap();

    let reader = TraceReader::open(&path).unwrap();
    let meta = reader.meta().clone();
    let events: Vec<backend::Event> = reader.map(Result::unwrap).collect();
    let begin = events.partition_point(|event| event.kind == backend::EventKind::Placed);
    let pages = |on_device| {
        let placed = events[..begin].iter();
        let there = placed.filter(|event| event.device.is_some() == on_device);
        there.map(|event| u64::from(event.pages)).sum::<u64>()
    };
    let placed = (pages(true), pages(false));
    assert_eq!(placed, (at_first.device_pages, at_first.system_pages));
    let replay = |events: &[backend::Event]| {
        let config = ReplayConfig {
            policy: Arc::new(policy.parse::<PolicySpec>().unwrap()),
            memory: meta.memory,
            device_memory: meta.device_memory,
            devices: 1,
            links: meta.link.parse().unwrap(),
            costs: Costs::default(),
            fidelity: meta.fidelity.parse().unwrap(),
            eviction_batch: meta.eviction_batch.unwrap(),
            time: Time::Trace,
            optimal: false,
            moves: true,
        };
        replay(events.iter().copied(), &config).unwrap()
    };
    /// For each page, where it has gone, in order.
    fn ways(events: &[backend::Event]) -> BTreeMap<u32, Vec<backend::EventKind>> {
        let mut ways = BTreeMap::<_, Vec<_>>::new();
        let moved = |kind| {
            matches!(
                kind,
                backend::EventKind::ToDevice | backend::EventKind::ToSystem
            )
        };
        for event in events.iter().filter(|event| moved(event.kind)) {
            for page in event.page.0..event.page.0 + event.pages {
                ways.entry(page).or_default().push(event.kind);
            }
        }
        ways
    }
    let live = ways(&events);
    let moves: u64 = live.values().map(|way| way.len() as u64).sum();
    assert!(moves > 500, "{moves}");
    let replayed = replay(&events);
    assert_eq!(ways(&replayed.moves), live);
    // What was there at the beginning is no figure of the policy's.
    let all = replayed.pages_to_device + replayed.pages_to_system;
    assert_eq!((all, replayed.cpu_faults > 0), (moves, true));
    // Without the beginning, pages that were on the device are taken for untouched.
    assert_ne!(ways(&replay(&events[begin..]).moves), live);
    machine.stop();
}

#[test]
fn drivers_are_provoked_and_a_device_is_detached() {
    let machine = Machine::start(&["--devices", "2"]);
    let path = "/v1/devices/1/provocations";
    // So that only the requests' migrations pass the way-points.
    machine.act("/v1/vm/pause");
    let migrate = |to: &str| machine.migrate(60000, 4, to);
    machine.pin(60000, 4);
    machine.client.delete("/v1/memory/pins/0").unwrap();
    let provoke = |at, outcome, times| {
        let body = Provoke { at, outcome, times };
        machine.post::<Provocations>(path, body).provocations
    };
    provoke(WayPoint::ToDeviceBeforeCopy, Outcome::Fail, Some(1));
    assert_eq!(migrate("device1"), 0);
    assert_eq!(migrate("device1"), 4);
    let all: Provocations = machine.get(path);
    assert_eq!(
        (all.provocations[0].left, all.provocations[0].happened),
        (Some(0), 1)
    );
    provoke(WayPoint::ToSystemCopied, Outcome::Fail, None);
    assert_eq!(migrate("system"), 0);
    machine.client.delete(path).unwrap();
    assert_eq!(machine.get::<Provocations>(path).provocations, []);
    assert_eq!(migrate("system"), 4);
    // A delay takes its time, and ends early when it is ended.
    provoke(WayPoint::ToDeviceCommitted, Outcome::DelayMs(50), Some(1));
    let begin = Instant::now();
    assert_eq!(migrate("device1"), 4);
    assert!(begin.elapsed() >= Duration::from_millis(50));
    provoke(WayPoint::ToSystemCopied, Outcome::DelayMs(10_000), Some(1));
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| migrate("system"));
        wait_until("the delay", || {
            machine
                .get::<Provocations>(path)
                .provocations
                .iter()
                .any(|it| it.at == WayPoint::ToSystemCopied && it.happened == 1)
        });
        machine.client.delete(path).unwrap();
        assert_eq!(moving.join().unwrap(), 4);
    });

    assert_eq!(migrate("device1"), 4);
    machine.act("/v1/devices/1/detach");
    let devices: Devices = machine.get("/v1/devices");
    let states: Vec<_> = devices.devices.iter().map(|it| it.attached).collect();
    assert_eq!(states, [true, false]);
    assert_eq!(devices.devices[1].used_pages, 0);
    let problem = machine.refused("POST", "/v1/devices/1/detach", json!(null));
    assert_eq!(problem.status, 409);
    assert!(problem.detail.contains("detached already"), "{problem:?}");
    let body = json!({"first": 60000, "pages": 4, "to": "device1"});
    let problem = machine.refused("POST", "/v1/memory/migrate", body);
    assert_eq!(problem.field.as_deref(), Some("to"), "{problem:?}");
}

#[test]
fn the_socket_is_the_machines_alone() {
    let machine = Machine::start(&[]);
    let socket = machine.path("api");
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let refused = |path: &Path| {
        let output = hmmvisor(&["--api"]).arg(path).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    // A process listens there, and goes on.
    let error = refused(&socket);
    assert!(error.contains("is in use"), "{error}");
    machine.get::<Vm>("/v1/vm");
    // Another file took its place: it stays.
    fs::remove_file(&socket).unwrap();
    let other = UnixListener::bind(&socket).unwrap();
    let report = machine.path("json");
    let mut machine = machine;
    // SAFETY: sends a signal to the child.
    unsafe { libc::kill(machine.child.id() as i32, libc::SIGTERM) };
    machine.child.wait().unwrap();
    assert!(socket.exists() && report.exists());
    // A stale socket is replaced.
    drop(other);
    let mut command = hmmvisor(&["--workload", "pingpong", "--param", "rounds=2"]);
    let status = command.arg("--api").arg(&socket).output().unwrap();
    assert!(status.status.success(), "{status:?}");
    assert!(!socket.exists());

    let folder = tempfile::tempdir().unwrap();
    let error = refused(&folder.path().join("no").join("socket"));
    assert!(error.contains("make its folder first"), "{error}");
    let error = refused(&folder.path().join("a".repeat(120)));
    assert!(error.contains("at most 107 bytes"), "{error}");
    let file = folder.path().join("file");
    fs::write(&file, "kept").unwrap();
    let error = refused(&file);
    assert!(error.contains("is no socket"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"kept");
    assert!(!fs::metadata(&file).unwrap().file_type().is_socket());
}

#[test]
fn requests_at_the_end_of_a_run_get_a_clear_answer() {
    for _ in 0..5 {
        let machine = Machine::start(&["--vcpus", "2"]);
        std::thread::scope(|scope| {
            let asking = (0..4).map(|n| {
                let client = machine.client.clone();
                scope.spawn(move || {
                    loop {
                        let answer = match n {
                            0 => client.get("/v1/stats"),
                            1 => client.get("/v1/memory"),
                            2 => client.post(
                                "/v1/memory/migrate",
                                Some(&json!({"first": 0, "pages": 65536, "to": "system"})),
                            ),
                            _ => client.post("/v1/vm/pause", None::<&()>),
                        };
                        match answer {
                            Ok(_) => {}
                            Err(ClientError::Refused(problem)) => {
                                assert_eq!(problem.status, 409, "{problem:?}");
                            }
                            Err(ClientError::Connect { .. } | ClientError::Broken { .. }) => return,
                            Err(other) => panic!("{other}"),
                        }
                    }
                })
            });
            let asking: Vec<_> = asking.collect();
            machine.act("/v1/vm/stop");
            asking.into_iter().for_each(|it| it.join().unwrap());
        });
        let mut machine = machine;
        assert_eq!(machine.ended()["end"], "quit");
    }
}

#[test]
fn slow_and_many_clients_keep_no_other_from_being_served() {
    let machine = Machine::start(&[]);
    let connect = || UnixStream::connect(machine.path("api")).unwrap();
    let mut slow: Vec<_> = (0..60).map(|_| connect()).collect();
    for stream in &mut slow {
        stream
            .write_all(b"POST /v1/memory/poison HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{")
            .unwrap();
    }
    // Far more than are served at a time.
    let idle: Vec<_> = (0..400).map(|_| connect()).collect();
    for _ in 0..100 {
        machine.get::<Memory>("/v1/memory");
    }
    drop((slow, idle));
    machine.stop();
}

#[test]
fn without_a_socket_there_is_no_thread_of_the_api() {
    let threads = |args: &[&str]| {
        let mut command = hmmvisor(&[&PINGPONG, args].concat());
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let names = || {
            let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
            let name = |task: std::io::Result<fs::DirEntry>| {
                fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
            };
            tasks.map(name).collect::<Vec<_>>()
        };
        let mut seen = Vec::new();
        wait_until("the vCPU", || {
            seen = names();
            seen.iter().any(|name| name.starts_with("vcpu0"))
        });
        // What starts after the vCPU.
        std::thread::sleep(Duration::from_millis(200));
        seen = names();
        child.kill().unwrap();
        child.wait().unwrap();
        seen.iter().filter(|name| name.starts_with("api")).count()
    };
    assert_eq!(threads(&[]), 0);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    assert_eq!(threads(&["--api", socket.to_str().unwrap()]), 1);
}

#[test]
fn metrics_by_tcp_are_all_that_is_there() {
    // A port that was free a moment ago.
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let mut command = hmmvisor(&PINGPONG);
    command.args(["--metrics", &port.to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    wait_until("the port", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("GET /metrics").contains("hmmvisor_cpu_faults_total"));
    for request in ["GET /v1/vm", "POST /v1/vm/stop", "GET /"] {
        assert!(ask(request).starts_with("HTTP/1.1 404"), "{request}");
    }
    assert!(ask("POST /metrics").starts_with("HTTP/1.1 405"));
    assert_eq!(child.try_wait().unwrap(), None);
    child.kill().unwrap();
    child.wait().unwrap();
    for wrong in ["1.2.3", "localhost:9100", "70000"] {
        let output = hmmvisor(&["--metrics", wrong]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("127.0.0.1:9100"), "{error}");
    }
}

#[test]
fn ctl_asks_for_everything() {
    let machine = Machine::start(&["--devices", "2"]);
    let says = |line: &str| machine.ctl_says(&line.split(' ').collect::<Vec<_>>());
    assert!(says("vm").contains("pingpong, running for"));
    assert!(says("memory").contains("device memory"));
    assert!(says("pin 60000 8").contains("pin 0: 8 pages from 60000"));
    assert!(says("pins").contains("pin 0"));
    says("unpin 0");
    assert_eq!(says("migrate 60000 8 device1"), "8 pages have moved\n");
    assert!(says("residency 60000 16").contains("60000          8 pages  device 1"));
    assert_eq!(says("evict 60000 8"), "8 pages have moved\n");
    says("protect 60000 8 read-only");
    says("hint 60000 8 read-mostly");
    assert!(says("policy").contains('+'));
    assert!(says("policy density --region 0 512").contains("density"));
    let script = machine.path("mine.luau");
    fs::write(
        &script,
        "return { on_fault = function(fault) return nil end }",
    )
    .unwrap();
    let named = format!("policy {} --check", script.display());
    assert!(says(&named).contains("mine.luau"));
    assert!(!says("policy").contains("mine.luau"));
    assert!(says("devices").contains("device1  attached"));
    assert!(
        says("provoke 1 flush --delay 5 --times 2")
            .contains("flush: takes 5 ms longer, 2 times more")
    );
    says("provoke 1 --end");
    assert_eq!(says("provoke 1"), "");
    assert!(says("resize 1 8M").contains("of 2048 pages"));
    assert_eq!(says("operations"), "");
    assert_eq!(machine.ctl(&["cancel", "99"]).status.code(), Some(1));
    assert!(says("pause").contains("paused"));
    assert!(says("resume").contains("running"));
    assert!(says("record").contains("nothing has been recorded"));
    let trace = machine.path("t");
    assert!(says(&format!("record {}", trace.display())).starts_with("recording into"));
    assert!(says("record --end").contains("events in"));
    assert_eq!(
        says("events --kinds cpu-fault --count 3").lines().count(),
        3
    );
    assert!(says("metrics").contains("hmmvisor_cpu_faults_total"));
    let stats: Value = serde_json::from_str(&says("stats")).unwrap();
    assert_eq!(stats["workload"], "pingpong");
    let vm: Vm = serde_json::from_str(&says("vm --json")).unwrap();
    assert_eq!(vm.state, VmState::Running);
    let api: Value = serde_json::from_str(&says("openapi")).unwrap();
    assert!(api["paths"].as_object().unwrap().len() > 20);

    // Mistakes: of the command line 2, of the request 1.
    let code = |line: &str| {
        machine
            .ctl(&line.split(' ').collect::<Vec<_>>())
            .status
            .code()
    };
    assert_eq!(code("migrate 60000 8"), Some(2));
    assert_eq!(code("protect 0 1 rw"), Some(2));
    let output = machine.ctl(&["migrate", "70000", "8", "system"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("0 to 65535"), "{error}");
    // Its guest would find that its commands fail.
    says("pause --commands halt");
    says("detach 1");
    assert!(says("devices").contains("device1  detached"));
    says("stop");
    let mut machine = machine;
    machine.ended();
    let output = machine.ctl(&["vm"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("--api"), "{error}");
}
