//! One truth for each figure: the summary, the JSON report, `trace info`, the exported table and the page about a run say the
//! same of one run.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const HMMVISOR: &str = env!("CARGO_BIN_EXE_hmmvisor");

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{out}{error}");
    out
}

/// A row of an exported table.
type Row = HashMap<String, String>;

/// Everything that says something about one run.
struct Sayings {
    summary: String,
    json: Value,
    info: Value,
    page: String,
    rows: Vec<Row>,
}

impl Sayings {
    fn of(args: &[&str], folder: &Path) -> Sayings {
        let path = |name: &str| folder.join(name);
        let (trace, json, table, page) = (path("t"), path("j"), path("c"), path("p"));
        let mut run = Command::new(HMMVISOR);
        run.arg("run").args(args);
        run.arg("--record").arg(&trace).arg("--json").arg(&json);
        let summary = output(&mut run);
        let mut export = Command::new(HMMVISOR);
        export.args(["trace", "export", "--format", "csv"]);
        output(export.arg(&trace).arg("-o").arg(&table));
        let mut report = Command::new(HMMVISOR);
        output(report.arg("report").arg(&trace).arg("-o").arg(&page));
        let mut info = Command::new(HMMVISOR);
        let info = output(info.args(["trace", "info", "--json", "-"]).arg(&trace));
        let mut rows = csv::Reader::from_path(&table).unwrap();
        Sayings {
            summary,
            json: serde_json::from_slice(&fs::read(json).unwrap()).unwrap(),
            info: serde_json::from_str(&info).unwrap(),
            page: fs::read_to_string(page).unwrap(),
            rows: rows.deserialize().map(Result::unwrap).collect(),
        }
    }

    fn json(&self, path: &str) -> u64 {
        let value = self.json.pointer(path);
        let number = value.and_then(Value::as_u64);
        number.unwrap_or_else(|| panic!("{path}: {value:?}"))
    }

    /// Events and pages of these kinds in `trace info`.
    fn info(&self, kinds: &[&str]) -> (u64, u64) {
        let of = |kind: &&str| {
            let figures = &self.info["kinds"][kind];
            let figure = |name: &str| figures[name].as_u64().unwrap_or(0);
            (figure("events"), figure("pages"))
        };
        let all = kinds.iter().map(of);
        all.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1))
    }

    /// The same in the exported table.
    fn table(&self, kinds: &[&str]) -> (u64, u64) {
        let rows = self
            .rows
            .iter()
            .filter(|row| kinds.contains(&&*row["kind"]));
        let pages = rows.map(|row| row["pages"].parse::<u64>().unwrap());
        pages.fold((0, 0), |sum, pages| (sum.0 + 1, sum.1 + pages))
    }

    /// The first number in a row of the page's first table.
    fn page(&self, name: &str) -> u64 {
        let (_, rest) = self.page.split_once(&format!("{name}</td>")).unwrap();
        let (_, rest) = rest.split_once('>').unwrap();
        let digits = rest.chars().take_while(|c| c.is_ascii_digit() || *c == ',');
        let digits: String = digits.filter(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    }

    /// The first number behind a word of the summary.
    fn summary(&self, name: &str) -> u64 {
        let line = self
            .summary
            .lines()
            .find_map(|line| line.trim().strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("no {name}:\n{}", self.summary));
        let digits = line.chars().skip_while(|c| !c.is_ascii_digit());
        let digits = digits.take_while(|c| c.is_ascii_digit() || *c == ',');
        let digits: String = digits.filter(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    }

    /// The most pages that were on devices at a time, as the table's events tell.
    fn peak(&self) -> u64 {
        let mut on_device = BTreeSet::new();
        let mut most = 0;
        for row in &self.rows {
            let number = |name: &str| row[name].parse::<u64>().unwrap();
            let pages = number("page")..number("page") + number("pages");
            let gone = |row: &Row| match &*row["kind"] {
                "to-system" | "freed" => true,
                "collapsed" => row["device"].is_empty(),
                _ => false,
            };
            if row["kind"] == "to-device" {
                on_device.extend(pages);
            } else if gone(row) {
                pages.for_each(|page| _ = on_device.remove(&page));
            }
            most = most.max(on_device.len() as u64);
        }
        most
    }

    fn check(&self) {
        let counters = |name: &str| self.json(&format!("/counters/{name}"));
        let dropped = self.json["recording"]["dropped"].as_object().unwrap();
        assert!(dropped.is_empty(), "{dropped:?}");
        let events = self.json("/recording/events");
        assert_eq!(self.info["events"], events);
        assert_eq!(self.rows.len() as u64, events);
        assert_eq!(self.page("events"), events);
        assert_eq!(self.summary("trace"), events);

        for (name, kind, latency, line, row) in [
            (
                "/cpu_faults",
                "cpu-fault",
                "/fault_latency_us/count",
                "CPU faults",
                "faults of CPUs",
            ),
            (
                "/device_faults",
                "device-fault",
                "/device_fault_latency_us/count",
                "device faults",
                "faults of devices",
            ),
        ] {
            let faults = self.json(name);
            assert_eq!(self.json(latency), faults, "{name}");
            assert_eq!(self.info(&[kind]).0, faults, "{name}");
            assert_eq!(self.table(&[kind]).0, faults, "{name}");
            assert_eq!(self.summary(line), faults, "{name}");
            assert_eq!(self.page(row), faults, "{name}");
        }

        for (name, kinds, row, by_cause) in [
            (
                "/pages_to_device",
                &["to-device"][..],
                "moved to devices",
                "/migrations_to_device",
            ),
            (
                "/pages_to_system",
                &["to-system", "duplicated"],
                "moved to system memory",
                "/migrations_to_system",
            ),
            (
                "/pages_between_devices",
                &["between-devices"],
                "moved between devices",
                "/migrations_between_devices",
            ),
        ] {
            let pages = self.json(name);
            assert_eq!(self.info(kinds).1, pages, "{name}");
            assert_eq!(self.table(kinds).1, pages, "{name}");
            assert_eq!(self.page(row), pages, "{name}");
            let causes = self.json.pointer(by_cause).unwrap().as_object().unwrap();
            for (cause, pages) in causes {
                let rows = self
                    .rows
                    .iter()
                    .filter(|row| kinds.contains(&&*row["kind"]));
                let rows = rows.filter(|row| row["cause"] == *cause);
                let found: u64 = rows.map(|row| row["pages"].parse::<u64>().unwrap()).sum();
                assert_eq!(*pages, found, "{by_cause}: {cause}");
            }
        }

        let put_off = counters("faults_deferred") + counters("faults_retried");
        assert_eq!(self.info(&["deferred"]).0, put_off);
        for (counter, kind) in [
            ("mapped_in_place", "mapped-in-place"),
            ("duplicated", "duplicated"),
            ("collapsed", "collapsed"),
        ] {
            assert_eq!(self.info(&[kind]).1, counters(counter), "{kind}");
        }

        let peak = self.json("/device_pages_peak");
        assert_eq!(self.summary("device memory"), peak);
        assert!(peak <= self.json("/device_pages_capacity"));
        let (table, page) = (self.peak(), self.page("most of it in use"));
        assert_eq!(table, page);
        // Two threads' arrivals and departures at the same time are noted in one order or the other: a free, for instance, when all of
        // it is done, and its frames are used again before.
        assert!(table.abs_diff(peak) <= 32, "{table} {peak}");
    }
}

/// The figures of these runs, for both engines.
fn agree(runs: &[&[&str]]) {
    for run in runs {
        for engine in ["remap", "copy"] {
            let folder = tempfile::tempdir().unwrap();
            let args = [run, &["--engine", engine][..]].concat();
            eprintln!("{args:?}");
            Sayings::of(&args, folder.path()).check();
        }
    }
}

#[test]
fn agree_about_pages_that_go_to_and_fro() {
    agree(&[
        &["--workload", "pingpong", "--param", "rounds=6"],
        &[
            "--workload",
            "pingpong",
            "--policy",
            "on-demand+thrash",
            "--vcpus",
            "2",
        ],
    ]);
}

#[test]
fn agree_about_pages_in_place() {
    agree(&[
        &["--workload", "pingpong", "--device-kind", "coherent"],
        &[
            "--workload",
            "gather",
            "--policy",
            "access-counter:threshold=16",
        ],
        &[
            "--workload",
            "vecadd",
            "--param",
            "n=64K",
            "--policy",
            "hints",
            "--param",
            "hint=preferred:system",
        ],
    ]);
}

#[test]
fn agree_about_duplicates() {
    agree(&[&[
        "--workload",
        "spmv",
        "--policy",
        "hints",
        "--param",
        "hint=read-mostly",
        "--device-memory",
        "1M",
    ]]);
}

#[test]
fn agree_about_several_devices() {
    let bfs = [
        "--workload",
        "bfs",
        "--param",
        "vertices=4K",
        "--device-memory",
        "1M",
        "--vcpus",
        "2",
    ];
    let two = [&bfs[..], &["--devices", "2"]].concat();
    let relay = [
        "--workload",
        "relay",
        "--devices",
        "3",
        "--param",
        "turns=7",
    ];
    agree(&[
        &relay,
        &[&two[..], &["--policy", "on-demand"]].concat(),
        &[&two[..], &["--device-kind", "coherent"]].concat(),
    ]);
}

#[test]
fn agree_about_frees_and_atomics() {
    let torture = [
        "--workload",
        "torture",
        "--param",
        "ops=3000",
        "--vcpus",
        "2",
        "--devices",
        "2",
        "--device-memory",
        "64K",
    ];
    agree(&[
        &[
            "--workload",
            "churn",
            "--param",
            "rounds=4",
            "--device-memory",
            "2M",
        ],
        &torture,
        &[&torture[..], &["--device-kind", "coherent"]].concat(),
        &[&torture[..], &["--policy", "on-demand+timeslice:min=1ms"]].concat(),
    ]);
}
