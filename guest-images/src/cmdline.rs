//! Makes the guest's command line from the parameters that a user gave.

use crate::catalog::{Param, WORKLOADS, Workload};
use std::fmt::Write as _;
use thiserror::Error;

/// Why a workload cannot be run as the user asked for it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CatalogError {
    /// There is no workload of this name.
    #[error("unknown workload `{name}`; there are {}", join(WORKLOADS.iter().map(|workload| workload.name)))]
    UnknownWorkload {
        /// What was asked for.
        name: String,
    },
    /// The workload has no such parameter.
    #[error("workload {} has no parameter `{name}`; it has {}", workload.name,
        join(workload.params.iter().map(|param| param.name)))]
    UnknownParameter {
        /// The workload.
        workload: &'static Workload,
        /// What was given.
        name: String,
    },
    /// The same parameter was given more than once.
    #[error("workload {}: parameter `{name}` is given twice", workload.name)]
    Repeated {
        /// The workload.
        workload: &'static Workload,
        /// The parameter's name.
        name: String,
    },
    /// The value is no number, or not in the parameter's range.
    #[error("workload {}: {}={value}: must be {}", workload.name, param.name, allowed(param))]
    BadValue {
        /// The workload.
        workload: &'static Workload,
        /// The parameter.
        param: &'static Param,
        /// What was given for it.
        value: String,
    },
}

/// All workloads; the first is the default.
pub fn workloads() -> &'static [Workload] {
    WORKLOADS
}

/// The workload of this name.
pub fn find(name: &str) -> Result<&'static Workload, CatalogError> {
    let workload = WORKLOADS.iter().find(|workload| workload.name == name);
    workload.ok_or_else(|| CatalogError::UnknownWorkload {
        name: name.to_owned(),
    })
}

impl Workload {
    /// The guest's command line that runs this workload with the given `(name, value)` parameters
    /// and the defaults of the others.
    pub fn cmdline(&'static self, given: &[(String, String)]) -> Result<String, CatalogError> {
        for (position, (name, _)) in given.iter().enumerate() {
            if !self.params.iter().any(|param| param.name == name) {
                return Err(CatalogError::UnknownParameter {
                    workload: self,
                    name: name.clone(),
                });
            }
            if given[..position].iter().any(|(earlier, _)| earlier == name) {
                return Err(CatalogError::Repeated {
                    workload: self,
                    name: name.clone(),
                });
            }
        }
        let mut line = format!("workload={}", self.name);
        for param in self.params {
            let value = match given.iter().find(|(name, _)| name == param.name) {
                None => param.default,
                Some((_, value)) => param.parse(value).map_err(|_| CatalogError::BadValue {
                    workload: self,
                    param,
                    value: value.clone(),
                })?,
            };
            match param.choices.get(value as usize) {
                Some(word) => write!(line, " {}={word}", param.name),
                None => write!(line, " {}={value}", param.name),
            }
            .expect("writing to a string cannot fail");
        }
        Ok(line)
    }
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

fn allowed(param: &Param) -> String {
    if param.choices.is_empty() {
        format!("a number from {} to {}", param.min, param.max)
    } else {
        format!("one of {}", join(param.choices.iter().copied()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cmdline(workload: &str, given: &[(&str, &str)]) -> Result<String, String> {
        let given: Vec<_> = given
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        find(workload)
            .unwrap()
            .cmdline(&given)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_unique_and_are_single_words() {
        let mut seen = Vec::new();
        for workload in workloads() {
            assert!(!seen.contains(&workload.name), "{} twice", workload.name);
            seen.push(workload.name);
            for name in workload
                .params
                .iter()
                .map(|param| param.name)
                .chain([workload.name])
            {
                assert!(
                    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase()),
                    "{name}"
                );
                assert_ne!(name, "workload", "would be taken for the workload's name");
            }
        }
    }

    #[test]
    fn defaults_are_in_range() {
        for param in workloads().iter().flat_map(|workload| workload.params) {
            assert_eq!(
                param.parse(&param.default.to_string()),
                Ok(param.default),
                "{param:?}"
            );
            if !param.choices.is_empty() {
                assert_eq!(
                    (param.min, param.max),
                    (0, param.choices.len() as u64 - 1),
                    "{param:?}"
                );
            }
        }
    }

    #[test]
    fn the_first_workload_is_the_documented_default() {
        assert_eq!(workloads()[0].name, "vecadd");
    }

    #[test]
    fn unknown_workloads_are_refused_with_the_known_ones() {
        let message = find("nosuch").unwrap_err().to_string();
        assert!(
            message.starts_with("unknown workload `nosuch`; there are vecadd, stream, "),
            "{message}"
        );
        assert!(message.ends_with("crash"), "{message}");
    }

    #[test]
    fn defaults_are_filled_in_and_order_does_not_matter() {
        assert_eq!(
            cmdline("vecadd", &[]).unwrap(),
            "workload=vecadd n=1048576 rounds=4 hint=none wait=poll"
        );
        assert_eq!(
            cmdline("vecadd", &[("rounds", "7"), ("n", "10")]).unwrap(),
            "workload=vecadd n=10 rounds=7 hint=none wait=poll"
        );
    }

    #[test]
    fn suffixes_become_numbers_and_numbers_of_words_words() {
        assert_eq!(
            cmdline("vecadd", &[("n", "64K"), ("wait", "interrupt")]).unwrap(),
            "workload=vecadd n=65536 rounds=4 hint=none wait=interrupt"
        );
        assert_eq!(
            cmdline("stream", &[("n", "1M")]).unwrap(),
            "workload=stream n=1048576 rounds=4 wait=poll"
        );
        assert_eq!(
            cmdline("crash", &[("kind", "3")]).unwrap(),
            "workload=crash kind=panic"
        );
        assert_eq!(
            cmdline("crash", &[("kind", "hang")]).unwrap(),
            "workload=crash kind=hang"
        );
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        assert_eq!(
            cmdline("vecadd", &[("size", "1")]).unwrap_err(),
            "workload vecadd has no parameter `size`; it has n, rounds, hint, wait"
        );
        assert_eq!(
            cmdline("vecadd", &[("n", "1"), ("n", "2")]).unwrap_err(),
            "workload vecadd: parameter `n` is given twice"
        );
    }

    #[test]
    fn bad_values_are_refused_with_the_range() {
        for value in [
            "-1",
            "",
            "K",
            "+1",
            "1.5",
            "0x10",
            "one",
            "1 K",
            "0",
            "17179869185",
            "17G",
            "99999999999999999999",
            "18446744073709551615G",
            "1é",
        ] {
            assert_eq!(
                cmdline("vecadd", &[("n", value)]).unwrap_err(),
                format!("workload vecadd: n={value}: must be a number from 1 to 17179869184")
            );
        }
        assert_eq!(
            cmdline("vecadd", &[("wait", "2")]).unwrap_err(),
            "workload vecadd: wait=2: must be one of poll, interrupt"
        );
    }

    #[test]
    fn command_lines_fit_behind_the_boot_information() {
        let room = hmmvisor_abi::map::BOOT_INFO_SIZE - size_of::<hmmvisor_abi::BootInfo>() as u64;
        for workload in workloads() {
            let digits = u64::MAX.to_string().len();
            let longest: usize = workload
                .params
                .iter()
                .map(|param| param.name.len() + digits + 2)
                .sum();
            assert!(
                (workload.name.len() + 9 + longest) as u64 <= room,
                "{}",
                workload.name
            );
        }
    }
}
