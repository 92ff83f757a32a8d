//! Mistakes of the user, which have an exit code of their own: a wrong command line, or a wrong value in a configuration, a
//! sweep's file or a policy script.

use std::error::Error;
use std::process::ExitCode;

use hmmvisor::RunError;
use hmmvisor::config::ConfigError;
use hmmvisor::sandbox::SandboxError;
use hmmvisor_accesses::AccessError;
use hmmvisor_experiments::sweep::SweepError;
use hmmvisor_experiments::trace::GenerateError;
use hmmvisor_guest_images::CatalogError;
use hmmvisor_policies::ScriptError;

/// A wrong command line that a command notices by itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Mistake(pub String);

/// The exit code for mistakes of the user. It is also clap's.
const MISTAKE: u8 = 2;

/// Returns the exit code for an error.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.chain().any(is_mistake) {
        true => ExitCode::from(MISTAKE),
        false => ExitCode::FAILURE,
    }
}

fn is_mistake(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<RunError>() {
        // These variants are transparent: the chain goes on with the sources of their errors and leaves the errors out.
        return match error {
            RunError::Config(error) => is_mistake(error),
            RunError::Workload(error) => is_mistake(error),
            RunError::Script(error) => is_mistake(error),
            _ => false,
        };
    }
    if let Some(error) = error.downcast_ref::<ConfigError>() {
        // Files that cannot be read, and what the host has no room for, may be right tomorrow.
        return !matches!(
            error,
            ConfigError::File { .. } | ConfigError::Group { .. } | ConfigError::AddressSpace { .. }
        );
    }
    if let Some(error) = error.downcast_ref::<SandboxError>() {
        return matches!(error, SandboxError::Folder { .. });
    }
    if let Some(error) = error.downcast_ref::<ScriptError>() {
        return !matches!(
            error,
            ScriptError::Read { .. }
                | ScriptError::NotRecorded { .. }
                | ScriptError::Changed { .. }
        );
    }
    if let Some(error) = error.downcast_ref::<SweepError>() {
        return matches!(error, SweepError::Toml { .. } | SweepError::Value { .. });
    }
    if let Some(GenerateError::Workload(error)) = error.downcast_ref() {
        return matches!(
            error,
            AccessError::Workload(_)
                | AccessError::NeedsMachine { .. }
                | AccessError::Setting { .. }
        );
    }
    error.is::<Mistake>() || error.is::<CatalogError>()
}
