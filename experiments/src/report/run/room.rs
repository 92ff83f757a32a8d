//! Whether the host has memory for accounts that grow with what a trace names.

use hmm_backend::limits::{Refusal, room_for};

/// The number of entries for which memory is asked first: fewer are not worth it.
const FEW: usize = 1 << 12;

/// Asks the host for memory before an account doubles, because a tree whose memory the host refuses ends the process.
pub(super) struct Room {
    /// Bytes of an entry.
    each: u64,
    /// The number of entries at which memory is asked for next.
    next: usize,
}

impl Room {
    pub(super) fn for_entries_of(each: u64) -> Room {
        Room { each, next: FEW }
    }

    /// Asks for memory if this many entries are more than were asked for. An error if the host has none.
    pub(super) fn check(&mut self, entries: usize) -> Result<(), Refusal> {
        if entries < self.next {
            return Ok(());
        }
        self.next = entries.saturating_mul(2);
        room_for((entries as u64).saturating_mul(self.each), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_asked_for_when_entries_double() {
        // More than any host has address space for is only known to be refused where that has a limit.
        let mut room = Room::for_entries_of(1);
        assert!(room.check(FEW - 1).is_ok());
        assert_eq!(room.next, FEW);
        assert!(room.check(FEW + 5).is_ok());
        assert_eq!(room.next, 2 * (FEW + 5));
    }
}
