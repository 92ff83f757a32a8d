//! The steps of a sequence, and the strategies that draw them.

use proptest::prelude::*;

use crate::world::{EXACT, PAGES};

#[derive(Clone, Debug)]
pub enum Op {
    CpuRead(u32),
    CpuWrite(u32),
    DeviceRead(usize, u32),
    DeviceWrite(usize, u32),
    Atomic(usize, u32),
    ToDevice(usize, u32, u32),
    ToSystem(u32, u32),
    Free(u32, u32),
    Pin(u32, u32),
    Unpin(usize),
    ReadOnly(u32, u32, bool),
    /// Hints that pages are mostly read, or not.
    ReadMostly(u32, u32, bool),
    Fail(u32),
    Detach(usize),
    Inject(usize, Fault),
}

/// The failure that a driver injects into its next call.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::enum_variant_names, reason = "the names say which step fails")]
pub enum Fault {
    RefuseToRam,
    AbandonToRam,
    RefuseToDevice,
    FailAfterCopy,
    RefuseToFlush,
}

fn op() -> impl Strategy<Value = Op> {
    // Draw few different pages, so that steps meet on the same page: around the start and across the border of
    // the two blocks.
    let page = || prop_oneof![3 => 0u32..24, 2 => 500u32..524, 1 => 0..PAGES];
    let len = || prop_oneof![4 => 1u32..8, 2 => 1u32..64, 1 => Just(512u32)];
    let device = || 0usize..3;
    let fault = prop_oneof![
        Just(Fault::RefuseToRam),
        Just(Fault::AbandonToRam),
        Just(Fault::RefuseToDevice),
        Just(Fault::FailAfterCopy),
        Just(Fault::RefuseToFlush)
    ];
    prop_oneof![
        4 => page().prop_map(Op::CpuRead),
        6 => page().prop_map(Op::CpuWrite),
        4 => (device(), page()).prop_map(|(d, p)| Op::DeviceRead(d, p)),
        6 => (device(), page()).prop_map(|(d, p)| Op::DeviceWrite(d, p)),
        3 => (device(), page()).prop_map(|(d, p)| Op::Atomic(d, p)),
        6 => (device(), page(), len()).prop_map(|(d, p, n)| Op::ToDevice(d, p, n)),
        3 => (page(), len()).prop_map(|(p, n)| Op::ToSystem(p, n)),
        3 => (page(), len()).prop_map(|(p, n)| Op::Free(p, n)),
        2 => (page(), 1u32..5).prop_map(|(p, n)| Op::Pin(p, n)),
        2 => (0usize..8).prop_map(Op::Unpin),
        1 => (page(), len(), any::<bool>()).prop_map(|(p, n, on)| Op::ReadOnly(p, n, on)),
        3 => (page(), len(), prop::bool::weighted(0.8))
            .prop_map(|(p, n, on)| Op::ReadMostly(p, n, on)),
        1 => page().prop_map(Op::Fail),
        1 => device().prop_map(Op::Detach),
        1 => (device(), fault).prop_map(|(d, f)| Op::Inject(d, f)),
    ]
}

/// Draws a case: the devices' sizes, the policy, the steps.
pub fn case() -> impl Strategy<Value = ([u32; 3], &'static str, Vec<Op>)> {
    let size = || prop::sample::select(vec![1u32, 8, 16, 37, 100, 600]);
    let policy = prop::sample::select(vec![
        EXACT,
        EXACT,
        "on-demand+hints+timeslice:min=50us",
        "density+hints+timeslice:min=0us",
        "density:threshold=20+timeslice:min=20us",
        "density+hints+thrash:threshold=1,lapse=500ms,nap=20us,pin=0,pin_threshold=1+s3-fifo+timeslice:min=0us",
        "first-touch+lfu",
        "density+by-migration+timeslice:min=0us",
    ]);
    let sizes = (size(), size(), size()).prop_map(|(a, b, c)| [a, b, c]);
    (sizes, policy, prop::collection::vec(op(), 1..60))
}
