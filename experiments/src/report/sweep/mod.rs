//! The page about a sweep.

mod comparison;
mod pareto;
mod results;
mod statistics;

use std::path::Path;

use self::results::{Group, Metric, Results};
use self::statistics::Estimate;
use crate::figures::count;
use crate::report::drawing::axis::number;
use crate::report::drawing::page::{HtmlPage, NOTHING, Table};
use crate::size::Size;
use crate::sweep::SweepError;
use crate::sweep::journal::{Header, Journal};

/// Rows of the table of failed runs.
const MOST_FAILED: usize = 50;

/// Returns the report on a sweep's folder, or on its journal, as HTML. An unfinished sweep has a report, too, which
/// says that it is unfinished.
///
/// # Errors
/// There is no journal, or it is damaged.
pub fn sweep_page(path: &Path) -> Result<String, SweepError> {
    Ok(render(&Journal::find(path)?))
}

fn render(journal: &Journal) -> String {
    let header = &journal.header;
    let rows: Vec<_> = journal.rows.values().cloned().collect();
    let results = Results::of(&rows);
    let mut page = HtmlPage::new(&header.title, &header.question);
    facts(&mut page, header, &results, rows.len());
    for group in &results.groups {
        page.heading(&group.name);
        let time = match group.live {
            true => "Elapsed time by policy",
            false => "Modelled time by policy",
        };
        let policies = &results.policies;
        for (metric, title) in [
            (Metric::Time, time),
            (Metric::Bytes, "Data moved by policy"),
            (Metric::Faults, "Faults by policy"),
        ] {
            comparison::draw(&mut page, group, policies, metric, title);
        }
        pareto::draw(&mut page, group, policies);
        table(&mut page, group, policies);
    }
    failed(&mut page, &results);
    page.finish()
}

fn facts(page: &mut HtmlPage, header: &Header, results: &Results, rows: usize) {
    let share = header.shard.share(header.runs);
    let mut facts = vec![
        ("runs", number(rows as f64)),
        ("policies", number(results.policies.len() as f64)),
        (
            "sweep",
            format!("{}, Hmmvisor {}", header.sweep, header.version),
        ),
    ];
    if header.shard.of > 1 {
        facts.push(("only shard", header.shard.to_string()));
    }
    if rows < share {
        let missing = share - rows;
        facts.push((
            "not finished",
            format!("{missing} of {share} runs are missing"),
        ));
    }
    let failed = results.failed.len();
    if failed > 0 {
        facts.push(("failed", format!("{failed}, listed at the end")));
    }
    if results.script_failed > 0 {
        let runs = count(results.script_failed as u64, "run");
        let what = "there density decided instead; see script_failures";
        facts.push(("scripts that failed", format!("in {runs}: {what}")));
    }
    let mut table = Table::new(&["<", "<"]);
    for (name, value) in facts {
        table.row(&[name.to_owned(), value]);
    }
    page.table(table);
}

fn with_error(estimate: Option<Estimate>, metric: Metric) -> String {
    let Some(estimate) = estimate else {
        return NOTHING.to_owned();
    };
    let unit = metric.unit(estimate.mean);
    let mean = number(estimate.mean / unit.factor);
    let error = match estimate.error {
        Some(error) if error > 0.0 => format!(" ± {}", number(error / unit.factor)),
        _ => String::new(),
    };
    format!("{mean}{error} {}", unit.name).trim_end().to_owned()
}

fn as_ratio(ratio: Option<f64>) -> String {
    ratio.map_or(NOTHING.to_owned(), |ratio| format!("{ratio:.2}"))
}

fn table(page: &mut HtmlPage, group: &Group, policies: &[&str]) {
    page.paragraph(
        "Means over the seeds ± 95 % confidence intervals. The fastest policy of each size is bold; times are compared with it. \
         Unused: prefetched pages that moved on before they were accessed. × optimal: pages brought to the device, \
         compared with what evicting with knowledge of the future (Belady's MIN) would bring.",
    );
    let mut table = Table::new(&[
        "<policy",
        "seeds",
        group.time_name(),
        "× fastest",
        "data moved",
        "faults",
        "evicted",
        "prefetched",
        "unused",
        "thrashing",
        "× optimal",
    ]);
    for size in &group.sizes {
        let cells: Vec<_> = policies
            .iter()
            .filter_map(|policy| Some((policy, group.cell(*size, policy)?)))
            .collect();
        if group.sizes.len() > 1 {
            table.part(&format!("{} of device memory", Size(*size)));
        }
        let times = cells
            .iter()
            .filter_map(|(_, cell)| cell.estimate(Metric::Time));
        let fastest = times.map(|time| time.mean).fold(f64::INFINITY, f64::min);
        for (policy, cell) in cells {
            let time = cell.estimate(Metric::Time);
            let ratio = time.map(|time| time.mean / fastest);
            let mean =
                |value: Option<Estimate>| value.map_or(NOTHING.to_owned(), |it| number(it.mean));
            let over = cell.mean(|row| {
                let optimal = row.optimal_pages_to_device.filter(|pages| *pages > 0)?;
                Some(row.pages_to_device? as f64 / optimal as f64)
            });
            let seeds = cell.mean(|row| row.seed.map(|_| 0.0));
            let count = seeds.map_or(0, |it| it.count);
            let policy = match cell.script_failures() {
                0 => (*policy).to_owned(),
                events => format!("{policy} (script failed {}×)", number(events as f64)),
            };
            let cells = [
                policy,
                count.to_string(),
                with_error(time, Metric::Time),
                as_ratio(ratio.filter(|it| it.is_finite())),
                with_error(cell.estimate(Metric::Bytes), Metric::Bytes),
                with_error(cell.estimate(Metric::Faults), Metric::Faults),
                mean(cell.mean(|row| row.evicted.map(|n| n as f64))),
                mean(cell.mean(|row| row.prefetched.map(|n| n as f64))),
                mean(cell.mean(|row| row.unused.map(|n| n as f64))),
                mean(cell.mean(|row| row.thrashing_pages.map(|n| n as f64))),
                as_ratio(over.map(|it| it.mean)),
            ];
            match ratio == Some(1.0) {
                true => table.best_row(&cells),
                false => table.row(&cells),
            }
        }
    }
    page.table(table);
}

fn failed(page: &mut HtmlPage, results: &Results) {
    if results.failed.is_empty() {
        return;
    }
    page.heading("Failed runs");
    page.paragraph("These are in no plot and no mean.");
    let mut table = Table::new(&["run", "<source", "<policy", "device memory", "seed", "<why"]);
    for row in results.failed.iter().take(MOST_FAILED) {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        table.row(&[
            row.run.unwrap_or_default().to_string(),
            text(&row.source),
            text(&row.policy),
            Size(row.device_memory_bytes.unwrap_or_default()).to_string(),
            row.seed.unwrap_or_default().to_string(),
            text(&row.error),
        ]);
    }
    page.table(table);
    if results.failed.len() > MOST_FAILED {
        page.paragraph(&format!("And {} more.", results.failed.len() - MOST_FAILED));
    }
}
