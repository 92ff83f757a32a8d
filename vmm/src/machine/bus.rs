//! Dispatch of a vCPU's accesses to devices by address.

use std::ops::Range;
use std::sync::Arc;

/// What a vCPU does after a device access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Enters the guest again.
    Continue,
    /// Never enters the guest again.
    Leave,
    /// Took a CPU exception: the guest's firmware has written the exception register.
    Exception,
}

/// A device with registers. Accesses come from all vCPU threads at once.
pub trait Device: Send + Sync {
    /// Fills `data`, which is zero, from the registers at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` to the registers at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> Next;
}

/// Devices by address. Where there is none, reads give zeros (or ones, see [`Bus::floating`]) and writes are ignored.
#[derive(Default)]
pub struct Bus {
    // Sorted and without overlaps.
    windows: Vec<(Range<u64>, Arc<dyn Device>)>,
    /// The value of each byte read where there is no device.
    nothing: u8,
}

impl Bus {
    /// Makes a bus as on a PC: a read where there is no device gives all ones, by which operating systems notice that there is none.
    pub fn floating() -> Bus {
        Bus {
            windows: Vec::new(),
            nothing: 0xff,
        }
    }

    /// Puts a device at `range`, which must be free.
    pub fn insert(&mut self, range: Range<u64>, device: Arc<dyn Device>) {
        let at = self
            .windows
            .partition_point(|(other, _)| other.start < range.start);
        let fits = |other: Option<&(Range<u64>, _)>| {
            other.is_none_or(|(other, _)| other.end <= range.start || range.end <= other.start)
        };
        assert!(fits(self.windows.get(at)) && fits(at.checked_sub(1).map(|i| &self.windows[i])));
        self.windows.insert(at, (range, device));
    }

    fn find(&self, address: u64) -> Option<(&dyn Device, u64)> {
        let at = self
            .windows
            .partition_point(|(range, _)| range.end <= address);
        let (range, device) = self.windows.get(at)?;
        range
            .contains(&address)
            .then(|| (&**device, address - range.start))
    }

    /// Serves a vCPU's read.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => {
                data.fill(0);
                device.read(offset, data);
            }
            None => data.fill(self.nothing),
        }
    }

    /// Serves a vCPU's write.
    pub fn write(&self, address: u64, data: &[u8]) -> Next {
        match self.find(address) {
            Some((device, offset)) => device.write(offset, data),
            None => Next::Continue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;
    impl Device for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data[0] = offset as u8;
        }
        fn write(&self, offset: u64, _: &[u8]) -> Next {
            if offset == 0 {
                Next::Leave
            } else {
                Next::Continue
            }
        }
    }

    #[test]
    fn accesses_reach_the_device_at_their_address_only() {
        for (bus, nothing) in [(Bus::default(), 0), (Bus::floating(), 0xff)] {
            accesses_reach(bus, nothing);
        }
    }

    fn accesses_reach(mut bus: Bus, nothing: u8) {
        bus.insert(0x2000..0x3000, Arc::new(Echo));
        bus.insert(0x1000..0x1010, Arc::new(Echo));
        let read = |address| {
            let mut data = [0x55; 2];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x1005), [5, 0]);
        assert_eq!(read(0x200f), [15, 0]);
        for hole in [0, 0xfff, 0x1010, 0x1fff, 0x3000, u64::MAX] {
            assert_eq!(read(hole), [nothing; 2], "{hole:#x}");
        }
        assert_eq!(bus.write(0x1000, &[0]), Next::Leave);
        assert_eq!(bus.write(0x1fff, &[0]), Next::Continue);
    }

    #[test]
    #[should_panic]
    fn overlaps_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x1000..0x2000, Arc::new(Echo));
        bus.insert(0x1fff..0x3000, Arc::new(Echo));
    }
}
