//! A run and a sweep like real ones.

use std::path::Path;
use std::time::Duration;

use hmm_backend::observe::{Cause, Event, EventKind};
use hmm_backend::pages::{DeviceId, Page, PageRange};
use hmmvisor_experiments::report::RunMeta;
use hmmvisor_experiments::sweep::{
    Measured, Parallel, Runner, Settings, Shard, Source, Sweep, SweepRun, TraceFacts,
};

/// A small generator with a period that is long enough.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % n
    }
}

pub fn meta() -> RunMeta {
    RunMeta {
        title: "A made-up run".into(),
        memory: 64 << 20,
        base: 1 << 32,
        device_memory: vec![48 << 20],
        policy: "density+lru+timeslice".into(),
        facts: vec![("workload".into(), "made up".into())],
        dropped: 3,
    }
}

const PAGES: u32 = 16384;

/// CPUs fill 40 MiB, a device sweeps over them with prefetch and evicts, some pages at the end go to and fro.
pub fn run() -> Vec<Event> {
    let mut random = Random(1);
    let mut now = 5_000_000;
    let mut events = Vec::new();
    let mut push = |time: u64, kind, page, n, cause, latency: u64| {
        let range = PageRange::with_len(Page(page), n);
        let event = Event::new(Duration::from_nanos(time), kind, range);
        events.push(Event {
            cause,
            device: Some(DeviceId(0)),
            latency: Duration::from_nanos(latency),
            ..event
        });
    };
    let slow = |random: &mut Random| {
        4000 * (1 << random.below(3)) + random.below(3000) * (1 + random.below(4) * random.below(4))
    };
    for page in 0..10240 {
        now += 5000 + random.below(2000);
        push(now, EventKind::CpuFault, page, 1, None, slow(&mut random));
    }
    for pass in 0..3 {
        for block in 0..(640 - 200 * pass) {
            let page = block * 16;
            now += 60_000 + random.below(30_000);
            push(
                now,
                EventKind::DeviceFault,
                page,
                1,
                None,
                4 * slow(&mut random),
            );
            push(now, EventKind::ToDevice, page, 4, Some(Cause::Demand), 0);
            push(
                now + 500,
                EventKind::ToDevice,
                page + 4,
                12,
                Some(Cause::Prefetch),
                0,
            );
            if block >= 256 {
                push(
                    now + 700,
                    EventKind::ToSystem,
                    page - 4096,
                    16,
                    Some(Cause::Eviction),
                    0,
                );
            }
            if block % 8 == 0 {
                let shared = PAGES - 1024;
                push(
                    now + 900,
                    EventKind::ToDevice,
                    shared,
                    16,
                    Some(Cause::Demand),
                    0,
                );
                push(
                    now + 30_000,
                    EventKind::CpuFault,
                    shared,
                    1,
                    None,
                    slow(&mut random),
                );
                push(
                    now + 30_000,
                    EventKind::ToSystem,
                    shared,
                    16,
                    Some(Cause::Demand),
                    0,
                );
            }
        }
    }
    push(now + 50_000, EventKind::Freed, 2048, 4096, None, 0);
    push(now + 5_000_000, EventKind::Freed, 0, 1, None, 0);
    events
}

/// What only a damaged file can say.
pub fn hostile() -> Vec<Event> {
    let kinds = [
        EventKind::CpuFault,
        EventKind::DeviceFault,
        EventKind::ToDevice,
        EventKind::ToSystem,
        EventKind::Freed,
    ];
    let times = [Duration::MAX, Duration::ZERO, Duration::from_secs(1 << 40)];
    let mut events = Vec::new();
    for time in times {
        for kind in kinds {
            for (page, pages) in [(u32::MAX, u32::MAX), (0, u32::MAX), (5, 0)] {
                let event = Event::new(time, kind, PageRange::single(Page(0)));
                events.push(Event {
                    page: Page(page),
                    pages,
                    latency: Duration::MAX,
                    ..event
                });
            }
        }
    }
    events
}

pub const POLICIES: [&str; 10] = [
    "on-demand",
    "density",
    "density:threshold=75",
    "sequential",
    "density+thrash:pin=150ms",
    "on-demand+fifo",
    "on-demand+clock",
    "density+s3-fifo",
    "first-touch",
    "density:threshold=90,min_faults=4+timeslice:min=2ms",
];

struct MadeUp;

impl Runner for MadeUp {
    fn policy(&self, spec: &str) -> Result<String, String> {
        Ok(spec.into())
    }
    fn workload(&self, _: &Source) -> Result<(), String> {
        Ok(())
    }
    fn trace(&self, path: &Path) -> Result<TraceFacts, String> {
        std::fs::metadata(path).map_err(|error| error.to_string())?;
        Ok(TraceFacts {
            memory: 64 << 20,
            seed: 7,
        })
    }
    fn run(&self, run: &SweepRun) -> Result<Measured, String> {
        if run.index == 3 {
            return Err("exit status: 1: the guest exited with code 1: it found wrong data".into());
        }
        let policy = POLICIES
            .iter()
            .position(|it| *it == run.policy.spec)
            .unwrap() as u64;
        let mut random = Random(run.seed * 100 + policy);
        random.below(2);
        let pressure = (96 << 20) / run.device_memory;
        let pages = 3000 + pressure * (900 + 300 * ((policy * 7) % 5)) + random.below(500);
        let faults = pages / (1 + policy % 4) + random.below(100);
        let time = faults * 12_000 + pages * 164 + random.below(20_000_000);
        let live = matches!(run.source, Source::Live(_));
        Ok(Measured {
            cpu_faults: Some(faults),
            device_faults: Some(faults / 3),
            pages_to_device: Some(pages),
            bytes_to_device: Some(pages * 4096),
            bytes_to_system: Some(pages * 3500),
            evicted: Some(pages / 3),
            prefetched: Some(pages - faults.min(pages)),
            unused: (!live).then_some(pages / 20),
            thrashing_pages: (!live).then_some(policy),
            modelled_ns: (!live).then_some(time),
            optimal_pages_to_device: (!live).then_some(3000),
            elapsed_s: live.then_some(time as f64 / 1e9),
            ..Measured::default()
        })
    }
}

/// Does a sweep of two workloads into a folder.
pub fn sweep(folder: &Path, sizes: &[&str], seeds: u32) {
    let file = folder.join("sweep.toml");
    let text = format!(
        "title = \"A made-up sweep\"\nquestion = \"Which policy is best when device memory is short?\"\nseeds = {seeds}\npolicies = {POLICIES:?}\ndevice_memory = {sizes:?}\n\
         [links]\npcie4 = \"latency=10us,bandwidth=25G\"\n\
         [[workload]]\nname = \"bfs\"\nmode = \"model\"\nmemory = \"64M\"\nparams = {{ vertices = \"64K\" }}\n\
         [[workload]]\nname = \"stream\"\nmode = \"live\"\nmemory = \"64M\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let settings = Settings {
        folder: folder.to_owned(),
        reads: Vec::new(),
        shard: Shard::WHOLE,
        resume: false,
        parallel: Parallel { jobs: 2, live: 2 },
        progress: false,
    };
    Sweep::read(&file, &MadeUp)
        .unwrap()
        .start(&settings, &MadeUp)
        .unwrap();
}
