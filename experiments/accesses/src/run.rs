//! Runs a workload, given by name and parameters, and reports its accesses.

use std::collections::BTreeMap;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, mpsc};
use std::thread;

use hmm_backend::limits::{self, Refusal, Resource};
use hmm_backend::observe::Event;
use hmmvisor_abi::{BootInfo, boot, control, map};
use hmmvisor_guest_images::{CatalogError, find};
use parking_lot::Mutex;
use thiserror::Error;

use crate::catalog::{Kind, WORKLOADS};
use crate::cpu::Cpu;
use crate::exit::Ended;
use crate::turns::Stopped;
use crate::{devices, machine, memory, workloads};

/// The configuration of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The workload's name.
    pub workload: String,
    /// The workload's parameters; those that are not given have their defaults.
    pub params: Vec<(String, String)>,
    /// Number of vCPUs, 1 to 64.
    pub vcpus: u32,
    /// Number of accelerators, 1 to 16.
    pub devices: u32,
    /// Managed memory in bytes, a multiple of a page.
    pub memory: u64,
    /// Seed of all pseudo-random choices.
    pub seed: u64,
}

impl Default for Settings {
    /// The defaults of `hmmvisor run`.
    fn default() -> Settings {
        Settings {
            workload: "vecadd".to_owned(),
            params: Vec::new(),
            vcpus: 1,
            devices: 1,
            memory: 256 << 20,
            seed: 1,
        }
    }
}

/// Why there are no accesses, or not all of them.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The workload or its parameters.
    #[error(transparent)]
    Workload(#[from] CatalogError),
    /// The workload makes no sense without a machine.
    #[error(
        "workload {name} has no accesses of its own: {why}; run it with `hmmvisor run --record`"
    )]
    NeedsMachine {
        /// The workload.
        name: &'static str,
        /// Why.
        why: &'static str,
    },
    /// A number of vCPUs or accelerators, or a size of memory, that a machine cannot have.
    #[error("{what} is {given}, but must be {allowed}")]
    Setting {
        /// The setting, in the words of messages.
        what: &'static str,
        /// What was given.
        given: u64,
        /// What may be.
        allowed: &'static str,
    },
    /// The workload ended in another way than it should.
    #[error("workload {name} failed: {message}")]
    Failed {
        /// The workload.
        name: &'static str,
        /// What it says.
        message: String,
    },
    /// The host has no room for the memory or the vCPUs of the run.
    #[error("cannot make {what}: {error}")]
    Host {
        /// What was wanted.
        what: &'static str,
        /// The host's answer.
        #[source]
        error: Refusal,
    },
    /// A workload whose state outlives it has run in this process.
    #[error(
        "workload {name} has left state behind in this process; start another one for this run"
    )]
    Used {
        /// The workload that left it.
        name: &'static str,
    },
}

/// Runs are one at a time: the guest's sources have statics.
static ONE_AT_A_TIME: Mutex<Option<&'static str>> = Mutex::new(None);

/// Runs a workload to its end, and gives `sink` its accesses as they happen: events of kind `Access`, `Freed` and `Hint`, with
/// vCPU `n` as thread `n + 1`, and as time the number of accesses before, in nanoseconds. Consecutive accesses by the
/// same vCPU or device to one page are one event, unless a write follows reads. Returns what the workload printed.
pub fn generate(
    settings: &Settings,
    sink: impl FnMut(Event) + Send + 'static,
) -> Result<String, AccessError> {
    let Plan {
        name,
        kind,
        program,
        cmdline,
    } = plan(settings)?;
    let mut used = ONE_AT_A_TIME.lock();
    if let Some(name) = *used {
        return Err(AccessError::Used { name });
    }
    limits::room_for(settings.memory, settings.vcpus.into())
        .and_then(|()| machine::start(settings.memory, Box::new(sink)))
        .map_err(|error| AccessError::Host {
            what: "managed memory",
            error,
        })?;
    machine::TURNS.reset(settings.vcpus.into());
    // The guest's sources take it for given that these are there for ever. They are small.
    let cmdline: &'static str = cmdline.leak();
    let info: &'static BootInfo = Box::leak(Box::new(boot_info(settings, cmdline)));

    let failure = Arc::new(Mutex::new(None));
    let begun = thread::scope(|scope| {
        // None begins before all are there: a vCPU waits for the turns of all others.
        let mut ready = Vec::new();
        for index in 0..u64::from(settings.vcpus) {
            let failure = failure.clone();
            let (go, all_there) = mpsc::sync_channel(1);
            let vcpu_thread = move || {
                if all_there.recv().is_err() {
                    return;
                }
                let result = panic::catch_unwind(AssertUnwindSafe(|| vcpu(info, index, program)));
                if let Err(payload) = &result
                    && !payload.is::<Stopped>()
                {
                    let message = message(payload.as_ref());
                    failure.lock().get_or_insert(message);
                }
                match result {
                    Ok(()) => machine::TURNS.end(),
                    Err(_) => machine::TURNS.fail(),
                }
            };
            thread::Builder::new().spawn_scoped(scope, vcpu_thread)?;
            ready.push(go);
        }
        for go in ready {
            // The thread waits for it.
            let _ = go.send(());
        }
        io::Result::Ok(())
    });
    let printed = machine::stop();
    begun.map_err(|error| AccessError::Host {
        what: "the threads of the vCPUs",
        error: Refusal::new(Resource::Thread, error),
    })?;
    let failure = failure.lock().take();
    // Torture's account of its pages is static; a barrier where some had arrived stays as it is.
    if kind == Kind::Torture || failure.is_some() && settings.vcpus > 1 {
        *used = Some(name);
    }
    match failure {
        None => Ok(printed),
        Some(message) => Err(AccessError::Failed { name, message }),
    }
}

/// Whether a workload can run like that; all its parameters if so, also those that have their defaults.
pub fn check(settings: &Settings) -> Result<BTreeMap<String, String>, AccessError> {
    let cmdline = plan(settings)?.cmdline;
    let words = cmdline.split(' ').filter_map(|word| word.split_once('='));
    let params = words.filter(|(name, _)| *name != "workload");
    Ok(params
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// What is to be run.
struct Plan {
    name: &'static str,
    kind: Kind,
    program: fn(&Cpu),
    cmdline: String,
}

fn plan(settings: &Settings) -> Result<Plan, AccessError> {
    let workload = find(&settings.workload)?;
    let mut params = settings.params.clone();
    // How a vCPU waits for an accelerator is no access; interrupts need a machine.
    if workload.params.iter().any(|param| param.name == "wait") {
        workload.cmdline(&params)?;
        params.retain(|(name, _)| name != "wait");
    }
    let cmdline = workload.cmdline(&params)?;
    let name = workload.name;
    let kind = WORKLOADS
        .iter()
        .find(|candidate| candidate.name == name)
        .map(|candidate| candidate.kind);
    let kind = kind.expect("both catalogues are the same file");
    let needs_machine = |why| AccessError::NeedsMachine { name, why };
    let program = workloads::program(kind).map_err(needs_machine)?;
    if params
        .iter()
        .any(|(name, value)| name == "seconds" && value != "0")
    {
        return Err(needs_machine("with seconds it depends on the time"));
    }
    check_machine(settings)?;
    Ok(Plan {
        name,
        kind,
        program,
        cmdline,
    })
}

fn check_machine(settings: &Settings) -> Result<(), AccessError> {
    let refuse = |what, given, allowed| {
        Err(AccessError::Setting {
            what,
            given,
            allowed,
        })
    };
    let Settings {
        vcpus,
        devices,
        memory,
        ..
    } = *settings;
    if !(1..=map::MAX_VCPUS).contains(&vcpus.into()) {
        return refuse("the number of vCPUs", vcpus.into(), "from 1 to 64");
    }
    if !(1..=map::MAX_ACCELS).contains(&devices.into()) {
        return refuse("the number of accelerators", devices.into(), "from 1 to 16");
    }
    if memory == 0 || !memory.is_multiple_of(memory::PAGE) || memory > map::MANAGED_MAX {
        let allowed = "a multiple of 4 KiB, at most 128 GiB";
        return refuse("managed memory", memory, allowed);
    }
    Ok(())
}

fn boot_info(settings: &Settings, cmdline: &'static str) -> BootInfo {
    BootInfo {
        magic: boot::BOOT_MAGIC,
        version: boot::BOOT_VERSION,
        vcpus: settings.vcpus,
        devices: settings.devices,
        reserved: 0,
        memory_base: map::MANAGED,
        memory_size: settings.memory,
        control_base: map::CONTROL,
        serial_base: map::SERIAL,
        accel_base: map::ACCEL,
        accel_stride: map::ACCEL_STRIDE,
        irq_counters: map::IRQ_COUNTERS,
        seed: settings.seed,
        tsc_khz: 0,
        cmdline: cmdline.as_ptr() as u64,
        cmdline_len: cmdline.len() as u64,
    }
}

/// The body of a vCPU, as in the guest's `main`.
fn vcpu(info: &'static BootInfo, index: u64, program: fn(&Cpu)) {
    machine::TURNS.begin(index);
    let cpu = Cpu::enter(info, index);
    if cpu.is_leader() {
        memory::init(info.memory_base, info.memory_size);
        devices::start(&cpu);
    }
    cpu.barrier();
    program(&cpu);
    cpu.barrier();
    if cpu.is_leader() {
        devices::stop();
    }
}

fn message(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(Ended { code, message }) = payload.downcast_ref() {
        return match *code {
            control::EXIT_USAGE => message.clone(),
            code => format!("{message} (exit code {code}); this is a bug in Hmmvisor"),
        };
    }
    let text = payload.downcast_ref::<String>().cloned();
    let text = text.or_else(|| {
        payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
    });
    format!(
        "{}; this is a bug in Hmmvisor",
        text.unwrap_or_else(|| "it panicked".to_owned())
    )
}
