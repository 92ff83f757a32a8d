//! The report as people like to read it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hmm_backend::links::{LinkTraffic, Route};
use hmm_backend::observe::{Cause, Latency, Stats};
use hmm_backend::pages::{PAGE_SIZE, Place};
use hmm_backend::text::printable;
use hmmvisor_abi::control::EXIT_USAGE;
use hmmvisor_experiments::figures::{self, bytes, count, grouped};
use hmmvisor_policies::ScriptFigures;

use crate::ending::End;
use crate::run::balloon::BalloonReport;
use crate::run::recording::RecordingFigures;
use crate::run::report::Report;

/// Prints a report in about a dozen lines.
pub struct Summary<'a>(pub &'a Report);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        headline(f, report)?;
        if could_not_start(report) {
            return match &report.recording {
                Some(recording) => line(f, "trace", trace(recording)),
                None => Ok(()),
            };
        }
        writeln!(f)?;
        time(f, report)?;
        faults(f, &report.stats)?;
        memory(f, report)?;
        links(f, report)?;
        policy(f, &report.stats)?;
        checks(f, report)?;
        if let Some(recording) = &report.recording {
            line(f, "trace", trace(recording))?;
        }
        if let Some(overhead) = report.overhead {
            let overhead = format!("{} beyond guest and device memory", bytes(overhead));
            line(f, "VMM overhead", overhead)?;
        }
        writeln!(f)?;
        migrations(f, report)
    }
}

/// Whether the embedded guest has said that it cannot start, before any page was accessed that figures could be about. The exit
/// codes of a guest of the user's mean what its author says.
fn could_not_start(report: &Report) -> bool {
    let faults = report.stats.cpu_faults + report.stats.device_faults;
    report.guest.is_none() && report.end == Some(End::Exit(EXIT_USAGE)) && faults == 0
}

/// Writes a line of the summary's first table.
fn line(f: &mut fmt::Formatter<'_>, what: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(f, "  {what:<16}{value}")
}

/// Writes what ran, with what outcome, on which machine.
fn headline(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let name = report
        .workload
        .as_deref()
        .or(report.guest.as_deref())
        .or(report.kernel.as_deref())
        .unwrap_or("guest");
    writeln!(f, "{}: {}", printable(name), verdict(report))?;
    writeln!(
        f,
        "{}, {}, {} of managed memory, engine {}, policy {}{}, seed {}",
        count(report.vcpus.into(), "vCPU"),
        count(report.devices.into(), "accelerator"),
        report.memory,
        report.engine,
        printable(&report.policy),
        mark_of_scripts(report.scripts.as_ref()),
        report.seed
    )
}

/// Writes how long the run took, and what policy scripts did in it.
fn time(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let time = |time: Duration| figures::time(time.as_nanos() as f64);
    let first = report.first_instruction.map_or(String::new(), |first| {
        format!(", first guest instruction {} after the start", time(first))
    });
    line(f, "time", time(report.elapsed) + &first)?;
    match &report.scripts {
        Some(scripts) => line(f, "policy scripts", of_scripts(scripts)),
        None => Ok(()),
    }
}

/// Returns what is to stand beside the policy's name if the figures are not those of its scripts.
pub fn mark_of_scripts(scripts: Option<&ScriptFigures>) -> &'static str {
    match scripts {
        Some(figures) if figures.failed() => " (SCRIPT FAILED: density decided in its place)",
        _ => "",
    }
}

/// Returns a line about what scripts did.
pub fn of_scripts(scripts: &ScriptFigures) -> String {
    let off = match scripts.off {
        0 => String::new(),
        n => format!("; {} given up", count(n.into(), "instance")),
    };
    format!(
        "{}, {} (density decided), {}{off}",
        count(scripts.decisions, "decision"),
        count(scripts.failures, "failure"),
        count(scripts.reloads, "reload"),
    )
}

/// Writes how many faults there were, and how long they took.
fn faults(f: &mut fmt::Formatter<'_>, stats: &Stats) -> fmt::Result {
    let [all, first] = [stats.cpu_faults, stats.first_touch_faults].map(grouped);
    line(
        f,
        "CPU faults",
        format!("{all}, {first} of them first touches"),
    )?;
    line(f, "  latency", latency(&stats.fault_latency))?;
    line(f, "device faults", grouped(stats.device_faults))?;
    line(f, "  latency", latency(&stats.device_fault_latency))
}

/// Writes how much device memory was in use, and how many pages were freed or given back by the balloon.
fn memory(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let stats = &report.stats;
    let [peak, all] = [stats.device_pages_peak, stats.device_pages_capacity].map(grouped);
    let size = bytes(stats.device_pages_capacity * PAGE_SIZE);
    line(
        f,
        "device memory",
        format!("peak {peak} of {all} pages ({size})"),
    )?;
    let freed = count(stats.pages_freed, "page");
    let calls = count(stats.page_free_calls, "page_free call");
    let frees = format!("{freed} with contents, {calls} to drivers");
    line(f, "frees", frees)?;
    match &report.balloon {
        Some(balloon) => line(f, "balloon", given_back(balloon)),
        None => Ok(()),
    }
}

/// Writes what crossed the accelerators' links, and the time that the links take for it.
fn links(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let sum = |of: &dyn Fn(&LinkTraffic) -> bool| -> u64 {
        let those = report.links.iter().filter(|it| of(it));
        those.map(|it| it.bytes).sum()
    };
    let transfers = report.links.iter().map(|it| it.transfers).sum();
    if transfers == 0 {
        return Ok(());
    }
    let time: Duration = report.links.iter().map(|it| it.time).sum();
    let (there, back) = (
        bytes(sum(&|it| it.from == Place::System)),
        bytes(sum(&|it| it.to == Place::System)),
    );
    let text = format!(
        "{there} to devices, {back} back, in {}, {} on the links",
        count(transfers, "transfer"),
        figures::time(time.as_nanos() as f64)
    );
    line(f, "link traffic", text)?;
    let between = |it: &LinkTraffic| it.from != Place::System && it.to != Place::System;
    let direct = sum(&between);
    if direct == 0 {
        return Ok(());
    }
    let by_host = sum(&|it| between(it) && it.route == Route::Host);
    let own = bytes(direct - by_host);
    let text = format!(
        "{} between devices: {own} over links of their own, {} over the host",
        bytes(direct),
        bytes(by_host)
    );
    line(f, "", text)
}

/// Writes how many pages were duplicated, and how much advice was cut, late or dropped. Counters of 0 get no line.
fn policy(f: &mut fmt::Formatter<'_>, stats: &Stats) -> fmt::Result {
    let counters = &stats.counters;
    if counters.duplicated > 0 {
        let (duplicated, collapsed) = (counters.duplicated, grouped(counters.collapsed));
        let duplicated = count(duplicated, "page");
        let copies = format!("{duplicated} duplicated, {collapsed} of the duplicates ended");
        line(f, "read copies", copies)?;
    }
    let counts = [
        counters.advice_cut,
        counters.advice_late,
        counters.wishes_dropped,
    ];
    if counts != [0; 3] {
        let [cut, late, _] = counts.map(|times| count(times, "time"));
        let dropped = grouped(counters.wishes_dropped);
        let text = format!("advice cut {cut}, late {late}; wishes dropped: {dropped}");
        line(f, "policy", text)?;
    }
    Ok(())
}

/// Writes how many operations were checked, and what the host did to the guest meanwhile, if it tortured it.
fn checks(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    if report.operations_checked > 0 {
        let checked = grouped(report.operations_checked);
        let rounds = match report.rounds {
            0 => String::new(),
            rounds => format!(", in {}", count(rounds, "round")),
        };
        // The guest prints its own count; what chaos has checked is added here.
        let checkers = match report.chaos {
            Some(_) => " by the guest and by chaos together",
            None => "",
        };
        line(
            f,
            "checked",
            format!("{checked} operations{checkers}{rounds}"),
        )?;
    }
    let Some(chaos) = &report.chaos else {
        return Ok(());
    };
    let text = format!(
        "{}, {} of {} detached, {} of drivers, {} declined",
        count(chaos.calls, "call"),
        grouped(chaos.detached),
        count(chaos.attached, "device"),
        count(chaos.failures_injected, "failure"),
        count(chaos.folios_declined, "folio")
    );
    line(f, "chaos", text)?;
    let text = format!(
        "{} pinned, {} read-only for a while, {} freed, {}",
        count(chaos.pinned, "page"),
        grouped(chaos.protected),
        grouped(chaos.freed),
        count(chaos.exclusive_adds, "exclusive addition")
    );
    line(f, "", text)
}

/// Writes the pages and bytes that migrated, by cause and direction, and the mean bandwidth.
fn migrations(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let stats = &report.stats;
    let between = stats.pages_between_devices();
    let total = [stats.pages_to_device(), stats.pages_to_system(), between];
    if total == [0; 3] {
        return writeln!(f, "  no page migrated");
    }
    // Most machines have one device.
    let columns = if between > 0 { 3 } else { 2 };
    let write = |f: &mut fmt::Formatter<'_>, what: &str, cells: [String; 3]| {
        let cells = cells[..columns].iter().map(|cell| format!("{cell:>24}"));
        writeln!(f, "  {what:<12}{}", cells.collect::<Vec<_>>().join("   "))
    };
    let row = |f: &mut fmt::Formatter<'_>, what: &str, pages: [u64; 3]| {
        let cell = |pages| {
            format!(
                "{:>13} {:>10}",
                format!("{} p.", grouped(pages)),
                bytes(pages * PAGE_SIZE)
            )
        };
        write(f, what, pages.map(cell))
    };
    let head = ["to device", "to system", "between devices"];
    write(f, "migrated", head.map(str::to_owned))?;
    let of = |counts: &BTreeMap<Cause, u64>, cause| counts.get(&cause).copied().unwrap_or(0);
    for cause in Cause::ALL {
        let counts = [&stats.to_device, &stats.to_system, &stats.between_devices];
        let pages = counts.map(|counts| of(counts, cause));
        // Devices are not detached in the usual run.
        if cause != Cause::Detach || pages != [0; 3] {
            row(f, cause.name(), pages)?;
        }
    }
    row(f, "total", total)?;
    let seconds = report.elapsed.as_secs_f64().max(1e-9);
    let rate = |pages| {
        let bytes_per_second = (pages as f64 * PAGE_SIZE as f64 / seconds) as u64;
        format!("{}/s", bytes(bytes_per_second))
    };
    write(f, "mean rate", total.map(rate))
}

fn verdict(report: &Report) -> &'static str {
    let Some(end) = &report.end else {
        return "goes on";
    };
    match *end {
        End::PowerOff => "powered off",
        End::Reboot => "asked for a reboot, which ends the run",
        End::Quit => "ended at the console",
        End::Signal(_) if report.kernel.is_some() => "interrupted",
        End::Failed(_) if report.kernel.is_some() => "FAILED",
        End::Exit(0) => "verified",
        End::Exit(_) => "NOT verified, the guest failed",
        End::Signal(_) => "NOT verified, interrupted",
        End::Failed(_) => "NOT verified, the run failed",
    }
}

fn given_back(balloon: &BalloonReport) -> String {
    let [inflated, reported, hinted] = [
        balloon.pages.inflated,
        balloon.pages.reported,
        balloon.pages.hinted,
    ]
    .map(grouped);
    let size = match (balloon.actual_bytes, balloon.target_bytes) {
        (0, 0) => "empty".to_owned(),
        (actual, target) => format!("{} of {}", bytes(actual), bytes(target)),
    };
    format!("{size}; pages given back: {inflated} inflated, {reported} reported, {hinted} hinted")
}

fn trace(recording: &RecordingFigures) -> String {
    let dropped: u64 = recording.dropped.values().sum();
    let dropped = match dropped {
        0 => "none dropped".to_owned(),
        _ => {
            let each = recording.dropped.iter();
            let each: Vec<_> = each
                .map(|(kind, n)| format!("{kind} {}", grouped(*n)))
                .collect();
            format!("{} DROPPED ({})", grouped(dropped), each.join(", "))
        }
    };
    format!(
        "{}, {dropped}, {} in {}{}",
        count(recording.events, "event"),
        bytes(recording.bytes),
        printable(&recording.path.display().to_string()),
        if recording.error.is_some() {
            ", NOT complete"
        } else {
            ""
        }
    )
}

fn latency(latency: &Latency) -> String {
    if latency.count == 0 {
        return "none measured".to_owned();
    }
    let times = [latency.p50, latency.p99, latency.max];
    let [p50, p99, max] = times.map(|us| figures::time(us * 1e3));
    format!("p50 {p50}, p99 {p99}, max {max}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_readable() {
        let measured = Latency {
            p50: 12.34,
            p99: 7_700.5,
            max: 14_000.0,
            count: 3,
        };
        assert_eq!(latency(&measured), "p50 12.3 µs, p99 7.7 ms, max 14 ms");
    }
}
