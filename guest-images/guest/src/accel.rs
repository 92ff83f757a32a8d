//! The driver of one accelerator.

use crate::command::command;
use crate::control;
use crate::memory::{self, Words};
use crate::mmio::Registers;
use crate::sync::{Relax, SPINS};
use core::fmt;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU64, Ordering};
use hmmvisor_abi::BootInfo;
use hmmvisor_abi::accel::*;
use hmmvisor_abi::map;

/// Slots of a queue.
pub const ENTRIES: u64 = 128;

const SUBMITTED: u64 = 0;
const COMPLETED: u64 = 1;

/// How to learn that commands have completed.
#[derive(Clone, Copy)]
enum Wait {
    /// Look at the queue; when that takes long, sleep in the device's wait register.
    Poll,
    /// Watch the counter of the interrupts that this vCPU gets from the device.
    Interrupt {
        vcpu: u64,
        counter: &'static AtomicU64,
    },
}

/// An accelerator with its queue.
///
/// Commands are pushed into the queue, the device learns of them by a kick, and `finish` waits for
/// all of them. A full queue kicks and finishes by itself.
pub struct Accel {
    pub registers: Registers,
    index: u64,
    wait: Wait,
    queue: Words,
    /// Commands written into the queue since it was enabled.
    pushed: u64,
    /// Commands that the device has been told of.
    kicked: u64,
    /// Commands whose completions have been read.
    finished: u64,
    /// Sum of the results since the last `finish`.
    result: u64,
    /// Interrupt counter before the last kick.
    interrupts: u64,
}

impl Accel {
    /// Sets up accelerator `index`, which interrupts this vCPU; with `None`, no vCPU.
    pub fn start(boot: &BootInfo, index: u64, interrupt_vcpu: Option<u64>) -> Self {
        // SAFETY: the boot information says that the accelerator's registers are there.
        let registers = unsafe { Registers::at(boot.accel_base + index * boot.accel_stride) };
        let id = (registers.read(REG_ID), registers.read(REG_VERSION));
        assert!(
            id == (ID_VALUE, 1),
            "accelerator {index} says it is {id:#x?}"
        );
        let wait = match interrupt_vcpu {
            None => Wait::Poll,
            Some(vcpu) => {
                let counter = boot.irq_counters + (vcpu * map::IRQ_LINES + index) * 8;
                // SAFETY: the ABI says that the counter is there for ever and is one aligned word,
                // which the firmware changes.
                let counter = unsafe { &*(counter as *const AtomicU64) };
                Wait::Interrupt { vcpu, counter }
            }
        };
        let queue = memory::alloc("a command queue", queue_bytes(ENTRIES) / 8);
        let mut accel = Self {
            registers,
            index,
            wait,
            queue,
            pushed: 0,
            kicked: 0,
            finished: 0,
            result: 0,
            interrupts: 0,
        };
        accel.enable();
        accel
    }

    /// Makes the device use the queue, from command 0 on.
    pub fn enable(&mut self) {
        let interrupt = match self.wait {
            Wait::Poll => 0,
            Wait::Interrupt { vcpu, .. } => vcpu + 1,
        };
        self.registers.write(REG_QUEUE_BASE, self.queue.address());
        self.registers.write(REG_QUEUE_ENTRIES, ENTRIES);
        self.registers.write(REG_IRQ, interrupt);
        self.registers.write(REG_ENABLE, 1);
        self.check_error();
        (self.pushed, self.kicked, self.finished) = (0, 0, 0);
    }

    /// Disables the queue, and waits until the device has let go of it: the write waits only for some milliseconds.
    pub fn disable(&mut self) {
        self.registers.write(REG_ENABLE, 0);
        while self.registers.read(REG_ENABLE) != 0 {
            core::hint::spin_loop();
        }
        self.check_error();
    }

    /// Adds a command.
    pub fn push(&mut self, command: Command) {
        if self.pushed - self.finished == ENTRIES {
            self.finish_outstanding();
        }
        let number = self.pushed;
        let words = [u64::from(command.opcode), self.tag(number)]
            .into_iter()
            .chain(command.args);
        let slot = self.command_slot(number);
        for (offset, word) in (0..).zip(words) {
            self.queue.set(slot + offset, word);
        }
        self.pushed += 1;
    }

    /// Tells the device about the commands that were added.
    pub fn kick(&mut self) {
        if self.kicked == self.pushed {
            return;
        }
        if let Wait::Interrupt { counter, .. } = self.wait {
            self.interrupts = counter.load(Ordering::Acquire);
            // Commands complete in order: an interrupt for the last is enough.
            let slot = self.command_slot(self.pushed - 1);
            self.queue
                .set(slot, self.queue.get(slot) | u64::from(FLAG_INTERRUPT) << 32);
        }
        self.submit(self.pushed);
        self.kicked = self.pushed;
    }

    /// Waits for all commands, which must succeed; the answer is the wrapping sum of their results.
    pub fn finish(&mut self) -> u64 {
        self.finish_outstanding();
        core::mem::take(&mut self.result)
    }

    /// Executes one command, which must succeed; the answer is its result.
    pub fn run(&mut self, command: Command) -> u64 {
        self.push(command);
        self.finish()
    }

    /// Executes one command; returns its completion, failed or not.
    pub fn try_run(&mut self, command: Command) -> Completion {
        assert!(self.finished == self.pushed, "commands are outstanding");
        self.push(command);
        self.kick();
        self.wait();
        self.finished += 1;
        self.completion(self.finished - 1)
    }

    /// Tells the device about `commands` submitted commands; more than were pushed is a mistake that
    /// the device must notice.
    pub fn submit(&self, commands: u64) {
        self.queue
            .word(SUBMITTED)
            .store(commands, Ordering::Release);
        self.registers.write(REG_DOORBELL, 0);
    }

    /// Submitted and completed commands, as the queue says.
    pub fn header(&self) -> (u64, u64) {
        (self.queue.get(SUBMITTED), self.completed())
    }

    fn completed(&self) -> u64 {
        self.queue.word(COMPLETED).load(Ordering::Acquire)
    }

    fn finish_outstanding(&mut self) {
        self.kick();
        if self.finished == self.kicked {
            return;
        }
        self.wait();
        for number in self.finished..self.kicked {
            let completion = self.completion(number);
            if completion.status != STATUS_OK {
                panic!(
                    "accelerator {}: {} failed: {}",
                    self.index,
                    Sent(self, number),
                    Failure(completion)
                );
            }
            self.result = self.result.wrapping_add(completion.result);
        }
        self.finished = self.kicked;
    }

    /// Waits until the device has completed all commands that it has been told of.
    fn wait(&self) {
        match self.wait {
            Wait::Poll => self.poll(),
            Wait::Interrupt { counter, .. } => self.await_interrupt(counter),
        }
    }

    fn poll(&self) {
        for _ in 0..SPINS {
            if self.completed() >= self.kicked {
                return;
            }
            spin_loop();
        }
        for sleeps in 1_u64.. {
            let completed = self.completed();
            if completed >= self.kicked {
                return;
            }
            self.registers.write(REG_WAIT, completed);
            if sleeps % 256 == 0 {
                self.check_error();
            }
        }
    }

    /// Waits for the interrupt that the last command of a kick asked for, even if its completion is
    /// there already: an interrupt that never comes must not go unnoticed.
    fn await_interrupt(&self, counter: &AtomicU64) {
        const PATIENCE_NS: u64 = 10_000_000_000;
        let mut seen = self.interrupts;
        let mut completed_at = None;
        let mut relax = Relax::new();
        for turns in 1_u64.. {
            let interrupts = counter.load(Ordering::Acquire);
            // The counter is read first: the interrupt of a completion that is not seen here changes it
            // later.
            let completed = self.completed() >= self.kicked;
            if interrupts != seen && completed {
                return;
            }
            seen = interrupts;
            relax.relax();
            if turns % 4096 == 0 {
                self.check_error();
                let now = control::time_ns();
                let since = if completed {
                    *completed_at.get_or_insert(now)
                } else {
                    now
                };
                assert!(
                    now - since < PATIENCE_NS,
                    "accelerator {}: completed without an interrupt",
                    self.index
                );
            }
        }
    }

    fn check_error(&self) {
        let error = self.registers.read(REG_ERROR);
        assert!(
            error == ERR_NONE,
            "accelerator {}: register error {error}",
            self.index
        );
    }

    fn completion(&self, number: u64) -> Completion {
        let slot = completions_offset(ENTRIES) / 8
            + number % ENTRIES * (size_of::<Completion>() / 8) as u64;
        let tag = self.queue.get(slot);
        assert!(
            tag == self.tag(number),
            "accelerator {}: completion {number} has tag {tag:#x}",
            self.index
        );
        Completion {
            tag,
            status: self.queue.get(slot + 1) as u32,
            reserved: 0,
            result: self.queue.get(slot + 2),
            address: self.queue.get(slot + 3),
        }
    }

    fn command_slot(&self, number: u64) -> u64 {
        commands_offset() / 8 + number % ENTRIES * (size_of::<Command>() / 8) as u64
    }

    fn tag(&self, number: u64) -> u64 {
        self.index << 56 | number
    }
}

/// A command in a queue, for messages.
struct Sent<'a>(&'a Accel, u64);

impl fmt::Display for Sent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self(accel, number) = self;
        let slot = accel.command_slot(*number);
        let opcode = accel.queue.get(slot) as u32;
        write!(f, "command {number}, opcode {opcode}, arguments")?;
        (0..command(opcode, &[]).args.len() as u64)
            .try_for_each(|arg| write!(f, " {:#x}", accel.queue.get(slot + 2 + arg)))
    }
}

/// An unexpected completion, for messages.
struct Failure(Completion);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let what = match self.0.status {
            STATUS_OPCODE => "unknown opcode",
            STATUS_ARGUMENT => "bad argument",
            STATUS_ADDRESS => "address outside managed memory",
            STATUS_FAULT => "device fault could not be resolved",
            STATUS_PERMISSION => "not permitted",
            STATUS_INDEX => "index out of range",
            STATUS_ABORTED => "aborted",
            _ => "unknown status",
        };
        write!(
            f,
            "status {} ({what}), address or index {:#x}",
            self.0.status, self.0.address
        )
    }
}
