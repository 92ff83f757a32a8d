//! Everything that is made before a guest runs.

use std::io::Write;
use std::sync::{Arc, OnceLock};

use hmm_backend::{Backend, BackendConfig};
use hmmvisor_devices::NewDevice;
use hmmvisor_devices::virtio::Balloon;
use hmmvisor_experiments::output::{Files, Output};

use super::error::RunError;
use super::guest::ChosenGuest;
use super::placement::CpuPlacement;
use super::policy_scripts::Policies;
use super::recording::{self, Recording};
use super::torture::Torture;
use super::{outputs, virtio};
use crate::config::{Config, DeviceKind};
use crate::guest::{Guest, GuestError};
use crate::host::Host;
use crate::vm::{DeviceConfig, Hooks, Managed, Vm, VmConfig, VmError};

/// A run whose guest is about to begin.
pub(super) struct Prepared {
    pub(super) backend: Arc<Backend>,
    pub(super) vm: Vm,
    pub(super) policies: Policies,
    pub(super) torture: Torture,
    pub(super) recording: Option<Recording>,
    /// The balloon, if there is one.
    pub(super) balloon: Arc<OnceLock<Balloon>>,
    /// The workload's name, if there is one.
    pub(super) workload: Option<String>,
}

impl Prepared {
    /// Checks the configuration, opens what it names, and makes the machine.
    pub(super) fn new(
        config: &Config,
        console: Box<dyn Write + Send>,
        trace: Option<Output>,
    ) -> Result<Prepared, RunError> {
        let host = Host::here();
        config.check(&host)?;
        let trace = open_trace(config, trace)?;
        let ChosenGuest {
            guest,
            workload,
            cmdline,
        } = ChosenGuest::new(config)?;
        let virtio = virtio::devices(config)?;
        let torture = Torture::of(config);
        let policies = Policies::load(&config.policy, config.devices.accesses)?;
        // The torture's policy takes the place of the configuration's, also in regions.
        let (policy, regions) = match torture.policy() {
            Some(policy) => (policy, &[][..]),
            None => (policies.factory.clone(), &policies.regions[..]),
        };
        let backend = Backend::new(BackendConfig {
            policy,
            events: trace
                .as_ref()
                .map_or(0, |_| recording::ring(config.devices.accesses)),
            ..memory(config, &*guest, &torture)
        })?;
        // The last one first: it comes last in the policy's name.
        for (pages, policy) in regions.iter().rev() {
            backend.replace_policy(Some(*pages), policy.clone())?;
        }
        let placement = CpuPlacement::new(config, &host.cpus);
        let vm = Vm::new(VmConfig {
            vcpus: config.machine.vcpus,
            vcpu_cpus: placement.vcpus.clone(),
            managed: Some(managed(config, &backend, placement, virtio.new)),
            guest,
            console,
            hooks: Hooks {
                driver: torture.wrap_driver(),
                ..Hooks::default()
            },
        });
        let vm = vm.map_err(|error| name_guest(config, error))?;
        // The recording starts only when the machine has been made: a run that cannot start leaves no trace.
        let recording = trace.map(|output| {
            let files = backend.policy_files();
            let meta = recording::meta(config, &backend, &cmdline, workload.clone(), files);
            Recording::start(output, meta, &backend, vm.thread_ids(), vm.ending())
        });
        let recording = recording.transpose()?;
        // Hints are given before the guest touches anything, and after the devices, which hints can name, have been attached.
        for hint in &config.hint {
            backend.hint(hint.pages(), hint.hint)?;
        }
        Ok(Prepared {
            backend,
            vm,
            policies,
            torture,
            recording,
            balloon: virtio.balloon,
            workload,
        })
    }
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
