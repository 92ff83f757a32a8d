//! The state that the vCPUs' side of an accelerator and its thread share: registers, and ways to wake each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hmmvisor_abi::accel::{self, Command, Completion};
use parking_lot::{Condvar, Mutex, MutexGuard};
use vmm_sys_util::eventfd::EventFd;

use super::guest_fault::GuestFault;
use super::pinned_words::PinnedWords;
use super::registers::Registers;
use super::spaces::Spaces;
use super::stats::AcceleratorCounters;
use crate::bell::Bell;
use crate::commands::error::CommandError;
use crate::commands::managed::Addresses;
use crate::commands::queue::Queue;
use crate::interrupt::Interrupt;

/// How long a vCPU sleeps at most in one register write. It cannot take interrupts meanwhile.
const LONGEST_WAIT: Duration = Duration::from_millis(5);

/// What vCPUs and the command processor share.
pub struct ControlBlock {
    state: Mutex<State>,
    /// Notified when something has happened that a vCPU asleep in a register may wait for.
    changed: Condvar,
    /// Notified when something has happened that the device's thread may wait for in a fault.
    answered: Condvar,
    /// The guest's translations. Their lock comes after that of the state.
    pub spaces: Spaces,
    doorbell: Bell,
    stop: AtomicBool,
    /// A command that is being executed halts where it is: set while the state says so.
    halts_commands: AtomicBool,
    irq: Arc<dyn Interrupt>,
    counters: Arc<AcceleratorCounters>,
}

/// The part under the lock. It is never held while a command is executed.
pub struct State {
    /// The register file.
    pub registers: Registers,
    /// A new queue that the command processor has not taken yet.
    pub new_queue: Option<Queue<PinnedWords>>,
    /// The page in which the guest hands over translations, while the device is enabled.
    pub translations: Option<PinnedWords>,
    /// Number of vCPUs asleep in a register.
    waiting: u32,
    /// The device's thread is not to begin a command.
    paused: bool,
    /// The device's thread is between two commands, at a point of a command where it may halt, or in a fault that the guest has
    /// to answer, and stays there until the pause is over.
    halted: bool,
}

/// What becomes of the command that a device is executing when it is paused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CommandInFlight {
    /// The device finishes it.
    #[default]
    Finishes,
    /// It halts where it is, between two accesses to memory, and goes on there after the pause.
    Halts,
}

impl ControlBlock {
    /// The state of a device that has just been made: disabled, with all address spaces closed.
    pub fn new(
        registers: Registers,
        managed: Addresses,
        doorbell: Bell,
        irq: Box<dyn Interrupt>,
        counters: Arc<AcceleratorCounters>,
    ) -> ControlBlock {
        ControlBlock {
            state: Mutex::new(State {
                registers,
                new_queue: None,
                translations: None,
                waiting: 0,
                paused: false,
                halted: false,
            }),
            changed: Condvar::new(),
            answered: Condvar::new(),
            spaces: Spaces::new(managed),
            doorbell,
            stop: AtomicBool::new(false),
            halts_commands: AtomicBool::new(false),
            irq: irq.into(),
            counters,
        }
    }

    /// Locks the state.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The device's counters.
    pub fn counters(&self) -> &AcceleratorCounters {
        &self.counters
    }

    /// The eventfd behind the doorbell register.
    pub fn doorbell(&self) -> &EventFd {
        self.doorbell.event()
    }

    /// The interrupt line.
    pub fn irq(&self) -> &Arc<dyn Interrupt> {
        &self.irq
    }

    /// Whether the device is to stop for ever.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Tells the device's thread to end, and wakes vCPUs that sleep in a register.
    pub fn stop(&self) {
        {
            // The lock is held, so that no thread goes to sleep after it has seen that the flag is not set.
            let _state = self.lock();
            self.stop.store(true, Ordering::Relaxed);
            self.changed.notify_all();
            self.answered.notify_all();
        }
        self.ring_doorbell();
    }

    /// Has the device's thread halt, and waits for that for at most `limit`. Returns whether it has halted.
    pub fn pause(&self, command: CommandInFlight, limit: Duration) -> bool {
        {
            let mut state = self.lock();
            state.paused = true;
            let halts = command == CommandInFlight::Halts;
            self.halts_commands.store(halts, Ordering::Relaxed);
        }
        // It may sleep in a fault, or for want of commands.
        self.answered.notify_all();
        self.ring_doorbell();
        let mut state = self.lock();
        let running = |state: &mut State| !state.halted && !self.stopping();
        !self
            .changed
            .wait_while_for(&mut state, running, limit)
            .timed_out()
    }

    /// Ends a pause.
    pub fn resume(&self) {
        let mut state = self.lock();
        state.paused = false;
        self.halts_commands.store(false, Ordering::Relaxed);
        self.answered.notify_all();
    }

    /// Called by the device's thread between two accesses of a command, with no lock held: sleeps while the device is paused, if
    /// commands are to halt.
    pub fn halt_in_command(&self) {
        if self.halts_commands.load(Ordering::Relaxed) {
            self.halt_while_paused(&mut self.lock());
        }
    }

    /// Called by the device's thread between two commands: sleeps while the device is paused.
    pub fn halt_while_paused(&self, state: &mut MutexGuard<'_, State>) {
        while state.paused && !self.stopping() {
            state.halted = true;
            self.changed.notify_all();
            self.answered.wait(state);
        }
        state.halted = false;
    }

    /// Sleeps until the doorbell has been rung since the last call. May return early.
    pub fn wait_for_doorbell(&self) {
        let what = "waiting for an accelerator's doorbell (reading an eventfd)";
        self.irq.report_failure(what, self.doorbell.wait());
    }

    /// Wakes the device's thread if it sleeps, or keeps it from sleeping the next time.
    pub fn ring_doorbell(&self) {
        let what = "ringing an accelerator's doorbell (writing an eventfd)";
        self.irq.report_failure(what, self.doorbell.ring());
    }

    /// Wakes the device's thread because its fault has been answered, or needs no answer any more. The caller holds the
    /// state's lock.
    pub fn answer_fault(&self) {
        self.answered.notify_all();
    }

    /// Publishes that the completion of a command is in the queue: sets the register that counts completions to `completed`,
    /// wakes sleeping vCPUs, and raises the interrupt if the command asks for it.
    pub fn command_completed(&self, completed: u64, command: &Command, completion: &Completion) {
        let failed = completion.status != accel::STATUS_OK;
        let interrupt = command.flags & accel::FLAG_INTERRUPT != 0;
        // What the end of the machine cuts off is in no figure: those of a machine that is paused are the last ones.
        if !self.stopping() {
            self.counters.commands.add(1);
            self.counters.errors.add(u64::from(failed));
        }
        let mut state = self.lock();
        state.registers.set_completed(completed);
        let interrupt = interrupt && state.registers.interrupts();
        self.wake(state);
        if interrupt {
            self.irq.trigger();
        }
    }

    /// Asks the guest for a translation and sleeps until it has answered. After `Ok` there may be one.
    pub fn guest_fault(&self, fault: GuestFault) -> Result<(), CommandError> {
        self.counters.guest_faults.add(1);
        let mut state = self.lock();
        // Closing needs the state, so a vCPU that closes the space from here on finds the fault and aborts it.
        if !self.spaces.is_open(fault.space) {
            return Err(CommandError::Aborted);
        }
        state.registers.spaces.fault.raise(fault);
        let interrupt = state.registers.interrupts();
        self.wake(state);
        if interrupt {
            self.irq.trigger();
        }
        let mut state = self.lock();
        let answer = loop {
            if self.stopping() || !state.registers.is_enabled() {
                break Err(CommandError::Aborted);
            }
            if !state.paused
                && let Some(answer) = state.registers.spaces.fault.answer()
            {
                break answer;
            }
            state.halted = state.paused;
            self.changed.notify_all();
            self.answered.wait(&mut state);
        };
        state.halted = false;
        state.registers.spaces.fault.clear();
        answer
    }

    /// Disables the registers, because the processor has dropped the queue. `error` is the register error if that was not
    /// the guest's request.
    pub fn disabled(&self, error: u64) {
        let mut state = self.lock();
        state.new_queue = None;
        state.translations = None;
        self.spaces.close_all();
        state.registers.disabled();
        if error != accel::ERR_NONE {
            state.registers.refuse(error);
        }
        self.wake(state);
    }

    /// Releases the lock and wakes the vCPUs that sleep in a register.
    fn wake(&self, state: MutexGuard<'_, State>) {
        let waited_for = state.waiting != 0;
        drop(state);
        if waited_for {
            self.changed.notify_all();
        }
    }

    /// Sleeps until the condition holds, the device stops, or it has been long enough.
    pub fn sleep_until(
        &self,
        mut state: MutexGuard<'_, State>,
        condition: impl Fn(&Registers) -> bool,
    ) {
        state.waiting += 1;
        let waiting = |state: &mut State| !self.stopping() && !condition(&state.registers);
        self.changed
            .wait_while_for(&mut state, waiting, LONGEST_WAIT);
        state.waiting -= 1;
    }
}
