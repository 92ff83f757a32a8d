use super::*;

use hmmvisor_experiments::sweep::JOURNAL;

#[test]
fn finished_runs_are_not_repeated_after_a_kill() {
    let folder = Folder::new();
    let sweep = folder.sweep(SWEEP).unwrap();
    sweep
        .start(&settings(&folder.path("whole")), &Fake::default())
        .unwrap();

    // A kill may cut the journal anywhere: keep the header, ten runs, and a piece of the eleventh.
    let text = String::from_utf8(read(&folder.path("whole").join(JOURNAL))).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let ends = [0, 1, lines[11].len() - 1];
    for (number, end) in ends.into_iter().enumerate() {
        let out = folder.path(&format!("killed{number}"));
        std::fs::create_dir(&out).unwrap();
        let cut = lines[..11].concat() + &lines[11][..end];
        std::fs::write(out.join(JOURNAL), cut).unwrap();

        let fake = Fake::default();
        let resume = Settings {
            resume: true,
            ..settings(&out)
        };
        let done = sweep.start(&resume, &fake).unwrap();
        assert_eq!((done.runs, done.skipped), (14, 10));
        assert_eq!(fake.asked().len(), 14);
        for table in ["results.csv", "results.parquet"] {
            assert_eq!(
                read(&out.join(table)),
                read(&folder.path("whole").join(table)),
                "{table}"
            );
        }
        let again = sweep.start(&resume, &fake).unwrap();
        assert_eq!((again.runs, again.skipped), (0, 24));
    }
}

#[test]
fn a_kill_before_the_first_line_is_a_new_start() {
    let folder = Folder::new();
    let sweep = folder.sweep(SWEEP).unwrap();
    let out = folder.path("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join(JOURNAL), "{\"format\":1,\"swe").unwrap();
    assert_eq!(
        sweep.start(&settings(&out), &Fake::default()).unwrap().runs,
        24
    );
}

#[test]
fn results_are_not_overwritten() {
    let folder = Folder::new();
    let sweep = folder.sweep(SWEEP).unwrap();
    let out = settings(&folder.path("out"));
    sweep.start(&out, &Fake::default()).unwrap();
    let error = sweep.start(&out, &Fake::default()).unwrap_err().to_string();
    assert!(
        error.contains("24 runs already; nothing is left to do"),
        "{error}"
    );
}

#[test]
fn a_journal_belongs_to_exactly_one_sweep() {
    let folder = Folder::new();
    let out = Settings {
        resume: true,
        ..settings(&folder.path("out"))
    };
    let trace = folder.path("a.trace");
    std::fs::write(&trace, "one").unwrap();
    let with_trace = format!("{SWEEP}\n[[trace]]\nname = \"a\"\nfiles = [\"a.trace\"]\n");
    folder
        .sweep(&with_trace)
        .unwrap()
        .start(&out, &Fake::default())
        .unwrap();
    let before = read(&out.folder.join(JOURNAL));

    let refused = |text: &str, out: &Settings| {
        let error = folder
            .sweep(text)
            .unwrap()
            .start(out, &Fake::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("is the journal of another sweep"), "{error}");
        assert_eq!(read(&out.folder.join(JOURNAL)), before);
    };
    for (from, to) in [
        ("\"16M\"", "\"32M\""),
        ("seeds = 3", "seeds = 4"),
        ("10us", "11us"),
        ("64K", "32K"),
    ] {
        refused(&with_trace.replacen(from, to, 1), &out);
    }
    let shard = Settings {
        shard: "1/2".parse().unwrap(),
        ..out.clone()
    };
    refused(&with_trace, &shard);
    std::fs::write(&trace, "two").unwrap();
    refused(&with_trace, &out);
    std::fs::write(&trace, "one").unwrap();
    assert_eq!(
        folder
            .sweep(&with_trace)
            .unwrap()
            .start(&out, &Fake::default())
            .unwrap()
            .runs,
        0
    );
}

#[test]
fn damage_is_shown_with_its_line() {
    let folder = Folder::new();
    let sweep = folder.sweep(SWEEP).unwrap();
    let out = Settings {
        resume: true,
        ..settings(&folder.path("out"))
    };
    sweep.start(&out, &Fake::default()).unwrap();
    let path = out.folder.join(JOURNAL);
    let text = String::from_utf8(read(&path)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (line, with, what) in [
        (4, "{\"run\":", "damaged"),
        (4, "{\"run\":24}", "not in this shard"),
        (0, "{\"format\":2}", "knows format 1"),
        (0, "PAR1", "no journal of a sweep"),
    ] {
        let mut lines = lines.clone();
        lines[line] = with;
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        let error = sweep.start(&out, &Fake::default()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("journal.jsonl, line {}: ", line + 1)),
            "{error}"
        );
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn failed_runs_are_told_and_done_again() {
    let folder = Folder::new();
    let sweep = folder.sweep(SWEEP).unwrap();
    let out = Settings {
        resume: true,
        ..settings(&folder.path("out"))
    };
    let broken = Fake {
        broken: vec![5, 7],
        ..Fake::default()
    };
    let done = sweep.start(&out, &broken).unwrap();
    assert_eq!((done.runs, done.failed.len()), (24, 2));
    assert!(
        done.failed[0].starts_with("run 5 (bfs, density, device memory 8 MiB, seed 3): the guest"),
        "{done:?}"
    );
    let csv = String::from_utf8(read(&out.folder.join("results.csv"))).unwrap();
    assert_eq!(csv.matches("the guest found wrong data").count(), 2);

    let healed = Fake::default();
    let done = sweep.start(&out, &healed).unwrap();
    assert_eq!((done.skipped, done.failed.len()), (22, 0));
    assert_eq!(healed.asked(), [5, 7]);
}

#[test]
fn two_processes_do_not_write_one_journal() {
    let folder = Folder::new();
    let sweep = folder.sweep(SWEEP).unwrap();
    let out = settings(&folder.path("out"));
    std::fs::create_dir(&out.folder).unwrap();
    let other = std::fs::File::create(out.folder.join(JOURNAL)).unwrap();
    other.lock().unwrap();
    let error = sweep.start(&out, &Fake::default()).unwrap_err().to_string();
    assert!(error.contains("in use by another"), "{error}");
}
