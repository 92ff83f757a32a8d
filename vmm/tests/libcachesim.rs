//! Eviction policies miss as often as those of libCacheSim, to the page, when they are told of every access.

mod python;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{Access, DeviceId, Fidelity, PAGE_SIZE, Page, PageRange};
use hmm_backend::policy::{LinkModel, PolicySpec};
use hmmvisor_experiments::replay::{Costs, ReplayConfig, Replayed, Time, replay};

/// Replays device reads of these pages with `frames` frames of device memory.
fn replayed(pages: &[u32], frames: u64, eviction: &str, fidelity: Fidelity) -> Replayed {
    let largest = u64::from(*pages.iter().max().unwrap());
    let config = ReplayConfig {
        policy: Arc::new(
            format!("on-demand+{eviction}+timeslice:min=0us")
                .parse::<PolicySpec>()
                .unwrap(),
        ),
        memory: (largest + 1) * PAGE_SIZE,
        device_memory: frames * PAGE_SIZE,
        devices: 1,
        link: LinkModel::default(),
        costs: Costs::default(),
        fidelity,
        eviction_batch: 1,
        time: Time::Modelled,
        optimal: true,
        moves: false,
    };
    let read = |page: &u32| Event {
        device: Some(DeviceId(0)),
        access: Some(Access::Read),
        ..Event::new(
            Duration::ZERO,
            EventKind::Access,
            PageRange::single(Page(*page)),
        )
    };
    replay(pages.iter().map(read), &config).unwrap()
}

/// Steele and others' SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u32) -> u32 {
        (self.next() % u64::from(end)) as u32
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Pages by Zipf's law: page n is used n^-exponent as often as page 1, and pages are mixed.
struct Zipf {
    until: Vec<f64>,
    pages: Vec<u32>,
}

impl Zipf {
    fn new(pages: u32, exponent: f64, random: &mut Random) -> Zipf {
        let mut sum = 0.0;
        let mut until: Vec<f64> = Vec::new();
        for n in 1..=pages {
            sum += f64::from(n).powf(-exponent);
            until.push(sum);
        }
        let mut pages: Vec<u32> = (0..pages).collect();
        for at in (1..pages.len()).rev() {
            pages.swap(at, random.below(at as u32 + 1) as usize);
        }
        Zipf { until, pages }
    }

    fn page(&self, random: &mut Random) -> u32 {
        let at = random.unit() * self.until[self.until.len() - 1];
        let found = self.until.partition_point(|until| *until <= at);
        self.pages[found.min(self.pages.len() - 1)]
    }
}

/// The shapes that traces have in the literature on caches.
fn traces(random: &mut Random) -> Vec<(&'static str, Vec<u32>)> {
    const LENGTH: usize = 25_000;
    const PAGES: u32 = 2500;
    let zipf = Zipf::new(PAGES, 0.9, random);
    let mut scans = Vec::new();
    while scans.len() < LENGTH {
        match random.below(200) {
            0 => {
                let first = random.below(PAGES - 200);
                scans.extend(first..first + 200);
            }
            _ => scans.push(zipf.page(random)),
        }
    }
    let uniform = (0..LENGTH).map(|_| random.below(PAGES)).collect();
    let round = (0..LENGTH).map(|i| i as u32 % 640).collect();
    // The hot pages change ten times.
    let phases = (0..LENGTH)
        .map(|i| (zipf.page(random) + i as u32 / 2500 * 397) % PAGES)
        .collect();
    // Most accesses are to one of the last hundred pages.
    let mut recent: Vec<u32> = (0..100).collect();
    while recent.len() < LENGTH {
        let page = match random.below(10) {
            0 => random.below(PAGES),
            _ => recent[recent.len() - 1 - random.below(100) as usize],
        };
        recent.push(page);
    }
    vec![
        ("zipf with scans", scans),
        ("uniform", uniform),
        ("round and round", round),
        ("phases", phases),
        ("recent", recent),
    ]
}

/// Misses of libCacheSim's algorithms.
fn libcachesim(pages: &[u32], objects: u64) -> BTreeMap<String, u64> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tools/misses.py");
    let mut child = Command::new(python::python())
        .arg(script)
        .arg(objects.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn eviction_policies_miss_as_often_as_libcachesims() {
    // Another one each time; a failure names it.
    let seed = RandomState::new().hash_one(0);
    let mut random = Random(seed);
    for (shape, pages) in traces(&mut random) {
        for frames in [100, 600] {
            let theirs = libcachesim(&pages, frames);
            let mut ours = BTreeMap::new();
            for name in ["lru", "fifo", "clock", "lfu", "s3-fifo"] {
                let outcome = replayed(&pages, frames, name, Fidelity::All);
                ours.insert(name.to_owned(), outcome.pages_to_device);
                ours.insert("belady".into(), outcome.optimal.unwrap().pages_to_device);
            }
            assert_eq!(ours, theirs, "{shape}, {frames} frames, seed {seed}");
        }
    }
}
