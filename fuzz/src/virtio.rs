//! Virtio devices: a guest writes any bytes into registers, rings and requests. On a real backend.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};

use arbitrary::{Arbitrary, Unstructured};
use hmm_backend::Backend;
use hmm_backend::driver::DefaultDriver;
use hmm_backend::pages::{DeviceId, PAGE_SIZE, Page, PageRange, Permission};
use hmm_backend::residency::Residency;
use hmmvisor_abi::map::MANAGED;
use hmmvisor_devices::virtio::{Balloon, Disk, GuestRam, VirtioDevice, block, rng};
use hmmvisor_devices::{Interrupt, MmioDevice};

/// One block.
const PAGES: u64 = 512;
const MEMORY: u64 = PAGES * PAGE_SIZE;
const DEVICE_PAGES: u64 = 64;
const DISK: u64 = 256 << 10;
/// Queues that a driver of ours sets up; each has three pages for its rings, from page 0 on.
const QUEUES: u64 = 5;
const SLOTS: u64 = 8;

/// A number as hostile guests choose it: anything, or just inside or outside of something.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Any(u64),
    Small(u8),
    /// An address, in the first pages or anywhere.
    Low(u16),
    Page(u16, i8),
    /// Counted back from the end of managed memory.
    FromEnd(u8),
    /// Counted back from the end of the address space.
    FromTop(u8),
    Pages(u8),
    /// The number of a page.
    Frame(u16),
}

impl Number {
    fn value(self) -> u64 {
        match self {
            Number::Any(n) => n,
            Number::Small(n) => n.into(),
            Number::Low(n) => MANAGED + u64::from(n),
            Number::Page(page, off) => (MANAGED + u64::from(page) % (PAGES + 2) * PAGE_SIZE)
                .wrapping_add_signed(off.into()),
            Number::FromEnd(n) => MANAGED + MEMORY - u64::from(n),
            Number::FromTop(n) => u64::MAX - u64::from(n),
            Number::Pages(n) => u64::from(n) * PAGE_SIZE,
            Number::Frame(n) => (MANAGED / PAGE_SIZE) + u64::from(n) % (PAGES + 2),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A register, by its index.
    Write(u8, Number),
    WriteAny(u16, u8, u64),
    Read(u16, u8),
    /// Sets the device up as a correct driver does.
    Start {
        features: u16,
        queues: u8,
    },
    /// A queue anywhere.
    Queue {
        index: u8,
        size: u16,
        rings: [Number; 3],
    },
    Descriptor {
        queue: u8,
        index: u8,
        addr: Number,
        len: Number,
        flags: u8,
        next: u8,
    },
    /// An entry of an indirect table.
    Entry {
        page: u8,
        index: u8,
        addr: Number,
        len: Number,
        flags: u8,
        next: u8,
    },
    /// The header of a block request.
    Header {
        page: u8,
        kind: u8,
        sector: Number,
    },
    Offer(u8, u8),
    Index(u8, u16),
    /// The guest writes a word of its memory.
    Store(u16, Number),
    Kick(u8),
    Settle,
    FreeAll,
    ToDevice(u16, u8),
    Target(Number),
    Hinting(bool),
    Statistics,
}

#[derive(Arbitrary, Debug)]
struct Input {
    device: u8,
    steps: Vec<Step>,
}

struct Irq;

impl Interrupt for Irq {
    fn route(&self, _: u32) -> bool {
        true
    }
    fn trigger(&self) {}
}

pub fn run(bytes: &[u8]) {
    if let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) {
        Guest::new(&input).play(&input.steps);
    }
}

struct Guest {
    // Dropped in this order: no thread may fault after the service has stopped.
    device: Arc<VirtioDevice>,
    balloon: Option<Balloon>,
    service: hmm_backend::service::FaultService,
    backend: Arc<Backend>,
    other: DeviceId,
    image: File,
    read_only: bool,
    offered: [u16; QUEUES as usize],
}

impl Guest {
    fn new(input: &Input) -> Guest {
        let (backend, service) = crate::managed::memory(MEMORY, "on-demand+timeslice:min=0us");
        let other = backend
            .attach(DEVICE_PAGES * PAGE_SIZE, Arc::new(DefaultDriver))
            .expect("a device");
        let ram = GuestRam::managed(&backend, MANAGED);
        let image = image().expect("a file in memory");
        let read_only = input.device % 4 == 1;
        let mut balloon = None;
        let device = match input.device % 4 {
            2 => {
                let made = Balloon::new(0, ram, Box::new(Irq)).expect("a thread is needed");
                let device = made.device().clone();
                balloon = Some(made);
                device
            }
            kind => {
                let parts = match kind {
                    3 => rng(),
                    _ => {
                        let path = format!("/proc/self/fd/{}", image.as_raw_fd());
                        let access = match read_only {
                            true => Permission::ReadOnly,
                            false => Permission::Writable,
                        };
                        let disk = Disk::open(Path::new(&path), access);
                        block(0, disk.expect("it is an image"))
                    }
                };
                let device = VirtioDevice::new(parts, ram, Box::new(Irq));
                Arc::new(device.expect("a thread is needed"))
            }
        };
        Guest {
            device,
            balloon,
            service,
            backend,
            other,
            image,
            read_only,
            offered: [0; QUEUES as usize],
        }
    }

    fn write(&self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    /// A word of managed memory as a CPU reaches it.
    fn cpu(&self, offset: u64) -> &AtomicU64 {
        assert!(offset < MEMORY && offset.is_multiple_of(8));
        let (base, _) = self.backend.host_memory();
        let at = base.wrapping_add(offset as usize).cast();
        // SAFETY: the word is in managed memory, which lives as long as the backend; all accesses are atomic.
        unsafe { AtomicU64::from_ptr(at) }
    }

    /// Two bytes at an even place.
    fn store_half(&self, offset: u64, value: u16) {
        let word = self.cpu(offset / 8 * 8);
        let shift = offset % 8 * 8;
        let others = word.load(Acquire) & !(0xffff << shift);
        word.store(others | u64::from(value) << shift, Release);
    }

    fn describe(&self, at: u64, addr: u64, len: u64, flags: u8, next: u8) {
        self.cpu(at).store(addr, Release);
        let rest = len & 0xffff_ffff | u64::from(flags % 8) << 32 | u64::from(next % 16) << 48;
        self.cpu(at + 8).store(rest, Release);
    }

    fn start(&mut self, features: u16, queues: u8) {
        self.write(0x70, 0);
        self.write(0x70, 1);
        self.write(0x70, 3);
        // What is offered, but for some.
        let mut offered = [0; 4];
        for half in 0..2 {
            self.write(0x14, half);
            self.device.read(0x10, &mut offered);
            let refused = if half == 0 { u32::from(features) } else { 0 };
            self.write(0x24, half);
            self.write(0x20, u32::from_le_bytes(offered) & !refused);
        }
        self.write(0x70, 0b1011);
        for queue in (0..QUEUES).filter(|queue| queues & 1 << queue == 0) {
            for page in 0..3 {
                for word in 0..64 {
                    self.cpu((queue * 3 + page) * PAGE_SIZE + 8 * word)
                        .store(0, Release);
                }
            }
            let ring = |page| MANAGED + (queue * 3 + page) * PAGE_SIZE;
            self.queue(queue as u32, SLOTS as u32, [ring(0), ring(1), ring(2)]);
        }
        self.offered = [0; QUEUES as usize];
        self.write(0x70, 0b1111);
    }

    fn queue(&self, index: u32, size: u32, rings: [u64; 3]) {
        self.write(0x30, index);
        self.write(0x38, size);
        for (register, addr) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
            self.write(register, addr as u32);
            self.write(register + 4, (addr >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    fn play(mut self, steps: &[Step]) {
        for step in steps.iter().take(96) {
            self.step(step);
        }
        self.device.settle();
        self.finish();
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write(register, value) => {
                self.write(u64::from(register % 80) * 4, value.value() as u32);
            }
            Step::WriteAny(offset, len, value) => {
                let bytes = value.to_le_bytes();
                let offset = u64::from(offset % 0x1000);
                self.device.write(offset, &bytes[..usize::from(len % 9)]);
            }
            Step::Read(offset, len) => {
                let mut bytes = [0; 8];
                let offset = u64::from(offset % 0x1000);
                self.device.read(offset, &mut bytes[..usize::from(len % 9)]);
            }
            Step::Start { features, queues } => self.start(features, queues),
            Step::Queue { index, size, rings } => {
                let rings = rings.map(Number::value);
                self.queue(u32::from(index % 8), size.into(), rings);
            }
            Step::Descriptor {
                queue,
                index,
                addr,
                len,
                flags,
                next,
            } => {
                let table = u64::from(queue) % QUEUES * 3 * PAGE_SIZE;
                let at = table + u64::from(index) % SLOTS * 16;
                self.describe(at, addr.value(), len.value(), flags, next);
            }
            Step::Entry {
                page,
                index,
                addr,
                len,
                flags,
                next,
            } => {
                let at = u64::from(page) * PAGE_SIZE + u64::from(index) * 16;
                self.describe(at, addr.value(), len.value(), flags, next);
            }
            Step::Header { page, kind, sector } => {
                let at = u64::from(page) * PAGE_SIZE;
                self.cpu(at).store(u64::from(kind % 16), Release);
                self.cpu(at + 8).store(sector.value(), Release);
            }
            Step::Offer(queue, head) => {
                let queue = u64::from(queue) % QUEUES;
                let offered = &mut self.offered[queue as usize];
                let slot = u64::from(*offered) % SLOTS;
                *offered = offered.wrapping_add(1);
                let index = *offered;
                let ring = (queue * 3 + 1) * PAGE_SIZE;
                self.store_half(ring + 4 + 2 * slot, u16::from(head) % (SLOTS as u16 + 1));
                self.store_half(ring + 2, index);
            }
            Step::Index(queue, index) => {
                let ring = (u64::from(queue) % QUEUES * 3 + 1) * PAGE_SIZE;
                self.store_half(ring + 2, index);
            }
            Step::Store(word, value) => {
                let offset = u64::from(word) * 8;
                self.cpu(offset % MEMORY).store(value.value(), Release);
            }
            Step::Kick(queue) => self.write(0x50, u32::from(queue) % 8),
            Step::Settle => self.device.settle(),
            Step::FreeAll => {
                let freed = self.backend.guest_freed(all()).expect("the range is right");
                assert!(freed <= PAGES);
            }
            Step::ToDevice(page, len) => {
                let start = u32::from(page) % PAGES as u32;
                let end = (start + u32::from(len)).min(PAGES as u32);
                let range = PageRange::new(Page(start), Page(end));
                self.backend
                    .migrate_to_device(self.other, range)
                    .expect("it is attached");
            }
            Step::Target(bytes) => {
                if let Some(balloon) = &self.balloon {
                    let allowed = balloon.set_target(bytes.value()).is_ok();
                    assert_eq!(allowed, bytes.value() <= MEMORY);
                }
            }
            Step::Hinting(on) => match &self.balloon {
                Some(balloon) if on => balloon.start_hinting(),
                Some(balloon) => balloon.stop_hinting(),
                None => {}
            },
            Step::Statistics => {
                if let Some(balloon) = &self.balloon {
                    balloon.request_statistics();
                    let _ = balloon.statistics();
                }
            }
        }
    }

    fn finish(self) {
        self.device.stop();
        // The service may be prefetching; after this no thread changes pages.
        drop(self.service);
        self.backend
            .detach(self.other)
            .expect("all pages come back");
        for page in all().pages() {
            let word = self.backend.word(page).expect("it is in range");
            let there = matches!(word.residency(), Residency::Device(_));
            assert!(
                !there && word.pins() == 0 && !word.locked(),
                "{page}: {word:?}"
            );
        }
        assert_eq!(self.image.metadata().expect("it is open").len(), DISK);
        if self.read_only {
            assert!(
                contents(&self.image) == pattern(),
                "a read-only disk was written"
            );
        }
    }
}

fn all() -> PageRange {
    PageRange::new(Page(0), Page(PAGES as u32))
}

fn pattern() -> Vec<u8> {
    (0..DISK).map(|i| (i / 512) as u8 | 1).collect()
}

fn image() -> io::Result<File> {
    // SAFETY: a valid name; the descriptor is new, and no other value owns it.
    let mut file = unsafe {
        let fd = libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.write_all(&pattern())?;
    Ok(file)
}

fn contents(file: &File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; DISK as usize];
    file.read_exact_at(&mut bytes, 0).expect("it can be read");
    bytes
}
