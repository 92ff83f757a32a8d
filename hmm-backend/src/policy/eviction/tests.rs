//! A property of all eviction policies.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::pages::{Frame, Page};
use crate::policy::catalogue::{EVICTION, POLICIES};
use crate::policy::{EvictionPolicy, NoBits, PolicyFactory, PolicySpec};

const FRAMES: u32 = 64;

/// Fills a device and replays a past on it: pages arrive, some of them repeatedly, are used and evicted.
fn lived_in(policy: &mut dyn EvictionPolicy, past: &[(u8, u16)]) {
    for frame in 0..FRAMES {
        policy.allocated(Frame(frame), 0, Page(frame));
    }
    for (op, pick) in past {
        let pick = u32::from(*pick);
        match op {
            0 => {
                let victims = policy.victims(pick % 8, &mut NoBits);
                for (n, head) in (0..).zip(victims) {
                    policy.freed(head);
                    policy.allocated(head, 0, Page((pick / 8 + n) % 96));
                }
            }
            _ => policy.touched(Frame(pick % FRAMES), 1),
        }
    }
}

proptest! {
    /// The backend reports device memory as full after as many refusals as there are frames. Until then, the policy
    /// must have proposed every folio.
    #[test]
    fn every_folio_is_proposed_while_all_are_refused(
        past in prop::collection::vec((0u8..4, any::<u16>()), 0..200),
        batch in 1u32..20,
    ) {
        for info in POLICIES.iter().filter(|info| info.kind == EVICTION) {
            let spec: PolicySpec = info.name.parse().unwrap();
            let mut policy = spec.eviction_policy(FRAMES);
            lived_in(&mut *policy, &past);
            let mut proposed = BTreeSet::new();
            let mut tried = 0;
            while tried < FRAMES as usize {
                let victims = policy.victims(batch, &mut NoBits);
                tried += victims.len();
                for head in victims {
                    policy.refused(head);
                    proposed.insert(head);
                }
            }
            prop_assert_eq!(proposed.len(), FRAMES as usize, "{}", info.name);
        }
    }
}
