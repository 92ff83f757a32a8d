//! Guest memory and device memory, and the two ways to move contents between them.
//!
//! * `remap` moves the pages themselves with `UFFDIO_MOVE`: no copy, atomic towards every CPU.
//! * `copy` keeps device memory apart and copies: to the device under write protection, back with
//!   `UFFDIO_COPY`.
//!
//! Both offer the same steps, so that the migration phases need not know which one runs. All of them
//! are called with the pages' locks held.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use crate::driver::Frame;
use crate::engine::{Engine, EngineChoice};
use crate::error::Error;
use crate::mapping::Mapping;
use crate::page::{BLOCK_PAGES, PAGE_SIZE, Page, PageRange};
use crate::residency::WakeFaults;
use crate::uffd::{Progress, Uffd, probe_userfaultfd};

/// Neighbouring pages and the neighbouring frames they go to or come from, within one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) page: Page,
    pub(crate) frame: Frame,
    pub(crate) pages: u32,
    /// CPUs may not write these pages.
    pub(crate) read_only: bool,
}

impl Run {
    fn skip(self, n: u32) -> Run {
        Run {
            page: self.page.plus(n),
            frame: Frame(self.frame.0 + n),
            pages: self.pages - n,
            ..self
        }
    }

    fn bytes(self) -> u64 {
        u64::from(self.pages) * PAGE_SIZE
    }
}

/// Why a page could not be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EngineError {
    /// Somebody holds a reference to it, or the address space is changing.
    Busy,
    /// No memory for the destination.
    NoMemory,
    /// Something the protocol rules out; the error number.
    Unexpected(i32),
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EngineError::Busy => f.write_str("the page is in use by the kernel"),
            EngineError::NoMemory => f.write_str("out of memory"),
            EngineError::Unexpected(errno) => {
                write!(f, "{}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

/// How an untouched page is filled with zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fill {
    /// It shares the kernel's zero page until somebody writes.
    ZeroPage,
    /// With memory of its own: a write follows.
    Memory,
    /// CPUs may not write it.
    ReadOnly,
}

/// Attempts at a page for which the kernel says `EAGAIN` without progress.
const AGAIN_ATTEMPTS: u32 = 32;

/// Managed guest memory: its mapping and the userfaultfds it is spread over, block by block.
pub(crate) struct GuestMemory {
    engine: Engine,
    mapping: Mapping,
    shards: Vec<Uffd>,
    /// A block of zeros, never written, so that it costs no memory.
    zeros: Mapping,
    /// The file behind the shared pages, and the first of them. They are not registered for faults.
    shared: Option<(File, Page)>,
}

/// One device's memory.
pub(crate) struct DeviceMemory {
    mapping: Mapping,
    /// Engine `remap`: frames are filled by moves, which need a registered destination.
    uffd: Option<Uffd>,
}

impl GuestMemory {
    /// `shared` bytes at the end are shared memory.
    pub(crate) fn new(
        bytes: u64,
        shared: u64,
        choice: EngineChoice,
        shards: usize,
    ) -> Result<Self, Error> {
        let engine = choice.resolve(&probe_userfaultfd()?)?;
        if shards == 0 || shards > 64 {
            return Err(Error::BadShards(shards));
        }
        let mapping = Mapping::new(bytes, "hmm-managed")?;
        let shared = match shared {
            0 => None,
            len => {
                let first = Page(((bytes - len) / PAGE_SIZE) as u32);
                Some((mapping.share_tail(len, "hmm-shared")?, first))
            }
        };
        let shards = (0..shards)
            .map(|_| Uffd::for_faults())
            .collect::<Result<Vec<_>, _>>()?;
        let zeros = Mapping::new(BLOCK_PAGES * PAGE_SIZE, "hmm-zeros")?;
        let guest = GuestMemory {
            engine,
            mapping,
            shards,
            zeros,
            shared,
        };
        // Write protection is for read-only pages, and for the copy engine's migrations.
        guest.each_shard_range(|uffd, start, len| uffd.register(start, len, true))?;
        Ok(guest)
    }

    /// Calls `f` for each piece of managed memory with the userfaultfd it belongs to.
    fn each_shard_range<E>(
        &self,
        mut f: impl FnMut(&Uffd, u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let bytes = self.private_pages().end.offset();
        if bytes == 0 {
            return Ok(());
        }
        if let [only] = &self.shards[..] {
            return f(only, self.mapping.start(), bytes);
        }
        let block = BLOCK_PAGES * PAGE_SIZE;
        for offset in (0..bytes).step_by(block as usize) {
            let uffd = self.shard(Page((offset / PAGE_SIZE) as u32));
            f(
                uffd,
                self.mapping.address(offset),
                block.min(bytes - offset),
            )?;
        }
        Ok(())
    }

    /// The pages that can migrate.
    pub(crate) fn private_pages(&self) -> PageRange {
        let pages = Page((self.mapping.len() / PAGE_SIZE) as u32);
        let end = self.shared.as_ref().map_or(pages, |(_, first)| *first);
        PageRange::new(Page(0), end)
    }

    /// Whether the page is shared memory, which stays where it is.
    pub(crate) fn is_shared(&self, page: Page) -> bool {
        page >= self.private_pages().end
    }

    /// The file behind shared memory.
    pub(crate) fn shared_file(&self) -> Option<&File> {
        self.shared.as_ref().map(|(file, _)| file)
    }

    /// Stops catching faults; whoever sleeps in one goes on with zeros.
    pub(crate) fn stop_catching_faults(&self) {
        // Fails only for ranges that are not registered, which is what is wanted.
        let _ = self.each_shard_range(|uffd, start, len| uffd.unregister(start, len));
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    pub(crate) fn shards(&self) -> &[Uffd] {
        &self.shards
    }

    pub(crate) fn device_memory(&self, bytes: u64) -> Result<DeviceMemory, Error> {
        let mapping = Mapping::new(bytes, "hmm-device")?;
        let uffd = match self.engine {
            Engine::Copy => None,
            Engine::Remap => {
                let uffd = Uffd::for_device_memory()?;
                uffd.register(mapping.start(), bytes, false)?;
                Some(uffd)
            }
        };
        Ok(DeviceMemory { mapping, uffd })
    }

    /// The page at a faulting host address.
    pub(crate) fn page_at(&self, address: u64) -> Page {
        Page(((address - self.mapping.start()) / PAGE_SIZE) as u32)
    }

    fn address(&self, page: Page) -> u64 {
        self.mapping.address(page.offset())
    }

    fn shard(&self, page: Page) -> &Uffd {
        &self.shards[page.block().0 as usize % self.shards.len()]
    }

    /// Fills untouched pages with zeros and wakes whoever waits for them; `failed` gets the pages that
    /// could not be filled.
    pub(crate) fn fill_zero(
        &self,
        range: PageRange,
        fill: Fill,
        failed: impl FnMut(u32, EngineError),
    ) {
        let uffd = self.shard(range.start);
        each(range.len(), failed, |at, left| {
            let start = self.address(range.start.plus(at));
            let len = u64::from(left) * PAGE_SIZE;
            // SAFETY: the pages are locked by the caller and untouched; the zeros are a whole block.
            let progress = unsafe {
                match fill {
                    Fill::ZeroPage => uffd.zeropage(start, len),
                    Fill::Memory => uffd.copy(start, self.zeros.start(), len, false),
                    Fill::ReadOnly => uffd.copy(start, self.zeros.start(), len, true),
                }
            };
            if progress.error == Some(libc::EEXIST) && progress.done == 0 {
                // Somebody filled it already (the race checklist's EEXIST): the contents are there, so
                // whoever sleeps for it can go on.
                self.wake(uffd, start, PAGE_SIZE);
                return Progress {
                    done: PAGE_SIZE,
                    error: None,
                };
            }
            progress
        });
    }

    /// Step 1 towards the device: after it no CPU can change the pages, and the frames hold the contents.
    pub(crate) fn take(
        &self,
        run: Run,
        device: &DeviceMemory,
        mut failed: impl FnMut(u32, EngineError),
    ) {
        match &device.uffd {
            Some(uffd) => each(run.pages, failed, |at, left| {
                let part = Run {
                    pages: left,
                    ..run.skip(at)
                };
                // SAFETY: the caller holds the pages' locks and has just allocated the frames.
                unsafe {
                    uffd.move_pages(
                        device.address(part.frame),
                        self.address(part.page),
                        part.bytes(),
                    )
                }
            }),
            None => {
                let start = self.address(run.page);
                if let Err(e) = self.shard(run.page).write_protect(start, run.bytes(), true) {
                    // Part of the range may be protected; nobody would answer for that.
                    self.lift_protection(run);
                    let error = EngineError::Unexpected(e.raw_os_error().unwrap_or(libc::EIO));
                    (0..run.pages).for_each(|i| failed(i, error));
                    return;
                }
                // SAFETY: the source is present (system pages always are) and now changes no more;
                // the frames are the caller's. The two mappings do not overlap.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        start as *const u8,
                        device.address(run.frame) as *mut u8,
                        run.bytes() as usize,
                    );
                }
            }
        }
    }

    /// Step 2 towards the device: the guest's copy goes. Cannot fail.
    pub(crate) fn take_commit(&self, run: Run) {
        if self.engine == Engine::Copy {
            // SAFETY: the frames hold the contents and the residency word is about to say so.
            unsafe { self.mapping.discard(run.page.offset(), run.bytes()) };
        }
    }

    /// Undoes step 1; `stuck` gets the pages whose contents could not be brought back and are still in
    /// their frames.
    pub(crate) fn take_rollback(
        &self,
        run: Run,
        device: &DeviceMemory,
        mut stuck: impl FnMut(u32),
    ) {
        if device.uffd.is_none() {
            self.lift_protection(run);
            return;
        }
        self.give(run, device, |at, _| stuck(at));
    }

    /// Lets CPUs write again, where they may.
    fn lift_protection(&self, run: Run) {
        if !run.read_only {
            // Fails only for ranges that are not registered, which these are.
            let _ = self.protect(PageRange::with_len(run.page, run.pages), false);
        }
    }

    /// Keeps CPUs from writing these pages of one block, or lets them again and wakes the writers. The pages are
    /// present.
    pub(crate) fn protect(&self, range: PageRange, protect: bool) -> std::io::Result<()> {
        let len = u64::from(range.len()) * PAGE_SIZE;
        self.shard(range.start)
            .write_protect(self.address(range.start), len, protect)
    }

    /// Towards the system: fills the missing guest pages from the frames, atomically towards CPUs, and
    /// wakes whoever waits for them. Read-only pages are copied by both engines, because a move cannot protect
    /// the page in the same step: their frames hold dead contents afterwards.
    pub(crate) fn give(
        &self,
        run: Run,
        device: &DeviceMemory,
        failed: impl FnMut(u32, EngineError),
    ) {
        let uffd = self.shard(run.page);
        each(run.pages, failed, |at, left| {
            let part = Run {
                pages: left,
                ..run.skip(at)
            };
            let (dst, src) = (self.address(part.page), device.address(part.frame));
            // SAFETY: the caller holds the pages' locks and the word says that the frames hold the
            // contents and the guest pages are missing.
            unsafe {
                match &device.uffd {
                    Some(_) if !run.read_only => uffd.move_pages(dst, src, part.bytes()),
                    _ => uffd.copy(dst, src, part.bytes(), run.read_only),
                }
            }
        });
    }

    /// The guest needs the contents of these system pages no longer: their memory goes back to the host.
    pub(crate) fn discard(&self, range: PageRange) {
        let (offset, len) = (range.start.offset(), u64::from(range.len()) * PAGE_SIZE);
        // SAFETY: the caller holds the pages' locks and the guest has declared the contents dead.
        unsafe {
            match self.is_shared(range.start) {
                true => self.mapping.discard_shared(offset, len),
                false => self.mapping.discard(offset, len),
            }
        };
    }

    /// Wakes CPUs that sleep in faults on these pages of one block; they re-execute the access.
    pub(crate) fn wake_range(&self, range: PageRange) {
        let len = u64::from(range.len()) * PAGE_SIZE;
        self.wake(self.shard(range.start), self.address(range.start), len);
    }

    fn wake(&self, uffd: &Uffd, start: u64, len: u64) {
        // Fails only for ranges that are not registered; ours is until the end.
        let _ = uffd.wake(start, len);
    }
}

impl WakeFaults for Arc<GuestMemory> {
    fn wake_faults(&self, range: PageRange) {
        self.wake_range(range);
    }
}

impl DeviceMemory {
    pub(crate) fn address(&self, frame: Frame) -> u64 {
        self.mapping.address(u64::from(frame.0) * PAGE_SIZE)
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Makes the frames hold zeros. They are free or just allocated.
    pub(crate) fn fill_zero(
        &self,
        frame: Frame,
        frames: u32,
        failed: impl FnMut(u32, EngineError),
    ) {
        match &self.uffd {
            None => {
                // SAFETY: the frames are inside the mapping and the caller's alone.
                unsafe {
                    std::ptr::write_bytes(
                        self.address(frame) as *mut u8,
                        0,
                        frames as usize * PAGE_SIZE as usize,
                    );
                }
            }
            Some(uffd) => each(frames, failed, |at, left| {
                let start = self.address(Frame(frame.0 + at));
                // SAFETY: free frames are missing pages under this engine; these are the caller's.
                unsafe { uffd.zeropage(start, u64::from(left) * PAGE_SIZE) }
            }),
        }
    }

    /// The contents of these frames are dead; makes them ready for reuse.
    pub(crate) fn scrub(&self, frame: Frame, frames: u32) {
        if self.uffd.is_some() {
            // SAFETY: the caller says that the contents are dead.
            unsafe {
                self.mapping.discard(
                    u64::from(frame.0) * PAGE_SIZE,
                    u64::from(frames) * PAGE_SIZE,
                )
            };
        }
    }
}

/// Drives a ranged kernel call over `pages` pages: goes on after partial progress, repeats on `EAGAIN` a
/// bounded number of times, and reports and skips pages that fail otherwise.
fn each(
    pages: u32,
    mut failed: impl FnMut(u32, EngineError),
    mut call: impl FnMut(u32, u32) -> Progress,
) {
    let mut at = 0;
    let mut again = 0;
    while at < pages {
        let progress = call(at, pages - at);
        let done = (progress.done / PAGE_SIZE) as u32;
        at += done;
        if done > 0 {
            again = 0;
        }
        match progress.error {
            None => {}
            Some(libc::EAGAIN) if done > 0 => {}
            Some(libc::EAGAIN) if again < AGAIN_ATTEMPTS => {
                again += 1;
                std::thread::yield_now();
            }
            Some(errno) if at < pages => {
                failed(
                    at,
                    match errno {
                        libc::EAGAIN | libc::EBUSY => EngineError::Busy,
                        libc::ENOMEM => EngineError::NoMemory,
                        other => EngineError::Unexpected(other),
                    },
                );
                at += 1;
                again = 0;
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_progress_is_continued_and_failing_pages_are_skipped() {
        let mut answers = vec![
            Progress {
                done: 2 * PAGE_SIZE,
                error: Some(libc::EAGAIN),
            },
            Progress {
                done: 0,
                error: Some(libc::EAGAIN),
            },
            Progress {
                done: PAGE_SIZE,
                error: Some(libc::EBUSY),
            },
            Progress {
                done: 4 * PAGE_SIZE,
                error: None,
            },
        ]
        .into_iter();
        let mut calls = Vec::new();
        let mut failures = Vec::new();
        each(
            8,
            |page, error| failures.push((page, error)),
            |at, left| {
                calls.push((at, left));
                answers.next().unwrap()
            },
        );
        assert_eq!(calls, [(0, 8), (2, 6), (2, 6), (4, 4)]);
        assert_eq!(failures, [(3, EngineError::Busy)]);
    }

    #[test]
    fn endless_eagain_is_given_up() {
        let mut failures = 0;
        each(
            2,
            |_, e| failures += (e == EngineError::Busy) as u32,
            |_, _| Progress {
                done: 0,
                error: Some(libc::EAGAIN),
            },
        );
        assert_eq!(failures, 2);
    }
}
