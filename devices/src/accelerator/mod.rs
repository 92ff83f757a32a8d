//! An accelerator put together, and the side of it that vCPUs see.
//!
//! | module | what |
//! |---|---|
//! | `shared` | what vCPUs and the device's thread share |
//! | `registers` | the register file, a pure state machine |
//! | `processor` | the device's thread: fetches, executes and completes commands |
//! | `queue` | the ring in guest memory |
//! | `mirrored_memory` | guest memory through the mirror, for commands |
//! | `mmu` | device page table and TLB |
//! | `spaces` | the guest's translations of virtual addresses |
//! | `space_registers`, `guest_fault` | the registers for them, and for what the device asks the guest |
//! | `driver`, `stats` | the device's side of the migration contract; its counters |

mod driver;
mod guest_fault;
mod mirrored_memory;
mod mmu;
mod pinned_words;
mod processor;
mod registers;
mod shared;
mod space_registers;
mod spaces;
mod stats;

pub use driver::AcceleratorDriver;
pub use shared::CommandInFlight;
pub use stats::AcceleratorStats;

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::time::Duration;

use hmm_backend::driver::Driver;
use hmm_backend::limits::{Refusal, Resource};
use hmm_backend::pages::{DeviceId, Fidelity, PAGE_SIZE};
use hmm_backend::{Backend, Progress};
use hmmvisor_abi::accel::{self, queue_bytes};
use parking_lot::Mutex;

use self::mirrored_memory::MirroredMemory;
use self::mmu::Mmu;
use self::pinned_words::PinnedWords;
use self::processor::Processor;
use self::registers::{RegisterEffect, Registers};
use self::shared::{ControlBlock, State};
use self::spaces::BadTranslation;
use crate::bell::Bell;
use crate::commands::managed::Addresses;
use crate::commands::queue::Queue;
use crate::interrupt::Interrupt;
use crate::mmio::{EventFd, MmioDevice, SlotKind};
use crate::thread::{self, STOP_WITHIN, Thread};

/// The configuration of an accelerator.
#[derive(Clone, Debug)]
pub struct AcceleratorConfig {
    /// Device memory in bytes.
    pub memory: u64,
    /// Bytes up to which it can grow while the machine runs ([`Backend::resize`]); at least `memory`.
    pub memory_max: u64,
    /// Whether CPUs reach it in place.
    pub coherent: bool,
    /// How much it tells of its accesses.
    pub fidelity: Fidelity,
    /// Guest-physical base of managed memory.
    pub managed_base: u64,
    /// Number of vCPUs that can get its interrupt.
    pub vcpus: u32,
    /// The host CPU its thread is pinned to, if any.
    pub cpu: Option<usize>,
}

/// Why an accelerator could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AcceleratorError {
    /// The backend refused the device.
    #[error("cannot attach accelerator {index} to guest memory: {error}")]
    Attach {
        /// The accelerator's index.
        index: u32,
        /// Why.
        #[source]
        error: hmm_backend::Error,
    },
    /// The doorbell could not be created.
    #[error("cannot create the doorbell of accelerator {index}: {error}")]
    Doorbell {
        /// The accelerator's index.
        index: u32,
        /// Why.
        #[source]
        error: Refusal,
    },
    /// The thread could not be started.
    #[error("cannot start the thread of accelerator {index}: {error}")]
    Thread {
        /// The accelerator's index.
        index: u32,
        /// Why.
        #[source]
        error: Refusal,
    },
    /// The thread could not be pinned to its host CPU.
    #[error("cannot pin the thread of accelerator {index} to host CPU {cpu}: {error}")]
    Affinity {
        /// The accelerator's index.
        index: u32,
        /// The host CPU that the thread should run on.
        cpu: usize,
        /// Why not.
        #[source]
        error: io::Error,
    },
}

/// An emulated accelerator: what `docs/devices.md` describes.
///
/// Stopping it leaves it attached to the backend, so that what is in its memory can still migrate
/// back; [`Backend::detach`] removes it.
pub struct Accelerator {
    shared: Arc<ControlBlock>,
    backend: Arc<Backend>,
    device: DeviceId,
    managed: Addresses,
    thread: Mutex<Option<Thread<()>>>,
}

impl Accelerator {
    /// Attaches a device to the backend and starts its thread.
    pub fn new(
        index: u32,
        config: AcceleratorConfig,
        backend: &Arc<Backend>,
        irq: Box<dyn Interrupt>,
    ) -> Result<Accelerator, AcceleratorError> {
        Accelerator::with_driver(index, config, backend, irq, |own| own)
    }

    /// Attaches a device and starts its thread, with a driver that `wrap` puts in front of the accelerator's own to watch
    /// it or to make it fail.
    pub fn with_driver(
        index: u32,
        config: AcceleratorConfig,
        backend: &Arc<Backend>,
        irq: Box<dyn Interrupt>,
        wrap: impl FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver>,
    ) -> Result<Accelerator, AcceleratorError> {
        let driver = Arc::new(AcceleratorDriver::new(config.memory_max));
        let attach = match config.coherent {
            true => Backend::attach_coherent,
            false => Backend::attach,
        };
        let device = attach(backend, config.memory_max, wrap(driver.clone()))
            .map_err(|error| AcceleratorError::Attach { index, error })?;
        backend
            .resize(device, config.memory, &Progress::default())
            .map_err(|error| AcceleratorError::Attach { index, error })?;
        Accelerator::attached(index, config, backend, device, &driver, irq).inspect_err(|_| {
            // The first error is the one to report.
            let _ = backend.detach(device);
        })
    }

    /// Starts the thread of a device that has been attached already, with this driver or one that passes everything on
    /// to it.
    pub fn attached(
        index: u32,
        config: AcceleratorConfig,
        backend: &Arc<Backend>,
        device: DeviceId,
        driver: &AcceleratorDriver,
        irq: Box<dyn Interrupt>,
    ) -> Result<Accelerator, AcceleratorError> {
        let managed = Addresses {
            base: config.managed_base,
            bytes: u64::from(backend.pages()) * PAGE_SIZE,
        };
        let doorbell = Bell::new().map_err(|error| AcceleratorError::Doorbell {
            index,
            error: error.into(),
        })?;
        let counters = driver.counters.clone();
        let registers = Registers::new(config.memory, managed, config.vcpus);
        let shared = Arc::new(ControlBlock::new(
            registers, managed, doorbell, irq, counters,
        ));

        let mirror = backend
            .mirror(device, Mmu::new(backend.pages(), config.fidelity))
            .map_err(|error| AcceleratorError::Attach { index, error })?;
        let memory = MirroredMemory {
            backend: backend.clone(),
            device,
            managed,
            space: accel::PHYSICAL,
            mirror,
            shared: shared.clone(),
        };
        let processor = Processor::new(shared.clone(), memory);
        let name = format!("accelerator{index}");
        let thread = thread::spawn(&name, shared.irq().on_panic(), move || processor.run());
        let thread = thread.map_err(|error| AcceleratorError::Thread {
            index,
            error: Refusal::new(Resource::Thread, error),
        })?;
        let accelerator = Accelerator {
            shared,
            backend: backend.clone(),
            device,
            managed,
            thread: Mutex::new(Some(thread)),
        };
        if let Some(cpu) = config.cpu {
            accelerator
                .pin_thread(cpu)
                .map_err(|error| AcceleratorError::Affinity { index, cpu, error })?;
        }
        Ok(accelerator)
    }

    /// The device's number in the backend.
    pub fn device_id(&self) -> DeviceId {
        self.device
    }

    /// The accelerator's counters so far.
    pub fn stats(&self) -> AcceleratorStats {
        self.shared.counters().stats()
    }

    /// Has the accelerator halt after the command that it is at, which it finishes; a command that waits for the guest's
    /// answer to a fault halts there. Returns whether it has halted within `limit`; if not, it does later.
    pub fn pause(&self, command: CommandInFlight, limit: Duration) -> bool {
        self.shared.pause(command, limit)
    }

    /// Has the accelerator go on after a pause.
    pub fn resume(&self) {
        self.shared.resume();
    }

    fn enable(&self, state: &mut State, base: u64, entries: u64, translations: Option<u64>) {
        let pin = |base, bytes| {
            let pages = self
                .managed
                .pages(base, bytes)
                .expect("the registers have checked the addresses");
            // The device is disabled, so its thread holds nothing that the pin could wait for.
            self.backend.pin(pages).map(PinnedWords)
        };
        let translations = translations.map(|page| pin(page, PAGE_SIZE)).transpose();
        match (pin(base, queue_bytes(entries)), translations) {
            (Ok(queue), Ok(translations)) if !self.shared.stopping() => {
                state.new_queue = Some(Queue::new(queue, entries));
                state.translations = translations;
                state.registers.enable();
                self.shared.ring_doorbell();
            }
            _ => state.registers.refuse(accel::ERR_PIN),
        }
    }

    fn pin_thread(&self, cpu: usize) -> io::Result<()> {
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let thread = self.thread.lock();
        let Some(thread) = thread.as_ref() else {
            return Ok(());
        };
        // SAFETY: all zeros is an empty set, `cpu` is one of its bits, and the thread's id is valid
        // because it has not been joined.
        let error = unsafe {
            let mut cpus: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut cpus);
            libc::pthread_setaffinity_np(thread.handle().as_pthread_t(), size_of_val(&cpus), &cpus)
        };
        match error {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl MmioDevice for Accelerator {
    fn kind(&self) -> SlotKind {
        SlotKind::Accelerator
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // A 4-byte access reaches the lower half; nothing else but 8 bytes is an access.
        if matches!(data.len(), 4 | 8) {
            let value = self.shared.lock().registers.read(offset);
            data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
        }
    }

    /// Sleeps for up to a few milliseconds in registers that wait.
    fn write(&self, offset: u64, data: &[u8]) {
        let value = match data.len() {
            4 | 8 => {
                let mut bytes = [0; 8];
                bytes[..data.len()].copy_from_slice(data);
                u64::from_le_bytes(bytes)
            }
            _ => return,
        };
        let mut state = self.shared.lock();
        match state.registers.write(offset, value) {
            RegisterEffect::None => {}
            RegisterEffect::Enable {
                base,
                entries,
                translations,
            } => self.enable(&mut state, base, entries, translations),
            RegisterEffect::Disable => {
                self.shared.ring_doorbell();
                self.shared.answer_fault();
                // The vCPU waits here, so that a guest with short commands can go on at once.
                self.shared
                    .sleep_until(state, |registers| registers.is_disabled());
            }
            RegisterEffect::Doorbell => self.shared.ring_doorbell(),
            RegisterEffect::Wait { seen } => self
                .shared
                .sleep_until(state, |registers| registers.wait_is_over(seen)),
            RegisterEffect::RouteInterrupt { vcpu } => match self.shared.irq().route(vcpu) {
                true => state.registers.interrupt_routed(vcpu),
                false => state.registers.refuse(accel::ERR_IRQ),
            },
            // What follows waits for the device with the state locked. The device never locks the state while it holds
            // translations, and holds them for a bounded time.
            RegisterEffect::OpenSpace { space } => match state.registers.is_enabled() {
                true => self.shared.spaces.open(space),
                false => state.registers.refuse(accel::ERR_NOT_WRITABLE),
            },
            RegisterEffect::CloseSpace { space } => {
                self.shared.spaces.close(space);
                self.shared.answer_fault();
            }
            RegisterEffect::Map { space, start } => {
                let mapped = match &state.translations {
                    Some(page) => self.shared.spaces.map(space, start, page.words()),
                    None => Err(BadTranslation),
                };
                if mapped.is_err() {
                    state.registers.refuse(accel::ERR_TRANSLATION);
                }
            }
            RegisterEffect::Invalidate { space, start, end } => {
                self.shared.spaces.invalidate(space, start, end);
            }
            RegisterEffect::Resume => self.shared.answer_fault(),
        }
    }

    fn doorbell(&self) -> Option<(u64, &EventFd)> {
        Some((accel::REG_DOORBELL, self.shared.doorbell()))
    }

    /// Stops the device: aborts the current command, wakes vCPUs that sleep in a register and returns
    /// when its thread has ended. A thread that does not end within [`STOP_WITHIN`] is left behind; it owns what it uses.
    fn stop(&self) {
        // The lock is held until the thread has ended, so that a second caller returns no earlier.
        let mut thread = self.thread.lock();
        self.shared.stop();
        if let Some(thread) = thread.take() {
            // A thread that panicked has reported that; there is nothing left to stop.
            let _ = thread.join_within(STOP_WITHIN);
        }
    }
}

impl Drop for Accelerator {
    fn drop(&mut self) {
        self.stop();
    }
}
