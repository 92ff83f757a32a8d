use super::*;
use proptest::prelude::*;

fn op() -> impl Strategy<Value = Op> {
    let page = || 0..PAGES as u8;
    let lock = || 0u8..8;
    prop_oneof![
        4 => page().prop_map(Op::Lock),
        2 => lock().prop_map(Op::Unlock),
        2 => lock().prop_map(Op::Halve),
        2 => (lock(), page(), 0..PAGES as u8)
            .prop_map(|(lock, from, len)| Op::Carve { lock, from, len }),
        4 => (page(), 0u8..6, 0u8..64, any::<u32>()).prop_map(|(page, order, device, frame)| {
            Op::ToDevice { page, order, device, frame }
        }),
        2 => (lock(), any::<u32>()).prop_map(|(lock, until)| Op::ToSystem { lock, until }),
        2 => (lock(), any::<u32>()).prop_map(|(lock, until)| Op::ToSystemPages { lock, until }),
        2 => lock().prop_map(Op::Duplicate),
        1 => lock().prop_map(Op::Alone),
        1 => lock().prop_map(Op::Free),
        1 => lock().prop_map(Op::Poison),
        1 => (lock(), any::<bool>())
            .prop_map(|(lock, value)| Op::SetReadOnly { lock, value }),
        1 => lock().prop_map(Op::ClearMirrored),
        2 => page().prop_map(Op::Mark),
        3 => page().prop_map(Op::Pin),
        1 => page().prop_map(Op::Unpin),
        2 => page().prop_map(Op::Announce),
    ]
}

/// A short script without proptest, whose overhead would take minutes under Miri.
#[test]
fn a_fixed_script_agrees() {
    let mut state = 1u64;
    let mut draw = |below: u64| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 20) % below) as u8
    };
    let mut ops = Vec::new();
    for _ in 0..if cfg!(miri) { 150 } else { 5000 } {
        let (a, b, c) = (draw(PAGES.into()), draw(8), draw(PAGES.into()));
        ops.push(match draw(17) {
            0 | 1 => Op::Lock(a),
            2 => Op::Unlock(b),
            3 => Op::Halve(b),
            4 => Op::Carve {
                lock: b,
                from: a,
                len: c,
            },
            5 | 6 => Op::ToDevice {
                page: a,
                order: b,
                device: c,
                frame: 100,
            },
            7 => Op::ToSystem { lock: b, until: 5 },
            8 => Op::ToSystemPages { lock: b, until: 6 },
            9 => Op::Free(b),
            10 => Op::SetReadOnly {
                lock: b,
                value: c > 3,
            },
            11 => Op::Mark(a),
            12 => Op::Pin(a),
            13 => Op::Unpin(a),
            14 => Op::Duplicate(b),
            15 => Op::Alone(b),
            _ => Op::Announce(a),
        });
    }
    run(&ops);
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "slow there; the fixed script stands in")]
    fn the_table_agrees_with_plain_records(ops in prop::collection::vec(op(), 1..120)) {
        run(&ops);
    }
}
