//! The parameters of workload `torture` that are the host's business, too.

use hmmvisor_guest_images as guest_images;

/// The policy of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Given,
    Random,
    Chaotic,
}

/// The parameters, which the catalogue of workloads explains.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) seconds: u64,
    pub(crate) round: u64,
    pub(crate) chaos: bool,
    pub(crate) policy: Policy,
    pub(crate) corrupt: u64,
}

impl Options {
    /// Reads the parameters; returns none if the guest is not to run for a time, or if a parameter is wrong.
    pub(crate) fn new(params: &[(String, String)]) -> Option<Options> {
        let workload = guest_images::find("torture").ok()?;
        let value = |name: &str| {
            let param = workload.params.iter().find(|param| param.name == name)?;
            let given = params.iter().rev().find(|(given, _)| given == name);
            given.map_or(Some(param.default), |(_, text)| param.parse(text).ok())
        };
        let options = Options {
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
}
