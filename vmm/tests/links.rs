//! Links in live runs: what crosses them, and the time that transfers take.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

const HMMVISOR: &str = env!("CARGO_BIN_EXE_hmmvisor");

fn run(args: &[&str]) -> Output {
    Command::new(HMMVISOR)
        .arg("run")
        .args(["--workload", "pingpong", "--param", "rounds=6"])
        .args(["--memory", "16M", "--device-memory", "4M", "--policy"])
        .args(["on-demand+lru+timeslice:min=0us", "--json"])
        .args(args)
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(value: &Value, name: &str) -> f64 {
    value[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{name} of {value}"))
}

/// Both engines, because each has a way of its own to move pages.
#[test]
fn transfers_take_at_least_the_time_of_an_enforced_link() {
    for engine in ["remap", "copy"] {
        let output = run(&[
            "--engine",
            engine,
            "--link",
            "latency=3ms,bandwidth=1G,enforce",
        ]);
        let report = json(&output);
        let links = report["links"].as_array().unwrap();
        let names: Vec<_> = links
            .iter()
            .map(|it| (it["from"].as_str().unwrap(), it["to"].as_str().unwrap()))
            .collect();
        assert_eq!(names, [("system", "device0"), ("device0", "system")]);
        for link in links {
            assert_eq!(link["link"], "latency=3ms,bandwidth=1G");
            let (transfers, bytes) = (number(link, "transfers"), number(link, "bytes"));
            assert!(transfers >= 6.0 && bytes >= 4096.0 * transfers, "{link}");
            let time = transfers * 3e-3 + bytes / 1e9;
            assert!(
                (number(link, "time_s") - time).abs() < 1e-6,
                "{link}: {time}"
            );
            // Transfers in one direction come one after the other, and all of them are within the run.
            let elapsed = number(&report, "elapsed_s");
            assert!(elapsed > time, "{engine}: {elapsed}, {link}");
        }
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("link traffic"), "{text}");
    }
}

#[test]
fn each_accelerator_may_have_a_link_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    let write = |links: &str| fs::write(&file, format!("[devices]\ncount = 2\n[links]\n{links}\n"));
    write("default = 'latency=5us,bandwidth=10G'\ndevice1 = 'bandwidth=2G'").unwrap();
    let path = file.display().to_string();
    let report = json(&run(&["-", &path]));
    let models: Vec<_> = report["links"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["link"])
        .collect();
    let (first, second) = ("latency=5us,bandwidth=10G", "latency=10us,bandwidth=2G");
    assert_eq!(models[..4], [first, first, second, second]);
    // Over the host: both latencies, and the lower bandwidth.
    let between = "latency=15us,bandwidth=2G";
    assert!(
        models[4..].iter().all(|link| *link == between),
        "{models:?}"
    );
    // The option replaces the table.
    let report = json(&run(&["-", "--link", "latency=1us", &path]));
    assert_eq!(report["links"][3]["link"], "latency=1us,bandwidth=25G");
    for (links, error) in [
        (
            "device2 = 'latency=1us'",
            "[links] device2: there is no such accelerator",
        ),
        ("device1 = 'latency=0'", "link latency"),
        ("default = 'bandwidth=NaN'", "link bandwidth"),
        (
            "device0-device2 = 'latency=1us'",
            "[links] device2: there is no such accelerator",
        ),
        ("device1-device0 = 'bandwidth=NaN'", "link bandwidth"),
        ("device0-device1 = 'bandwidth=0'", "link bandwidth"),
        ("peer = 'latency=NaN'", "peer: link latency"),
        ("device0-device0 = 'host'", "a device has no link to itself"),
        ("enforce = 'yes'", "enforce"),
    ] {
        write(links).unwrap();
        let output = run(&["-", &path]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains(error),
            "{links}: {told}"
        );
    }
}

/// A matrix in which some pairs are missing.
#[test]
fn a_matrix_with_a_hole_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    let path = file.display().to_string();
    let links = "device0-device1 = 'bandwidth=300G'";
    fs::write(&file, format!("[devices]\ncount = 3\n[links]\n{links}\n")).unwrap();
    let output = run(&["-", &path]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{told}");
    assert!(
        told.contains("[links] device0-device2 is missing"),
        "{told}"
    );
    json(&run(&["-", "--peer-link", "host", &path]));
}

/// Two accelerators hand pages on: with a link of their own, nothing crosses the host's; without, each byte crosses it once,
/// where it crosses twice through system memory.
#[test]
fn what_goes_between_accelerators_crosses_the_host_once_or_not_at_all() {
    const PAGES: f64 = 64.0;
    const TURNS: f64 = 8.0;
    for engine in ["remap", "copy"] {
        for peer in ["host", "latency=1us,bandwidth=300G"] {
            let output = Command::new(HMMVISOR)
                .arg("run")
                .args([
                    "--workload",
                    "relay",
                    "--param",
                    "turns=8",
                    "--param",
                    "pages=64",
                ])
                .args(["--memory", "16M", "--device-memory", "4M", "--devices", "2"])
                .args(["--policy", "on-demand+lru+timeslice:min=0us", "--json", "-"])
                .args(["--engine", engine, "--peer-link", peer])
                .output()
                .unwrap();
            let report = json(&output);
            let bytes = |from: &str, to: &str| -> f64 {
                let links = report["links"].as_array().unwrap().iter();
                let those = links.filter(|it| it["from"] == from && it["to"] == to);
                those.map(|it| number(it, "bytes")).sum()
            };
            // The pages' first and last way is between the host and an accelerator.
            let there = bytes("device0", "device1");
            let back = bytes("device1", "device0");
            assert!(there >= TURNS / 2.0 * PAGES * 4096.0, "{there}");
            assert!(back >= (TURNS / 2.0 - 1.0) * PAGES * 4096.0, "{back}");
            let host = ["device0", "device1"].map(|it| bytes("system", it) + bytes(it, "system"));
            let most = 3.0 * PAGES * 4096.0;
            assert!(
                host.iter().sum::<f64>() < most,
                "{engine}, {peer}: {host:?}"
            );
            let text = String::from_utf8_lossy(&output.stderr);
            let expected = match peer {
                "host" => "0 B over links of their own",
                _ => "0 B over the host",
            };
            assert!(text.contains(expected), "{text}");
            assert!(text.contains("between devices"), "{text}");
        }
    }
}

#[test]
fn links_that_cannot_be_are_refused() {
    for (link, error) in [
        ("latency=NaN", "link latency"),
        ("bandwidth=0", "link bandwidth"),
        ("latency=1us,enforce,enforce", "given twice"),
        ("speed=1G", "no 'speed'"),
    ] {
        let output = run(&["-", "--link", link]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{link}: {told}");
        assert!(told.contains(error), "{link}: {told}");
    }
}
