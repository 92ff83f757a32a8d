//! `hmmvisor replay`.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Error, Result, anyhow, bail};
use clap::Args;
use hmm_backend::pages::Fidelity;
use hmm_backend::policy::{LinkMatrix, PART, PolicyFile};
use hmm_backend::text::printable;
use hmm_backend::{EVICTION_BATCH, limits};
use hmmvisor::messages;
use hmmvisor::run::summary::{mark_of_scripts, of_scripts};
use hmmvisor::size::Size;
use hmmvisor_experiments::figures::{bytes, count, grouped, time};
use hmmvisor_experiments::output::Files;
use hmmvisor_experiments::replay::{FileReplay, ReplayConfig, Replayed};
use hmmvisor_experiments::trace::{Tail, TraceKind, TraceMeta, TraceReader};
use hmmvisor_policies::{Chosen, Limits, Log, PolicyChoice, ScriptFigures, Scripts, excerpt};
use serde::Serialize;

use super::failed::failed;
use super::mistake::Mistake;
use super::output::{json_output, note, put_json, summary};
use super::trace::TraceArgs;

/// What there is to say about a trace without an access by a device.
pub const NO_DEVICE: &str = "no access is a device's, so nothing migrates; an import has devices by --device (lackey), or by the column `device` (CSV)";

/// Options of `replay`.
#[derive(Args)]
#[command(override_usage = "hmmvisor replay [OPTIONS] <TRACE>")]
pub struct ReplayArgs {
    #[command(flatten)]
    trace: TraceArgs,
    /// What migrates when, like `density:threshold=60+lru` or a script's file [default: as in the trace]
    #[arg(long, value_name = "SPEC")]
    policy: Option<PolicyChoice>,
    /// Memory of each accelerator [default: as in the trace]
    #[arg(long, value_name = "SIZE")]
    device_memory: Option<Size>,
    /// How much devices tell of accesses that do not fault: faults (nothing), bits (accessed bits) or all [default: as in the
    /// trace]
    #[arg(long, value_name = "faults|bits|all")]
    accesses: Option<Fidelity>,
    /// The least number of pages that are evicted at a time [default: as in the trace, or 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    eviction_batch: Option<u32>,
    /// What a transfer costs, like latency=10us,bandwidth=25G (a PCIe 4.0 link of 16 lanes); more links after semicolons, like "…;
    /// peer: latency=1us,bandwidth=300G; device1: bandwidth=5G" [default: as in the trace, or that]
    #[arg(long, value_name = "LINK")]
    link: Option<LinkMatrix>,
    /// Do not compute the least that was possible (Belady's MIN): saves up to 12 bytes an access
    #[arg(long)]
    no_optimal: bool,
}

/// Replays a trace as the arguments say.
pub fn replay(args: ReplayArgs) -> Result<ExitCode> {
    let mut files = Files::default();
    let (trace, json) = args.trace.files()?;
    files.reads("the trace", trace);
    let reader = TraceReader::open(trace)?;
    let meta = reader.meta().clone();
    // Where the user names no policy, the trace names its files. None of them has been opened yet.
    let of_policy = match &args.policy {
        Some(policy) => policy.files(),
        None => PolicyChoice::named_files(&meta.policy),
    };
    for file in of_policy {
        files.reads(file.what, &file.path);
    }
    let json = json_output(&mut files, json)?;
    files.prints("the outcome")?;
    let mut warning = String::new();
    match reader.tail() {
        Tail::Complete => {}
        Tail::Unfinished => warning = "its writer was stopped before its end".into(),
        Tail::Truncated { missing, .. } => {
            warning = format!("at least {missing} bytes are missing at its end");
        }
        // Reading it up to there says what and where.
        Tail::Corrupt { .. } => {}
    }
    let lost = reader.totals().lost();
    let (settings, scripts) = settings(&args, trace, &meta)?;
    let config = settings.config(&meta);
    let outcome = settings.run(reader)?;
    if outcome.accesses == 0 {
        let but = if warning.is_empty() { "" } else { "; " };
        bail!("{}: no access is in it{but}{warning}", trace.display());
    }
    if !warning.is_empty() {
        note(&format!(
            "{}: {warning}; what is there was replayed",
            trace.display()
        ));
    }
    if let Some(lost) = lost {
        let trace = trace.display();
        note(&format!("{trace}: {lost}; the others were replayed"));
    }
    let scripts = scripts.first().map(|script| script.figures());
    put_json(
        json,
        &ReplayJson {
            outcome: &outcome,
            scripts,
        },
    )?;
    let text = ReplaySummary {
        outcome: &outcome,
        scripts,
        config: &config,
        meta: &meta,
    };
    summary(&files, &text.to_string())?;
    match scripts.and_then(|figures| figures.failure()) {
        Some(failure) => bail!(failure),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn settings(
    args: &ReplayArgs,
    trace: &Path,
    meta: &TraceMeta,
) -> Result<(FileReplay, Vec<Arc<Scripts>>)> {
    let missing = |option: &str, what: &str| {
        Error::new(Mistake(format!(
            "{}: the trace names no {what}; give one with {option}",
            trace.display()
        )))
    };
    let device_memory = match args.device_memory {
        Some(Size(bytes)) => bytes,
        None if meta.device_memory == 0 => {
            return Err(missing("--device-memory", "device memory"));
        }
        None => meta.device_memory,
    };
    let log = messages::of_scripts();
    let chosen = match &args.policy {
        Some(policy) => policy.load(Limits::default(), log)?,
        None if meta.policy.is_empty() => return Err(missing("--policy", "policy")),
        None => recorded(meta, log).map_err(failed(format!(
            "{}: give a policy with --policy",
            trace.display()
        )))?,
    };
    let fidelity = as_in_trace(args.accesses, &meta.fidelity, "--accesses", trace)?;
    let links = as_in_trace(args.link.clone(), &meta.link, "--link", trace)?;
    let batch = args.eviction_batch.or(meta.eviction_batch);
    chosen.check_told(fidelity)?;
    let settings = FileReplay {
        fidelity,
        eviction_batch: batch.unwrap_or(EVICTION_BATCH),
        policy: chosen.factory,
        device_memory,
        links,
        optimal: !args.no_optimal,
    };
    Ok((settings, chosen.scripts))
}

/// Returns what the user chose; otherwise what the trace says, which may come from others; otherwise the default.
fn as_in_trace<T: Default + FromStr<Err = String>>(
    given: Option<T>,
    recorded: &str,
    option: &str,
    trace: &Path,
) -> Result<T> {
    match given {
        Some(given) => Ok(given),
        None if recorded.is_empty() => Ok(T::default()),
        None => recorded.parse().map_err(|error: String| {
            let error = excerpt(&error, SHOWN_POLICY);
            anyhow!("{}: {error}; give it with {option}", trace.display())
        }),
    }
}

/// Bytes that are shown of a trace's policy, and of what is wrong with it, which may quote it.
const SHOWN_POLICY: usize = 400;
const SHOWN_MISTAKE: usize = 2000;

/// Loads the policy that a trace names. The trace may come from others: of files, only those are opened of which it says what
/// was in them, and nothing is run unless that is still so.
fn recorded(meta: &TraceMeta, log: Log) -> Result<Chosen> {
    let policy = &meta.policy;
    let shown = excerpt(policy, SHOWN_POLICY);
    // Traces of version 0.1.0 count blocks.
    if [PART, "; blocks "].iter().any(|part| policy.contains(part)) {
        bail!(
            "it was recorded with policies for parts of memory, which a replay does not have ({shown})"
        );
    }
    let file = |(path, sha256): (&String, &String)| PolicyFile {
        path: path.into(),
        sha256: sha256.clone(),
    };
    let files: Vec<_> = meta.policy_files.iter().map(file).collect();
    let chosen = PolicyChoice::load_recorded(policy, &files, Limits::default(), log);
    let mistake = |error| anyhow!(excerpt(&limits::explain(&error), SHOWN_MISTAKE));
    chosen
        .map_err(mistake)
        .map_err(failed(format!("it was recorded with policy `{shown}`")))
}

/// The outcome, to be written as JSON.
#[derive(Serialize)]
struct ReplayJson<'a> {
    #[serde(flatten)]
    outcome: &'a Replayed,
    /// The scripts' figures, with the names that the report of a run has for them.
    scripts: Option<ScriptFigures>,
}

/// Displays the outcome as text.
struct ReplaySummary<'a> {
    outcome: &'a Replayed,
    scripts: Option<ScriptFigures>,
    config: &'a ReplayConfig,
    meta: &'a TraceMeta,
}

impl fmt::Display for ReplaySummary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings(f)?;
        self.migrations(f)?;
        self.time(f)?;
        if self.meta.kind == TraceKind::Access && !self.outcome.has_device_accesses() {
            writeln!(f, "{NO_DEVICE}")?;
        }
        Ok(())
    }
}

impl ReplaySummary<'_> {
    /// Writes what was replayed, and under what.
    fn settings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match (self.meta.kind, self.meta.fidelity.as_str()) {
            (TraceKind::Live, "all") => {
                "a live run: the faults of CPUs, and all accesses of devices"
            }
            (TraceKind::Live, "bits") => {
                "a live run: its faults, and the accessed bits that were looked at"
            }
            (TraceKind::Live, _) => {
                "the faults of a live run: accesses between them are not in the trace"
            }
            (TraceKind::Access, _) => "all accesses",
        };
        let name = printable(self.meta.name());
        writeln!(f, "trace           {name}, {kind}")?;
        let failed = mark_of_scripts(self.scripts.as_ref());
        let policy = printable(&self.outcome.policy);
        writeln!(f, "policy          {policy}{failed}")?;
        if let Some(figures) = &self.scripts {
            writeln!(f, "policy script   {}", of_scripts(figures))?;
        }
        writeln!(
            f,
            "device memory   {}, of {} of managed memory",
            Size(self.config.device_memory),
            Size(self.config.memory)
        )?;
        if self.config.fidelity != Fidelity::default() {
            writeln!(f, "accesses told   {}", self.config.fidelity)?;
        }
        writeln!(f, "link            {}", self.config.links)
    }

    /// Writes how many accesses and faults there were, and what migrated for them.
    fn migrations(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.outcome;
        writeln!(f, "accesses        {}", grouped(outcome.accesses))?;
        writeln!(
            f,
            "faults          {} by CPUs, {} by devices",
            grouped(outcome.cpu_faults),
            grouped(outcome.device_faults)
        )?;
        writeln!(
            f,
            "migrated        {} pages to devices, {} back; {} prefetched",
            grouped(outcome.pages_to_device),
            grouped(outcome.pages_to_system),
            grouped(outcome.prefetched)
        )?;
        if outcome.pages_between_devices > 0 {
            writeln!(
                f,
                "                {} pages from one device directly to another, {}",
                grouped(outcome.pages_between_devices),
                bytes(outcome.bytes_between_devices)
            )?;
        }
        if let Some(unused) = outcome.unused {
            writeln!(
                f,
                "unused          prefetched for nothing {} pages, which moved on before they were accessed",
                grouped(unused)
            )?;
        }
        if outcome.advice_cut > 0 {
            writeln!(f, "advice cut      {} times", grouped(outcome.advice_cut))?;
        }
        writeln!(f, "evicted         {} pages", grouped(outcome.evicted))?;
        writeln!(
            f,
            "in place        {} translations given, {} accesses through them",
            grouped(outcome.mapped_in_place),
            grouped(outcome.remote_accesses)
        )?;
        writeln!(
            f,
            "thrashing       {} pages returned to a device three times or more",
            grouped(outcome.thrashing_pages)
        )
    }

    /// Writes what the migrations cost, and how that compares with the optimum.
    fn time(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.outcome;
        writeln!(
            f,
            "link traffic    {} to devices, {} back, in {}",
            bytes(outcome.bytes_to_device),
            bytes(outcome.bytes_to_system),
            count(outcome.transfers, "transfer")
        )?;
        writeln!(f, "modelled time   {}", time(outcome.modelled_ns as f64))?;
        if let Some(least) = &outcome.optimal
            && least.pages_to_device > 0
        {
            writeln!(
                f,
                "optimal (MIN)   {} pages to the device; this policy moved {:.2} times as many",
                grouped(least.pages_to_device),
                outcome.pages_to_device as f64 / least.pages_to_device as f64
            )?;
        }
        Ok(())
    }
}
