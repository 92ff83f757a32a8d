//! The workloads verify their results here as in a guest, and they report all of their accesses.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{Access, DeviceId};
use hmmvisor_accesses::{AccessError, Settings, generate};

/// Small parameters for each workload that runs here. A new one has to be added.
const SMALL: &[(&str, &[(&str, &str)])] = &[
    ("vecadd", &[("n", "24000"), ("rounds", "2")]),
    ("stream", &[("n", "16000"), ("rounds", "2")]),
    ("pingpong", &[("pages", "12"), ("rounds", "4")]),
    ("relay", &[("pages", "12"), ("turns", "5")]),
    ("gather", &[("n", "9000"), ("len", "7000")]),
    ("chase", &[("len", "6000"), ("steps", "8000")]),
    ("bfs", &[("vertices", "2000"), ("degree", "4")]),
    ("matmul", &[("n", "24")]),
    ("spmv", &[("rows", "2000"), ("degree", "4")]),
    ("churn", &[("rounds", "5"), ("pages", "128")]),
    ("stencil", &[("n", "90"), ("steps", "3")]),
    ("join", &[("n", "3000"), ("probes", "7000")]),
    ("sort", &[("n", "6000"), ("digits", "3")]),
    ("zipf", &[("len", "9000"), ("n", "3000"), ("rounds", "2")]),
    ("tree", &[("nodes", "900"), ("walks", "300")]),
    ("phases", &[("n", "9000"), ("phases", "4"), ("passes", "2")]),
];

fn settings(workload: &str) -> Settings {
    let small = SMALL.iter().find(|(name, _)| *name == workload);
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Settings {
        workload: workload.to_owned(),
        params: small.map_or(Vec::new(), |(_, params)| params.iter().map(pair).collect()),
        memory: 16 << 20,
        ..Settings::default()
    }
}

fn events(settings: &Settings) -> (Vec<Event>, String) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let printed = generate(settings, move |event| sink.lock().unwrap().push(event))
        .unwrap_or_else(|error| panic!("{settings:?}: {error}"));
    let events = std::mem::take(&mut *events.lock().unwrap());
    (events, printed)
}

#[test]
fn every_workload_of_the_guest_runs_here_or_says_why_not() {
    for workload in hmmvisor_guest_images::workloads() {
        let name = workload.name;
        match name {
            // Runs, but only once in a process.
            "torture" => continue,
            "recover" | "selftest" | "agent" | "crash" => {
                let error = generate(&settings(name), |_| ()).unwrap_err();
                assert!(matches!(error, AccessError::NeedsMachine { .. }), "{error}");
                continue;
            }
            _ => {}
        }
        assert!(SMALL.iter().any(|(small, _)| *small == name), "{name}");
        for (vcpus, devices) in [(1, 1), (3, 2)] {
            let settings = Settings {
                vcpus,
                devices,
                ..settings(name)
            };
            let (first, printed) = events(&settings);
            assert!(printed.contains("right"), "{name}: {printed}");
            let threads: BTreeSet<u32> = first.iter().map(|event| event.thread).collect();
            let last = vcpus.min(if name == "chase" { devices } else { vcpus });
            assert!(
                threads.is_superset(&(1..=last).collect()),
                "{name}: {threads:?}"
            );
            for device in 0..devices as u8 {
                let by_device = |event: &&Event| event.device == Some(DeviceId(device));
                assert!(
                    first.iter().any(|event| by_device(&event)),
                    "{name}, device {device}"
                );
            }
            for pair in first.windows(2) {
                assert!(pair[0].time <= pair[1].time);
                let merged = |event: &Event| (event.kind, event.page, event.device, event.thread);
                assert!(
                    merged(&pair[0]) != merged(&pair[1])
                        || pair[0].kind == EventKind::Freed
                        || pair[0].access == Some(Access::Read)
                            && pair[1].access == Some(Access::Write),
                    "{name}: {pair:?}"
                );
            }
            // The same every time.
            let (second, _) = events(&settings);
            assert!(first == second, "{name}");
        }
    }
}

#[test]
fn hints_are_told_of() {
    let hints = |hint: &str| -> Vec<_> {
        let mut settings = settings("gather");
        settings.devices = 2;
        settings.params.push(("hint".to_owned(), hint.to_owned()));
        let (events, _) = events(&settings);
        let hints = events.iter().filter(|e| e.kind == EventKind::Hint);
        let hints = hints.map(|e| (e.pages, e.hint.unwrap().to_string()));
        hints.collect()
    };
    let about_the_table = |hint: &str| (14, hint.to_owned());
    assert_eq!(hints("none"), []);
    assert_eq!(hints("read-mostly"), [about_the_table("read-mostly")]);
    assert_eq!(
        hints("accessed-by"),
        ["accessed-by:device0", "accessed-by:device1"].map(about_the_table)
    );
    assert_eq!(
        hints("preferred:device"),
        [about_the_table("preferred:device0")]
    );
}

#[test]
fn the_order_of_a_small_vecadd_is_known() {
    // A page of each vector; the queue takes the four pages before.
    let mut settings = settings("vecadd");
    settings.params = vec![
        ("n".to_owned(), "512".to_owned()),
        ("rounds".to_owned(), "1".to_owned()),
    ];
    let (events, _) = events(&settings);
    let queue = 0..4;
    let rest: Vec<_> = events
        .iter()
        .filter(|event| !queue.contains(&event.page.0))
        .map(|event| {
            (
                event.kind,
                event.page.0,
                event.device.is_some(),
                event.access,
            )
        })
        .collect();
    let access = |page, device, access| (EventKind::Access, page, device, Some(access));
    let (a, b, c) = (4, 5, 6);
    use Access::{Read, Write};
    assert_eq!(
        rest,
        [
            access(a, false, Write),
            access(b, false, Write),
            access(a, true, Read),
            access(b, true, Read),
            access(c, true, Write),
            access(c, false, Read),
            (EventKind::Freed, b, true, None),
            (EventKind::Freed, c, true, None),
            (EventKind::Freed, a, true, None),
            access(b, false, Read),
            access(c, false, Read),
            access(a, false, Read),
        ]
    );
}

#[test]
fn what_cannot_be_is_refused() {
    let refusal = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings("vecadd");
        change(&mut settings);
        generate(&settings, |_| ()).unwrap_err().to_string()
    };
    assert!(refusal(&|s| s.workload = "nosuch".to_owned()).contains("unknown workload"));
    assert!(refusal(&|s| s.params = vec![("n".into(), "0".into())]).contains("n=0"));
    assert!(refusal(&|s| s.vcpus = 0).contains("from 1 to 64"));
    assert!(refusal(&|s| s.devices = 17).contains("from 1 to 16"));
    assert!(refusal(&|s| s.memory = 4097).contains("multiple of 4 KiB"));
    // The guest itself reports the failure, and another run is possible afterwards.
    let small = refusal(&|s| s.memory = 64 << 10);
    assert!(small.contains("not enough memory for vector"), "{small}");
    events(&settings("vecadd"));
}
