//! Policies by name: `density:threshold=60+lru+timeslice:min=200us`.
//!
//! A specification is a list of components separated by `+`, each a name with optional parameters. One
//! component decides about faults, one about eviction, and `timeslice` adds a minimum residency; what
//! is not named takes its default.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{
    Advice, BlockFault, BlockView, Density, EvictionPolicy, FaultPolicy, Lru, OnDemand,
    PolicyFactory,
};
use crate::time::MAX_HOLD;

/// A policy component, for people who choose one.
#[derive(Debug)]
pub struct PolicyInfo {
    /// Its name.
    pub name: &'static str,
    /// What it decides: `faults`, `eviction` or `residency`.
    pub kind: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Its parameters.
    pub params: &'static [PolicyParam],
}

/// A parameter of a policy component.
#[derive(Debug)]
pub struct PolicyParam {
    /// Its name.
    pub name: &'static str,
    /// One line, with the range.
    pub summary: &'static str,
    /// The default.
    pub default: &'static str,
}

static POLICIES: [PolicyInfo; 4] = [
    PolicyInfo {
        name: "on-demand",
        kind: "faults",
        summary: "migrate the faulting page only",
        params: &[],
    },
    PolicyInfo {
        name: "density",
        kind: "faults",
        summary: "bring along the largest surrounding region that is dense enough (NVIDIA UVM's tree)",
        params: &[
            PolicyParam {
                name: "threshold",
                summary: "percent of a region that must be exceeded, 1 to 100",
                default: "51",
            },
            PolicyParam {
                name: "min_faults",
                summary: "faults on a 2 MiB block before anything is prefetched, 1 to 512",
                default: "1",
            },
        ],
    },
    PolicyInfo {
        name: "lru",
        kind: "eviction",
        summary: "evict what was migrated or faulted on by the device longest ago",
        params: &[],
    },
    PolicyInfo {
        name: "timeslice",
        kind: "residency",
        summary: "a page stays where it was migrated on demand for a minimum time, against ping-pong",
        params: &[PolicyParam {
            name: "min",
            summary: "the minimum time, 0 to 1s (us, ms, s)",
            default: "100us",
        }],
    },
];

/// All policy components there are.
pub fn policies() -> &'static [PolicyInfo] {
    &POLICIES
}

/// What is wrong with a policy specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No such component.
    #[error("unknown policy '{name}'; there are: {known}")]
    Unknown {
        /// What was given.
        name: String,
        /// All names.
        known: String,
    },
    /// No such parameter.
    #[error("policy '{policy}' has no parameter '{param}'; it has: {known}")]
    UnknownParam {
        /// The component.
        policy: &'static str,
        /// What was given.
        param: String,
        /// Its parameters.
        known: String,
    },
    /// A parameter without a usable value.
    #[error("policy '{policy}', parameter '{param}': '{value}' is not {expected}")]
    BadValue {
        /// The component.
        policy: &'static str,
        /// The parameter.
        param: &'static str,
        /// What was given.
        value: String,
        /// What was expected.
        expected: &'static str,
    },
    /// Two components for one decision.
    #[error("policies '{first}' and '{second}' both decide about {kind}; name one of them")]
    Twice {
        /// The first.
        first: &'static str,
        /// The second.
        second: &'static str,
        /// What both decide.
        kind: &'static str,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Faults {
    OnDemand,
    Density { threshold: u32, min_faults: u32 },
}

/// A parsed specification. The default is `density+lru+timeslice`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicySpec {
    faults: Faults,
    timeslice: Duration,
}

impl Default for PolicySpec {
    fn default() -> Self {
        "density+lru+timeslice".parse().expect("the default parses")
    }
}

impl FromStr for PolicySpec {
    type Err = PolicyError;

    fn from_str(spec: &str) -> Result<Self, PolicyError> {
        let mut chosen: BTreeMap<&str, &'static PolicyInfo> = BTreeMap::new();
        let mut parsed = PolicySpec {
            faults: Faults::Density {
                threshold: 51,
                min_faults: 1,
            },
            timeslice: Duration::from_micros(100),
        };
        for component in spec.split('+') {
            let (name, params) = component.split_once(':').unwrap_or((component, ""));
            let info = POLICIES
                .iter()
                .find(|p| p.name == name.trim())
                .ok_or_else(|| PolicyError::Unknown {
                    name: name.trim().into(),
                    known: names(POLICIES.iter().map(|p| p.name)),
                })?;
            if let Some(first) = chosen.insert(info.kind, info) {
                return Err(PolicyError::Twice {
                    first: first.name,
                    second: info.name,
                    kind: info.kind,
                });
            }
            let params = Params::parse(info, params)?;
            match info.name {
                "on-demand" => parsed.faults = Faults::OnDemand,
                "density" => {
                    parsed.faults = Faults::Density {
                        threshold: params.integer(
                            "threshold",
                            1,
                            100,
                            "a whole number from 1 to 100",
                        )?,
                        min_faults: params.integer(
                            "min_faults",
                            1,
                            512,
                            "a whole number from 1 to 512",
                        )?,
                    }
                }
                "timeslice" => parsed.timeslice = params.time("min")?,
                _ => {}
            }
        }
        Ok(parsed)
    }
}

impl fmt::Display for PolicySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.faults {
            Faults::OnDemand => f.write_str("on-demand")?,
            Faults::Density {
                threshold: 51,
                min_faults: 1,
            } => f.write_str("density")?,
            Faults::Density {
                threshold,
                min_faults,
            } => write!(f, "density:threshold={threshold},min_faults={min_faults}")?,
        }
        f.write_str("+lru")?;
        match self.timeslice.as_micros() {
            100 => f.write_str("+timeslice"),
            us => write!(f, "+timeslice:min={us}us"),
        }
    }
}

impl PolicyFactory for PolicySpec {
    fn fault_policy(&self) -> Box<dyn FaultPolicy> {
        let inner: Box<dyn FaultPolicy> = match self.faults {
            Faults::OnDemand => Box::new(OnDemand),
            Faults::Density {
                threshold,
                min_faults,
            } => Box::new(Density::new(threshold, min_faults)),
        };
        Box::new(Timeslice {
            min: self.timeslice,
            inner,
        })
    }

    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy> {
        Box::new(Lru::new(frames))
    }

    fn name(&self) -> String {
        self.to_string()
    }
}

/// Minimum residency: what another policy advises, and pages stay at least this long. Xe's timeslice
/// (`drm_pagemap`), here for both directions: the side that got a page makes progress with it
/// before the other side can take it away again.
struct Timeslice {
    min: Duration,
    inner: Box<dyn FaultPolicy>,
}

impl FaultPolicy for Timeslice {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        let mut advice = self.inner.advise(fault, view);
        advice.hold = advice.hold.max(self.min);
        advice
    }
}

/// The parameters given for one component.
struct Params<'a> {
    policy: &'static PolicyInfo,
    given: BTreeMap<&'static str, &'a str>,
}

impl<'a> Params<'a> {
    fn parse(policy: &'static PolicyInfo, text: &'a str) -> Result<Self, PolicyError> {
        let mut given = BTreeMap::new();
        for pair in text.split(',').filter(|p| !p.trim().is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let param = policy
                .params
                .iter()
                .find(|p| p.name == name.trim())
                .ok_or_else(|| PolicyError::UnknownParam {
                    policy: policy.name,
                    param: name.trim().into(),
                    known: match policy.params {
                        [] => "none".into(),
                        params => names(params.iter().map(|p| p.name)),
                    },
                })?;
            given.insert(param.name, value.trim());
        }
        Ok(Params { policy, given })
    }

    fn value(&self, name: &'static str) -> &'a str {
        let default = || {
            self.policy
                .params
                .iter()
                .find(|p| p.name == name)
                .map_or("", |p| p.default)
        };
        self.given.get(name).copied().unwrap_or_else(default)
    }

    fn bad(&self, param: &'static str, expected: &'static str) -> PolicyError {
        PolicyError::BadValue {
            policy: self.policy.name,
            param,
            value: self.value(param).into(),
            expected,
        }
    }

    fn integer(
        &self,
        name: &'static str,
        min: u32,
        max: u32,
        expected: &'static str,
    ) -> Result<u32, PolicyError> {
        let value = self
            .value(name)
            .parse()
            .ok()
            .filter(|v| (min..=max).contains(v));
        value.ok_or_else(|| self.bad(name, expected))
    }

    fn time(&self, name: &'static str) -> Result<Duration, PolicyError> {
        let text = self.value(name);
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "us" => Some(1),
            "ms" => Some(1000),
            "s" => Some(1_000_000),
            "" if digits == "0" => Some(1),
            _ => None,
        };
        digits
            .parse::<u64>()
            .ok()
            .zip(unit)
            .and_then(|(n, unit)| n.checked_mul(unit))
            .map(Duration::from_micros)
            .filter(|t| *t <= MAX_HOLD)
            .ok_or_else(|| self.bad(name, "a time from 0 to 1s, such as 100us or 2ms"))
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_are_printed_as_they_are_parsed() {
        for spec in [
            "density+lru+timeslice",
            "on-demand+lru+timeslice:min=0us",
            "density:threshold=75,min_faults=4+lru+timeslice:min=2000us",
        ] {
            assert_eq!(spec.parse::<PolicySpec>().unwrap().to_string(), spec);
        }
        let short: PolicySpec = "on-demand".parse().unwrap();
        assert_eq!(short.to_string(), "on-demand+lru+timeslice");
        assert_eq!(
            "timeslice:min=2ms".parse::<PolicySpec>().unwrap().timeslice,
            Duration::from_millis(2)
        );
    }

    #[test]
    fn mistakes_are_named() {
        let message = |spec: &str| spec.parse::<PolicySpec>().unwrap_err().to_string();
        assert_eq!(
            message("densty"),
            "unknown policy 'densty'; there are: on-demand, density, lru, timeslice"
        );
        assert_eq!(
            message(""),
            "unknown policy ''; there are: on-demand, density, lru, timeslice"
        );
        assert_eq!(
            message("density:treshold=3"),
            "policy 'density' has no parameter 'treshold'; it has: threshold, min_faults"
        );
        assert_eq!(
            message("lru:x=1"),
            "policy 'lru' has no parameter 'x'; it has: none"
        );
        for bad in ["0", "101", "-3", "abc", ""] {
            assert_eq!(
                message(&format!("density:threshold={bad}")),
                format!(
                    "policy 'density', parameter 'threshold': '{bad}' is not a whole number from 1 to 100"
                )
            );
        }
        assert!(message("timeslice:min=5").contains("is not a time"));
        assert!(message("timeslice:min=2s").contains("is not a time"));
        assert!(message("timeslice:min=99999999999999999999s").contains("is not a time"));
        assert_eq!(
            message("density+on-demand"),
            "policies 'density' and 'on-demand' both decide about faults; name one of them"
        );
    }
}
