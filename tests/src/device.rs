//! A device of a machine under test, as the test sees it.

use std::sync::Arc;

use hmm_backend::driver::FaultError;
use hmm_backend::pages::{DeviceId, Page};
use hmm_backend::residency::{Placed, Residency};
use hmm_backend::{Backend, Error};
use hmmvisor_devices::{Accelerator, MmioDevice};
use parking_lot::Mutex;

use crate::conformance::{AccessRefused, DeviceAccess, MirrorDevice};
use crate::inject::{Arrival, Injector, WayPoint};
use crate::pending::Task;
use crate::place::{Pages, Word};
use crate::{CheckedDriver, TestVm};

/// The kind of a machine's device.
pub(crate) struct Slot {
    pub(crate) id: DeviceId,
    pub(crate) injector: Arc<Injector>,
    pub(crate) kind: Kind,
    /// Its way to memory, made when it is first used.
    pub(crate) mirror: Arc<Mutex<Option<MirrorDevice>>>,
}

pub(crate) enum Kind {
    /// With its index among the accelerators.
    Accelerator(u32, Arc<Accelerator>),
    Scripted(Arc<CheckedDriver>),
    /// A driver of the test's own.
    Driver,
}

/// A device, by its number in the order of the builder's calls.
#[derive(Clone, Copy)]
pub struct Device<'vm> {
    pub(crate) vm: &'vm TestVm,
    pub(crate) index: usize,
    pub(crate) slot: &'vm Slot,
}

impl<'vm> Device<'vm> {
    /// Its number in the backend.
    pub fn id(self) -> DeviceId {
        self.slot.id
    }

    /// Closes a gate: from now on a call that reaches this way-point of the device's driver waits there until the gate
    /// is released. One that is already past it is not held.
    pub fn hold(self, point: WayPoint) -> Gate<'vm> {
        self.hold_when(point, |_| true)
    }

    /// The same, for the arrivals for which `which` returns true.
    pub fn hold_when(
        self,
        point: WayPoint,
        which: impl FnMut(&Arrival) -> bool + Send + 'static,
    ) -> Gate<'vm> {
        let id = self.slot.injector.close(point, Box::new(which));
        Gate { device: self, id }
    }

    /// Makes the driver fail the next `times` times that it comes to this way-point; `u32::MAX` is for ever. After
    /// the commit an error changes nothing but what the driver returns. Towards the device, the backend sees a
    /// [`hmm_backend::driver::MigrateError::Device`] with the error's text.
    pub fn fail(self, point: WayPoint, times: u32, error: FaultError) {
        self.slot
            .injector
            .fail(point, times, error, Box::new(|_| true));
    }

    /// Makes the driver fail whenever it comes to this way-point with what `which` says yes to.
    pub fn fail_when(
        self,
        point: WayPoint,
        error: FaultError,
        which: impl FnMut(&Arrival) -> bool + Send + 'static,
    ) {
        self.slot
            .injector
            .fail(point, u32::MAX, error, Box::new(which));
    }

    /// From now on nothing fails any more.
    pub fn heal(self) {
        self.slot.injector.heal();
    }

    /// How many calls of the driver have reached this way-point.
    pub fn reached(self, point: WayPoint) -> u64 {
        self.slot.injector.reached_count(point)
    }

    /// How often it was made to fail there.
    pub fn failed(self, point: WayPoint) -> u64 {
        self.slot.injector.failed_count(point)
    }

    /// Whether all these pages are in the device's memory, if only as duplicates.
    pub fn holds(self, pages: impl Pages) -> bool {
        let holds = |page| match self.vm.word(page).residency() {
            Residency::Device(Placed { device, .. })
            | Residency::Coherent(Placed { device, .. })
            | Residency::Duplicated(Placed { device, .. }) => device == self.slot.id,
            _ => false,
        };
        pages.range().pages().all(holds)
    }

    /// Number of pages in the device's memory.
    pub fn pages(self) -> u32 {
        let range = 0..self.vm.backend().pages();
        range.filter(|page| self.holds(*page)).count() as u32
    }

    /// The device reads a word, through a mirror: as the policy says, the page comes to it first.
    pub fn read(self, at: impl Word) -> Result<u64, AccessRefused> {
        access(self.slot, at.place(), |mirror, page, word| {
            mirror.read(page, word)
        })(&self.vm.backend)
    }

    /// The device writes a word.
    pub fn write(self, at: impl Word, value: u64) -> Result<(), AccessRefused> {
        let write = move |mirror: &mut MirrorDevice, page, word| mirror.write(page, word, value);
        access(self.slot, at.place(), write)(&self.vm.backend)
    }

    /// The device adds to a word, atomically towards CPUs and devices. Returns what the word was.
    pub fn add(self, at: impl Word, value: u64) -> Result<u64, AccessRefused> {
        let add = move |mirror: &mut MirrorDevice, page, word| mirror.add(page, word, value);
        access(self.slot, at.place(), add)(&self.vm.backend)
    }

    /// The device adds to a word in two steps, with exclusive access to the page
    /// ([`hmm_backend::mirror::Mirror::fault_exclusive`]). Returns what the word was. It keeps the page until a vCPU or another device accesses
    /// it.
    pub fn exclusive_add(self, at: impl Word, value: u64) -> Result<u64, AccessRefused> {
        let add =
            move |mirror: &mut MirrorDevice, page, word| mirror.exclusive_add(page, word, value);
        access(self.slot, at.place(), add)(&self.vm.backend)
    }

    /// The device reads a word in the background, where a gate may hold it.
    pub fn begin_read(self, at: impl Word) -> Task<'vm, Result<u64, AccessRefused>> {
        let (page, index) = at.place();
        let what = format!(
            "read of page {page:#x}, word {index} by device {}",
            self.index
        );
        let read = access(self.slot, (page, index), |mirror, page, word| {
            mirror.read(page, word)
        });
        self.vm.background(&what, read)
    }

    /// The accelerator, for its figures. Panics if the device is none.
    pub fn accelerator(self) -> &'vm Arc<Accelerator> {
        match &self.slot.kind {
            Kind::Accelerator(_, accelerator) => accelerator,
            _ => panic!("device {} is no accelerator", self.index),
        }
    }

    /// Stops the accelerator, in the background: its command is aborted, and it takes no other one. It stays attached,
    /// so its pages can still migrate.
    pub fn stop(self) -> Task<'vm, ()> {
        let accelerator = self.accelerator().clone();
        self.vm
            .background(&format!("stop of device {}", self.index), move |_| {
                accelerator.stop()
            })
    }

    pub(crate) fn accelerator_index(self) -> u32 {
        match &self.slot.kind {
            Kind::Accelerator(index, _) => *index,
            _ => panic!("device {} is no accelerator", self.index),
        }
    }

    /// The books of a scripted device. Panics if the device is of another kind.
    pub fn script(self) -> &'vm Arc<CheckedDriver> {
        match &self.slot.kind {
            Kind::Scripted(driver) => driver,
            _ => panic!("device {} is not scripted", self.index),
        }
    }

    /// Takes the device out of the machine, in the background: every page in its memory comes back first.
    pub fn unplug(self) -> Task<'vm, Result<(), Error>> {
        let id = self.slot.id;
        self.vm.background(
            &format!("unplug of device {}", self.index),
            move |backend| backend.detach(id),
        )
    }
}

/// An access by a device, one at a time for each.
fn access<R, F>(
    slot: &Slot,
    (page, word): (u32, u32),
    act: F,
) -> impl FnOnce(&Arc<Backend>) -> Result<R, AccessRefused> + use<R, F>
where
    F: FnOnce(&mut MirrorDevice, Page, usize) -> Result<R, AccessRefused>,
{
    let (device, mirror) = (slot.id, slot.mirror.clone());
    move |backend| {
        let mut mirror = mirror.lock();
        let mirror = match &mut *mirror {
            Some(mirror) => mirror,
            none => {
                let made = MirrorDevice::new(backend, device);
                let made = made.map_err(|error| AccessRefused::Failed(error.to_string()))?;
                none.insert(made)
            }
        };
        act(mirror, Page(page), word as usize)
    }
}

/// A closed gate at a way-point. Dropping it opens it.
pub struct Gate<'vm> {
    device: Device<'vm>,
    id: u64,
}

impl Gate<'_> {
    /// Waits until a call has reached the gate, and returns the first one. Panics if that takes longer than the
    /// machine's patience.
    pub fn wait_arrived(&self) -> Arrival {
        let vm = self.device.vm;
        let first = self
            .device
            .slot
            .injector
            .first_arrival(self.id, vm.patience());
        first.unwrap_or_else(|| {
            vm.give_up(&format!(
                "no call has reached the gate of device {}",
                self.device.index
            ))
        })
    }

    /// All calls that have reached the gate so far.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.device.slot.injector.arrivals(self.id)
    }

    /// Opens the gate.
    pub fn release(self) {}
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        self.device.slot.injector.open(self.id);
    }
}
