//! The accelerator as a subject: its driver, and its queue as the way to memory.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use hmm_backend::Backend;
use hmm_backend::driver::Driver;
use hmm_backend::pages::{DeviceId, Fidelity, PAGE_SIZE, Page};
use hmmvisor_abi::accel::*;
use hmmvisor_abi::map::MANAGED;
use hmmvisor_devices::{Accelerator, AcceleratorConfig, AcceleratorDriver, Interrupt, MmioDevice};
use hmmvisor_testkit::conformance::{AccessRefused, DeviceAccess, PAGES, Subject};
use hmmvisor_testkit::word;

const MEMORY: u64 = PAGES as u64 * PAGE_SIZE;

pub struct Accelerated(Arc<AcceleratorDriver>);

impl Default for Accelerated {
    fn default() -> Accelerated {
        // At least as much as any rule gives it.
        Accelerated(Arc::new(AcceleratorDriver::new(MEMORY)))
    }
}

struct NoInterrupts;

impl Interrupt for NoInterrupts {
    fn route(&self, _: u32) -> bool {
        false
    }
    fn trigger(&self) {}
}

impl Subject for Accelerated {
    fn driver(&self) -> Arc<dyn Driver> {
        self.0.clone()
    }

    fn connect(
        &mut self,
        backend: &Arc<Backend>,
        device: DeviceId,
    ) -> Option<Box<dyn DeviceAccess>> {
        let config = AcceleratorConfig {
            coherent: false,
            fidelity: Fidelity::default(),
            memory: MEMORY,
            memory_max: MEMORY,
            managed_base: MANAGED,
            vcpus: 1,
            cpu: None,
        };
        let index = u32::from(device.0);
        let irq = Box::new(NoInterrupts);
        let accelerator = Accelerator::attached(index, config, backend, device, &self.0, irq);
        let queue = Queue {
            accelerator: accelerator.expect("an accelerator"),
            backend: backend.clone(),
            // Each device has its queue in a page that no rule touches.
            page: PAGES - 1 - index,
            sent: 0,
        };
        queue.register(REG_QUEUE_BASE, MANAGED + Page(queue.page).offset());
        queue.register(REG_QUEUE_ENTRIES, 1);
        queue.register(REG_ENABLE, 1);
        Some(Box::new(queue))
    }

    fn live(&self) -> Option<usize> {
        Some(self.0.live())
    }

    fn complaints(&self) -> Vec<String> {
        match self.0.violations() {
            0 => Vec::new(),
            n => vec![format!("{n} violations of the contract")],
        }
    }
}

/// One command after the other.
struct Queue {
    accelerator: Accelerator,
    backend: Arc<Backend>,
    page: u32,
    sent: u64,
}

impl Queue {
    fn register(&self, register: u64, value: u64) {
        self.accelerator.write(register, &value.to_le_bytes());
    }

    fn slot(&self, offset: u64) -> &std::sync::atomic::AtomicU64 {
        word(&self.backend, self.page, (offset / 8) as usize)
    }

    /// Runs a command on one word.
    fn run(&mut self, opcode: u32, args: &[u64]) -> Result<u64, AccessRefused> {
        let head = [u64::from(opcode), self.sent];
        for (index, value) in (0..).zip(head.iter().chain(args)) {
            self.slot(commands_offset() + 8 * index)
                .store(*value, SeqCst);
        }
        self.sent += 1;
        self.slot(0).store(self.sent, SeqCst);
        self.register(REG_DOORBELL, 1);
        while self.slot(8).load(SeqCst) < self.sent {
            self.register(REG_WAIT, self.sent - 1);
        }
        let completion = |offset| self.slot(completions_offset(1) + offset).load(SeqCst);
        match completion(8) as u32 {
            STATUS_OK => Ok(completion(16)),
            STATUS_PERMISSION => Err(AccessRefused::Permission),
            status => Err(AccessRefused::Failed(format!("status {status}"))),
        }
    }
}

fn address(page: Page, word: usize) -> u64 {
    MANAGED + page.offset() + 8 * word as u64
}

impl DeviceAccess for Queue {
    fn read(&mut self, page: Page, word: usize) -> Result<u64, AccessRefused> {
        self.run(OP_REDUCE, &[address(page, word), 1])
    }

    fn write(&mut self, page: Page, word: usize, value: u64) -> Result<(), AccessRefused> {
        self.run(OP_FILL, &[address(page, word), 1, value, 0])
            .map(|_| ())
    }
}
