//! Requests about accelerators.

use std::sync::Arc;

use hmm_backend::Error;
use hmmvisor_api::{Device, Devices, Doing, Provocations, Provoke, SetDevice};
use hmmvisor_devices::Accelerator;

use super::error::Refusal;
use super::live::Live;

impl Live {
    fn accelerator(&self, number: u8) -> Result<&Arc<Accelerator>, Refusal> {
        self.accelerators.get(usize::from(number)).ok_or_else(|| {
            let detail = match self.accelerators.len() {
                0 => "the machine has no accelerators".to_owned(),
                count => format!(
                    "there is no accelerator {number}; they have the numbers 0 to {}",
                    count - 1
                ),
            };
            Refusal::missing("no such accelerator", detail)
        })
    }

    pub(super) fn device(&self, number: u8) -> Result<Device, Refusal> {
        let accelerator = self.accelerator(number)?;
        let usage = self.backend.device_usage(accelerator.device_id())?;
        let stats = accelerator.stats();
        Ok(Device {
            device: number,
            attached: usage.attached,
            capacity_pages: usage.capacity,
            capacity_max_pages: usage.reserved,
            used_pages: usage.used,
            commands: stats.commands,
            errors: stats.errors,
            faults: stats.faults,
            guest_faults: stats.guest_faults,
            tlb_hits: stats.tlb_hits,
            tlb_misses: stats.tlb_misses,
        })
    }

    pub(super) fn devices(&self) -> Result<Devices, Refusal> {
        let numbers = 0..self.accelerators.len() as u8;
        let devices = numbers.map(|number| self.device(number));
        Ok(Devices {
            devices: devices.collect::<Result<_, _>>()?,
        })
    }

    /// Detaches an accelerator; returns when all its pages are in system memory.
    pub(super) fn detach(&self, number: u8) -> Result<Device, Refusal> {
        let id = self.accelerator(number)?.device_id();
        let usage = self.backend.device_usage(id)?;
        if !usage.attached && usage.used == 0 {
            return Err(Refusal::conflict(format!(
                "accelerator {number} is detached already"
            )));
        }
        self.going_on()?;
        self.operations
            .follow(Doing::Detach, Some(number), |progress| {
                self.backend.detach_followed(id, progress)
            })??;
        self.device(number)
    }

    /// Changes the size of an accelerator's memory; returns when no more of it is in use.
    pub(super) fn set_device(&self, number: u8, to: SetDevice) -> Result<Device, Refusal> {
        let id = self.accelerator(number)?.device_id();
        self.going_on()?;
        let resized = self
            .operations
            .follow(Doing::Resize, Some(number), |progress| {
                self.backend.resize(id, to.memory_bytes, progress)
            })?;
        resized.map_err(|error| match error {
            Error::BadSize { .. } => Refusal::bad(
                "memory_bytes",
                format!("{error}; --device-memory-max of the run sets how far it can grow"),
            ),
            error => error.into(),
        })?;
        self.device(number)
    }

    pub(super) fn provocations(&self, number: u8) -> Result<Provocations, Refusal> {
        self.accelerator(number)?;
        let provocations = self.provoker.all(number);
        Ok(Provocations { provocations })
    }

    pub(super) fn provoke(&self, number: u8, what: Provoke) -> Result<Provocations, Refusal> {
        self.accelerator(number)?;
        self.provoker.add(number, what)?;
        self.provocations(number)
    }

    pub(super) fn end_provocations(&self, number: u8) -> Result<(), Refusal> {
        self.accelerator(number)?;
        self.provoker.clear(number);
        Ok(())
    }
}
