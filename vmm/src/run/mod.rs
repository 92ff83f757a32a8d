//! From a configuration to a report: everything around a virtual machine while it runs.
//!
//! | module | what |
//! |---|---|
//! | `prepare` | everything that is made before the guest runs |
//! | `guest`, `placement` | which guest runs; on which host CPUs its threads run |
//! | `policy_scripts` | scripts among the policies, reloaded when they change |
//! | `virtio`, `balloon` | the virtio devices of a configuration; what one of them is asked, and was good for |
//! | `torture` | what the host does to a guest that runs `torture` |
//! | `outputs` | the files that a run reads and writes |
//! | `recording` | the thread that writes events into a trace |
//! | `live` | the figures while the run goes on, and recordings on request |
//! | `asked` | a run whose guest never begins, for the fuzzer's requests |
//! | `event_loop`, `signals` | the main thread's wait for the end; the thread that takes signals |
//! | `helpers`, `progress` | the threads that accompany a running machine; one of them shows the progress |
//! | `stop` | stopping everything |
//! | `report`, `summary` | the figures, for programs and for people |
//! | `error` | why a run could not start |

#[cfg(feature = "fuzzing")]
mod asked;
pub mod balloon;
mod error;
pub(crate) mod event_loop;
mod guest;
mod helpers;
mod live;
pub mod outputs;
pub mod placement;
pub(crate) mod policy_scripts;
mod prepare;
pub mod progress;
pub(crate) mod recording;
pub mod report;
pub mod signals;
mod stop;
pub mod summary;
mod torture;
pub mod virtio;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use hmmvisor_devices::virtio::Balloon;
use hmmvisor_experiments::output::Output;

use crate::config::Config;
use crate::console::thread::Input;
use crate::ending::End;
use crate::host::process_memory::OverheadProbe;
use crate::sandbox::{Kind, Sandbox};
use crate::vm::{Vm, VmError};
use balloon::BalloonReport;
use helpers::Helpers;
use policy_scripts::{Policies, Reloader};
use prepare::Prepared;
use progress::Progress;
use report::{OutputReport, Replay, Report};
use signals::Signals;
use stop::{Stopped, Stopper, Stopping};

#[cfg(feature = "fuzzing")]
pub use asked::Asked;
pub use error::RunError;

/// What a run takes from the caller's process, beyond the configuration.
pub struct Options {
    /// From when the time to the first guest instruction counts.
    pub started: Instant,
    /// Where the guest's serial output goes.
    pub console: Box<dyn Write + Send>,
    /// Where the trace goes; none if it is still to be opened, where the configuration says.
    pub trace: Option<Output>,
    /// Where an operating system's serial input comes from.
    pub input: Option<Input>,
    /// The thread that takes signals. They end the run.
    pub signals: Option<Signals>,
    /// Shows the progress of long runs.
    pub progress: Option<Progress>,
    /// Confines the calling thread from the guest's first instruction on, for good. (Other threads confine themselves: see
    /// [`Sandbox::confine_new_threads`].)
    pub sandbox: Option<Arc<Sandbox>>,
    /// Called once when the guest runs and the API answers, before the calling thread is confined.
    pub ready: Option<Box<dyn FnOnce()>>,
}

impl Default for Options {
    /// Guest output to standard output; no input, signals or progress.
    fn default() -> Options {
        Options {
            started: Instant::now(),
            console: Box::new(io::stdout()),
            trace: None,
            input: None,
            signals: None,
            progress: None,
            sandbox: None,
            ready: None,
        }
    }
}

/// Runs a guest to its end, stops everything and reports.
pub fn run(config: &Config, options: Options) -> Result<Report, RunError> {
    let started = options.started;
    let mut run = Prepared::new(config, options.console, options.trace, started)?;
    let chaos = run.torture.start(&run.backend, &run.vm);
    chaos.map_err(VmError::system("the chaos thread"))?;
    let progress = options.progress.as_ref();
    let helpers = Helpers::start(config, &run.vm, &run.policies, options.input, progress)?;
    let stopper = Stopper::start(run.vm.ending());
    let stopper = stopper.map_err(VmError::system("the thread that stops the machine"))?;
    let reloader = helpers.reloader.as_ref();
    if let Some(signals) = &options.signals {
        helpers::take_signals(signals, run.vm.ending(), reloader);
    }

    let overhead = OverheadProbe::new();
    let begin = *run.observed.began.get_or_init(Instant::now);
    run.vm.start()?;
    let api = run.start_api()?;
    tracing::info!(
        vcpus = config.machine.vcpus,
        memory_bytes = config.machine.memory.0,
        devices = config.devices.count,
        device_memory_bytes = config.devices.memory.0,
        engine = %run.backend.engine(),
        policy = %run.backend.policy_name(),
        "the machine runs"
    );
    if let Some(ready) = options.ready {
        ready();
    }
    if let Some(sandbox) = &options.sandbox {
        sandbox.confine_this_thread(Kind::Main, "main");
    }
    let balloon = run.observed.balloon.get();
    let end = wait(config, &run.vm, balloon, &run.policies, reloader);
    drop(api);
    drop(helpers.progress);
    let elapsed = begin.elapsed();

    let seen = Seen::of(config, &run, overhead);
    let observed = run.observed;
    let stopping = Stopping {
        end,
        vm: run.vm,
        torture: run.torture,
        console: helpers.console,
        recording: observed.close_recordings(),
    };
    let Stopped {
        end,
        chaos,
        recording,
        output,
    } = stopper.stop(stopping, options.signals.as_ref());

    let failed = !matches!(end, End::Exit(0) | End::Signal(_));
    let report = Report {
        elapsed,
        overhead: seen.overhead,
        rounds: seen.rounds,
        chaos,
        replay: seen.replay.filter(|_| failed),
        recording: recording.or_else(|| observed.last_recording()),
        balloon: seen.balloon,
        output: OutputReport::new(&config.console, output),
        left_behind: observed.ending.left_behind(),
        ..observed.report(Some(end))
    };
    tracing::info!(
        exit_code = report.exit_code(),
        elapsed_s = elapsed.as_secs_f64(),
        "the machine has stopped"
    );
    Ok(report)
}

/// The figures that are taken when the run has ended and its machine has not stopped yet.
struct Seen {
    overhead: Option<u64>,
    balloon: Option<BalloonReport>,
    rounds: u64,
    /// How to see the last round again, if this is a torture.
    replay: Option<Replay>,
}

impl Seen {
    fn of(config: &Config, run: &Prepared, overhead: Option<OverheadProbe>) -> Seen {
        let (control, engine) = (run.vm.control(), run.backend.engine());
        let replay = |round| run.torture.replay(config, engine, round);
        Seen {
            overhead: overhead.and_then(|probe| probe.take(&run.backend.host_ranges())),
            balloon: run.observed.balloon.get().map(BalloonReport::of),
            rounds: control.rounds(),
            replay: control.round().and_then(replay),
        }
    }
}

/// Waits for the run's end, whatever ends it; does meanwhile what is to be done now and then.
fn wait(
    config: &Config,
    vm: &Vm,
    balloon: Option<&Balloon>,
    policies: &Policies,
    reloader: Option<&Reloader>,
) -> End {
    let mut periodic = match (&config.balloon, balloon) {
        (Some(config), Some(balloon)) => balloon::questions(config, balloon),
        _ => Vec::new(),
    };
    if let Some(limit) = config.machine.watchdog {
        let signs = || (!vm.is_paused()).then(|| vm.accesses());
        periodic.push(event_loop::watchdog(limit, signs, vm.ending()));
    }
    event_loop::wait(vm.ending(), periodic, &policies.scripts, reloader)
}
