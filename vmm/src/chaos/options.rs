//! The parameters of workload `torture` that are the host's business, too.

use hmm_backend::engine::Engine;
use hmmvisor_guest_images as guest_images;

use crate::config::Config;

/// Which policy the run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Given,
    Random,
    Chaotic,
}

/// See the catalogue of workloads.
#[derive(Clone, Debug)]
pub(crate) struct TortureOptions {
    pub(crate) seconds: u64,
    pub(crate) round: u64,
    pub(crate) chaos: bool,
    pub(crate) policy: Policy,
    pub(crate) corrupt: u64,
}

impl TortureOptions {
    /// None unless the embedded guest is to run `torture` for a time. Parameters that are wrong are the catalogue's to
    /// complain about.
    pub(crate) fn of(config: &Config) -> Option<TortureOptions> {
        let workload = guest_images::find(config.workload.name.as_deref()?).ok()?;
        if config.guest.is_some() || workload.name != "torture" {
            return None;
        }
        let value = |name: &str| {
            let param = workload.params.iter().find(|param| param.name == name)?;
            let given = config.workload.params.iter().rev();
            let given = given.clone().find(|(given, _)| given == name);
            given.map_or(Some(param.default), |(_, text)| param.parse(text).ok())
        };
        let options = TortureOptions {
            seconds: value("seconds")?,
            round: value("round")?,
            chaos: value("chaos")? == 1,
            policy: match value("policy")? {
                0 => Policy::Given,
                1 => Policy::Random,
                _ => Policy::Chaotic,
            },
            corrupt: value("corrupt")?,
        };
        (options.seconds > 0).then_some(options)
    }

    /// Whether first touches fill blocks, as under Linux: with every other seed.
    pub(crate) fn fills_blocks(&self, seed: u64) -> bool {
        self.chaos && seed % 2 == 1
    }
}

/// The command that starts with this round, with the same draws.
pub(crate) fn replay(config: &Config, engine: Engine, round: u64) -> String {
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
