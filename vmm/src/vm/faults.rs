//! The threads that serve CPU faults on managed memory, and what becomes of a fault that they cannot serve.

use std::sync::Arc;

use hmm_backend::service::{Fatal, FaultService, ServiceConfig};
use hmmvisor_devices::thread;

use super::config::Managed;
use super::error::VmError;
use crate::ending::failure::Failure;
use crate::ending::{End, Ending};
use crate::machine::kvm_machine::Machine;
use crate::machine::memory_errors::{self, Kicker, MemoryErrors, OnMemoryError};
use crate::machine::pause::Gate;
use crate::machine::vcpu_threads::ThreadIds;

/// The running threads that serve CPU faults, and the one that kicks vCPUs. Dropping it stops them.
pub(crate) struct FaultServing {
    // Dropped in this order: the service reports to the kicker.
    _service: FaultService,
    _kicker: Option<Kicker>,
    /// Pages that cannot be supplied, for vCPUs to be told of; none if such a page ends the run.
    pub(crate) errors: Option<Arc<MemoryErrors>>,
}

impl FaultServing {
    /// Starts the threads. `ids` says which vCPU a thread that faults runs, `gate` what the vCPUs pass.
    pub(crate) fn start(
        managed: &Managed,
        machine: &Machine,
        ids: &ThreadIds,
        ending: &Arc<Ending>,
        gate: &Arc<Gate>,
    ) -> Result<FaultServing, VmError> {
        let (backend, base) = (&managed.backend, machine.managed_base());
        let (mut errors, mut kicker, mut reporter) = (None, None, None);
        if managed.on_memory_error == OnMemoryError::MachineCheck {
            let new = MemoryErrors::new(machine.vcpus(), backend.clone(), base, gate.clone());
            let new = Arc::new(new);
            let started = Kicker::start(&new, ending).map_err(VmError::system("a thread"))?;
            (kicker, reporter) = (Some(started.0), Some(started.1));
            errors = Some(new);
        }
        let (ids, ending) = (ids.clone(), ending.clone());
        let on_fatal = move |fatal| match fatal {
            Fatal::Service(failure) => {
                ending.set(End::Failed(Failure::Service(failure.to_string())))
            }
            Fatal::Fault(fault) => match (ids.vcpu(fault.thread), &reporter) {
                (Some(vcpu), Some(reporter)) => reporter.put(vcpu, fault),
                (vcpu, _) => ending.set(End::Failed(memory_errors::failure(&fault, vcpu, base))),
            },
        };
        let config = ServiceConfig {
            threads: managed.service.clone(),
            on_begin: thread::begin,
            ..ServiceConfig::default()
        };
        let service = backend.start_service(config, Box::new(on_fatal));
        Ok(FaultServing {
            _service: service.map_err(VmError::Service)?,
            _kicker: kicker,
            errors,
        })
    }
}
