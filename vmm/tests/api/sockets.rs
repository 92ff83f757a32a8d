//! The socket, and clients in number.

use super::*;

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
