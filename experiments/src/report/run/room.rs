//! Whether the host has memory for accounts that grow with what a trace names.

use hmm_backend::limits::{Refusal, room_for};

/// Fewer entries are not worth asking for.
const FEW: usize = 1 << 12;

/// Asks before an account doubles: a tree whose memory the host refuses ends the process.
pub(super) struct Room {
    /// Bytes of an entry.
    each: u64,
    /// As many entries as are asked for next.
    next: usize,
}

impl Room {
    pub(super) fn for_entries_of(each: u64) -> Room {
        Room { each, next: FEW }
    }

    /// There are so many entries.
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
