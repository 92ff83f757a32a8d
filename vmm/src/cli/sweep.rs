//! `hmmvisor sweep`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io;
use std::iter;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use hmm_backend::EVICTION_BATCH;
use hmm_backend::pages::PAGE_SIZE;
use hmmvisor::config::Config;
use hmmvisor::host::Host;
use hmmvisor::messages;
use hmmvisor::size::Size;
use hmmvisor_accesses::Settings as Accesses;
use hmmvisor_experiments::figures::count;
use hmmvisor_experiments::replay::FileReplay;
use hmmvisor_experiments::sweep::{
    Measured, PAGE, Parallel, Runner, Settings, Shard, Source, Sweep, SweepRun, TABLES, TraceFacts,
    Workload, merge,
};
use hmmvisor_experiments::trace::{Tail, TraceReader};
use hmmvisor_guest_images as guest_images;
use hmmvisor_policies::{Chosen, Limits, PolicyChoice, ScriptFigures};
use parking_lot::Mutex;
use serde::Deserialize;
use tempfile::TempDir;

use super::mistake::Mistake;
use super::output::{note, print};
use super::replay::NO_DEVICE;

/// Options of `sweep`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SweepArgs {
    #[command(subcommand)]
    command: Option<SweepCommand>,
    /// What to run; docs/sweeps.md describes the file
    #[arg(value_name = "FILE.toml", required = true)]
    file: Option<PathBuf>,
    /// Where the results go [default: the file's name without .toml]
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// How many runs at a time [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    jobs: Option<u16>,
    /// Only this part of the sweep, such as 2/8
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Go on where an earlier `sweep` into the same folder was stopped
    #[arg(long)]
    resume: bool,
}

#[derive(Subcommand)]
enum SweepCommand {
    /// Put the shards of a sweep together
    Merge {
        /// The folders of all shards
        #[arg(value_name = "DIR", required = true)]
        folders: Vec<PathBuf>,
        /// Where the whole goes
        #[arg(long, short, value_name = "OUT")]
        output: PathBuf,
    },
}

/// Runs or merges a sweep, as the arguments say.
pub fn sweep(args: SweepArgs) -> Result<ExitCode> {
    if let Some(SweepCommand::Merge { folders, output }) = args.command {
        is_folder(&output)?;
        let merged = merge(&folders, &output)?;
        let runs = count(merged.runs as u64, "run");
        print(&format!("{runs}: {}\n", results(&output)))?;
        return end(&merged.failed, &merged.idle);
    }
    let Some(file) = args.file else {
        bail!(Mistake("no sweep file given".into()));
    };
    let folder = args.output.unwrap_or_else(|| file.with_extension(""));
    is_folder(&folder)?;
    let runner = CommandRunner::new(&folder);
    let sweep = Sweep::read(&file, &runner)?;
    let policies: BTreeSet<&str> = sweep.runs.iter().map(|run| &*run.policy.spec).collect();
    let policies = policies.into_iter().flat_map(PolicyChoice::named_files);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let settings = Settings {
        folder,
        reads: iter::once(("the sweep file", file))
            .chain(policies.map(|file| (file.what, file.path)))
            .collect(),
        shard: args.shard.unwrap_or(Shard::WHOLE),
        resume: args.resume,
        parallel: Parallel {
            jobs: args.jobs.map_or(cores, usize::from),
            live: sweep.live_at_a_time.unwrap_or((cores / 2).max(1)),
        },
        progress: true,
    };
    let done = sweep.start(&settings, &runner)?;
    let failed = done.failed.len();
    let mut text = format!("{} done", count((done.runs - failed) as u64, "run"));
    if failed > 0 {
        text += &format!(", {failed} failed");
    }
    if done.skipped > 0 {
        text += &format!(", {} done before", done.skipped);
    }
    print(&format!("{text}: {}\n", results(&settings.folder)))?;
    end(&done.failed, &done.idle)
}

/// Refuses `-`, which is standard output for every other command.
fn is_folder(output: &Path) -> Result<()> {
    match output.as_os_str() == "-" {
        true => bail!(Mistake(
            "a sweep's results are files in a folder and cannot go to standard output; name a folder with -o".into()
        )),
        false => Ok(()),
    }
}

/// Returns an error that names the runs that failed, if there are some, whichever process of the sweep did them.
fn end(failed: &[String], idle: &BTreeSet<String>) -> Result<ExitCode> {
    for trace in idle {
        note(&format!("{trace}: {NO_DEVICE}"));
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!(
        "{} failed; --resume tries {} again\n  {}",
        count(failed.len() as u64, "run"),
        if failed.len() == 1 { "it" } else { "them" },
        failed.join("\n  ")
    )
}

/// Says where the results are.
fn results(folder: &Path) -> String {
    let [csv, parquet] = TABLES;
    format!("{csv}, {parquet} and {PAGE} in {}", folder.display())
}

/// Returns a command for the program of this process, also after its file has been replaced or removed: all runs of a sweep
/// are done by the program that began it.
fn this_program() -> Command {
    // The new process looks the name up, and is this program until then.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("hmmvisor");
    command
}

impl Runner for CommandRunner {
    fn policy(&self, spec: &str) -> Result<String, String> {
        // Mistakes in scripts are to be found before anything runs.
        Ok(loaded(spec)?.factory.exact())
    }

    fn workload(&self, source: &Source) -> Result<(), String> {
        let (Source::Live(workload) | Source::Model(workload)) = source else {
            return Err("a trace is no workload".to_owned());
        };
        let found = guest_images::find(&workload.name).map_err(text)?;
        found.cmdline(&workload.params).map_err(text)?;
        if matches!(source, Source::Model(_)) {
            let settings = accesses(workload, 1);
            return hmmvisor_accesses::check(&settings).map(drop).map_err(text);
        }
        let mut config = Config::default();
        config.engine.kind = workload.engine.parse()?;
        config.machine.vcpus = workload.vcpus;
        config.machine.memory = Size(workload.memory);
        config.devices.count = workload.devices;
        // Device memory has been, or will be, compared with guest memory.
        config.devices.memory = Size(PAGE_SIZE);
        config.check(&Host::here()).map_err(text)
    }

    fn trace(&self, path: &Path) -> Result<TraceFacts, String> {
        let reader = TraceReader::open(path).map_err(text)?;
        FileReplay::check(&reader).map_err(text)?;
        if let Some(lost) = reader.totals().lost() {
            return Err(format!(
                "{lost}, so that results would be of something else"
            ));
        }
        match reader.tail() {
            Tail::Complete => Ok(TraceFacts {
                memory: reader.meta().memory,
                seed: reader.meta().seed,
            }),
            Tail::Unfinished | Tail::Truncated { .. } | Tail::Corrupt { .. } => Err(
                "it is not complete, so that results would depend on where it ends; `hmmvisor trace info` says more"
                    .to_owned(),
            ),
        }
    }

    fn run(&self, run: &SweepRun) -> Result<Measured, String> {
        match &run.source {
            Source::Live(workload) => self.live(workload, run),
            Source::Trace(trace) => {
                trace.unchanged()?;
                let measured = replayed(&trace.path, run)?;
                // It may have been changed while it was read.
                trace.unchanged().map(|()| measured)
            }
            Source::Model(workload) => replayed(&self.access_trace(workload, run.seed)?, run),
        }
    }
}

/// Does live runs in processes of their own: they measure their own memory and threads, and one that crashes takes no
/// other with it. Has access traces of workloads, each made when it is first wanted, however many runs want it.
///
/// The traces are in a folder of their own, which is made with the first of them: runs begin when the journal is locked, so a
/// sweep that is refused touches nothing. Its name is new, so what goes at the end is what this process has made.
struct CommandRunner {
    /// The sweep's.
    folder: PathBuf,
    own: OnceLock<Result<TempDir, String>>,
    made: Mutex<BTreeMap<String, Arc<Made>>>,
}

/// A trace and its number, which tells traces of one workload with other parameters apart.
struct Made {
    number: usize,
    path: OnceLock<Result<PathBuf, String>>,
}

impl CommandRunner {
    /// Makes a runner for a sweep whose results go to this folder.
    fn new(folder: &Path) -> CommandRunner {
        CommandRunner {
            folder: folder.to_owned(),
            own: OnceLock::new(),
            made: Mutex::default(),
        }
    }

    fn own(&self) -> Result<&Path, String> {
        let make = || {
            tempfile::Builder::new()
                .prefix("traces-")
                .tempdir_in(&self.folder)
                .map_err(|error| {
                    let folder = self.folder.display();
                    format!("making a folder for access traces in {folder}: {error}")
                })
        };
        let own = self.own.get_or_init(make).as_ref();
        own.map(TempDir::path).map_err(Clone::clone)
    }

    fn access_trace(&self, workload: &Workload, seed: u64) -> Result<PathBuf, String> {
        let key = format!("{workload:?} {seed}");
        let made = {
            let mut all = self.made.lock();
            let number = all.len();
            let path = OnceLock::new();
            let new = || Arc::new(Made { number, path });
            all.entry(key).or_insert_with(new).clone()
        };
        // Others that want it wait here; those that want another one do not.
        let make = || {
            let name = format!("{}-{seed}-{}.hmmtrace", workload.name, made.number);
            let path = self.own()?.join(name);
            self.generate(workload, seed, &path)?;
            Ok(path)
        };
        made.path.get_or_init(make).clone()
    }

    /// Makes a trace in a process of its own: the guest's sources have state that outlives them, so what one run leaves behind
    /// would keep others from being made, and only processes can make several at a time.
    fn generate(&self, workload: &Workload, seed: u64, path: &Path) -> Result<(), String> {
        let mut command = this_program();
        command.args(["trace", "generate", &workload.name, "--output"]);
        command.arg(path);
        output(command, workload, seed).and_then(|output| succeeded(&output))
    }
}

/// Runs this program with a workload's machine and parameters, and returns what it prints.
fn output(mut command: Command, workload: &Workload, seed: u64) -> Result<Output, String> {
    command
        .arg(format!("--vcpus={}", workload.vcpus))
        .arg(format!("--devices={}", workload.devices))
        .arg(format!("--memory={}", workload.memory))
        .arg(format!("--seed={seed}"));
    for (name, value) in &workload.params {
        command.arg(format!("--param={name}={value}"));
    }
    end_with_parent(&mut command);
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("starting this program in another process: {error}"))
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// Returns the error of a command that has failed.
fn succeeded(output: &Output) -> Result<(), String> {
    if output.status.success() {
        return Ok(());
    }
    // Before its error, a run says what the guest has said.
    let errors = String::from_utf8_lossy(&output.stderr);
    let error = errors.rsplit("hmmvisor: error: ").next();
    let error = error.unwrap_or_default().trim();
    Err(format!("{}: {error}", output.status))
}

fn accesses(workload: &Workload, seed: u64) -> Accesses {
    Accesses {
        workload: workload.name.clone(),
        params: workload.params.clone(),
        vcpus: workload.vcpus,
        devices: workload.devices,
        memory: workload.memory,
        seed,
    }
}

/// Loads a policy; if it is a script, its file is read.
fn loaded(spec: &str) -> Result<Chosen, String> {
    let choice: PolicyChoice = spec.parse().map_err(text)?;
    choice
        .load(Limits::default(), messages::of_scripts())
        .map_err(text)
}

/// Whether a run was under the policy that the sweep is about; files may have changed since it began.
fn unchanged(run: &SweepRun, ran: &str) -> Result<(), String> {
    match ran == run.policy.exact {
        true => Ok(()),
        false => Err(format!(
            "the policy is `{ran}` now, and was `{}` when the sweep began",
            run.policy.exact
        )),
    }
}

/// Returns the failure of a run's script as its only result, because what was measured are density's figures; none if
/// the script did not fail.
fn measured_nothing(script: &ScriptFigures) -> Option<Measured> {
    Some(Measured {
        script_failures: Some(script.failures),
        error: Some(script.failure()?),
        ..Measured::default()
    })
}

/// Replays a trace. The flag says that it is an access trace in which no device accesses anything.
fn replayed(path: &Path, run: &SweepRun) -> Result<Measured, String> {
    let reader = TraceReader::open(path).map_err(text)?;
    let link = run.link.as_ref();
    // Each run has a script of its own, whose figures are of this run alone.
    let chosen = loaded(&run.policy.spec)?;
    chosen.check_told(run.fidelity).map_err(text)?;
    let Chosen { factory, scripts } = chosen;
    unchanged(run, &factory.exact())?;
    let settings = FileReplay {
        fidelity: run.fidelity,
        eviction_batch: EVICTION_BATCH,
        policy: factory,
        device_memory: run.device_memory,
        links: link.map(|link| link.model).unwrap_or_default().into(),
        optimal: run.optimal,
    };
    let outcome = settings.run(reader).map_err(text)?;
    let script = scripts.first().map(|script| script.figures());
    if let Some(failed) = script.as_ref().and_then(measured_nothing) {
        return Ok(failed);
    }
    let optimal = outcome.optimal.as_ref();
    Ok(Measured {
        accesses: Some(outcome.accesses),
        cpu_faults: Some(outcome.cpu_faults),
        device_faults: Some(outcome.device_faults),
        mapped_in_place: Some(outcome.mapped_in_place),
        remote_accesses: Some(outcome.remote_accesses),
        pages_to_device: Some(outcome.pages_to_device),
        pages_to_system: Some(outcome.pages_to_system),
        bytes_to_device: Some(outcome.bytes_to_device),
        bytes_to_system: Some(outcome.bytes_to_system),
        pages_between_devices: Some(outcome.pages_between_devices),
        bytes_between_devices: Some(outcome.bytes_between_devices),
        evicted: Some(outcome.evicted),
        prefetched: Some(outcome.prefetched),
        bits_read: Some(outcome.bits_read),
        unused: outcome.unused,
        thrashing_pages: Some(outcome.thrashing_pages),
        transfers: Some(outcome.transfers),
        modelled_ns: Some(outcome.modelled_ns),
        optimal_pages_to_device: optimal.map(|least| least.pages_to_device),
        script_failures: script.map(|figures| figures.failures),
        ..Measured::default()
    })
}

impl CommandRunner {
    fn live(&self, workload: &Workload, run: &SweepRun) -> Result<Measured, String> {
        let mut command = this_program();
        command
            .args(["run", "--json", "-"])
            .args(["--workload", &workload.name])
            .args(["--policy", &run.policy.spec])
            .args(["--engine", &workload.engine])
            .arg(format!("--device-memory={}", run.device_memory))
            .arg(format!("--accesses={}", run.fidelity));
        let output = output(command, workload, run.seed)?;
        let report: Result<RunReport, _> = serde_json::from_slice(&output.stdout);
        // A run whose script failed ends with an error, too, but has a report that says so.
        let script = report.as_ref().ok().and_then(|it| it.scripts.as_ref());
        if script.is_none_or(|script| !script.failed()) {
            succeeded(&output)?;
        }
        let report = report.map_err(|error| format!("its JSON report: {error}"))?;
        unchanged(run, &report.policy_exact)?;
        measured(report)
    }
}

/// Lets the process be killed when the thread that starts it dies: a sweep that is killed takes its runs with it.
fn end_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let tied = move || {
        // SAFETY: these calls take and return plain numbers.
        let (tied, now) = unsafe {
            let tied = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            (tied, libc::getppid())
        };
        match tied {
            // The parent may have died before.
            0 if now as u32 == parent => Ok(()),
            0 => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between `fork` and `exec` it makes two system calls, which are async-signal-safe, and touches no memory
    // but its own stack: the errors that it makes are numbers.
    unsafe { command.pre_exec(tied) };
}

/// What a sweep reads of a run's JSON report. A name that the report does not have is an error.
#[derive(Deserialize)]
struct RunReport {
    policy_exact: String,
    // Null in most reports, but never absent.
    #[serde(deserialize_with = "Option::deserialize")]
    scripts: Option<ScriptFigures>,
    engine: String,
    cpu_faults: u64,
    device_faults: u64,
    pages_to_device: u64,
    pages_to_system: u64,
    pages_between_devices: u64,
    counters: RunCounters,
    migrations: RunMigrations,
    elapsed_s: f64,
    fault_latency_us: RunLatency,
}

/// The counters that a sweep reads.
#[derive(Deserialize)]
struct RunCounters {
    mapped_in_place: u64,
}

/// The pages that migrated, by those causes that a sweep tells apart.
#[derive(Deserialize)]
struct RunMigrations {
    eviction: u64,
    prefetch: u64,
}

/// The quantiles of a latency that a sweep reads, in microseconds.
#[derive(Deserialize)]
struct RunLatency {
    p50: f64,
    p99: f64,
}

/// Returns the figures of a run, or why they are no result.
fn measured(report: RunReport) -> Result<Measured, String> {
    let script = report.scripts.as_ref();
    if script.is_some_and(|figures| figures.reloads > 0) {
        return Err("the policy's script was changed while it ran".to_owned());
    }
    if let Some(failed) = script.and_then(measured_nothing) {
        return Ok(failed);
    }
    Ok(Measured {
        script_failures: script.map(|figures| figures.failures),
        engine: Some(report.engine),
        cpu_faults: Some(report.cpu_faults),
        device_faults: Some(report.device_faults),
        mapped_in_place: Some(report.counters.mapped_in_place),
        pages_to_device: Some(report.pages_to_device),
        pages_to_system: Some(report.pages_to_system),
        bytes_to_device: Some(report.pages_to_device * PAGE_SIZE),
        bytes_to_system: Some(report.pages_to_system * PAGE_SIZE),
        pages_between_devices: Some(report.pages_between_devices),
        bytes_between_devices: Some(report.pages_between_devices * PAGE_SIZE),
        evicted: Some(report.migrations.eviction),
        prefetched: Some(report.migrations.prefetch),
        elapsed_s: Some(report.elapsed_s),
        fault_p50_us: Some(report.fault_latency_us.p50),
        fault_p99_us: Some(report.fault_latency_us.p99),
        ..Measured::default()
    })
}

#[cfg(test)]
mod tests {
    use hmm_backend::pages::Fidelity;
    use std::fs;

    use hmmvisor_experiments::output::Files;
    use hmmvisor_experiments::sweep::Policy;
    use hmmvisor_experiments::trace::generate;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_ran_under_another_script_is_no_result() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("p.luau");
        let write = |text: &str| fs::write(&script, text).unwrap();
        write("return { on_fault = function(page) return page + 1, 4 end }");
        let spec = script.display().to_string();
        let workload = Workload {
            name: "pingpong".to_owned(),
            params: vec![("pages".to_owned(), "16".to_owned())],
            vcpus: 1,
            devices: 1,
            engine: "auto".to_owned(),
            memory: 16 << 20,
        };
        let trace = folder.path().join("t");
        let output = Files::default().whole("the trace", &trace).unwrap();
        generate(&accesses(&workload, 1), output).unwrap();
        let run = SweepRun {
            index: 0,
            source: Source::Model(workload),
            policy: Policy {
                exact: loaded(&spec).unwrap().factory.exact(),
                spec,
            },
            device_memory: 1 << 20,
            fidelity: Fidelity::default(),
            link: None,
            seed: 1,
            optimal: false,
        };
        let figures = replayed(&trace, &run).unwrap();
        assert_eq!(figures.script_failures, Some(0));
        write("return { on_fault = function(page) return page + 1, 8 end }");
        let error = replayed(&trace, &run).unwrap_err();
        assert!(error.contains("when the sweep began"), "{error}");
        // And of a live run.
        let live = |reloads: u64| {
            let mut report = report();
            report["scripts"] =
                json!({"decisions": 4, "failures": 3, "reloads": reloads, "instances_off": 0});
            measured(serde_json::from_value(report).unwrap())
        };
        assert_eq!(live(0).unwrap().script_failures, Some(3));
        assert!(live(1).unwrap_err().contains("while it ran"));
    }

    /// Returns what a sweep reads of a run's report.
    fn report() -> Value {
        json!({
            "policy_exact": "on-demand", "scripts": null, "engine": "move", "cpu_faults": 1, "device_faults": 2,
            "pages_to_device": 3, "pages_to_system": 4, "pages_between_devices": 0, "counters": {"mapped_in_place": 5},
            "migrations": {"eviction": 6, "prefetch": 7}, "elapsed_s": 0.5, "fault_latency_us": {"p50": 1.0, "p99": 2.0},
        })
    }

    #[test]
    fn a_report_that_lacks_a_figure_is_no_result() {
        let figures = measured(serde_json::from_value(report()).unwrap()).unwrap();
        assert_eq!(figures.bytes_to_system, Some(4 * PAGE_SIZE));
        assert_eq!(
            (figures.mapped_in_place, figures.prefetched),
            (Some(5), Some(7))
        );
        for path in ["", "/counters", "/migrations", "/fault_latency_us"] {
            let names = report().pointer(path).unwrap().as_object().unwrap().clone();
            for name in names.keys() {
                let mut report = report();
                let object = report.pointer_mut(path).unwrap().as_object_mut().unwrap();
                object.remove(name);
                let error = serde_json::from_value::<RunReport>(report).err().unwrap();
                assert!(error.to_string().contains(name), "{error}");
            }
        }
    }

    #[test]
    fn a_trace_that_has_changed_gives_no_result() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let workload = Workload {
            name: "pingpong".to_owned(),
            params: vec![("pages".to_owned(), "16".to_owned())],
            vcpus: 1,
            devices: 1,
            engine: "auto".to_owned(),
            memory: 16 << 20,
        };
        let make = |seed| {
            let output = Files::default().whole("the trace", &path).unwrap();
            generate(&accesses(&workload, seed), output).unwrap();
        };
        make(1);
        let file = folder.path().join("s.toml");
        let sweep = "title = 't'\npolicies = ['on-demand']\ndevice_memory = ['1M']\n\
                     [[trace]]\nname = 't'\nfiles = ['t']\n";
        fs::write(&file, sweep).unwrap();
        let runner = CommandRunner::new(folder.path());
        let sweep = Sweep::read(&file, &runner).unwrap();
        runner.run(&sweep.runs[0]).unwrap();
        // The same text under the same name is another file.
        make(1);
        let error = runner.run(&sweep.runs[0]).unwrap_err();
        assert!(error.contains("changed since the sweep began"), "{error}");
        fs::remove_file(&path).unwrap();
        let error = runner.run(&sweep.runs[0]).unwrap_err();
        assert!(error.contains("looking at trace"), "{error}");
    }
}
