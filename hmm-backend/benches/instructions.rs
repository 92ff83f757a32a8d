//! Counts the instructions of the backend's operations without system calls, with valgrind. The count is the
//! same on a busy and on an idle machine, so noise does not hide a regression. Fails if an operation needs over
//! 10 % more instructions than recorded in `instructions.txt`.
//!
//!     cargo bench -p hmm-backend --features measure --bench instructions
//!
//! With `RECORD=1`, records the counts instead.

use std::path::Path;
use std::process::{Command, ExitCode};

use hmm_backend::measure::OPERATIONS;

/// The two numbers of repetitions. Their difference is measured, so that the start of the process does not
/// count.
const FEW: u32 = 100;
const MANY: u32 = 600;
const TOLERANCE: f64 = 1.10;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "run", index, times] => {
            let (_, operation) = OPERATIONS[index.parse::<usize>().unwrap()];
            operation(times.parse().unwrap());
            ExitCode::SUCCESS
        }
        // Under `cargo test --benches` there is nothing to measure.
        _ if args.iter().any(|arg| arg == "--bench") => compare(),
        _ => ExitCode::SUCCESS,
    }
}

fn compare() -> ExitCode {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    let recorded = std::fs::read_to_string(&file).unwrap_or_default();
    let recorded = |name: &str| -> Option<f64> {
        let line = recorded
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line?.trim().parse().ok()
    };
    let mut record = String::from("# Instructions per operation, by benches/instructions.rs.\n");
    let mut worse = 0;
    println!(
        "{:<34} {:>10} {:>10} {:>8}",
        "instructions", "now", "recorded", "ratio"
    );
    for (index, (name, _)) in OPERATIONS.iter().enumerate() {
        let total = |times| count(index, times) as f64;
        let now = (total(MANY) - total(FEW)) / f64::from(MANY - FEW);
        record += &format!("{name}: {now:.0}\n");
        let Some(before) = recorded(name) else {
            println!("{name:<34} {now:>10.0} {:>10} {:>8}", "none", "FAIL");
            worse += 1;
            continue;
        };
        let ratio = now / before;
        let verdict = if ratio > TOLERANCE { "  FAIL" } else { "" };
        println!("{name:<34} {now:>10.0} {before:>10.0} {ratio:>8.2}{verdict}");
        worse += usize::from(ratio > TOLERANCE);
    }
    if std::env::var_os("RECORD").is_some() {
        std::fs::write(&file, record).unwrap();
        println!("recorded in {}", file.display());
        return ExitCode::SUCCESS;
    }
    if worse > 0 {
        eprintln!(
            "{worse} operations cost over 10 % more than recorded; if that is intended, record it with RECORD=1"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Returns the instructions of a process that runs an operation this many times.
fn count(index: usize, times: u32) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["run", &index.to_string(), &times.to_string()])
        .output()
        .unwrap_or_else(|error| panic!("valgrind: {error}; install it (apt-get install valgrind)"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "valgrind failed: {text}");
    let collected = text.lines().find_map(|l| l.split("Collected :").nth(1));
    let collected = collected.and_then(|n| n.trim().parse().ok());
    collected.unwrap_or_else(|| panic!("valgrind printed no count: {text}"))
}
