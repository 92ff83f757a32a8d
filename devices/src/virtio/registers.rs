//! The registers of virtio-mmio, version 2: a state machine without threads or memory.

use std::ops::Range;

use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueState;

/// "virt".
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// "HMMV": whose device it is.
const VENDOR: u32 = u32::from_le_bytes(*b"HMMV");
/// Offset of the configuration space.
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;
/// The value of a missing register where all ones mean "none".
const NONE: u32 = u32::MAX;

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

/// A device's description for its driver.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The device's type: `VIRTIO_ID_*`.
    pub id: u32,
    /// The features it offers. Version 1 is one of them.
    pub features: u64,
    /// Number of slots, at most, of each queue: powers of two.
    pub queues: Vec<u16>,
    /// The configuration space after a reset, little-endian.
    pub config: Vec<u8>,
    /// The fields of it that the driver may write.
    pub writable: Vec<Range<usize>>,
}

/// The effect of a register write on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransportEffect {
    /// Nothing.
    None,
    /// Look at this queue.
    Notify(u32),
    /// Start to use the queues.
    Start,
    /// Let go of all queues, or of one, before the write is over.
    LetGo,
}

/// The driver's set-up of a working device.
#[derive(Clone, Debug)]
pub struct Active {
    /// The features that the driver and the device agree on.
    pub features: u64,
    /// The queues that are ready.
    pub queues: Vec<Option<QueueState>>,
}

#[derive(Clone, Copy, Default)]
struct QueueRegisters {
    size: u32,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

/// The registers.
pub struct Registers {
    profile: Profile,
    status: u32,
    driver_features: u64,
    device_features_half: u32,
    driver_features_half: u32,
    selected: u32,
    queues: Vec<QueueRegisters>,
    interrupts: u32,
    config: Vec<u8>,
    generation: u32,
    resets: u64,
}

impl Registers {
    /// The registers after power-on.
    pub fn new(profile: Profile) -> Registers {
        let mut registers = Registers {
            status: 0,
            driver_features: 0,
            device_features_half: 0,
            driver_features_half: 0,
            selected: 0,
            queues: Vec::new(),
            interrupts: 0,
            config: profile.config.clone(),
            generation: 0,
            resets: 0,
            profile,
        };
        registers.clear_queues();
        registers
    }

    fn clear_queues(&mut self) {
        let fresh = |max: &u16| QueueRegisters {
            size: (*max).into(),
            ..QueueRegisters::default()
        };
        self.queues = self.profile.queues.iter().map(fresh).collect();
    }

    /// Reads for a vCPU into `data`, which is zero. Registers are 4 bytes; the configuration space has fields of 1, 2, 4 and 8.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(from) = offset.checked_sub(CONFIG) {
            let fields = self.config.get(from as usize..).unwrap_or_default();
            let len = fields.len().min(data.len());
            data[..len].copy_from_slice(&fields[..len]);
        } else if data.len() == 4 {
            data.copy_from_slice(&self.read_register(offset as u32).to_le_bytes());
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        let queue = self.queues.get(self.selected as usize);
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => 2,
            VIRTIO_MMIO_DEVICE_ID => self.profile.id,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.profile.features, self.device_features_half),
            VIRTIO_MMIO_QUEUE_NUM_MAX => {
                let max = self.profile.queues.get(self.selected as usize);
                max.map_or(0, |max| u32::from(*max))
            }
            VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(|queue| queue.ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupts,
            VIRTIO_MMIO_STATUS => self.status,
            VIRTIO_MMIO_CONFIG_GENERATION => self.generation,
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => NONE,
            _ => 0,
        }
    }

    /// Writes for a vCPU. Returns what the device has to do then.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> TransportEffect {
        if let Some(from) = offset.checked_sub(CONFIG) {
            self.write_config(from as usize, data);
            return TransportEffect::None;
        }
        match data.try_into() {
            Ok(bytes) => self.write_register(offset as u32, u32::from_le_bytes(bytes)),
            Err(_) => TransportEffect::None,
        }
    }

    fn write_config(&mut self, from: usize, data: &[u8]) {
        let end = from.saturating_add(data.len());
        let inside = |field: &Range<usize>| from >= field.start && end <= field.end;
        if self.status & DRIVER != 0 && self.profile.writable.iter().any(inside) {
            self.config[from..from + data.len()].copy_from_slice(data);
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) -> TransportEffect {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_half = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_half = value,
            VIRTIO_MMIO_DRIVER_FEATURES if self.negotiating() => {
                set_half(&mut self.driver_features, self.driver_features_half, value);
            }
            VIRTIO_MMIO_QUEUE_SEL => self.selected = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => return TransportEffect::Notify(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupts &= !value,
            VIRTIO_MMIO_STATUS => return self.write_status(value),
            VIRTIO_MMIO_QUEUE_READY => return self.write_ready(value),
            _ => self.write_queue(offset, value),
        }
        TransportEffect::None
    }

    fn negotiating(&self) -> bool {
        self.status & (DRIVER | FEATURES_OK) == DRIVER
    }

    /// Returns the selected queue, unless the features are still to be negotiated: until then no queue may be set up.
    fn queue(&mut self) -> Option<&mut QueueRegisters> {
        let may_change = self.status & FEATURES_OK != 0;
        let queue = self.queues.get_mut(self.selected as usize)?;
        may_change.then_some(queue)
    }

    fn write_queue(&mut self, offset: u32, value: u32) {
        let Some(queue) = self.queue().filter(|queue| !queue.ready) else {
            return;
        };
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue.descriptors, 0, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, 1, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue.available, 0, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue.available, 1, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue.used, 0, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue.used, 1, value),
            _ => {}
        }
    }

    fn write_ready(&mut self, value: u32) -> TransportEffect {
        let working = self.status & DRIVER_OK != 0;
        let Some(queue) = self.queue() else {
            return TransportEffect::None;
        };
        let was = std::mem::replace(&mut queue.ready, value == 1);
        match (working, was, queue.ready) {
            (true, true, false) => TransportEffect::LetGo,
            (true, false, true) => TransportEffect::Start,
            _ => TransportEffect::None,
        }
    }

    fn write_status(&mut self, value: u32) -> TransportEffect {
        if value == 0 {
            self.reset();
            return TransportEffect::LetGo;
        }
        // A driver sets one bit after the other and clears none but by a reset. NEEDS_RESET is the device's.
        let value = value & !NEEDS_RESET | self.status & NEEDS_RESET;
        if value & self.status != self.status {
            return TransportEffect::None;
        }
        let mut new = value & !self.status;
        if new & FEATURES_OK != 0 && !self.features_are_fine() {
            // The driver reads the status again and sees that it is not set.
            new &= !FEATURES_OK;
        }
        let status = self.status | new;
        let needs = [
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, DRIVER),
            (DRIVER_OK, FEATURES_OK),
        ];
        if needs
            .iter()
            .any(|(bit, before)| status & bit != 0 && status & before == 0)
        {
            return TransportEffect::None;
        }
        self.status = status;
        match new & DRIVER_OK != 0 {
            true => TransportEffect::Start,
            false => TransportEffect::None,
        }
    }

    fn features_are_fine(&self) -> bool {
        let version_1 = 1u64 << VIRTIO_F_VERSION_1;
        self.driver_features & !self.profile.features == 0 && self.driver_features & version_1 != 0
    }

    fn reset(&mut self) {
        self.status = 0;
        self.driver_features = 0;
        self.device_features_half = 0;
        self.driver_features_half = 0;
        self.selected = 0;
        self.interrupts = 0;
        self.resets += 1;
        self.clear_queues();
    }

    /// How often the driver has reset the device.
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// The driver's set-up; none while the driver is not ready or the device needs a reset.
    pub fn active(&self) -> Option<Active> {
        if self.status & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK {
            return None;
        }
        let queue = |(queue, max): (&QueueRegisters, &u16)| {
            queue.ready.then(|| QueueState {
                max_size: *max,
                next_avail: 0,
                next_used: 0,
                event_idx_enabled: self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
                // Too large a size stays too large.
                size: queue.size.try_into().unwrap_or(u16::MAX),
                ready: true,
                desc_table: queue.descriptors,
                avail_ring: queue.available,
                used_ring: queue.used,
            })
        };
        Some(Active {
            features: self.driver_features,
            queues: self
                .queues
                .iter()
                .zip(&self.profile.queues)
                .map(queue)
                .collect(),
        })
    }

    /// Marks the device as one that needs a reset. Returns whether the driver is to get an interrupt.
    pub fn needs_reset(&mut self) -> bool {
        self.status |= NEEDS_RESET;
        let tell = self.status & DRIVER_OK != 0;
        if tell {
            self.interrupts |= VIRTIO_MMIO_INT_CONFIG;
        }
        tell
    }

    /// Notes for the driver that a queue has requests that are done.
    pub fn used(&mut self) {
        self.interrupts |= VIRTIO_MMIO_INT_VRING;
    }

    /// The configuration space.
    pub fn config(&self) -> &[u8] {
        &self.config
    }

    /// Changes the configuration space. Returns whether the driver is to get an interrupt.
    pub fn change_config(&mut self, change: impl FnOnce(&mut [u8])) -> bool {
        change(&mut self.config);
        self.generation = self.generation.wrapping_add(1);
        let tell = self.status & DRIVER_OK != 0;
        if tell {
            self.interrupts |= VIRTIO_MMIO_INT_CONFIG;
        }
        tell
    }
}

/// Returns features, given as the numbers of their bits, as one number.
pub(super) fn feature_bits(numbers: &[u32]) -> u64 {
    numbers.iter().fold(0, |all, bit| all | 1 << bit)
}

fn half(value: u64, half: u32) -> u32 {
    match half {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, half: u32, to: u32) {
    match half {
        0 => *value = *value & !0xffff_ffff | u64::from(to),
        1 => *value = *value & 0xffff_ffff | u64::from(to) << 32,
        _ => {}
    }
}

#[cfg(test)]
mod tests;
