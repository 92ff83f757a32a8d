//! A virtio device on a real backend without a guest: this process's threads are the CPUs, and the test is the driver.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::atomic::{AtomicU8, AtomicU16};

use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::pages::{DeviceId, PAGE_SIZE};
use hmm_backend::policy::PolicySpec;
use hmm_backend::service::{FaultService, ServiceConfig};
use hmm_backend::{Backend, BackendConfig};
use hmmvisor_abi::map::MANAGED;
use hmmvisor_devices::virtio::{GuestRam, VirtioDevice};
use hmmvisor_devices::{Interrupt, MmioDevice};
use parking_lot::{Condvar, Mutex};

use crate::{CheckedDriver, pages};

/// Pages of managed memory.
pub const PAGES: u32 = 2048;
/// Pages of the memory of a device that only migrates.
pub const DEVICE_PAGES: u64 = 1024;
/// The first page behind the rings.
pub const FIRST: u64 = 64;
/// Pages of a queue's rings: descriptors, available, used.
const QUEUE_PAGES: u64 = 3;

// Registers, as the specification of virtio-mmio has them.
/// Device features, half of them.
pub const DEVICE_FEATURES: u64 = 0x10;
/// Which half.
pub const DEVICE_FEATURES_SEL: u64 = 0x14;
/// Driver features, half of them.
pub const DRIVER_FEATURES: u64 = 0x20;
/// Which half.
pub const DRIVER_FEATURES_SEL: u64 = 0x24;
/// Which queue the following are about.
pub const QUEUE_SEL: u64 = 0x30;
/// Slots, at most.
pub const QUEUE_NUM_MAX: u64 = 0x34;
/// Slots.
pub const QUEUE_NUM: u64 = 0x38;
/// The queue is in use.
pub const QUEUE_READY: u64 = 0x44;
/// The doorbell.
pub const QUEUE_NOTIFY: u64 = 0x50;
/// Why there was an interrupt.
pub const INTERRUPT_STATUS: u64 = 0x60;
/// That the driver knows.
pub const INTERRUPT_ACK: u64 = 0x64;
/// How far the driver is.
pub const STATUS: u64 = 0x70;
/// The lower half of the descriptors' address; the upper half follows.
pub const QUEUE_DESC: u64 = 0x80;
/// The same of the available ring.
pub const QUEUE_AVAIL: u64 = 0x90;
/// The same of the used ring.
pub const QUEUE_USED: u64 = 0xa0;
/// Counts changes of the configuration space.
pub const CONFIG_GENERATION: u64 = 0xfc;
/// The configuration space.
pub const CONFIG: u64 = 0x100;

/// ACKNOWLEDGE, DRIVER and FEATURES_OK.
pub const NEGOTIATED: u32 = 0b1011;
/// And DRIVER_OK.
pub const WORKING: u32 = 0b1111;
/// The device needs a reset.
pub const NEEDS_RESET: u32 = 0x40;
/// The feature without which nothing goes.
pub const VERSION_1: u64 = 1 << 32;
/// The driver wants interrupts, and the device the doorbell, only at certain indices.
pub const EVENT_IDX: u64 = 1 << 29;

// Descriptor flags.
/// Another one follows.
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// A table of descriptors.
pub const INDIRECT: u16 = 4;

/// Guest-physical address of a page.
pub fn at(page: u64) -> u64 {
    MANAGED + page * PAGE_SIZE
}

#[derive(Default)]
struct Irq {
    count: Mutex<u64>,
    came: Condvar,
}

impl Irq {
    fn count(&self) -> u64 {
        *self.count.lock()
    }

    fn wait_beyond(&self, seen: u64) {
        let mut count = self.count.lock();
        self.came.wait_while(&mut count, |count| *count <= seen);
    }
}

struct Line(Arc<Irq>);

impl Interrupt for Line {
    fn route(&self, _: u32) -> bool {
        true
    }
    fn trigger(&self) {
        *self.0.count.lock() += 1;
        self.0.came.notify_all();
    }
}

#[derive(Clone, Copy, Default)]
struct Queue {
    size: u16,
    next_descriptor: u16,
    added: u16,
    taken: u16,
}

/// A descriptor: address, length, flags.
pub type Descriptor = (u64, u32, u16);

/// A driver program for one device.
pub struct Rig {
    // Dropped in this order: no thread may fault after the service has stopped.
    /// The device.
    pub device: Arc<VirtioDevice>,
    _service: FaultService,
    /// The memory.
    pub backend: Arc<Backend>,
    irq: Arc<Irq>,
    /// A device that only migrates.
    pub other: DeviceId,
    /// Its driver.
    pub driver: Arc<CheckedDriver>,
    queues: BTreeMap<u32, Queue>,
}

impl Rig {
    /// With the device that `make` makes.
    pub fn new(
        engine: Engine,
        make: impl FnOnce(GuestRam, Box<dyn Interrupt>) -> Arc<VirtioDevice>,
    ) -> Rig {
        let mut config = BackendConfig::new(u64::from(PAGES) * PAGE_SIZE);
        config.engine = EngineChoice::Only(engine);
        let policy = "on-demand+timeslice:min=0".parse::<PolicySpec>();
        config.policy = Arc::new(policy.expect("a policy"));
        let backend = Backend::new(config).expect("managed memory");
        let service = backend.start_service(
            ServiceConfig {
                threads: vec![None; 2],
                ..ServiceConfig::default()
            },
            |fault| panic!("{fault:?}"),
        );
        let driver = Arc::new(CheckedDriver::default());
        let other = backend.attach(DEVICE_PAGES * PAGE_SIZE, driver.clone());
        let irq = Arc::<Irq>::default();
        let ram = GuestRam::managed(&backend, MANAGED);
        Rig {
            device: make(ram, Box::new(Line(irq.clone()))),
            _service: service.expect("service threads"),
            backend,
            irq,
            other: other.expect("a device"),
            driver,
            queues: BTreeMap::new(),
        }
    }

    /// A CPU reads a register.
    pub fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// A CPU writes a register.
    pub fn write(&self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        let half = |half| {
            self.write(DEVICE_FEATURES_SEL, half);
            u64::from(self.read(DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Resets the device and agrees on features.
    pub fn negotiate(&mut self, features: u64) {
        self.write(STATUS, 0);
        assert_eq!(self.read(STATUS), 0);
        self.queues.clear();
        self.write(STATUS, 1);
        self.write(STATUS, 3);
        for half in 0..2 {
            self.write(DRIVER_FEATURES_SEL, half);
            self.write(DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.write(STATUS, NEGOTIATED);
        assert_eq!(self.read(STATUS), NEGOTIATED, "the features are refused");
    }

    /// The addresses of a queue's rings: descriptors, available, used.
    pub fn rings(queue: u32) -> [u64; 3] {
        let first = u64::from(queue) * QUEUE_PAGES;
        [at(first), at(first + 1), at(first + 2)]
    }

    /// Sets up a queue with so many slots.
    pub fn set_up(&mut self, queue: u32, size: u16) {
        for ring in Rig::rings(queue) {
            self.put(ring, &[0; PAGE_SIZE as usize]);
        }
        self.set_up_at(queue, size, Rig::rings(queue));
    }

    /// The same with its rings anywhere.
    pub fn set_up_at(&mut self, queue: u32, size: u16, rings: [u64; 3]) {
        self.write(QUEUE_SEL, queue);
        self.write(QUEUE_NUM, size.into());
        for (register, addr) in [QUEUE_DESC, QUEUE_AVAIL, QUEUE_USED].into_iter().zip(rings) {
            self.write(register, addr as u32);
            self.write(register + 4, (addr >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
        let state = Queue {
            size,
            ..Queue::default()
        };
        self.queues.insert(queue, state);
    }

    /// Brings the device up with queues of these sizes.
    pub fn start(&mut self, features: u64, sizes: &[u16]) {
        self.negotiate(features);
        for (queue, size) in (0..).zip(sizes) {
            self.set_up(queue, *size);
        }
        self.write(STATUS, WORKING);
        assert_eq!(self.read(STATUS), WORKING);
    }

    fn byte(&self, addr: u64) -> *mut u8 {
        let offset = addr.checked_sub(MANAGED).expect("managed memory");
        assert!(offset < u64::from(PAGES) * PAGE_SIZE);
        self.backend.host_memory().0.wrapping_add(offset as usize)
    }

    /// A CPU writes bytes.
    pub fn put(&self, addr: u64, bytes: &[u8]) {
        for (addr, byte) in (addr..).zip(bytes) {
            // SAFETY: in managed memory, which lives as long as the backend; all accesses are atomic.
            unsafe { AtomicU8::from_ptr(self.byte(addr)) }.store(*byte, Release);
        }
    }

    /// A CPU reads bytes.
    pub fn get(&self, addr: u64, len: u64) -> Vec<u8> {
        let byte = |addr| {
            // SAFETY: as above.
            unsafe { AtomicU8::from_ptr(self.byte(addr)) }.load(Acquire)
        };
        (addr..addr + len).map(byte).collect()
    }

    /// Two bytes of a ring.
    pub fn half(&self, addr: u64) -> &AtomicU16 {
        assert!(addr.is_multiple_of(2));
        // SAFETY: as above, and aligned.
        unsafe { AtomicU16::from_ptr(self.byte(addr).cast()) }
    }

    /// Writes a descriptor, with what it says of the next one.
    pub fn describe(&self, table: u64, index: u16, (addr, len, flags): Descriptor, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    /// Adds a chain of these descriptors; they are given NEXT. Returns its head.
    pub fn add(&mut self, queue: u32, chain: &[Descriptor]) -> u16 {
        let Queue {
            size,
            next_descriptor,
            ..
        } = self.queues[&queue];
        let [table, ..] = Rig::rings(queue);
        let slot = |number: usize| (next_descriptor + number as u16) % size;
        for (number, (addr, len, flags)) in chain.iter().enumerate() {
            let more = number + 1 < chain.len();
            let flags = if more { flags | NEXT } else { *flags };
            self.describe(table, slot(number), (*addr, *len, flags), slot(number + 1));
        }
        let head = slot(0);
        let state = self.queues.get_mut(&queue).expect("it is set up");
        state.next_descriptor = slot(chain.len());
        self.offer(queue, head);
        head
    }

    /// Makes a chain available that is there already.
    pub fn offer(&mut self, queue: u32, head: u16) {
        let [_, available, _] = Rig::rings(queue);
        let state = self.queues.get_mut(&queue).expect("it is set up");
        let slot = u64::from(state.added % state.size);
        state.added = state.added.wrapping_add(1);
        let added = state.added;
        self.half(available + 4 + 2 * slot).store(head, Release);
        self.half(available + 2).store(added, Release);
    }

    /// Rings.
    pub fn kick(&self, queue: u32) {
        match self.device.doorbell() {
            Some((register, event)) => {
                assert_eq!(register, QUEUE_NOTIFY);
                event.write(1).expect("an event");
            }
            None => self.write(QUEUE_NOTIFY, queue),
        }
    }

    /// Number of chains that the device has given back since the queue was set up.
    pub fn used(&self, queue: u32) -> u16 {
        self.half(Rig::rings(queue)[2] + 2).load(Acquire)
    }

    /// The next chain that the device gives back: its head and the bytes written. Sleeps until there is one.
    pub fn take(&mut self, queue: u32) -> (u16, u32) {
        let Queue { size, taken, .. } = self.queues[&queue];
        loop {
            let interrupts = self.interrupts();
            if self.used(queue) != taken {
                break;
            }
            self.irq.wait_beyond(interrupts);
            assert_eq!(
                self.read(STATUS) & NEEDS_RESET,
                0,
                "{:?}",
                self.device.problem()
            );
        }
        let element = Rig::rings(queue)[2] + 4 + 8 * u64::from(taken % size);
        let bytes = self.get(element, 8);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let state = self.queues.get_mut(&queue).expect("it is set up");
        state.taken = taken.wrapping_add(1);
        (word(0) as u16, word(4))
    }

    /// Adds a chain, rings, and waits until it is done. Returns the bytes written.
    pub fn run(&mut self, queue: u32, chain: &[Descriptor]) -> u32 {
        let head = self.add(queue, chain);
        self.kick(queue);
        let (used, written) = self.take(queue);
        assert_eq!(used, head);
        written
    }

    /// Waits until the device says that it needs a reset. Returns why.
    pub fn wait_for_needs_reset(&self) -> String {
        loop {
            let interrupts = self.interrupts();
            if self.read(STATUS) & NEEDS_RESET != 0 {
                break;
            }
            self.irq.wait_beyond(interrupts);
        }
        assert_ne!(self.read(INTERRUPT_STATUS) & 2, 0, "the driver is told");
        self.device.problem().expect("a reason")
    }

    /// Interrupts so far.
    pub fn interrupts(&self) -> u64 {
        self.irq.count()
    }

    /// Waits until there have been more interrupts than this.
    pub fn wait_for_interrupt(&self, seen: u64) {
        self.irq.wait_beyond(seen);
    }

    /// Moves these pages to the device that only migrates; all of them must move.
    pub fn to_device(&self, range: std::ops::Range<u64>) {
        let range = pages(range.start as u32..range.end as u32);
        let moved = self.backend.migrate_to_device(self.other, range);
        assert_eq!(moved.expect("a range"), u64::from(range.len()));
    }

    /// Pages that are pinned now.
    pub fn pinned(&self) -> Vec<u32> {
        let is_pinned = |page: &u32| {
            let word = self.backend.word(hmm_backend::pages::Page(*page));
            word.expect("a page").pins() > 0
        };
        (0..PAGES).filter(is_pinned).collect()
    }

    /// Stops the device: no page is pinned any more, and the backend has kept its contract.
    pub fn finish(self) {
        self.device.stop();
        assert!(self.pinned().is_empty(), "{:?}", self.pinned());
        self.driver.assert_clean();
    }
}
