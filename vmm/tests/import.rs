//! Memory traces of real programs and hand-written tables become access traces.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::Access;
use hmmvisor_experiments::figures::grouped;
use hmmvisor_experiments::trace::{Tail, TraceKind, TraceReader};
use serde_json::{Value, json};
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
        (
            "page\n99999999999999999999\n",
            2,
            "is beyond 64 bits (column 1)",
        ),
        ("page\n268435456\n", 2, "pages are 0 to 268435455"),
        ("page,pages\n268435455,2\n", 2, "pages are 0 to 268435455"),
        ("page,pages\n1,0\n", 2, "0 pages"),
        ("page,access\n1,r\n1,x\n", 3, "neither read nor write"),
        (
            "page,device\n1,64\n",
            2,
            "device 64 is beyond 63 (column 2)",
        ),
        ("page,vcpu\n1,65536\n", 2, "vcpu 65536 is beyond 65535"),
        (
            "page,thread\n1,4294967296\n",
            2,
            "thread 4294967296 is beyond",
        ),
        (
            "page,time_ns\n1,9223372036854775808\n",
            2,
            "time_ns 9223372036854775808 is beyond",
        ),
        ("page,repeats\n1,0\n", 2, "repeats 0"),
        (
            "page,repeats\n1,4294967296\n",
            2,
            "repeats 4294967296 is beyond",
        ),
        (
            "page,thread,vcpu\n1,5,0\n1,5,1\n",
            3,
            "thread 5 is on vCPU 1 here and on vCPU 0 before",
        ),
        (
            "page,x,page\n1,,2\n",
            1,
            "columns 1 and 3 are both named `page`",
        ),
        (
            "note,page,note\n1,2,3\n",
            1,
            "columns 1 and 3 are both named `note`",
        ),
        (
            "page,note\n1,\"5 inch\n2,x\n",
            2,
            "column 2 begins with a quote that is not closed",
        ),
        (
            "page,note\n1,x\n2,\"a\n3,b\"\n",
            3,
            "column 2 begins with a quote that is not closed",
        ),
        ("\"page\n1\n", 1, "column 1 begins with a quote"),
        ("page\n1\n2\0\n", 3, "its byte 2 is 0"),
        ("page\r1\r2", 1, "a carriage return is at its byte"),
        ("page,kind\n1,cpu-fault\n", 2, "those of a live run"),
        ("page,kind,hint\n1,hint,\n", 2, "unknown hint ''"),
        ("page,kind,hint\n1,hint,gpu\n", 2, "unknown hint 'gpu'"),
        ("page,access\n1\n", 2, "it has 1 column,"),
        ("page,access\n,r\n", 2, "neither a page nor an address"),
    ] {
        let message = files.refusal("csv", text);
        assert!(
            message.contains(&format!("input, line {line}: ")),
            "{text:?}: {message}"
        );
        assert!(message.contains(why), "{text:?}: {message}");
    }
    let long = format!("page,note\n1,{}\n", "x".repeat(70_000));
    let message = files.refusal("csv", &long);
    assert!(
        message.contains("input, line 2: it is longer than 65536 bytes"),
        "{message}"
    );
    // What editors and spreadsheets of other systems make of a table.
    for text in [
        "\u{feff}page,access\r\n3,r\r\n5,w\r\n",
        "page,access\n3,r\n5,w",
        "\"page\",\"access\",\"a \"\"note\"\", quoted\"\n\n\"3\",r,\"x,y\"\n5, w ,\n",
    ] {
        assert_eq!(accesses(&good(text)), [(3, false), (5, true)], "{text:?}");
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

/// The standard output of a command that succeeds.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

impl Files {
    fn info(&self) -> String {
        output(
            Command::new(HMMVISOR)
                .args(["trace", "info"])
                .arg(self.path("trace")),
        )
    }

    /// What becomes of the trace under a policy.
    fn replay(&self, policy: &str, memory: &str) -> Value {
        let mut replay = Command::new(HMMVISOR);
        replay
            .arg("replay")
            .arg(self.path("trace"))
            .args(["--json", "-"]);
        let text = output(replay.args(["--policy", policy, "--device-memory", memory]));
        serde_json::from_str(&text).unwrap()
    }
}

#[test]
fn info_counts_accesses_of_all_pages_and_times() {
    let files = Files::new();
    let info = |text: &str| {
        assert!(files.import("csv", text).status.success());
        files.info()
    };
    for (text, accesses) in [
        ("page\n1\n2\n1\n", 3),
        // What is freed at the end is no access.
        ("page,kind\n1,access\n2,access\n1,freed\n", 2),
        // The last ones, too.
        ("page\n1\n1\n1\n", 3),
        ("page,pages\n1,10\n1,10\n5,1\n", 21),
        ("page,repeats\n1,1000\n1,1000\n2,\n", 2001),
    ] {
        let info = info(text);
        assert!(
            info.contains(&format!("  accesses        {}\n", grouped(accesses))),
            "{info}"
        );
        assert!(!info.contains("  time "), "{info}");
    }
    for last in ["500", "9223372036854775807"] {
        let timed = info(&format!("page,time_ns\n1,100\n2,{last}\n"));
        assert!(timed.contains("  time            0.000000 s to"), "{timed}");
        assert!(timed.contains("  accesses        2\n"), "{timed}");
    }
}

/// A replay in which no page can migrate says why its table has only zeros.
#[test]
fn a_trace_in_which_nothing_can_migrate_says_so() {
    let files = Files::new();
    let replay = || {
        let mut replay = Command::new(HMMVISOR);
        replay.args(["replay", "--policy", "density", "--device-memory", "1M"]);
        output(replay.arg(files.path("trace")))
    };
    let imported = files.import("csv", "page\n1\n2\n1\n");
    let said = String::from_utf8(imported.stdout).unwrap();
    assert!(said.starts_with("3 events written to "), "{said}");
    assert!(
        said.contains("; no access is a device's, so nothing migrates"),
        "{said}"
    );
    let info = files.info();
    // It is called what the file is called, and has no device memory.
    assert!(info.starts_with("access trace of "), "{info}");
    assert!(!info.starts_with("access trace of a"), "{info}");
    assert!(
        info.contains("  machine         1 vCPU, 0 accelerators, 2 MiB of managed memory\n"),
        "{info}"
    );
    let replayed = replay();
    assert!(
        replayed.contains("no access is a device's, so nothing migrates"),
        "{replayed}"
    );
    assert!(!replayed.contains("optimal"), "{replayed}");

    let rows = (0..1200).map(|page| format!("{page},0\n"));
    let table = "page,device\n".to_owned() + &rows.collect::<String>();
    let imported = files.import("csv", &table);
    let said = String::from_utf8(imported.stdout).unwrap();
    assert!(said.starts_with("1,200 events written to "), "{said}");
    assert!(!said.contains("nothing migrates"), "{said}");
    let replayed = replay();
    for line in [
        "device memory   1 MiB, of 6 MiB of managed memory\n",
        "accesses        1,200\n",
        "optimal (MIN)   1,200 pages to the device",
    ] {
        assert!(replayed.contains(line), "{line}: {replayed}");
    }
    assert!(!replayed.contains("nothing migrates"), "{replayed}");
}

/// The file, the trace, its export and its replay have the same accesses, of CPUs and of devices.
#[test]
fn merged_accesses_count() {
    let files = Files::new();
    let mut text = "page,device,access\n".to_owned();
    (0..16).for_each(|page| text += &format!("{page},,w\n"));
    for (page, device) in [(3, 0), (4, 1), (3, 0), (3, 1)] {
        text += &format!("{page},{device},w\n");
        text += &format!("{page},{device},r\n").repeat(2999);
    }
    assert!(files.import("csv", &text).status.success());
    let events = files.events();
    assert_eq!(events.len(), 20);
    let last: Vec<_> = events[16..].iter().map(|event| event.repeats).collect();
    assert_eq!(last, [3000; 4]);
    assert!(files.info().contains("  accesses        12,016\n"));
    let replayed = files.replay("access-counter:threshold=256", "1M");
    assert_eq!(replayed["accesses"], 12016);
    let in_place = replayed["remote_accesses"].as_u64().unwrap();
    assert!((256..12000).contains(&in_place), "{replayed}");
    assert_ne!(replayed["pages_to_device"], 0);
    // None ever becomes the device's: all of its accesses are in place.
    let never = files.replay("access-counter:threshold=65535", "1M");
    assert_eq!(
        (&never["remote_accesses"], &never["pages_to_device"]),
        (&json!(12000), &json!(0))
    );
    let table = files.path("table");
    let mut export = Command::new(HMMVISOR);
    export
        .args(["trace", "export", "--format", "csv", "-o"])
        .arg(&table);
    output(export.arg(files.path("trace")));
    let mut rows = csv::Reader::from_path(&table).unwrap();
    let names = rows.headers().unwrap().clone();
    let column = names.iter().position(|name| name == "repeats").unwrap();
    let all = rows
        .records()
        .map(|row| row.unwrap()[column].parse::<u64>().unwrap());
    assert_eq!(all.sum::<u64>(), 12016);
}

/// Each limit: what is just within is read and replayed; what is beyond is refused where it is.
#[test]
fn what_is_imported_can_be_used() {
    let files = Files::new();
    let used = |text: &str| {
        let imported = files.import("csv", text);
        assert!(imported.status.success(), "{imported:?}");
        assert_eq!(files.trace().tail(), Tail::Complete);
        let trace = files.path("trace");
        for format in ["csv", "parquet", "perfetto"] {
            let mut export = Command::new(HMMVISOR);
            export.args(["trace", "export", "--format", format, "-o"]);
            output(export.arg(files.path("out")).arg(&trace));
        }
        assert!(files.info().contains("complete"));
        let replayed = files.replay("density+lru", "1M");
        assert_ne!(replayed["accesses"], 0);
    };
    used("page,device\n268435455,63\n0,0\n");
    used("page,vcpu,thread,time_ns\n1,65535,4294967295,9223372036854775807\n");
    used("page,pages,device,repeats\n1,100000,0,4294967295\n");
    let threads = |count: u32| {
        let rows = (0..count).map(|n| format!("{},{n},{}\n", n % 50, u32::MAX - n));
        "page,vcpu,thread\n".to_owned() + &rows.collect::<String>()
    };
    used(&threads(65536));
    let rows = threads(65536) + "1,0,7\n";
    let message = files.refusal("csv", &rows);
    assert!(
        message.contains("line 65538: it is of one more than 65536 threads"),
        "{message}"
    );
    // An access to each of so many blocks.
    let blocks = |count: u64| {
        let rows = (0..count).map(|n| format!("{},0\n", n * 7919 * (2 << 20)));
        "address,device\n".to_owned() + &rows.collect::<String>()
    };
    assert!(files.import("csv", &blocks(1 << 17)).status.success());
    assert!(files.info().contains("  accesses        131,072\n"));
    let message = files.refusal("csv", &blocks((1 << 17) + 1));
    assert!(
        message.contains("line 131074: ") && message.contains("131072 blocks"),
        "{message}"
    );
    // Pages that a replay would look at one by one.
    let all = "0,268435456,0\n".repeat(2);
    let message = files.refusal("csv", &format!("page,pages,device\n{all}"));
    assert!(
        message.contains("name 268435455 pages") && message.contains("too many for a trace of"),
        "{message}"
    );
    let message = files.refusal(
        "csv",
        &format!(
            "page,pages,repeats\n{}",
            "0,100000,4294967295\n".repeat(50_000)
        ),
    );
    assert!(message.contains("accesses"), "{message}");
}

/// What is moved on demand is used; what was brought along may be unused.
#[test]
fn only_what_was_brought_along_is_unused() {
    let files = Files::new();
    let rows = "1,0\n2,0\n3,0\n".repeat(50);
    assert!(
        files
            .import("csv", &format!("page,device\n{rows}"))
            .status
            .success()
    );
    let done = files.replay("on-demand+timeslice:min=0us", "8K");
    assert_eq!(
        (&done["unused"], &done["prefetched"]),
        (&json!(0), &json!(0))
    );
    assert!(done["evicted"].as_u64().unwrap() > 100, "{done}");
    let text = output(
        Command::new(HMMVISOR)
            .arg("replay")
            .arg(files.path("trace"))
            .args(["--policy", "on-demand+timeslice:min=0us"])
            .args(["--device-memory", "8K"]),
    );
    assert!(text.contains("for nothing 0 pages"), "{text}");
}

#[test]
fn inputs_that_cannot_be_read_are_refused() {
    let files = Files::new();
    let message = |input: &Path, options: &[&str]| {
        let output = files.import_file("csv", input, options);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
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
            "-",
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
    assert_eq!(refused.status.code(), Some(2));
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        message.contains("name devices in the column `device`"),
        "{message}"
    );
}

#[test]
fn the_export_of_a_live_trace_is_called_what_it_is() {
    let files = Files::new();
    let (live, table) = (files.path("live"), files.path("table.csv"));
    let run = |args: &[&str], paths: [&Path; 2]| {
        let (first, second) = (&args[..args.len() - 1], args[args.len() - 1]);
        let mut command = Command::new(HMMVISOR);
        command.args(first).arg(second).arg(paths[0]);
        if paths[1] != Path::new("") {
            command.arg(paths[1]);
        }
        let output = command.output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{message}");
    };
    let nothing = Path::new("");
    run(
        &[
            "run",
            "--workload",
            "pingpong",
            "--param",
            "rounds=2",
            "--record",
        ],
        [&live, nothing],
    );
    run(
        &["trace", "export", "--format", "csv", "-o"],
        [&table, &live],
    );
    let message = files.refusal("csv", &fs::read_to_string(&table).unwrap());
    assert!(
        message.contains("those of a live run: an exported live trace cannot be imported"),
        "{message}"
    );
    let message = files.refusal("csv", "page,kind\n3,acces\n");
    assert!(
        message.contains("line 2: events of kind `acces` are no accesses; there are access"),
        "{message}"
    );
    let message = files.refusal("csv", "page,pages\n268435456,1\n");
    assert!(message.contains("line 2: 1 page from page"), "{message}");
    let message = files.refusal("csv", "page,pages\n1\n");
    assert!(
        message.contains("it has 1 column, the first line names 2"),
        "{message}"
    );
}
