//! `hmmvisor report`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use hmmvisor_abi::map;
use hmmvisor_experiments::output::Files;
use hmmvisor_experiments::report::{RunMeta, RunReport, sweep_page};
use hmmvisor_experiments::sweep::{JOURNAL, TABLES};
use hmmvisor_experiments::trace::{Tail, TraceKind, TraceReader};

use super::mistake::Mistake;
use super::output::{note, put, status};

/// Options of `report`.
#[derive(Args)]
pub struct ReportArgs {
    /// A trace file, or the folder of a sweep
    #[arg(value_name = "RUN|SWEEP")]
    about: PathBuf,
    /// Where the page goes; - for standard output
    #[arg(long, short, value_name = "FILE.html")]
    output: PathBuf,
}

/// Makes the page that the arguments ask for.
pub fn report(args: &ReportArgs) -> Result<ExitCode> {
    let (about, output) = (&args.about, &args.output);
    if has_extension(about, "toml") {
        bail!(Mistake(format!(
            "{} is a sweep's file; give the folder with its results",
            about.display()
        )));
    }
    let mut files = Files::default();
    // A sweep is given as its folder or its journal.
    let journal = match about.is_dir() {
        true => Some(about.join(JOURNAL)),
        false => has_extension(about, "jsonl").then(|| about.clone()),
    };
    match &journal {
        Some(journal) => {
            files.reads("the sweep's journal", journal);
            // They are not read, but are the sweep's as well.
            for table in TABLES {
                files.reads("the sweep's table", &journal.with_file_name(table));
            }
        }
        None => files.reads("the trace", about),
    }
    // Outputs are checked before the work, which may take long.
    files.prints("the report's name")?;
    let page = files.whole("the report", output)?;
    let html = match journal {
        Some(_) => sweep_page(about)?,
        None => run_page(about)?,
    };
    put(page, "the report", &html)?;
    status(&files, &format!("{}\n", output.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|it| it == extension)
}

fn run_page(path: &Path) -> Result<String> {
    let mut reader = TraceReader::open(path)?;
    let (meta, totals) = (reader.meta(), reader.totals());
    if meta.kind == TraceKind::Access {
        bail!(
            "{} is an access trace: nothing migrates in it; compare policies on it with `hmmvisor sweep` and report that",
            path.display()
        );
    }
    let params = meta
        .params
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let facts = [
        ("workload", meta.workload.clone().unwrap_or_default()),
        ("parameters", params.collect::<Vec<_>>().join(" ")),
        ("guest", meta.guest.clone().unwrap_or_default()),
        ("source", meta.source.clone().unwrap_or_default()),
        ("engine", meta.engine.clone()),
        ("vCPUs", meta.vcpus.to_string()),
        ("seed", meta.seed.to_string()),
        ("recorded by Hmmvisor", meta.hmmvisor.clone()),
    ];
    let facts = facts.into_iter().filter(|(_, value)| !value.is_empty());
    let name = path.file_name().unwrap_or(path.as_os_str());
    let mut report = RunReport::new(RunMeta {
        title: match &meta.workload {
            Some(workload) => format!("{workload}: {}", name.display()),
            None => name.display().to_string(),
        },
        memory: meta.memory,
        base: meta.base.unwrap_or(map::MANAGED),
        device_memory: vec![meta.device_memory; meta.devices.min(64) as usize],
        policy: meta.policy.clone(),
        facts: facts
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        dropped: totals.dropped_events(),
    });
    if reader.tail() != Tail::Complete {
        note(&format!(
            "{}: it is not complete; the page is about what is there",
            path.display()
        ));
    }
    for event in &mut reader {
        report.add(&event?);
        if let Some(refusal) = report.refusal() {
            bail!(
                "{}: keeping account of the pages that it names: {refusal}",
                path.display()
            );
        }
    }
    Ok(report.finish())
}
