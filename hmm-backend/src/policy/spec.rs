//! Policies by name: `density:threshold=60+lru+thrash:pin=100ms`.
//!
//! A specification is a list of components separated by `+`, each a name with optional parameters. One component
//! decides about faults, one about eviction, and modifiers change the advice of these. Components that are not named
//! have defaults.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::catalogue::{EVICTION, FAULTS, MODIFIER, POLICIES};
use super::contract::{EvictionPolicy, FaultPolicy, PolicyFactory};
use super::error::PolicyError;
use super::eviction::{ByMigration, Clock, Fifo, Fill, Lfu, Lru, S3Fifo};
use super::fault::{AccessCounter, Adaptive, Density, FirstTouch, OnDemand, Sequential, Static};
use super::file::PolicyFile;
use super::modifier::{Hints, Modified, Thrash, ThrashParams, Timeslice};
use super::params::{Component, PolicyInfo, names};

/// A parsed specification. The default is `adaptive+lru+timeslice`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicySpec {
    /// The components in the catalogue's order: one for faults, one for eviction, then modifiers. Each modifier wraps
    /// the ones before it; `timeslice` is the outermost.
    components: Vec<Component>,
}

/// The components that are added if no other component of their kind (or, for modifiers, of their name) is given.
const DEFAULTS: [&str; 3] = ["adaptive", "lru", "timeslice"];

impl PolicyInfo {
    /// Whether specifications that say nothing about this component's kind, or, for modifiers, do not name it, have it.
    pub fn is_default(&self) -> bool {
        DEFAULTS.contains(&self.name)
    }
}

impl PolicySpec {
    /// Whether the specification has a component of this name.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Returns the files that a specification names, without opening them. Reports no errors; parsing does.
    pub fn named_files(spec: &str) -> Vec<PathBuf> {
        let files = |component: &str| -> Vec<PathBuf> {
            let (name, params) = component.split_once(':').unwrap_or((component, ""));
            let info = POLICIES.iter().find(|p| p.name == name.trim());
            let files = info.map(|info| Component::named_files(info, params));
            files.into_iter().flatten().map(PathBuf::from).collect()
        };
        spec.split('+').flat_map(files).collect()
    }

    fn find(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|c| c.info.name == name)
    }

    fn of_kind(&self, kind: &str) -> &Component {
        let found = self.components.iter().find(|c| c.info.kind == kind);
        found.expect("every specification has one of each")
    }
}

impl Default for PolicySpec {
    fn default() -> Self {
        "adaptive+lru+timeslice"
            .parse()
            .expect("the default parses")
    }
}

impl FromStr for PolicySpec {
    type Err = PolicyError;

    fn from_str(spec: &str) -> Result<Self, PolicyError> {
        let mut components: Vec<Component> = Vec::new();
        for component in spec.split('+') {
            let (name, params) = component.split_once(':').unwrap_or((component, ""));
            let info = POLICIES
                .iter()
                .find(|p| p.name == name.trim())
                .ok_or_else(|| PolicyError::Unknown {
                    name: name.trim().into(),
                    known: names(POLICIES.iter().map(|p| p.name)),
                })?;
            let rival = |c: &&Component| match info.kind {
                MODIFIER => c.info.name == info.name,
                kind => c.info.kind == kind,
            };
            match components.iter().find(rival).map(|c| c.info) {
                Some(_) if info.kind == MODIFIER => return Err(PolicyError::Repeated(info.name)),
                Some(first) => {
                    return Err(PolicyError::Twice {
                        first: first.name,
                        second: info.name,
                        kind: info.kind,
                    });
                }
                None => components.push(Component::parse(info, params)?),
            }
        }
        for info in POLICIES.iter().filter(|p| p.is_default()) {
            let there = |c: &Component| match info.kind {
                MODIFIER => c.info.name == info.name,
                kind => c.info.kind == kind,
            };
            if !components.iter().any(there) {
                components.push(Component::parse(info, "")?);
            }
        }
        let place = |c: &Component| POLICIES.iter().position(|p| p.name == c.info.name);
        components.sort_by_key(place);
        Ok(PolicySpec { components })
    }
}

impl fmt::Display for PolicySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, component) in self.components.iter().enumerate() {
            let plus = if i > 0 { "+" } else { "" };
            write!(f, "{plus}{component}")?;
        }
        Ok(())
    }
}

impl PolicyFactory for PolicySpec {
    fn fault_policy(&self) -> Box<dyn FaultPolicy> {
        let faults = self.of_kind(FAULTS);
        let mut policy: Box<dyn FaultPolicy> = match faults.info.name {
            "on-demand" => Box::new(OnDemand),
            "sequential" => Box::new(Sequential::new(
                faults.integer("window"),
                faults.integer("min_run"),
            )),
            "first-touch" => Box::new(FirstTouch),
            "adaptive" => Box::new(Adaptive::default()),
            "access-counter" => Box::new(AccessCounter::new(faults.integer("threshold"))),
            "static" => Box::new(Static::new(faults.placement("file"), faults.time("hold"))),
            _ => Box::new(Density::new(
                faults.integer("threshold"),
                faults.integer("min_faults"),
            )),
        };
        if self.has("hints") {
            policy = Modified::boxed(Hints::default(), policy);
        }
        if let Some(thrash) = self.find("thrash") {
            let params = ThrashParams {
                threshold: thrash.integer("threshold") as u8,
                lapse: thrash.time("lapse"),
                nap: thrash.time("nap"),
                pin: thrash.time("pin"),
                pin_threshold: thrash.integer("pin_threshold") as u8,
                max_resets: thrash.integer("max_resets"),
                epoch: thrash.time("epoch"),
            };
            policy = Modified::boxed(Thrash::new(params), policy);
        }
        match self.find("timeslice") {
            Some(slice) => Modified::boxed(Timeslice(slice.time("min")), policy),
            None => policy,
        }
    }

    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy> {
        let eviction = self.of_kind(EVICTION);
        match eviction.info.name {
            "fifo" => Box::new(Fifo::new(frames)),
            "clock" => Box::new(Clock::new(frames)),
            "lfu" => Box::new(Lfu::new(frames)),
            "s3-fifo" => {
                let fill = match eviction.word("fill") {
                    "small" => Fill::Small,
                    _ => Fill::Main,
                };
                Box::new(S3Fifo::new(frames, fill))
            }
            "by-migration" => Box::new(ByMigration::new(frames)),
            _ => Box::new(Lru::new(frames)),
        }
    }

    fn name(&self) -> String {
        self.to_string()
    }

    fn exact(&self) -> String {
        let components: Vec<_> = self.components.iter().map(Component::exact).collect();
        components.join("+")
    }

    fn files(&self) -> Vec<PolicyFile> {
        self.components.iter().flat_map(Component::files).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_are_printed_as_they_are_parsed() {
        for spec in [
            "density+lru+timeslice",
            "on-demand+lru+timeslice:min=0us",
            "density:threshold=75,min_faults=4+lru+timeslice:min=2ms",
            "density:min_faults=4+s3-fifo+timeslice+hints+thrash:threshold=2,pin=0us",
            "access-counter:threshold=16+by-migration+timeslice",
            "sequential:window=64+clock+timeslice",
            "first-touch+lfu+timeslice+thrash",
        ] {
            assert_eq!(spec.parse::<PolicySpec>().unwrap().to_string(), spec);
        }
        for (spec, printed) in [
            ("on-demand", "on-demand+lru+timeslice"),
            ("timeslice:min=2000us", "adaptive+lru+timeslice:min=2ms"),
            ("fifo", "adaptive+fifo+timeslice"),
            ("thrash + on-demand", "on-demand+lru+timeslice+thrash"),
            // Defaults that are given explicitly are not printed.
            (
                "density+thrash:pin=150ms+lru",
                "density+lru+timeslice+thrash",
            ),
        ] {
            assert_eq!(spec.parse::<PolicySpec>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn the_exact_form_has_every_parameter_and_parses_to_the_same() {
        for info in &POLICIES {
            let Ok(spec) = info.name.parse::<PolicySpec>() else {
                assert_eq!(info.name, "static");
                continue;
            };
            let exact = spec.exact();
            for component in &spec.components {
                for param in component.info.params {
                    assert!(exact.contains(&format!("{}=", param.name)), "{exact}");
                }
            }
            assert_eq!(exact.parse::<PolicySpec>().unwrap(), spec, "{exact}");
        }
        let exact = "density:threshold=75"
            .parse::<PolicySpec>()
            .unwrap()
            .exact();
        assert_eq!(
            exact,
            "density:threshold=75,min_faults=1+lru+timeslice:min=100us"
        );
    }

    #[test]
    fn the_exact_form_of_a_placement_stands_for_what_is_in_its_file() {
        let folder = tempfile_in_target();
        let exact = |text: &str| {
            std::fs::write(&folder, text).unwrap();
            let spec = format!("static:file={}", folder.display());
            spec.parse::<PolicySpec>().unwrap().exact()
        };
        let (one, other) = (exact("0 16 device"), exact("0 32 device"));
        let spec = format!("hints+static:hold=1ms,file={}+lru", folder.display());
        assert_eq!(
            PolicySpec::named_files(&spec),
            std::slice::from_ref(&folder)
        );
        let files = spec.parse::<PolicySpec>().unwrap().files();
        assert!(files.len() == 1 && files[0].path == folder, "{files:?}");

        std::fs::remove_file(&folder).unwrap();
        assert!(one.contains(&format!("{}#", folder.display())), "{one}");
        assert_ne!(one, other);
    }

    /// Returns the path of a temporary file that only this process uses.
    fn tempfile_in_target() -> std::path::PathBuf {
        std::env::temp_dir().join(format!("placement-{}", std::process::id()))
    }

    #[test]
    fn every_component_has_usable_defaults_and_is_made() {
        for info in &POLICIES {
            let Ok(spec) = info.name.parse::<PolicySpec>() else {
                assert_eq!(info.name, "static");
                continue;
            };
            assert!(spec.has(info.name));
            spec.fault_policy();
            spec.eviction_policy(100);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let message = |spec: &str| spec.parse::<PolicySpec>().unwrap_err().to_string();
        let known = "there are: on-demand, density, sequential, first-touch, access-counter, adaptive, static, lru, fifo, clock, \
                     lfu, s3-fifo, by-migration, timeslice, hints, thrash";
        assert_eq!(
            message("densty"),
            format!("unknown policy 'densty'; {known}")
        );
        assert_eq!(message(""), format!("unknown policy ''; {known}"));
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
        assert_eq!(
            message("density:threshold=1,threshold=2"),
            "policy 'density', parameter 'threshold' is given twice; give it once"
        );
        assert!(message("timeslice:min=5").contains("is not a time"));
        assert!(message("timeslice:min=2s").contains("is not a time from 0 to 1s, such as"));
        assert!(message("timeslice:min=99999999999999999999s").contains("is not a time"));
        assert!(message("thrash:lapse=1us").contains("is not a time from 5us to 500ms, such as"));
        assert_eq!(
            message("density+on-demand"),
            "policies 'density' and 'on-demand' both decide about faults; name one of them"
        );
        assert_eq!(
            message("fifo+lru"),
            "policies 'fifo' and 'lru' both decide about eviction; name one of them"
        );
        assert_eq!(
            message("thrash+lru+thrash:pin=1s"),
            "policy 'thrash' is named twice; name it once, with all its parameters"
        );
        assert_eq!(
            message("static"),
            "policy 'static' needs parameter 'file': write static:file=..."
        );
        assert!(
            message("static:file=/no/such")
                .starts_with("policy 'static', placement file /no/such: cannot be read: No such")
        );
    }
}
