//! Everything that is made before a guest runs.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use hmm_backend::{Backend, BackendConfig, EventTap};
use hmmvisor_devices::NewDevice;
use hmmvisor_experiments::output::{Files, Output};
use parking_lot::Mutex;

use super::error::RunError;
use super::guest::ChosenGuest;
use super::live::Observed;
use super::placement::CpuPlacement;
use super::policy_scripts::Policies;
use super::recording::{self, Begin};
use super::torture::Torture;
use super::{outputs, virtio};
use crate::api::{ApiServer, Listeners, Live, OpenStreams, OperationBoard, PinBoard, Provoker};
use crate::config::{Config, DeviceKind};
use crate::guest::{Guest, GuestError};
use crate::host::Host;
use crate::messages::{self, Queue};
use crate::vm::{DeviceConfig, Hooks, Managed, Vm, VmConfig, VmError, WrapDriver};

/// A run whose guest is about to begin.
pub(super) struct Prepared {
    pub(super) backend: Arc<Backend>,
    pub(super) vm: Vm,
    pub(super) policies: Policies,
    pub(super) torture: Torture,
    /// Where the figures come from.
    pub(super) observed: Arc<Observed>,
    /// What the API answers at, if there is one.
    listeners: Option<Listeners>,
    provoker: Arc<Provoker>,
    /// Writes the messages of threads that must not wait; dropped last, because scripts may live on in threads that are not waited for.
    _messages: Option<Queue>,
}

impl Prepared {
    /// Checks the configuration, opens what it names, and makes the machine.
    pub(super) fn new(
        config: &Config,
        console: Box<dyn Write + Send>,
        trace: Option<Output>,
        started: Instant,
    ) -> Result<Prepared, RunError> {
        let host = Host::here();
        config.check(&host)?;
        let listeners = Listeners::of(&config.api)?;
        let trace = open_trace(config, trace)?;
        let ChosenGuest {
            guest,
            workload,
            cmdline,
        } = ChosenGuest::new(config)?;
        let virtio = virtio::devices(config)?;
        let torture = Torture::of(config);
        let policies = Policies::load(&config.policy, config.devices.accesses)?;
        // Confined threads have messages, and can start no other thread.
        let has_messages = !policies.scripts.is_empty()
            || listeners.is_some()
            || tracing::enabled!(tracing::Level::INFO);
        let messages = has_messages.then(Queue::start).transpose();
        let messages = messages.map_err(VmError::system("the thread that writes messages"))?;
        // The torture's policy takes the place of the configuration's, also in regions.
        let (policy, regions) = match torture.policy() {
            Some(policy) => (policy, &[][..]),
            None => (policies.factory.clone(), &policies.regions[..]),
        };
        let backend = Backend::new(BackendConfig {
            policy,
            ..memory(config, &*guest, &torture)
        })?;
        let told = config.devices.accesses;
        let tap = EventTap::new(backend.clone());
        // From the first event on, also of those that making the machine causes.
        let begin = trace.map(|output| Begin {
            output,
            events: recording::reader(&tap, told),
            memory: None,
        });
        // The last one first: it comes last in the policy's name.
        for (pages, policy) in regions.iter().rev() {
            backend.replace_policy(Some(*pages), policy.clone())?;
        }
        let provoker = Provoker::new(config.devices.count);
        let placement = CpuPlacement::new(config, &host.cpus);
        let vm = Vm::new(VmConfig {
            vcpus: config.machine.vcpus,
            vcpu_cpus: placement.vcpus.clone(),
            managed: Some(managed(config, &backend, placement, virtio.new)),
            guest,
            console,
            hooks: Hooks {
                driver: wrap_driver(config, &torture, &provoker),
                ..Hooks::default()
            },
        });
        let vm = vm.map_err(|error| name_guest(config, error))?;
        let scripts = policies.scripts.iter().map(|it| it.scripts.clone());
        let observed = Arc::new(Observed {
            config: config.clone(),
            backend: backend.clone(),
            tap,
            workload,
            cmdline,
            control: vm.control().clone(),
            accelerators: vm.accelerators().to_vec(),
            balloon: virtio.balloon,
            threads: vm.thread_ids().clone(),
            ending: vm.ending().clone(),
            scripts: Mutex::new(scripts.collect()),
            recordings: Mutex::default(),
            started,
            first_exit: vm.first_exit_place().clone(),
            began: OnceLock::new(),
        });
        // The recording starts only when the machine has been made: a run that cannot start leaves no trace.
        if let Some(begin) = begin {
            observed.start_recording(begin)?;
        }
        // Hints are given before the guest touches anything, and after the devices, which hints can name, have been attached.
        for hint in &config.hint {
            backend.hint(hint.pages(), hint.hint)?;
        }
        Ok(Prepared {
            backend,
            vm,
            policies,
            torture,
            observed,
            listeners,
            provoker,
            _messages: messages,
        })
    }
}

impl Prepared {
    /// Starts the API of the machine, which runs, if there is to be one.
    pub(super) fn start_api(&mut self) -> Result<Option<Api>, RunError> {
        let Some(listeners) = self.listeners.take() else {
            return Ok(None);
        };
        let live = self.live(listeners.metrics());
        Ok(Some(Api {
            provoker: self.provoker.clone(),
            operations: live.operations.clone(),
            _server: ApiServer::start(listeners, live)?,
        }))
    }

    /// Returns what requests may see and change. The metrics are served by TCP there.
    pub(super) fn live(&mut self, metrics: Option<SocketAddr>) -> Live {
        let observed = &self.observed;
        Live {
            config: observed.config.clone(),
            workload: observed.workload.clone(),
            backend: self.backend.clone(),
            tap: observed.tap.clone(),
            ending: observed.ending.clone(),
            accelerators: observed.accelerators.clone(),
            balloon: observed.balloon.clone(),
            pausing: self.vm.pausing(),
            power_button: self.vm.take_power_button(),
            threads: observed.threads.clone(),
            provoker: self.provoker.clone(),
            pins: PinBoard::default(),
            operations: Arc::default(),
            streams: OpenStreams::default(),
            log: messages::of_scripts(),
            began: Instant::now(),
            metrics,
            run: observed.clone(),
        }
    }

    /// Ends what requests have provoked.
    #[cfg(feature = "fuzzing")]
    pub(super) fn end_provocations(&self) {
        self.provoker.clear_all();
    }
}

/// The API of a run. Dropping it ends what requests have provoked, and answers no more.
pub(super) struct Api {
    provoker: Arc<Provoker>,
    operations: Arc<OperationBoard>,
    _server: ApiServer,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.operations.close();
        self.provoker.clear_all();
    }
}

/// Returns what is put in front of the accelerators' own drivers: what a torture wants, and, where there is an API, what its
/// requests provoke.
fn wrap_driver(
    config: &Config,
    torture: &Torture,
    provoker: &Arc<Provoker>,
) -> Option<Box<WrapDriver>> {
    let torture = torture.wrap_driver();
    if config.api.socket.is_none() {
        return torture;
    }
    let provoker = provoker.clone();
    Some(Box::new(move |device, own| {
        let provoked = provoker.wrap(device, own);
        match &torture {
            Some(torture) => torture(device, provoked),
            None => provoked,
        }
    }))
}

/// Returns the trace's file, opened here unless the caller has opened it; none if the run is not recorded.
fn open_trace(config: &Config, opened: Option<Output>) -> Result<Option<Output>, RunError> {
    match (opened, &config.record) {
        (None, Some(path)) => {
            let mut files = Files::default();
            outputs::inputs(config, &mut files);
            Ok(Some(outputs::trace(&mut files, path)?))
        }
        (opened, _) => Ok(opened),
    }
}

/// Returns the description of managed memory, for the backend.
fn memory(config: &Config, guest: &dyn Guest, torture: &Torture) -> BackendConfig {
    let memory = guest.memory(config.machine.memory.0);
    BackendConfig {
        engine: config.engine.kind,
        shards: config.engine.shards,
        lockstep: config.engine.lockstep,
        eviction_batch: config.devices.eviction_batch,
        links: config.links.matrix.clone(),
        pacing: config.links.pacing,
        fill_blocks: memory.fill_blocks || torture.fills_blocks(),
        shared: config.machine.shared.0,
        ..memory
    }
}

/// Returns the description of managed memory, and of what works on it, for the machine.
fn managed(
    config: &Config,
    backend: &Arc<Backend>,
    placement: CpuPlacement,
    foreign: Vec<NewDevice>,
) -> Managed {
    let device = |cpu| DeviceConfig {
        memory: config.devices.memory.0,
        memory_max: config.devices.memory_max().0,
        coherent: config.devices.kind == DeviceKind::Coherent,
        fidelity: config.devices.accesses,
        cpu,
    };
    Managed {
        backend: backend.clone(),
        service: placement.service,
        devices: placement.devices.into_iter().map(device).collect(),
        on_memory_error: config.machine.on_memory_error,
        foreign,
    }
}

/// Returns the error of a machine that could not be made, with the name of the guest's file where that is what is wrong.
fn name_guest(config: &Config, error: VmError) -> RunError {
    match (error, &config.guest) {
        (VmError::Guest(GuestError::Linux(error)), _) => RunError::Linux(error),
        (VmError::Guest(GuestError::Image(error)), Some(path)) => RunError::Guest {
            path: path.clone(),
            error,
        },
        (error, _) => RunError::Vm(error),
    }
}
