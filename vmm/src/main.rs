//! The `hmmvisor` command.

mod cli;

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use clap::{CommandFactory, Parser};
use hmm_backend::limits::{self, Refusal, Resource};
use hmm_backend::policy::policies;
use hmmvisor::config::LogConfig;
use hmmvisor::config::console_choice::ConsoleChoice;
use hmmvisor::console::terminal::{RawTerminal, restore, take_memory_faults};
use hmmvisor::messages::{self, Format, Threshold};
use hmmvisor::outlet::MayClose;
use hmmvisor::run::outputs::{self, ConsoleFile, Outputs};
use hmmvisor::run::progress::Progress;
use hmmvisor::run::signals::Signals;
use hmmvisor::run::summary::Summary;
use hmmvisor::sandbox::{Mode, Sandbox};
use hmmvisor::{Config, Input, Options, Report};
use hmmvisor_experiments::output::{Files, Output};
use hmmvisor_experiments::steady::write_all;
use hmmvisor_guest_images::{Param, workloads};
use hmmvisor_policies::EXAMPLES;
use sd_notify::NotifyState;

use cli::check::{State, can_run, check};
use cli::failed::failed;
use cli::mistake::exit_code;
use cli::output::{READ_WITHIN, STORED_WITHIN, note, print, put, say, within};
use cli::run::RunArgs;
use cli::{Cli, Command, PoliciesArgs};

/// Calls [`take_memory_faults`] before `main`, and before the standard library prepares for it.
#[used]
// SAFETY: the section holds pointers to functions that the C library calls before `main`, when it is ready itself; the function
// makes system calls only.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = take_memory_faults;

fn main() -> ExitCode {
    // First: the clock measures from here. (What comes before, loading the program, takes about a millisecond; the CPU clocks
    // cannot tell it from what the shell or cargo did in this process before `exec`.)
    let started = Instant::now();
    limits::refuse_large_files();

    // The allocator can only end the process when it is refused memory.
    if let Err(error) = limits::room_for(0, 1) {
        messages::start(Format::Text, Threshold::default());
        say(None, format!("getting memory to begin with: {error}"));
        return ExitCode::FAILURE;
    }
    // Signals do what they do by default, here and in all commands but `run`: they end the process at once. What a sweep has
    // finished is on the disk.
    let Cli { command, run } = match Cli::try_parse() {
        Ok(cli) => cli,
        // What was asked for is help or the version.
        Err(answer) if !answer.use_stderr() => {
            messages::start(Format::Text, Threshold::default());
            return give(&answer);
        }
        Err(mistake) => mistake.exit(),
    };
    let command = command.unwrap_or(Command::Run(Box::new(run)));
    // A run's configuration says how its messages are written.
    if !matches!(command, Command::Run(_)) {
        messages::start(Format::Text, Threshold::default());
    }
    let result = match command {
        Command::Run(args) => run_guest(*args, started),
        Command::Workloads => print(&list_of_workloads()).map(|()| ExitCode::SUCCESS),
        Command::Policies(PoliciesArgs { check: None }) => {
            print(&list_of_policies()).map(|()| ExitCode::SUCCESS)
        }
        Command::Policies(PoliciesArgs {
            check: Some(script),
        }) => cli::scripts::check(script),
        Command::Replay(args) => cli::replay::replay(args),
        Command::Trace(command) => command.run(),
        Command::Ctl(args) => cli::ctl::ctl(args),
        #[cfg(feature = "tui")]
        Command::Top(args) => cli::top::top(args),
        Command::Check => print_check(),
        Command::Sweep(args) => cli::sweep::sweep(args),
        Command::Report(args) => cli::report::report(&args),
        Command::Completions(args) => args.print(Cli::command()),
        Command::Man(args) => args.print(Cli::command()),
    };
    result.unwrap_or_else(|error| {
        say(None, limits::explain(error.as_ref()));
        exit_code(&error)
    })
}

/// Prints help or the version.
fn give(answer: &clap::Error) -> ExitCode {
    match answer.print().and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            say(None, format!("writing to standard output: {error}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

fn run_guest(args: RunArgs, started: Instant) -> Result<ExitCode> {
    let mut files = Files::default();
    if let Some(file) = args.file() {
        files.reads("the configuration file", file);
    }
    let LogConfig { format, level } = args.log();
    let config = args
        .config()
        .inspect_err(|_| messages::start(format, level))?;
    messages::start(config.log.format, config.log.level);
    // Before any thread is started that is to be confined.
    let sandbox = sandbox(&config)?;
    // Signals are taken before anything that may take long, and before any other thread is started.
    let signals = Signals::start()
        .map_err(|error| Refusal::new(Resource::Thread, error))
        .map_err(failed("starting the thread that takes signals"))?;
    if let Some(hint) = config.unheard_hint() {
        note(&hint);
    }
    outputs::inputs(&config, &mut files);
    if config.boot.kernel.is_some() {
        files.reads_open("the console's input", io::stdin());
    }
    // Outputs are opened before the run, which may take hours.
    let Outputs {
        console: console_file,
        json,
        trace,
    } = Outputs::open(&config, &mut files)?;
    files.prints("the guest's output and the summary")?;
    // Standard output is for an output alone if one goes there.
    let data_only = files.use_stdout();
    let output = move || -> Box<dyn Write + Send> {
        if data_only {
            Box::new(MayClose(io::stderr()))
        } else {
            Box::new(MayClose(io::stdout()))
        }
    };

    let is_linux = config.boot.kernel.is_some();
    // An operating system says itself what it is doing.
    let progress = match is_linux {
        true => None,
        false => Progress::on_terminal(config.workload.name.as_deref().unwrap_or("guest")),
    };
    let console = match (&console_file, &progress) {
        (Some(file), _) => Box::new(file.clone()),
        (_, Some(progress)) => progress.wrap(output()),
        (_, None) => output(),
    };
    let interactive =
        is_linux && config.console == ConsoleChoice::Auto && io::stdin().is_terminal();
    let input = match config.console {
        ConsoleChoice::Auto | ConsoleChoice::Stdio if is_linux => {
            let input = match interactive {
                true => Input::terminal(),
                false => Input::stdin(),
            };
            Some(input.map_err(failed("using standard input"))?)
        }
        _ => None,
    };
    let terminal = match interactive {
        true => {
            let _ = writeln!(io::stderr(), "hmmvisor: to quit, type Ctrl-A and then x\r");
            Some(RawTerminal::enter().map_err(failed("switching the terminal to raw mode"))?)
        }
        false => None,
    };
    let options = Options {
        started,
        console,
        trace,
        input,
        signals: Some(signals.clone()),
        progress,
        sandbox,
        ready: Some(Box::new(notify_supervisor)),
    };
    let report = hmmvisor::run(&config, options);
    // The terminal is restored before anything else is written to it.
    drop(terminal);
    let report = Arc::new(report?);
    write_report(&report, &signals, output, console_file, json)
}

/// Tells the service manager that has started this process, if one has, that the machine runs (`sd_notify(3)`).
fn notify_supervisor() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        note(&format!(
            "telling the service manager at NOTIFY_SOCKET that the machine runs: {error}"
        ));
    }
}

/// Makes the sandbox that the configuration asks for, and has all threads that begin from now on confine themselves.
fn sandbox(config: &Config) -> Result<Option<Arc<Sandbox>>> {
    let mode = config.sandbox.mode;
    let sandbox = Sandbox::new(mode, &outputs::paths(config), restore)?;
    if let Some(sandbox) = &sandbox {
        if mode == Mode::On && !sandbox.confines_files() {
            note(
                "this kernel has no Landlock, so the sandbox does not confine which files the threads that write the outputs can open",
            );
        }
        sandbox.confine_new_threads()?;
    }
    Ok(sandbox)
}

/// Writes the JSON report, the summary and what went wrong. Where one of them cannot be written, that is an error, but the others are
/// written and the program ends all the same. The JSON comes first, as it is for programs.
fn write_report(
    report: &Arc<Report>,
    signals: &Signals,
    output: impl FnOnce() -> Box<dyn Write + Send> + Send + 'static,
    console: Option<ConsoleFile>,
    json: Option<Output>,
) -> Result<ExitCode> {
    let its = report.clone();
    let limit = match &json {
        Some(json) if !json.is_stream() => STORED_WITHIN,
        _ => READ_WITHIN,
    };
    let json = within(Some(signals), limit, "writing the JSON report", move || {
        json.map_or(Ok(()), |json| {
            put(json, "the JSON report", &(its.to_json() + "\n"))
        })
    });
    let its = report.clone();
    let summary = within(
        Some(signals),
        READ_WITHIN,
        "writing the summary",
        move || {
            let text = format!("\n{}", Summary(&its));
            write_all(&mut *output(), text.as_bytes()).map_err(failed("writing the summary"))
        },
    );
    if let Some(error) = report.error() {
        say(Some(signals), error.to_string());
    }
    let console = console.map_or(Ok(()), |console| {
        console.end().map_err(failed("emptying the console's file"))
    });
    match (report.exit_code(), json.and(summary).and(console)) {
        (0, written) => written.map(|()| ExitCode::SUCCESS),
        (code, Ok(())) => Ok(ExitCode::from(code)),
        // The code says why the run ended.
        (code, Err(error)) => {
            say(Some(signals), limits::explain(error.as_ref()));
            Ok(ExitCode::from(code))
        }
    }
}

fn list_of_workloads() -> String {
    let mut text = String::new();
    for workload in workloads() {
        text += &format!("{:<11}{}\n", workload.name, workload.summary);
        for param in workload.params {
            text += &format!("  {:<22}{}\n", default(param), explanation(param));
        }
    }
    text
}

/// `name=DEFAULT`, as it would be given.
fn default(param: &Param) -> String {
    match param.choices.get(param.default as usize) {
        Some(word) => format!("{}={word}", param.name),
        None => format!("{}={}", param.name, param.default),
    }
}

fn explanation(param: &Param) -> String {
    match param.choices {
        [] => format!("{} ({} to {})", param.summary, param.min, param.max),
        words => format!("{} ({})", param.summary, words.join(", ")),
    }
}

fn list_of_policies() -> String {
    let mut text =
        "Join one for faults, one for eviction and any modifiers with `+`: --policy density:threshold=60+thrash+lru
\
         A Luau script decides about faults in place of the first kind: --policy file.luau:name=value+lru

"
            .to_owned();
    for policy in policies() {
        let default = match policy.is_default() {
            true => " [default]",
            false => "",
        };
        text += &format!(
            "{:<16}{:<10}{}{default}\n",
            policy.name, policy.kind, policy.summary
        );
        for param in policy.params {
            text += &format!(
                "  {:<24}{}\n",
                format!("{}={}", param.name, param.default),
                param.summary
            );
        }
    }
    text += "\nExample scripts, in the repository's folder policies (docs/policy-scripts.md); `hmmvisor policies --check FILE` checks one:\n";
    for example in EXAMPLES {
        text += &format!("  {:<24}{}\n", example.name, example.summary());
    }
    text
}

fn print_check() -> Result<ExitCode> {
    let findings = check();
    let can_run = can_run(&findings);
    let mut text = String::new();
    for finding in findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Limited => "limited",
            State::Missing => "MISSING",
        };
        text += &format!("{state:<9}{:<28}{}\n", finding.what, finding.detail);
    }
    text += match can_run {
        true => "\nThis machine can run Hmmvisor.\n",
        false => "\nThis machine cannot run Hmmvisor until what is MISSING is fixed.\n",
    };
    print(&text)?;
    Ok(match can_run {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
