use super::*;

use hmmvisor_experiments::sweep::merge;

/// Does these shards, each into a folder of its own.
fn shards(folder: &Folder, text: &str, names: &[&str]) -> Vec<PathBuf> {
    let sweep = folder.sweep(text).unwrap();
    let shard = |name: &&str| {
        let out = tempfile::tempdir_in(folder.temp.path()).unwrap().keep();
        let settings = Settings {
            shard: name.parse().unwrap(),
            ..settings(&out)
        };
        sweep.start(&settings, &Fake::default()).unwrap();
        out
    };
    names.iter().map(shard).collect()
}

#[test]
fn merged_shards_are_the_whole() {
    let folder = Folder::new();
    let sweep = folder.sweep(SWEEP).unwrap();
    let whole = folder.path("whole");
    sweep.start(&settings(&whole), &Fake::default()).unwrap();
    let parts = shards(&folder, SWEEP, &["3/3", "1/3", "2/3"]);
    let out = folder.path("merged");
    let merged = merge(&parts, &out).unwrap();
    assert_eq!((merged.runs, merged.failed.len()), (24, 0));
    for table in ["results.csv", "results.parquet"] {
        assert_eq!(read(&out.join(table)), read(&whole.join(table)), "{table}");
    }
    // And it is a finished sweep like any other.
    let resume = Settings {
        resume: true,
        ..settings(&out)
    };
    assert_eq!(sweep.start(&resume, &Fake::default()).unwrap().runs, 0);
}

#[test]
fn shards_that_do_not_fit_are_refused() {
    let folder = Folder::new();
    let parts = shards(&folder, SWEEP, &["1/3", "2/3", "3/3", "2/3", "1/2"]);
    let other = shards(&folder, &SWEEP.replace("64K", "32K"), &["3/3"]);
    let refused = |folders: &[&PathBuf], what: &str| {
        let out = folder.path("refused");
        let folders: Vec<_> = folders.iter().map(|it| (*it).clone()).collect();
        let error = merge(&folders, &out).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
        assert!(!out.exists(), "something was written");
        error
    };
    refused(&[], "no folders");
    refused(&[&parts[0]], "shards 2/3, 3/3 are missing");
    let overlap = refused(
        &[&parts[0], &parts[1], &parts[3], &parts[2]],
        "shard 2/3 is in both",
    );
    for path in [&parts[1], &parts[3]] {
        assert!(overlap.contains(&path.display().to_string()), "{overlap}");
    }
    refused(
        &[&parts[0], &parts[4]],
        "split into 3 shards, the other one into 2",
    );
    refused(
        &[&parts[0], &parts[1], &other[0]],
        "are not parts of one sweep",
    );
    refused(&[&folder.path("nosuch")], "nosuch");

    let journal = parts[1].join("journal.jsonl");
    let text = String::from_utf8(read(&journal)).unwrap();
    let shorter: String = text.split_inclusive('\n').take(7).collect();
    std::fs::write(&journal, shorter).unwrap();
    refused(
        &[&parts[0], &parts[1], &parts[2]],
        "it lacks 2 of 8 runs; go on with it with --resume",
    );
}

#[test]
fn a_merge_overwrites_nothing() {
    let folder = Folder::new();
    let parts = shards(&folder, SWEEP, &["1/2", "2/2"]);
    let error = merge(&parts, &parts[0]).unwrap_err().to_string();
    assert!(
        error.contains("another sweep") || error.contains("already"),
        "{error}"
    );
}

const TRACED: &str = r#"
title = "Traces"
policies = ["on-demand", "density"]
device_memory = ["8M"]
[[trace]]
name = "sqlite"
files = ["traces/1.trace"]
"#;

#[test]
fn runs_that_failed_in_a_shard_fail_in_the_whole() {
    let folder = Folder::new();
    let sweep = folder.sweep(SWEEP).unwrap();
    let broken = Fake {
        broken: vec![5],
        ..Fake::default()
    };
    let whole = sweep
        .start(&settings(&folder.path("whole")), &broken)
        .unwrap();
    assert_eq!(whole.failed.len(), 1);
    let shards = ["1/2", "2/2"].map(|shard| {
        let out = folder.path(&shard.replace('/', "-"));
        let settings = Settings {
            shard: shard.parse().unwrap(),
            ..settings(&out)
        };
        sweep.start(&settings, &broken).unwrap();
        out
    });
    let merged = merge(&shards, &folder.path("merged")).unwrap();
    assert_eq!((merged.runs, merged.failed), (24, whole.failed));
}

#[test]
fn shards_of_other_places_fit() {
    // The same file and trace, where each machine has them.
    let here_and_there = [Folder::new(), Folder::new()];
    let parts: Vec<_> = here_and_there
        .iter()
        .zip(["1/2", "2/2"])
        .map(|(folder, shard)| {
            std::fs::create_dir(folder.path("traces")).unwrap();
            std::fs::write(folder.path("traces/1.trace"), "accesses").unwrap();
            shards(folder, TRACED, &[shard]).swap_remove(0)
        })
        .collect();
    let [here, there] = &here_and_there;
    merge(&parts, &here.path("merged")).unwrap();

    // Other accesses under the same name do not.
    std::fs::write(there.path("traces/1.trace"), "others").unwrap();
    let other = shards(there, TRACED, &["2/2"]).swap_remove(0);
    let error = merge(&[parts[0].clone(), other], &here.path("mixed")).unwrap_err();
    assert!(
        error.to_string().contains("not parts of one sweep"),
        "{error}"
    );
}
