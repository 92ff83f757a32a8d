//! Scripts as policies of real machines: whatever a script does, the guest's data is right.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use hmm_backend::engine::EngineChoice;
use hmmvisor::size::Size;
use hmmvisor::{Config, Options, Report, RunError};
use hmmvisor_testkit::{Cause, ENGINES, Output, Watchdog};

/// A small machine with twice the memory of its device.
fn config(workload: &str, params: &[(&str, &str)], policy: &str) -> Config {
    let mut config = Config::default();
    config.machine.memory = Size(16 << 20);
    config.devices.memory = Size(512 << 10);
    config.workload.name = Some(workload.to_owned());
    let params = params.iter().map(|(n, v)| (n.to_string(), v.to_string()));
    config.workload.params = params.collect();
    config.policy.spec = policy.parse().unwrap();
    config
}

fn run(config: &Config) -> Result<Report, RunError> {
    let _watchdog = Watchdog::new(&format!("{:?}", config.policy), 120);
    let options = Options {
        console: Box::new(Output::default()),
        ..Options::default()
    };
    hmmvisor::run(config, options)
}

fn verified(config: &Config) -> Report {
    let report = run(config).unwrap();
    assert!(
        report.verified(),
        "{:?}: {:?}",
        config.policy,
        report.error()
    );
    report
}

/// With both engines.
fn each_engine(mut config: Config, check: impl Fn(Report)) {
    for engine in ENGINES {
        config.engine.kind = EngineChoice::Only(engine);
        check(verified(&config));
    }
}

fn write(folder: &Path, text: &str) -> String {
    let path = folder.join("policy.luau");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn the_examples_run_guests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let mut ran = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path().display().to_string();
        if !path.ends_with(".luau") || path.ends_with(".d.luau") {
            continue;
        }
        ran += 1;
        for (workload, params) in [
            ("gather", &[("n", "9000"), ("len", "7000")]),
            ("pingpong", &[("pages", "12"), ("rounds", "4")]),
        ] {
            let mut config = config(workload, params, &format!("{path}+timeslice:min=0us"));
            // Less than `gather` works on.
            config.devices.memory = Size(64 << 10);
            each_engine(config, |report| {
                let scripts = report.scripts.unwrap();
                assert_eq!((scripts.failures, scripts.off), (0, 0), "{path}");
                let evicted = report.stats.to_system.get(&Cause::Eviction).copied();
                assert!(evicted.is_some() || workload != "gather", "{path}");
                // Some decide about victims only.
                assert!(scripts.decisions > 0 || evicted.is_none(), "{path}");
            });
        }
    }
    assert!(ran >= 6);
}

#[test]
fn broken_scripts_do_not_break_guests() {
    let folder = tempfile::tempdir().unwrap();
    for (what, body) in [
        (
            "an endless loop",
            "while true do pcall(function() while true do end end) end",
        ),
        (
            "memory",
            "state.t = state.t or {} for i = 1, 1e9 do state.t[#state.t + 1] = {} end",
        ),
        ("an error", "error('broken')"),
        ("a wrong type", "return 'everything'"),
    ] {
        let text = format!(
            "return {{ on_fault = function() {body} end, victims = function() {body} end }}"
        );
        let path = write(folder.path(), &text);
        let config = config("gather", &[("n", "9000"), ("len", "7000")], &path);
        each_engine(config, |report| {
            let scripts = report.scripts.unwrap();
            assert!(
                scripts.failures >= 16 && scripts.off >= 1,
                "{what}: {scripts:?}"
            );
        });
    }
}

/// Advice that makes no sense, every time another: out of range, contradictory, of the wrong sign.
#[test]
fn nonsense_does_not_break_guests() {
    let folder = tempfile::tempdir().unwrap();
    let text = "
        local n = 0
        local all = pages.new()
        pages.fill(all, 0, 512)
        return {
            eviction = 'lru',
            on_fault = function(page, write, device)
                n += 1
                local which = n % 8
                if which == 0 then return page - 5000, 1e9 end
                if which == 1 then return all, nil, 1e300 * (n % 500 == 1 and 1 or 0), -5, true end
                if which == 2 then return -1e300, 1e300 end
                if which == 3 then return { prefetch = all, migrate = { { 1e9, 1e9, 77 }, { 0, 4096, device }, { -5, 3 } } } end
                if which == 4 then return nil, nil, 50, 50, true end
                return page, n
            end,
            victims = function(want, candidates)
                return { #candidates, 1, 1, #candidates }
            end,
        }";
    let path = write(folder.path(), text);
    for (workload, params) in [
        ("torture", &[("ops", "600"), ("pages", "24")]),
        ("gather", &[("n", "9000"), ("len", "7000")]),
    ] {
        each_engine(config(workload, params, &path), |report| {
            assert_eq!(report.scripts.unwrap().failures, 0);
        });
    }
}

#[test]
fn regions_have_policies_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(
        folder.path(),
        "return { on_fault = function(page) assert(page >= 1024 and page < 2048) end }",
    );
    let file = folder.path().join("config.toml");
    let text = format!(
        "[machine]\nmemory = \"16M\"\n[devices]\nmemory = \"1M\"\n[policy]\nspec = \"on-demand\"\n\
         [[policy.region]]\nstart = \"4M\"\nsize = \"4M\"\nspec = \"{path}\"\n\
         [workload]\nname = \"vecadd\"\nparams = {{ n = 400000, rounds = 1 }}\n"
    );
    std::fs::write(&file, &text).unwrap();
    each_engine(Config::read(&file).unwrap(), |report| {
        let scripts = report.scripts.unwrap();
        assert_eq!(scripts.failures, 0);
        assert!(
            scripts.decisions > 0
                && scripts.decisions < report.stats.cpu_faults + report.stats.device_faults
        );
        assert!(
            report.policy.contains("; memory 4 MiB to 8 MiB: "),
            "{}",
            report.policy
        );
    });
    for (from, to, expected) in [
        (
            "\"4M\"\nspec",
            "\"3M\"\nspec",
            "size of 3 MiB: must be a positive multiple of 2 MiB",
        ),
        ("\"4M\"\nspec", "\"32M\"\nspec", "is more than guest memory"),
    ] {
        std::fs::write(&file, text.replace(from, to)).unwrap();
        let error = run(&Config::read(&file).unwrap()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_script_with_a_mistake_starts_no_guest() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(
        folder.path(),
        "return {\n  on_fault = function( return nil end\n}",
    );
    let error = run(&config("gather", &[], &path)).unwrap_err().to_string();
    assert!(error.contains("policy script policy.luau:2: "), "{error}");
}

/// The file changes again and again while a guest runs. (Only good versions: it may be read first at any time.)
#[test]
fn scripts_are_reloaded_under_a_running_guest() {
    let folder = tempfile::tempdir().unwrap();
    let good = "return { on_fault = function(page) return page, 4 end }";
    let path = write(folder.path(), good);
    let mut config = config("torture", &[("seconds", "2"), ("pages", "24")], &path);
    for engine in ENGINES {
        config.engine.kind = EngineChoice::Only(engine);
        let report = std::thread::scope(|scope| {
            let (running, ended) = mpsc::channel::<()>();
            let (new, path) = (folder.path().join("new"), &path);
            scope.spawn(move || {
                // Until the run is over.
                const PACE: Duration = Duration::from_millis(20);
                while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(PACE) {
                    std::fs::write(&new, good).unwrap();
                    std::fs::rename(&new, path).unwrap();
                }
            });
            let report = run(&config);
            drop(running);
            report.unwrap()
        });
        assert!(report.verified(), "{:?}", report.error());
        let scripts = report.scripts.unwrap();
        assert!(scripts.reloads > 0 && scripts.decisions > 0, "{scripts:?}");
        assert_eq!(scripts.failures, 0);
    }
}
