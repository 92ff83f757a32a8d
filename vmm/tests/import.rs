//! Memory traces of real programs and hand-written tables become access traces.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hmm_backend::{Access, Event, EventKind};
use hmmvisor_experiments::trace::{Tail, TraceKind, TraceReader};
use tempfile::TempDir;

const HMMVISOR: &str = env!("CARGO_BIN_EXE_hmmvisor");

struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Imports a text.
    fn import(&self, format: &str, text: &str) -> Output {
        fs::write(self.path("input"), text).unwrap();
        self.import_file(format, &self.path("input"), &[])
    }

    fn import_file(&self, format: &str, input: &Path, options: &[&str]) -> Output {
        Command::new(HMMVISOR)
            .args(["trace", "import", "--format", format, "-o"])
            .args([&self.path("trace"), input])
            .args(options)
            .output()
            .unwrap()
    }

    fn trace(&self) -> TraceReader {
        TraceReader::open(&self.path("trace")).unwrap()
    }

    fn events(&self) -> Vec<Event> {
        self.trace().map(Result::unwrap).collect()
    }

    fn refusal(&self, format: &str, text: &str) -> String {
        let output = self.import(format, text);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text:?}: {message}");
        assert!(!message.contains("panicked"), "{message}");
        message
    }
}

/// (page, whether it is a write) of each event.
fn accesses(events: &[Event]) -> Vec<(u32, bool)> {
    let pair = |event: &Event| (event.page.0, event.access == Some(Access::Write));
    events.iter().map(pair).collect()
}

/// An independent reading of lackey's lines: (address, whether it is a write), merged by page.
fn expected(log: &Path) -> (u64, Vec<(u64, bool)>) {
    let mut merged: Vec<(u64, bool)> = Vec::new();
    let mut accesses = 0;
    for line in BufReader::new(fs::File::open(log).unwrap()).lines() {
        let line = line.unwrap();
        let mut words = line.split_whitespace();
        let (Some(kind @ ("I" | "L" | "S" | "M")), Some(place)) = (words.next(), words.next())
        else {
            assert!(line.starts_with("==") || line.is_empty(), "{line}");
            continue;
        };
        let (address, size) = place.split_once(',').unwrap();
        let address = u64::from_str_radix(address, 16).unwrap();
        let write = kind == "S" || kind == "M";
        let (first, last) = (
            address >> 12,
            (address + size.parse::<u64>().unwrap() - 1) >> 12,
        );
        for page in first..=last {
            accesses += 1;
            match merged.last() {
                Some((before, written)) if *before == page && (*written || !write) => {}
                _ => merged.push((page, write)),
            }
        }
    }
    (accesses, merged)
}

#[test]
fn a_real_program_under_valgrind() {
    let files = Files::new();
    let log = files.path("log");
    let mut valgrind = Command::new("valgrind")
        .args(["--tool=lackey", "--trace-mem=yes"])
        .arg(format!("--log-file={}", log.display()))
        .args(["sqlite3", ":memory:"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs valgrind and sqlite3");
    let sql = "create table t(a integer primary key, b text); create index x on t(b);
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 100)
        insert into t select i, hex(i * 7919) from n; select count(*) from t where b > '3';";
    valgrind
        .stdin
        .take()
        .unwrap()
        .write_all(sql.as_bytes())
        .unwrap();
    let output = valgrind.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");

    let imported = files.import_file("lackey", &log, &[]);
    assert!(imported.status.success(), "{imported:?}");
    let (count, expected) = expected(&log);
    assert!(count > 2_000_000, "only {count} accesses");
    let trace = files.trace();
    assert_eq!(
        (trace.tail(), trace.meta().kind),
        (Tail::Complete, TraceKind::Access)
    );
    assert_eq!(trace.totals().events, expected.len() as u64);
    assert_eq!(
        trace.totals().threads.values().copied().collect::<Vec<_>>(),
        [0]
    );
    let mapping = trace.totals().mapping.clone();
    assert_eq!(trace.meta().memory, mapping.len() as u64 * (2 << 20));
    // The mapping leads back to the program's addresses.
    for (number, (event, (page, write))) in trace.zip(&expected).enumerate() {
        let event = event.unwrap();
        let (first, _, address) = mapping[event.page.0 as usize / 512];
        assert_eq!(
            address / 4096 + u64::from(event.page.0 - first),
            *page,
            "event {number}"
        );
        assert_eq!(
            event.access == Some(Access::Write),
            *write,
            "event {number}"
        );
        assert_eq!(
            (event.kind, event.device, event.pages),
            (EventKind::Access, None, 1)
        );
    }

    // The same by a pipe, and less without the program text.
    let piped = Command::new(HMMVISOR)
        .args([
            "trace",
            "import",
            "-",
            "--format",
            "lackey",
            "--no-instructions",
            "-o",
        ])
        .arg(files.path("data"))
        .stdin(fs::File::open(&log).unwrap())
        .output()
        .unwrap();
    assert!(piped.status.success(), "{piped:?}");
    let data = TraceReader::open(&files.path("data"))
        .unwrap()
        .totals()
        .events;
    assert!(0 < data && data < expected.len() as u64, "{data}");
}

#[test]
fn lackeys_lines_mean_what_valgrind_says() {
    let files = Files::new();
    let text = "==7== Lackey\nI  00401000,3\n L 1ffeffe7e8,8\n S 1ffeffe7f0,8\n L 1ffeffe7e8,8\n M 00600ffe,4\n\
        ==7== end\n";
    assert!(files.import("lackey", text).status.success());
    // Blocks of 2 MiB in the order of their first accesses; neighbours in one stay neighbours.
    assert_eq!(
        accesses(&files.events()),
        [
            (1, false),
            (512 + 0x1fe, false),
            (512 + 0x1fe, true),
            // Written on both sides of a page's end.
            (1024, true),
            (1025, true),
        ]
    );
    assert_eq!(
        files.trace().totals().mapping[1],
        (512, 512, 0x1f_fee0_0000)
    );
    let times: Vec<_> = files
        .events()
        .iter()
        .map(|event| event.time.as_nanos())
        .collect();
    assert_eq!(times, [0, 1, 2, 4, 5]);

    for (line, why) in [
        ("hello world", "is no line of"),
        (" X 0040,4", "is no line of"),
        (" L 0040", "is no line of"),
        (" L 00zz,4", "is no line of"),
        (" L 0040,0", "an access of 0 bytes"),
        (" L 0040,5000", "an access of 5000 bytes"),
        (" S ffffffffffffffff,8", "beyond the last address"),
    ] {
        // Where a file is, it stays.
        fs::remove_file(files.path("trace")).unwrap();
        let message = files.refusal("lackey", &format!(" L 1000,8\n{line}\n"));
        assert!(
            message.contains("input, line 2: ") && message.contains(why),
            "{message}"
        );
        // What came before stays.
        assert_eq!(files.trace().tail(), Tail::Unfinished);
        assert_eq!(files.events().len(), 1);
    }
    assert!(
        files
            .refusal("lackey", "==7== nothing\n")
            .contains("has no accesses")
    );
    assert!(
        files
            .refusal("lackey", &"x".repeat(100_000))
            .contains("line 1")
    );
}

#[test]
fn tables_are_read() {
    let files = Files::new();
    let good = |text: &str| {
        let output = files.import("csv", text);
        assert!(output.status.success(), "{output:?}");
        files.events()
    };
    assert_eq!(
        accesses(&good("page,access\n3,read\n3,R\n3,write\n3,r\n5,W\n")),
        [(3, false), (3, true), (5, true)]
    );
    assert_eq!(files.trace().meta().memory, 2 << 20);
    let by_address = good("address,size,access\n0x1ffe, 4 ,M\n4096,,L\n0x40000000,1,S\n");
    assert_eq!(
        accesses(&by_address),
        [(1, true), (2, true), (1, false), (512, true)]
    );

    let all = good(
        "kind,page,pages,device,vcpu,time_ns,colour\naccess,1,4,,1,10,red\naccess,1,4,2,,20,\nfreed,0,100,2,,30,\n",
    );
    assert_eq!(all.len(), 3);
    assert_eq!((all[0].pages, all[0].thread, all[0].device), (4, 2, None));
    assert_eq!(
        (all[1].thread, all[1].device.map(|device| device.0)),
        (0, Some(2))
    );
    assert_eq!(
        (all[2].kind, all[2].pages, all[2].time.as_nanos()),
        (EventKind::Freed, 100, 30)
    );
    let trace = files.trace();
    assert_eq!((trace.meta().vcpus, trace.meta().devices), (2, 3));
    assert_eq!(
        trace.totals().threads.iter().collect::<Vec<_>>(),
        [(&2, &1)]
    );

    for (text, line, why) in [
        ("a,b\n1,2\n", 1, "`page` or `address`"),
        ("page,address\n1,2\n", 1, "there must be one of them"),
        ("page\nx\n", 2, "page `x` is no number"),
        ("page\n-1\n", 2, "is no number"),
        ("page\n4294967295\n", 2, "there are 1 to"),
        ("page,pages\n1,0\n", 2, "0 pages"),
        ("page,access\n1,r\n1,x\n", 3, "neither read nor write"),
        ("page,device\n1,256\n", 2, "device 256"),
        ("page,kind\n1,cpu-fault\n", 2, "no accesses"),
        ("page,kind,hint\n1,hint,\n", 2, "unknown hint ''"),
        ("page,kind,hint\n1,hint,gpu\n", 2, "unknown hint 'gpu'"),
        ("page,access\n1\n", 2, "1 columns"),
        ("page,access\n,r\n", 2, "neither a page nor an address"),
    ] {
        let message = files.refusal("csv", text);
        assert!(
            message.contains(&format!("input, line {line}: ")),
            "{message}"
        );
        assert!(message.contains(why), "{message}");
    }
    assert!(files.refusal("csv", "page\n").contains("has no accesses"));
    assert!(files.refusal("csv", "").contains("line 1"));
}

#[test]
fn an_exported_access_trace_is_imported_as_it_was() {
    for (workload, param, kind) in [
        ("churn", "rounds=3", EventKind::Freed),
        ("gather", "hint=accessed-by", EventKind::Hint),
    ] {
        export_and_import(workload, param, kind);
    }
}

fn export_and_import(workload: &str, param: &str, kind: EventKind) {
    let files = Files::new();
    let (first, table) = (files.path("first"), files.path("table.csv"));
    for (args, file) in [
        (
            &[
                "generate",
                workload,
                "--param",
                param,
                "--vcpus",
                "2",
                "--devices",
                "2",
                "-o",
            ][..],
            &first,
        ),
        (
            &["export", first.to_str().unwrap(), "--format", "csv", "-o"],
            &table,
        ),
    ] {
        let output = Command::new(HMMVISOR)
            .arg("trace")
            .args(args)
            .arg(file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert!(files.import_file("csv", &table, &[]).status.success());
    let first = TraceReader::open(&first).unwrap();
    assert_eq!(first.totals().threads, files.trace().totals().threads);
    let first: Vec<Event> = first.map(Result::unwrap).collect();
    assert!(first.iter().any(|event| event.kind == kind));
    assert!(first == files.events());
}

#[test]
fn info_counts_accesses_only_where_times_count_them() {
    let files = Files::new();
    let info = |text: &str| {
        assert!(files.import("csv", text).status.success());
        let info = Command::new(HMMVISOR)
            .args(["trace", "info"])
            .arg(files.path("trace"))
            .output()
            .unwrap();
        assert!(info.status.success());
        String::from_utf8(info.stdout).unwrap()
    };
    let counted = info("page\n1\n2\n1\n");
    assert!(counted.contains("  accesses        3\n"), "{counted}");
    // What is freed at the end is no access.
    let freed = info("page,kind\n1,access\n2,access\n1,freed\n");
    assert!(freed.contains("  accesses        2\n"), "{freed}");
    for last in ["500", "18446744073709551615"] {
        let timed = info(&format!("page,time_ns\n1,100\n2,{last}\n"));
        assert!(timed.contains("  time            0.000000 s to"), "{timed}");
        assert!(!timed.contains("  accesses"), "{timed}");
    }
}

#[test]
fn inputs_that_cannot_be_read_are_refused() {
    let files = Files::new();
    let message = |input: &Path, options: &[&str]| {
        let output = files.import_file("csv", input, options);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(message(&files.path("nosuch"), &[]).contains("No such file"));
    assert!(message(files.0.path(), &[]).contains("Is a directory"));
    fs::write(files.path("trace"), "page\n1\n").unwrap();
    assert!(message(&files.path("trace"), &[]).contains("that is the input itself"));
    assert_eq!(fs::read(files.path("trace")).unwrap(), b"page\n1\n");
    assert!(
        message(&files.path("trace"), &["--no-instructions"]).contains("is for --format lackey")
    );
}

/// A real program's accesses can be those of an accelerator: only then is there something for policies to decide.
#[test]
fn a_program_can_be_imported_as_if_it_ran_on_an_accelerator() {
    let files = Files::new();
    let input = files.path("input");
    fs::write(
        &input,
        " S 1ffeffe7e8,8\n L 1ffeffc7e0,8\n L 1ffeffe7e8,8\n",
    )
    .unwrap();
    let output = files.import_file("lackey", &input, &["--device", "1"]);
    assert!(output.status.success(), "{output:?}");
    let events = files.events();
    assert_eq!(events.len(), 3);
    for event in &events {
        assert_eq!(
            (event.device.map(|device| device.0), event.thread),
            (Some(1), 0)
        );
    }
    assert_eq!(files.trace().meta().devices, 2);

    let replayed = Command::new(HMMVISOR)
        .args([
            "replay",
            "--policy",
            "on-demand+timeslice:min=0us",
            "--device-memory",
            "4K",
            "--json",
        ])
        .arg(files.path("trace"))
        .output()
        .unwrap();
    let replayed = String::from_utf8(replayed.stdout).unwrap();
    // There is room for one of the two pages.
    assert!(
        replayed.contains(r#""cpu_faults":0,"device_faults":3,"#),
        "{replayed}"
    );

    fs::write(&input, "page\n1\n").unwrap();
    let refused = files.import_file("csv", &input, &["--device", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        message.contains("name devices in the column `device`"),
        "{message}"
    );
}
