//! `hmmvisor sweep` and `hmmvisor report` from end to end: live runs, a recorded trace, shards, bad input.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn hmmvisor(folder: &Path, args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
        .args(args.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap()
}

/// Returns what it prints.
fn succeeds(folder: &Path, args: &str) -> String {
    let output = hmmvisor(folder, args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args}: {message}");
    String::from_utf8(output.stdout).unwrap()
}

fn fails(folder: &Path, args: &str, expected: &str) {
    fails_with(1, folder, args, expected);
}

/// Because of what is in the sweep's file.
fn is_mistaken(folder: &Path, args: &str, expected: &str) {
    fails_with(2, folder, args, expected);
}

fn fails_with(code: i32, folder: &Path, args: &str, expected: &str) {
    let output = hmmvisor(folder, args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args}: {message}");
    assert!(message.contains(expected), "{args}: {message}");
    assert!(!message.contains("panicked"), "{args}: {message}");
}

const LIVE: &str = r#"
title = "Live"
seeds = 2
policies = ["on-demand", "density"]
device_memory = ["1M"]
[[workload]]
name = "pingpong"
mode = "live"
memory = "16M"
params = { pages = 16, rounds = 4 }
"#;

#[test]
fn live_runs_are_swept_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("live.toml"), LIVE).unwrap();
    assert_eq!(
        succeeds(path, "sweep live.toml"),
        "4 runs done: results.csv, results.parquet and report.html in live\n"
    );
    let csv = fs::read_to_string(path.join("live/results.csv")).unwrap();
    assert_eq!(csv.lines().count(), 5, "{csv}");
    // 16 pages to the device and back, four times each.
    let moved = column(&csv, "pages_to_device");
    assert!(
        moved.iter().all(|n| n.parse::<u64>().unwrap() >= 64),
        "{csv}"
    );
    let elapsed = column(&csv, "elapsed_s");
    assert!(
        elapsed.iter().all(|s| s.parse::<f64>().unwrap() > 0.0),
        "{csv}"
    );
    assert_eq!(column(&csv, "error"), [""; 4], "{csv}");
    let page = |name: &str| fs::read_to_string(path.join(name)).unwrap();
    let html = page("live/report.html");
    assert!(html.contains("Elapsed time by policy"));
    succeeds(path, "report live -o live.html");
    assert_eq!(html, page("live.html"));

    fails(
        path,
        "sweep live.toml",
        "nothing is left to do; choose another folder with -o",
    );
    for (from, to, expected) in [
        (
            "pingpong",
            "pingpang",
            "live.toml:6:1: unknown workload `pingpang`; there are vecadd",
        ),
        ("pages = 16", "pagges = 16", "has no parameter `pagges`"),
        (
            "\"on-demand\"",
            "\"on-demnad\"",
            "live.toml:4:13: unknown policy 'on-demnad'; there are: on-demand",
        ),
        ("\"16M\"", "\"15M\"", "multiple of 2 MiB"),
        (
            "mode = \"live\"",
            "mode = \"live\"\nvcpus = 65",
            "must be from 1 to 64",
        ),
        (
            "mode = \"live\"",
            "mode = \"live\"\nengine = \"diesel\"",
            "diesel",
        ),
    ] {
        assert!(LIVE.contains(from));
        fs::write(path.join("live.toml"), LIVE.replacen(from, to, 1)).unwrap();
        is_mistaken(path, "sweep live.toml --resume", expected);
    }
}

#[test]
fn a_failed_run_is_not_called_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let crash = |kind: &str, seeds: u32| {
        let sweep = format!(
            r#"
title = "Crash"
seeds = {seeds}
policies = ["on-demand"]
device_memory = ["1M"]
[[workload]]
name = "crash"
mode = "live"
memory = "16M"
params = {{ kind = "{kind}" }}
"#
        );
        fs::write(path.join("crash.toml"), sweep).unwrap();
    };
    for (seeds, printed, error) in [
        (
            1,
            "0 runs done, 1 failed: ",
            "error: 1 run failed; --resume tries it again\n",
        ),
        (
            2,
            "0 runs done, 2 failed: ",
            "error: 2 runs failed; --resume tries them again\n",
        ),
    ] {
        crash("panic", seeds);
        for resume in ["", "--resume"] {
            let output = hmmvisor(path, &format!("sweep crash.toml -o {seeds} {resume}"));
            assert_eq!(output.status.code(), Some(1));
            let text = |bytes| String::from_utf8(bytes).unwrap();
            assert!(text(output.stdout).starts_with(printed));
            assert!(text(output.stderr).contains(error));
        }
    }
}

const SCRIPT: &str = "
return {
\ton_fault = function(page)
\t\treturn page + 1, hmm.params.window or 16
\tend,
}
";

const SCRIPTED: &str = r#"
title = "Scripted"
policies = ["on-demand", "next.luau:window=4", "next.luau:window=32"]
device_memory = ["1M"]
[[workload]]
name = "pingpong"
mode = "model"
memory = "16M"
params = { pages = 64, rounds = 4 }
"#;

#[test]
fn scripts_are_swept_beside_built_in_policies() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("next.luau"), SCRIPT).unwrap();
    fs::write(path.join("s.toml"), SCRIPTED).unwrap();
    succeeds(path, "sweep s.toml -o one --jobs 1");
    succeeds(path, "sweep s.toml -o two --jobs 2");
    let csv = fs::read_to_string(path.join("one/results.csv")).unwrap();
    assert_eq!(
        csv,
        fs::read_to_string(path.join("two/results.csv")).unwrap()
    );
    let faults = column(&csv, "device_faults");
    let faults: Vec<u64> = faults.iter().map(|it| it.parse().unwrap()).collect();
    assert!(
        faults[0] > 3 * faults[1] && faults[1] > 3 * faults[2],
        "the script or its parameter does nothing: {faults:?}"
    );
    // The content of the script and all parameters are part of what ran.
    for exact in &column(&csv, "policy_exact")[1..] {
        let (name, rest) = exact.split_once('#').expect("no hash of the script");
        assert!(name.starts_with("next.luau:window="), "{exact}");
        assert_eq!(&rest[8..], "+lru+timeslice:min=100us", "{exact}");
    }
    assert_eq!(column(&csv, "script_failures"), ["", "0", "0"]);
    // Nothing is used in place: a number, not nothing.
    assert_eq!(column(&csv, "remote_accesses"), ["0"; 3]);
    succeeds(path, "report one -o one.html");

    // Another script under the same name is another sweep, and a broken one is none.
    fs::write(path.join("next.luau"), SCRIPT.replace("16", "8")).unwrap();
    fails(path, "sweep s.toml -o one --resume", "one");
    fs::write(path.join("next.luau"), SCRIPT.replace("end,", "")).unwrap();
    is_mistaken(path, "sweep s.toml -o three", "next.luau");
    assert!(!path.join("three/results.csv").exists());
    fs::write(path.join("next.luau"), SCRIPT.replace("window", "windw")).unwrap();
    let misspelt = "next.luau has no parameter `window`; it reads windw";
    is_mistaken(path, "sweep s.toml -o three", misspelt);
    fs::remove_file(path.join("next.luau")).unwrap();
    is_mistaken(path, "sweep s.toml -o three", "s.toml:3:26: ");
}

#[test]
fn the_tour_of_the_readme_works() {
    let readme = fs::read_to_string("../README.md").unwrap();
    let block = |language: &str| {
        let (_, rest) = readme.split_once(&format!("```{language}\n")).unwrap();
        rest.split_once("```").unwrap().0.to_owned()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("next.luau"), block("lua")).unwrap();
    // Smaller, as tests are built without optimization.
    let sweep = block("toml");
    assert!(sweep.contains("64K") && sweep.contains("seeds = 5"));
    let sweep = sweep.replace("64K", "4K").replace("seeds = 5", "seeds = 1");
    fs::write(path.join("tour.toml"), sweep).unwrap();
    succeeds(path, "sweep tour.toml");
    assert!(path.join("tour/report.html").is_file());
    let csv = fs::read_to_string(path.join("tour/results.csv")).unwrap();
    let faults = column(&csv, "device_faults");
    // Of each policy with the largest memory: the script prefetches.
    let most = |policy: &str| -> u64 {
        let policies = column(&csv, "policy");
        let at = policies.iter().rposition(|it| it == policy).unwrap();
        faults[at].parse().unwrap()
    };
    assert!(most("next.luau:window=32") < most("on-demand"), "{csv}");
    // And in a guest.
    succeeds(
        path,
        "run --workload bfs --param vertices=4K --memory 64M --device-memory 4M --policy next.luau:window=32 --record bfs.trace",
    );
    succeeds(path, "replay bfs.trace --policy density+lru");
    succeeds(path, "report bfs.trace -o bfs.html");
}

#[test]
fn a_sweep_removes_only_the_traces_that_it_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::create_dir_all(path.join("out/traces")).unwrap();
    let mine = path.join("out/traces/mine.trace");
    fs::write(&mine, "recorded by the user").unwrap();
    fs::write(path.join("next.luau"), SCRIPT).unwrap();
    let kept = |after: &str| assert!(mine.exists(), "lost after {after}");

    fs::write(path.join("s.toml"), SCRIPTED.replace("pages", "pagges")).unwrap();
    is_mistaken(path, "sweep s.toml -o out", "has no parameter `pagges`");
    kept("a mistake in the file");

    // Another process is at work: its journal is locked, its traces are in a folder.
    let theirs = path.join("out/traces-theirs");
    fs::create_dir(&theirs).unwrap();
    fs::write(path.join("s.toml"), SCRIPTED).unwrap();
    let journal = fs::File::create(path.join("out/journal.jsonl")).unwrap();
    journal.try_lock().unwrap();
    fails(path, "sweep s.toml -o out", "in use by another");
    assert!(theirs.exists(), "a process that was refused removed it");
    kept("a process was refused");
    drop(journal);

    succeeds(path, "sweep s.toml -o out");
    kept("a sweep");
    assert!(theirs.exists());
    fails(path, "sweep s.toml -o out", "nothing is left to do");
    kept("a sweep that was there");
    let names = fs::read_dir(path.join("out")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("traces")).collect();
    names.sort();
    assert_eq!(names, ["traces", "traces-theirs"], "its own are left");
}

#[test]
fn no_run_keeps_another_one_from_being_modelled() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // Torture leaves state behind in its process, and so does a run of several vCPUs that fails.
    let torture = "[[workload]]\nname = \"torture\"\nmode = \"model\"\nmemory = \"16M\"\nparams = { ops = 100, pages = 8 }\n";
    let failing = SCRIPTED
        .replace("pages = 64", "pages = 60000")
        .replace("memory = \"16M\"", "memory = \"16M\"\nvcpus = 2");
    let failing = failing.replace(", \"next.luau:window=4\", \"next.luau:window=32\"", "");
    let sweep = failing.replace("policies", "seeds = 3\npolicies") + torture;
    fs::write(path.join("s.toml"), sweep).unwrap();
    fails(path, "sweep s.toml -o out --jobs 2", "3 runs failed");
    let csv = fs::read_to_string(path.join("out/results.csv")).unwrap();
    for (source, error) in column(&csv, "source").iter().zip(column(&csv, "error")) {
        // The workload's own words, and none of other runs.
        assert_eq!(error.is_empty(), source == "torture", "{source}: {error}");
        assert!(!error.contains("state behind"), "{error}");
    }
}

#[test]
fn rows_say_how_often_their_script_failed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(
        path.join("next.luau"),
        SCRIPT.replace(
            "return page + 1",
            "state.n = (state.n or 0) + 1\n\t\treturn state.n == 2 and 'x' or page + 1",
        ),
    )
    .unwrap();
    let live = "[[workload]]\nname = \"pingpong\"\nmode = \"live\"\nmemory = \"16M\"\n";
    fs::write(path.join("s.toml"), SCRIPTED.to_owned() + live).unwrap();
    succeeds(path, "sweep s.toml -o out");
    let csv = fs::read_to_string(path.join("out/results.csv")).unwrap();
    let failures = column(&csv, "script_failures");
    assert_eq!(failures.len(), 6);
    for (policy, failures) in column(&csv, "policy").iter().zip(&failures) {
        match policy.as_str() {
            "on-demand" => assert_eq!(failures, ""),
            _ => assert!(failures.parse::<u64>().unwrap() > 0, "{policy}: {failures}"),
        }
    }
    let html = fs::read_to_string(path.join("out/report.html")).unwrap();
    assert!(html.contains("in 4 runs: there density decided"));
    // And the row itself says so, too.
    assert_eq!(html.matches("(script failed ").count(), 4, "{html}");
    // And which engine ran, where the file leaves that open.
    let engines = column(&csv, "engine");
    assert_eq!(engines[..3], ["", "", ""]);
    for engine in &engines[3..] {
        assert!(["remap", "copy"].contains(&engine.as_str()), "{engine}");
    }
}

/// Otherwise density's figures would stand under the script's name.
#[test]
fn a_run_whose_script_failed_throughout_is_a_failed_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(
        path.join("next.luau"),
        SCRIPT.replace("return page + 1", "return { prefech = page + 1 }"),
    )
    .unwrap();
    let live = "[[workload]]\nname = \"pingpong\"\nmode = \"live\"\nmemory = \"16M\"\n";
    fs::write(path.join("s.toml"), SCRIPTED.to_owned() + live).unwrap();
    fails(path, "sweep s.toml -o out", "4 runs failed");
    let csv = fs::read_to_string(path.join("out/results.csv")).unwrap();
    let (errors, moved) = (column(&csv, "error"), column(&csv, "pages_to_device"));
    for (n, policy) in column(&csv, "policy").iter().enumerate() {
        let scripted = policy != "on-demand";
        assert_eq!(
            errors[n].contains("the policy script failed in "),
            scripted,
            "{csv}"
        );
        assert_eq!(moved[n].is_empty(), scripted, "{csv}");
    }
}

#[test]
fn what_is_in_a_placement_is_part_of_the_sweep() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("place"), "0 16 device\n").unwrap();
    let sweep = SCRIPTED.replace("next.luau:window=4", "static:file=place");
    let sweep = sweep.replace(", \"next.luau:window=32\"", "");
    fs::write(path.join("s.toml"), sweep).unwrap();
    succeeds(path, "sweep s.toml -o out");
    let csv = fs::read_to_string(path.join("out/results.csv")).unwrap();
    assert!(column(&csv, "policy_exact")[1].starts_with("static:file=place#"));
    fs::write(path.join("place"), "0 32 device\n").unwrap();
    fails(path, "sweep s.toml -o out --resume", "of another sweep");
}

#[test]
fn a_merge_of_failed_runs_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // Only when it runs does the workload see that its pages are more than there is memory.
    let too_many = SCRIPTED.replace("pages = 64", "pages = 60000");
    let built_in = too_many.replace(", \"next.luau:window=4\", \"next.luau:window=32\"", "");
    fs::write(path.join("s.toml"), built_in).unwrap();
    fails(path, "sweep s.toml -o a", "1 run failed");
    fails(path, "sweep merge a -o all", "1 run failed");
    fails(path, "sweep merge a -o again", "run 0 (pingpong, on-demand");
    assert!(path.join("all/results.csv").exists());
}

/// The values of a column.
fn column(csv: &str, name: &str) -> Vec<String> {
    let cells = |line: &str| -> Vec<String> {
        let mut quoted = false;
        line.split(|c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        })
        .map(|cell| cell.trim_matches('"').to_owned())
        .collect()
    };
    let mut lines = csv.lines();
    let at = cells(lines.next().unwrap())
        .iter()
        .position(|it| it == name)
        .unwrap();
    lines.map(|line| cells(line).swap_remove(at)).collect()
}

#[test]
fn recorded_runs_are_replayed_in_shards_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for seed in [1, 2] {
        succeeds(
            path,
            &format!(
                "run --workload pingpong --param pages=64 --memory 16M --device-memory 128K --seed {seed} --record {seed}.trace"
            ),
        );
    }
    let sweep = r#"
title = "Replayed"
policies = ["on-demand", "density"]
device_memory = ["128K", "1M"]
[[trace]]
name = "pingpong"
files = ["1.trace", "2.trace"]
"#;
    fs::write(path.join("r.toml"), sweep).unwrap();
    succeeds(path, "sweep r.toml -o whole --jobs 1");
    succeeds(path, "sweep r.toml -o a --shard 1/2");
    fails(path, "sweep merge a -o merged", "shards 2/2 are missing");
    succeeds(path, "sweep r.toml -o b --shard 2/2");
    assert_eq!(
        succeeds(path, "sweep merge b a --output merged"),
        "8 runs: results.csv, results.parquet and report.html in merged\n"
    );
    let again = hmmvisor(path, "sweep merge b a -o merged");
    assert_eq!(
        String::from_utf8(again.stderr).unwrap(),
        "hmmvisor: error: merged has the results of 8 runs already; choose another folder with -o\n"
    );
    for table in ["results.csv", "results.parquet", "report.html"] {
        let read = |folder: &str| fs::read(path.join(folder).join(table)).unwrap();
        assert_eq!(read("merged"), read("whole"), "{table}");
    }
    succeeds(path, "report merged -o sweep.html");
    succeeds(path, "report 1.trace -o run.html");
    let html = fs::read_to_string(path.join("run.html")).unwrap();
    assert!(
        html.contains("Where pages were") && html.contains(">0x1000"),
        "no map"
    );

    fs::write(path.join("1.trace"), "not a trace").unwrap();
    is_mistaken(path, "sweep r.toml -o c", "r.toml:7:10: trace 1.trace: ");
    fails(path, "report 1.trace -o no.html", "1.trace");
    fails(path, "report nosuch -o no.html", "nosuch");
    assert!(!path.join("no.html").exists());
    fails(path, "report merged -o /nosuch/x.html", "/nosuch/x.html");
}

#[test]
fn a_trace_without_a_device_and_a_copy_of_a_trace_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let sweep = |files: &str| {
        let sweep = format!(
            "title = 'Traces'\npolicies = ['on-demand', 'density']\ndevice_memory = ['1M', '2M']\n\
             [[trace]]\nname = 't'\nfiles = [{files}]\n"
        );
        fs::write(path.join("s.toml"), sweep).unwrap();
    };
    for (name, device) in [("cpu", ""), ("device", ",0")] {
        let rows: String = (0..8).map(|page| format!("{page}{device}\n")).collect();
        let names = if device.is_empty() {
            "page"
        } else {
            "page,device"
        };
        fs::write(path.join("t.csv"), format!("{names}\n{rows}")).unwrap();
        let import = format!("trace import t.csv --format csv -o {name}.hmmtrace");
        succeeds(path, &import);
    }
    sweep("'cpu.hmmtrace', 'device.hmmtrace'");
    let output = hmmvisor(path, "sweep s.toml");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert_eq!(
        said,
        "hmmvisor: cpu.hmmtrace: no access is a device's, so nothing migrates; \
         an import has devices by --device (lackey), or by the column `device` (CSV)\n"
    );
    // What is done already says so again, and so does what is put together.
    for again in ["sweep s.toml --resume", "sweep merge s -o merged"] {
        let output = hmmvisor(path, again);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), said, "{again}");
    }
    fs::copy(path.join("device.hmmtrace"), path.join("copy.trace")).unwrap();
    sweep("'device.hmmtrace', 'copy.trace'");
    is_mistaken(
        path,
        "sweep s.toml -o copies",
        "s.toml:6:29: trace copy.trace has the same content as device.hmmtrace; name it once",
    );
    assert!(!path.join("copies").exists());
}

/// A sweep may compare a policy with `hints` to one without.
#[test]
fn a_live_sweep_may_give_hints_that_are_not_heard() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let sweep = "title = 'Hints'\npolicies = ['on-demand', 'on-demand+hints']\ndevice_memory = ['1M']\n\
                 [[workload]]\nname = 'vecadd'\nmode = 'live'\nmemory = '16M'\n\
                 params = { n = '4K', hint = 'preferred:system' }\n";
    fs::write(path.join("s.toml"), sweep).unwrap();
    succeeds(path, "sweep s.toml");
}

#[test]
fn a_file_is_no_folder_for_results() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("s.toml"), LIVE).unwrap();
    assert!(hmmvisor(path, "sweep s.toml -o s").status.success());
    for args in ["sweep s.toml -o s.toml", "sweep merge s -o s.toml"] {
        let output = hmmvisor(path, args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(
            message.contains("writing the results to s.toml: it is a file; name a folder for them"),
            "{args}: {message}"
        );
    }
    assert_eq!(fs::read_to_string(path.join("s.toml")).unwrap(), LIVE);
}
