//! `hmmvisor report`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use hmmvisor_abi::map;
use hmmvisor_experiments::report::{RunMeta, RunReport, sweep_page};
use hmmvisor_experiments::trace::{Tail, TraceReader};

/// Options of `report`.
#[derive(Args)]
pub struct ReportArgs {
    /// A trace file, or the folder of a sweep
    #[arg(value_name = "RUN|SWEEP")]
    about: PathBuf,
    /// Where the page goes
    #[arg(short, value_name = "FILE.html")]
    out: PathBuf,
}

/// Does what the arguments say.
pub fn report(args: &ReportArgs) -> Result<ExitCode> {
    let html = match is_sweep(&args.about) {
        true => sweep_page(&args.about)?,
        false => run_page(&args.about)?,
    };
    fs::write(&args.out, html).with_context(|| format!("writing report {}", args.out.display()))?;
    println!("{}", args.out.display());
    Ok(ExitCode::SUCCESS)
}

/// Folders are sweeps, and so are journals.
fn is_sweep(path: &Path) -> bool {
    path.is_dir()
        || path
            .extension()
            .is_some_and(|extension| extension == "jsonl")
}

fn run_page(path: &Path) -> Result<String> {
    let mut reader = TraceReader::open(path)?;
    let (meta, totals) = (reader.meta(), reader.totals());
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
        base: map::MANAGED,
        device_memory: vec![meta.device_memory; meta.devices.min(64) as usize],
        policy: meta.policy.clone(),
        facts: facts
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        dropped: totals.dropped.values().sum(),
    });
    if reader.tail() != Tail::Complete {
        eprintln!(
            "hmmvisor: {}: it is not complete; the page is about what is there",
            path.display()
        );
    }
    for event in &mut reader {
        report.add(&event?);
    }
    Ok(report.finish())
}
