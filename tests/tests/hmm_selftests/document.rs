//! `docs/conformance.md` says what is: all its rows are there, and every test it names exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const DOCUMENT: &str = include_str!("../../../docs/conformance.md");

/// The kernel's tests, in the order of their numbers.
const SELFTESTS: [&str; 39] = [
    "open_close",
    "anon_read",
    "anon_read_prot",
    "anon_write",
    "anon_write_prot",
    "anon_write_child",
    "anon_write_child_shared",
    "anon_write_huge",
    "anon_write_hugetlbfs",
    "file_read",
    "file_write",
    "migrate",
    "migrate_file_private",
    "migrate_fault",
    "migrate_release",
    "migrate_shared",
    "migrate_mixed",
    "migrate_multiple",
    "anon_read_multiple",
    "anon_teardown",
    "mixedmap",
    "snapshot",
    "compound",
    "double_map",
    "exclusive",
    "exclusive_mprotect",
    "exclusive_cow",
    "hmm_gup_test",
    "hmm_cow_in_device",
    "migrate_anon_huge_empty",
    "migrate_anon_huge_zero",
    "migrate_anon_huge_free",
    "migrate_anon_huge_fault",
    "migrate_partial_unmap_fault",
    "migrate_remap_fault",
    "migrate_anon_huge_err",
    "migrate_anon_huge_zero_err",
    "benchmark_thp_migration",
    "userfaultfd_read",
];

struct Row<'a> {
    number: &'a str,
    what: &'a str,
    here: &'a str,
    /// Each with the remark behind it in parentheses.
    tests: Vec<(&'a str, &'a str)>,
    /// Numbers of the lab's tests.
    lab: Vec<&'a str>,
}

/// The rows of all tables of tests.
fn rows(document: &str) -> Vec<Row<'_>> {
    let row = |line| {
        let cells: Vec<&str> = str::split(line, '|').map(str::trim).collect();
        let &["", number, what, here, tests, lab, ""] = &cells[..] else {
            return None;
        };
        let mut named = Vec::new();
        for word in tests.split_whitespace() {
            match (word.strip_prefix('('), named.last_mut()) {
                (Some(kind), Some((_, of))) => *of = kind.trim_end_matches(')'),
                _ => named.push((word.trim_matches('`'), "")),
            }
        }
        let is_row = number.ends_with(|digit: char| digit.is_ascii_digit());
        is_row.then_some(Row {
            number,
            what,
            here,
            tests: named,
            lab: lab.split(", ").filter(|lab| !lab.is_empty()).collect(),
        })
    };
    document.lines().filter_map(row).collect()
}

/// A line of one of the lab's tests that runs tests in Rust.
struct LabRun {
    /// Of the lab's test.
    number: String,
    /// The test binary.
    binary: String,
    /// Whether it runs all but those with these words in their names, or only those with the first.
    all_but: bool,
    words: Vec<String>,
}

impl LabRun {
    fn runs(&self, binary: &str, test: &str) -> bool {
        let named = |word: &String| test.contains(&**word);
        self.binary == binary
            && match self.all_but {
                true => !self.words.iter().any(named),
                false => self.words.first().is_some_and(named),
            }
    }
}

/// The tests in `tests/tests` that the lab runs.
fn lab_runs() -> Vec<LabRun> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/tests");
    let mut runs = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (number, _) = name.split_once('-').expect("NUMBER-NAME");
        for line in fs::read_to_string(&path).unwrap().lines() {
            let mut words = line.split_whitespace();
            let all_but = match words.next() {
                Some("rust") => true,
                Some("show") => false,
                _ => continue,
            };
            runs.extend(words.next().map(|binary| LabRun {
                number: number.to_owned(),
                binary: binary.to_owned(),
                all_but,
                words: words.map(str::to_owned).collect(),
            }));
        }
    }
    runs
}

/// The test binaries of this folder, each with its tests.
fn tests_by_binary() -> BTreeMap<String, BTreeMap<String, &'static str>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let binary = |path: std::path::PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let mut tests = BTreeMap::new();
        match path.is_dir() {
            true => tests_in(&path, "", &mut tests),
            false => tests_in_file(&path, "", &mut tests),
        }
        (name, tests)
    };
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| binary(entry.unwrap().path())).collect()
}

/// Names of the functions marked as tests in all sources below, and what kind of test they are.
fn tests_in(folder: &Path, kind: &'static str, found: &mut BTreeMap<String, &'static str>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            let kind = match &*name {
                "src" => "unit",
                "loom" => "model",
                _ => kind,
            };
            tests_in(&path, kind, found);
        } else if name.ends_with(".rs") {
            tests_in_file(&path, kind, found);
        }
    }
}

fn tests_in_file(path: &Path, kind: &'static str, found: &mut BTreeMap<String, &'static str>) {
    let text = fs::read_to_string(path).unwrap();
    for after in text.split("#[test]").skip(1) {
        // Other attributes may come between.
        let mut lines = after.lines().map(str::trim);
        let function = lines.find(|line| !line.is_empty() && !line.starts_with(['#', '/']));
        let name = function
            .and_then(|line| line.strip_prefix("fn "))
            .and_then(|line| line.split_once(['(', '<']));
        found.extend(name.map(|(name, _)| (name.to_owned(), kind)));
    }
}

fn tests_in_workspace() -> BTreeMap<String, &'static str> {
    let mut found = BTreeMap::new();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    tests_in(&workspace, "", &mut found);
    found
}

#[test]
fn the_document_has_every_row() {
    let numbers: Vec<&str> = rows(DOCUMENT).iter().map(|row| row.number).collect();
    let expected = (1..=39)
        .map(|n| n.to_string())
        .chain((1..=10).map(|n| format!("G{n}")))
        .chain((1..=34).map(|n| format!("F{n:02}")))
        .chain((1..=16).map(|n| format!("P{n}")))
        .chain((1..=12).map(|n| format!("S{n}")));
    assert_eq!(numbers, expected.collect::<Vec<_>>());
}

#[test]
fn the_document_names_tests_that_exist() {
    let tests = tests_in_workspace();
    for row in rows(DOCUMENT) {
        for (name, kind) in &row.tests {
            let found = tests.get(*name);
            assert_eq!(found, Some(kind), "row {}: {name}", row.number);
        }
        // A test, or a reason why there is none.
        let reason = row.here.strip_prefix("not at this level: ");
        let reason = reason.is_some_and(|reason| reason.len() > 40);
        assert_ne!(reason, !row.tests.is_empty(), "row {}", row.number);
    }
}

#[test]
fn the_selftest_s_tests_are_where_they_belong() {
    let rows = rows(DOCUMENT);
    for (index, (row, name)) in rows.iter().zip(SELFTESTS).enumerate() {
        assert_eq!((row.number, row.what), (&*(index + 1).to_string(), name));
        let here = format!("t{:02}_{name}", index + 1);
        assert!(
            row.tests.is_empty() || row.tests == [(&*here, "")],
            "row {name}"
        );
    }
    // None that the document does not name.
    let named: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| &row.tests)
        .map(|(name, _)| *name)
        .collect();
    let is_numbered = |name: &&String| {
        let bytes = name.as_bytes();
        bytes[0] == b't' && bytes[1..3].iter().all(u8::is_ascii_digit)
    };
    for name in tests_in_workspace().keys().filter(is_numbered) {
        assert!(named.contains(&**name), "{name} is in no row");
    }
}

#[test]
fn the_lab_s_column_says_what_the_lab_runs() {
    let (runs, binaries) = (lab_runs(), tests_by_binary());
    for row in rows(DOCUMENT) {
        let mut expected = BTreeSet::new();
        for (test, _) in &row.tests {
            for (binary, tests) in &binaries {
                if tests.contains_key(*test) {
                    let runs = runs.iter().filter(|run| run.runs(binary, test));
                    expected.extend(runs.map(|run| &*run.number));
                }
            }
        }
        let expected: Vec<&str> = expected.into_iter().collect();
        assert_eq!(row.lab, expected, "row {}", row.number);
    }
    let run = |name: &str| runs.iter().find(|run| run.binary == name).unwrap();
    assert!(run("hmm_selftests").runs("hmm_selftests", "t01_open_close"));
    assert!(!run("hmm_selftests").runs("kit", "t01_open_close"));
    assert!(!run("conformance_suite").runs("conformance_suite", "t01_open_close"));
    assert!(!run("memory_errors").runs("memory_errors", "kicks_and_migrations"));
}

#[test]
fn a_document_that_is_wrong_is_noticed() {
    let wrong = "| F01 | one | how | `a` (unit) `b_c` | 1, 2 |\n| what | x | y | z | |\n|---|---|---|---|---|\n| F2 | a | b | | |";
    let rows = rows(wrong);
    let found: Vec<_> = rows
        .iter()
        .map(|it| (it.number, it.tests.clone()))
        .collect();
    assert_eq!(
        found,
        [("F01", vec![("a", "unit"), ("b_c", "")]), ("F2", vec![])]
    );
    assert_eq!(rows[0].lab, ["1", "2"]);
    assert!(rows[1].lab.is_empty());
    let tests = tests_in_workspace();
    assert_eq!(tests.get("the_document_has_no_row"), None);
    assert_eq!(tests.get("two_cpus_fault_on_one_page"), Some(&"model"));
    assert_eq!(tests.get("t01_open_close"), Some(&""));
}
