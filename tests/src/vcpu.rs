//! The commands of a vCPU.

use std::fmt;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, OnceLock};

use hmm_backend::pages::PageRange;
use hmmvisor_abi::agent;
use parking_lot::{Mutex, MutexGuard};

use crate::error::GuestError;
use crate::place::{Pages, Word, address, place_of};
use crate::{Pending, TestVm};

/// A command as the agent gets it.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    /// For messages.
    pub(crate) name: String,
    opcode: u64,
    args: [u64; 8],
    /// The pages that it touches.
    pub(crate) touches: Option<PageRange>,
}

impl Command {
    fn new(name: String, opcode: u64, given: &[u64]) -> Command {
        let mut args = [0; 8];
        args[..given.len()].copy_from_slice(given);
        Command {
            name,
            opcode,
            args,
            touches: None,
        }
    }

    fn touching(mut self, range: PageRange) -> Command {
        self.touches = Some(range);
        self
    }
}

/// A command that was given, with its answer when there is one.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) command: Command,
    number: u64,
    answer: OnceLock<Result<u64, GuestError>>,
}

impl Given {
    pub(crate) fn answer(&self) -> Option<&Result<u64, GuestError>> {
        self.answer.get()
    }
}

/// The host's state of a vCPU.
#[derive(Default)]
pub(crate) struct Desk {
    last: Mutex<Option<Arc<Given>>>,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Given>>> {
        self.last.lock()
    }

    /// The last command, if there was any.
    pub(crate) fn last(&self) -> Option<Arc<Given>> {
        self.lock().clone()
    }
}

/// One vCPU. All its methods give it a command and return at once; a command waits for the one before.
///
/// Where a method wants a page or pages, see [`Pages`]; where it wants a word, see [`Word`].
#[derive(Clone, Copy)]
pub struct Vcpu<'vm> {
    pub(crate) vm: &'vm TestVm,
    pub(crate) index: u32,
}

impl<'vm> Vcpu<'vm> {
    /// Reads a word.
    pub fn read(self, word: impl Word) -> Pending<'vm, u64> {
        self.access("read", agent::OP_READ, word, &[])
    }

    /// Writes a word.
    pub fn write(self, word: impl Word, value: u64) -> Pending<'vm, ()> {
        self.access("write", agent::OP_WRITE, word, &[value]).unit()
    }

    /// Writes `new` if the word is `expected`. The answer is what the word was.
    pub fn compare_exchange(self, word: impl Word, expected: u64, new: u64) -> Pending<'vm, u64> {
        let args = [expected, new];
        self.access("compare-exchange", agent::OP_COMPARE_EXCHANGE, word, &args)
    }

    /// Adds to a word, atomically. The answer is what the word was.
    pub fn fetch_add(self, word: impl Word, value: u64) -> Pending<'vm, u64> {
        self.access("fetch-add", agent::OP_ADD, word, &[value])
    }

    /// Adds `value` to the first word of each page, page after page, `rounds` times. The answer is `rounds`.
    pub fn add_rounds(self, pages: impl Pages, value: u64, rounds: u64) -> Pending<'vm, u64> {
        assert!(rounds > 0, "no round at all");
        self.give(self.looping(pages.range(), value, rounds))
    }

    /// The same until it is told to stop.
    pub fn add_until_stopped(self, pages: impl Pages, value: u64) -> Adding<'vm> {
        Adding {
            pending: self.give(self.looping(pages.range(), value, 0)),
            vcpu: self,
        }
    }

    fn looping(self, range: PageRange, value: u64, rounds: u64) -> Command {
        let args = [address(range.start), range.len().into(), value, rounds];
        Command::new(format!("additions to {range:?}"), agent::OP_LOOP, &args).touching(range)
    }

    /// Fills pages: word `i`, counted from the first page, becomes `start + i`.
    pub fn fill(self, pages: impl Pages, start: u64) -> Pending<'vm, ()> {
        self.range("fill", agent::OP_FILL, pages, start).unit()
    }

    /// Checks that pages are as [`Self::fill`] leaves them; otherwise the answer is [`GuestError::WrongData`].
    pub fn verify(self, pages: impl Pages, start: u64) -> Pending<'vm, ()> {
        self.range("verify", agent::OP_VERIFY, pages, start).unit()
    }

    /// Reads pages. The answer is the [`crate::checksum`] of their words.
    pub fn checksum(self, pages: impl Pages) -> Pending<'vm, u64> {
        self.range("checksum", agent::OP_CHECKSUM, pages, 0)
    }

    /// Says that the contents of pages are no longer needed, as guests do: by a command of the first accelerator. In
    /// a machine without accelerators the test kit's own device passes it on. The answer is the number of pages that
    /// had contents.
    pub fn free(self, pages: impl Pages) -> Pending<'vm, u64> {
        self.range("free", agent::OP_FREE, pages, 0)
    }

    /// Makes pages read-only ([`hmm_backend::Backend::set_permission`], through the test kit's device).
    pub fn set_read_only(self, pages: impl Pages) -> Pending<'vm, ()> {
        self.range("set read-only", agent::OP_READ_ONLY, pages, 1)
            .unit()
    }

    /// Lifts that.
    pub fn set_writable(self, pages: impl Pages) -> Pending<'vm, ()> {
        self.range("set writable", agent::OP_READ_ONLY, pages, 0)
            .unit()
    }

    /// Gives a command to an accelerator and waits for it in the guest. `opcode` and arguments are those of
    /// [`crate::accel`]; [`crate::address`] makes addresses. The answer is the command's result, or
    /// [`GuestError::Accelerator`].
    pub fn submit(self, device: usize, opcode: u32, args: &[u64]) -> Pending<'vm, u64> {
        let accelerator = self.vm.device(device).accelerator_index();
        let all = [accelerator.into(), opcode.into()];
        let all: Vec<u64> = all.into_iter().chain(args.iter().copied()).collect();
        let name = format!("command {opcode} {args:x?} of device {device}");
        self.give(Command::new(name, agent::OP_SUBMIT, &all))
    }

    /// Disables an accelerator's queue and enables it again.
    pub fn reset(self, device: usize) -> Pending<'vm, ()> {
        let accelerator = self.vm.device(device).accelerator_index();
        let name = format!("reset of device {device}");
        self.give(Command::new(name, agent::OP_RESET, &[accelerator.into()]))
            .unit()
    }

    fn access(self, what: &str, opcode: u64, word: impl Word, more: &[u64]) -> Pending<'vm, u64> {
        let (page, index) = word.place();
        assert!(index < 512, "a page has 512 words, none is number {index}");
        let args: Vec<u64> = std::iter::once(address((page, index)))
            .chain(more.iter().copied())
            .collect();
        let name = format!("{what} of page {page:#x}, word {index}");
        self.give(Command::new(name, opcode, &args).touching(page.range()))
    }

    fn range(self, what: &str, opcode: u64, pages: impl Pages, last: u64) -> Pending<'vm, u64> {
        let range = pages.range();
        let args = [address(range.start), range.len().into(), last];
        self.give(Command::new(format!("{what} of {range:?}"), opcode, &args).touching(range))
    }

    fn give(self, command: Command) -> Pending<'vm, u64> {
        if let Some(range) = command.touches {
            let pages = self.vm.pages();
            assert!(range.end.0 <= pages, "{range:?}: there are {pages} pages");
        }
        let mailbox = self.vm.doorbell().mailbox(self.index);
        // A vCPU does one thing at a time.
        let (mut last, end) = loop {
            let last = self.vm.desk(self.index).lock();
            let Some(before) = last.clone() else {
                break (last, None);
            };
            if self.vm.look_for_answer(self.index, &before) {
                break (last, None);
            }
            drop(last);
            if let Err(end @ GuestError::Ended(_)) = self.vm.wait_for_answer(self.index, &before) {
                break (self.vm.desk(self.index).lock(), Some(end));
            }
        };
        let number = mailbox.submitted.load(Relaxed) + 1;
        let given = Arc::new(Given {
            command,
            number,
            answer: OnceLock::new(),
        });
        if let Some(end) = end {
            // It never gets to this command.
            let _ = given.answer.set(Err(end));
            return Pending::new(self.vm, self.index, given);
        }
        mailbox.opcode.store(given.command.opcode, Relaxed);
        for (arg, value) in mailbox.args.iter().zip(given.command.args) {
            arg.store(value, Relaxed);
        }
        for cleared in [&mailbox.stop, &mailbox.at, &mailbox.rounds] {
            cleared.store(0, Relaxed);
        }
        *last = Some(given.clone());
        drop(last);
        let submit = || mailbox.submitted.store(number, Release);
        self.vm.doorbell().ring(submit);
        Pending::new(self.vm, self.index, given)
    }
}

impl fmt::Debug for Vcpu<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}", self.index)?;
        let Some(last) = self.vm.desk(self.index).last() else {
            return write!(f, ": no command yet");
        };
        self.vm.look_for_answer(self.index, &last);
        match last.answer() {
            Some(answer) => write!(f, ": {}: {answer:x?}", last.command.name),
            None => {
                let at = self.vm.doorbell().mailbox(self.index).at.load(Relaxed);
                write!(f, ": {} is not done", last.command.name)?;
                match at {
                    0 => write!(f, "; it has accessed no memory"),
                    at => {
                        let (page, index) = place_of(at);
                        write!(f, "; it is at page {page:#x}, word {index}, which is ")?;
                        self.vm.describe_page(page, f)
                    }
                }
            }
        }
    }
}

impl TestVm {
    /// Takes the answer out of the mailbox if it is there.
    pub(crate) fn look_for_answer(&self, vcpu: u32, given: &Given) -> bool {
        if given.answer.get().is_some() {
            return true;
        }
        let mailbox = self.doorbell().mailbox(vcpu);
        if mailbox.completed.load(Acquire) < given.number {
            return false;
        }
        let (result, at) = (mailbox.result.load(Relaxed), mailbox.address.load(Relaxed));
        let (page, index) = place_of(at);
        let answer = match mailbox.status.load(Relaxed) {
            agent::STATUS_OK => Ok(result),
            agent::STATUS_LOST => Err(GuestError::Lost { page }),
            agent::STATUS_PERMISSION => Err(GuestError::Permission { page }),
            agent::STATUS_WRONG_DATA => Err(GuestError::WrongData {
                page,
                index,
                expected: given.command.args[2].wrapping_add((at - given.command.args[0]) / 8),
                found: result,
            }),
            agent::STATUS_ACCELERATOR => Err(GuestError::Accelerator {
                status: mailbox.accel_status.load(Relaxed),
                address: at,
            }),
            agent::STATUS_DISABLED => Err(GuestError::Disabled),
            _ => Err(GuestError::Refused),
        };
        // Another thread may have taken it meanwhile: it is the same.
        let _ = given.answer.set(answer);
        true
    }
}

/// A vCPU that adds until it is stopped. Dropping this does not stop it.
#[must_use = "the vCPU adds until it is stopped"]
pub struct Adding<'vm> {
    pending: Pending<'vm, u64>,
    vcpu: Vcpu<'vm>,
}

impl Adding<'_> {
    /// Rounds over all pages so far.
    pub fn rounds(&self) -> u64 {
        self.vcpu
            .vm
            .doorbell()
            .mailbox(self.vcpu.index)
            .rounds
            .load(Acquire)
    }

    fn is_over(&self) -> bool {
        self.pending.is_done() || self.vcpu.vm.ended().is_some()
    }

    /// Waits until it has done this many more rounds, or the run has ended.
    pub fn wait_rounds(&self, more: u64) {
        let goal = self.rounds() + more;
        let what = format!("{goal} rounds of {}", self.pending.name());
        self.vcpu
            .vm
            .wait_until(&what, || self.rounds() >= goal || self.is_over());
    }

    /// Stops it at the end of a round. The answer is the number of rounds, which is what was added to each page,
    /// divided by the value.
    pub fn stop(self) -> Result<u64, GuestError> {
        let mailbox = self.vcpu.vm.doorbell().mailbox(self.vcpu.index);
        mailbox.stop.store(1, Release);
        self.pending.wait()
    }
}
