//! From a configuration to a report: everything around a virtual machine while it runs.
//!
//! | module | what |
//! |---|---|
//! | `placement` | on which host CPUs its threads run |
//! | `policy_scripts` | scripts among the policies, reloaded when they change |
//! | `virtio`, `balloon` | the virtio devices of a configuration; what one of them is asked, and was good for |
//! | `outputs` | the files that a run is made of, and those that it writes |
//! | `recording` | events into a trace |
//! | `event_loop`, `signals`, `progress` | what waits for the end |
//! | `report`, `summary` | the figures, for programs and for people |

pub mod balloon;
mod error;
pub(crate) mod event_loop;
mod guest;
pub mod outputs;
pub mod placement;
pub(crate) mod policy_scripts;
pub mod progress;
pub(crate) mod recording;
pub mod report;
pub mod signals;
pub mod summary;
pub mod virtio;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hmm_backend::pages::PAGE_SIZE;
use hmm_backend::policy::PolicyFile;
use hmm_backend::{Backend, BackendConfig};
use hmmvisor_devices::thread::{self, Joined};
use hmmvisor_experiments::output::{Files, Output};
use hmmvisor_experiments::trace::{TraceKind, TraceMeta};

use crate::chaos::{self, Chaos, ChaosFigures, TortureOptions};
use crate::config::console_choice::ConsoleChoice;
use crate::config::{Config, DeviceKind};
use crate::console::outlet::OutletFigures;
use crate::console::thread::{ConsoleThread, Input};
use crate::ending::failure::Failure;
use crate::ending::{End, Ending};
use crate::guest::GuestError;
use crate::host::Host;
use crate::host::process_memory;
use crate::vm::{DeviceConfig, Hooks, Managed, Vm, VmConfig, VmError};

use balloon::BalloonReport;
use guest::ChosenGuest;
use placement::Placement;
use policy_scripts::{Policies, Reloader};
use progress::Progress;
use recording::{Recording, RecordingFigures};
use report::{DriverReport, OutputReport, Replay, Report};
use signals::{Signals, Taken};

pub use error::RunError;

/// What is not a matter of configuration: the caller's process.
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
        }
    }
}

/// Runs a guest to its end, stops everything and reports.
pub fn run(config: &Config, options: Options) -> Result<Report, RunError> {
    let host = Host::here();
    config.check(&host)?;
    let trace = match (options.trace, &config.record) {
        (None, Some(path)) => {
            let mut files = Files::default();
            outputs::inputs(config, &mut files);
            Some(outputs::trace(&mut files, path)?)
        }
        (opened, _) => opened,
    };
    let ChosenGuest {
        guest,
        workload,
        cmdline,
    } = ChosenGuest::new(config)?;
    let placement = Placement::new(config, &host.cpus);
    let virtio = virtio::devices(config)?;

    let torture = TortureOptions::of(config);
    let policy = torture.as_ref().and_then(|it| it.policy(config.seed));
    let policies = Policies::load(&config.policy)?;
    let policy = policy.unwrap_or_else(|| policies.factory.clone());
    let memory = guest.memory(config.machine.memory.0);
    let fills_blocks = torture
        .as_ref()
        .is_some_and(|it| it.fills_blocks(config.seed));
    let backend = Backend::new(BackendConfig {
        engine: config.engine.kind,
        shards: config.engine.shards,
        lockstep: config.engine.lockstep,
        policy: policy.clone(),
        events: trace.as_ref().map_or(0, |_| recording::RING),
        fill_blocks: memory.fill_blocks || fills_blocks,
        shared: config.machine.shared.0,
        ..memory
    })?;
    let mut chaos = torture.map(|options| Chaos::new(options, config.seed, &backend));
    let device = |cpu| DeviceConfig {
        memory: config.devices.memory.0,
        coherent: config.devices.kind == DeviceKind::Coherent,
        cpu,
    };
    let mut vm = Vm::new(VmConfig {
        vcpus: config.machine.vcpus,
        vcpu_cpus: placement.vcpus,
        managed: Some(Managed {
            backend: backend.clone(),
            service: placement.service,
            devices: placement.devices.into_iter().map(device).collect(),
            on_memory_error: config.machine.on_memory_error,
            foreign: virtio.new,
        }),
        guest,
        console: options.console,
        hooks: Hooks {
            driver: chaos.as_ref().and_then(Chaos::wrap_driver),
            ..Hooks::default()
        },
    })
    .map_err(|error| match (error, &config.guest) {
        (VmError::Guest(GuestError::Linux(error)), _) => RunError::Linux(error),
        (VmError::Guest(GuestError::Image(error)), Some(path)) => RunError::Guest {
            path: path.clone(),
            error,
        },
        (error, _) => RunError::Vm(error),
    })?;

    // Not before: a run that cannot start leaves no trace.
    let recording = match trace {
        None => None,
        Some(output) => {
            let files = policy.files();
            let meta = trace_meta(config, &backend, &cmdline, workload.clone(), files);
            let ids = vm.thread_ids();
            Some(Recording::start(output, meta, &backend, ids, vm.ending())?)
        }
    };
    // Before the guest touches anything, and with the devices there.
    for hint in &config.hint {
        backend.hint(hint.pages(), hint.hint)?;
    }
    if let Some(chaos) = &mut chaos {
        chaos
            .start(&vm)
            .map_err(VmError::system("the chaos thread"))?;
    }
    // Small guests read no input, and need no help with what they write.
    let console = match config.boot.kernel {
        None => None,
        Some(_) => {
            let (console, ending) = (vm.console().clone(), vm.ending().clone());
            let thread = ConsoleThread::start(console, options.input, ending);
            Some(thread.map_err(VmError::system("the console's thread"))?)
        }
    };
    let reloader = match policies.scripts.is_empty() {
        true => None,
        false => {
            let started = Reloader::start(&policies.scripts, vm.ending());
            Some(started.map_err(VmError::system("the thread that reloads scripts"))?)
        }
    };
    let progress = options.progress.as_ref();
    let progress = progress.map(|progress| progress.start(vm.control(), vm.ending()));
    let progress = progress
        .transpose()
        .map_err(VmError::system("the thread that shows progress"))?;
    let stopper = Stopper::start(vm.ending())
        .map_err(VmError::system("the thread that stops the machine"))?;
    if let Some(signals) = &options.signals {
        let (ending, reloader) = (vm.ending().clone(), reloader.clone());
        signals.on_signal(move |signal| match (signal, &reloader) {
            (libc::SIGHUP, Some(reloader)) => {
                reloader.reload_all();
                Taken::GoesOn
            }
            _ => {
                ending.set(End::Signal(signal));
                Taken::Ends
            }
        });
    }
    let begin = Instant::now();
    vm.start()?;
    let balloon = virtio.balloon.get();
    let mut periodic = match (&config.balloon, balloon) {
        (Some(config), Some(balloon)) => balloon::questions(config, balloon),
        _ => Vec::new(),
    };
    if let Some(limit) = config.machine.watchdog {
        let signs = || vm.accesses();
        periodic.push(event_loop::watchdog(limit, signs, vm.ending()));
    }
    let ending = vm.ending().clone();
    let end = event_loop::wait(&ending, periodic, &policies.scripts, reloader.as_ref());
    drop(progress);
    let elapsed = begin.elapsed();
    // While everything is still there.
    let overhead = process_memory::overhead(&backend.host_ranges());
    let balloon = balloon.map(BalloonReport::of);
    let first_exit = vm.first_exit();
    let (control, accelerators) = (vm.control().clone(), vm.accelerators().to_vec());
    let (round, rounds) = (control.round(), control.rounds());
    let timed = chaos.is_some();
    let stopping = Stopping {
        end,
        vm,
        chaos,
        console,
        recording,
    };
    let Stopped {
        end,
        chaos,
        recording,
        output,
    } = stopper.stop(stopping, options.signals.as_ref());
    let replay = match (timed, round, &end) {
        (false, ..) | (_, None, _) | (_, _, End::Exit(0) | End::Signal(_)) => None,
        (true, Some(round), _) => Some(Replay {
            round,
            command: chaos::replay(config, backend.engine(), round),
        }),
    };

    Ok(Report {
        operations_checked: control.checked(),
        rounds,
        chaos,
        replay,
        recording,
        balloon,
        drivers: DriverReport::of(&accelerators),
        output: OutputReport {
            to: match &config.console {
                ConsoleChoice::File(path) => Some(path.clone()),
                ConsoleChoice::Auto | ConsoleChoice::Stdio => None,
            },
            dropped_bytes: output.dropped,
            error: output.error,
        },
        left_behind: ending.left_behind(),
        end,
        workload,
        guest: config.guest.as_ref().map(|path| path.display().to_string()),
        kernel: config
            .boot
            .kernel
            .as_ref()
            .map(|path| path.display().to_string()),
        engine: backend.engine(),
        policy: backend.policy_name(),
        policy_exact: policy.exact(),
        scripts: policies.figures(),
        vcpus: config.machine.vcpus,
        devices: config.devices.count,
        memory: config.machine.memory,
        seed: config.seed,
        stats: backend.stats(),
        elapsed,
        first_instruction: first_exit.map(|exit| exit.duration_since(options.started)),
        overhead,
    })
}

/// How long the machine may take to stop. Milliseconds are usual; its threads have bounds of their own, which add up to less
/// unless several of them hang.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// After a signal: what the report and its writing get of the time until the process is to be gone.
const REPORT_WITHIN: Duration = Duration::from_millis(250);

/// What is stopped at the end of a run.
struct Stopping {
    end: End,
    vm: Vm,
    chaos: Option<Chaos>,
    console: Option<ConsoleThread>,
    recording: Option<Recording>,
}

/// What the run has left when it has stopped.
struct Stopped {
    end: End,
    chaos: Option<ChaosFigures>,
    recording: Option<RecordingFigures>,
    output: OutletFigures,
}

impl Stopping {
    /// The recording is still to be finished: how long that takes depends on the reader of the trace.
    fn stop(mut self) -> (Stopped, Option<Recording>) {
        let chaos = self
            .chaos
            .and_then(|chaos| chaos.finish(&mut self.vm, &mut self.end));
        self.vm.stop();
        drop(self.console);
        let stopped = Stopped {
            chaos,
            recording: None,
            output: self.vm.written().cloned().unwrap_or_default(),
            end: self.end,
        };
        (stopped, self.recording)
    }
}

/// The thread that stops the machine at the end: a thread of the machine that waits for something that never comes keeps this
/// thread, but not the run's end.
struct Stopper {
    give: mpsc::Sender<Stopping>,
    thread: thread::Thread<Option<(Stopped, Option<Recording>)>>,
}

impl Stopper {
    /// Starts it early: at the end the system may have no thread left.
    fn start(ending: &Arc<Ending>) -> io::Result<Stopper> {
        let (give, take) = mpsc::channel::<Stopping>();
        let body = move || take.recv().ok().map(Stopping::stop);
        let thread = thread::spawn("stop", ending.on_panic(), body)?;
        Ok(Stopper { give, thread })
    }

    fn stop(self, stopping: Stopping, signals: Option<&Signals>) -> Stopped {
        let Stopper { give, mut thread } = self;
        let end = stopping.end.clone();
        let recording = stopping.recording.as_ref();
        let trace = recording.map(|recording| recording.place().clone());
        let failure = match give.send(stopping) {
            Ok(()) => Failure::NotStopped(STOP_WITHIN.as_secs()),
            Err(_) => Failure::Panicked {
                thread: "stop".to_owned(),
            },
        };
        let ended = signals::wait_for(signals, STOP_WITHIN, REPORT_WITHIN, |limit| {
            thread.wait(limit)
        });
        let failure = match (ended, thread.join_within(Duration::ZERO)) {
            (_, Joined::Ended(Some((stopped, recording)))) => {
                let finish = |recording: Recording| recording.finish(signals, REPORT_WITHIN);
                return Stopped {
                    recording: recording.map(finish),
                    ..stopped
                };
            }
            (_, Joined::Running) => failure,
            (_, Joined::Ended(None) | Joined::Panicked) => Failure::Panicked {
                thread: "stop".to_owned(),
            },
        };
        Stopped {
            recording: trace.map(|trace| trace.unfinished(&failure.to_string())),
            chaos: None,
            output: OutletFigures::default(),
            // What ended the run is worth more.
            end: match end {
                End::Failed(_) | End::Signal(_) | End::Exit(1..) => end,
                _ => End::Failed(failure),
            },
        }
    }
}

fn trace_meta(
    config: &Config,
    backend: &Backend,
    cmdline: &str,
    workload: Option<String>,
    policy_files: Vec<PolicyFile>,
) -> TraceMeta {
    // All of them, also those that have their defaults.
    let params = cmdline
        .split_whitespace()
        .filter_map(|word| word.split_once('='));
    let params = params.filter(|(name, _)| *name != "workload");
    TraceMeta {
        kind: TraceKind::Live,
        hmmvisor: env!("CARGO_PKG_VERSION").to_owned(),
        workload,
        params: params
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        guest: config
            .boot
            .kernel
            .as_ref()
            .or(config.guest.as_ref())
            .map(|path| path.display().to_string()),
        seed: config.seed,
        policy: backend.policy_name(),
        policy_files: policy_files
            .into_iter()
            .map(|file| (file.path.display().to_string(), file.sha256))
            .collect(),
        engine: backend.engine().to_string(),
        vcpus: config.machine.vcpus,
        devices: config.devices.count,
        memory: u64::from(backend.pages()) * PAGE_SIZE,
        base: config.boot.kernel.as_ref().map(|_| 0),
        device_memory: config.devices.memory.0,
        device_kind: config.devices.kind.to_string(),
        source: None,
    }
}
