//! The guest that a configuration names.

use hmmvisor_guest_images as guest_images;

use super::error::RunError;
use crate::config::Config;
use crate::guest::Guest;
use crate::guest::linux::layout::Layout;
use crate::guest::linux::{DEFAULT_CMDLINE, Linux, LinuxGuest};
use crate::guest::program::{Program, image};
use crate::host::file;

/// A guest, with the name and the command line of its workload.
pub(crate) struct ChosenGuest {
    pub(crate) guest: Box<dyn Guest>,
    /// The workload's name; none if a guest of the user's runs without one, and for operating systems.
    pub(crate) workload: Option<String>,
    pub(crate) cmdline: String,
}

impl ChosenGuest {
    /// Opens the files that the configuration names.
    pub(crate) fn new(config: &Config) -> Result<ChosenGuest, RunError> {
        match (&config.boot.kernel, &config.guest) {
            (Some(kernel), _) => {
                let boot = &config.boot;
                let cmdline = boot.cmdline.as_deref().unwrap_or(DEFAULT_CMDLINE);
                let linux = Linux::open(kernel, boot.initrd.as_deref(), cmdline, boot.cpu)?;
                let guest = LinuxGuest::new(linux, Layout::new(config.machine.memory))?;
                Ok(ChosenGuest {
                    guest: Box::new(guest),
                    workload: None,
                    cmdline: cmdline.to_owned(),
                })
            }
            (None, None) => {
                let workload = match &config.workload.name {
                    Some(name) => guest_images::find(name)?,
                    None => &guest_images::workloads()[0],
                };
                let cmdline = workload.cmdline(&config.workload.params)?;
                let guest = Program::new(guest_images::IMAGE, cmdline.clone(), config.seed);
                Ok(ChosenGuest {
                    guest: Box::new(guest),
                    workload: Some(workload.name.to_owned()),
                    cmdline,
                })
            }
            // A guest of the user's: its command line is whatever it understands.
            (None, Some(path)) => {
                let image = file::read(path, image::FILE_LIMIT);
                let image = image.map_err(|error| RunError::GuestFile {
                    path: path.clone(),
                    error,
                })?;
                let workload = config.workload.name.clone();
                let name = workload.iter().map(|name| format!("workload={name}"));
                let params = config.workload.params.iter();
                let words = params.map(|(name, value)| format!("{name}={value}"));
                let cmdline = name.chain(words).collect::<Vec<_>>().join(" ");
                let guest = Program::new(image, cmdline.clone(), config.seed);
                Ok(ChosenGuest {
                    guest: Box::new(guest),
                    workload,
                    cmdline,
                })
            }
        }
    }
}
