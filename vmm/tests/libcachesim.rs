//! Eviction policies miss as often as those of libCacheSim, to the page, when they are told of every access.

mod cache_traces;
mod python;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use cache_traces::sides::{Optimal, libcachesim, replayed};
use cache_traces::{Random, traces};

#[test]
fn eviction_policies_miss_as_often_as_libcachesims() {
    let python = python::python();
    // Another one each time; a failure names it.
    let seed = RandomState::new().hash_one(0);
    for (shape, pages) in traces(25_000, 2500, &mut Random(seed)) {
        for frames in [100, 600] {
            let best = replayed(&pages, frames, "on-demand", Optimal::Computed).optimal;
            let mut ours = BTreeMap::from([("belady".to_owned(), best.unwrap().pages_to_device)]);
            for name in ["lru", "fifo", "clock", "lfu", "s3-fifo"] {
                let policy = format!("on-demand+{name}+timeslice:min=0us");
                let outcome = replayed(&pages, frames, &policy, Optimal::LeftOut);
                ours.insert(name.to_owned(), outcome.pages_to_device);
            }
            let theirs = libcachesim(&python, &pages, frames);
            let theirs = theirs.into_iter().map(|(name, (misses, _))| (name, misses));
            let theirs: BTreeMap<_, _> = theirs.collect();
            assert_eq!(ours, theirs, "{shape}, {frames} frames, seed {seed}");
        }
    }
}
