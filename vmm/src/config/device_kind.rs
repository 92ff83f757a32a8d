//! Whether CPUs reach an accelerator's memory.

use std::fmt::{self, Display};
use std::str::FromStr;

/// The kind of an accelerator's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DeviceKind {
    /// CPUs cannot reach it: pages migrate on faults.
    #[default]
    Private,
    /// CPUs reach it in place: pages move only when the guest asks for it.
    Coherent,
}

impl Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceKind::Private => "private",
            DeviceKind::Coherent => "coherent",
        })
    }
}

impl FromStr for DeviceKind {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceKind, String> {
        match text {
            "private" => Ok(DeviceKind::Private),
            "coherent" => Ok(DeviceKind::Coherent),
            _ => Err(format!(
                "unknown kind of device memory '{text}'; there are: private, coherent"
            )),
        }
    }
}
