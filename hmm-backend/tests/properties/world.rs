//! The backend with three devices, and the model of each page's contents and permissions.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::JoinHandle;
use std::time::Duration;

use hmm_backend::driver::FaultError;
use hmm_backend::engine::Engine;
use hmm_backend::mirror::MirrorError;
use hmm_backend::pages::{Hint, PAGE_SIZE, Page, Permission};
use hmm_backend::residency::{Residency, Word};
use hmm_backend::{Error, Pinned};

use crate::common::{self, Device, Rig};
use crate::cpu::Cpu;
use crate::op::{Fault, Op};

pub const PAGES: u32 = 1024;
/// The device whose memory is coherent; the other two have private memory.
pub const COHERENT: usize = 2;
/// Returns how long to wait: longer than any step takes. Once a sequence has failed, proptest tries shorter
/// ones, each of which may fail by not coming to rest; for these the wait is short.
pub fn patience() -> Duration {
    Duration::from_secs(if FAILED.load(SeqCst) { 1 } else { 30 })
}

static FAILED: AtomicBool = AtomicBool::new(false);

/// With this policy only the pages that a call names move, so the model knows the number of pages.
pub const EXACT: &str = "on-demand+hints+timeslice:min=0us";

pub struct World {
    pub rig: Rig,
    pub cpu: Cpu,
    pub devices: Vec<Device>,
    pub sizes: [u32; 3],
    pub attached: [bool; 3],
    pub exact: bool,
    pub contents: Vec<u64>,
    pub read_only: Vec<bool>,
    pub lost: Vec<bool>,
    pub pinned: Vec<Pinned>,
    pub serial: u64,
}

impl Drop for World {
    fn drop(&mut self) {
        // After a failure the CPU thread may sleep in a fault: abandon the faults so that it ends.
        FAILED.fetch_or(std::thread::panicking(), SeqCst);
        self.rig.backend.abandon_faults();
        drop(self.cpu.requests.take());
        let _ = self.cpu.thread.take().map(JoinHandle::join);
    }
}

pub fn run(engine: Engine, sizes: [u32; 3], policy: &str, fill_blocks: bool, ops: &[Op]) {
    let rig = Rig::with(PAGES, engine, policy, |c| c.fill_blocks = fill_blocks, 1);
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

    pub fn words(&self) -> Vec<Word> {
        (0..PAGES).map(|p| self.word(p)).collect()
    }

    pub fn pins(&self, page: u32) -> u64 {
        let has = |p: &&Pinned| p.range().contains(Page(page));
        self.pinned.iter().filter(has).count() as u64
    }

    /// Returns whether no driver has an injected failure left.
    fn well(&self) -> bool {
        self.devices.iter().all(|device| {
            let faults = device.faults.lock().unwrap();
            faults.to_ram.is_empty()
                && (faults.to_device_after_copy, faults.to_device_before_copy) == (0, 0)
                && (faults.to_ram_after_copy, faults.flush) == (0, 0)
        })
    }

    fn cpu(&mut self, page: u32, value: Option<u64>) {
        if self.lost[page as usize] {
            return;
        }
        let (base, _) = self.rig.backend.host_memory();
        let address = base as usize + page as usize * PAGE_SIZE as usize;
        // A forbidden write would sleep until the permission changes; another test covers it.
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
            let residency = self.word(page).residency();
            assert!(residency.reached_by_cpus());
            assert!(value.is_none() || !residency.duplicated(), "page {page}");
        }
    }

    /// Adds to the page's words while the page is exclusive to the device.
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
                    let own = own && !residency.duplicated();
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
                panic!("page {page} is in range, and the access is not exclusive")
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
                Residency::Device(_) | Residency::Coherent(_) | Residency::Duplicated(_)
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
                        // From another device, directly.
                        Residency::Device(place) => {
                            d != COHERENT && place.device != self.devices[d].id
                        }
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
                let permission = match on {
                    true => Permission::ReadOnly,
                    false => Permission::Writable,
                };
                self.rig.backend.set_permission(range, permission).unwrap();
                self.read_only[pages.start as usize..pages.end as usize].fill(on);
            }
            Op::ReadMostly(start, len, on) => {
                let range = self.rig.range(clip(start, len));
                self.rig.backend.hint(range, Hint::ReadMostly(on)).unwrap();
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
                let mut faults = self.devices[d].faults.lock().unwrap();
                match fault {
                    Fault::RefuseToRam => faults
                        .to_ram
                        .extend([FaultError::Retry, FaultError::OutOfMemory]),
                    Fault::AbandonToRam => faults.to_ram_after_copy += 1,
                    Fault::RefuseToDevice => faults.to_device_before_copy += 1,
                    Fault::FailAfterCopy => faults.to_device_after_copy += 1,
                    Fault::RefuseToFlush => faults.flush += 1,
                }
            }
        }
    }

    /// Checks all contents, then detaches the devices and checks that nothing is left.
    fn finish(&mut self) {
        for device in &self.devices {
            *device.faults.lock().unwrap() = common::Faults::default();
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
        let freed = self.devices.iter().map(|d| d.driver.freed());
        assert_eq!(stats.page_free_calls, freed.sum::<u64>());
    }
}
