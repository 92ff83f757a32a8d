//! The command refuses bad input with a message and an exit code, and leaves nothing behind.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn hmmvisor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
        .args(args)
        .output()
        .unwrap()
}

/// Runs it with arguments that it must refuse, and returns its message.
fn refusal(args: &[&str]) -> String {
    let output = hmmvisor(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{args:?}: {} {message}",
        output.status
    );
    assert!(!message.contains("panicked"), "{args:?}: {message}");
    assert!(message.contains("error: "), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?}: {:?}", output.stdout);
    message
}

#[test]
fn bad_options_are_refused() {
    for (args, expected) in [
        (
            &["--workload", "nosuch"][..],
            "unknown workload `nosuch`; there are vecadd",
        ),
        (&["--param", "n=-1"], "n=-1"),
        (&["--param", "nosuch=1"], "has no parameter `nosuch`"),
        (&["--param", "n"], "write it as NAME=VALUE"),
        (&["--vcpus", "0"], "must be from 1 to 64"),
        (&["--vcpus", "-1"], "-1"),
        (&["--devices", "17"], "must be from 1 to 16"),
        (&["--memory", "12X"], "is not a size"),
        (&["--memory", "-64M"], "is not a size"),
        (&["--memory", "3M"], "multiple of 2 MiB"),
        (&["--memory", "0"], "multiple of 2 MiB"),
        (&["--memory", "127G"], "this host's memory"),
        (&["--device-memory", "257M"], "more than guest memory"),
        (&["--device-memory", "1000"], "multiple of 4 KiB"),
        (
            &["--json", "/nosuch/report.json"],
            "its folder does not exist",
        ),
        (&["--guest", "/"], "it is a folder"),
        (&["--guest", "/dev/null"], "not a regular file"),
        (&["--guest", "/nosuch"], "No such file"),
        (
            &["nosuch"],
            "if `nosuch` was meant as a command: there are run, workloads,",
        ),
        (&["nosuch.toml"], "reading configuration file nosuch.toml"),
        (&["/dev/zero"], "not a regular file"),
        (&["--nosuch"], "--nosuch"),
    ] {
        let message = refusal(args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
}

#[test]
fn broken_configuration_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    for (text, expected) in [
        (&b"seed = "[..], "at line 1"),
        (b"[machine]\nvcpu = 1", "at line 2, column 1"),
        (b"\xff\xfe", "not UTF-8"),
    ] {
        std::fs::write(&path, text).unwrap();
        let message = refusal(&["run", path.to_str().unwrap()]);
        assert!(message.contains(expected), "{message}");
    }
}

/// The code tells a mistake of the user from what the host, a file or a guest has done.
#[test]
fn a_mistake_of_the_user_has_an_exit_code_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let key = file("key.toml", "[machine]\nvcpu = 1");
    let value = file("value.toml", "[machine]\nvcpus = 65");
    let sweep = file("sweep.toml", "title = 'x'");
    let script = file("script.luau", "return { on_fualt = print }");
    let trace = folder.path().join("t.hmmtrace");
    let trace = trace.to_str().unwrap();
    let generated = hmmvisor(&["trace", "generate", "pingpong", "-o", trace]);
    assert!(generated.status.success());
    let code = |args: &[&str]| {
        refusal(args);
        hmmvisor(args).status.code()
    };
    for args in [
        &["--nosuch"][..],
        &["--policy", "denisty"],
        &["--policy", "density:threshold=1,threshold=2"],
        &["--policy", &script],
        &["--balloon", "1M,hints=1,hints=2"],
        &["--workload", "nosuch"],
        &["--param", "nosuch=1"],
        &["--param", "n=1", "--param", "n=2"],
        &["--memory", "3M"],
        &["--memory", "127G"],
        &["--vcpus", "65"],
        &["nosuch"],
        &[&key],
        &[&value],
        &["sweep", &sweep],
        &["report", &sweep, "-o", "x.html"],
        &["replay", trace, "--device-memory", "1M"],
        &["replay", trace, "--policy", "density"],
        &["trace", "generate", "nosuch", "-o", "x"],
        &["trace", "generate", "vecadd", "--vcpus", "65", "-o", "x"],
    ] {
        assert_eq!(code(args), Some(2), "{args:?}");
    }
    for args in [
        &["nosuch.toml"][..],
        &["--guest", "/nosuch"],
        &["--policy", "nosuch.luau"],
        &["--json", "/nosuch/x"],
        &["replay", "/nosuch"],
    ] {
        assert_eq!(code(args), Some(1), "{args:?}");
    }
}

#[test]
fn a_refused_run_leaves_no_report() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    refusal(&["--json", report.to_str().unwrap(), "--vcpus", "0"]);
    assert!(!Path::new(&report).exists());
}

/// In `run --json my.toml` the only file is the configuration, which the option takes for its own.
#[test]
fn a_configuration_is_no_place_for_json() {
    let folder = tempfile::tempdir().unwrap();
    let (there, missing) = (folder.path().join("a.toml"), folder.path().join("b.toml"));
    fs::write(&there, "seed = 5\n").unwrap();
    for file in [&there, &missing] {
        let name = file.to_str().unwrap();
        for args in [&["run", "--json", name][..], &["--json", name]] {
            let message = refusal(args);
            assert!(
                message.contains(&format!("write `run {name} --json`")),
                "{message}"
            );
        }
    }
    assert_eq!(fs::read_to_string(&there).unwrap(), "seed = 5\n");
    assert!(!missing.exists());
}

#[test]
fn the_manual_and_the_completions_know_all_commands() {
    let text = |args: &[&str]| {
        let output = hmmvisor(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let manual = text(&["man"]);
    let completions =
        ["bash", "elvish", "fish", "powershell", "zsh"].map(|shell| text(&["completions", shell]));
    let help = text(&["--help"]);
    let (_, commands) = help.split_once("\nCommands:\n").unwrap();
    let lines = commands.lines().take_while(|line| !line.is_empty());
    // Lines that go on are further in.
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split_once(' '));
    let names: Vec<_> = names
        .map(|(name, _)| name)
        .filter(|name| !name.is_empty())
        .collect();
    let expected = if cfg!(feature = "tui") { 12 } else { 11 };
    assert_eq!(names.len(), expected, "{names:?}");
    for command in names {
        assert!(
            manual.contains(&format!("hmmvisor\\-{command}")),
            "{command}"
        );
        let page = text(&["man", command]);
        assert!(page.contains(&format!(".TH hmmvisor-{command} 1")));
        // In each shell's own form, because `run` or `check` occurs for other reasons as well.
        let forms = [
            format!("hmmvisor__subcmd__{command})"),
            format!("'hmmvisor;{command}'="),
            format!("__fish_hmmvisor_needs_command\" -a \"{command}\""),
            format!("'hmmvisor;{command}' {{"),
            format!("'{command}:"),
        ];
        for (script, form) in completions.iter().zip(&forms) {
            assert!(script.contains(form), "{form}");
        }
    }
    let import = text(&["man", "trace", "import"]);
    assert!(import.contains(".TH hmmvisor-trace-import 1"), "{import}");
    refusal(&["man", "nosuch"]);
    refusal(&["completions", "nosuch"]);
}

/// `--json` without a file is standard output, wherever it stands; with one it writes there.
#[test]
fn json_needs_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let succeeds = |command: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
            .current_dir(&folder)
            .args(command.split(' '))
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let object = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let run = "run --workload pingpong --param pages=32 --param rounds=2";
    for json in ["--json", "--json -"] {
        let figures = object(&succeeds(&format!("{run} {json} --record t")));
        assert_eq!(figures["verified"], true, "{figures}");
    }
    for command in ["trace info", "replay"] {
        let text = succeeds(&format!("{command} t"));
        let figures = succeeds(&format!("{command} t --json -"));
        assert!(object(&figures).is_object());
        for rest in ["t --json", "--json t", "--json - t", "--json=- t"] {
            let output = succeeds(&format!("{command} {rest}"));
            assert_eq!(output, figures, "{command} {rest}");
        }
        for rest in ["t --json j", "--json j t", "--json=j t"] {
            let _ = fs::remove_file(folder.path().join("j"));
            assert_eq!(
                succeeds(&format!("{command} {rest}")),
                text,
                "{command} {rest}"
            );
            assert_eq!(
                fs::read_to_string(folder.path().join("j")).unwrap(),
                figures
            );
        }
        for rest in [&["--json"][..], &["--json", "-"], &[]] {
            let words = command.split(' ').chain(rest.iter().copied());
            let output = hmmvisor(&words.collect::<Vec<_>>());
            assert_eq!(output.status.code(), Some(2), "{command} {rest:?}");
        }
    }
}

#[test]
fn shared_memory_never_migrates() {
    let figures = |args: &[&str]| -> Vec<u64> {
        let run = ["--memory", "64M", "--json", "-"];
        let output = hmmvisor(&[&run, args].concat());
        assert!(output.status.success(), "{args:?}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let drivers = &json["drivers"];
        assert_eq!(drivers["contract_violations"], 0);
        let figure = |value: &serde_json::Value| value.as_u64().unwrap();
        vec![
            figure(&json["device_pages_peak"]),
            figure(&drivers["folios_allocated"]),
            figure(&json["counters"]["mapped_in_place"]),
        ]
    };
    let all = figures(&[]);
    assert!(all[0] > 1000 && all[1] > 0, "{all:?}");
    // What is left is one block.
    let part = figures(&["--shared", "62M"]);
    assert!(part[0] <= 512 && part[2] > 1000, "{part:?}");
}

#[test]
fn workloads_are_listed_with_their_parameters() {
    let output = hmmvisor(&["workloads"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("vecadd "), "{text}");
    assert!(text.contains("  n=1048576 "), "{text}");
}

/// Only `run` takes signals as events; Ctrl-C ends every other command at once.
#[test]
fn commands_without_a_guest_end_with_a_signal() {
    for (signal, name) in [(libc::SIGINT, "INT"), (libc::SIGTERM, "TERM")] {
        let folder = tempfile::tempdir().unwrap();
        let trace = folder.path().join("t.hmmtrace");
        // A shell that runs these tests in the background makes them ignore SIGINT, and commands inherit that.
        let mut child = Command::new("env")
            .args(["--default-signal", env!("CARGO_BIN_EXE_hmmvisor")])
            .args(["trace", "import", "--format", "csv", "-", "-o"])
            .arg(&trace)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        // It exists as soon as the columns are read; then the import waits for what will not come.
        let mut input = child.stdin.take().unwrap();
        input
            .write_all(&[b"page\n", &b"1\n".repeat(1 << 17)[..]].concat())
            .unwrap();
        assert!(trace.exists());
        let kill = Command::new("kill")
            .args(["-s", name, &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        // If it ignored the signal it would end here, by itself.
        drop(input);
        assert_eq!(child.wait().unwrap().signal(), Some(signal), "{name}");
    }
}

#[test]
fn a_report_is_written_as_a_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (trace, page) = (
        folder.path().join("t.hmmtrace"),
        folder.path().join("t.html"),
    );
    let (trace, page) = (trace.to_str().unwrap(), page.to_str().unwrap());
    let run = [
        "--workload",
        "pingpong",
        "--param",
        "rounds=2",
        "--record",
        trace,
    ];
    assert!(hmmvisor(&run).status.success());

    // The reader that closed the pipe gets no message with the report's path.
    let mut child = Command::new(env!("CARGO_BIN_EXE_hmmvisor"))
        .args(["report", trace, "--output", page])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut message = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut message)
        .unwrap();
    assert!(child.wait().unwrap().success(), "{message}");
    let whole = fs::read_to_string(page).unwrap();
    assert!(
        whole.ends_with("</html>\n") || whole.ends_with("</html>"),
        "{:?}",
        whole.get(whole.len() - 20..)
    );

    // One that cannot be finished leaves the one before.
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""])
        .args([env!("CARGO_BIN_EXE_hmmvisor"), "report", trace, "-o", page])
        .output()
        .unwrap();
    let message = String::from_utf8(limited.stderr).unwrap();
    assert_eq!(limited.status.code(), Some(1), "{message}");
    assert!(message.contains("writing the report to"), "{message}");
    assert_eq!(fs::read_to_string(page).unwrap(), whole);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);

    let own = refusal(&["report", trace, "-o", trace]);
    assert!(own.contains("that is the trace itself"), "{own}");
    let sweep = folder.path().join("s.toml");
    fs::write(&sweep, "title = 'x'").unwrap();
    let message = refusal(&["report", sweep.to_str().unwrap(), "-o", page]);
    assert!(
        message.contains("give the folder with its results"),
        "{message}"
    );
    let accesses = folder.path().join("a.hmmtrace");
    let accesses = accesses.to_str().unwrap();
    assert!(
        hmmvisor(&["trace", "generate", "pingpong", "-o", accesses])
            .status
            .success()
    );
    let message = refusal(&["report", accesses, "-o", page]);
    assert!(message.contains("is an access trace"), "{message}");
    assert_eq!(fs::read_to_string(page).unwrap(), whole);
}

#[test]
fn a_guest_that_cannot_start_has_no_figures() {
    let output = hmmvisor(&["run", "--memory", "4M", "--device-memory", "1M"]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("not enough memory for"), "{said}");
    assert!(said.contains("vecadd: NOT verified"), "{said}");
    assert!(said.contains("4 MiB of managed memory, engine"), "{said}");
    for figure in ["CPU faults", "device faults", "VMM overhead", "migrated"] {
        assert!(!said.contains(figure), "{said}");
    }
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("it could not start"), "{message}");
}

#[test]
fn a_note_names_a_hint_that_no_policy_hears() {
    let hint = ["run", "--param", "n=4K", "--param", "hint=preferred:system"];
    let notes = |args: &[&str]| {
        let output = hmmvisor(&[&hint[..], args].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let note = "hmmvisor: parameter `hint=preferred:system` has no effect: policy adaptive+lru+timeslice does not listen to hints; add `+hints`\n";
    assert_eq!(notes(&[]), note);
    assert_eq!(notes(&["--policy", "density+hints"]), "");
}
