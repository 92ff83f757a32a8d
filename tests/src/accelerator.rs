//! An accelerator on a real backend without a guest: this process's threads are the CPUs.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};

use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::pages::{DeviceId, Fidelity, PAGE_SIZE};
use hmm_backend::policy::PolicySpec;
use hmm_backend::service::{FaultService, ServiceConfig};
use hmm_backend::{Backend, BackendConfig};
use hmmvisor_abi::accel::*;
use hmmvisor_abi::map::MANAGED;
use hmmvisor_devices::{Accelerator, AcceleratorConfig, Interrupt, MmioDevice};

use crate::{CheckedDriver, Random, pages, word};

/// Pages of managed memory; the queue is in the first ones.
pub const PAGES: u32 = 1024;
/// Slots of the queue.
pub const SLOTS: u64 = 8;
/// First page behind the queue.
pub const FIRST: u64 = 1;
const _: () = assert!(queue_bytes(SLOTS) <= FIRST * PAGE_SIZE);

/// Guest-physical address of a page.
pub fn at(page: u64) -> u64 {
    MANAGED + page * PAGE_SIZE
}

struct Irq(Arc<AtomicU64>);

impl Interrupt for Irq {
    fn route(&self, vcpu: u32) -> bool {
        vcpu == 0
    }
    fn trigger(&self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Status, result, address of a completion.
pub type Answer = (u32, u64, u64);

/// A driver program for one accelerator.
pub struct Rig {
    // Dropped in this order: no thread may fault after the service has stopped.
    /// The accelerator.
    pub accelerator: Arc<Accelerator>,
    _service: FaultService,
    /// The memory.
    pub backend: Arc<Backend>,
    interrupts: Arc<AtomicU64>,
    other: (DeviceId, Arc<CheckedDriver>),
    /// Commands submitted since the queue was enabled.
    pub sent: u64,
}

impl Rig {
    /// With this many pages of device memory. A second device, of 64 pages, only migrates.
    pub fn new(engine: Engine, policy: &str, device_pages: u64) -> Rig {
        Rig::telling(Fidelity::default(), engine, policy, device_pages)
    }

    /// The same with an accelerator that tells this much of its accesses.
    pub fn telling(fidelity: Fidelity, engine: Engine, policy: &str, device_pages: u64) -> Rig {
        let mut config = BackendConfig::new(u64::from(PAGES) * PAGE_SIZE);
        config.engine = EngineChoice::Only(engine);
        config.policy = Arc::new(policy.parse::<PolicySpec>().unwrap());
        let backend = Backend::new(config).unwrap();
        let threads = vec![None; 2];
        let fatal = |fault| panic!("{fault:?}");
        let service = backend
            .start_service(
                ServiceConfig {
                    threads,
                    ..ServiceConfig::default()
                },
                fatal,
            )
            .unwrap();
        let interrupts = Arc::new(AtomicU64::new(0));
        let config = AcceleratorConfig {
            coherent: false,
            fidelity,
            memory: device_pages * PAGE_SIZE,
            memory_max: device_pages * PAGE_SIZE,
            managed_base: MANAGED,
            vcpus: 2,
            cpu: None,
        };
        let irq = Box::new(Irq(interrupts.clone()));
        let accelerator = Accelerator::new(0, config, &backend, irq).unwrap();
        let driver = Arc::new(CheckedDriver::default());
        let other = backend.attach(64 * PAGE_SIZE, driver.clone()).unwrap();
        let mut rig = Rig {
            accelerator: Arc::new(accelerator),
            _service: service,
            backend,
            interrupts,
            other: (other, driver),
            sent: 0,
        };
        rig.enable();
        rig
    }

    /// A CPU writes a register.
    pub fn write(&self, register: u64, value: u64) {
        self.accelerator.write(register, &value.to_le_bytes());
    }

    /// A CPU reads a register.
    pub fn read(&self, register: u64) -> u64 {
        let mut data = [0; 8];
        self.accelerator.read(register, &mut data);
        u64::from_le_bytes(data)
    }

    /// Enables the queue, which must succeed.
    pub fn enable(&mut self) {
        self.write(REG_QUEUE_BASE, MANAGED);
        self.write(REG_QUEUE_ENTRIES, SLOTS);
        self.write(REG_IRQ, 1);
        self.write(REG_ENABLE, 1);
        assert_eq!((self.read(REG_ERROR), self.read(REG_ENABLE)), (ERR_NONE, 1));
        self.sent = 0;
    }

    /// The word at this byte of managed memory, as a CPU reaches it.
    pub fn cpu(&self, offset: u64) -> &AtomicU64 {
        word(
            &self.backend,
            (offset / PAGE_SIZE) as u32,
            (offset % PAGE_SIZE / 8) as usize,
        )
    }

    /// Puts a command into the queue and rings the doorbell.
    pub fn submit(&mut self, command: Command) {
        let slot = commands_offset() + self.sent % SLOTS * 64;
        let head = u64::from(command.opcode) | u64::from(command.flags) << 32;
        let words = [head, self.sent].into_iter().chain(command.args);
        for (index, value) in (0..).zip(words) {
            self.cpu(slot + 8 * index).store(value, Relaxed);
        }
        self.sent += 1;
        self.cpu(0).store(self.sent, Release);
        self.write(REG_DOORBELL, 1);
    }

    /// Waits until everything submitted is completed.
    pub fn wait(&self) {
        loop {
            let completed = self.read(REG_COMPLETED);
            if completed >= self.sent {
                break;
            }
            self.write(REG_WAIT, completed);
        }
        assert_eq!(self.cpu(8).load(Acquire), self.sent);
    }

    /// The last command's completion.
    pub fn answer(&self) -> Answer {
        let slot = completions_offset(SLOTS) + (self.sent - 1) % SLOTS * 32;
        let field = |offset| self.cpu(slot + offset).load(Relaxed);
        assert_eq!(field(0), self.sent - 1, "the tag");
        (field(8) as u32, field(16), field(24))
    }

    /// Runs a command; returns its completion, failed or not.
    pub fn run(&mut self, opcode: u32, args: &[u64]) -> Answer {
        self.submit(command(opcode, args));
        self.wait();
        self.answer()
    }

    /// Runs a command that must succeed; its result.
    pub fn result(&mut self, opcode: u32, args: &[u64]) -> u64 {
        let (status, result, address) = self.run(opcode, args);
        assert_eq!(
            (status, address),
            (STATUS_OK, 0),
            "command {opcode} {args:x?}"
        );
        result
    }

    /// Stores words from a page on, and waits until the pages' folios are unlocked. The service wakes a CPU before it unlocks the
    /// folio, and a prefetch skips locked folios.
    pub fn fill(&self, page: u64, values: impl IntoIterator<Item = u64>) {
        let mut end = page;
        for (index, value) in (0..).zip(values) {
            let offset = page * PAGE_SIZE + 8 * index;
            self.cpu(offset).store(value, Relaxed);
            end = offset / PAGE_SIZE + 1;
        }
        self.backend.settle(pages(page as u32..end as u32)).unwrap();
    }

    /// Checks words from a page on.
    pub fn expect(&self, what: &str, page: u64, values: impl IntoIterator<Item = u64>) {
        for (index, value) in (0..).zip(values) {
            let found = self.cpu(page * PAGE_SIZE + 8 * index).load(Relaxed);
            assert_eq!(found, value, "{what}: word {index}");
        }
    }

    /// Runs `work` while another thread moves the pages behind the queue about.
    pub fn amid_migrations(&mut self, seed: u64, work: impl FnOnce(&mut Rig)) {
        let (backend, own) = (self.backend.clone(), self.accelerator.device_id());
        let other = self.other.0;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let chaos = std::thread::spawn(move || {
            let mut random = Random(seed);
            let mut moved = 0;
            while !stopped.load(Relaxed) {
                let start = FIRST as u32 + random.below(500) as u32;
                let range = pages(start..start + 1 + random.below(40) as u32);
                moved += match random.below(4) {
                    0 => backend.migrate_to_device(own, range),
                    // Where the accelerator has to get it from through another driver.
                    1 => backend.migrate_to_device(other, range),
                    2 => backend.migrate_to_system(range),
                    _ => backend.pin(pages(start..start + 2)).map(|_| 0),
                }
                .unwrap();
            }
            moved
        });
        work(self);
        stop.store(true, Relaxed);
        assert!(chaos.join().unwrap() > 0, "nothing moved: the test is void");
        self.check_contract();
    }

    /// Waits until each command of a run without failures has raised its interrupt: the last one comes a moment after
    /// the completion.
    pub fn wait_for_interrupts(&self) {
        while self.interrupts.load(SeqCst) < self.sent {
            std::thread::yield_now();
        }
        assert_eq!(self.interrupts.load(SeqCst), self.sent);
    }

    /// The backend has kept to the contract with both devices.
    pub fn check_contract(&self) {
        assert_eq!(self.accelerator.stats().contract_violations, 0);
        self.other.1.assert_clean();
    }
}

/// A command that raises the interrupt when it is done.
pub fn command(opcode: u32, args: &[u64]) -> Command {
    let mut command = Command {
        opcode,
        flags: FLAG_INTERRUPT,
        ..Command::default()
    };
    command.args[..args.len()].copy_from_slice(args);
    command
}
