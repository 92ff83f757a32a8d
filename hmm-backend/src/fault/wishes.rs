//! Wishes of policies: migrations that nobody waits for. They are queued by whoever asked the policy, and served by
//! the service threads when no fault is waiting.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::host::doorbell::Doorbell;
use crate::memory::HostFailures;
use crate::pages::Error;
use crate::policy::Wish;

/// More is not worth remembering: the newest wishes are about where the guest is now.
const QUEUE: usize = 256;
/// Pages served between two looks for demand.
const PIECE: u32 = 128;

/// Wishes that wait.
pub(crate) struct Wishes {
    queue: Mutex<VecDeque<Wish>>,
    /// Readable as long as the queue is not empty; changed with its lock held only.
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

    /// The descriptor that is readable while wishes wait.
    pub(crate) fn fd(&self) -> RawFd {
        self.waiting.as_raw_fd()
    }

    /// Queues a wish. Returns the oldest one if it had to make room.
    pub(super) fn push(&self, wish: Wish) -> Option<Wish> {
        let mut queue = self.queue.lock();
        let dropped = (queue.len() == QUEUE).then(|| queue.pop_front()).flatten();
        if queue.is_empty() {
            self.note(self.waiting.ring());
        }
        queue.push_back(wish);
        dropped
    }

    /// The first pages of the newest wish, all in one block.
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

    /// The service threads would sleep although wishes wait, or stay awake although none do.
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
