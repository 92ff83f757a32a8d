//! Lists of the folios in a device's memory, on which the eviction policies are built. They are threaded through one
//! array indexed by frame, so every notice takes constant time and no allocation.

use crate::pages::Frame;

/// No frame. A frame's number is stored plus one, so that unused lists are all zeros and cost no memory.
const NIL: u32 = 0;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Slot {
    prev: u32,
    next: u32,
    /// The list that the folio is in.
    list: u32,
    /// Order of the folio that starts here, plus one; 0 if no folio starts here.
    order_plus_1: u8,
    /// A value for the policy's own use.
    note: u8,
}

const FREE: Slot = Slot {
    prev: NIL,
    next: NIL,
    list: 0,
    order_plus_1: 0,
    note: 0,
};

/// The ends of one list, and the number of frames of all its folios.
#[derive(Clone, Copy, Debug)]
struct Ends {
    oldest: u32,
    newest: u32,
    frames: u32,
}

const EMPTY: Ends = Ends {
    oldest: NIL,
    newest: NIL,
    frames: 0,
};

/// Lists, numbered from 0; each folio is in one of them.
#[derive(Debug)]
pub(super) struct Lists {
    slots: Box<[Slot]>,
    ends: Vec<Ends>,
}

impl Lists {
    /// `lists` empty lists for a device with this many frames.
    pub(super) fn new(frames: u32, lists: usize) -> Lists {
        // SAFETY: all fields are integers, for which zero is a valid value; it means a free frame.
        let slots = unsafe { Box::<[Slot]>::new_zeroed_slice(frames as usize).assume_init() };
        Lists {
            slots,
            ends: vec![EMPTY; lists],
        }
    }

    /// Adds an empty list and returns its number.
    pub(super) fn add(&mut self) -> usize {
        self.ends.push(EMPTY);
        self.ends.len() - 1
    }

    fn slot(&mut self, at: u32) -> &mut Slot {
        &mut self.slots[at as usize - 1]
    }

    fn get(&self, head: Frame) -> Slot {
        self.slots.get(head.0 as usize).copied().unwrap_or(FREE)
    }

    /// Whether a folio starts here. Notices may be late: the folio may be gone already.
    pub(super) fn contains(&self, head: Frame) -> bool {
        self.get(head).order_plus_1 != 0
    }

    /// Number of frames of the folio that starts here; 0 if no folio starts here.
    pub(super) fn frames(&self, head: Frame) -> u32 {
        match self.get(head).order_plus_1 {
            0 => 0,
            order => 1 << (order - 1),
        }
    }

    /// The list that the folio is in.
    pub(super) fn list_of(&self, head: Frame) -> usize {
        self.get(head).list as usize
    }

    /// Number of frames of all folios in a list.
    pub(super) fn frames_in(&self, list: usize) -> u32 {
        self.ends[list].frames
    }

    /// The policy's note on the folio.
    pub(super) fn note(&self, head: Frame) -> u8 {
        self.get(head).note
    }

    /// Sets the policy's note on the folio.
    pub(super) fn set_note(&mut self, head: Frame, note: u8) {
        self.slots[head.0 as usize].note = note;
    }

    /// The first folio of a list.
    pub(super) fn oldest(&self, list: usize) -> Option<Frame> {
        self.ends[list].oldest.checked_sub(1).map(Frame)
    }

    /// The next folio in the same list.
    pub(super) fn next(&self, head: Frame) -> Option<Frame> {
        self.get(head).next.checked_sub(1).map(Frame)
    }

    /// Adds a new folio as the last of this list.
    pub(super) fn push(&mut self, list: usize, head: Frame, order: u8) {
        debug_assert!(!self.contains(head));
        let at = head.0 + 1;
        *self.slot(at) = Slot {
            order_plus_1: order + 1,
            ..FREE
        };
        self.link_behind(self.ends[list].newest, at, list);
    }

    /// Makes the folio the last of a list, which may be its own list.
    pub(super) fn move_to(&mut self, list: usize, head: Frame) {
        let at = head.0 + 1;
        if self.list_of(head) != list || self.ends[list].newest != at {
            self.unlink(at);
            self.link_behind(self.ends[list].newest, at, list);
        }
    }

    /// Splits the folio into halves of this order. The upper half follows right behind, with the same note.
    pub(super) fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        debug_assert!(self.frames(head) == 2 << order);
        let (at, list, note) = (head.0 + 1, self.list_of(head), self.note(head));
        self.slot(at).order_plus_1 = order + 1;
        self.ends[list].frames -= 1 << order;
        *self.slot(upper.0 + 1) = Slot {
            order_plus_1: order + 1,
            note,
            ..FREE
        };
        self.link_behind(at, upper.0 + 1, list);
    }

    /// Removes the folio.
    pub(super) fn remove(&mut self, head: Frame) {
        debug_assert!(self.contains(head));
        self.unlink(head.0 + 1);
        *self.slot(head.0 + 1) = FREE;
    }

    /// Links `at` behind `prev`, or as the first if `prev` is [`NIL`].
    fn link_behind(&mut self, prev: u32, at: u32, list: usize) {
        let next = match prev {
            NIL => self.ends[list].oldest,
            prev => self.slot(prev).next,
        };
        let slot = self.slot(at);
        (slot.prev, slot.next, slot.list) = (prev, next, list as u32);
        match prev {
            NIL => self.ends[list].oldest = at,
            prev => self.slot(prev).next = at,
        }
        match next {
            NIL => self.ends[list].newest = at,
            next => self.slot(next).prev = at,
        }
        self.ends[list].frames += self.frames(Frame(at - 1));
    }

    fn unlink(&mut self, at: u32) {
        let Slot {
            prev, next, list, ..
        } = *self.slot(at);
        let list = list as usize;
        match prev {
            NIL => self.ends[list].oldest = next,
            prev => self.slot(prev).next = next,
        }
        match next {
            NIL => self.ends[list].newest = prev,
            next => self.slot(next).prev = prev,
        }
        self.ends[list].frames -= self.frames(Frame(at - 1));
    }

    /// Returns the first folios of a list that have at least `frames` frames in total, or all folios of the list.
    pub(super) fn first(&self, list: usize, frames: u32) -> Vec<Frame> {
        // Usually few are asked for; all, when the policy looks at accessed bits.
        let mut found = Vec::with_capacity(frames.min(self.ends[list].frames).min(64) as usize);
        self.add_first(list, frames, &mut found);
        found
    }

    /// Does the same, and adds them to `found`.
    pub(super) fn add_first(&self, list: usize, frames: u32, found: &mut Vec<Frame>) {
        let mut sum = 0;
        let mut at = self.oldest(list);
        while let Some(head) = at.filter(|_| sum < frames) {
            found.push(head);
            sum += self.frames(head);
            at = self.next(head);
        }
    }
}
