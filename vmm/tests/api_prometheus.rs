//! A real Prometheus scrapes a run: at the end it has what the report has.

mod live;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hmmvisor_api::Vm;
use live::{Machine, PATIENCE, wait_until};
use serde_json::Value;

/// A Prometheus that scrapes one address.
struct Prometheus {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last sample of a series.
struct Sample {
    name: String,
    labels: serde_json::Map<String, Value>,
    value: f64,
}

impl Prometheus {
    fn start(target: &str) -> Prometheus {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "scrape_configs:\n  - job_name: hmmvisor\n    scrape_interval: 200ms\n    scrape_timeout: 200ms\n    \
             static_configs: [{{targets: [\"{target}\"]}}]\n"
        );
        fs::write(&config, text).unwrap();
        // A port that was free a moment ago.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        let data = folder.path().join("data");
        command.arg(format!("--storage.tsdb.path={}", data.display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let log = File::create(folder.path().join("log")).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn();
        let mut prometheus = Prometheus {
            child: child.expect("Debian's package `prometheus` is needed"),
            port,
            folder,
        };
        wait_until("Prometheus", || {
            prometheus.goes_on();
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        prometheus
    }

    fn goes_on(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
            panic!("Prometheus has ended: {status}: {log}");
        }
    }

    /// The last sample of each of the run's series; none before it has been scraped.
    fn samples(&self) -> Vec<Sample> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // HTTP/1.0 has no chunks.
        stream
            .write_all(b"GET /api/v1/query?query=%7Bjob%3D%22hmmvisor%22%7D HTTP/1.0\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        // It is not ready yet.
        if head.contains(" 503 ") {
            return Vec::new();
        }
        let answer: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
        let results = answer["data"]["result"].as_array().unwrap();
        let sample = |result: &Value| {
            let mut labels = result["metric"].as_object().unwrap().clone();
            labels.retain(|name, _| name != "job" && name != "instance");
            let name = labels.remove("__name__").unwrap();
            Sample {
                name: name.as_str().unwrap().to_owned(),
                labels,
                value: result["value"][1].as_str().unwrap().parse().unwrap(),
            }
        };
        results.iter().map(sample).collect()
    }
}

fn value(samples: &[Sample], name: &str, labels: Value) -> Option<f64> {
    let labels = labels.as_object().unwrap();
    let mut all = samples.iter();
    let sample = all.find(|it| it.name == name && it.labels == *labels);
    sample.map(|it| it.value)
}

fn uptime(samples: &[Sample]) -> f64 {
    value(
        samples,
        "hmmvisor_uptime_seconds",
        Value::Object(Default::default()),
    )
    .unwrap_or(0.0)
}

#[test]
fn prometheus_has_the_figures_of_the_report() {
    let machine = Machine::start(&["--devices", "2", "--vcpus", "2", "--metrics", "0"]);
    let vm: Vm = machine.get("/v1/vm");
    let prometheus = Prometheus::start(&vm.metrics.unwrap());
    wait_until("a scrape of a run at work", || {
        value(
            &prometheus.samples(),
            "hmmvisor_cpu_faults_total",
            Value::Object(Default::default()),
        ) > Some(1000.0)
    });

    machine.client.post("/v1/vm/pause", None::<&()>).unwrap();
    // What had begun ends; then nothing moves any more, and a later scrape has what the report will have.
    let stats = || {
        let mut stats: Value = machine.get("/v1/stats");
        stats.as_object_mut().unwrap().remove("elapsed_s");
        stats
    };
    let (mut last, mut since) = (stats(), Instant::now());
    wait_until("nothing moves", || {
        let now = stats();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        // Longer than a fault is put off or tried again.
        since.elapsed() > Duration::from_millis(500)
    });
    let still: Vm = machine.get("/v1/vm");
    let mut samples = Vec::new();
    wait_until("a scrape of the paused run", || {
        samples = prometheus.samples();
        uptime(&samples) > still.uptime_s
    });
    let text = machine.client.get("/v1/metrics").unwrap().body;
    promtool(&text);
    let report = machine.stop();

    let mut compared = 0;
    let mut same = |name: &str, labels: Value, expected: &Value| {
        let name = format!("hmmvisor_{name}");
        let found = value(&samples, &name, labels.clone());
        assert_eq!(found, expected.as_f64(), "{name}{labels}");
        compared += 1;
    };
    // Prometheus's conventions have no bits.
    let counter = |name: &str| format!("{}_total", name.replace("bits_read", "access_flags_read"));
    let none = || Value::Object(Default::default());
    let top = [
        "cpu_faults",
        "first_touch_faults",
        "device_faults",
        "page_free_calls",
        "pages_freed",
    ];
    for name in top {
        same(&counter(name), none(), &report[name]);
    }
    let counters = report["counters"].as_object().unwrap();
    for (name, count) in counters {
        same(&counter(name), none(), count);
    }
    for (to, name) in [
        ("device", "migrations_to_device"),
        ("system", "migrations_to_system"),
        ("other-device", "migrations_between_devices"),
    ] {
        for (cause, pages) in report[name].as_object().unwrap() {
            let labels = serde_json::json!({"to": to, "cause": cause});
            same("migrated_pages_total", labels, pages);
        }
    }
    for (side, name) in [
        ("cpu", "fault_latency_us"),
        ("device", "device_fault_latency_us"),
    ] {
        let of_causes = samples.iter().filter(|it| {
            it.name == "hmmvisor_fault_latency_seconds_count" && it.labels["side"] == side
        });
        let count: f64 = of_causes.map(|it| it.value).sum();
        assert_eq!(Some(count), report[name]["count"].as_f64(), "{name}");
    }
    for (vcpu, faults) in report["vcpu_faults"].as_array().unwrap().iter().enumerate() {
        let labels = serde_json::json!({"vcpu": vcpu.to_string()});
        same("vcpu_faults_total", labels, faults);
    }
    for (device, figures) in report["accelerators"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        for name in ["commands", "errors", "faults", "guest_faults"] {
            let labels = serde_json::json!({"device": device.to_string()});
            same(&format!("accelerator_{name}_total"), labels, &figures[name]);
        }
    }
    for link in report["links"].as_array().unwrap() {
        let labels =
            serde_json::json!({"from": link["from"], "to": link["to"], "route": link["route"]});
        same("link_transfers_total", labels.clone(), &link["transfers"]);
        same("link_bytes_total", labels, &link["bytes"]);
    }
    assert!(compared > 50, "{compared}");
    // No counter without labels is left over.
    for sample in samples.iter().filter(|it| it.labels.is_empty()) {
        if let Some(name) = sample.name.strip_suffix("_total") {
            let name = name.strip_prefix("hmmvisor_").unwrap();
            let name = name.replace("access_flags_read", "bits_read");
            assert!(
                top.contains(&&*name) || counters.contains_key(&name),
                "{name} is not in the report"
            );
        }
    }
}

/// Prometheus's own check of a scrape: the format, names, units and descriptions.
fn promtool(text: &[u8]) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .expect("Debian's package `prometheus` is needed");
    child.stdin.take().unwrap().write_all(text).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        output.status.success() && said.is_empty(),
        "{}: {said}",
        output.status
    );
}
