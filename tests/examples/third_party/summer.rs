//! The accelerator: a driver, a page table, five registers, a thread that sums words anywhere in memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};

use hmm_backend::Error;
use hmm_backend::driver::{DeviceFolio, Driver, Finalized, MigrateError, ToDevice};
use hmm_backend::mirror::{Mirror, PageTable};
use hmm_backend::pages::{Access, PAGE_SIZE, Page};
use hmmvisor_devices::{Interrupt, MmioDevice, Slot};

// 64-bit registers. Writing START, with the vCPU to interrupt, sums COUNT words from ADDRESS.
const ADDRESS: u64 = 0x00;
const COUNT: u64 = 0x08;
const START: u64 = 0x10;
const SUM: u64 = 0x18;
const FAILED: u64 = 0x20;

/// The driver. The cookie is a serial number; a real device would find its own structures by it.
#[derive(Default)]
pub struct SumDriver {
    serial: AtomicU64,
    /// Folios in use.
    pub live: AtomicU64,
}

impl SumDriver {
    fn cookie(&self) -> u64 {
        self.live.fetch_add(1, SeqCst);
        self.serial.fetch_add(1, SeqCst)
    }
}

impl Driver for SumDriver {
    fn migrate_to_device(&self, mut migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        migration.set_cookies(|_| self.cookie());
        let copied = migration.copy()?;
        // The frames hold the contents, and nothing can change them: program the hardware here.
        Ok(copied.commit().finalize())
    }
    fn page_free(&self, _: DeviceFolio) {
        self.live.fetch_sub(1, SeqCst);
    }
    fn folio_split(&self, _: DeviceFolio) -> u64 {
        self.cookie()
    }
}

/// What vCPUs and the device's thread share.
#[derive(Default)]
struct Shared {
    registers: [AtomicU64; 5],
    stop: AtomicBool,
}

impl Shared {
    fn register(&self, offset: u64) -> &AtomicU64 {
        &self.registers[offset as usize / 8]
    }
    /// The kernel. `None` for a bad range, and when the device stops.
    fn sum(&self, mirror: &mut Mirror<PageTable>, managed: u64) -> Option<u64> {
        let bytes = self.register(COUNT).load(SeqCst).checked_mul(8)?;
        let mut at = self.register(ADDRESS).load(SeqCst).checked_sub(managed)?;
        let end = at.checked_add(bytes).filter(|_| at.is_multiple_of(8))?;
        let mut sum = 0u64;
        while at < end && !self.stop.load(SeqCst) {
            let page = Page(u32::try_from(at / PAGE_SIZE).ok()?);
            // Without a translation this is a device fault: it brings the page, with what the policy adds.
            let word = mirror.access(page, Access::Read, |entry| {
                let word = entry.host.as_ptr().wrapping_add((at % PAGE_SIZE) as usize);
                // SAFETY: aligned, and inside a page that stays there until this function returns.
                unsafe { AtomicU64::from_ptr(word.cast()) }.load(SeqCst)
            });
            sum = sum.wrapping_add(word.ok()?);
            at += 8;
        }
        (at >= end).then_some(sum)
    }
}

/// The device.
pub struct Summer {
    shared: Arc<Shared>,
    irq: Arc<dyn Interrupt>,
    running: Mutex<Option<(mpsc::SyncSender<()>, JoinHandle<()>)>>,
}

impl Summer {
    /// Attaches a device with this many bytes of memory, and starts it.
    pub fn new(slot: Slot<'_>, memory: u64, driver: Arc<SumDriver>) -> Result<Summer, Error> {
        let device = slot.backend.attach(memory, driver)?;
        let mut mirror = slot.backend.mirror(device, PageTable::default())?;
        let shared = Arc::new(Shared::default());
        let irq: Arc<dyn Interrupt> = slot.irq.into();
        let (its, line, managed) = (shared.clone(), irq.clone(), slot.managed_base);
        let (doorbell, orders) = mpsc::sync_channel(1);
        let thread = thread::spawn(move || {
            for () in orders {
                let sum = its.sum(&mut mirror, managed);
                its.register(FAILED).store(sum.is_none().into(), SeqCst);
                its.register(SUM).store(sum.unwrap_or(0), SeqCst);
                line.trigger();
            }
        });
        Ok(Summer {
            shared,
            irq,
            running: Mutex::new(Some((doorbell, thread))),
        })
    }
}

impl MmioDevice for Summer {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let register = self.shared.registers.get(offset as usize / 8);
        let value = register.map_or(0, |register| register.load(SeqCst));
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let value = data.try_into().map(u64::from_le_bytes).unwrap_or(0);
        match (offset, &*self.running.lock().expect("no holder panics")) {
            (ADDRESS | COUNT, _) => self.shared.register(offset).store(value, SeqCst),
            (START, Some((doorbell, _))) if self.irq.route(value as u32) => {
                _ = doorbell.try_send(()); // With work waiting already, it takes no more.
            }
            _ => {}
        }
    }

    fn stop(&self) {
        self.shared.stop.store(true, SeqCst);
        if let Some((doorbell, thread)) = self.running.lock().expect("no holder panics").take() {
            drop(doorbell); // What its thread waits for.
            thread.join().expect("it does not panic");
        }
    }
}
