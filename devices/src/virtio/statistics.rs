//! What a guest says of its memory.

/// Bytes of one figure: a tag of 2 and a value of 8.
const RECORD: usize = 10;
/// Bytes that are looked at, at most. More figures than these have no tag yet.
pub const MOST_BYTES: u64 = 64 * RECORD as u64;
/// Tags there are.
const TAGS: usize = 16;

/// A guest's figures about its memory, as its balloon driver sends them; those that it does not send are none. Sizes are
/// bytes, the others are counts since the guest's start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct Statistics {
    /// Swapped in.
    pub swap_in: Option<u64>,
    /// Swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that needed a disk.
    pub major_faults: Option<u64>,
    /// Other page faults.
    pub minor_faults: Option<u64>,
    /// Memory that nobody uses.
    pub free: Option<u64>,
    /// All memory that the guest has.
    pub total: Option<u64>,
    /// What it could give away without swapping.
    pub available: Option<u64>,
    /// Caches of its disks.
    pub caches: Option<u64>,
    /// Huge pages that it got.
    pub huge_page_allocations: Option<u64>,
    /// Huge pages that it wanted and did not get.
    pub huge_page_failures: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Allocations that had to wait.
    pub allocation_stalls: Option<u64>,
    /// Memory looked at by reclaim in the background.
    pub background_scan: Option<u64>,
    /// Memory looked at by reclaim of those who wanted some.
    pub direct_scan: Option<u64>,
    /// Memory reclaimed in the background.
    pub background_reclaim: Option<u64>,
    /// Memory reclaimed by those who wanted some.
    pub direct_reclaim: Option<u64>,
}

impl Statistics {
    /// Reads what a driver has sent. Unknown tags are for later versions; the last of two is right.
    pub fn parse(bytes: &[u8]) -> Statistics {
        let mut values = [None; TAGS];
        for record in bytes.chunks_exact(RECORD) {
            let (tag, value) = record.split_at(2);
            let tag = u16::from_le_bytes(tag.try_into().expect("two bytes"));
            if let Some(place) = values.get_mut(usize::from(tag)) {
                *place = Some(u64::from_le_bytes(value.try_into().expect("eight bytes")));
            }
        }
        let [
            swap_in,
            swap_out,
            major_faults,
            minor_faults,
            free,
            total,
            available,
            caches,
            huge_page_allocations,
            huge_page_failures,
            oom_kills,
            allocation_stalls,
            background_scan,
            direct_scan,
            background_reclaim,
            direct_reclaim,
        ] = values;
        Statistics {
            swap_in,
            swap_out,
            major_faults,
            minor_faults,
            free,
            total,
            available,
            caches,
            huge_page_allocations,
            huge_page_failures,
            oom_kills,
            allocation_stalls,
            background_scan,
            direct_scan,
            background_reclaim,
            direct_reclaim,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_their_tags() {
        let mut bytes = Vec::new();
        for (tag, value) in [(5u16, 1u64 << 40), (4, 7), (99, 1), (4, 8), (15, 3)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        // Half a record.
        bytes.extend([0; 5]);
        let expected = Statistics {
            total: Some(1 << 40),
            free: Some(8),
            direct_reclaim: Some(3),
            ..Statistics::default()
        };
        assert_eq!(Statistics::parse(&bytes), expected);
        assert_eq!(Statistics::parse(&[]), Statistics::default());
    }
}
