//! Which ends are allowed.

use std::time::Duration;

use crate::rows::{How, Row, name};
use crate::run::End;
use crate::scene::Scene;

/// More calls than this in one run that all fail: the thread that makes them spins. Those that are repeated at once take a
/// microsecond each, and end after half a second.
fn spinning(row: &Row) -> u64 {
    let at_once = [
        "ppoll",
        "ioctl UFFDIO_",
        "read [userfaultfd]",
        "madvise",
        "write fd 1:",
        "write [eventfd]",
    ];
    match at_once.iter().any(|call| row.to_string().starts_with(call)) {
        true => 2_000_000,
        false => 100_000,
    }
}

/// What happened, or what was wrong with it. A signal must end a run `within` a time.
pub fn judge(row: &Row, end: &End, within: Duration) -> Result<String, String> {
    let wrong = |what: String| {
        let said: Vec<_> = end.stderr.lines().filter(|line| telling(line)).collect();
        let guest: Vec<_> = end
            .stdout
            .lines()
            .take_while(|line| !line.is_empty())
            .collect();
        Err(format!(
            "{what}; {} of {} calls failed; {}; {}",
            end.failed,
            end.seen,
            short(&said.join(" | ")),
            short(&guest.join(" | ")),
        ))
    };
    if end.failed == 0 {
        return wrong("no call was made to fail: the row is void".into());
    }
    if end.killed {
        return wrong(match row.scene {
            Scene::Endless => "SIGINT does not end the run".into(),
            _ => "stands still, and SIGINT does not end it".to_owned(),
        });
    }
    if end.stderr.contains("' panicked at ") || end.stderr.contains(") panicked at ") {
        return wrong("a thread panicked".into());
    }
    if end.failed > spinning(row) {
        return wrong("spins".into());
    }
    let code = match end.status {
        Ok(code) => code,
        Err(signal) => return wrong(format!("killed by signal {signal}")),
    };
    for what in ["wrong data", "wrong books", "torture: page"] {
        if end.stdout.contains(what) || end.stderr.contains(what) {
            return wrong(what.into());
        }
    }
    match (end.interrupted, row.scene) {
        (None, _) => {}
        (Some(time), _) if time > within => {
            return wrong(format!("SIGINT ends the run only after {time:?}"));
        }
        (Some(time), Scene::Endless) => return Ok(format!("ended by SIGINT within {time:?}")),
        (Some(time), _) if row.may_wait() => {
            return Ok(format!("the guest waits; ended by SIGINT within {time:?}"));
        }
        (Some(time), _) => {
            return wrong(format!(
                "stands still for {:?}; SIGINT ends it within {time:?}",
                end.time
            ));
        }
    }
    if code == 0 {
        if row.must_not_succeed() {
            return wrong("succeeds, though an output is not complete".into());
        }
        return match end.stdout.contains(row.scene.good()) || row.about == "fd 1:" {
            true => Ok("verified".into()),
            false => wrong("exits with 0, but nothing was verified".into()),
        };
    }
    if row.must_succeed() {
        return wrong("fails, though the call could just be made again".into());
    }
    // A device of the guest's says so, and the guest ends the run.
    let told = [
        "status 4 (device fault could not be resolved)",
        "a request failed",
        "the device needs a reset",
        // ERR_PIN: memory of its queue cannot be supplied.
        "register error 5",
    ];
    if told.iter().any(|told| end.stdout.contains(told)) {
        return Ok("the guest was told".into());
    }
    let Some(said) = end.stderr.lines().find(|line| line.contains("error: ")) else {
        return wrong(format!("exit code {code} without an error"));
    };
    // The same for a page that a thread of the host wanted.
    let pages = [
        "could not be supplied: ",
        ": it stays busy (tried ",
        ": the host has no memory for it (tried ",
    ];
    if pages.iter().any(|page| said.contains(page)) {
        return Ok(said.to_owned());
    }
    match names(said, row) {
        true => Ok(said.to_owned()),
        false => wrong(format!(
            "exit code {code}: the error does not name its cause"
        )),
    }
}

/// Whether a message says what the kernel answered.
fn names(said: &str, row: &Row) -> bool {
    let error = match row.how {
        How::Errno(error) | How::Done(error) | How::PartBut(error) => error,
        How::End | How::Short | How::Part => {
            return [
                "end of file",
                " whole buffer",
                "but returns none",
                "without an error",
                "it is empty",
                "it is damaged",
                "it is too short",
            ]
            .iter()
            .any(|text| said.contains(text));
        }
    };
    let text = std::io::Error::from_raw_os_error(error).to_string();
    let (short, _) = text.split_once(" (os error").unwrap_or((&text, ""));
    // The service says what does not fit together: there are faults by `ppoll`, and none by `read`.
    if row.about == "[userfaultfd]" && said.contains("but returns none") {
        return true;
    }
    // The console gives up when the time is over, whatever keeps the system from taking the output.
    if row.about == "fd 1:" && said.contains("not read in time") {
        return true;
    }
    // Where it is known what the kernel means by it, its words would mislead.
    if row.about == "F_OFD_SETLK" && error == libc::EAGAIN {
        return said.contains("another disk has it open");
    }
    let said = said.to_lowercase();
    said.contains(&short.to_lowercase()) || said.contains(&name(error).to_lowercase())
}

/// Lines that say what happened.
fn telling(line: &str) -> bool {
    !line.is_empty() && !line.starts_with("note: ")
}

fn short(text: &str) -> String {
    text.chars().take(600).collect()
}
