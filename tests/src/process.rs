//! The threads, descriptors and memory of this process: a test must leave none behind.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::patient;

/// Threads by name and open files by what they are, each with their number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resources {
    threads: BTreeMap<String, usize>,
    files: BTreeMap<String, usize>,
}

/// How long the kernel may take to forget a joined thread; only a leak takes that long.
const PATIENCE: Duration = Duration::from_secs(20);

impl Resources {
    /// Those of this moment.
    pub fn now() -> Resources {
        // Entries may go while they are listed; the listing itself is an open file of one moment.
        let list = |folder: &str, name: fn(&fs::DirEntry) -> Option<String>| {
            let mut counts = BTreeMap::new();
            for entry in fs::read_dir(folder).expect("/proc is mounted").flatten() {
                if let Some(name) = name(&entry) {
                    *counts.entry(name).or_default() += 1;
                }
            }
            counts
        };
        Resources {
            threads: list("/proc/self/task", |task| {
                let name = fs::read_to_string(task.path().join("comm")).ok()?;
                Some(name.trim().to_owned())
            }),
            files: list("/proc/self/fd", |file| {
                let target = fs::read_link(file.path()).ok()?.display().to_string();
                (!target.starts_with("/proc/")).then_some(target)
            }),
        }
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads.values().sum()
    }

    /// Number of open files whose name contains this.
    pub fn files(&self, name: &str) -> usize {
        let named = self
            .files
            .iter()
            .filter(|(target, _)| target.contains(name));
        named.map(|(_, count)| count).sum()
    }

    /// Waits until the process holds this again and nothing else. A joined thread is listed for a moment
    /// longer, so this looks more than once.
    pub fn expect_again(&self, after: &str) {
        let begin = Instant::now();
        loop {
            let now = Resources::now();
            if now == *self {
                return;
            }
            assert!(
                begin.elapsed() < patient(PATIENCE),
                "left behind after {after}: {now:#?} instead of {self:#?}"
            );
            std::thread::yield_now();
        }
    }
}

/// The lines of `/proc/self/maps` that name memory of a backend, or lie over one of these former ranges as a
/// whole: kernels may be built without names.
pub fn backend_mappings(former: &[Range<u64>]) -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    let is_one = |line: &&str| {
        let parts = line
            .split_once(' ')
            .and_then(|(range, _)| range.split_once('-'));
        let (start, end) = parts.expect("lines begin with an address range");
        let number = |text| u64::from_str_radix(text, 16).expect("addresses are hexadecimal");
        let (start, end) = (number(start), number(end));
        let over = |range: &Range<u64>| start <= range.start && range.end <= end;
        line.contains("[anon:hmm-") || former.iter().any(over)
    };
    maps.lines().filter(is_one).map(str::to_owned).collect()
}
