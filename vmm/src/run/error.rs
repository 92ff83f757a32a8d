//! Why a run could not start.

use std::path::PathBuf;

use hmmvisor_devices::virtio::DiskError;
use hmmvisor_experiments::output::OutputError;
use hmmvisor_experiments::trace::TraceError;
use hmmvisor_guest_images::CatalogError;
use hmmvisor_policies::ScriptError;
use thiserror::Error;

use crate::api::ApiError;
use crate::config::ConfigError;
use crate::guest::linux::LoadError;
use crate::guest::program::image::ImageError;
use crate::host::file::FileError;
use crate::vm::VmError;

/// Why a run could not start. How a run ended that did start is in its [`Report`](super::report::Report).
#[derive(Debug, Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The workload or its parameters.
    #[error(transparent)]
    Workload(#[from] CatalogError),
    /// The guest's file cannot be read.
    #[error("reading guest file {}: {error}", path.display())]
    GuestFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: FileError,
    },
    /// The guest's file is no guest.
    #[error("loading guest file {}: {error}", path.display())]
    Guest {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: ImageError,
    },
    /// A kernel, its ramdisk or its command line.
    #[error(transparent)]
    Linux(#[from] LoadError),
    /// A policy script.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Managed memory.
    #[error("making managed memory: {0}")]
    Backend(#[from] hmm_backend::Error),
    /// The trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The trace's file.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The API's socket.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The virtual machine.
    #[error(transparent)]
    Vm(#[from] VmError),
}
