//! The memory of one device.

use std::io;
use std::sync::Arc;

use super::host_failure::HostFailures;
use super::ranged::{EngineError, each};
use crate::memory::Engine;
use crate::memory::mmap::Mapping;
use crate::memory::uffd::Uffd;
use crate::pages::{Error, Frame, PAGE_SIZE};

/// One device's memory.
pub(crate) struct DeviceMemory {
    engine: Engine,
    mapping: Mapping,
    /// Engine `remap`: frames are filled by moves, which need a registered destination.
    pub(super) uffd: Option<Uffd>,
    host_failures: Arc<HostFailures>,
}

impl DeviceMemory {
    pub(super) fn new(
        bytes: u64,
        engine: Engine,
        host_failures: Arc<HostFailures>,
    ) -> Result<Self, Error> {
        let mapping = Mapping::new(bytes, "hmm-device")?;
        let uffd = match engine {
            Engine::Copy | Engine::Model => None,
            Engine::Remap => {
                let uffd = Uffd::for_device_memory()?;
                uffd.register(mapping.start(), bytes, false)?;
                Some(uffd)
            }
        };
        Ok(DeviceMemory {
            engine,
            mapping,
            uffd,
            host_failures,
        })
    }

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
        mut failed: impl FnMut(u32, EngineError),
    ) {
        match &self.uffd {
            None if self.engine == Engine::Model => {}
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
            Some(uffd) => {
                let zero = |at: u32, n: u32| {
                    let start = self.address(Frame(frame.0 + at));
                    // SAFETY: free frames are missing pages under this engine; these are the caller's.
                    unsafe { uffd.zeropage(start, u64::from(n) * PAGE_SIZE) }
                };
                // What is there already must not be taken for the zeros: away with it, and once more.
                let again = |at: u32, _| {
                    if self.forget(Frame(frame.0 + at), 1).is_ok() {
                        each(1, |_, error| failed(at, error), |_, _| zero(at, 1));
                    } else {
                        failed(at, EngineError::InTheWay);
                    }
                };
                each(frames, again, zero);
            }
        }
    }

    /// The contents of these frames are dead, or have been copied: their memory goes back to the host. On an error, which is noted
    /// as a failure of the host, the frames may still hold them.
    pub(crate) fn forget(&self, frame: Frame, frames: u32) -> io::Result<()> {
        if self.engine == Engine::Model {
            return Ok(());
        }
        let (offset, len) = (
            u64::from(frame.0) * PAGE_SIZE,
            u64::from(frames) * PAGE_SIZE,
        );
        // SAFETY: the caller, whose frames they are, says so.
        let done = unsafe { self.mapping.discard(offset, len) };
        done.inspect_err(|error| {
            let call = "madvise(MADV_DONTNEED), giving device memory back to the host";
            self.host_failures.note(call, error);
        })
    }
}
