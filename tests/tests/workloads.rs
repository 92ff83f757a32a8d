//! Every workload verifies on every kind of machine, and the figures agree with each other.

use hmm_backend::engine::EngineChoice;
use hmm_backend::observe::{Cause, Stats};
use hmm_backend::pages::{PAGE_SIZE, Page, PageRange};
use hmmvisor::size::Size;
use hmmvisor::{Config, Options, Report};
use hmmvisor_testkit::{ENGINES, Output, Random, Setup, Watchdog};
use serde_json::Value;

/// Small parameters for each workload. A new workload has to be added here.
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
    ("torture", &[("ops", "600"), ("pages", "24")]),
    ("recover", &[("pages", "40"), ("rounds", "2")]),
    ("selftest", &[]),
];

/// A small machine with this workload.
fn config(workload: &str) -> Config {
    let small = SMALL.iter().find(|(name, _)| *name == workload);
    let (_, params) = small.unwrap_or_else(|| panic!("no small parameters for {workload}"));
    let mut config = Config::default();
    config.machine.memory = Size(16 << 20);
    config.devices.memory = Size(512 << 10);
    config.workload.name = Some(workload.to_owned());
    for (name, value) in *params {
        set_param(&mut config, name, value);
    }
    config
}

fn set_param(config: &mut Config, name: &str, value: &str) {
    let params = &mut config.workload.params;
    params.retain(|(given, _)| given != name);
    params.push((name.to_owned(), value.to_owned()));
}

fn set_policy(config: &mut Config, policy: &str) {
    config.policy.spec = policy.parse().unwrap();
}

/// Runs it; it must verify, and all that its report says must be plausible.
fn run(config: &Config) -> Report {
    let what = format!("{config:?}");
    let _watchdog = Watchdog::new(&what, 120);
    let output = Output::default();
    let options = Options {
        console: Box::new(output.clone()),
        ..Options::default()
    };
    let report = hmmvisor::run(config, options).unwrap_or_else(|error| panic!("{what}: {error}"));
    let outcome = format!("{what}: {:?}: {}", report.error(), output.text());
    assert!(report.verified() && report.exit_code() == 0, "{outcome}");
    check_figures(config, &report.stats, &outcome);
    check_json(&report);
    report
}

/// Checks relations that hold between the figures of every run.
fn check_figures(config: &Config, stats: &Stats, what: &str) {
    let what = format!("{what}: {stats:#?}");
    // Every workload makes both sides touch the memory, and what a vCPU has touched first moves.
    assert!(stats.cpu_faults > 0 && stats.device_faults > 0, "{what}");
    assert!(stats.pages_to_device() > 0, "{what}");

    let capacity = u64::from(config.devices.count) * config.devices.memory.0 / PAGE_SIZE;
    assert_eq!(stats.device_pages_capacity, capacity, "{what}");
    assert!((1..=capacity).contains(&stats.device_pages_peak), "{what}");

    // Pages go to a device because it wants them, and are evicted from there, never the other way round.
    let count = |counts: &std::collections::BTreeMap<_, u64>, cause| {
        counts.get(&cause).copied().unwrap_or_default()
    };
    assert_eq!(count(&stats.to_device, Cause::Eviction), 0, "{what}");
    assert_eq!(count(&stats.to_device, Cause::Detach), 0, "{what}");
    assert_eq!(count(&stats.to_system, Cause::Detach), 0, "{what}");

    // Nothing comes back that did not go there, and what did is back, freed or still there.
    let (to_device, to_system) = (stats.pages_to_device(), stats.pages_to_system());
    assert!(to_system <= to_device, "{what}");
    assert!(
        to_device <= to_system + stats.pages_freed + capacity,
        "{what}"
    );

    // A folio is freed once: there are no more of them than pages that arrived, and none is larger than 2 MiB.
    let given_back = stats.page_free_calls - stats.counters.folios_rolled_back;
    let arrived = to_device + stats.pages_between_devices();
    assert!(given_back <= arrived, "{what}");
    assert_eq!(count(&stats.between_devices, Cause::Eviction), 0, "{what}");
    assert!(given_back * 512 >= to_system, "{what}");

    for (latency, faults) in [
        (stats.fault_latency, stats.cpu_faults),
        (stats.device_fault_latency, stats.device_faults),
    ] {
        assert!(latency.count > 0, "{what}");
        assert!(latency.p50 > 0.0, "{what}");
        assert!(
            latency.p50 <= latency.p99 && latency.p99 <= latency.max,
            "{what}"
        );
        assert_eq!(latency.count, faults, "{what}");
    }
}

/// The documented names, each with the right type, and sums that agree.
fn check_json(report: &Report) {
    let text = report.to_json();
    let json: Value = serde_json::from_str(&text).unwrap();
    let field = |name: &str| {
        let found = json.get(name);
        found.unwrap_or_else(|| panic!("{name} is missing: {text}"))
    };
    for name in ["workload", "engine", "policy"] {
        assert!(field(name).is_string(), "{name}: {text}");
    }
    for name in [
        "vcpus",
        "guest_exit",
        "cpu_faults",
        "device_faults",
        "pages_to_device",
        "pages_to_system",
        "page_free_calls",
        "device_pages_peak",
        "device_pages_capacity",
        "vmm_overhead_bytes",
    ] {
        assert!(field(name).is_u64(), "{name}: {text}");
    }
    for name in ["elapsed_s", "first_instruction_ms"] {
        assert!(field(name).as_f64().unwrap() > 0.0, "{name}: {text}");
    }
    assert_eq!(*field("verified"), Value::Bool(true));
    let latency = field("fault_latency_us");
    for name in ["p50", "p99", "max"] {
        assert!(latency[name].is_f64(), "{name}: {text}");
    }
    assert!(latency["count"].is_u64(), "{text}");

    let sum = |name: &str| {
        let causes = field(name).as_object().unwrap();
        assert_eq!(causes.len(), Cause::ALL.len(), "{name}: {text}");
        let count = |cause: &Cause| causes[cause.name()].as_u64().unwrap();
        Cause::ALL.iter().map(count).sum::<u64>()
    };
    let total = |name: &str| field(name).as_u64().unwrap();
    let both = total("pages_to_device") + total("pages_to_system");
    assert_eq!(sum("migrations"), both, "{text}");
    assert_eq!(
        sum("migrations_to_device"),
        total("pages_to_device"),
        "{text}"
    );
    assert_eq!(
        sum("migrations_to_system"),
        total("pages_to_system"),
        "{text}"
    );
}

/// All workloads with both engines on this many vCPUs.
fn every_workload(vcpus: u32) {
    for workload in hmmvisor_guest_images::workloads() {
        if matches!(workload.name, "agent" | "crash") {
            continue;
        }
        for engine in ENGINES {
            let mut config = config(workload.name);
            config.machine.vcpus = vcpus;
            config.engine.kind = EngineChoice::Only(engine);
            let report = run(&config);
            assert_eq!(report.engine, engine);
        }
    }
}

#[test]
fn every_workload_verifies_on_1_vcpu() {
    every_workload(1);
}

#[test]
fn every_workload_verifies_on_2_vcpus() {
    every_workload(2);
}

#[test]
fn every_workload_verifies_on_4_vcpus() {
    every_workload(4);
}

/// Runs a few workloads that between them do everything, with both engines, each changed like this.
fn varied(change: impl Fn(&mut Config)) -> Vec<Report> {
    let mut reports = Vec::new();
    for workload in ["vecadd", "churn", "torture"] {
        for engine in ENGINES {
            let mut config = config(workload);
            config.machine.vcpus = 2;
            config.engine.kind = EngineChoice::Only(engine);
            change(&mut config);
            reports.push(run(&config));
        }
    }
    reports
}

#[test]
fn several_accelerators_share_the_work() {
    for devices in [2, 4] {
        varied(|config| config.devices.count = devices);
    }
}

#[test]
fn a_tiny_device_memory_is_enough() {
    let reports = varied(|config| config.devices.memory = Size(64 << 10));
    for report in reports {
        let evicted = report.stats.to_system.get(&Cause::Eviction);
        assert!(
            evicted.is_some_and(|pages| *pages > 0),
            "{:#?}",
            report.stats
        );
    }
}

#[test]
fn every_policy_gives_the_same_answers() {
    for policy in [
        "density:threshold=1",
        "density+timeslice:min=0",
        "density+timeslice:min=2ms",
    ] {
        varied(|config| set_policy(config, policy));
    }
    for policy in ["on-demand", "on-demand+timeslice:min=0"] {
        for report in varied(|config| set_policy(config, policy)) {
            let stats = &report.stats;
            let prefetched =
                |counts: &std::collections::BTreeMap<_, _>| counts.contains_key(&Cause::Prefetch);
            assert!(
                !prefetched(&stats.to_device) && !prefetched(&stats.to_system),
                "{stats:#?}"
            );
        }
    }
}

/// A guest's hint about its memory decides where that memory goes.
#[test]
fn hints_of_the_guest_keep_its_table_where_it_is() {
    const TABLE: u64 = 128;
    for engine in ENGINES {
        let moved = |policy: &str, hint| {
            let mut config = config("gather");
            config.engine.kind = EngineChoice::Only(engine);
            config.devices.memory = Size(4 << 20);
            set_policy(&mut config, policy);
            set_param(&mut config, "len", &(TABLE * 512).to_string());
            set_param(&mut config, "hint", hint);
            run(&config).stats.pages_to_device()
        };
        let policy = "on-demand+hints+timeslice:min=0";
        let without = moved(policy, "none");
        for hint in ["preferred:system", "accessed-by"] {
            assert_eq!(moved(policy, hint) + TABLE, without, "{engine} {hint}");
        }
        assert_eq!(moved(policy, "preferred:device"), without, "{engine}");
        // Without `hints`, the policy ignores the hint.
        let deaf = moved("on-demand+timeslice:min=0", "preferred:system");
        assert_eq!(deaf, without, "{engine}");
    }
}

#[test]
fn interrupts_instead_of_polling() {
    varied(|config| set_param(config, "wait", "interrupt"));
    varied(|config| {
        set_param(config, "wait", "interrupt");
        config.devices.count = 2;
        config.machine.vcpus = 3;
    });
}

#[test]
fn shards_threads_and_placement_do_not_matter() {
    varied(|config| {
        config.engine.shards = 3;
        config.service.threads = Some(3);
    });
    varied(|config| config.placement.pin = false);
}

/// The command queue is what the embedded guest allocates first. What it holds is left out: the results of
/// `migrate` commands say how many pages moved, which is a matter of luck.
const QUEUE_PAGES: u32 = 4;

/// A number that stands for managed memory after a run of `workload` on one vCPU, and the guest's output.
fn outcome(setup: Setup) -> (u64, String) {
    let mut machine = setup.build();
    machine.vm.start().unwrap();
    machine.expect_verified();
    let mut hash = Random(0);
    let memory = PageRange::new(Page(QUEUE_PAGES), Page(machine.backend.pages()));
    for block in memory.split_by_block() {
        let pinned = machine.backend.pin(block).unwrap();
        let words = pinned.len() as usize / 8;
        // SAFETY: the pages are present and aligned, stay while the guard lives, and the machine has stopped: no vCPU
        // writes them any more.
        let words = unsafe { std::slice::from_raw_parts(pinned.host().cast::<u64>(), words) };
        for word in words {
            hash.0 ^= word;
            hash.number();
        }
    }
    (hash.number(), machine.output.text())
}

#[test]
fn a_seed_decides_the_results_and_nothing_else_does() {
    let _watchdog = Watchdog::new("runs with the same seed", 120);
    for workload in [
        "gather n=9000 len=7000",
        "pingpong pages=12 rounds=5",
        "torture ops=400 pages=16",
    ] {
        let setup = |seed| Setup {
            workload: workload.to_owned(),
            pages: 2048,
            vcpus: 1,
            seed,
            ..Setup::default()
        };
        let first = outcome(setup(7));
        for engine in ENGINES {
            for (policy, device_pages) in [("on-demand", 64), ("density+timeslice:min=0", 16)] {
                let again = outcome(Setup {
                    engine,
                    policy,
                    device_pages,
                    ..setup(7)
                });
                assert_eq!(again, first, "{workload} {engine} {policy}");
            }
        }
        assert_ne!(
            outcome(setup(8)).0,
            first.0,
            "{workload}: the seed has no effect"
        );
    }
}
