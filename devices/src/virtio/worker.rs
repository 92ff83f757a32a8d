//! A virtio device's thread: it takes notice of what the driver has set up, then looks through all queues, over and over.

use super::device::{Model, Next, Pass, Port, Reply};
use super::queue::{Malformed, VirtQueue};
use super::registers::Active;

/// The device's thread.
pub struct Worker {
    port: Port,
    model: Box<dyn Model>,
    immediate: Option<u32>,
    /// The queues, indexed by the numbers that the driver knows them by; empty while the device does not work.
    queues: Vec<Option<VirtQueue>>,
    /// The features that the model was started with.
    features: Option<u64>,
    /// The number of resets there had been when the queues were set up.
    resets: u64,
}

impl Worker {
    /// Makes the worker of a device that is not set up yet; for `immediate`, see [`super::device::Parts::immediate`].
    pub fn new(port: Port, model: Box<dyn Model>, immediate: Option<u32>) -> Worker {
        Worker {
            port,
            model,
            immediate,
            queues: Vec::new(),
            features: None,
            resets: 0,
        }
    }

    /// The thread's body.
    pub fn run(mut self) {
        while let Some(pass) = self.port.begin_pass() {
            let Pass {
                number,
                resets,
                active,
            } = pass;
            let next = self.apply(resets, active).and_then(|()| self.look());
            let next = next.unwrap_or_else(|problem| {
                // Lets go of the rings: until the reset, nothing of the guest's memory is kept in place.
                self.queues.clear();
                self.port.fail(self.resets, &problem);
                Next::Doorbell
            });
            self.port.end_pass(number, next);
        }
    }

    /// Takes notice of what the driver has set up.
    fn apply(&mut self, resets: u64, active: Option<Active>) -> Result<(), Malformed> {
        if resets != self.resets {
            self.queues.clear();
            self.features = None;
            self.model.reset(&self.port);
            self.resets = resets;
        }
        let Some(active) = active else {
            self.queues.clear();
            return Ok(());
        };
        if self.features.is_none() {
            self.model.start(active.features);
            self.features = Some(active.features);
        }
        self.queues.resize_with(active.queues.len(), || None);
        for (index, (queue, state)) in (0..).zip(self.queues.iter_mut().zip(active.queues)) {
            match state {
                None => *queue = None,
                Some(state) if queue.is_none() => {
                    *queue = Some(VirtQueue::new(self.port.ram(), index, state)?);
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Works on all queues, on at most as many requests of each as it has slots.
    fn look(&mut self) -> Result<Next, Malformed> {
        let mut more = false;
        for index in 0..self.queues.len() {
            more |= self.look_at(index)?;
            while let Some((head, written)) = self.model.finished(&self.port, index) {
                self.complete(index, head, written)?;
            }
        }
        Ok(match more {
            true => Next::Pass,
            false => Next::Doorbell,
        })
    }

    /// Works on one queue. True if there may be more to do at once.
    fn look_at(&mut self, index: usize) -> Result<bool, Malformed> {
        let immediate = self.immediate == Some(index as u32);
        let Some(queue) = &mut self.queues[index] else {
            return Ok(false);
        };
        let size = queue.size();
        if !immediate {
            queue.expect_no_doorbell()?;
        }
        for _ in 0..size {
            if self.port.interrupted() {
                return Ok(true);
            }
            let Some(queue) = &mut self.queues[index] else {
                return Ok(false);
            };
            let Some(chain) = queue.pop()? else {
                return queue.expect_doorbell();
            };
            match self.model.request(&self.port, index, &chain)? {
                Reply::Used(written) => self.complete(index, chain.head, written)?,
                Reply::Keep => {}
            }
        }
        Ok(true)
    }

    fn complete(&mut self, index: usize, head: u16, written: u32) -> Result<(), Malformed> {
        if let Some(queue) = &mut self.queues[index]
            && queue.complete(head, written)?
        {
            self.port.used(self.resets);
        }
        Ok(())
    }
}
