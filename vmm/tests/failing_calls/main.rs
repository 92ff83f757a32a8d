//! Every system call may fail: a library in front of the C library makes calls of a run fail, and the run must end well
//! all the same: verified, or with an error that names what failed. docs/testing.md says how to run all rows.

mod judge;
#[allow(dead_code, reason = "another test program uses the rest of it")]
#[path = "../linux/kernel.rs"]
mod kernel;
mod library;
mod rows;
mod run;
mod scene;
#[path = "../common/signals.rs"]
mod signals;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use library::Library;
use rows::Row;

/// Only rows whose names contain this.
const CHOICE: &str = "HMMVISOR_ROWS";

/// Runs all of these, one for each CPU at a time, and fails with what was wrong. Signals must end runs `within` a time.
fn check(rows: Vec<Row>, within: Duration) {
    let choice = std::env::var(CHOICE).unwrap_or_default();
    let rows: Vec<Row> = rows
        .into_iter()
        .filter(|row| row.to_string().contains(&choice))
        .collect();
    eprintln!("{} rows", rows.len());
    assert!(!rows.is_empty(), "no row's name contains {choice:?}");
    let library = Library::build();
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, SeqCst)) {
                    let begin = Instant::now();
                    let result = run::run(&library, row, within);
                    let seconds = begin.elapsed().as_secs_f32();
                    match &result {
                        Ok(end) => eprintln!("ok     {row}: {end} ({seconds:.1} s)"),
                        Err(why) => eprintln!("WRONG  {row}: {why} ({seconds:.1} s)"),
                    }
                    if let Err(why) = result {
                        wrong.lock().unwrap().push(format!("{row}: {why}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    let mut text = String::new();
    for line in &wrong {
        let _ = writeln!(text, "{line}");
    }
    assert!(
        wrong.is_empty(),
        "{} of {} rows:\n{text}",
        wrong.len(),
        rows.len()
    );
}

#[test]
fn the_calls_that_lost_something_before() {
    check(rows::quick(), run::AFTER_SIGNAL_BUSY);
}

#[test]
#[ignore = "takes eight minutes or more; docs/proof.md has the command, and how it went"]
fn every_call_with_every_error() {
    check(rows::all(), run::AFTER_SIGNAL);
}

/// What a run asks of the kernel, as the library sees it: each is in the table, or is said not to be worth a row.
#[test]
fn no_call_is_left_out() {
    let library = Library::build();
    let rows = rows::all();
    let mut missing = BTreeSet::new();
    for scene in scene::ALL {
        for &engine in scene.engines() {
            for line in run::calls(&library, scene, engine) {
                let (call, about) = line.split_once(' ').unwrap_or((&line, ""));
                let covered = rows.iter().any(|row| row.is_about(call, about));
                if !covered && !rows::harmless(call, about) {
                    missing.insert(format!("{scene:?}: {call} {about}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "no row for {missing:#?}");
}
