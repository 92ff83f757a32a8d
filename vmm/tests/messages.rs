//! What the command says on standard error, and to the service manager that has started it.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hmmvisor_api::{Client, Policy, SetPolicy};
use serde_json::Value;

/// Longer than anything here takes, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);
const ENDLESS: [&str; 4] = ["--workload", "pingpong", "--param", "rounds=1000000"];

fn hmmvisor(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hmmvisor"));
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// A service manager's socket.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager(socket)
    }

    fn told(&self) -> String {
        let mut told = [0; 4096];
        let length = self.0.recv(&mut told).unwrap();
        String::from_utf8_lossy(&told[..length]).into_owned()
    }
}

/// A machine that does not outlive a test that fails.
struct Machine(Option<Child>);

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut machine) = self.0.take() {
            let _ = machine.kill();
            let _ = machine.wait();
        }
    }
}

/// Runs a machine with an API, has `use_it` use it as soon as the service manager is told that it runs, and stops it.
fn serve(args: &[&str], use_it: impl FnOnce(&Client)) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let (socket, api) = (folder.path().join("manager"), folder.path().join("api"));
    let manager = Manager::at(&socket);
    let mut command = hmmvisor(args);
    command.env("NOTIFY_SOCKET", &socket).arg("--api").arg(&api);
    let mut machine = Machine(Some(command.stderr(Stdio::piped()).spawn().unwrap()));
    assert_eq!(manager.told(), "READY=1\n");
    let client = Client::new(api);
    use_it(&client);
    client.post("/v1/vm/stop", None::<&()>).unwrap();
    machine.0.take().unwrap().wait_with_output().unwrap()
}

fn policy(spec: &str, script: Option<&str>) -> SetPolicy {
    SetPolicy {
        spec: spec.to_owned(),
        script: script.map(str::to_owned),
        region: None,
    }
}

/// Each line of standard error, which has nothing but objects.
fn objects(output: &Output) -> Vec<Value> {
    let text = str::from_utf8(&output.stderr).unwrap();
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    text.lines().map(parse).collect()
}

fn find<'a>(objects: &'a [Value], message: &str) -> &'a Value {
    let found = objects.iter().find(|it| it["message"] == message);
    found.unwrap_or_else(|| panic!("no `{message}` among {objects:#?}"))
}

#[test]
fn a_run_and_its_requests_are_told_as_objects() {
    let log = ["--log-format", "json", "--log-level", "info"];
    let output = serve(&[&ENDLESS[..], &log].concat(), |client| {
        client.get("/v1/memory").unwrap();
        client
            .put("/v1/policy", &policy("on-demand+lru", None))
            .unwrap();
        client
            .put("/v1/policy", &policy("nonsense", None))
            .unwrap_err();
    });
    let objects = objects(&output);
    for object in &objects {
        assert!(
            object["timestamp"].as_str().unwrap().ends_with('Z'),
            "{object}"
        );
        assert_eq!(object["level"], "INFO", "{object}");
    }
    assert_eq!(find(&objects, "the machine runs")["vcpus"], 1);
    let of_requests = objects
        .iter()
        .filter(|it| it["message"] == "answered a request");
    let requests: Vec<_> = of_requests
        .map(|it| format!("{} {} {}", it["method"], it["path"], it["status"]))
        .collect();
    let expected = [
        r#""PUT" "/v1/policy" 200"#,
        r#""PUT" "/v1/policy" 400"#,
        r#""POST" "/v1/vm/stop" 204"#,
    ];
    assert_eq!(requests, expected);
    let code = i64::from(output.status.code().unwrap());
    assert_eq!(find(&objects, "the machine has stopped")["exit_code"], code);
}

#[test]
fn errors_are_objects_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    fs::write(&file, "[log]\nformat = \"json\"\n[machine]\nvcpus = 1000\n").unwrap();
    let broken = folder.path().join("broken.toml");
    fs::write(&broken, "[machine]\nvcpus = \"\u{1b}[31m\"").unwrap();
    let in_file = [file.to_str().unwrap()];
    let with_option = [broken.to_str().unwrap(), "--log-format", "json"];
    for (args, part) in [(&in_file[..], "1000"), (&with_option, "vcpus")] {
        let output = hmmvisor(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let objects = objects(&output);
        assert_eq!(objects.len(), 1, "{objects:?}");
        assert_eq!(objects[0]["level"], "ERROR");
        let message = objects[0]["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn only_what_is_important_enough_is_told() {
    for level in [&[][..], &["--log-level", "warn"], &["--log-level", "error"]] {
        let output = serve(&[&ENDLESS[..], level].concat(), |_| {});
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{level:?}");
    }
    let output = serve(&[&ENDLESS[..], &["--log-level", "info"]].concat(), |_| {});
    let text = String::from_utf8_lossy(&output.stderr);
    for line in text.lines() {
        assert!(line.starts_with("hmmvisor: "), "{line}");
    }
    assert!(
        text.contains("hmmvisor: the machine has stopped exit_code="),
        "{text}"
    );
}

/// The script runs in threads that the sandbox confines, which can start no thread to write its messages.
#[test]
fn a_script_that_a_request_brings_can_have_messages() {
    let script = r#"return { on_fault = function() print("a fault came") end }"#;
    let output = serve(&ENDLESS, |client| {
        let request = policy("mine.luau+lru", Some(script));
        let answer = client.put("/v1/policy", &request).unwrap();
        let policy: Policy = serde_json::from_slice(&answer.body).unwrap();
        assert!(policy.policy.contains("mine.luau"), "{policy:?}");
        wait_for_decisions(client);
    });
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("a fault came"), "{text}");
}

/// Waits until scripts have decided.
fn wait_for_decisions(client: &Client) {
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < PATIENCE, "scripts decide nothing");
        let stats: Value = serde_json::from_slice(&client.get("/v1/stats").unwrap().body).unwrap();
        if stats["scripts"]["decisions"].as_u64() > Some(0) {
            return;
        }
        std::thread::yield_now();
    }
}

/// More messages than a pipe and the queue take, and no reader.
#[test]
fn requests_do_not_wait_for_a_reader_of_messages() {
    let (answered, answers) = mpsc::channel();
    let args = [&ENDLESS[..], &["--log-level", "info"]].concat();
    let output = serve(&args, |client| {
        let client = client.clone();
        thread::spawn(move || {
            for _ in 0..2000 {
                client
                    .put("/v1/policy", &policy("nonsense", None))
                    .unwrap_err();
            }
            let _ = answered.send(());
        });
        answers.recv_timeout(PATIENCE).unwrap();
    });
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.lines().count() < 2000, "they found room");
}

#[test]
fn a_manager_that_is_not_there_is_told_of() {
    let missing = ["--workload", "crash", "--param", "kind=exit"];
    let mut command = hmmvisor(&missing);
    let output = command
        .env("NOTIFY_SOCKET", "/nowhere/at/all")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("telling the service manager"), "{text}");
}
