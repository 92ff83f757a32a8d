//! Every vCPU executes what the test kit puts into its mailbox: a guest that does what a test says. See
//! `hmmvisor_abi::agent`.

use crate::command::{self, command};
use crate::cpu::Cpu;
use crate::devices;
use crate::exit::fail;
use crate::memory::{PAGE_WORDS, Words};
use crate::memory_error::MemoryError;
use crate::mmio::Registers;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use hmmvisor_abi::accel::{Command, REG_ENABLE, STATUS_OK as ACCEL_OK};
use hmmvisor_abi::agent::*;
use hmmvisor_abi::control::EXIT_USAGE;
use hmmvisor_abi::memory_error::REASON_READ_ONLY;

/// Why a command failed: the fields of the mailbox for it.
struct Failed {
    status: u32,
    accel_status: u32,
    found: u64,
    address: u64,
}

type Outcome = Result<u64, Failed>;

fn failed(status: u32, address: u64) -> Failed {
    Failed {
        status,
        accel_status: 0,
        found: 0,
        address,
    }
}

impl From<MemoryError> for Failed {
    fn from(error: MemoryError) -> Failed {
        let status = match error.reason {
            REASON_READ_ONLY => STATUS_PERMISSION,
            _ => STATUS_LOST,
        };
        Failed {
            found: error.reason,
            ..failed(status, error.address)
        }
    }
}

/// One vCPU's mailbox and what it works with.
struct Agent<'a> {
    cpu: &'a Cpu,
    window: Registers,
    mailbox: &'static Mailbox,
}

pub fn run(cpu: &Cpu) {
    // SAFETY: the window of the test kit's device, or of nothing, which reads as zeros.
    let window = unsafe { Registers::at(WINDOW) };
    if window.read(REG_ID) != ID_VALUE {
        fail!(
            EXIT_USAGE,
            "workload agent takes its commands from the test kit, and there is none"
        );
    }
    // SAFETY: the interface says that the mailbox is there for ever, aligned; host and guest only access it
    // atomically.
    let mailbox = unsafe { &*(mailbox(cpu.index) as *const Mailbox) };
    let agent = Agent {
        cpu,
        window,
        mailbox,
    };
    loop {
        window.write(REG_NEXT, cpu.index);
        let submitted = mailbox.submitted.load(Acquire);
        if submitted != mailbox.completed.load(Relaxed) {
            agent.answer();
            mailbox.completed.store(submitted, Release);
        }
    }
}

impl Agent<'_> {
    fn answer(&self) {
        let by_host = match self.mailbox.opcode.load(Relaxed) {
            OP_READ_ONLY => true,
            OP_FREE => self.cpu.devices() == 0,
            _ => false,
        };
        if by_host {
            self.window.write(REG_CALL, self.cpu.index);
            return;
        }
        let (result, failed) = match self.execute() {
            Ok(result) => (result, failed(STATUS_OK, 0)),
            Err(failed) => (failed.found, failed),
        };
        let mailbox = self.mailbox;
        mailbox.status.store(failed.status, Relaxed);
        mailbox.accel_status.store(failed.accel_status, Relaxed);
        mailbox.result.store(result, Relaxed);
        mailbox.address.store(failed.address, Relaxed);
    }

    fn execute(&self) -> Outcome {
        let opcode = self.mailbox.opcode.load(Relaxed);
        match opcode {
            OP_READ => self.load(self.words(1)?, 0),
            OP_WRITE => self.store(self.words(1)?, 0, self.arg(1)),
            OP_COMPARE_EXCHANGE => self.exchange(self.words(1)?, 0, self.arg(1), self.arg(2)),
            OP_ADD => self.add(self.words(1)?, 0, self.arg(1)),
            OP_LOOP => self.add_in_rounds(),
            OP_FILL => {
                let (words, start) = (self.pages()?, self.arg(2));
                for index in 0..words.len() {
                    self.store(words, index, start.wrapping_add(index))?;
                }
                Ok(0)
            }
            OP_CHECKSUM => {
                let words = self.pages()?;
                let mut sum = Checksum::default();
                for index in 0..words.len() {
                    sum.add(self.load(words, index)?);
                }
                Ok(sum.value())
            }
            OP_VERIFY => {
                let (words, start) = (self.pages()?, self.arg(2));
                for index in 0..words.len() {
                    let found = self.load(words, index)?;
                    if found != start.wrapping_add(index) {
                        let address = words.address() + index * 8;
                        return Err(Failed {
                            found,
                            ..failed(STATUS_WRONG_DATA, address)
                        });
                    }
                }
                Ok(0)
            }
            OP_FREE => self.accelerate(0, command::free(self.pages()?)),
            OP_SUBMIT => {
                let args: [u64; 6] = core::array::from_fn(|index| self.arg(2 + index));
                self.accelerate(self.arg(0), command(self.arg(1) as u32, &args))
            }
            OP_RESET => {
                devices::with(self.device(self.arg(0))?, |accel| {
                    accel.disable();
                    accel.enable();
                });
                Ok(0)
            }
            _ => Err(failed(STATUS_REFUSED, opcode)),
        }
    }

    fn arg(&self, index: usize) -> u64 {
        self.mailbox.args[index].load(Relaxed)
    }

    /// So many words from the first argument on.
    fn words(&self, len: u64) -> Result<Words, Failed> {
        let address = self.arg(0);
        Words::managed(self.cpu.boot, address, len).ok_or(failed(STATUS_REFUSED, address))
    }

    /// The words of as many pages as the second argument says.
    fn pages(&self) -> Result<Words, Failed> {
        self.words(self.arg(1).saturating_mul(PAGE_WORDS))
    }

    fn device(&self, device: u64) -> Result<u64, Failed> {
        match device < self.cpu.devices() {
            true => Ok(device),
            false => Err(failed(STATUS_REFUSED, device)),
        }
    }

    /// Returns the address of a word that is about to be accessed, and writes it into the mailbox, where the test kit reads it.
    fn at(&self, words: Words, index: u64) -> u64 {
        let address = words.address() + index * 8;
        self.mailbox.at.store(address, Relaxed);
        address
    }

    fn load(&self, words: Words, index: u64) -> Outcome {
        Ok(self.cpu.try_read(self.at(words, index))?)
    }

    fn store(&self, words: Words, index: u64, value: u64) -> Outcome {
        self.cpu.try_write(self.at(words, index), value)?;
        Ok(0)
    }

    fn add(&self, words: Words, index: u64, value: u64) -> Outcome {
        Ok(self.cpu.try_fetch_add(self.at(words, index), value)?)
    }

    fn exchange(&self, words: Words, index: u64, expected: u64, new: u64) -> Outcome {
        let address = self.at(words, index);
        Ok(self.cpu.try_compare_exchange(address, expected, new)?)
    }

    fn add_in_rounds(&self) -> Outcome {
        let (pages, value, rounds) = (self.arg(1), self.arg(2), self.arg(3));
        // From the word in the first page to that in the last one.
        let words = self.words((pages.max(1) - 1).saturating_mul(PAGE_WORDS) + 1)?;
        let mut done = 0;
        while done != rounds || rounds == 0 {
            for page in 0..pages {
                self.add(words, page * PAGE_WORDS, value)?;
            }
            done += 1;
            self.mailbox.rounds.store(done, Release);
            if self.mailbox.stop.load(Acquire) != 0 {
                break;
            }
        }
        Ok(done)
    }

    fn accelerate(&self, device: u64, command: Command) -> Outcome {
        devices::with(self.device(device)?, |accel| {
            if accel.registers.read(REG_ENABLE) == 0 {
                return Err(failed(STATUS_DISABLED, device));
            }
            let completion = accel.try_run(command);
            match completion.status {
                ACCEL_OK => Ok(completion.result),
                accel_status => Err(Failed {
                    accel_status,
                    ..failed(STATUS_ACCELERATOR, completion.address)
                }),
            }
        })
    }
}
