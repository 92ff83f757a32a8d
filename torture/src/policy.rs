//! Policies for torture: one drawn by the seed, or one that mixes good advice with nonsense.

use std::sync::Arc;
use std::time::Duration;

use hmm_backend::pages::{Frame, Page, PageRange, PageSet, Place};
use hmm_backend::policy::{
    AccessedBits, Advice, BlockFault, BlockView, EvictionPolicy, FaultPolicy, PolicyFactory,
    PolicySpec, Wish,
};

use super::random::Random;

/// What `random` draws from; the chaotic policy is one more.
const SPECS: [&str; 9] = [
    "on-demand+timeslice:min=0us",
    "on-demand+timeslice:min=300us",
    "density+timeslice:min=0us",
    "density:threshold=1+timeslice:min=50us",
    "density:threshold=90,min_faults=4",
    "density+thrash:lapse=5ms,nap=100us,pin=2ms,pin_threshold=2+s3-fifo",
    "access-counter:threshold=8+hints+clock",
    "sequential:min_run=1+lfu+thrash:threshold=1,pin_threshold=1+timeslice:min=0us",
    "first-touch+by-migration",
];

/// The policy that the seed draws.
pub(crate) fn drawn(seed: u64) -> Arc<dyn PolicyFactory> {
    let choice = Random::new(seed, 1).below(SPECS.len() as u64 + 1) as usize;
    match SPECS.get(choice).map(|spec| spec.parse::<PolicySpec>()) {
        Some(Ok(spec)) => Arc::new(spec),
        _ => Arc::new(Chaotic { seed }),
    }
}

/// Advice of different policies in turn, and some that no policy would give: the backend must stay correct.
pub(crate) struct Chaotic {
    pub(crate) seed: u64,
}

impl PolicyFactory for Chaotic {
    fn fault_policy(&self) -> Box<dyn FaultPolicy> {
        let inner = SPECS
            .iter()
            .filter_map(|spec| spec.parse::<PolicySpec>().ok());
        Box::new(ChaoticFaults {
            random: Random::new(self.seed, 2),
            inner: inner.map(|spec| spec.fault_policy()).collect(),
        })
    }

    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy> {
        Box::new(ChaoticEviction {
            random: Random::new(self.seed, 3),
            inner: PolicySpec::default().eviction_policy(frames),
            frames,
        })
    }

    fn name(&self) -> String {
        "chaotic".to_owned()
    }
}

struct ChaoticFaults {
    random: Random,
    inner: Vec<Box<dyn FaultPolicy>>,
}

impl FaultPolicy for ChaoticFaults {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        let random = &self.random;
        if !self.inner.is_empty() && !random.one_in(4) {
            let choice = random.below(self.inner.len() as u64) as usize;
            return self.inner[choice].advise(fault, view);
        }
        // Also pages that do not exist, that are there already, or that fault.
        let start = random.below(512) as usize;
        let len = (1 << random.below(8)).min(512 - start);
        let time = |random: &Random| match random.below(4096) {
            // Cut to a second, which is long enough for a run to feel it.
            0 if random.one_in(64) => Duration::MAX,
            n if n < 512 => Duration::from_micros(n),
            _ => Duration::ZERO,
        };
        Advice {
            stay: random.one_in(2),
            prefetch: PageSet::from_range(start..start + len),
            hold: time(random),
            throttle: time(random),
            migrate: match random.below(16) {
                0 => vec![self.wish(fault)],
                _ => Vec::new(),
            },
            duplicate: match random.one_in(2) {
                true => PageSet::from_range(start / 2..512),
                false => PageSet::EMPTY,
            },
        }
    }
}

impl ChaoticFaults {
    /// Some pages, of any length, on either side of the end of memory; to somewhere.
    fn wish(&self, fault: &BlockFault) -> Wish {
        let first = fault.block.first_page().0 + self.random.below(2048) as u32;
        Wish {
            pages: PageRange::with_len(Page(first), self.random.below(1 << 13) as u32),
            to: match self.random.one_in(2) {
                true => Place::System,
                false => fault.to,
            },
        }
    }
}

struct ChaoticEviction {
    random: Random,
    inner: Box<dyn EvictionPolicy>,
    frames: u32,
}

impl EvictionPolicy for ChaoticEviction {
    fn allocated(&mut self, head: Frame, order: u8, page: Page) {
        self.inner.allocated(head, order, page);
    }

    fn touched(&mut self, head: Frame, times: u32) {
        self.inner.touched(head, times);
    }

    fn refused(&mut self, head: Frame) {
        self.inner.refused(head);
    }

    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        self.inner.split(head, upper, order);
    }

    fn freed(&mut self, head: Frame) {
        self.inner.freed(head);
    }

    /// Sometimes with frames that hold no folio, or that do not exist.
    fn victims(&mut self, frames: u32, bits: &mut dyn AccessedBits) -> Vec<Frame> {
        let mut victims = self.inner.victims(frames, bits);
        if self.random.one_in(4) {
            let any = || Frame(self.random.below(u64::from(self.frames) + 2) as u32);
            victims.extend([any(), any()]);
        }
        victims
    }
}
