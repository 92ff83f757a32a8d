//! The virtio devices of a configuration, as constructors for the slots behind the accelerators.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use hmmvisor_devices::virtio::{self, Balloon, Disk, DiskError, GuestRam, Parts, VirtioDevice};
use hmmvisor_devices::{NewDevice, Slot};
use serde::Deserialize;

use crate::config::Config;
use crate::run::balloon::BalloonConfig;

/// `[[disk]]`
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The image: raw, a multiple of 512 bytes.
    pub file: PathBuf,
    /// The guest must not write it.
    #[serde(default)]
    pub read_only: bool,
}

impl FromStr for DiskConfig {
    type Err = String;

    /// `FILE` or `FILE,ro`.
    fn from_str(text: &str) -> Result<DiskConfig, String> {
        let (file, read_only) = match text.strip_suffix(",ro") {
            Some(file) => (file, true),
            None => (text, false),
        };
        if file.is_empty() {
            return Err("write it as FILE or FILE,ro".to_owned());
        }
        Ok(DiskConfig {
            file: file.into(),
            read_only,
        })
    }
}

/// The virtio devices of a machine that is about to be made.
pub struct VirtioDevices {
    /// Their constructors, for [`crate::vm::Managed::foreign`]: disks in their order, then the balloon, then the entropy
    /// device.
    pub new: Vec<NewDevice>,
    /// The balloon, once it has been made, if there is one.
    pub balloon: Arc<OnceLock<Balloon>>,
}

/// What the balloon is to be; none if there is no balloon. An operating system has one in any case, so that what it frees
/// is given back.
fn balloon(config: &Config) -> Option<BalloonConfig> {
    let always = config.boot.kernel.is_some().then(BalloonConfig::default);
    config.balloon.or(always)
}

/// Whether there is an entropy device. An operating system has one in any case: it waits for entropy when it boots.
fn has_entropy(config: &Config) -> bool {
    config.rng || config.boot.kernel.is_some()
}

/// How many virtio devices the machine has.
pub fn count(config: &Config) -> usize {
    config.disk.len() + usize::from(balloon(config).is_some()) + usize::from(has_entropy(config))
}

/// Opens what the configuration names.
pub fn devices(config: &Config) -> Result<VirtioDevices, DiskError> {
    let mut new: Vec<NewDevice> = Vec::new();
    for (number, disk) in config.disk.iter().enumerate() {
        let disk = Disk::open(&disk.file, disk.read_only)?;
        new.push(device(virtio::block(number, disk)));
    }
    let made_balloon = Arc::new(OnceLock::new());
    if let Some(BalloonConfig { size, .. }) = balloon(config) {
        let made = made_balloon.clone();
        new.push(Box::new(move |slot: Slot<'_>| {
            let (ram, irq) = connect(slot);
            let balloon = Balloon::new(size.0, ram, irq)?;
            let device = balloon.device().clone();
            // There is one balloon.
            let _ = made.set(balloon);
            Ok(device)
        }));
    }
    if has_entropy(config) {
        new.push(device(virtio::rng()));
    }
    Ok(VirtioDevices {
        new,
        balloon: made_balloon,
    })
}

fn device(parts: Parts) -> NewDevice {
    Box::new(move |slot: Slot<'_>| {
        let (ram, irq) = connect(slot);
        Ok(Arc::new(VirtioDevice::new(parts, ram, irq)?))
    })
}

fn connect(slot: Slot<'_>) -> (GuestRam, Box<dyn hmmvisor_devices::Interrupt>) {
    // Virtio has no register for it. An operating system routes its interrupts itself; in a small guest, vCPU 0 has them
    // all. There always is a vCPU 0, and if KVM refuses the route, the driver polls in vain: nothing worse.
    slot.irq.route(0);
    (GuestRam::managed(slot.backend, slot.managed_base), slot.irq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read_only_where_it_says_so() {
        let disk = |text: &str| text.parse::<DiskConfig>();
        let config = |file: &str, read_only| DiskConfig {
            file: file.into(),
            read_only,
        };
        assert_eq!(disk("a.img"), Ok(config("a.img", false)));
        assert_eq!(disk("a,b.img,ro"), Ok(config("a,b.img", true)));
        assert_eq!(disk("a.img,rw"), Ok(config("a.img,rw", false)));
        assert!(disk(",ro").unwrap_err().contains("FILE,ro"));
        assert!(disk("").is_err());
    }
}
