//! The command processor: the device's thread. It owns the queue while the device is enabled, and the
//! mirror for ever.

use std::sync::Arc;

use hmmvisor_abi::accel::{self, Command, Completion};

use super::mirrored_memory::MirroredMemory;
use super::pinned_words::PinnedWords;
use super::shared::ControlBlock;
use crate::commands::command::{decode, space};
use crate::commands::kernels;
use crate::commands::memory::Memory;
use crate::commands::queue::{Overrun, Queue, completion};

/// Executes commands until the accelerator stops.
pub struct Processor {
    shared: Arc<ControlBlock>,
    memory: MirroredMemory,
    queue: Option<Queue<PinnedWords>>,
}

impl Processor {
    /// Makes the processor of a device that is disabled.
    pub fn new(shared: Arc<ControlBlock>, memory: MirroredMemory) -> Processor {
        Processor {
            shared,
            memory,
            queue: None,
        }
    }

    /// The thread's body.
    pub fn run(mut self) {
        while !self.shared.stopping() {
            if !self.step() {
                // Sleeps until the doorbell has rung since the last time. A command whose doorbell was
                // consumed earlier has been seen by the step that followed.
                self.shared.wait_for_doorbell();
            }
        }
        self.disable(accel::ERR_NONE);
    }

    /// Takes notice of register writes and executes at most one command. Returns false if there is nothing to do.
    fn step(&mut self) -> bool {
        {
            let mut state = self.shared.lock();
            self.shared.halt_while_paused(&mut state);
            if let Some(queue) = state.new_queue.take() {
                self.queue = Some(queue);
            }
            if !state.registers.is_enabled() {
                // Once it says disabled, a vCPU may enable it at any moment: leave that alone.
                let disabling = !state.registers.is_disabled();
                drop(state);
                if disabling {
                    self.disable(accel::ERR_NONE);
                }
                return false;
            }
        }
        let Some(queue) = &mut self.queue else {
            return false;
        };
        match queue.next() {
            Ok(None) => false,
            Ok(Some(command)) => {
                let completion = complete(&command, &mut self.memory);
                // Before vCPUs that wait for the command fault on its pages, so that a recorded run has both in their order.
                self.memory.mirror.tell_visits();
                queue.complete(completion);
                let completed = queue.completed();
                self.shared
                    .command_completed(completed, &command, &completion);
                true
            }
            Err(Overrun) => {
                self.disable(accel::ERR_QUEUE_OVERRUN);
                false
            }
        }
    }

    /// Drops the queue, then sets the registers to disabled.
    fn disable(&mut self, error: u64) {
        self.queue = None;
        self.shared.disabled(error);
    }
}

fn complete(command: &Command, memory: &mut MirroredMemory) -> Completion {
    let result = space(command).and_then(|space| {
        memory.space = space;
        let operation = decode(command, &memory.addresses())?;
        kernels::execute(operation, memory)
    });
    completion(command, result)
}
