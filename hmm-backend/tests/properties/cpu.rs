use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use hmm_backend::pages::PAGE_SIZE;

/// A thread that acts as the CPU. It may sleep in a fault for ever; the test's own thread must not.
pub struct Cpu {
    pub requests: Option<Sender<(usize, Option<u64>)>>,
    pub answers: Receiver<[u64; 2]>,
    pub thread: Option<JoinHandle<()>>,
}

impl Cpu {
    pub fn start() -> Cpu {
        let (requests, todo) = channel::<(usize, Option<u64>)>();
        let (done, answers) = channel();
        let thread = std::thread::spawn(move || {
            for (first, value) in todo {
                // SAFETY: addresses are of words in managed memory, which outlives this thread; all accesses
                // are atomic.
                let cells = [first, first + PAGE_SIZE as usize - 8]
                    .map(|a| unsafe { AtomicU64::from_ptr(a as *mut u64) });
                if let Some(value) = value {
                    cells.iter().for_each(|c| c.store(value, SeqCst));
                }
                let _ = done.send(cells.map(|c| c.load(SeqCst)));
            }
        });
        Cpu {
            requests: Some(requests),
            answers,
            thread: Some(thread),
        }
    }
}
