//! The report as people like to read it.

use std::collections::BTreeMap;
use std::fmt;

use hmm_backend::{Cause, Latency, PAGE_SIZE, printable};
use hmmvisor_experiments::figures::{bytes, count, grouped};
use hmmvisor_policies::ScriptFigures;

use crate::balloon::BalloonReport;
use crate::ending::End;
use crate::recording::RecordingFigures;
use crate::report::Report;

/// Shows a report in about a dozen lines.
pub struct Summary<'a>(pub &'a Report);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let stats = &report.stats;
        let name = report
            .workload
            .as_deref()
            .or(report.guest.as_deref())
            .or(report.kernel.as_deref())
            .unwrap_or("guest");
        writeln!(f, "{}: {}", printable(name), verdict(report))?;
        writeln!(
            f,
            "{}, {}, {} of managed memory, engine {}, policy {}, seed {}",
            count(report.vcpus.into(), "vCPU"),
            count(report.devices.into(), "accelerator"),
            report.memory,
            report.engine,
            printable(&report.policy),
            report.seed
        )?;
        writeln!(f)?;

        let line = |f: &mut fmt::Formatter<'_>, what: &str, value: String| {
            writeln!(f, "  {what:<16}{value}")
        };
        let first = match report.first_instruction {
            Some(time) => format!(
                ", first guest instruction {:.1} ms after the start",
                time.as_secs_f64() * 1e3
            ),
            None => String::new(),
        };
        line(
            f,
            "time",
            format!("{:.3} s{first}", report.elapsed.as_secs_f64()),
        )?;
        if let Some(scripts) = report.scripts {
            line(f, "policy scripts", of_scripts(&scripts))?;
        }
        let first_touches = grouped(stats.first_touch_faults);
        line(
            f,
            "CPU faults",
            format!(
                "{}, {first_touches} of them first touches",
                grouped(stats.cpu_faults)
            ),
        )?;
        line(f, "  latency", latency(&stats.fault_latency))?;
        line(f, "device faults", grouped(stats.device_faults))?;
        line(f, "  latency", latency(&stats.device_fault_latency))?;
        line(
            f,
            "device memory",
            format!(
                "peak {} of {} pages ({})",
                grouped(stats.device_pages_peak),
                grouped(stats.device_pages_capacity),
                bytes(stats.device_pages_capacity * PAGE_SIZE)
            ),
        )?;
        let freed = grouped(stats.pages_freed);
        let calls = grouped(stats.page_free_calls);
        line(
            f,
            "frees",
            format!("{freed} pages with contents, {calls} page_free calls to drivers"),
        )?;
        if let Some(balloon) = report.balloon {
            line(f, "balloon", given_back(&balloon))?;
        }
        let other = |name| stats.other.get(name).copied().unwrap_or(0);
        if let Some(duplicated @ 1..) = stats.other.get("duplicated").copied() {
            let [duplicated, collapsed] = [duplicated, other("collapsed")].map(grouped);
            line(
                f,
                "read copies",
                format!("{duplicated} pages duplicated, {collapsed} of the duplicates ended"),
            )?;
        }
        let [cut, late, dropped] = ["advice_cut", "advice_late", "wishes_dropped"].map(other);
        if [cut, late, dropped] != [0; 3] {
            let [cut, late, dropped] = [cut, late, dropped].map(grouped);
            line(
                f,
                "policy",
                format!("advice cut {cut} times, late {late} times; {dropped} wishes dropped"),
            )?;
        }
        if report.operations_checked > 0 {
            let checked = grouped(report.operations_checked);
            let rounds = match report.rounds {
                0 => String::new(),
                rounds => format!(", in {}", count(rounds, "round")),
            };
            line(f, "checked", format!("{checked} operations{rounds}"))?;
        }
        if let Some(chaos) = &report.chaos {
            line(
                f,
                "chaos",
                format!(
                    "{} calls, {} of {} devices detached, {} failures of drivers, {} folios declined",
                    grouped(chaos.calls),
                    chaos.detached,
                    chaos.attached,
                    grouped(chaos.failures_injected),
                    grouped(chaos.folios_declined)
                ),
            )?;
            line(
                f,
                "",
                format!(
                    "{} pages pinned, {} read-only for a while, {} freed, {} exclusive additions",
                    grouped(chaos.pinned),
                    grouped(chaos.protected),
                    grouped(chaos.freed),
                    grouped(chaos.exclusive_adds)
                ),
            )?;
        }
        if let Some(recording) = &report.recording {
            line(f, "trace", trace(recording))?;
        }
        if let Some(overhead) = report.overhead {
            line(
                f,
                "VMM overhead",
                format!("{} beyond guest and device memory", bytes(overhead)),
            )?;
        }
        writeln!(f)?;
        migrations(f, report)
    }
}

/// How scripts did, in a line.
pub fn of_scripts(scripts: &ScriptFigures) -> String {
    let off = match scripts.off {
        0 => String::new(),
        n => format!("; {} given up", count(n.into(), "instance")),
    };
    format!(
        "{} decisions, {} failures (the default policy decided), {}{off}",
        grouped(scripts.decisions),
        grouped(scripts.failures),
        count(scripts.reloads, "reload"),
    )
}

/// Pages and bytes by cause and direction, and how many bytes that makes in a second of the run.
fn migrations(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let stats = &report.stats;
    let total = [stats.pages_to_device(), stats.pages_to_system()];
    if total == [0, 0] {
        return writeln!(f, "  no page migrated");
    }
    let row = |f: &mut fmt::Formatter<'_>, what: &str, pages: [u64; 2]| {
        let [device, system] = pages.map(|pages| {
            format!(
                "{:>13} {:>10}",
                format!("{} p.", grouped(pages)),
                bytes(pages * PAGE_SIZE)
            )
        });
        writeln!(f, "  {what:<12}{device}   {system}")
    };
    writeln!(
        f,
        "  {:<12}{:>24}   {:>24}",
        "migrated", "to device", "to system"
    )?;
    let of = |counts: &BTreeMap<Cause, u64>, cause| counts.get(&cause).copied().unwrap_or(0);
    for cause in Cause::ALL {
        let pages = [of(&stats.to_device, cause), of(&stats.to_system, cause)];
        // Devices are not detached in the usual run.
        if cause != Cause::Detach || pages != [0, 0] {
            row(f, cause.name(), pages)?;
        }
    }
    row(f, "total", total)?;
    let seconds = report.elapsed.as_secs_f64().max(1e-9);
    let [device, system] = total.map(|pages| {
        format!(
            "{}/s",
            bytes((pages as f64 * PAGE_SIZE as f64 / seconds) as u64)
        )
    });
    writeln!(f, "  {:<12}{device:>24}   {system:>24}", "mean rate")
}

fn verdict(report: &Report) -> &'static str {
    match report.end {
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
        "{} events, {dropped}, {} in {}{}",
        grouped(recording.events),
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
    let [p50, p99, max] = [latency.p50, latency.p99, latency.max].map(|us| match us {
        ..10_000.0 => format!("{us:.1} µs"),
        us => format!("{:.1} ms", us / 1e3),
    });
    format!("p50 {p50}, p99 {p99}, max {max}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_readable() {
        let measured = Latency {
            p50: 12.34,
            p99: 99.0,
            max: 12_345.0,
            count: 3,
        };
        assert_eq!(latency(&measured), "p50 12.3 µs, p99 99.0 µs, max 12.3 ms");
    }
}
