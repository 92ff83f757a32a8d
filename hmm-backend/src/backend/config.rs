//! How a backend is made.

use std::sync::Arc;

use crate::memory::{EngineChoice, KernelAnswers};
use crate::pages::{BLOCK_PAGES, PAGE_SIZE, Page, PageRange};
use crate::policy::{LinkModel, PolicyFactory, PolicySpec};

/// How to make a [`Backend`].
pub struct BackendConfig {
    /// Bytes of managed memory, a multiple of 2 MiB.
    pub memory: u64,
    /// How many of these bytes, at the end, are memory shared with others (a multiple of 2 MiB): devices reach it in
    /// place, and it never moves.
    pub shared: u64,
    /// Pages that do not exist, though they have numbers: nobody can reach them. For guests whose memory is not in one piece, so that
    /// addresses and pages keep their distance.
    pub hole: PageRange,
    /// Pages that are in system memory from the start, as zeros: for what is about to be written as a whole, by a boot loader
    /// for instance. Any other page costs a fault when it is first touched.
    pub present: Vec<PageRange>,
    /// A CPU's first touch of a block in which no page has contents fills all of it, whatever the policy says; with engine
    /// `remap` in a huge page of the host, if it has one. For guests that use their memory by and large, like Linux: fewer
    /// faults, quicker page tables. Otherwise only pages that are touched or prefetched come into being.
    pub fill_blocks: bool,
    /// How pages are moved.
    pub engine: EngineChoice,
    /// Number of userfaultfds that managed memory is spread over, block by block; more than one helps
    /// only with many vCPUs.
    pub shards: usize,
    /// Bytes of host memory that engine `copy` may keep beyond guest and device memory, to bring contents back
    /// in pages that have been used before. 0: none, and pages are copied in place, as on kernels
    /// without `UFFDIO_MOVE`. Engine `remap` needs none.
    pub recycled: u64,
    /// What the policy wants prefetched for a CPU fault is there before the CPU goes on, instead of when nothing more
    /// urgent is to be done. Slower, but what migrates then depends on the accesses alone, not on who is faster: a
    /// replay of a single CPU's faults makes the same migrations.
    pub lockstep: bool,
    /// For tests: answers that the kernel gives only now and then.
    pub kernel: Option<Arc<dyn KernelAnswers>>,
    /// What to migrate and evict.
    pub policy: Arc<dyn PolicyFactory>,
    /// What a migration costs on the hardware that is modelled: for policies to look at.
    pub link: LinkModel,
    /// Events kept for each thread until they are drained; 0 for none.
    pub events: usize,
}

impl BackendConfig {
    /// The defaults for this much memory.
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
            link: LinkModel::default(),
            events: 0,
        }
    }
}

/// One block: enough for the folios of a fault, and little beside the VMM's other memory.
const DEFAULT_RECYCLED: u64 = BLOCK_PAGES * PAGE_SIZE;
