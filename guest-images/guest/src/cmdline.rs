//! The command line: which workload to run, with which parameters.

use crate::catalog::{WORKLOADS, Workload};
use core::fmt;

/// A workload and the values of its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params<'a> {
    pub workload: &'static Workload,
    cmdline: &'a str,
}

/// A mistake in a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadCmdline<'a> {
    /// A word is not `key=value`.
    NoValue(&'a str),
    /// No such workload.
    Workload(&'a str),
    /// The workload has no such parameter.
    Parameter(&'a str),
    /// The parameter's value is no number or out of range.
    Value(&'a str, &'a str),
}

impl<'a> Params<'a> {
    /// Reads and checks a command line. Without a workload it names the catalogue's first one.
    pub fn parse(cmdline: &'a str) -> Result<Self, BadCmdline<'a>> {
        let workload = match value_of(cmdline, "workload") {
            None => &WORKLOADS[0],
            Some(name) => {
                let known = WORKLOADS.iter().find(|workload| workload.name == name);
                known.ok_or(BadCmdline::Workload(name))?
            }
        };
        for word in cmdline.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').ok_or(BadCmdline::NoValue(word))?;
            if name != "workload" {
                let known = workload.params.iter().find(|param| param.name == name);
                let param = known.ok_or(BadCmdline::Parameter(name))?;
                param
                    .parse(value)
                    .map_err(|_| BadCmdline::Value(name, value))?;
            }
        }
        Ok(Self { workload, cmdline })
    }

    /// The value of a parameter that the catalogue has for this workload.
    pub fn get(&self, name: &str) -> u64 {
        let known = self.workload.params.iter().find(|param| param.name == name);
        let param = known.expect("workloads use the parameters that the catalogue gives them");
        let given = value_of(self.cmdline, name).and_then(|value| param.parse(value).ok());
        given.unwrap_or(param.default)
    }
}

fn value_of<'a>(cmdline: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = cmdline
        .split_ascii_whitespace()
        .filter_map(|word| word.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

impl fmt::Display for BadCmdline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::NoValue(word) => write!(f, "`{word}` is not `key=value`"),
            Self::Workload(name) => write!(f, "unknown workload `{name}`"),
            Self::Parameter(name) => write!(f, "unknown parameter `{name}`"),
            Self::Value(name, value) => write!(f, "bad value {name}={value}"),
        }
    }
}
