//! Traces of the shapes that caches are compared on.

/// Steele and others' SplitMix64.
pub struct Random(pub u64);

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
pub fn traces(length: usize, pages: u32, random: &mut Random) -> Vec<(&'static str, Vec<u32>)> {
    let zipf = Zipf::new(pages, 0.9, random);
    let mut scans = Vec::new();
    while scans.len() < length {
        match random.below(200) {
            0 => {
                let first = random.below(pages - pages / 40);
                scans.extend(first..first + pages / 40);
            }
            _ => scans.push(zipf.page(random)),
        }
    }
    let uniform = (0..length).map(|_| random.below(pages)).collect();
    let round = (0..length).map(|i| i as u32 % (pages / 4)).collect();
    // The hot pages change ten times.
    let phases = (0..length)
        .map(|i| (zipf.page(random) + (10 * i / length) as u32 * (pages / 7)) % pages)
        .collect();
    // Most accesses are to one of the last hundred pages.
    let mut recent: Vec<u32> = (0..100).collect();
    while recent.len() < length {
        let page = match random.below(10) {
            0 => random.below(pages),
            _ => recent[recent.len() - 1 - random.below(100) as usize],
        };
        recent.push(page);
    }
    vec![
        ("Zipf with scans", scans),
        ("uniform", uniform),
        ("round and round", round),
        ("phases", phases),
        ("recent", recent),
    ]
}

/// The replays' side and libCacheSim's side of a comparison.
pub mod sides {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::time::Duration;

    use hmm_backend::observe::{Event, EventKind};
    use hmm_backend::pages::{Access, DeviceId, Fidelity, PAGE_SIZE, Page, PageRange};
    use hmm_backend::policy::{LinkMatrix, PolicySpec};
    use hmmvisor_experiments::replay::{Costs, ReplayConfig, Replayed, Time, replay};

    /// Replays device reads of these pages with `frames` frames of device memory; every access is told, and evictions come one by one.
    pub fn replayed(pages: &[u32], frames: u64, policy: &str, optimal: Optimal) -> Replayed {
        let largest = u64::from(*pages.iter().max().unwrap());
        let policy: PolicySpec = policy.parse().unwrap();
        let config = ReplayConfig {
            policy: Arc::new(policy),
            memory: (largest + 1) * PAGE_SIZE,
            device_memory: frames * PAGE_SIZE,
            devices: 1,
            links: LinkMatrix::default(),
            costs: Costs::default(),
            fidelity: Fidelity::All,
            eviction_batch: 1,
            time: Time::Modelled,
            optimal: optimal == Optimal::Computed,
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

    /// Whether a replay computes the best possible, too.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Optimal {
        Computed,
        LeftOut,
    }

    /// Misses of libCacheSim's algorithms, and the seconds of processor time that each took.
    pub fn libcachesim(python: &Path, pages: &[u32], objects: u64) -> BTreeMap<String, (u64, f64)> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tools/misses.py");
        let mut child = Command::new(python)
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
}
