//! The command line.

pub mod replay;
pub mod report;
pub mod sweep;
mod trace;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};
use hmm_backend::EngineChoice;
use hmmvisor::OnMemoryError;
use hmmvisor::config::{Config, DeviceKind};
use hmmvisor::size::Size;
use hmmvisor_policies::PolicyChoice;

use replay::ReplayArgs;
use report::ReportArgs;
use sweep::SweepArgs;

/// Runs guests whose memory pages migrate between system memory and the memory of emulated
/// accelerators, on /dev/kvm.
///
/// Without a command it does what `run` does; without anything it runs the embedded guest with the
/// default workload.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do; `run` if left out.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// For `run` without saying so.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What can be done.
#[derive(Subcommand)]
pub enum Command {
    /// Run a guest, let it verify its results, print a summary
    ///
    /// The exit code is 0 only if the guest verified everything. Otherwise it is the guest's own
    /// (1 wrong data, 2 panic, 3 cannot start), 1 for any other failure, 2 for a wrong command line,
    /// 130 after SIGINT and 143 after SIGTERM.
    Run(Box<RunArgs>),
    /// List the embedded guest's workloads and their parameters
    Workloads,
    /// List the migration policies and their parameters
    Policies,
    /// Drive a policy with a recorded trace, without a guest
    ///
    /// Nothing is measured: the same policy and page states as in a run decide what would have migrated, and a model
    /// of the link says how long that would have taken. The same trace and options give the same output.
    Replay(ReplayArgs),
    /// Look into recorded traces, write them for other programs
    #[command(subcommand)]
    Trace(trace::TraceCommand),
    /// Find out whether this machine can run guests, and what to do if not
    Check,
    /// Run workloads or replay traces under many policies and sizes, and tabulate the results
    Sweep(SweepArgs),
    /// Make a page with plots about a run or a sweep
    Report(ReportArgs),
}

/// Options of `run`. Each overrides its key in the configuration file.
#[derive(Args)]
pub struct RunArgs {
    /// Configuration file; the options below override what it says
    #[arg(value_name = "CONFIG.toml")]
    config: Option<PathBuf>,
    /// Program to run in the guest; `hmmvisor workloads` lists them [default: vecadd]
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Parameter of the workload; may be given several times
    #[arg(long = "param", value_name = "K=V", value_parser = param)]
    params: Vec<(String, String)>,
    /// What migrates when, like `density:threshold=60+lru`; `hmmvisor policies` lists the parts; or a script's file, like `stride.luau:window=32+lru`
    #[arg(long, value_name = "SPEC")]
    policy: Option<PolicyChoice>,
    /// How pages migrate: auto, remap (moves them, Linux 6.8 or later) or copy [default: auto]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<EngineChoice>,
    /// Number of vCPUs, 1 to 64 [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    vcpus: Option<u32>,
    /// Guest memory whose pages migrate, like 64M or 1G [default: 256M]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<Size>,
    /// When a page that a vCPU accesses cannot be supplied: machine-check (the guest is told, and may
    /// recover) or end (of the run) [default: machine-check]
    #[arg(long, value_name = "WHAT")]
    on_memory_error: Option<OnMemoryError>,
    /// Memory of each accelerator [default: 16M]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    device_memory: Option<Size>,
    /// What that memory is: private (out of reach of vCPUs, pages migrate on faults) or coherent (reached by all in
    /// place, pages move only when the guest asks for it) [default: private]
    #[arg(long, value_name = "KIND")]
    device_kind: Option<DeviceKind>,
    /// Number of accelerators, 1 to 16 [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    devices: Option<u32>,
    /// Seed of the guest's pseudo-random numbers [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Run this ELF file instead of the embedded guest; docs/guest-abi.md says what it finds
    #[arg(long, value_name = "FILE")]
    guest: Option<PathBuf>,
    /// Write the figures as one JSON object; with `-` to standard output, and all else to standard
    /// error
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Write a trace of all faults, migrations and frees; `hmmvisor trace` reads it
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// The commands' names.
fn commands() -> String {
    let command = Cli::command();
    let names: Vec<_> = command.get_subcommands().map(|c| c.get_name()).collect();
    names.join(", ")
}

impl RunArgs {
    /// The configuration file, or the defaults, with the options on top.
    pub fn config(self) -> Result<Config> {
        let mut config = match &self.config {
            // More likely a mistyped command than a file.
            Some(path) if path.extension().is_none() && !path.exists() => bail!(
                "there is no configuration file `{0}`; if `{0}` was meant as a command: there are {1}, and they come first",
                path.display(),
                commands()
            ),
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        fn set<T>(place: &mut T, option: Option<T>) {
            if let Some(value) = option {
                *place = value;
            }
        }
        // Another workload has other parameters.
        if self.workload.is_some() && self.workload != config.workload.name {
            config.workload.params.clear();
        }
        config
            .workload
            .params
            .retain(|(name, _)| self.params.iter().all(|(given, _)| given != name));
        config.workload.params.extend(self.params);
        config.workload.name = self.workload.or(config.workload.name);
        config.guest = self.guest.or(config.guest);
        config.json = self.json.or(config.json);
        config.record = self.record.or(config.record);
        set(&mut config.policy.spec, self.policy);
        set(&mut config.engine.kind, self.engine);
        set(&mut config.machine.vcpus, self.vcpus);
        set(&mut config.machine.memory, self.memory);
        set(&mut config.machine.on_memory_error, self.on_memory_error);
        set(&mut config.devices.memory, self.device_memory);
        set(&mut config.devices.kind, self.device_kind);
        set(&mut config.devices.count, self.devices);
        set(&mut config.seed, self.seed);
        Ok(config)
    }
}

fn param(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err("write it as NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn config(args: &[&str]) -> Config {
        let args = ["hmmvisor"].iter().chain(args);
        Cli::try_parse_from(args)
            .map_err(|error| error.to_string())
            .unwrap()
            .run
            .config()
            .unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_override_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(
            &file,
            "seed = 5\n[machine]\nvcpus = 2\n[workload]\nname = \"bfs\"\nparams = { degree = 4, vertices = \"1K\" }\n",
        )
        .unwrap();
        let file = file.to_str().unwrap();

        let same = config(&[file, "--seed", "9", "--param", "degree=8"]);
        assert_eq!((same.seed, same.machine.vcpus), (9, 2));
        let pairs = |config: &Config| -> Vec<String> {
            config
                .workload
                .params
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect()
        };
        assert_eq!(pairs(&same), ["vertices=1K", "degree=8"]);

        let other = config(&[file, "--workload", "churn", "--param", "a=b=c"]);
        assert_eq!(other.workload.name.as_deref(), Some("churn"));
        assert_eq!(pairs(&other), ["a=b=c"]);
    }

    #[test]
    fn run_may_be_left_out() {
        let parse = |args: &[&str]| Cli::try_parse_from(["hmmvisor"].iter().chain(args));
        assert!(parse(&[]).unwrap().command.is_none());
        assert!(matches!(
            parse(&["run", "--vcpus", "2"]).unwrap().command,
            Some(Command::Run(_))
        ));
        assert!(matches!(
            parse(&["check"]).unwrap().command,
            Some(Command::Check)
        ));
        for bad in [
            ["--vcpus", "-1"],
            ["--vcpus", "x"],
            ["--memory", "1X"],
            ["--seed", "-1"],
            ["--param", "n"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
