//! A script's file with its parameters, as a user names it.

use std::fmt;
use std::path::PathBuf;

use hmm_backend::policy::{PolicySpec, policies};
use hmm_backend::text::printable;

use crate::error::ScriptError;

/// A script's file with its parameters, and what stands beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptSpec {
    /// The file.
    pub path: PathBuf,
    /// Parameters that the script finds in `hmm.params`.
    pub params: Vec<(String, String)>,
    /// Built-in components that do not decide about faults, joined by `+`.
    pub(crate) rest: String,
}

impl ScriptSpec {
    /// A script without parameters and with the defaults beside it.
    pub fn file(path: PathBuf) -> ScriptSpec {
        ScriptSpec {
            path,
            params: Vec::new(),
            rest: String::new(),
        }
    }

    /// The script's file with its parameters, without what stands beside it.
    pub(crate) fn script(&self) -> String {
        let mut text = self.path.display().to_string();
        for (i, (name, value)) in self.params.iter().enumerate() {
            let before = if i == 0 { ':' } else { ',' };
            text += &format!("{before}{name}={value}");
        }
        text
    }

    /// The built-in components beside the script.
    pub(crate) fn components(&self) -> impl Iterator<Item = &str> {
        self.rest.split('+')
    }

    /// What is beside the script, `eviction` being what the script asks for.
    pub(crate) fn beside(&self, eviction: Option<&str>) -> Result<PolicySpec, ScriptError> {
        let mut text = "on-demand".to_owned();
        if !self.rest.is_empty() {
            text = format!("{text}+{}", self.rest);
        }
        // What the user says counts more than what the script says.
        if let Some(eviction) = eviction
            && !self.components().any(|it| kind(it) == Some("eviction"))
        {
            if kind(eviction) != Some("eviction") {
                return Err(ScriptError::Script(format!(
                    "{}:1: `eviction` is '{}', which is no eviction policy",
                    self.path.display(),
                    printable(eviction)
                )));
            }
            text = format!("{text}+{eviction}");
        }
        Ok(text.parse()?)
    }
}

/// A component without its parameters.
pub(crate) fn name(component: &str) -> &str {
    component.split(':').next().unwrap_or_default().trim()
}

/// What a built-in component decides.
pub(crate) fn kind(component: &str) -> Option<&'static str> {
    let name = name(component);
    policies()
        .iter()
        .find(|policy| policy.name == name)
        .map(|policy| policy.kind)
}

impl fmt::Display for ScriptSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.script())?;
        if !self.rest.is_empty() {
            write!(f, "+{}", self.rest)?;
        }
        Ok(())
    }
}
