//! Parameters of policy components: accepted values, parsing and printing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::error::PolicyError;
use super::fault::Placement;
use super::file::PolicyFile;

/// A description of a policy component for users.
#[derive(Debug, PartialEq, Eq)]
pub struct PolicyInfo {
    /// The name.
    pub name: &'static str,
    /// The kind: `faults` or `eviction`, of which a specification has one each, or `modifier`, which changes the
    /// advice of the other components.
    pub kind: &'static str,
    /// A summary of one line.
    pub summary: &'static str,
    /// The parameters.
    pub params: &'static [PolicyParam],
}

/// A parameter of a policy component.
#[derive(Debug, PartialEq, Eq)]
pub struct PolicyParam {
    /// The name.
    pub name: &'static str,
    /// A summary of one line, with the range.
    pub summary: &'static str,
    /// The default; empty if the parameter must be given.
    pub default: &'static str,
    /// The accepted values.
    pub accepts: Accepts,
}

/// The values that a parameter accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// A whole number.
    Integer {
        /// The smallest.
        min: u32,
        /// The largest.
        max: u32,
    },
    /// A time with a unit.
    Time {
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// One of these words.
    Word(&'static [&'static str]),
    /// The path of a placement file.
    Placement,
}

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Integer(u32),
    Time(Duration),
    Word(&'static str),
    Placement(Arc<Placement>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Integer(n) => n.fmt(f),
            Value::Time(Duration::ZERO) => f.write_str("0us"),
            Value::Time(time) => f.write_str(&short(*time)),
            Value::Word(word) => f.write_str(word),
            Value::Placement(placement) => placement.file().path.display().fmt(f),
        }
    }
}

/// A component with values for all its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Component {
    pub(super) info: &'static PolicyInfo,
    values: Vec<Value>,
}

impl Component {
    /// Parses `name=value,name=value`. A parameter that is not given has its default.
    pub(super) fn parse(info: &'static PolicyInfo, text: &str) -> Result<Component, PolicyError> {
        let mut given = BTreeMap::new();
        for pair in text.split(',').filter(|p| !p.trim().is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let param = info
                .params
                .iter()
                .find(|p| p.name == name.trim())
                .ok_or_else(|| PolicyError::UnknownParam {
                    policy: info.name,
                    param: name.trim().into(),
                    known: match info.params {
                        [] => "none".into(),
                        params => names(params.iter().map(|p| p.name)),
                    },
                })?;
            if given.insert(param.name, value.trim()).is_some() {
                return Err(PolicyError::RepeatedParam {
                    policy: info.name,
                    param: param.name,
                });
            }
        }
        let value = |param: &'static PolicyParam| {
            let text = given.get(param.name).copied().unwrap_or(param.default);
            parse_value(info, param, text)
        };
        let values = info.params.iter().map(value).collect::<Result<_, _>>()?;
        Ok(Component { info, values })
    }

    fn value(&self, name: &str) -> &Value {
        let at = self.info.params.iter().position(|p| p.name == name);
        &self.values[at.expect("policies ask for parameters they have")]
    }

    pub(super) fn integer(&self, name: &str) -> u32 {
        match self.value(name) {
            Value::Integer(n) => *n,
            other => unreachable!("{name} is {other:?}"),
        }
    }

    pub(super) fn word(&self, name: &str) -> &'static str {
        match self.value(name) {
            Value::Word(word) => word,
            other => unreachable!("{name} is {other:?}"),
        }
    }

    pub(super) fn time(&self, name: &str) -> Duration {
        match self.value(name) {
            Value::Time(time) => *time,
            other => unreachable!("{name} is {other:?}"),
        }
    }

    /// Returns the values in `name=value,name=value` that are file names, without opening the files.
    pub(super) fn named_files<'a>(
        info: &'static PolicyInfo,
        text: &'a str,
    ) -> impl Iterator<Item = &'a str> {
        text.split(',').filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let param = info.params.iter().find(|p| p.name == name.trim())?;
            (param.accepts == Accepts::Placement).then_some(value.trim())
        })
    }

    /// The files that the component's parameters name.
    pub(super) fn files(&self) -> impl Iterator<Item = PolicyFile> {
        self.values.iter().filter_map(|value| match value {
            Value::Placement(placement) => Some(placement.file().clone()),
            _ => None,
        })
    }

    pub(super) fn placement(&self, name: &str) -> Arc<Placement> {
        match self.value(name) {
            Value::Placement(placement) => placement.clone(),
            other => unreachable!("{name} is {other:?}"),
        }
    }
}

impl Component {
    /// The component with all parameters.
    pub(super) fn exact(&self) -> String {
        let mut text = self.info.name.to_owned();
        for (i, (param, value)) in self.info.params.iter().zip(&self.values).enumerate() {
            let separator = if i == 0 { ':' } else { ',' };
            text += &format!("{separator}{}={value}", param.name);
            if let Value::Placement(placement) = value {
                text += &format!("#{}", placement.checksum());
            }
        }
        text
    }
}

impl fmt::Display for Component {
    /// Writes the component with the parameters that are not at their defaults.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info.name)?;
        let mut separator = ':';
        for (param, value) in self.info.params.iter().zip(&self.values) {
            let default = parse_value(self.info, param, param.default);
            if default.as_ref() != Ok(value) {
                write!(f, "{separator}{}={value}", param.name)?;
                separator = ',';
            }
        }
        Ok(())
    }
}

fn parse_value(
    policy: &'static PolicyInfo,
    param: &'static PolicyParam,
    text: &str,
) -> Result<Value, PolicyError> {
    let bad = |expected| PolicyError::BadValue {
        policy: policy.name,
        param: param.name,
        value: text.into(),
        expected,
    };
    match param.accepts {
        Accepts::Integer { min, max } => {
            let value = text.parse().ok().filter(|v| (min..=max).contains(v));
            value
                .map(Value::Integer)
                .ok_or_else(|| bad(format!("a whole number from {min} to {max}")))
        }
        Accepts::Time { min, max } => {
            let value = parse_time(text).filter(|t| (min..=max).contains(t));
            value.map(Value::Time).ok_or_else(|| {
                let (min, max) = (short(min), short(max));
                bad(format!("a time from {min} to {max}, such as 100us or 2ms"))
            })
        }
        Accepts::Word(words) => {
            let word = words.iter().find(|word| **word == text);
            word.map(|word| Value::Word(word))
                .ok_or_else(|| bad(format!("one of {}", names(words.iter().copied()))))
        }
        Accepts::Placement if text.is_empty() => Err(PolicyError::Missing {
            policy: policy.name,
            param: param.name,
        }),
        Accepts::Placement => Placement::read(text)
            .map(|placement| Value::Placement(Arc::new(placement)))
            .map_err(|error| PolicyError::File {
                policy: policy.name,
                file: text.into(),
                error,
            }),
    }
}

fn parse_time(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        "" if digits == "0" => 1,
        _ => return None,
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(unit).map(Duration::from_micros)
}

/// Formats a time in the largest unit in which it is a whole number.
fn short(time: Duration) -> String {
    match time.as_micros() {
        0 => "0".into(),
        us if us % 1_000_000 == 0 => format!("{}s", us / 1_000_000),
        us if us % 1000 == 0 => format!("{}ms", us / 1000),
        us => format!("{us}us"),
    }
}

pub(super) fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}
