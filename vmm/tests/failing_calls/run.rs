//! Runs a row: the command with the library in front, to its end, or to a signal.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::judge;
use crate::library::{Counts, Library};
use crate::rows::{Pattern, Row};
use crate::scene::{Engine, Scene};

/// Longer than any row takes, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// A signal ends a run within this time, on a machine that has nothing else to do.
pub const AFTER_SIGNAL: Duration = Duration::from_secs(1);
/// The same on a busy one. After this time a run is killed.
pub const AFTER_SIGNAL_BUSY: Duration = Duration::from_secs(5);
/// From the first failure of a run without end to the signal: time to get into trouble.
const TROUBLE: Duration = Duration::from_millis(300);

/// A row is void when so many runs made no call that could fail.
const RUNS: usize = 20;

/// What the names of runs' folders begin with.
pub const FOLDER: &str = "failing-calls-";

/// How a run ended.
pub struct End {
    /// The exit code, or the signal that killed the process.
    pub status: Result<i32, i32>,
    pub stdout: String,
    pub stderr: String,
    /// It did not end by itself, but by SIGINT after this time.
    pub interrupted: Option<Duration>,
    /// Nor by SIGINT.
    pub killed: bool,
    /// Calls that the row is about.
    pub seen: u64,
    /// Those that were made to fail.
    pub failed: u64,
    pub time: Duration,
}

/// Runs a row, which a signal must end `within` a time: what happened, or what was wrong with it.
pub fn run(library: &Library, row: &Row, within: Duration) -> Result<String, String> {
    let Pattern::Each = row.pattern else {
        let (first, every) = row.pattern.numbers();
        // Some calls are made only where threads race: a good run in which they did not is no answer.
        let runs = (0..RUNS).map(|_| one(library, row, first, every));
        let mut ends = runs.skip_while(|end| end.failed == 0 && end.status == Ok(0) && !end.killed);
        let end = ends
            .next()
            .unwrap_or_else(|| one(library, row, first, every));
        return judge::judge(row, &end, within);
    };
    // One call after the other, until the run has no more of them.
    let (mut ends, mut wrong) = (Vec::new(), Vec::new());
    for nth in 1.. {
        let end = one(library, row, nth, 0);
        if nth > 1 && end.failed == 0 {
            break;
        }
        match judge::judge(row, &end, within) {
            Ok(text) => ends.push(text),
            Err(text) => wrong.push(format!("number {nth}: {text}")),
        }
    }
    match wrong.is_empty() {
        true => Ok(format!("each of {}: {}", ends.len(), ends[0])),
        false => Err(wrong.join("; ")),
    }
}

fn one(library: &Library, row: &Row, first: u64, every: u64) -> End {
    let folder = tempfile::TempDir::with_prefix(FOLDER).unwrap();
    let counts = Counts::new(folder.path());
    let mut command = row.scene.command(library, row.engine, folder.path());
    library.attach(&mut command, &counts);
    let (how, error) = row.how.names();
    command
        .env("FAILING_CALLS_CALL", row.call)
        .env("FAILING_CALLS_ABOUT", row.about)
        .env("FAILING_CALLS_HOW", how)
        .env("FAILING_CALLS_ERRNO", error.to_string())
        .env("FAILING_CALLS_FIRST", first.to_string())
        .env("FAILING_CALLS_EVERY", every.to_string());
    let until = match row.scene == Scene::Endless || row.may_wait() {
        true => Until::Trouble,
        false => Until::End,
    };
    to_the_end(command, folder.path(), &counts, until)
}

/// Every different call of a run in which none fails.
pub fn calls(library: &Library, scene: Scene, engine: Engine) -> BTreeSet<String> {
    let folder = tempfile::TempDir::with_prefix(FOLDER).unwrap();
    let counts = Counts::new(folder.path());
    let log = folder.path().join("log");
    fs::write(&log, []).unwrap();
    let mut command = scene.command(library, engine, folder.path());
    library.attach(&mut command, &counts);
    command.env("FAILING_CALLS_LOG", &log);
    let until = match scene {
        Scene::Endless => Until::Now,
        _ => Until::End,
    };
    let end = to_the_end(command, folder.path(), &counts, until);
    assert!(!end.killed, "{scene:?}: {}", end.stderr);
    let text = fs::read_to_string(&log).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// When a run gets its signal, if it does not end by itself.
#[derive(Clone, Copy)]
enum Until {
    /// When it stands still.
    End,
    /// When it has had a call that failed, and some time.
    Trouble,
    /// After the same time, without a call that failed.
    Now,
}

fn to_the_end(mut command: Command, folder: &Path, counts: &Counts, until: Until) -> End {
    let output = |name: &str| File::create(folder.join(name)).unwrap();
    command.stdout(output("out")).stderr(output("err"));
    let begin = Instant::now();
    let mut child = command.spawn().unwrap();
    let mut since = None;
    let mut status = wait(&mut child, patient(LIMIT), || {
        let trouble = match until {
            Until::End => false,
            Until::Trouble => counts.failed() > 0,
            Until::Now => true,
        };
        if trouble && since.is_none() {
            since = Some(Instant::now());
        }
        since.is_some_and(|since: Instant| since.elapsed() > TROUBLE)
    });
    let time = begin.elapsed();
    let (mut interrupted, mut killed) = (None, false);
    if status.is_none() {
        let signal = Instant::now();
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
        status = wait(&mut child, patient(AFTER_SIGNAL_BUSY), || false);
        interrupted = Some(signal.elapsed());
    }
    let status = status.unwrap_or_else(|| {
        killed = true;
        let _ = child.kill();
        child.wait().unwrap()
    });
    let text = |name: &str| {
        let bytes = fs::read(folder.join(name)).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    End {
        status: status.code().ok_or(status.signal().unwrap_or_default()),
        stdout: text("out"),
        stderr: text("err"),
        interrupted,
        killed,
        seen: counts.seen(),
        failed: counts.failed(),
        time,
    }
}

/// Waits for the child's end, until the time is over or `enough`.
fn wait(
    child: &mut Child,
    limit: Duration,
    mut enough: impl FnMut() -> bool,
) -> Option<std::process::ExitStatus> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if begin.elapsed() > limit || enough() {
            return None;
        }
        // Nothing tells of a child's end within a time.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// As `hmmvisor_testkit::patience`, which this package cannot use: the test kit uses this package.
fn patient(time: Duration) -> Duration {
    let factor = std::env::var("HMMVISOR_TEST_PATIENCE").ok();
    time * factor.map_or(1, |factor| factor.parse().expect("a whole number"))
}
