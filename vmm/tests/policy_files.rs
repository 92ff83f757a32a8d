//! Files that decide: scripts are text, and a trace that comes from others neither runs nor opens any unless it is the one
//! that was recorded. What files and scripts say cannot be mistaken for Hmmvisor's own messages.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{Page, PageRange};
use hmm_backend::policy::{PolicyFactory, PolicySpec};
use hmmvisor_experiments::trace::{TraceMeta, TraceWriter};
use hmmvisor_policies::{EXAMPLES, Scripts};

const SCRIPT: &str = "return { on_fault = function(page) return page, 1 end }";
const OTHER: &str =
    "print('another script ran') return { on_fault = function(page) return page, 1 end }";

fn hmmvisor(folder: &Path, args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
        .args(args.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap()
}

/// Whether the program succeeds, and all that it says.
fn says(folder: &Path, args: &str) -> (bool, String) {
    let output = hmmvisor(folder, args);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    (output.status.success(), text)
}

/// Writes a trace with one fault that says so of itself.
fn record(folder: &Path, meta: TraceMeta) {
    let meta = TraceMeta {
        device_kind: "private".to_owned(),
        memory: 4 << 20,
        device_memory: 1 << 20,
        devices: 1,
        vcpus: 1,
        ..meta
    };
    let mut writer = TraceWriter::create(&folder.join("t"), &meta).unwrap();
    let page = PageRange::single(Page(3));
    let fault = Event::new(Duration::from_micros(1), EventKind::CpuFault, page);
    writer.write(&[fault]).unwrap();
    writer.finish().unwrap();
}

fn recorded_with(folder: &Path, policy: &str, files: &[(&str, &str)]) {
    let file = |(path, sha256): &(&str, &str)| ((*path).to_owned(), (*sha256).to_owned());
    record(
        folder,
        TraceMeta {
            policy: policy.to_owned(),
            policy_files: files.iter().map(file).collect::<BTreeMap<_, _>>(),
            ..TraceMeta::default()
        },
    );
}

fn pipe(path: &Path) {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the kernel reads a string that ends with a zero.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

/// A script that needs to know of accesses is refused where devices do not tell, and runs where they do.
#[test]
fn a_script_says_how_much_devices_must_tell() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("counting.luau");
    let text =
        "return { accesses = 'bits', eviction = 'lfu', victims = function() return { 1 } end }";
    fs::write(&script, text).unwrap();
    let trace = folder.path().join("t");
    let run = |accesses: &str| {
        Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
            .args(["run", "--workload", "gather", "--param", "n=4096"])
            .args(["--memory", "32M", "--device-memory", "1M"])
            .args(["--accesses", accesses, "--policy"])
            .arg(&script)
            .arg("--record")
            .arg(&trace)
            .output()
            .unwrap()
    };
    let refused = run("faults");
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{told}");
    assert!(
        told.contains("they tell faults: add --accesses bits"),
        "{told}"
    );
    assert!(!trace.exists());
    let done = run("all");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let replay = |accesses: &str| {
        Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
            .args(["replay", "--accesses", accesses, "--no-optimal"])
            .arg(&trace)
            .output()
            .unwrap()
    };
    assert!(replay("bits").status.success());
    let refused = replay("faults");
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && told.contains("add --accesses bits"),
        "{told}"
    );
}

#[test]
fn a_trace_runs_only_the_script_that_it_was_recorded_with() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let script = here.join("p.luau");
    fs::write(&script, SCRIPT).unwrap();
    let named = script.display().to_string();
    let sha256 = Scripts::load(&script).unwrap().files()[0].sha256.clone();

    recorded_with(here, &named, &[(&named, &sha256)]);
    let (done, text) = says(here, "replay t");
    assert!(done, "{text}");

    // Changed since.
    fs::write(&script, OTHER).unwrap();
    let (done, text) = says(here, "replay t");
    assert!(!done && !text.contains("another"), "{text}");
    assert!(text.contains("is not the one that was used"), "{text}");
    assert!(text.contains("--policy"), "{text}");
    // The user's own choice is another thing.
    let (done, text) = says(here, &format!("replay t --policy {named}"));
    assert!(done && text.contains("another script ran"), "{text}");

    // Not known what it was, as in older traces; or known of another file.
    let elsewhere = here.join("q.luau").display().to_string();
    for files in [&[][..], &[(elsewhere.as_str(), sha256.as_str())][..]] {
        recorded_with(here, &named, files);
        let (done, text) = says(here, "replay t");
        assert!(!done && !text.contains("another"), "{text}");
        assert!(text.contains("but not what was in it then"), "{text}");
        assert!(text.contains("--policy"), "{text}");
    }
}

#[test]
fn a_trace_opens_only_the_placement_that_it_was_recorded_with() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let placement = here.join("placement");
    fs::write(&placement, "0 16 device\n").unwrap();
    let spec = format!("static:file={}+lru", placement.display());
    let files = spec.parse::<PolicySpec>().unwrap().files();
    let named = files[0].path.display().to_string();

    recorded_with(here, &spec, &[(&named, &files[0].sha256)]);
    let (done, text) = says(here, "replay t");
    assert!(done, "{text}");
    fs::write(&placement, "0 32 secret words\n").unwrap();
    let (done, text) = says(here, "replay t");
    assert!(
        !done && text.contains("is not the one that was used"),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");

    // A pipe would be waited for, also beside a script.
    fs::remove_file(&placement).unwrap();
    pipe(&placement);
    for policy in [
        spec.clone(),
        format!("hints+{spec}"),
        format!("{spec}+./p.luau"),
    ] {
        for files in [&[][..], &[(named.as_str(), "00")][..]] {
            recorded_with(here, &policy, files);
            let (done, text) = says(here, "replay t");
            assert!(!done, "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
    }
}

#[test]
fn little_is_quoted_of_a_long_policy() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let long = "x".repeat(200_000);
    for policy in [
        long.clone(),
        format!("density:{long}=1"),
        format!("density:threshold={long}"),
        format!("static:file=/{long}"),
        format!("/{long}"),
        format!("a.luau+b.luau+{long}"),
        format!("density; blocks {long}"),
        format!("density; memory {long}"),
    ] {
        recorded_with(here, &policy, &[]);
        let (done, text) = says(here, "replay t");
        let start = &policy[..20];
        assert!(
            !done && text.contains(start) && text.contains("--policy"),
            "{text}"
        );
        assert!(text.len() < 5000, "{start}: {} bytes", text.len());
    }
}

#[test]
fn scripts_are_regular_files_of_text() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    recorded_with(here, "density", &[]);
    fs::write(here.join("code.luau"), b"\x06\x03\0\0\0").unwrap();
    pipe(&here.join("pipe.luau"));
    let sweep = |policy: &str| {
        let text = format!(
            "title = \"s\"\npolicies = [\"{policy}\"]\ndevice_memory = [\"1M\"]\n[[trace]]\nname = \"t\"\nfiles = [\"t\"]\n"
        );
        fs::write(here.join("s.toml"), text).unwrap();
    };
    let config = |name: &str, text: &str| fs::write(here.join(name), text).unwrap();
    for (policy, why) in [
        ("./code.luau", "compiled bytecode"),
        ("./pipe.luau", "not a regular file"),
        ("/dev/zero", "not a regular file"),
    ] {
        sweep(policy);
        config("c.toml", &format!("[policy]\nspec = \"{policy}\"\n"));
        config(
            "r.toml",
            &format!(
                "[policy]\nspec = \"density\"\n[[policy.region]]\nstart = \"2M\"\nsize = \"2M\"\nspec = \"{policy}\"\n"
            ),
        );
        for command in [
            &format!("replay t --policy {policy}"),
            "sweep s.toml",
            &format!("run --workload pingpong --policy {policy}"),
            "run --workload pingpong c.toml",
            "run --workload pingpong r.toml",
        ] {
            let (done, text) = says(here, command);
            assert!(!done && text.contains(why), "{command}: {text}");
        }
    }
}

/// Devices belong to no region, so what a region's script says of evictions would have no effect.
#[test]
fn a_region_has_no_script_that_decides_only_evictions() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let config = "[[policy.region]]\nstart = \"2M\"\nsize = \"2M\"\nspec = \"p.luau+timeslice\"\n";
    fs::write(here.join("r.toml"), config).unwrap();
    for script in [
        "return { victims = function(want) return { 1 } end }",
        "return { eviction = \"lfu\" }",
    ] {
        fs::write(here.join("p.luau"), script).unwrap();
        let output = hmmvisor(here, "run r.toml");
        let expected = "hmmvisor: error: policy script p.luau decides only about evictions, which have no region; name it in [policy] spec\n";
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
        assert_eq!(output.status.code(), Some(2));
    }
}

/// What a script or a file says is not a line of Hmmvisor's, and reaches no terminal as it is.
#[test]
fn nothing_that_comes_from_outside_forges_a_message() {
    let forged = "x\nhmmvisor: error: wrong data\r\u{1b}[2J\u{9b}2J\u{202e}";
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let check = |args: &str| {
        let (_, text) = says(here, args);
        for line in text.lines() {
            let own = line.strip_prefix("hmmvisor: error: ");
            assert!(
                !line.starts_with("hmmvisor: error: wrong"),
                "{args}: {text}"
            );
            assert!(
                own.is_none_or(|it| !it.starts_with("wrong")),
                "{args}: {text}"
            );
        }
        let hidden = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(hidden), "{args}: {text:?}");
        text
    };
    let shows = |args: &str| {
        let text = check(args);
        assert!(text.contains("\\u{1b}[2J"), "{args}: {text}");
    };
    record(
        here,
        TraceMeta {
            policy: forged.to_owned(),
            workload: Some(forged.to_owned()),
            hmmvisor: forged.to_owned(),
            source: Some(forged.to_owned()),
            engine: forged.to_owned(),
            params: BTreeMap::from([(forged.to_owned(), forged.to_owned())]),
            ..TraceMeta::default()
        },
    );
    shows("trace info t");
    shows("replay t");
    shows("replay t --policy density");
    let said = "\"x\\nhmmvisor: error: wrong data\\r\\27[2J\\u{9b}2J\\u{202e}\"";
    for body in ["print", "error"] {
        let text =
            format!("return {{ on_fault = function(page) {body}({said}) return page, 1 end }}");
        fs::write(here.join("p.luau"), text).unwrap();
        check("replay t --policy ./p.luau --device-memory 1M");
    }
    fs::write(here.join("q.luau"), format!("error({said})")).unwrap();
    check("replay t --policy ./q.luau");
    check("run --workload pingpong --policy ./q.luau");
    // Names of files are from outside as well.
    let script = "x\u{1b}[2J.luau";
    fs::write(here.join(script), "return 5").unwrap();
    // Of a trace that is cut off, a note says so, and names it.
    let (whole, cut) = (fs::read(here.join("t")).unwrap(), "y\u{1b}[2J");
    fs::write(here.join(cut), &whole[..whole.len() - 8]).unwrap();
    let replayed = [
        "replay",
        cut,
        "--policy",
        "density",
        "--device-memory",
        "1M",
    ];
    for args in [&["replay", "t", "--policy", script][..], &replayed] {
        let output = Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
            .args(args)
            .current_dir(here)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.contains("\\u{1b}[2J") && !text.contains('\u{1b}'),
            "{args:?}: {text:?}"
        );
    }
}

#[test]
fn a_script_can_be_checked_without_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let (done, list) = says(here, "policies");
    assert!(done, "{list}");
    for example in EXAMPLES {
        assert!(list.contains(example.name), "{list}");
        let path = examples.join(example.name);
        let (done, text) = says(here, &format!("policies --check {}", path.display()));
        assert!(done && text.contains(": it loads, and made "), "{text}");
        assert!(!text.contains(" made 0 decisions"), "{text}");
        assert!(!text.contains("not tried"), "{text}");
    }
    for (script, code, expected) in [
        (
            "return { on_fualt = print }",
            2,
            "called `on_fualt`; it may return: on_fault",
        ),
        (
            "return { on_fault = function(page, write, device) if device then return { prefech = 1 } end end }",
            1,
            "a table with the key `prefech`; its keys may be: prefetch",
        ),
        (
            "return { victims = function() return { first = 1 } end }",
            1,
            "victims returned a table with the key `first`",
        ),
        (
            "return { on_remote_accesses = function() error('x') end, remote_access_threshold = 1 }",
            1,
            "x (in on_remote_accesses)",
        ),
        (
            "return { on_fault = function(page) return page, 1, 0, 0, false, 6 end }",
            1,
            "on_fault returned the number 6 as a sixth value",
        ),
        (
            "return { on_tick = function() return {}, 5 end, tick_interval = 1000 }",
            1,
            "on_tick returned the number 5 after the list of wishes",
        ),
        (
            "return { victims = function() return { 1 }, 2 end }",
            1,
            "victims returned the number 2 after the list of indices",
        ),
        (
            "return { on_remote_accesses = function(first) return first, 1, 7 end, remote_access_threshold = 1 }",
            1,
            "on_remote_accesses returned the number 7 as a third value",
        ),
        (
            "return { on_free = function(first) return first.x end }",
            1,
            "(in on_free)",
        ),
        (
            "return { on_hint = function(first) return first.x end }",
            1,
            "(in on_hint)",
        ),
        (
            "return { on_tick = function() return { 1 } end, tick_interval = 1000 }",
            1,
            "on_tick returned the number 1",
        ),
    ] {
        fs::write(here.join("p.luau"), script).unwrap();
        let output = hmmvisor(here, "policies --check p.luau");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("p.luau:1: "), "{text}");
    }
    for (spec, tried, expected) in [
        // Without an interval there are no ticks.
        (
            "return { on_fault = function() end, on_tick = function() end }",
            "p.luau",
            "without a failure; not tried: on_tick\n",
        ),
        (
            "return { on_remote_accesses = function() return true end }",
            "p.luau+hints",
            "without a failure\n",
        ),
        (
            "return { on_remote_accesses = function() end, remote_access_threshold = 1e9, on_hint = print }",
            "p.luau+lru",
            "without a failure; not tried: on_remote_accesses\n",
        ),
    ] {
        fs::write(here.join("p.luau"), spec).unwrap();
        let (done, text) = says(here, &format!("policies --check {tried}"));
        assert!(done && text.contains(expected), "{spec}: {text}");
    }
    for spec in ["density", "lru+thrash"] {
        let (done, text) = says(here, &format!("policies --check {spec}"));
        let expected = "is built in; name a policy script, a file whose name ends in .luau";
        assert!(!done && text.contains(expected), "{text}");
    }
}

/// Otherwise the default's figures would stand under the name of another value.
#[test]
fn a_misspelt_parameter_is_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    recorded_with(here, "density", &[]);
    let text =
        "local n = hmm.params.window or 8 return { on_fault = function(page) return page, n end }";
    fs::write(here.join("p.luau"), text).unwrap();
    let expected = "policy script p.luau has no parameter `widnow`; it reads window\n";
    for command in [
        "run --workload pingpong --policy",
        "replay t --policy",
        "policies --check",
    ] {
        let output = hmmvisor(here, &format!("{command} p.luau:widnow=4+lru"));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{command}: {text}");
        assert!(text.ends_with(expected), "{command}: {text}");
        let output = hmmvisor(here, &format!("{command} p.luau:window=4+lru"));
        assert_eq!(output.status.code(), Some(0), "{command}: {output:?}");
    }
}

/// What a run of a script has measured is density's if that has decided in its place.
#[test]
fn a_run_whose_script_failed_ends_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let mark = "(SCRIPT FAILED: density decided in its place), seed 1";
    let run = |body: &str, params: &str| {
        let text = format!("return {{ on_fault = function(page) {body} end }}");
        fs::write(here.join("p.luau"), text).unwrap();
        let run = "run --workload pingpong --memory 16M --policy p.luau --json j";
        let output = hmmvisor(here, &format!("{run} {params}"));
        let json = fs::read(here.join("j")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), out, error, json)
    };
    let (code, out, error, json) = run("return page, 1", "");
    assert_eq!(code, Some(0), "{error}");
    assert!(!out.contains("FAILED"), "{out}");
    assert_eq!(json["error"], serde_json::Value::Null);

    // A failure now and then leaves the figures the script's.
    let once = "state.n = (state.n or 0) + 1 return if state.n == 2 then 'x' else page";
    let (code, out, error, json) = run(once, "");
    assert_eq!(code, Some(0), "{error}");
    assert!(!out.contains("FAILED"), "{out}");
    assert_eq!(json["scripts"]["failures"], 1);

    let failure = "error: the policy script failed in ";
    let (code, out, error, json) = run("error('broken')", "");
    assert_eq!(code, Some(1), "{error}");
    assert!(out.contains(mark), "{out}");
    assert!(error.contains(failure), "{error}");
    assert_eq!(json["verified"], true);
    assert_eq!(json["scripts"]["decisions"], 0);
    let said = json["error"].as_str().unwrap();
    assert!(said.starts_with("the policy script failed in "), "{said}");

    // The guest's own code comes first.
    let (code, out, error, json) = run("error('broken')", "--param pages=60000");
    assert_eq!(code, Some(3), "{error}");
    assert_eq!(json["guest_exit"], 3);
    assert!(error.contains("the guest exited with code 3"), "{error}");
    assert!(out.contains(mark), "{out}");
    assert!(error.contains("the policy script failed in "), "{error}");
}
