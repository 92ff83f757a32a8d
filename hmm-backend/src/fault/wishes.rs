//! The queue of policies' wishes: migrations that no fault waits for. The thread that called the policy queues
//! them; the service threads serve them when no fault waits.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::host::doorbell::Doorbell;
use crate::memory::HostFailures;
use crate::pages::Error;
use crate::policy::Wish;

/// The queue's length. A longer queue is of no use: older wishes are about memory that the guest no longer
/// works on.
const QUEUE: usize = 256;
/// The most pages in a piece: after a piece, the service thread checks for faults.
const PIECE: u32 = 128;

/// The wishes that are not served yet.
pub(crate) struct Wishes {
    queue: Mutex<VecDeque<Wish>>,
    /// Readable as long as the queue is not empty; changed only under the queue's lock.
    waiting: Doorbell,
    host_failures: Arc<HostFailures>,
}

impl Wishes {
    pub(crate) fn new(host_failures: Arc<HostFailures>) -> Result<Wishes, Error> {
        let waiting = Doorbell::new().map_err(|error| Error::Event(error.into()))?;
        Ok(Wishes {
            queue: Mutex::new(VecDeque::with_capacity(QUEUE)),
            waiting,
            host_failures,
        })
    }

    /// Returns the descriptor that is readable while wishes wait.
    pub(crate) fn fd(&self) -> RawFd {
        self.waiting.as_raw_fd()
    }

    /// Queues a wish. If the queue was full, removes and returns the oldest one.
    pub(super) fn push(&self, wish: Wish) -> Option<Wish> {
        let mut queue = self.queue.lock();
        let dropped = (queue.len() == QUEUE).then(|| queue.pop_front()).flatten();
        if queue.is_empty() {
            self.note(self.waiting.ring());
        }
        queue.push_back(wish);
        dropped
    }

    /// Removes and returns the first pages of the newest wish, all in one block; `None` if no wish waits.
    pub(super) fn take_piece(&self) -> Option<Wish> {
        let mut queue = self.queue.lock();
        let mut wish = queue.pop_back()?;
        let mut block = wish.pages;
        let mut pages = block.take_blocks(1);
        pages.end = pages.end.min(pages.start.plus(PIECE));
        wish.pages.start = pages.end;
        if !wish.pages.is_empty() {
            queue.push_back(wish);
        }
        if queue.is_empty() {
            self.note(self.waiting.silence());
        }
        Some(Wish { pages, ..wish })
    }

    /// Records a failed ring or silence of the doorbell: after that, the service threads may sleep although
    /// wishes wait, or stay awake although none do.
    fn note(&self, done: io::Result<()>) {
        if let Err(error) = done {
            let call = "read or write of the eventfd that tells of policies' wishes";
            self.host_failures.note(call, &error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::{Page, PageRange, Place};

    fn wish(start: u32, len: u32) -> Wish {
        Wish {
            pages: PageRange::with_len(Page(start), len),
            to: Place::System,
        }
    }

    fn readable(wishes: &Wishes) -> bool {
        let mut poll = libc::pollfd {
            fd: wishes.fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one descriptor, which is valid for the call; no waiting.
        let ready = unsafe { libc::poll(&mut poll, 1, 0) };
        ready == 1
    }

    #[test]
    fn the_newest_wish_is_served_first_in_pieces_of_blocks() {
        let wishes = Wishes::new(Arc::default()).unwrap();
        assert!(!readable(&wishes));
        assert_eq!(wishes.push(wish(0, 10)), None);
        assert_eq!(wishes.push(wish(500, 200)), None);
        for piece in [wish(500, 12), wish(512, 128), wish(640, 60), wish(0, 10)] {
            assert!(readable(&wishes));
            assert_eq!(wishes.take_piece(), Some(piece));
        }
        assert!(!readable(&wishes));
        assert_eq!(wishes.take_piece(), None);
    }

    #[test]
    fn the_oldest_wish_makes_room() {
        let wishes = Wishes::new(Arc::default()).unwrap();
        for n in 0..QUEUE as u32 {
            assert_eq!(wishes.push(wish(n, 1)), None);
        }
        assert_eq!(wishes.push(wish(999, 1)), Some(wish(0, 1)));
        assert_eq!(wishes.take_piece(), Some(wish(999, 1)));
    }
}
