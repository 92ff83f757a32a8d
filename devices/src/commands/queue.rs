//! The command queue: a ring in guest memory. Whatever is read from it may have been written by a
//! hostile guest a moment ago: every value is read once and checked.

use std::sync::atomic::{AtomicU64, Ordering};

use hmmvisor_abi::accel::{
    Command, Completion, QueueHeader, STATUS_OK, commands_offset, completions_offset, queue_bytes,
};

use super::error::CommandError;
use super::managed::WORD;

const HEADER_WORDS: usize = size_of::<QueueHeader>() / WORD as usize;
const COMMAND_WORDS: usize = size_of::<Command>() / WORD as usize;
const COMPLETION_WORDS: usize = size_of::<Completion>() / WORD as usize;
const SUBMITTED: usize = 0;
const COMPLETED: usize = 1;

/// The guest claims more outstanding commands than there are slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overrun;

/// The device's end of a queue over memory that is shared with the guest.
pub struct Queue<W> {
    memory: W,
    entries: u64,
    completed: u64,
}

impl<W: AsRef<[AtomicU64]>> Queue<W> {
    /// Starts at command 0 and zeroes the header. `entries` is a power of two and the memory has
    /// room for them.
    pub fn new(memory: W, entries: u64) -> Queue<W> {
        let words = memory.as_ref();
        assert!(entries.is_power_of_two());
        assert!(words.len() as u64 * WORD >= queue_bytes(entries));
        for word in &words[..HEADER_WORDS] {
            word.store(0, Ordering::Release);
        }
        Queue {
            memory,
            entries,
            completed: 0,
        }
    }

    /// Number of completed commands.
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// The oldest command that is not completed, if there is one.
    pub fn next(&self) -> Result<Option<Command>, Overrun> {
        let words = self.memory.as_ref();
        // Acquire: the commands were written before their number.
        let submitted = words[SUBMITTED].load(Ordering::Acquire);
        // A number that went backwards is an overrun, too.
        match submitted.wrapping_sub(self.completed) {
            0 => Ok(None),
            outstanding if outstanding > self.entries => Err(Overrun),
            _ => {
                let first = self.slot(commands_offset(), COMMAND_WORDS);
                let [op, tag, args @ ..]: [u64; COMMAND_WORDS] =
                    std::array::from_fn(|i| words[first + i].load(Ordering::Relaxed));
                Ok(Some(Command {
                    opcode: op as u32,
                    flags: (op >> 32) as u32,
                    tag,
                    args,
                }))
            }
        }
    }

    /// Completes the oldest command.
    pub fn complete(&mut self, completion: Completion) {
        let words = self.memory.as_ref();
        let first = self.slot(completions_offset(self.entries), COMPLETION_WORDS);
        let values: [u64; COMPLETION_WORDS] = [
            completion.tag,
            u64::from(completion.status) | u64::from(completion.reserved) << 32,
            completion.result,
            completion.address,
        ];
        for (word, value) in words[first..].iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
        self.completed += 1;
        // Release: a vCPU that reads the number also sees the completion and all that the command wrote.
        words[COMPLETED].store(self.completed, Ordering::Release);
    }

    /// Index of the first word of the current slot of an array in the queue.
    fn slot(&self, array_offset: u64, words: usize) -> usize {
        (array_offset / WORD) as usize + (self.completed % self.entries) as usize * words
    }
}

/// Returns what completes a command that had this result.
pub fn completion(command: &Command, result: Result<u64, CommandError>) -> Completion {
    let (status, result, address) = match result {
        Ok(result) => (STATUS_OK, result, 0),
        Err(error) => (error.status(), 0, error.address()),
    };
    Completion {
        tag: command.tag,
        status,
        reserved: 0,
        result,
        address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmmvisor_abi::accel::OP_REDUCE;

    fn queue(entries: u64) -> Queue<Vec<AtomicU64>> {
        let memory = (0..queue_bytes(entries) / WORD).map(AtomicU64::new);
        Queue::new(memory.collect(), entries)
    }

    fn submit(queue: &Queue<Vec<AtomicU64>>, number: u64, words: [u64; 8]) {
        let first = 8 + (number % queue.entries) as usize * 8;
        for (i, word) in words.into_iter().enumerate() {
            queue.memory[first + i].store(word, Ordering::Relaxed);
        }
        queue.memory[SUBMITTED].store(number + 1, Ordering::Release);
    }

    #[test]
    fn commands_and_completions_go_round() {
        let mut queue = queue(4);
        assert_eq!(queue.next(), Ok(None));
        for i in 0..11u64 {
            let op = u64::from(OP_REDUCE) | 1 << 32;
            submit(&queue, i, [op, 100 + i, 1, 2, 3, 4, 5, 6]);
            let command = queue.next().unwrap().unwrap();
            assert_eq!((command.opcode, command.flags), (OP_REDUCE, 1));
            assert_eq!((command.tag, command.args), (100 + i, [1, 2, 3, 4, 5, 6]));
            queue.complete(Completion {
                tag: command.tag,
                status: 6,
                reserved: 0,
                result: i,
                address: 77,
            });
            let first = 8 + 4 * 8 + (i % 4) as usize * 4;
            let written: Vec<u64> = queue.memory[first..first + 4]
                .iter()
                .map(|w| w.load(Ordering::Relaxed))
                .collect();
            assert_eq!(written, [100 + i, 6, i, 77]);
            assert_eq!(queue.memory[COMPLETED].load(Ordering::Acquire), i + 1);
            assert_eq!(queue.next(), Ok(None));
        }
    }

    #[test]
    fn overruns_are_noticed() {
        let mut queue = queue(4);
        queue.memory[SUBMITTED].store(4, Ordering::Release);
        assert!(queue.next().unwrap().is_some());
        queue.memory[SUBMITTED].store(5, Ordering::Release);
        assert_eq!(queue.next(), Err(Overrun));
        queue.memory[SUBMITTED].store(u64::MAX, Ordering::Release);
        assert_eq!(queue.next(), Err(Overrun));
        queue.complete(Completion::default());
        queue.memory[SUBMITTED].store(0, Ordering::Release);
        assert_eq!(queue.next(), Err(Overrun));
    }
}
