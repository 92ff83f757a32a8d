//! Requests about the policy.

use hmmvisor_api::{Policy, SetPolicy};
use hmmvisor_policies::{Chosen, Limits, PolicyChoice};

use super::error::Refusal;
use super::live::Live;

impl Live {
    pub(super) fn policy(&self) -> Policy {
        Policy {
            policy: self.backend.policy_name(),
            exact: self.backend.policy_exact(),
        }
    }

    /// Makes the policy of a request, and lets it decide nothing.
    fn chosen(&self, request: &SetPolicy) -> Result<Chosen, Refusal> {
        let SetPolicy {
            spec,
            script,
            region,
        } = request;
        let wrong_spec = |error| Refusal::bad("spec", error);
        let choice = match region {
            Some(_) => PolicyChoice::of_region(spec),
            None => spec.parse(),
        };
        let choice = choice.map_err(wrong_spec)?;
        let (limits, log) = (Limits::default(), self.log.clone());
        let chosen = match (&choice, script) {
            (PolicyChoice::Script(_), None) => {
                let detail = format!("`{spec}` names a script: its text has to be here");
                return Err(Refusal::bad("script", detail));
            }
            (PolicyChoice::BuiltIn(_), None) => choice.load(limits, log).map_err(wrong_spec),
            (PolicyChoice::BuiltIn(_), Some(_)) => {
                let detail = format!(
                    "`{spec}` names no script, but the text of one is there; name it like mine.luau:window=32+lru"
                );
                return Err(Refusal::bad("spec", detail));
            }
            (PolicyChoice::Script(_), Some(text)) => choice
                .with_text(text.clone(), limits, log)
                .map_err(|error| Refusal::bad("script", error)),
        }?;
        let told = chosen.check_told(self.config.devices.accesses);
        told.map_err(|error| Refusal::bad("script", error))?;
        match region {
            Some(_) => chosen.for_region().map_err(wrong_spec),
            None => Ok(chosen),
        }
    }

    /// Says what a policy would be; it decides nothing.
    pub(super) fn check_policy(&self, request: &SetPolicy) -> Result<Policy, Refusal> {
        request.region.map(|it| self.range(it)).transpose()?;
        let chosen = self.chosen(request)?;
        Ok(Policy {
            policy: chosen.factory.name(),
            exact: chosen.factory.exact(),
        })
    }

    pub(super) fn set_policy(&self, request: &SetPolicy) -> Result<Policy, Refusal> {
        let region = request.region.map(|it| self.range(it)).transpose()?;
        let Chosen { factory, scripts } = self.chosen(request)?;
        self.going_on()?;
        let replaced = self.backend.replace_policy(region, factory);
        replaced.map_err(|error| Refusal::from(error).about("region"))?;
        self.run.uses(scripts);
        Ok(self.policy())
    }
}
