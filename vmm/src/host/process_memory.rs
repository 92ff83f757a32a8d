//! The VMM's own memory: resident bytes of the process that are not the guest's.

use std::ffi::CStr;
use std::fs::File;
use std::ops::Range;

use hmm_backend::limits;

/// Names a mapping in `/proc/self/smaps`: `[anon:NAME]`. Kernels without this refuse; then the
/// mapping stays nameless.
pub fn name(start: *mut u8, bytes: usize, name: &'static CStr) {
    // SAFETY: names a range of address space; no memory is read or written but the name, which is a
    // terminated string.
    unsafe {
        libc::prctl(
            libc::PR_SET_VMA,
            libc::PR_SET_VMA_ANON_NAME,
            start,
            bytes,
            name.as_ptr(),
        )
    };
}

/// Looks at the memory of this process. It is opened while the process may still open files.
pub struct OverheadProbe(File);

impl OverheadProbe {
    /// Opens what the kernel tells of the process's memory; none if it tells nothing.
    pub fn new() -> Option<OverheadProbe> {
        File::open("/proc/self/smaps").ok().map(OverheadProbe)
    }

    /// Returns the resident bytes of this process outside of the given address ranges and of mappings named
    /// `[anon:hmm-…]`, both of which hold memory of guests and devices.
    pub fn take(self, guest: &[Range<u64>]) -> Option<u64> {
        Some(overhead_in(&limits::read_open(self.0)?, guest))
    }
}

fn overhead_in(smaps: &str, guest: &[Range<u64>]) -> u64 {
    let mut ours = true;
    let mut total = 0;
    for line in smaps.lines() {
        if let Some((start, end)) = mapping_range(line) {
            let is_guest = guest.iter().any(|g| g.start <= start && end <= g.end);
            ours = !is_guest && !line.contains("[anon:hmm-");
        } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| ours) {
            let kib = size.trim().trim_end_matches(" kB");
            total += kib.parse::<u64>().unwrap_or(0) * 1024;
        }
    }
    total
}

/// `START-END` in hexadecimal at the start of a mapping's first line.
fn mapping_range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    Some((hex(start)?, hex(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_mappings_do_not_count() {
        let smaps = "\
55d0c0000000-55d0c0100000 r-xp 00000000 fe:00 1   /usr/bin/hmmvisor
Size:               1024 kB
Rss:                 512 kB
Pss:                 256 kB
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Rss:              100000 kB
7f0020000000-7f0021000000 rw-p 00000000 00:00 0   [anon:hmm-boot]
Rss:                4096 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0   [stack]
Rss:                  16 kB
";
        let managed = 0x7f00_0000_0000..0x7f00_1000_0000;
        assert_eq!(overhead_in(smaps, &[managed]), 528 << 10);
        assert_eq!(overhead_in(smaps, &[]), (528 + 100_000) << 10);
    }

    #[test]
    fn this_process_costs_something() {
        assert!(OverheadProbe::new().unwrap().take(&[]).unwrap() > 100 << 10);
    }
}
