//! The seam to `hmmvisor-torture`: what the host does to the embedded guest while that runs the workload `torture`.

use std::io;
use std::sync::Arc;

use hmm_backend::Backend;
use hmm_backend::engine::Engine;
use hmm_backend::policy::PolicyFactory;
use hmmvisor_guest_images::{Kind, find};
use hmmvisor_torture::{Figures, Listener, State};

use crate::config::Config;
use crate::ending::failure::Failure;
use crate::ending::{End, Ending};
use crate::guest::program::control::{Control, RoundListener};
use crate::run::report::Replay;
use crate::vm::{Vm, WrapDriver};

/// The torture of a run. Most runs have none: then nothing happens here.
pub(crate) struct Torture(Option<hmmvisor_torture::Torture>);

impl Torture {
    /// Returns the torture that the configuration asks for.
    pub(crate) fn of(config: &Config) -> Torture {
        let workload = config.workload.name.as_deref().map(find);
        let is_torture = matches!(workload, Some(Ok(workload)) if workload.kind == Kind::Torture);
        let is_embedded = config.guest.is_none() && config.boot.kernel.is_none();
        let params = &config.workload.params;
        let new = || hmmvisor_torture::Torture::new(params, config.seed);
        Torture((is_torture && is_embedded).then(new).flatten())
    }

    /// Returns the policy in place of the configuration's, if there is one.
    pub(crate) fn policy(&self) -> Option<Arc<dyn PolicyFactory>> {
        self.0.as_ref()?.policy()
    }

    /// Whether first touches are to fill blocks.
    pub(crate) fn fills_blocks(&self) -> bool {
        self.0.as_ref().is_some_and(|it| it.fills_blocks())
    }

    /// Whether devices come and go while the guest runs.
    pub(crate) fn attaches_devices(&self) -> bool {
        self.0.as_ref().is_some_and(|it| it.attaches_devices())
    }

    /// Returns the wrapper that makes the accelerators' drivers fail, if there is one.
    pub(crate) fn wrap_driver(&self) -> Option<Box<WrapDriver>> {
        self.0.as_ref()?.wrap_driver()
    }

    /// Begins to disturb, before the vCPUs start.
    pub(crate) fn start(&mut self, backend: &Arc<Backend>, vm: &Vm) -> io::Result<()> {
        let Some(torture) = &mut self.0 else {
            return Ok(());
        };
        let findings = Arc::new(Findings {
            control: vm.control().clone(),
            ending: vm.ending().clone(),
        });
        let on_panic = vm.ending().on_panic();
        let state = torture.start(backend, vm.accelerators(), findings, on_panic)?;
        vm.control().set_listener(state);
        Ok(())
    }

    /// Ends the disturbance and stops the machine. `end` becomes a failure if something is wrong that the guest has not noticed.
    pub(crate) fn stop(self, vm: &mut Vm, end: &mut End) -> Option<Figures> {
        let Some(torture) = self.0 else {
            vm.stop();
            return None;
        };
        let stopped = torture.stop(|| vm.stop());
        let checked = match &stopped {
            Ok(Some(stopped)) if *end == End::Exit(0) => stopped.check(),
            Ok(_) => Ok(()),
            Err(what) => Err(what.clone()),
        };
        if let (End::Exit(0), Err(what)) = (&*end, checked) {
            *end = End::Failed(Failure::Torture(what));
        }
        Some(stopped.ok()??.figures())
    }

    /// Returns how to see a failure in this round again; none for a run that is no torture.
    pub(crate) fn replay(&self, config: &Config, engine: Engine, round: u64) -> Option<Replay> {
        self.0.as_ref()?;
        Some(Replay {
            round,
            command: command(config, engine, round),
        })
    }
}

/// Receives what a torture finds while the guest runs.
struct Findings {
    control: Arc<Control>,
    ending: Arc<Ending>,
}

impl Listener for Findings {
    fn checked(&self, operations: u64) {
        self.control.add_checked(operations);
    }

    fn failed(&self, what: String) {
        self.ending.set(End::Failed(Failure::Torture(what)));
    }
}

impl RoundListener for State {
    fn round(&self, round: u64) {
        State::round(self, round);
    }

    fn chaos_base(&self, base: u64) {
        State::chaos_base(self, base);
    }

    fn chaos_shared(&self, pages: u64) {
        State::chaos_shared(self, pages);
    }
}

/// Returns the command that starts with this round, with the same draws.
fn command(config: &Config, engine: Engine, round: u64) -> String {
    let mut words = vec![format!(
        "hmmvisor run --workload torture --seed {} --engine {} --policy {} --vcpus {} --memory {} --devices {} --device-memory {}",
        config.seed,
        engine,
        config.policy.spec,
        config.machine.vcpus,
        config.machine.memory.0,
        config.devices.count,
        config.devices.memory.0
    )];
    let others = config.workload.params.iter();
    for (name, value) in others.filter(|(name, _)| name != "round") {
        words.push(format!("--param {name}={value}"));
    }
    words.push(format!("--param round={round}"));
    words.join(" ")
}
