//! Devices that tell of their accesses, also of such that there cannot have been.

use std::sync::Arc;

use hmm_backend::driver::DefaultDriver;
use hmm_backend::mirror::{DeviceMmu, Mirror};
use hmm_backend::pages::{Access, DeviceId, Fidelity, PAGE_SIZE, Page, PageRange, Visit};
use hmm_backend::policy::PolicySpec;
use hmm_backend::{BackendConfig, ModelBackend, snapshot};
use proptest::prelude::*;

/// Says what it is given, whatever it is asked.
struct Liar {
    fidelity: Fidelity,
    bits: Vec<(Page, Access)>,
    visits: Vec<Visit>,
}

impl DeviceMmu for Liar {
    fn invalidate(&mut self, _: PageRange) {}

    fn fidelity(&self) -> Fidelity {
        self.fidelity
    }

    fn take_bits(&mut self, _: PageRange, each: &mut dyn FnMut(Page, Access)) {
        for (page, access) in &self.bits {
            each(*page, *access);
        }
    }

    fn take_visits(&mut self, each: &mut dyn FnMut(Visit)) {
        self.visits.iter().copied().for_each(each);
    }
}

const PAGES: u32 = 512;

fn liar(
    fidelity: Fidelity,
    bits: Vec<(Page, Access)>,
    visits: Vec<Visit>,
    eviction: &str,
) -> (ModelBackend, Mirror<Liar>) {
    let mut config = BackendConfig::new(u64::from(PAGES) * PAGE_SIZE);
    let policy: PolicySpec = format!("on-demand+{eviction}+timeslice:min=0us")
        .parse()
        .unwrap();
    config.policy = Arc::new(policy);
    config.eviction_batch = 1;
    let model = ModelBackend::new(config).unwrap();
    let device = model
        .backend()
        .attach(16 * PAGE_SIZE, Arc::new(DefaultDriver))
        .unwrap();
    let mmu = Liar {
        fidelity,
        bits,
        visits,
    };
    let mirror = model.backend().mirror(device, mmu).unwrap();
    (model, mirror)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Nonsense changes at most who is evicted: all accesses succeed, and the device is detached.
    #[test]
    fn nonsense_of_a_device_harms_nothing(
        told in prop::collection::vec((any::<u32>(), 0u32..600, any::<bool>(), any::<u32>()), 0..20),
        accesses in prop::collection::vec(0..PAGES, 1..200),
        fidelity in prop::sample::select(Fidelity::EACH.to_vec()),
        eviction in prop::sample::select(vec!["lru", "fifo", "clock", "lfu", "s3-fifo", "by-migration"]),
    ) {
        let page = |(wild, near, far, _): &(u32, u32, bool, u32)| match far {
            true => Page(*wild),
            false => Page(*near),
        };
        let bits = told.iter().map(|it| (page(it), Access::Write)).collect();
        let visits: Vec<Visit> = told
            .iter()
            .map(|it| Visit { page: page(it), access: Access::Read, times: it.3 })
            .collect();
        let beyond = visits.iter().filter(|visit| visit.page.0 >= PAGES).count() as u64;
        let (model, mut mirror) = liar(fidelity, bits, visits, eviction);
        for page in &accesses {
            mirror.fault(Page(*page), Access::Read, |_, mapping| assert_eq!(mapping.page, Page(*page))).unwrap();
        }
        let counters = model.backend().stats().counters;
        if fidelity == Fidelity::All {
            prop_assert!(counters.visits_cut >= beyond * accesses.len() as u64);
        }
        prop_assert_eq!(counters.bits_read > 0 && fidelity != Fidelity::Bits, false);
        let device = DeviceId(0);
        model.backend().detach(device).unwrap();
        mirror.tell_visits();
        let error = mirror.fault(Page(0), Access::Read, |_, _| {});
        prop_assert!(error.is_err());
    }
}

/// LRU with bits: what was used since the last look stays.
#[test]
fn bits_decide_who_is_evicted() {
    for (eviction, stays) in [
        ("lru", true),
        ("clock", true),
        ("lfu", true),
        ("fifo", false),
    ] {
        let bits = vec![(Page(0), Access::Read)];
        let (model, mut mirror) = liar(Fidelity::Bits, bits, Vec::new(), eviction);
        for page in 0..40 {
            mirror.fault(Page(page), Access::Read, |_, _| {}).unwrap();
        }
        let page = PageRange::single(Page(0));
        let place = model.backend().snapshot(DeviceId(0), page).unwrap()[0];
        let is_there = place & 0xf0 == snapshot::DEVICE_LOCAL;
        assert_eq!(is_there, stays, "{eviction}: {place:#x}");
    }
}
