//! An accelerator for the workloads: its queue, and its commands, which the real accelerator's kernels execute.

use std::sync::atomic::{AtomicU64, Ordering};

use hmm_backend::pages::{Access, DeviceId, PAGE_SIZE};
use hmmvisor_abi::accel::*;
use hmmvisor_abi::map;
use hmmvisor_devices::commands::command::{Direction, decode};
use hmmvisor_devices::commands::error::CommandError;
use hmmvisor_devices::commands::guest_hint::GuestHint;
use hmmvisor_devices::commands::kernels;
use hmmvisor_devices::commands::managed::{Addresses, Words};
use hmmvisor_devices::commands::memory::Memory;
use hmmvisor_devices::commands::queue::{Queue, completion};
use hmmvisor_devices::guest_bytes::GuestBytes;

use super::{Who, tell, words};

/// The registers of an accelerator, and its queue while it is enabled.
#[derive(Default)]
pub struct Accelerator {
    base: u64,
    entries: u64,
    queue: Option<Queue<QueueMemory>>,
}

/// Memory from an address on. The real accelerator has its queue pinned and reaches it in place, so its words are no accesses
/// that could make a page migrate.
struct QueueMemory(u64);

impl AsRef<[AtomicU64]> for QueueMemory {
    fn as_ref(&self) -> &[AtomicU64] {
        &words()[((self.0 - map::MANAGED) / 8) as usize..]
    }
}

impl Accelerator {
    /// Reads a register.
    pub fn read(&self, register: u64) -> u64 {
        match register {
            REG_ID => ID_VALUE,
            REG_VERSION => 1,
            REG_QUEUE_BASE => self.base,
            REG_QUEUE_ENTRIES => self.entries,
            REG_ENABLE => self.queue.is_some().into(),
            REG_COMPLETED => self.queue.as_ref().map_or(0, Queue::completed),
            REG_ERROR => ERR_NONE,
            _ => panic!("the workloads read no register {register:#x}"),
        }
    }

    /// Writes a register. The doorbell executes all commands that have been submitted.
    pub fn write(&mut self, index: u8, register: u64, value: u64) {
        match register {
            REG_QUEUE_BASE => self.base = value,
            REG_QUEUE_ENTRIES => self.entries = value,
            REG_ENABLE => {
                let queue = || Queue::new(QueueMemory(self.base), self.entries);
                self.queue = (value != 0).then(queue);
            }
            REG_DOORBELL => self.execute(index),
            // Commands are done when they are submitted, so there are no waits and no interrupts.
            REG_IRQ | REG_WAIT => {}
            _ => panic!("the workloads write no register {register:#x}"),
        }
    }

    fn execute(&mut self, index: u8) {
        let Some(queue) = &mut self.queue else {
            return;
        };
        while let Ok(Some(command)) = queue.next() {
            let mut memory = DeviceMemory {
                index,
                managed: Addresses {
                    base: map::MANAGED,
                    bytes: words().len() as u64 * 8,
                },
            };
            let result = decode(&command, &memory.addresses())
                .and_then(|operation| kernels::execute(operation, &mut memory));
            queue.complete(completion(&command, result));
        }
    }
}

/// Guest memory as the kernels see it.
struct DeviceMemory {
    index: u8,
    managed: Addresses,
}

impl Memory for DeviceMemory {
    fn addresses(&self) -> Addresses {
        self.managed
    }

    fn visit(
        &mut self,
        access: Access,
        first: Words,
        mut step: impl FnMut(&[AtomicU64]) -> Words,
    ) -> Result<(), CommandError> {
        let mut run = first;
        while !run.is_empty() {
            self.addresses().words(run.addr, run.len)?;
            tell(Who::Device(self.index), self.managed.page(run.addr), access);
            let start = ((run.addr - self.managed.base) / 8) as usize;
            let in_page = (PAGE_SIZE - run.addr % PAGE_SIZE) / 8;
            run = step(&words()[start..start + run.len.min(in_page) as usize]);
        }
        Ok(())
    }

    fn add_exclusively(&mut self, addr: u64, n: u64, value: u64) -> Result<u64, CommandError> {
        let word = self.addresses().words(addr, 1)?;
        let page = self.managed.page(word.addr);
        tell(Who::Device(self.index), page, Access::Write);
        let word = &words()[((addr - self.managed.base) / 8) as usize];
        Ok(word.fetch_add(value.wrapping_mul(n), Ordering::Relaxed))
    }

    /// Moves nothing, because pages have no places here.
    fn migrate(&mut self, _: GuestBytes, _: Direction) -> Result<u64, CommandError> {
        Ok(0)
    }

    fn free(&mut self, span: GuestBytes) -> Result<u64, CommandError> {
        let pages = self.managed.pages(span.addr, span.len)?;
        Ok(super::free(self.index, pages))
    }

    fn hint(&mut self, span: GuestBytes, hint: GuestHint) -> Result<(), CommandError> {
        let pages = self.managed.pages(span.addr, span.len)?;
        super::hint(pages, hint.by(DeviceId(self.index)));
        Ok(())
    }
}
