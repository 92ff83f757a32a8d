//! Figures and metrics.

use super::*;

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
