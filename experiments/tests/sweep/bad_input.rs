use super::*;

#[test]
fn mistakes_are_shown_with_file_line_and_what_there_is() {
    let folder = Folder::new();
    for (from, to, line, what) in [
        (
            "\"on-demand\"",
            "\"on-demnad\"",
            5,
            "unknown policy 'on-demnad'; there are: on-demand, density, lru",
        ),
        ("\"on-demand\"", "\"density+lru\"", 5, "the same as"),
        (
            "\"bfs\"",
            "\"bsf\"",
            11,
            "unknown workload `bsf`; there are bfs, pingpong",
        ),
        ("\"16M\"", "\"16X\"", 6, "is not a size"),
        ("\"16M\"", "\"8M\"", 6, "named twice"),
        ("\"16M\"", "\"1000\"", 6, "multiple of 4 KiB"),
        ("\"16M\"", "\"1G\"", 6, "more than guest memory (256 MiB)"),
        ("[\"8M\", \"16M\"]", "[]", 6, "device_memory is empty"),
        ("seeds = 3", "seeds = 0", 4, "at least one seed"),
        ("seeds = 3", "seeds = [1, 2, 1]", 4, "seed 1 is named twice"),
        (
            "seeds = 3",
            "seeds = \"x\"",
            4,
            "a number of seeds, or a list of seeds",
        ),
        ("seeds = 3", "seeds = 900000", 4, "more than 100000 runs"),
        ("seeds = 3", "seeds = 3\nsed = 1", 5, "unknown field `sed`"),
        ("10us", "10parsecs", 9, "not a time such as 10us"),
        ("25G", "0", 9, "not a number of bytes per second"),
        (
            "\"live\"",
            "\"life\"",
            18,
            "unknown mode `life`; there are: live",
        ),
        ("\"64K\"", "[1]", 14, "must be a number or a word"),
        (
            "mode = \"model\"",
            "mode = \"model\"\nengine = \"copy\"",
            14,
            "an engine is of live runs",
        ),
        (
            "[links]",
            "[[trace]]\nname = \"a\"\nfiles = [\"no.trace\"]\n[links]",
            10,
            "No such file",
        ),
        ("[links]", "[[link", 8, "TOML"),
    ] {
        assert!(SWEEP.contains(from));
        let message = folder.sweep(&SWEEP.replacen(from, to, 1)).unwrap_err();
        assert!(message.contains("sweep.toml"), "{message}");
        let place = [
            format!("sweep.toml:{line}:"),
            format!("at line {line}, column "),
        ];
        assert!(
            place.iter().any(|place| message.contains(place)),
            "line {line}: {message}"
        );
        if what != "TOML" {
            assert!(message.contains(what), "{what}: {message}");
        }
    }
}

#[test]
fn a_sweep_needs_something_to_run() {
    let text = SWEEP.split("[[workload]]").next().unwrap();
    let message = Folder::new().sweep(text).unwrap_err();
    assert!(
        message.contains("add a [[workload]] or a [[trace]]"),
        "{message}"
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = Sweep::read(Path::new("/nosuch.toml"), &Fake::default()).unwrap_err();
    assert!(error.to_string().contains("/nosuch.toml"), "{error}");
}

#[test]
fn lists_and_the_file_itself_have_limits() {
    let folder = Folder::new();
    let sizes: Vec<_> = (1..=1001).map(|n| format!("{}", n * 4096)).collect();
    let policies: Vec<_> = (0..1001)
        .map(|n| format!("\"density:threshold={n}\""))
        .collect();
    let seeds: Vec<_> = (0..100_001).map(|n| n.to_string()).collect();
    let links: String = (0..1001)
        .map(|n| format!("l{n} = \"10us+25G\"\n"))
        .collect();
    let files: Vec<_> = (0..1001).map(|n| format!("\"{n}.trace\"")).collect();
    let traces = format!(
        "[[trace]]\nname = \"a\"\nfiles = [{}]\n[links]",
        files.join(",")
    );
    for (from, to, name) in [
        (
            "[\"8M\", \"16M\"]",
            format!("[{}]", sizes.join(",")),
            "device_memory has 1001 entries",
        ),
        ("\"on-demand\"", policies.join(","), "policies has 10"),
        (
            "seeds = 3",
            format!("seeds = [{}]", seeds.join(",")),
            "seeds has 100001 entries",
        ),
        ("[links]", format!("[links]\n{links}"), "links has 10"),
        ("[links]", traces, "files of all [[trace]] has 1001 entries"),
    ] {
        assert!(SWEEP.contains(from));
        let message = folder.sweep(&SWEEP.replacen(from, &to, 1)).unwrap_err();
        assert!(message.contains(name), "{name}: {message}");
        assert!(
            message.contains("must have no more than 100"),
            "{name}: {message}"
        );
    }
    let large = format!("{SWEEP}\n#{}", "x".repeat(1 << 20));
    let message = folder.sweep(&large).unwrap_err();
    assert!(message.contains("it is larger than 1 MiB"), "{message}");
}

#[test]
fn copies_of_a_trace_are_no_other_seeds() {
    let folder = Folder::new();
    for (name, text) in [("a.trace", "one"), ("b.trace", "one"), ("c.trace", "two")] {
        std::fs::write(folder.path(name), text).unwrap();
    }
    let sweep =
        |traces: &str| folder.sweep(&SWEEP.replace("[links]", &format!("{traces}\n[links]")));
    let table =
        |name: &str, files: &str| format!("[[trace]]\nname = \"{name}\"\nfiles = [{files}]\n");
    let same = "trace b.trace has the same content as a.trace; name it once";
    for (traces, expected) in [
        (table("t", "\"a.trace\", \"b.trace\""), same),
        (
            table("t", "\"a.trace\"") + &table("u", "\"c.trace\", \"b.trace\""),
            same,
        ),
        (
            table("t", "\"a.trace\"") + &table("u", "\"a.trace\""),
            "trace a.trace has the same content as a.trace",
        ),
        (
            table("t", "\"a.trace\", \"a.trace\""),
            "in the sweep already",
        ),
    ] {
        let message = sweep(&traces).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
    sweep(&table("t", "\"a.trace\", \"c.trace\"")).unwrap();
}

#[test]
fn two_names_do_not_make_two_links() {
    let folder = Folder::new();
    let with = |link: &str| folder.sweep(&SWEEP.replace("[links]", &format!("[links]\n{link}")));
    let message = with("again = \"bandwidth=25000M,latency=10000ns\"").unwrap_err();
    assert!(
        message.contains("link `pcie` is the same as `again`, which is latency=10us"),
        "{message}"
    );
    with("slow = \"latency=11us,bandwidth=25G\"").unwrap();
}
