//! The device's end of a virtqueue. Whatever is read from it may have been written by a hostile guest a moment ago: every
//! descriptor is read once and checked.

use std::cell::RefCell;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hmm_backend::pages::Access;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::guest_memory::{Error as MemoryError, GuestMemorySliceIterator};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use super::ram::{GuestRam, PinnedRam, RamError};
use crate::guest_bytes::{GuestBuffer, GuestBytes};

/// Pages of indirect descriptor tables that one chain may be spread over.
const MOST_TABLE_PAGES: usize = 512;

/// A driver's mistake that the specification forbids. The device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// A queue has a size or addresses that no queue may have.
    #[error("queue {0}: bad size or addresses: {1}")]
    Queue(usize, #[source] virtio_queue::Error),
    /// A queue lies partly outside guest memory.
    #[error("queue {0}: bad size or addresses: not all in memory")]
    Outside(usize),
    /// The rings cannot be read or written.
    #[error("the rings cannot be reached: {0}")]
    Rings(#[source] virtio_queue::Error),
    /// The flags of the available ring cannot be read.
    #[error("the rings cannot be reached: {0}")]
    Flags(#[source] MemoryError),
    /// The available ring cannot be read, or announces more chains than the queue has slots.
    #[error("the available ring makes no sense: {0}")]
    Available(#[source] virtio_queue::Error),
    /// An entry of the available ring cannot be read.
    #[error("the available ring makes no sense: it leads nowhere")]
    Nowhere,
    /// A chain has a loop, an index or a table out of bounds, or more descriptors than the queue has slots.
    #[error("the chain from descriptor {0} is broken, or longer than the queue")]
    Chain(u16),
    /// A chain has an empty buffer, or a readable one after a writable one.
    #[error(
        "the chain from descriptor {0} has an empty buffer, or a readable one behind a writable one"
    )]
    Buffer(u16),
    /// A buffer or a ring is not in guest memory, or cannot be reached there.
    #[error("{0}")]
    Memory(#[from] RamError),
    /// A request's content violates the device's specification.
    #[error("a request makes no sense: {0}")]
    Request(&'static str),
}

/// A request: what the device may read and what it may write. Everything is memory; nothing is empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// The index of its first descriptor, by which the driver knows it.
    pub head: u16,
    /// The part that the device may read.
    pub readable: GuestBuffer,
    /// The part that the device may write.
    pub writable: GuestBuffer,
}

/// A queue in use. Its rings are pinned.
pub struct VirtQueue {
    queue: Queue,
    memory: RingMemory,
}

impl VirtQueue {
    /// The queue that the driver has set up as number `index`.
    pub fn new(
        ram: &Arc<GuestRam>,
        index: usize,
        state: QueueState,
    ) -> Result<VirtQueue, Malformed> {
        let queue = Queue::try_from(state).map_err(|error| Malformed::Queue(index, error))?;
        let size = u64::from(queue.size());
        // The flags, the index and what is in the place of an event index are 6 bytes together.
        let rings = [
            GuestBytes::new(queue.desc_table(), 16 * size),
            GuestBytes::new(queue.avail_ring(), 6 + 2 * size),
            GuestBytes::new(queue.used_ring(), 6 + 8 * size),
        ];
        let rings = ram.pin(rings, Access::Write)?;
        let memory = RingMemory {
            ram: ram.clone(),
            rings,
            tables: RefCell::default(),
        };
        if !queue.is_valid(&memory) {
            return Err(Malformed::Outside(index));
        }
        Ok(VirtQueue { queue, memory })
    }

    /// Number of slots.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next request, if there is one.
    pub fn pop(&mut self) -> Result<Option<Chain>, Malformed> {
        let index = self.queue.avail_idx(&self.memory, Ordering::Acquire);
        if index.map_err(Malformed::Available)?.0 == self.queue.next_avail() {
            return Ok(None);
        }
        let chain = {
            let mut chains = self
                .queue
                .iter(&self.memory)
                .map_err(Malformed::Available)?;
            let descriptors = chains.next().ok_or(Malformed::Nowhere)?;
            read_chain(descriptors, self.queue.size())
        };
        self.memory.tables.get_mut().clear();
        let chain = chain?;
        for span in chain.readable.0.iter().chain(&chain.writable.0) {
            if !self.memory.ram.contains(*span) {
                return Err(RamError::OutOfRange(*span).into());
            }
        }
        Ok(Some(chain))
    }

    /// Gives a request back, with the number of bytes written from the beginning of its writable part on. Returns whether
    /// the driver wants an interrupt for it.
    pub fn complete(&mut self, head: u16, written: u32) -> Result<bool, Malformed> {
        self.queue
            .add_used(&self.memory, head, written)
            .map_err(Malformed::Rings)?;
        let wanted = self
            .queue
            .needs_notification(&self.memory)
            .map_err(Malformed::Rings)?;
        if self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags = GuestAddress(self.queue.avail_ring());
        let flags: u16 = self
            .memory
            .load(flags, Ordering::Relaxed)
            .map_err(Malformed::Flags)?;
        Ok(u16::from_le(flags) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }

    /// Asks the driver to ring the doorbell from now on when it adds a request. Returns whether there are requests already that
    /// the device has not taken.
    pub fn expect_doorbell(&mut self) -> Result<bool, Malformed> {
        self.queue
            .enable_notification(&self.memory)
            .map_err(Malformed::Rings)
    }

    /// Tells the driver that it need not ring the doorbell for now, because the device looks at the queue again anyway.
    pub fn expect_no_doorbell(&mut self) -> Result<(), Malformed> {
        self.queue
            .disable_notification(&self.memory)
            .map_err(Malformed::Rings)
    }
}

fn read_chain(
    descriptors: virtio_queue::DescriptorChain<&RingMemory>,
    most: u16,
) -> Result<Chain, Malformed> {
    let head = descriptors.head_index();
    let mut chain = Chain {
        head,
        readable: GuestBuffer::default(),
        writable: GuestBuffer::default(),
    };
    // A descriptor with a successor must have one: the iterator itself just ends where the chain is broken.
    let mut complete = false;
    for (count, descriptor) in (0..).zip(descriptors) {
        if count == most {
            return Err(Malformed::Chain(head));
        }
        let span = GuestBytes::new(descriptor.addr().0, descriptor.len().into());
        let misplaced = !descriptor.is_write_only() && !chain.writable.0.is_empty();
        if span.len == 0 || misplaced {
            return Err(Malformed::Buffer(head));
        }
        match descriptor.is_write_only() {
            true => chain.writable.0.push(span),
            false => chain.readable.0.push(span),
        }
        complete = !descriptor.has_next();
    }
    match complete {
        true => Ok(chain),
        false => Err(Malformed::Chain(head)),
    }
}

/// Guest memory with the rings pinned. Anything else that is read, which are indirect descriptor tables, is pinned when
/// it is first touched, until the chain has been read.
struct RingMemory {
    ram: Arc<GuestRam>,
    rings: PinnedRam,
    tables: RefCell<Vec<PinnedRam>>,
}

impl RingMemory {
    /// Returns where this process has the bytes from this address on, and how many of them are contiguous there.
    fn locate(&self, addr: u64) -> Result<(*mut u8, u64), MemoryError> {
        if let Some(found) = self.rings.at(addr) {
            return Ok(found);
        }
        let mut tables = self.tables.borrow_mut();
        if let Some(found) = tables.iter().find_map(|table| table.at(addr)) {
            return Ok(found);
        }
        if tables.len() == MOST_TABLE_PAGES {
            return Err(MemoryError::HostAddressNotAvailable);
        }
        let page = self.ram.pin([GuestBytes { addr, len: 1 }], Access::Read);
        let page = page.map_err(|error| MemoryError::IOError(std::io::Error::other(error)))?;
        let found = page.at(addr);
        tables.push(page);
        found.ok_or(MemoryError::HostAddressNotAvailable)
    }
}

impl GuestMemory for RingMemory {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, _: Permissions) -> bool {
        self.ram.contains(GuestBytes::new(addr.0, count as u64))
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, MemoryError> {
        Ok(Slices {
            memory: self,
            addr: addr.0,
            left: count as u64,
        })
    }
}

struct Slices<'a> {
    memory: &'a RingMemory,
    addr: u64,
    left: u64,
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a>, MemoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let (host, bytes) = match self.memory.locate(self.addr) {
            Ok(found) => found,
            Err(error) => {
                self.left = 0;
                return Some(Err(error));
            }
        };
        let len = bytes.min(self.left);
        self.addr = self.addr.wrapping_add(len);
        self.left -= len;
        // SAFETY: so many bytes of guest memory in pages that stay pinned: the rings as long as the queue, tables
        // until `pop` takes them out, for which it needs the memory for itself, so that no slice is left. The guest and
        // all other users of these bytes use volatile accesses.
        Some(Ok(unsafe { VolatileSlice::new(host, len as usize) }))
    }
}

impl FusedIterator for Slices<'_> {}
impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}
