//! The memory of one device.

use std::io;
use std::sync::Arc;

use super::host_failure::HostFailures;
use super::ranged::{EngineError, each};
use crate::memory::Engine;
use crate::memory::mmap::MemoryMap;
use crate::memory::uffd::{FaultKinds, Uffd};
use crate::pages::{Error, Frame, PAGE_SIZE};

/// One device's memory.
pub(crate) struct DeviceMemory {
    engine: Engine,
    mapping: MemoryMap,
    /// With engine `remap`: frames are filled by moves, and the destination of a move must be registered.
    uffd: Option<Uffd>,
    host_failures: Arc<HostFailures>,
}

impl DeviceMemory {
    pub(super) fn new(
        bytes: u64,
        engine: Engine,
        host_failures: Arc<HostFailures>,
    ) -> Result<Self, Error> {
        let mapping = MemoryMap::new(bytes, "hmm-device")?;
        let uffd = match engine {
            Engine::Copy | Engine::Model => None,
            Engine::Remap => {
                let uffd = Uffd::for_device_memory()?;
                uffd.register(mapping.start(), bytes, FaultKinds::Missing)?;
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

    /// The userfaultfd of the frames, with engine `remap`.
    pub(super) fn uffd(&self) -> &Uffd {
        let uffd = self.uffd.as_ref();
        uffd.expect("engine remap registers device memory")
    }

    pub(crate) fn address(&self, frame: Frame) -> u64 {
        self.mapping.address(u64::from(frame.0) * PAGE_SIZE)
    }

    pub(crate) fn mapping(&self) -> &MemoryMap {
        &self.mapping
    }

    /// Fills the frames with zeros. They must be free or just allocated. `failed` gets the index and error of each
    /// failure.
    pub(crate) fn fill_zero(
        &self,
        frame: Frame,
        frames: u32,
        mut failed: impl FnMut(u32, EngineError),
    ) {
        match &self.uffd {
            None if self.engine == Engine::Model => {}
            None => {
                // SAFETY: the frames are inside the mapping, and only the caller uses them.
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
                    // SAFETY: free frames are missing pages under this engine, and only the caller uses these.
                    unsafe { uffd.zeropage(start, u64::from(n) * PAGE_SIZE) }
                };
                // A page that is already in the frame has other contents: drop it, then fill the frame once more.
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

    /// Gives the memory of these frames back to the host. Their contents must be dead or copied. On an error, which
    /// is noted as a failure of the host, the frames may still hold their contents.
    pub(crate) fn forget(&self, frame: Frame, frames: u32) -> io::Result<()> {
        if self.engine == Engine::Model {
            return Ok(());
        }
        let (offset, len) = (
            u64::from(frame.0) * PAGE_SIZE,
            u64::from(frames) * PAGE_SIZE,
        );
        // SAFETY: the frames belong to the caller, who says that their contents are dead.
        let done = unsafe { self.mapping.discard(offset, len) };
        done.inspect_err(|error| {
            let call = "madvise(MADV_DONTNEED), giving device memory back to the host";
            self.host_failures.note(call, error);
        })
    }
}
