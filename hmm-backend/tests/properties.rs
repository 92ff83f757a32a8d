//! Random sequences of the backend's calls, CPU accesses and device accesses on real userfaultfd, beside a model
//! of what every page holds and may be. `PROPTEST_CASES` sets the number of sequences.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Device, Rig};
use hmm_backend::{
    Engine, Error, FaultError, MAX_ORDER, MirrorError, PAGE_SIZE, Page, Pinned, Residency, Word,
    snapshot,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const PAGES: u32 = 1024;
/// The device whose memory is coherent; the other two have private memory.
const COHERENT: usize = 2;
/// Longer than anything here takes, shorter than for ever. Once a sequence has failed, shorter ones are tried, each
/// of which may fail by not coming to rest.
fn patience() -> Duration {
    Duration::from_secs(if FAILED.load(SeqCst) { 1 } else { 30 })
}

static FAILED: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Debug)]
enum Op {
    CpuRead(u32),
    CpuWrite(u32),
    DeviceRead(usize, u32),
    DeviceWrite(usize, u32),
    Atomic(usize, u32),
    ToDevice(usize, u32, u32),
    ToSystem(u32, u32),
    Free(u32, u32),
    Pin(u32, u32),
    Unpin(usize),
    ReadOnly(u32, u32, bool),
    Fail(u32),
    Detach(usize),
    Inject(usize, Fault),
}

/// What a driver does wrong the next time.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::enum_variant_names, reason = "they are the way-points' names")]
enum Fault {
    RefuseToRam,
    AbandonToRam,
    RefuseToDevice,
    FailAfterCopy,
}

fn op() -> impl Strategy<Value = Op> {
    // Few different pages, so that the steps meet: around the start and across the blocks' border.
    let page = || prop_oneof![3 => 0u32..24, 2 => 500u32..524, 1 => 0..PAGES];
    let len = || prop_oneof![4 => 1u32..8, 2 => 1u32..64, 1 => Just(512u32)];
    let device = || 0usize..3;
    let fault = prop_oneof![
        Just(Fault::RefuseToRam),
        Just(Fault::AbandonToRam),
        Just(Fault::RefuseToDevice),
        Just(Fault::FailAfterCopy)
    ];
    prop_oneof![
        4 => page().prop_map(Op::CpuRead),
        6 => page().prop_map(Op::CpuWrite),
        4 => (device(), page()).prop_map(|(d, p)| Op::DeviceRead(d, p)),
        6 => (device(), page()).prop_map(|(d, p)| Op::DeviceWrite(d, p)),
        3 => (device(), page()).prop_map(|(d, p)| Op::Atomic(d, p)),
        6 => (device(), page(), len()).prop_map(|(d, p, n)| Op::ToDevice(d, p, n)),
        3 => (page(), len()).prop_map(|(p, n)| Op::ToSystem(p, n)),
        3 => (page(), len()).prop_map(|(p, n)| Op::Free(p, n)),
        2 => (page(), 1u32..5).prop_map(|(p, n)| Op::Pin(p, n)),
        2 => (0usize..8).prop_map(Op::Unpin),
        1 => (page(), len(), any::<bool>()).prop_map(|(p, n, on)| Op::ReadOnly(p, n, on)),
        1 => page().prop_map(Op::Fail),
        1 => device().prop_map(Op::Detach),
        1 => (device(), fault).prop_map(|(d, f)| Op::Inject(d, f)),
    ]
}

/// A case: the devices' sizes, the policy, the steps.
fn case() -> impl Strategy<Value = ([u32; 3], &'static str, Vec<Op>)> {
    let size = || prop::sample::select(vec![1u32, 8, 16, 37, 100, 600]);
    let policy = prop::sample::select(vec![
        EXACT,
        EXACT,
        "on-demand+timeslice:min=50us",
        "density+timeslice:min=0us",
        "density:threshold=20+timeslice:min=20us",
    ]);
    let sizes = (size(), size(), size()).prop_map(|(a, b, c)| [a, b, c]);
    (sizes, policy, prop::collection::vec(op(), 1..60))
}

/// With this policy nothing moves but what a call names: the model knows the number of pages.
const EXACT: &str = "on-demand+timeslice:min=0us";

/// A thread that is the CPU: it may sleep in a fault for ever, which must not be this thread's fate.
struct Cpu {
    requests: Option<Sender<(usize, Option<u64>)>>,
    answers: Receiver<[u64; 2]>,
    thread: Option<JoinHandle<()>>,
}

impl Cpu {
    fn start() -> Cpu {
        let (requests, todo) = channel::<(usize, Option<u64>)>();
        let (done, answers) = channel();
        let thread = std::thread::spawn(move || {
            for (first, value) in todo {
                // SAFETY: addresses are of words in managed memory, which outlives this thread; all accesses
                // are atomic.
                let cells = [first, first + PAGE_SIZE as usize - 8]
                    .map(|a| unsafe { AtomicU64::from_ptr(a as *mut u64) });
                if let Some(value) = value {
                    cells.iter().for_each(|c| c.store(value, SeqCst));
                }
                let _ = done.send(cells.map(|c| c.load(SeqCst)));
            }
        });
        Cpu {
            requests: Some(requests),
            answers,
            thread: Some(thread),
        }
    }
}

struct World {
    rig: Rig,
    cpu: Cpu,
    devices: Vec<Device>,
    sizes: [u32; 3],
    attached: [bool; 3],
    exact: bool,
    contents: Vec<u64>,
    read_only: Vec<bool>,
    lost: Vec<bool>,
    pinned: Vec<Pinned>,
    serial: u64,
}

impl Drop for World {
    fn drop(&mut self) {
        // After a failure the CPU may sleep for ever.
        FAILED.fetch_or(std::thread::panicking(), SeqCst);
        self.rig.backend.abandon_faults();
        drop(self.cpu.requests.take());
        let _ = self.cpu.thread.take().map(JoinHandle::join);
    }
}

fn run(engine: Engine, sizes: [u32; 3], policy: &str, ops: &[Op]) {
    let rig = Rig::new(PAGES, engine, policy);
    let mut world = World {
        devices: vec![
            rig.device(sizes[0]),
            rig.device(sizes[1]),
            rig.coherent_device(sizes[COHERENT]),
        ],
        rig,
        cpu: Cpu::start(),
        sizes,
        attached: [true; 3],
        exact: policy == EXACT,
        contents: vec![0; PAGES as usize],
        read_only: vec![false; PAGES as usize],
        lost: vec![false; PAGES as usize],
        pinned: Vec::new(),
        serial: 0,
    };
    for op in ops {
        world.step(op);
        world.check();
    }
    world.finish();
}

impl World {
    fn word(&self, page: u32) -> Word {
        self.rig.backend.word(Page(page)).unwrap()
    }

    fn words(&self) -> Vec<Word> {
        (0..PAGES).map(|p| self.word(p)).collect()
    }

    fn pins(&self, page: u32) -> u64 {
        let has = |p: &&Pinned| p.range().contains(Page(page));
        self.pinned.iter().filter(has).count() as u64
    }

    /// Whether no driver is about to do something wrong.
    fn well(&self) -> bool {
        self.devices.iter().all(|device| {
            let faults = device.driver.faults.lock().unwrap();
            faults.to_ram.is_empty()
                && (faults.to_device_after_copy, faults.to_device_before_copy) == (0, 0)
                && faults.to_ram_after_copy == 0
        })
    }

    fn cpu(&mut self, page: u32, value: Option<u64>) {
        if self.lost[page as usize] {
            return;
        }
        let (base, _) = self.rig.backend.host_memory();
        let address = base as usize + page as usize * PAGE_SIZE as usize;
        // A forbidden write sleeps until the permission changes: that is another test.
        let value = value.filter(|_| !self.read_only[page as usize]);
        let requests = self.cpu.requests.as_ref().unwrap();
        requests.send((address, value)).unwrap();
        let seen = self.cpu.answers.recv_timeout(patience());
        let seen = seen.unwrap_or_else(|_| panic!("the CPU sleeps for ever on page {page}"));
        if let Some(value) = value {
            self.contents[page as usize] = value;
        }
        assert_eq!(seen, [self.contents[page as usize]; 2], "CPU, page {page}");
        if self.exact {
            self.rig
                .backend
                .settle(self.rig.range(page..page + 1))
                .unwrap();
            assert!(self.word(page).residency().reached_by_cpus());
        }
    }

    /// Adds to the page's words while the device has it for itself.
    fn atomic(&mut self, d: usize, page: u32, value: u64) {
        let p = page as usize;
        let device = &mut self.devices[d];
        let add = |device: &mut Device, word| device.add_exclusively(page, word, value, || {});
        match add(device, 0).and_then(|()| add(device, 511)) {
            Err(MirrorError::Detached) => assert!(!self.attached[d], "device {d}"),
            Err(MirrorError::Permission(_)) => assert!(self.read_only[p], "page {page}"),
            Err(MirrorError::Fatal { .. }) => assert!(self.lost[p], "page {page}"),
            Err(MirrorError::NotExclusive(_)) => assert!(self.pins(page) > 0, "page {page}"),
            Err(MirrorError::OutOfRange(_)) => panic!("page {page} is in range"),
            Ok(()) => {
                assert!(self.attached[d] && !self.lost[p] && !self.read_only[p]);
                self.contents[p] += value;
                if self.exact {
                    let residency = self.word(page).residency();
                    let own = self.on(d, self.word(page)).is_some() && d != COHERENT;
                    assert!(own || residency == Residency::Exclusive(self.devices[d].id));
                }
            }
        }
    }

    fn device(&mut self, d: usize, page: u32, value: Option<u64>) {
        let p = page as usize;
        let device = &mut self.devices[d];
        let access = match value {
            Some(value) => device
                .write(page, 0, value)
                .and_then(|()| device.write(page, 511, value)),
            None => Ok(()),
        };
        let answer = access.and_then(|()| Ok([device.read(page, 0)?, device.read(page, 511)?]));
        match answer {
            Err(MirrorError::Detached) => assert!(!self.attached[d], "device {d}"),
            Err(MirrorError::Permission(at)) => {
                assert_eq!(at, Page(page));
                assert!(value.is_some() && self.read_only[p], "page {page}");
            }
            Err(MirrorError::Fatal { page: at, .. }) => {
                assert_eq!(at, Page(page));
                assert!(self.lost[p], "page {page}");
            }
            Err(MirrorError::OutOfRange(_) | MirrorError::NotExclusive(_)) => {
                panic!("page {page} is in range, and nobody wants it alone")
            }
            Ok(seen) => {
                assert!(self.attached[d], "device {d} is gone");
                assert!(!self.lost[p], "page {page} is lost");
                assert!(value.is_none() || !self.read_only[p], "page {page}");
                self.contents[p] = value.unwrap_or(self.contents[p]);
                assert_eq!(seen, [self.contents[p]; 2], "device {d}, page {page}");
            }
        }
    }

    fn fresh(&mut self) -> Option<u64> {
        self.serial += 1;
        Some(self.serial)
    }

    fn step(&mut self, op: &Op) {
        let clip = |start: u32, len: u32| start..(start + len).min(PAGES);
        let before = self.words();
        let well = self.well() && self.exact;
        let on_device = |w: &Word| {
            let residency = w.residency();
            matches!(
                residency,
                Residency::Device { .. } | Residency::Coherent { .. }
            )
        };
        match *op {
            Op::CpuRead(page) => self.cpu(page, None),
            Op::CpuWrite(page) => {
                let value = self.fresh();
                self.cpu(page, value);
            }
            Op::DeviceRead(d, page) => self.device(d, page, None),
            Op::DeviceWrite(d, page) => {
                let value = self.fresh();
                self.device(d, page, value);
            }
            Op::Atomic(d, page) => {
                let value = self.fresh().unwrap_or_default();
                self.atomic(d, page, value);
            }
            Op::ToDevice(d, start, len) => {
                let pages = clip(start, len);
                let result = self
                    .rig
                    .backend
                    .migrate_to_device(self.devices[d].id, self.rig.range(pages.clone()));
                if !self.attached[d] {
                    assert!(matches!(result, Err(Error::NoDevice(_))));
                    return;
                }
                let moved = result.unwrap() as u32;
                assert!(moved <= pages.end - pages.start);
                let movable = |p: &u32| {
                    let word = before[*p as usize];
                    match word.residency() {
                        Residency::Untouched => true,
                        Residency::System => word.pins() == 0,
                        _ => false,
                    }
                };
                let movable = pages.clone().filter(movable).count() as u32;
                if well && pages.start / 512 == (pages.end - 1) / 512 {
                    assert!(
                        moved >= movable.min(self.sizes[d]),
                        "{moved} of {movable} pages"
                    );
                    let used = before.iter().filter(|w| self.on(d, **w).is_some()).count() as u32;
                    if self.sizes[d] - used >= movable {
                        assert_eq!(moved, movable, "nothing had to be evicted");
                    }
                }
            }
            Op::ToSystem(start, len) => {
                let pages = clip(start, len);
                let range = self.rig.range(pages.clone());
                let moved = self.rig.backend.migrate_to_system(range).unwrap();
                let there = pages.clone().filter(|p| on_device(&before[*p as usize]));
                if well {
                    assert_eq!(moved, there.count() as u64);
                    assert!(pages.clone().all(|p| !on_device(&self.word(p))));
                }
            }
            Op::Free(start, len) => {
                let pages = clip(start, len);
                let range = self.rig.range(pages.clone());
                let freed = self.rig.backend.guest_freed(range).unwrap();
                let free = |p: &u32| self.pins(*p) == 0;
                let free: Vec<u32> = pages.filter(free).collect();
                if self.exact {
                    let had = |p: &&u32| before[**p as usize].residency() != Residency::Untouched;
                    assert_eq!(freed, free.iter().filter(had).count() as u64);
                    for page in &free {
                        assert_eq!(self.word(*page).residency(), Residency::Untouched);
                    }
                }
                for page in free {
                    self.contents[page as usize] = 0;
                    self.lost[page as usize] = false;
                }
            }
            Op::Pin(start, len) => {
                let pages = clip(start, len);
                let lost = pages.clone().find(|p| self.lost[*p as usize]);
                match self.rig.backend.pin(self.rig.range(pages.clone())) {
                    Ok(pinned) => {
                        assert_eq!(lost, None);
                        self.pinned.push(pinned);
                    }
                    Err(Error::Fatal { page, .. }) => assert_eq!(Some(page.0), lost),
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Unpin(i) => {
                if !self.pinned.is_empty() {
                    let i = i % self.pinned.len();
                    drop(self.pinned.swap_remove(i));
                }
            }
            Op::ReadOnly(start, len, on) => {
                let pages = clip(start, len);
                let range = self.rig.range(pages.clone());
                self.rig.backend.set_read_only(range, on).unwrap();
                self.read_only[pages.start as usize..pages.end as usize].fill(on);
            }
            Op::Fail(page) => match self.rig.backend.memory_failure(Page(page)) {
                Err(Error::Pinned(p)) => {
                    assert_eq!(p, Page(page));
                    assert!(self.pins(page) > 0);
                }
                answer => {
                    answer.unwrap();
                    assert_eq!(self.pins(page), 0);
                    self.lost[page as usize] = true;
                }
            },
            Op::Detach(d) => {
                self.rig.backend.detach(self.devices[d].id).unwrap();
                self.attached[d] = false;
            }
            Op::Inject(d, fault) => {
                let mut faults = self.devices[d].driver.faults.lock().unwrap();
                match fault {
                    Fault::RefuseToRam => faults
                        .to_ram
                        .extend([FaultError::Retry, FaultError::OutOfMemory]),
                    Fault::AbandonToRam => faults.to_ram_after_copy += 1,
                    Fault::RefuseToDevice => faults.to_device_before_copy += 1,
                    Fault::FailAfterCopy => faults.to_device_after_copy += 1,
                }
            }
        }
    }

    /// The frame and order of a page on device `d`.
    fn on(&self, d: usize, word: Word) -> Option<(u32, u8)> {
        match word.residency() {
            Residency::Device {
                device,
                frame,
                order,
            }
            | Residency::Coherent {
                device,
                frame,
                order,
            } if device == self.devices[d].id => Some((frame.0, order)),
            _ => None,
        }
    }

    /// What must hold between any two steps. Prefetching goes on in the service thread, and what a fault's
    /// service does after it has woken the CPU comes a moment later: it must hold in the end.
    fn check(&self) {
        let started = Instant::now();
        while let Err(why) = self.consistent() {
            assert!(started.elapsed() < patience(), "{why}");
            std::thread::yield_now();
        }
        self.devices.iter().for_each(|d| d.driver.assert_clean());
        let fatal = self.rig.fatal.lock().unwrap();
        assert!(fatal.is_empty(), "{fatal:?}");
    }

    fn consistent(&self) -> Result<(), String> {
        let backend = &self.rig.backend;
        let all = self.rig.range(0..PAGES);
        backend.settle(all).unwrap();
        let words = self.words();
        let complain = |page: u32, what: &str| {
            Err(format!(
                "page {page}: {:?}: {what}; contents {}",
                words[page as usize], self.contents[page as usize]
            ))
        };
        for (page, word) in (0..PAGES).zip(&words) {
            let (p, residency) = (page as usize, word.residency());
            if word.locked() {
                return complain(page, "locked");
            }
            if word.pins() != self.pins(page) {
                return complain(page, "wrong number of pins");
            }
            if self.pins(page) > 0 && residency != Residency::System {
                return complain(page, "has moved although it is pinned");
            }
            if (residency == Residency::Poisoned) != self.lost[p] {
                return complain(page, "lost or not");
            }
            if residency == Residency::Untouched && self.contents[p] != 0 {
                return complain(page, "its contents are gone");
            }
            if word.read_only() != self.read_only[p] {
                return complain(page, "wrong permission");
            }
        }
        self.folios_are_whole(&words)?;
        for (d, device) in self.devices.iter().enumerate() {
            // Who sees what, from the model and the words, not from the snapshot's code.
            let byte = |(p, word): (usize, &Word)| {
                let permission = if self.read_only[p] { 1 } else { 2 };
                match word.residency() {
                    Residency::Untouched => 0,
                    Residency::Poisoned => 0xff,
                    Residency::System => permission,
                    Residency::Device { order, .. } => {
                        let large = if order == MAX_ORDER { 4 } else { 0 };
                        let place = if self.on(d, *word).is_some() {
                            0x20
                        } else {
                            0x30
                        };
                        place | permission | large
                    }
                    Residency::Coherent { order, .. } => {
                        let large = if order == MAX_ORDER { 4 } else { 0 };
                        let place = if d == COHERENT { 0x40 } else { 0x50 };
                        place | permission | large
                    }
                    Residency::Exclusive(owner) if owner == device.id => 0x60 | permission,
                    Residency::Exclusive(_) => 0x70 | permission,
                }
            };
            let expected: Vec<u8> = words.iter().enumerate().map(byte).collect();
            if backend.snapshot(device.id, all).unwrap() != expected {
                return Err(format!("device {d}: snapshot"));
            }
        }
        if self.words() != words {
            return Err("words still change".into());
        }
        Ok(())
    }

    /// Each device's folios: aligned, in one piece, no frame twice, and the driver knows the same ones.
    fn folios_are_whole(&self, words: &[Word]) -> Result<(), String> {
        for (d, device) in self.devices.iter().enumerate() {
            let mut frames = BTreeSet::new();
            let mut folios = BTreeMap::new();
            for (page, word) in (0..PAGES).zip(words) {
                let Some((frame, order)) = self.on(d, *word) else {
                    continue;
                };
                if !self.attached[d] || frame >= self.sizes[d] || !frames.insert(frame) {
                    return Err(format!("page {page}: frame {frame} of device {d}"));
                }
                let at = page % (1 << order);
                if frame % (1 << order) != at {
                    return Err(format!("page {page}: frame {frame}, order {order}"));
                }
                *folios.entry((frame - at, order)).or_insert(0) += 1;
            }
            if let Some((folio, n)) = folios.iter().find(|((_, order), n)| **n != 1 << order) {
                return Err(format!("device {d}: folio {folio:?} has {n} pages"));
            }
            let known: BTreeSet<(u32, u8)> = folios.into_keys().collect();
            let live = device.driver.live_folios();
            if live != known || device.driver.live() != known.len() {
                return Err(format!(
                    "device {d}: its driver knows {live:?}, the words {known:?}"
                ));
            }
            if d == COHERENT {
                continue;
            }
            let mapping = &self.rig.backend.host_ranges()[d + 1];
            let present = resident(mapping.start, self.sizes[d]);
            let reused = self.rig.backend.engine() == Engine::Remap;
            if reused && present.iter().any(|f| !frames.contains(f)) {
                return Err(format!("device {d}: free frames have memory: {present:?}"));
            }
        }
        // What is elsewhere or nowhere costs no system memory.
        let (base, _) = self.rig.backend.host_memory();
        for page in resident(base as u64, PAGES) {
            if !words[page as usize].residency().reached_by_cpus() {
                return Err(format!("page {page} still has system memory"));
            }
        }
        let alone = self.rig.backend.host_ranges().pop().unwrap_or_default();
        for page in resident(alone.start, PAGES) {
            if !matches!(words[page as usize].residency(), Residency::Exclusive(_)) {
                return Err(format!("page {page} is left where exclusive pages are"));
            }
        }
        Ok(())
    }

    /// All contents, then a clean end.
    fn finish(&mut self) {
        for device in &self.devices {
            *device.driver.faults.lock().unwrap() = common::Faults::default();
        }
        for page in 0..PAGES {
            self.cpu(page, None);
        }
        self.check();
        self.pinned.clear();
        for d in 0..self.devices.len() {
            self.step(&Op::Detach(d));
            self.check();
            assert_eq!(self.devices[d].driver.live(), 0);
        }
        let stats = self.rig.backend.stats();
        assert!(stats.device_pages_peak <= stats.device_pages_capacity);
        let freed = self.devices.iter().map(|d| d.driver.freed.load(SeqCst));
        assert_eq!(stats.page_free_calls, freed.sum::<u64>());
    }
}

/// Which pages of a mapping have memory.
fn resident(start: u64, pages: u32) -> Vec<u32> {
    let mut present = vec![0u8; pages as usize];
    let len = present.len() * PAGE_SIZE as usize;
    // SAFETY: the call only reads the page tables of this range and writes a byte for each page.
    let ret = unsafe { libc::mincore(start as *mut _, len, present.as_mut_ptr()) };
    assert_eq!(ret, 0);
    let pages = (0..).zip(present).filter(|(_, p)| p & 1 != 0);
    pages.map(|(page, _)| page).collect()
}

fn config() -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/proptest-regressions/backend.txt"
        )))),
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 100;
    }
    config
}

#[test]
fn the_model_agrees_under_remap() {
    proptest!(config(), |((sizes, policy, ops) in case())| run(Engine::Remap, sizes, policy, &ops));
}

#[test]
fn the_model_agrees_under_copy() {
    proptest!(config(), |((sizes, policy, ops) in case())| run(Engine::Copy, sizes, policy, &ops));
}

#[test]
fn the_snapshot_bytes_are_what_they_are_documented_to_be() {
    use snapshot::*;
    let bytes = [NONE, READ, WRITE, LARGE, DEVICE_LOCAL, DEVICE_REMOTE, ERROR];
    assert_eq!(bytes, [0, 1, 2, 4, 0x20, 0x30, 0xff]);
    let bytes = [
        COHERENT_LOCAL,
        COHERENT_REMOTE,
        EXCLUSIVE_LOCAL,
        EXCLUSIVE_REMOTE,
    ];
    assert_eq!(bytes, [0x40, 0x50, 0x60, 0x70]);
}
