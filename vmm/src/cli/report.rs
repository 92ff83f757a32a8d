//! `hmmvisor report`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use hmmvisor_abi::map;
use hmmvisor_experiments::report::{RunMeta, RunReport, sweep_page};
use hmmvisor_experiments::trace::{Tail, TraceKind, TraceReader};

/// Options of `report`.
#[derive(Args)]
pub struct ReportArgs {
    /// A trace file, or the folder of a sweep
    #[arg(value_name = "RUN|SWEEP")]
    about: PathBuf,
    /// Where the page goes
    #[arg(long, short, value_name = "FILE.html")]
    output: PathBuf,
}

/// Does what the arguments say.
pub fn report(args: &ReportArgs) -> Result<ExitCode> {
    let (about, output) = (&args.about, &args.output);
    if about
        .extension()
        .is_some_and(|extension| extension == "toml")
    {
        bail!(
            "{} is a sweep's file; give the folder with its results",
            about.display()
        );
    }
    if let (Ok(input), Ok(page)) = (about.canonicalize(), output.canonicalize())
        && input == page
    {
        bail!(
            "writing report {}: that is the trace itself; name another file",
            output.display()
        );
    }
    let html = match is_sweep(about) {
        true => sweep_page(about)?,
        false => run_page(about)?,
    };
    put(output, &html).with_context(|| format!("writing report {}", output.display()))?;
    // Whoever closed the pipe does not want to read it.
    let _ = writeln!(io::stdout(), "{}", output.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes a page beside its place and then puts it there: a full disk leaves no half of one, and the one before stays.
fn put(path: &Path, html: &str) -> io::Result<()> {
    if path.exists() && !path.is_file() {
        // A pipe or a device.
        return fs::write(path, html);
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    let written = fs::write(&beside, html).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
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
