//! The machine around the workloads: memory, devices, and the closure that gets each access.
//!
//! A process has one machine at a time, because the guest's sources have statics. Only the vCPU whose turn it is
//! uses it.

mod accelerator;

use std::alloc::{self, Layout};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hmm_backend::limits::Refusal;
use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{Access, DeviceId, Hint, PAGE_SIZE, Page, PageRange};
use hmmvisor_abi::{control, map};
use parking_lot::{Mutex, RwLock};

use crate::turns::{Turns, this_vcpu};
use accelerator::Accelerator;

/// The vCPU whose turn it is.
pub static TURNS: Turns = Turns::new();

/// The words of managed memory; replaced for each run.
static MEMORY: RwLock<&'static [AtomicU64]> = RwLock::new(&[]);

/// The receiver of accesses, and the devices' state.
static MACHINE: Mutex<Option<Machine>> = Mutex::new(None);

/// The access before, in the form that [`tell`] compares.
static LAST: AtomicU64 = AtomicU64::new(NOTHING);
/// The number of accesses so far.
static ACCESSES: AtomicU64 = AtomicU64::new(0);
const NOTHING: u64 = u64::MAX;

/// The vCPU or device that accesses memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The vCPU whose turn it is.
    Cpu,
    /// An accelerator.
    Device(u8),
}

struct Machine {
    sink: Box<dyn FnMut(Event) + Send>,
    /// The last access: how often it was repeated is known when something else happens.
    pending: Option<Event>,
    accelerators: Vec<Accelerator>,
    /// Pages accessed since they were freed.
    touched: Vec<bool>,
    console: Vec<u8>,
}

/// Sets up a machine; `sink` gets the events.
///
/// # Errors
/// The host has no room for its memory.
pub fn start(memory: u64, sink: Box<dyn FnMut(Event) + Send>) -> Result<(), Refusal> {
    let mut touched = Vec::new();
    let pages = (memory / PAGE_SIZE) as usize;
    let zeros = touched
        .try_reserve_exact(pages)
        .ok()
        .and_then(|()| zeros((memory / 8) as usize))
        .ok_or_else(|| Refusal::of_memory(memory))?;
    touched.resize(pages, false);
    let zeros = Box::into_raw(zeros);
    // SAFETY: the box is new and given up for good; an `AtomicU64` has the size, the bit patterns and, on this
    // architecture, the alignment of a `u64`.
    let words: &'static [AtomicU64] = unsafe { &*(zeros as *const [AtomicU64]) };
    *MEMORY.write() = words;
    LAST.store(NOTHING, Ordering::Relaxed);
    ACCESSES.store(0, Ordering::Relaxed);
    *MACHINE.lock() = Some(Machine {
        sink,
        pending: None,
        // All there can be: the guest's statics may know more than this run has, and disables them.
        accelerators: (0..map::MAX_ACCELS)
            .map(|_| Accelerator::default())
            .collect(),
        touched,
        console: Vec::new(),
    });
    Ok(())
}

/// Allocates this many zero words; returns none if the host refuses. The allocator itself provides the zeros, so pages that
/// the workload never touches take no memory.
fn zeros(words: usize) -> Option<Box<[u64]>> {
    let layout = Layout::array::<u64>(words).ok()?;
    if layout.size() == 0 {
        return Some(Box::default());
    }
    // SAFETY: the layout has a size.
    let start = NonNull::new(unsafe { alloc::alloc_zeroed(layout) })?;
    let words = ptr::slice_from_raw_parts_mut(start.as_ptr().cast::<u64>(), words);
    // SAFETY: the memory is new, of the global allocator with the layout of this slice, and zeros are valid numbers.
    Some(unsafe { Box::from_raw(words) })
}

/// Takes the machine apart. Returns what the workload printed.
pub fn stop() -> String {
    let mut machine = MACHINE.lock().take();
    if let Some(machine) = &mut machine {
        machine.flush();
    }
    let words = std::mem::take(&mut *MEMORY.write());
    if !words.is_empty() {
        // SAFETY: `start` gave up exactly this box, as a `u64` slice, which has the same layout. All vCPUs have ended, and no other code has had references to the
        // words: those that `access` gives out are used at once, and only by vCPUs.
        drop(unsafe { Box::from_raw(words as *const [AtomicU64] as *mut [u64]) });
    }
    machine.map_or_else(String::new, |machine| {
        String::from_utf8_lossy(&machine.console).into_owned()
    })
}

impl Machine {
    /// Reports the last access, which was repeated until now.
    fn flush(&mut self) {
        self.flush_at(ACCESSES.load(Ordering::Relaxed));
    }

    /// Reports the last access, which was repeated until there had been this many accesses.
    fn flush_at(&mut self, accesses: u64) {
        if let Some(mut event) = self.pending.take() {
            let before = event.time.as_nanos() as u64;
            event.repeats = u32::try_from(accesses - before).unwrap_or(u32::MAX);
            (self.sink)(event);
        }
    }

    /// Reports something that is no access.
    fn put(&mut self, event: Event) {
        self.flush();
        (self.sink)(event);
    }
}

fn with<R>(work: impl FnOnce(&mut Machine) -> R) -> R {
    work(
        MACHINE
            .lock()
            .as_mut()
            .expect("vCPUs run only while there is a machine"),
    )
}

fn words() -> &'static [AtomicU64] {
    *MEMORY.read()
}

/// Reports an access to a word, and returns the word.
pub fn access(who: Who, address: u64, access: Access) -> &'static AtomicU64 {
    let offset = address - map::MANAGED;
    tell(who, Page((offset / PAGE_SIZE) as u32), access);
    &words()[(offset / 8) as usize]
}

/// Reports an access, unless it is like the one before: by the same vCPU or device to the same page, and no write after
/// reads.
pub fn tell(who: Who, page: Page, access: Access) {
    let time = ACCESSES.fetch_add(1, Ordering::Relaxed);
    let (device, vcpu) = match who {
        Who::Cpu => (None, this_vcpu()),
        Who::Device(device) => (Some(DeviceId(device)), 0),
    };
    let toucher = device.map_or(vcpu, |device| 1 << 16 | u64::from(device.0));
    let key = |access| u64::from(page.0) << 24 | toucher << 1 | u64::from(access == Access::Write);
    let last = LAST.load(Ordering::Relaxed);
    if last == key(Access::Write) || last == key(access) {
        return;
    }
    LAST.store(key(access), Ordering::Relaxed);
    with(|machine| {
        machine.touched[page.0 as usize] = true;
        machine.flush_at(time);
        machine.pending = Some(Event {
            device,
            access: Some(access),
            // The number of a vCPU's thread; 0 means that it is no vCPU's.
            thread: if device.is_none() { vcpu as u32 + 1 } else { 0 },
            ..Event::new(
                Duration::from_nanos(time),
                EventKind::Access,
                PageRange::single(page),
            )
        });
    });
}

/// Forgets the contents of pages; returns how many had any.
pub fn free(device: u8, pages: PageRange) -> u64 {
    LAST.store(NOTHING, Ordering::Relaxed);
    let range = |scale: u64| {
        (u64::from(pages.start.0) * scale) as usize..(u64::from(pages.end.0) * scale) as usize
    };
    for word in &words()[range(PAGE_SIZE / 8)] {
        word.store(0, Ordering::Relaxed);
    }
    with(|machine| {
        let touched = &mut machine.touched[range(1)];
        let count = touched.iter().filter(|touched| **touched).count() as u64;
        touched.fill(false);
        machine.put(Event {
            device: Some(DeviceId(device)),
            ..Event::new(
                Duration::from_nanos(ACCESSES.load(Ordering::Relaxed)),
                EventKind::Freed,
                pages,
            )
        });
        count
    })
}

/// Reports a hint that an accelerator got about pages.
pub fn hint(pages: PageRange, hint: Hint) {
    LAST.store(NOTHING, Ordering::Relaxed);
    let time = Duration::from_nanos(ACCESSES.load(Ordering::Relaxed));
    with(|machine| {
        machine.put(Event {
            hint: Some(hint),
            ..Event::new(time, EventKind::Hint, pages)
        });
    });
}

/// Reads a device register.
pub fn read(address: u64) -> u64 {
    /// Line status: the transmitter is empty.
    const LINE_STATUS: u64 = map::SERIAL + 5;
    match address {
        LINE_STATUS => 1 << 5,
        _ => match accelerator(address) {
            Some((index, register)) => with(|machine| machine.accelerators[index].read(register)),
            None => panic!("there is no register to read at {address:#x}"),
        },
    }
}

/// Writes a device register.
pub fn write(address: u64, value: u64) {
    const CONTROL_END: u64 = map::CONTROL + 0xfff;
    const SERIAL_OTHERS: u64 = map::SERIAL + 1;
    const SERIAL_END: u64 = map::SERIAL + 7;
    match address {
        map::SERIAL => with(|machine| machine.console.push(value as u8)),
        SERIAL_OTHERS..=SERIAL_END => {}
        map::CONTROL..=CONTROL_END if address - map::CONTROL == control::YIELD => TURNS.pass(),
        // Progress and counts of what was checked.
        map::CONTROL..=CONTROL_END => {}
        _ => match accelerator(address) {
            Some((index, register)) => {
                // The accelerator is taken out of the machine meanwhile, because executing commands reports accesses, which
                // locks the machine.
                let mut accelerator =
                    with(|machine| std::mem::take(&mut machine.accelerators[index]));
                accelerator.write(index as u8, register, value);
                with(|machine| machine.accelerators[index] = accelerator);
            }
            None => panic!("there is no register to write at {address:#x}"),
        },
    }
}

/// The accelerator to whose registers an address belongs.
fn accelerator(address: u64) -> Option<(usize, u64)> {
    let offset = address.checked_sub(map::ACCEL)?;
    let index = (offset / map::ACCEL_STRIDE) as usize;
    (index < map::MAX_ACCELS as usize).then_some((index, offset % map::ACCEL_STRIDE))
}
