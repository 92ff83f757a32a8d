//! Outputs of all commands: they replace nothing that the command uses, and what was there stays if the command fails.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hmmvisor_experiments::trace::{Tail, TraceReader};

const HMMVISOR: &str = env!("CARGO_BIN_EXE_hmmvisor");

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// A folder with a trace of a run.
    fn with_trace() -> Folder {
        let folder = Folder::new();
        folder.succeeds("run --workload pingpong --param rounds=2 --record t.trace");
        folder
    }

    /// Runs a shell's command line in which `hmmvisor` is the program.
    fn shell(&self, line: &str) -> Output {
        Command::new("bash")
            .arg("-c")
            .arg(format!("hmmvisor() {{ \"$HMMVISOR\" \"$@\"; }}; {line}"))
            .env("HMMVISOR", HMMVISOR)
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }

    fn succeeds(&self, args: &str) -> String {
        let output = self.shell(&format!("hmmvisor {args}"));
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, args: &str) -> String {
        self.fails_with(1, args)
    }

    fn fails_with(&self, code: i32, args: &str) -> String {
        let output = self.shell(&format!("hmmvisor {args}"));
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args}: {errors}");
        assert!(errors.contains("error: "), "{args}: {errors}");
        errors
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// A run that ends soon.
const RUN: &str = "run --workload pingpong --param rounds=2";
const LACKEY: &str = " S 1ffeffe000,8\n L 04222222,4\n";
const SWEEP: &str = r#"
title = "Outputs"
policies = ["on-demand", "next.luau"]
device_memory = ["1M"]
[[trace]]
name = "recorded"
files = ["t.trace"]
"#;
const SCRIPT: &str = "return { on_fault = function(page) return page, 1 end }";

#[test]
fn what_a_run_uses_is_not_written_over() {
    let folder = Folder::new();
    let disk = vec![b'D'; 1 << 20];
    folder.file("disk", &disk);
    fs::hard_link(folder.path("disk"), folder.path("hard")).unwrap();
    symlink("disk", folder.path("soft")).unwrap();
    folder.file("c.toml", "seed = 5\n");
    folder.file("p.luau", SCRIPT);
    for option in ["--record", "--json", "--console"] {
        for name in ["disk", "./disk", "hard", "soft"] {
            let message = folder.fails(&format!("{RUN} --disk disk {option} {name}"));
            assert!(message.contains("that is the disk itself"), "{message}");
            assert_eq!(fs::read(folder.path("disk")).unwrap(), disk);
        }
        let message = folder.fails(&format!("run c.toml {option} c.toml"));
        assert!(message.contains("configuration file"), "{message}");
        let message = folder.fails(&format!("{RUN} --policy ./p.luau {option} p.luau"));
        assert!(message.contains("that is the policy script"), "{message}");
        let message = folder.fails(&format!("run --guest p.luau {option} p.luau"));
        assert!(message.contains("that is the guest itself"), "{message}");
        for boot in ["--kernel p.luau", "--kernel nosuch --initrd p.luau"] {
            let message = folder.fails(&format!("run {boot} {option} p.luau"));
            assert!(message.contains("that is the "), "{message}");
        }
    }
    assert_eq!(text(&folder.path("c.toml")), "seed = 5\n");
    assert_eq!(text(&folder.path("p.luau")), SCRIPT);
    assert!(folder.path("soft").is_symlink());
}

#[test]
fn no_output_replaces_a_configuration_or_a_script() {
    let folder = Folder::with_trace();
    folder.file("log", LACKEY);
    folder.file("c.toml", "seed = 5\n");
    folder.file("own.toml", "seed = 6\n");
    folder.file("p.luau", SCRIPT);
    symlink("c.toml", folder.path("c.json")).unwrap();
    fs::create_dir(folder.path("swept")).unwrap();
    for (name, kind) in [
        ("c.toml", "a configuration or sweep file"),
        ("./p.luau", "a policy script"),
        (
            "c.json",
            "c.toml; an output does not replace a configuration",
        ),
    ] {
        for command in [
            // With a configuration of its own: without one, `--json c.toml` is refused before (`cli.rs`).
            format!("run own.toml --json {name}"),
            format!("own.toml --json {name}"),
            format!("{RUN} --record {name}"),
            format!("{RUN} --console {name}"),
            format!("replay t.trace --json {name}"),
            format!("trace info t.trace --json {name}"),
            format!("trace generate pingpong -o {name}"),
            format!("trace import log --format lackey -o {name}"),
            format!("trace export t.trace --format csv -o {name}"),
            format!("report t.trace -o {name}"),
        ] {
            let message = folder.fails(&command);
            assert!(message.contains(kind), "{command}: {message}");
        }
        let table = folder.path("swept/results.csv");
        symlink(folder.path(name), &table).unwrap();
        folder.file("s.toml", SWEEP.replace(", \"next.luau\"", ""));
        let message = folder.fails("sweep s.toml -o swept");
        assert!(message.contains(kind), "{message}");
        fs::remove_file(&table).unwrap();
    }
    assert_eq!(text(&folder.path("c.toml")), "seed = 5\n");
    assert_eq!(text(&folder.path("p.luau")), SCRIPT);
    assert!(folder.path("c.json").is_symlink());
    // A name that is not there is free.
    folder.succeeds("report t.trace -o new.toml");
}

const PLACEMENT: &str = "0 64 system\n64 128 device\n";

#[test]
fn a_placement_file_is_not_written_over() {
    let folder = Folder::new();
    let place = folder.file("place.txt", PLACEMENT);
    fs::hard_link(&place, folder.path("hard")).unwrap();
    let policy = "--policy lru+static:file=place.txt,hold=2ms";
    folder.succeeds(&format!("{RUN} {policy} --record s.trace"));
    let region = "[policy]\nspec = \"density\"\n[[policy.region]]\nstart = \"2M\"\nsize = \"2M\"\nspec = \"static:file=place.txt\"\n";
    folder.file("r.toml", region);
    let with_region = format!("{RUN} r.toml");
    let with_policy = format!("{RUN} {policy}");
    for output in ["--json", "--record", "--console"] {
        for run in [&with_region, &with_policy] {
            let message = folder.fails(&format!("{run} {output} hard"));
            assert!(message.contains("placement file itself ("), "{message}");
        }
    }
    folder.file(
        "s.toml",
        SWEEP.replace("next.luau", "static:file=place.txt"),
    );
    fs::copy(folder.path("s.trace"), folder.path("t.trace")).unwrap();
    fs::create_dir(folder.path("s")).unwrap();
    symlink("../place.txt", folder.path("s/results.csv")).unwrap();
    let message = folder.fails("sweep s.toml");
    assert!(message.contains("placement file itself ("), "{message}");
    for command in [
        with_region,
        with_policy,
        "replay s.trace".to_owned(),
        format!("replay s.trace {policy}"),
        "sweep s.toml -o other".to_owned(),
    ] {
        let message = folder.fails(&format!("{command} >> place.txt"));
        assert!(message.contains("placement file itself"), "{message}");
    }
    assert!(!folder.path("other").exists());
    assert_eq!(text(&place), PLACEMENT);
}

#[test]
fn two_outputs_of_a_run_are_two_files() {
    let folder = Folder::new();
    symlink("same", folder.path("link")).unwrap();
    let outputs = ["--record", "--json", "--console"];
    for (first, second) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
        let (first, second) = (outputs[first], outputs[second]);
        for name in ["same", "./same", "link"] {
            let message = folder.fails(&format!("{RUN} {first} same {second} {name}"));
            assert!(message.contains("goes"), "{message}");
            assert_eq!(folder.names("."), ["link"]);
        }
    }
    let message = folder.fails(&format!("{RUN} --record - --json /dev/stdout"));
    assert!(message.contains("standard output"), "{message}");
}

#[test]
fn a_run_that_does_not_start_changes_nothing() {
    let folder = Folder::new();
    for name in ["console", "json", "trace"] {
        folder.file(name, "old");
    }
    for prefix in ["", "new-"] {
        let run = format!(
            "{RUN} --param nosuch=1 --console {prefix}console --json {prefix}json --record {prefix}trace"
        );
        folder.fails_with(2, &run);
    }
    assert_eq!(folder.names("."), ["console", "json", "trace"]);
    for name in ["console", "json", "trace"] {
        assert_eq!(text(&folder.path(name)), "old");
    }
    // One that does has its own.
    folder.succeeds(&format!(
        "{RUN} --console console --json json --record trace"
    ));
    assert!(!text(&folder.path("console")).contains("old"));
    assert!(text(&folder.path("json")).starts_with('{'));
    let trace = TraceReader::open(&folder.path("trace")).unwrap();
    assert_eq!(trace.tail(), Tail::Complete);
    assert_eq!(folder.names("."), ["console", "json", "trace"]);
}

#[test]
fn an_output_that_cannot_be_written_is_known_before_the_work() {
    let folder = Folder::with_trace();
    folder.file("s.toml", SWEEP);
    folder.file("next.luau", SCRIPT);
    folder.file("log", LACKEY);
    fs::create_dir(folder.path("ro")).unwrap();
    // Each would take a minute, or needs input that never comes.
    let commands = [
        "run --workload torture --param seconds=60 --json ro/x",
        "run --workload torture --param seconds=60 --record ro/x",
        "run --workload torture --param seconds=60 --console ro/x",
        "trace import - --format csv -o ro/x <&3",
        "trace generate torture --param ops=100000000 -o ro/x",
        "trace export t.trace --format csv -o ro/x",
        "report t.trace -o ro/x",
        "sweep s.toml -o ro/x",
        "sweep merge s -o ro/x",
    ];
    for command in commands {
        let begin = Instant::now();
        let output = folder.shell(&format!(
            "[ -p silent ] || mkfifo silent; exec 3<>silent; unshare -m bash -c 'mount -t tmpfs none ro && mount -o remount,ro ro && \
             exec \"$HMMVISOR\" \"$@\"' hmmvisor {command}"
        ));
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command}: {errors}");
        let known = command.starts_with("sweep merge") || errors.contains("Read-only file system");
        assert!(
            known && begin.elapsed() < Duration::from_secs(40),
            "{errors}"
        );
    }
}

#[test]
fn traces_are_not_written_over_by_what_is_made_of_them() {
    let folder = Folder::with_trace();
    folder.file("log", LACKEY);
    for (input, command) in [
        ("t.trace", "trace export t.trace --format csv"),
        ("t.trace", "trace export t.trace --format perfetto"),
        ("t.trace", "report t.trace"),
        ("log", "trace import log --format lackey"),
        ("log", "trace import - --format lackey < log"),
    ] {
        let before = fs::read(folder.path(input)).unwrap();
        let _ = fs::remove_file(folder.path("hard"));
        fs::hard_link(folder.path(input), folder.path("hard")).unwrap();
        for output in [input, "hard"] {
            let message = folder.fails(&format!("{command} -o {output}"));
            assert!(
                message.contains("itself; name another file") || message.contains("itself ("),
                "{message}"
            );
            assert_eq!(fs::read(folder.path(input)).unwrap(), before);
        }
    }
}

#[test]
fn nothing_is_printed_into_an_input() {
    let folder = Folder::with_trace();
    folder.file("log", LACKEY);
    folder.file("disk", vec![b'D'; 1 << 20]);
    for (input, command) in [
        ("t.trace", "trace info t.trace"),
        ("t.trace", "trace export t.trace --format csv -o x"),
        ("t.trace", "trace export t.trace --format csv -o -"),
        ("t.trace", "report t.trace -o x"),
        ("t.trace", "replay t.trace"),
        ("log", "trace import log --format lackey -o x"),
        (
            "disk",
            "run --workload pingpong --param rounds=2 --disk disk",
        ),
    ] {
        let before = fs::read(folder.path(input)).unwrap();
        let message = folder.fails(&format!("{command} >> {input}"));
        assert!(message.contains("itself"), "{message}");
        assert!(fs::read(folder.path(input)).unwrap() == before, "{command}");
    }
    assert_eq!(folder.names("."), ["disk", "log", "t.trace"]);
    folder.file("s.toml", SWEEP);
    folder.file("next.luau", SCRIPT);
    for command in ["sweep s.toml -o -", "sweep merge s -o -"] {
        folder.fails_with(2, command);
        assert!(!folder.path("-").exists());
    }
    // The script that the trace names.
    folder.succeeds(&format!("{RUN} --policy ./next.luau --record p.trace"));
    for (input, command) in [
        ("next.luau", "replay p.trace"),
        ("next.luau", "replay p.trace --policy ./next.luau"),
    ] {
        let before = fs::read(folder.path(input)).unwrap();
        let message = folder.fails(&format!("{command} >> {input}"));
        assert!(message.contains("the policy script itself"), "{message}");
        assert!(fs::read(folder.path(input)).unwrap() == before, "{command}");
    }
    // Another choice leaves it alone.
    folder.file("said", "");
    folder.succeeds("replay p.trace --policy lru >> said");
    assert!(text(&folder.path("said")).contains("modelled time"));
}

#[test]
fn a_sweep_prints_into_none_of_its_files() {
    let folder = Folder::with_trace();
    folder.file("s.toml", SWEEP);
    folder.file("next.luau", SCRIPT);
    for shard in ["1", "2"] {
        folder.succeeds(&format!("sweep s.toml --shard {shard}/2 -o h{shard}"));
    }
    for (input, command) in [
        ("t.trace", "sweep s.toml -o new"),
        ("s.toml", "sweep s.toml -o new"),
        ("next.luau", "sweep s.toml -o new"),
        ("h1/journal.jsonl", "sweep merge h1 h2 -o new"),
        ("h2/journal.jsonl", "sweep merge h1 h2 -o new"),
    ] {
        let before = fs::read(folder.path(input)).unwrap();
        let message = folder.fails(&format!("{command} >> {input}"));
        assert!(message.contains("itself"), "{message}");
        assert!(fs::read(folder.path(input)).unwrap() == before, "{command}");
        assert!(!folder.path("new").exists(), "{command}");
    }
    fs::create_dir(folder.path("new")).unwrap();
    for result in ["results.csv", "results.parquet", "report.html"] {
        for command in ["sweep s.toml -o new", "sweep merge h1 h2 -o new"] {
            let message = folder.fails(&format!("{command} > new/{result}"));
            assert!(message.contains("let standard output lead"), "{message}");
            assert_eq!(folder.names("new"), [result]);
            assert_eq!(text(&folder.path("new").join(result)), "");
        }
        fs::remove_file(folder.path("new").join(result)).unwrap();
    }
    folder.succeeds("sweep merge h1 h2 -o new > said");
    assert!(text(&folder.path("said")).contains("report.html in new"));
}

#[test]
fn data_on_standard_output_is_data_alone() {
    let folder = Folder::with_trace();
    folder.file("log", LACKEY);
    symlink("/proc/self/fd/1", folder.path("link")).unwrap();
    let commands = [
        "trace export t.trace --format csv -o",
        "trace export t.trace --format perfetto -o",
        "report t.trace -o",
        "trace import log --format lackey -o",
        "trace generate pingpong --param rounds=2 -o",
    ];
    for command in commands {
        folder.succeeds(&format!("{command} expected"));
        let expected = fs::read(folder.path("expected")).unwrap();
        fs::remove_file(folder.path("expected")).unwrap();
        for output in ["-", "/dev/stdout", "/proc/self/fd/1", "link", "file"] {
            // Into a pipe, into a file, and added to one.
            let line = format!("hmmvisor {command} {output}");
            for (line, before) in [
                (
                    format!("{line} > >(cat > piped; echo > ended); wait $!; cat piped > file"),
                    "",
                ),
                (format!("{line} > file"), ""),
                (format!("echo before > file; {line} >> file"), "before\n"),
            ] {
                folder.file("file", "");
                let run = folder.shell(&line);
                let errors = String::from_utf8_lossy(&run.stderr).into_owned();
                let written = fs::read(folder.path("file")).unwrap();
                if output == "file" && before.is_empty() && line.contains("piped") {
                    // Not standard output in this case.
                    continue;
                }
                assert!(run.status.success(), "{line}: {errors}");
                let wanted = [before.as_bytes(), &expected].concat();
                assert!(
                    written == wanted,
                    "{line}: {} bytes: {errors}",
                    written.len()
                );
                assert!(folder.path("link").is_symlink());
            }
        }
    }
    // What a run says otherwise goes to standard error then.
    let json = folder.succeeds(&format!("{RUN} --json /dev/stdout"));
    assert!(json.starts_with('{') && json.ends_with("}\n"), "{json}");
    let console = folder.succeeds(&format!("{RUN} --console -"));
    assert!(!console.contains("migrated"), "{console}");
    let output = folder.shell(&format!("hmmvisor {RUN} --record - > piped"));
    assert!(output.status.success());
    let trace = TraceReader::open(&folder.path("piped")).unwrap();
    assert_eq!(trace.tail(), Tail::Complete);
    assert!(!folder.path("-").exists());
}

#[test]
fn links_modes_and_other_files_stay() {
    let folder = Folder::with_trace();
    folder.file("log", LACKEY);
    folder.file("page.new", "precious");
    symlink("victim", folder.path("page.tmp")).unwrap();
    for (number, command) in [
        "trace export t.trace --format csv -o",
        "trace export t.trace --format parquet -o",
        "report t.trace -o",
        "trace import log --format lackey -o",
        "trace generate pingpong --param rounds=2 -o",
        "run --workload pingpong --param rounds=2 --json",
        "run --workload pingpong --param rounds=2 --record",
        "run --workload pingpong --param rounds=2 --console",
    ]
    .into_iter()
    .enumerate()
    {
        let real = folder.file("page", "old");
        fs::set_permissions(&real, fs::Permissions::from_mode(0o600)).unwrap();
        let _ = fs::remove_file(folder.path("link"));
        symlink("./page", folder.path("link")).unwrap();
        folder.succeeds(&format!("{command} link"));
        assert!(folder.path("link").is_symlink(), "{command}");
        assert_ne!(fs::read(&real).unwrap(), b"old", "{command}");
        assert_eq!(real.metadata().unwrap().mode() & 0o777, 0o600, "{command}");
        let hard = folder.path(&format!("hard{number}"));
        fs::hard_link(&real, &hard).unwrap();
        fs::write(&real, "old").unwrap();
        folder.succeeds(&format!("{command} page"));
        assert_eq!(fs::read(&hard).unwrap(), fs::read(&real).unwrap());
        assert_ne!(fs::read(&real).unwrap(), b"old", "{command}");
        fs::remove_file(&hard).unwrap();
        fs::remove_file(&real).unwrap();
    }
    assert_eq!(text(&folder.path("page.new")), "precious");
    let names = ["link", "log", "page.new", "page.tmp", "t.trace"];
    assert_eq!(folder.names("."), names);
}

#[test]
fn what_fails_leaves_what_was_there() {
    let folder = Folder::with_trace();
    let whole = fs::read(folder.path("t.trace")).unwrap();
    let mut corrupt = whole.clone();
    let end = corrupt.len() - 40;
    corrupt[end] ^= 0xff;
    folder.file("corrupt", &corrupt);
    folder.file("bad.log", " S nonsense\n");
    for command in [
        "trace export corrupt --format csv",
        "trace import bad.log --format lackey",
        "trace import bad.log --format csv",
        "trace generate crash --param kind=panic",
        "report corrupt",
    ] {
        let old = folder.file("old", "old");
        let output = folder.shell(&format!("hmmvisor {command} -o old"));
        assert!(!output.status.success(), "{command}");
        assert_eq!(text(&old), "old", "{command}");
    }
    assert_eq!(folder.names("."), ["bad.log", "corrupt", "old", "t.trace"]);
    // A recording that the disk has no room for.
    let output = folder.shell(
        "mkdir full; unshare -m bash -c 'mount -t tmpfs -o size=16k none full; echo old > full/t; \
         \"$HMMVISOR\" run --workload pingpong --param pages=256 --param rounds=60 \
           --policy on-demand+timeslice:min=0us --record full/t; code=$?; cat full/t >&2; ls full >&2; exit $code'",
    );
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("what was there before still is"),
        "{errors}"
    );
    assert!(errors.ends_with("old\nt\n"), "{errors}");
}

#[test]
fn a_sweep_writes_over_nothing_that_it_is_made_of() {
    let folder = Folder::with_trace();
    folder.file("s.toml", SWEEP);
    folder.file("next.luau", SCRIPT);
    fs::create_dir(folder.path("s")).unwrap();
    let tables = [
        "results.csv",
        "results.parquet",
        "report.html",
        "journal.jsonl",
    ];
    for input in ["t.trace", "s.toml", "next.luau"] {
        let before = fs::read(folder.path(input)).unwrap();
        for table in tables {
            let table = folder.path("s").join(table);
            let links: [fn(&Path, &Path) -> std::io::Result<()>; 2] = [
                |from, to| symlink(from, to),
                |from, to| fs::hard_link(from, to),
            ];
            for link in links {
                link(&folder.path(input), &table).unwrap();
                let message = folder.fails("sweep s.toml");
                assert!(message.contains("itself ("), "{message}");
                assert_eq!(fs::read(folder.path(input)).unwrap(), before);
                fs::remove_file(&table).unwrap();
            }
        }
    }
    // Two tables that are one file.
    folder.file("one", "");
    for table in &tables[..2] {
        symlink("../one", folder.path("s").join(table)).unwrap();
    }
    assert!(
        folder
            .fails("sweep s.toml --resume")
            .contains("where the table goes")
    );
    for table in &tables[..2] {
        fs::remove_file(folder.path("s").join(table)).unwrap();
    }

    // Links lead to where the results are.
    folder.file("page", "old");
    symlink("../page", folder.path("s/report.html")).unwrap();
    folder.succeeds("sweep s.toml --resume");
    assert!(folder.path("s/report.html").is_symlink());
    assert!(text(&folder.path("page")).contains("</html>"));
    let mut expected = tables.map(str::to_owned);
    expected.sort();
    assert_eq!(folder.names("s"), expected);

    // A merge that cannot be written leaves no journal.
    fs::create_dir(folder.path("whole")).unwrap();
    symlink("../s/journal.jsonl", folder.path("whole/results.csv")).unwrap();
    let message = folder.fails("sweep merge s -o whole");
    assert!(message.contains("the journal of a shard"), "{message}");
    assert_eq!(folder.names("whole"), ["results.csv"]);
    fs::remove_file(folder.path("whole/results.csv")).unwrap();
    folder.succeeds("sweep merge s -o whole");
}

#[test]
fn a_full_disk_is_an_error_of_every_output() {
    let folder = Folder::with_trace();
    folder.file("log", LACKEY);
    symlink("/dev/full", folder.path("full")).unwrap();
    for command in [
        "trace export t.trace --format csv -o full",
        "report t.trace -o full",
        "trace import log --format lackey -o full",
        "trace generate pingpong --param rounds=2 -o full",
        "run --workload pingpong --param rounds=2 --json full",
        "run --workload pingpong --param rounds=2 --record full",
        "trace export t.trace --format csv -o - > /dev/full",
        "report t.trace -o /dev/stdout > /dev/full",
        "trace info t.trace > /dev/full",
        "replay t.trace > /dev/full",
        "--help > /dev/full",
        "trace --help > /dev/full",
        "--version > /dev/full",
    ] {
        let message = folder.fails(command);
        assert!(
            message.contains("No space left on device"),
            "{command}: {message}"
        );
        assert!(folder.path("full").is_symlink());
    }
}

#[test]
fn a_merge_that_finds_no_room_leaves_nothing_and_says_what_to_do() {
    let folder = Folder::with_trace();
    folder.file("s.toml", SWEEP);
    folder.file("next.luau", SCRIPT);
    folder.succeeds("sweep s.toml -o h");
    // In blocks of 1024 bytes: not even the journal, and not the page.
    for room in [0, 8] {
        for (made_before, left) in [("", "full:\n"), ("full/m", "full:\nm\n\nfull/m:\n")] {
            let output = folder.shell(&format!(
                "mkdir -p full; unshare -m bash -c 'mount -t tmpfs none full; mkdir -p full {made_before}; ulimit -f {room}; \
                 \"$HMMVISOR\" sweep merge h -o full/m 2>&1 | cat; ls -R full | cat'"
            ));
            let text = String::from_utf8(output.stdout).unwrap();
            let (message, found) = text.split_once('\n').unwrap();
            assert!(message.contains("make room and merge again"), "{text}");
            assert!(message.contains("raise `ulimit -f`") || room > 0, "{text}");
            assert!(!message.contains("resume"), "{text}");
            assert_eq!(found, left, "{text}");
        }
    }
    folder.succeeds("sweep merge h -o m");
}

#[test]
fn a_sweep_is_done_by_the_program_that_began_it() {
    let folder = Folder::new();
    fs::copy(HMMVISOR, folder.path("program")).unwrap();
    // The first run waits until the program has been replaced, and the others come after it.
    let live = "[[workload]]\nname = \"pingpong\"\nmode = \"live\"\nmemory = \"16M\"\nparams = { pages = 16, rounds = 2 }\n";
    let model = live.replace("live", "model");
    let sweep = format!(
        "title = \"t\"\npolicies = [\"on-demand\"]\ndevice_memory = [\"1M\"]\nseeds = 8\n{live}{model}"
    );
    folder.file("s.toml", sweep);
    let output = folder.shell(
        "(./program sweep s.toml --jobs 1 2>&1; echo code $?) > out &
         until [ \"$(wc -l < s/journal.jsonl 2>/dev/null || echo 0)\" -ge 2 ] || ! kill -0 $!; do sleep 0.02; done
         printf '#!/bin/sh\\necho >> %s/other\\nexit 1\\n' \"$PWD\" > new; chmod +x new; mv new program
         wait",
    );
    assert!(output.status.success(), "{output:?}");
    let said = text(&folder.path("out"));
    assert!(
        said.contains("16 runs done") && said.ends_with("code 0\n"),
        "{said}"
    );
    assert!(!folder.path("other").exists());
}

#[test]
fn a_pipe_with_a_name_is_written_to() {
    let folder = Folder::with_trace();
    let line = "mkfifo p; cat p > read & hmmvisor report t.trace -o p; wait; hmmvisor report t.trace -o page; cmp read page && [ -p p ]";
    let output = folder.shell(line);
    assert!(output.status.success(), "{output:?}");
    assert!(
        File::open(folder.path("page"))
            .unwrap()
            .metadata()
            .unwrap()
            .len()
            > 1000
    );
}
