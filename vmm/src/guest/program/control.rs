//! The control device: by it a guest ends the run, parks vCPUs, and reports its progress.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use hmmvisor_abi::control;

use crate::ending::failure::Failure;
use crate::ending::{End, Ending};
use crate::machine::bus::{Device, Next};

/// Receives what a guest says about its rounds. The vCPU that says it makes the call, and waits for it.
pub trait RoundListener: Send + Sync {
    /// This round begins.
    fn round(&self, round: u64);
    /// What was written to [`control::CHAOS_BASE`].
    fn chaos_base(&self, base: u64);
    /// What was written to [`control::CHAOS_SHARED`].
    fn chaos_shared(&self, pages: u64);
}

/// The control device. Its registers are in `hmmvisor_abi::control`.
pub struct Control {
    ending: Arc<Ending>,
    /// vCPUs that have not parked.
    active: AtomicU32,
    /// The progress, in thousandths.
    progress: AtomicU32,
    checked: AtomicU64,
    /// The last round that began, plus 1; 0 for none.
    round_plus_1: AtomicU64,
    rounds: AtomicU64,
    listener: OnceLock<Arc<dyn RoundListener>>,
    since: Instant,
}

impl Control {
    /// Makes the control device of a machine with `vcpus` vCPUs.
    pub fn new(vcpus: u32, ending: Arc<Ending>) -> Control {
        Control {
            ending,
            active: AtomicU32::new(vcpus),
            progress: AtomicU32::new(0),
            checked: AtomicU64::new(0),
            round_plus_1: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            listener: OnceLock::new(),
            since: Instant::now(),
        }
    }

    /// Returns how much of its work the guest says it has done, in thousandths.
    pub fn progress(&self) -> u32 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Returns how many operations the guest says were checked, and those of [`Self::add_checked`].
    pub fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    /// Adds operations that the host has checked.
    pub fn add_checked(&self, operations: u64) {
        self.checked.fetch_add(operations, Ordering::Relaxed);
    }

    /// Returns the round that began last, if the guest's work has rounds.
    pub fn round(&self) -> Option<u64> {
        self.round_plus_1.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Returns how many rounds have begun.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Passes on to `listener` what the guest says about rounds. The first listener that is set stays.
    pub fn set_listener(&self, listener: Arc<dyn RoundListener>) {
        let _ = self.listener.set(listener);
    }

    fn notify(&self, what: impl FnOnce(&dyn RoundListener)) {
        if let Some(listener) = self.listener.get() {
            what(&**listener);
        }
    }
}

impl Device for Control {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            control::TIME_NS => self.since.elapsed().as_nanos() as u64,
            _ => 0,
        };
        if let (4 | 8, bytes) = (data.len(), value.to_le_bytes()) {
            data.copy_from_slice(&bytes[..data.len()]);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Next {
        let value = match data.len() {
            4 | 8 => data
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
            _ => return Next::Continue,
        };
        match offset {
            control::EXIT => {
                self.ending.set(End::Exit(value as u32));
                return Next::Leave;
            }
            control::PROGRESS => self
                .progress
                .store(value.min(1000) as u32, Ordering::Relaxed),
            control::CHECKED => self.add_checked(value),
            control::ROUND => {
                self.round_plus_1
                    .store(value.saturating_add(1), Ordering::Relaxed);
                self.rounds.fetch_add(1, Ordering::Relaxed);
                self.notify(|listener| listener.round(value));
            }
            control::CHAOS_BASE => self.notify(|listener| listener.chaos_base(value)),
            control::CHAOS_SHARED => self.notify(|listener| listener.chaos_shared(value)),
            control::YIELD => thread::yield_now(),
            control::PARK => {
                // After the last one has parked, no vCPU could end the run.
                if self.active.fetch_sub(1, Ordering::Relaxed) == 1 {
                    self.ending.set(End::Failed(Failure::AllParked));
                }
                return Next::Leave;
            }
            control::EXCEPTION => return Next::Exception,
            _ => {}
        }
        Next::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(vcpus: u32) -> (Control, Arc<Ending>) {
        let ending = Arc::new(Ending::new().unwrap());
        (Control::new(vcpus, ending.clone()), ending)
    }

    #[test]
    fn exit_ends_the_run_once() {
        let (control, ending) = control(1);
        assert_eq!(
            control.write(control::EXIT, &7u64.to_le_bytes()),
            Next::Leave
        );
        assert_eq!(
            control.write(control::EXIT, &8u32.to_le_bytes()),
            Next::Leave
        );
        assert!(matches!(ending.get(), Some(End::Exit(7))));
    }

    #[test]
    fn parking_every_vcpu_is_a_failure() {
        let (control, ending) = control(2);
        assert_eq!(control.write(control::PARK, &[0; 8]), Next::Leave);
        assert!(ending.get().is_none());
        assert_eq!(control.write(control::PARK, &[0; 8]), Next::Leave);
        assert!(matches!(
            ending.get(),
            Some(End::Failed(Failure::AllParked))
        ));
    }

    #[test]
    fn nonsense_is_ignored() {
        let (control, ending) = control(1);
        assert_eq!(control.write(control::EXIT, &[0]), Next::Continue);
        assert_eq!(control.write(0x1000, &[0; 8]), Next::Continue);
        assert_eq!(
            control.write(control::PROGRESS, &u64::MAX.to_le_bytes()),
            Next::Continue
        );
        assert_eq!(control.progress(), 1000);
        let mut data = [0; 3];
        control.read(control::TIME_NS, &mut data);
        assert_eq!(data, [0; 3]);
        assert!(ending.get().is_none());
    }
}
