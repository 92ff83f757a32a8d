//! Pausing a machine: vCPUs outside the guest, accelerators between two commands or two accesses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hmmvisor_devices::{Accelerator, CommandInFlight};
use parking_lot::Mutex;

use crate::machine::pause::Gate;
use crate::machine::vcpu_threads::ThreadIds;

/// How long vCPUs, and then each accelerator, may take to halt.
const WITHIN: Duration = Duration::from_secs(10);
/// How long a vCPU may take to notice a kick before it gets another one.
const KICK_AGAIN: Duration = Duration::from_millis(1);

/// Why a machine has not been paused. It runs as before.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PauseError {
    /// A vCPU does not leave the guest.
    #[error("a vCPU has not stopped within {} s; the machine runs on", WITHIN.as_secs())]
    Vcpu,
    /// An accelerator does not come to the end of its command.
    #[error("accelerator {index} has not finished its command within {} s; the machine runs on. It can halt within the command: `commands=halt`", WITHIN.as_secs())]
    Accelerator {
        /// Its number.
        index: usize,
    },
}

/// Pauses a machine and has it go on. Migrations that are asked for go on in any case.
pub struct Pausing {
    pub(super) gate: Arc<Gate>,
    pub(super) ids: ThreadIds,
    pub(super) accelerators: Vec<Arc<Accelerator>>,
    /// Held by the one that pauses or resumes.
    pub(super) turn: Mutex<()>,
}

impl Pausing {
    /// Returns when no vCPU is in the guest and each accelerator has halted. Idempotent.
    pub fn pause(&self, command: CommandInFlight) -> Result<(), PauseError> {
        let _turn = self.turn.lock();
        let paused = self.try_pause(command);
        if paused.is_err() {
            self.go_on();
        }
        paused
    }

    fn try_pause(&self, command: CommandInFlight) -> Result<(), PauseError> {
        // vCPUs first: one that waits for an accelerator in a register leaves it only while that works.
        self.gate.close();
        let begin = Instant::now();
        while !self.gate.wait_until_empty(Duration::ZERO) {
            if begin.elapsed() > WITHIN {
                return Err(PauseError::Vcpu);
            }
            // One that arrives between a thread's look at the gate and its KVM_RUN is lost.
            self.ids.kick();
            self.gate.wait_until_empty(KICK_AGAIN);
        }
        let mut accelerators = self.accelerators.iter();
        match accelerators.position(|accelerator| !accelerator.pause(command, WITHIN)) {
            Some(index) => Err(PauseError::Accelerator { index }),
            None => Ok(()),
        }
    }

    /// Has the machine go on. Idempotent.
    pub fn resume(&self) {
        let _turn = self.turn.lock();
        self.go_on();
    }

    fn go_on(&self) {
        self.accelerators.iter().for_each(|it| it.resume());
        self.gate.open();
    }

    /// Whether the machine is paused, or about to be.
    pub fn is_paused(&self) -> bool {
        self.gate.is_closed()
    }
}
