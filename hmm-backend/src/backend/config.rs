//! The configuration of a backend.

use std::sync::Arc;

use crate::memory::{EngineChoice, KernelAnswers};
use crate::migrate::Pacing;
use crate::pages::{BLOCK_PAGES, PAGE_SIZE, Page, PageRange};
use crate::policy::{LinkMatrix, PolicyFactory, PolicySpec};

/// The configuration for [`crate::Backend::new`].
pub struct BackendConfig {
    /// Bytes of managed memory, a multiple of 2 MiB.
    pub memory: u64,
    /// How many of these bytes, at the end, are shared with other processes (a multiple of 2 MiB). Devices
    /// reach shared memory in place, and it never migrates.
    pub shared: u64,
    /// The hole: page numbers that have no memory behind them, so no CPU and no device can access them. For
    /// guests whose memory is not in one piece: with the hole, page numbers and guest addresses keep a constant
    /// distance.
    pub hole: PageRange,
    /// Pages that are in system memory from the start, filled with zeros. For pages that a boot loader, for
    /// instance, is about to write as a whole: any other page costs a fault at its first touch.
    pub present: Vec<PageRange>,
    /// Whether a CPU's first touch of a block in which no page has contents fills the whole block, whatever the
    /// policy says; engine `remap` then uses a huge page of the host, if there is one. For guests that use most
    /// of their memory, like Linux: there are fewer faults, and page tables are faster. Without it, only pages
    /// that are touched or prefetched are filled.
    pub fill_blocks: bool,
    /// The engine that moves pages.
    pub engine: EngineChoice,
    /// Number of userfaultfds. The blocks of managed memory are distributed over them; more than one helps only
    /// with many vCPUs.
    pub shards: usize,
    /// Bytes of host memory that engine `copy` may keep, beyond guest and device memory, as pages to bring
    /// contents back in. With 0 it keeps none and copies pages in place, as on kernels without `UFFDIO_MOVE`.
    /// Engine `remap` needs none.
    pub recycled: u64,
    /// Whether the prefetches of a CPU fault finish before the CPU resumes, instead of running later when no
    /// fault waits. Slower, but the accesses alone then decide what migrates, not the speed of the threads: a
    /// replay of a single CPU's faults makes the same migrations.
    pub lockstep: bool,
    /// For tests: replaces answers of the kernel, to produce those that it gives only rarely.
    pub kernel: Option<Arc<dyn KernelAnswers>>,
    /// The policy that decides what to migrate and to evict.
    pub policy: Arc<dyn PolicyFactory>,
    /// The costs of transfers between system memory and devices, and between devices, for policies and accounts.
    pub links: LinkMatrix,
    /// Whether transfers take that time.
    pub pacing: Pacing,
    /// The least number of frames that are evicted at a time. Neighbours move together, and the next faults find room; with 1,
    /// device memory is as full as it can be.
    pub eviction_batch: u32,
    /// How many events are kept for each thread until they are drained; 0 for none.
    pub events: usize,
}

impl BackendConfig {
    /// Returns the default configuration for `memory` bytes of managed memory.
    pub fn new(memory: u64) -> BackendConfig {
        BackendConfig {
            memory,
            shared: 0,
            hole: PageRange::with_len(Page(0), 0),
            present: Vec::new(),
            fill_blocks: false,
            engine: EngineChoice::Auto,
            shards: 1,
            recycled: DEFAULT_RECYCLED,
            lockstep: false,
            kernel: None,
            policy: Arc::new(PolicySpec::default()),
            links: LinkMatrix::default(),
            pacing: Pacing::default(),
            eviction_batch: EVICTION_BATCH,
            events: 0,
        }
    }
}

/// The default of [`BackendConfig::eviction_batch`].
pub const EVICTION_BATCH: u32 = 64;

/// One block: enough for the folios of a fault, and small beside the VMM's other memory.
const DEFAULT_RECYCLED: u64 = BLOCK_PAGES * PAGE_SIZE;
