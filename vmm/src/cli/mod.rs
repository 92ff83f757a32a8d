//! The command line.

pub mod check;
pub mod ctl;
pub mod failed;
mod manual;
pub mod mistake;
pub mod output;
pub mod replay;
pub mod report;
pub mod run;
pub mod scripts;
pub mod sweep;
#[cfg(feature = "tui")]
pub mod top;
mod trace;

use clap::{Args, CommandFactory, Parser, Subcommand};
use hmmvisor_policies::PolicyChoice;

use ctl::CtlArgs;
use manual::{CompletionsArgs, ManArgs};
use replay::ReplayArgs;
use report::ReportArgs;
use run::RunArgs;
use sweep::SweepArgs;
#[cfg(feature = "tui")]
use top::TopArgs;

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
    /// The options of `run`, for when the command is left out.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What can be done.
#[derive(Subcommand)]
pub enum Command {
    /// Run a guest, let it verify its results, print a summary; or boot an operating system with --kernel
    ///
    /// The exit code is 0 only if the guest verified everything, or an operating system switched the
    /// machine off or rebooted it. Otherwise it is the guest's own (of the embedded one: 1 wrong data, 2 panic, 3 cannot start), 1 for any other
    /// failure, 2 for a wrong command line or a wrong value in a configuration, 130 after SIGINT and 143 after SIGTERM. Output that could not be written, or was not read in time, is a failure, too.
    /// Signals end a run within one second, and what was ignored at the start stays ignored.
    Run(Box<RunArgs>),
    /// List the embedded guest's workloads and their parameters
    Workloads,
    /// List the migration policies, their parameters and the example scripts; or check a script
    Policies(PoliciesArgs),
    /// Drive a policy with a recorded trace, without a guest
    ///
    /// Nothing is measured: the same policy and page states as in a run decide what would have migrated, and a model
    /// of the link says how long that would have taken. The same trace and options give the same output.
    Replay(ReplayArgs),
    /// Look into recorded traces, write them for other programs
    #[command(subcommand)]
    Trace(trace::TraceCommand),
    /// Ask a running machine, or have it do something: see where its pages are, move them, change its policy
    ///
    /// The machine must have been started with --api. The exit code is 0 if it has answered and done what was asked.
    Ctl(CtlArgs),
    /// Watch a running machine in a terminal, and steer it by keys
    ///
    /// Shows where memory is, faults and migrations by cause, latencies, and the accelerators. The machine must have been started with
    /// --api. Colours are left out if NO_COLOR is set.
    #[cfg(feature = "tui")]
    Top(TopArgs),
    /// Find out whether this machine can run guests, and what to do if not
    Check,
    /// Run workloads or replay traces under many policies and sizes, and tabulate the results
    Sweep(SweepArgs),
    /// Make a page with plots about a run or a sweep
    Report(ReportArgs),
    /// Print what a shell needs to complete this command line
    ///
    /// For example: hmmvisor completions bash > /usr/share/bash-completion/completions/hmmvisor
    Completions(CompletionsArgs),
    /// Print the manual page, or that of a command
    ///
    /// For example: hmmvisor man run | man --local-file -
    Man(ManArgs),
}

/// Options of `policies`.
#[derive(Args)]
pub struct PoliciesArgs {
    /// Check a policy script, like `stride.luau:window=32`, instead: load it and let it decide in a short replay. What is wrong is
    /// said with file and line
    #[arg(long, value_name = "FILE")]
    pub check: Option<PolicyChoice>,
}

/// Returns the commands' names.
fn commands() -> String {
    let command = Cli::command();
    let names: Vec<_> = command.get_subcommands().map(|c| c.get_name()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmmvisor::config::Config;

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
