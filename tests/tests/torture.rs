//! Torture for a time: guests verify amid the host's chaos, and what is wrong is noticed and can be replayed.

use hmm_backend::engine::{Engine, EngineChoice};
use hmmvisor::size::Size;
use hmmvisor::{Config, End, Options, Report};
use hmmvisor_testkit::{ENGINES, Output, Watchdog};
use serde_json::Value;

fn config(engine: Engine, seed: u64, params: &[(&str, &str)]) -> Config {
    let mut config = Config {
        seed,
        ..Config::default()
    };
    config.machine.vcpus = 2;
    config.machine.memory = Size(16 << 20);
    config.devices.count = 2;
    config.devices.memory = Size(512 << 10);
    config.engine.kind = EngineChoice::Only(engine);
    config.workload.name = Some("torture".to_owned());
    config.workload.params = [("pages", "48"), ("chaos", "on"), ("policy", "chaotic")]
        .iter()
        .filter(|(name, _)| params.iter().all(|(given, _)| given != name))
        .chain(params)
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    config
}

fn run(config: &Config) -> (Report, String) {
    let _watchdog = Watchdog::new(&format!("{config:?}"), 120);
    let output = Output::default();
    let options = Options {
        console: Box::new(output.clone()),
        ..Options::default()
    };
    let report = hmmvisor::run(config, options).unwrap();
    (report, output.text())
}

#[test]
fn guests_verify_amid_chaos() {
    for engine in ENGINES {
        for (seed, policy) in [(1, "chaotic"), (2, "random"), (3, "given")] {
            let config = config(engine, seed, &[("seconds", "2"), ("policy", policy)]);
            let (report, output) = run(&config);
            let what = format!("{config:?}: {:?}: {output}", report.error());
            assert!(report.verified(), "{what}");
            assert!(report.replay.is_none(), "{what}");

            // The guest says how many it has counted; the host adds its own.
            let said = output.split(' ').rev().nth(2).unwrap();
            let said: u64 = said
                .replace(',', "")
                .parse()
                .unwrap_or_else(|_| panic!("{what}"));
            assert!(said > 0 && report.operations_checked >= said, "{what}");

            let chaos = report.chaos.as_ref().unwrap();
            assert!(chaos.calls > 0 && chaos.attached > 0, "{chaos:?}");
            assert_eq!(chaos.attached, chaos.detached, "{chaos:?}");
            assert!(chaos.failures_injected > 0, "{chaos:?}");

            let json: Value = serde_json::from_str(&report.to_json()).unwrap();
            assert_eq!(json["operations_checked"], report.operations_checked);
            assert_eq!(json["rounds"], report.rounds);
            assert_eq!(json["chaos"]["calls"], chaos.calls);
        }
    }
}

#[test]
fn the_same_rounds_check_the_same() {
    // With one vCPU, what is checked is a matter of the draws alone; only how many rounds fit into a second is not.
    let rounds = |first: &str| {
        let params = [("seconds", "1"), ("chaos", "off"), ("round", first)];
        let mut config = config(ENGINES[0], 5, &params);
        config.machine.vcpus = 1;
        let (report, output) = run(&config);
        assert!(report.verified(), "{:?}: {output}", report.error());
        (report.rounds, report.operations_checked)
    };
    let mut totals = std::collections::BTreeMap::<u64, u64>::new();
    for _ in 0..3 {
        let (rounds, checked) = rounds("7");
        let before = totals.insert(rounds, checked);
        assert!(before.is_none_or(|before| before == checked), "{totals:?}");
    }
}

/// The round's parameters are what the guest works with from its begin: a corruption in it is found in it again.
#[test]
fn a_corruption_is_found_reported_and_replayed() {
    for engine in ENGINES {
        for chaos in ["off", "on"] {
            let params = [("seconds", "60"), ("chaos", chaos), ("corrupt", "2")];
            let first = config(engine, 9, &params);
            let (report, output) = run(&first);
            let what = format!("{first:?}: {:?}: {output}", report.error());
            // The host may be the one who notices.
            let wrong_data = |report: &Report, output: &str| match report.end.as_ref().unwrap() {
                End::Exit(1) => {
                    output.contains("wrong data: a constant word, word 77")
                        || output.contains("sum of a constant page")
                }
                End::Failed(failure) => failure.to_string().contains("word 77"),
                _ => false,
            };
            assert!(wrong_data(&report, &output), "{what}");
            assert_eq!(report.exit_code(), 1, "{what}");
            let replay = report.replay.as_ref().unwrap_or_else(|| panic!("{what}"));
            assert_eq!(replay.round, 2, "{what}");
            let error = report.error().unwrap();
            for part in [
                "seed 9, round 2",
                &format!("engine {engine}, policy chaotic"),
                &replay.command,
                "--seed 9",
                "--param corrupt=2",
                "--param round=2",
            ] {
                assert!(error.contains(part), "{part}: {what}");
            }

            let mut again = first.clone();
            again.workload.params.push(("round".into(), "2".into()));
            let (report, output) = run(&again);
            assert!(wrong_data(&report, &output), "again: {output}");
            assert_eq!(report.replay.unwrap().round, 2);
            assert_eq!(
                report.rounds, 1,
                "the replay begins with the round that failed"
            );
        }
    }
}
