//! A guest's statistics about its memory.

/// Bytes of one figure: a tag of 2 and a value of 8.
const RECORD: usize = 10;
/// Bytes that are looked at, at most: there are no tags for more figures.
pub const MOST_BYTES: u64 = 64 * RECORD as u64;
/// Number of tags.
const TAGS: usize = 16;

/// The figures, in the order of their tags.
macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// A guest's figures about its memory, as its balloon driver sends them; those that it does not send are none. Sizes are
        /// bytes, the others are counts since the guest's start.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize)]
        pub struct Statistics {
            $($(#[$doc])* pub $name: Option<u64>),*
        }

        impl Statistics {
            /// Returns statistics from figures whose indices are their tags.
            fn of(values: [Option<u64>; TAGS]) -> Statistics {
                let [$($name),*] = values;
                Statistics { $($name),* }
            }
        }
    };
}

figures! {
    /// Swapped in.
    swap_in,
    /// Swapped out.
    swap_out,
    /// Page faults that needed a disk.
    major_faults,
    /// Other page faults.
    minor_faults,
    /// Unused memory.
    free,
    /// All memory that the guest has.
    total,
    /// Memory that it could give away without swapping.
    available,
    /// Caches of its disks.
    caches,
    /// Huge pages that it got.
    huge_page_allocations,
    /// Huge pages that it wanted and did not get.
    huge_page_failures,
    /// Processes killed for want of memory.
    oom_kills,
    /// Allocations that had to wait.
    allocation_stalls,
    /// Memory looked at by reclaim in the background.
    background_scan,
    /// Memory looked at by reclaim of those who wanted some.
    direct_scan,
    /// Memory reclaimed in the background.
    background_reclaim,
    /// Memory reclaimed by those who wanted some.
    direct_reclaim,
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
        Statistics::of(values)
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
