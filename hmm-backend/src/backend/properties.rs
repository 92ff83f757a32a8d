//! Property tests of the small pure parts, each against a simpler implementation. The residency table has a
//! script of its own (`residency::script`); allocator and eviction policies are tested beside their code.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use proptest::prelude::*;

use crate::fault::{Attempts, Deferred, Fault, History, Unresolved, sort_and_deduplicate};
use crate::pages::time::{MAX_HOLD, Tick};
use crate::pages::{
    Access, BLOCK_PAGES, Block, DeviceId, FatalCause, Frame, Hint, MAX_ORDER, Page, PageRange,
    PageSet, Permission, Place,
};
use crate::policy::{Advice, BlockFault, BlockView, PolicySpec};
use crate::residency::{BlockWords, LOCKED, MIRRORED, PIN, Placed, Residency, WAITERS, Word};

/// The counter of ticks wraps after this many microseconds.
const WRAP_US: u64 = 16 << 32;

fn indices() -> impl Strategy<Value = BTreeSet<usize>> {
    // Draws runs of indices, because page sets are made for runs.
    prop::collection::vec((0usize..512, 0usize..80), 0..6).prop_map(|runs| {
        let run = |(start, len): (usize, usize)| start..(start + len).min(512);
        runs.into_iter().flat_map(run).collect()
    })
}

fn bounds(max: usize) -> impl Strategy<Value = std::ops::Range<usize>> {
    (0..=max, 0..=max).prop_map(|(a, b)| a.min(b)..a.max(b))
}

fn set(of: &BTreeSet<usize>) -> PageSet {
    of.iter().copied().collect()
}

fn indices_of(set: &PageSet) -> BTreeSet<usize> {
    set.iter().collect()
}

proptest! {
    #[test]
    fn page_sets_are_sets(a in indices(), b in indices(), range in bounds(512), one in 0usize..512) {
        let (pa, pb) = (set(&a), set(&b));
        prop_assert_eq!(indices_of(&pa), a.clone());
        prop_assert_eq!(indices_of(&pa.union(&pb)), &a | &b);
        prop_assert_eq!(indices_of(&pa.intersection(&pb)), &a & &b);
        prop_assert_eq!(indices_of(&pa.difference(&pb)), &a - &b);
        prop_assert_eq!(pa.count(), a.len());
        prop_assert_eq!(pa.is_empty(), a.is_empty());
        prop_assert_eq!(pa.first(), a.first().copied());
        prop_assert_eq!(pa.contains(one), a.contains(&one));
        prop_assert_eq!(pa.count_in(range.clone()), a.range(range.clone()).count());
        let mut changed = pa;
        changed.insert_range(range.clone());
        prop_assert_eq!(indices_of(&changed), &a | &range.clone().collect());
        prop_assert_eq!(indices_of(&PageSet::from_range(range.clone())), range.collect());
        let (mut with, mut without) = (pa, pa);
        with.insert(one);
        without.remove(one);
        prop_assert!(with.contains(one) && !without.contains(one));
        prop_assert_eq!(with.count() - without.count(), 1);
    }

    #[test]
    fn runs_are_maximal_and_make_up_the_set(a in indices()) {
        let runs: Vec<_> = set(&a).runs().collect();
        prop_assert!(runs.iter().all(|r| !r.is_empty()));
        prop_assert!(runs.windows(2).all(|w| w[0].end < w[1].start));
        prop_assert_eq!(runs.into_iter().flatten().collect::<BTreeSet<_>>(), a);
    }

    #[test]
    fn ranges_are_runs_of_pages(a in bounds(2000), b in bounds(2000), page in 0u32..2000, order in 0..=MAX_ORDER) {
        let range = |r: &std::ops::Range<usize>| PageRange::new(Page(r.start as u32), Page(r.end as u32));
        let (ra, rb) = (range(&a), range(&b));
        prop_assert_eq!(ra.len() as usize, a.len());
        prop_assert_eq!(ra.contains(Page(page)), a.contains(&(page as usize)));
        prop_assert_eq!(ra.overlap(rb) as usize, a.clone().filter(|i| b.contains(i)).count());
        let parts: Vec<PageRange> = ra.split_by_block().collect();
        prop_assert!(parts.iter().all(|p| !p.is_empty() && p.start.block() == Page(p.end.0 - 1).block()));
        let pages: Vec<u32> = parts.iter().flat_map(|p| p.pages()).map(|p| p.0).collect();
        prop_assert_eq!(pages, (ra.start.0..ra.end.0).collect::<Vec<_>>());
        prop_assert_eq!(PageRange::new(rb.end, rb.start).len(), 0);
        let page = Page(page);
        prop_assert_eq!(page.block().page(page.index_in_block()), page);
        let head = page.folio_head(order);
        prop_assert!(head.0.is_multiple_of(1 << order) && PageRange::with_len(head, 1 << order).contains(page));
    }

    /// Each field of a word reads back as written, whatever the word was before, and no other field changes.
    #[test]
    fn words_keep_their_fields_apart(
        old in any::<u64>(), device in 0u8..64, frame in any::<u32>(), order in 0..=MAX_ORDER, tick in any::<u32>(),
        permission in prop_oneof![Just(Permission::ReadOnly), Just(Permission::Writable)], flags in 0u64..8, pins in 0u64..63,
    ) {
        let old = Word(old);
        let next = old.generation().wrapping_add(1) & 0x7fff;
        for new in [
            old.to_untouched(),
            old.to_poisoned(),
            old.to_system(Tick(tick)),
            old.to_private(DeviceId(device), Frame(frame), order),
            old.to_duplicated(),
            old.to_device_alone(),
        ] {
            prop_assert_eq!(new.generation(), next);
            prop_assert_eq!(new.read_only(), old.read_only());
            prop_assert!(!new.locked() && !new.waiters() && !new.mirrored());
            prop_assert_eq!(new.pins(), 0);
            let mask = [LOCKED, WAITERS, MIRRORED].iter().enumerate().filter(|(i, _)| flags >> i & 1 != 0).fold(0, |m, (_, f)| m | f);
            let flagged = new.with(mask).with_permission(permission);
            prop_assert_eq!((flagged.locked(), flagged.waiters(), flagged.mirrored()), (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0));
            prop_assert_eq!(flagged.permission(), permission);
            prop_assert_eq!((flagged.residency(), flagged.generation(), flagged.order()), (new.residency(), next, new.order()));
            prop_assert_eq!(flagged.system_held_until(), new.system_held_until());
            prop_assert_eq!(flagged.without(mask).with_permission(old.permission()), new);
        }
        prop_assert_eq!(old.to_untouched().residency(), Residency::Untouched);
        prop_assert_eq!(old.to_poisoned().residency(), Residency::Poisoned);
        let system = old.to_system(Tick(tick));
        prop_assert_eq!((system.residency(), system.order(), system.system_held_until()), (Residency::System, 0, Some(Tick(tick))));
        let pinned = Word(system.0 + pins * PIN);
        prop_assert_eq!((pinned.pins(), pinned.system_held_until(), pinned.generation()), (pins, Some(Tick(tick)), next));
        prop_assert_eq!(Word(pinned.0 - pins * PIN), system);
        let there = old.to_private(DeviceId(device), Frame(frame), order);
        prop_assert_eq!(there.residency(), Residency::Device(Placed { device: DeviceId(device), frame: Frame(frame), order }));
        let twice = there.to_duplicated();
        prop_assert_eq!(twice.residency(), Residency::Duplicated(Placed { device: DeviceId(device), frame: Frame(frame), order }));
        prop_assert_eq!(twice.to_device_alone().residency(), there.residency());
        prop_assert_eq!(there.with_order(0).with_order(order), there);
        prop_assert_eq!(there.system_held_until(), None);
    }

    /// Compares holds with an ideal time that neither wraps nor is rounded.
    #[test]
    fn holds_last_as_long_as_they_should(start_us in prop_oneof![0u64..200_000_000_000, (1u64..4).prop_map(|n| n * WRAP_US), WRAP_US - 500_000..WRAP_US], hold_us in 0u64..2_000_000, later_us in prop_oneof![0u64..20_000_000, 0u64..200_000]) {
        let us = Duration::from_micros;
        let end = Tick::end_of_hold(us(start_us), us(hold_us));
        let rest = end.remaining(us(start_us + later_us));
        let ideal = us(hold_us).min(MAX_HOLD).checked_sub(us(later_us)).filter(|d| !d.is_zero());
        match (ideal, rest) {
            (None, None) => {}
            // A hold is never shorter than promised, and at most two ticks longer.
            (ideal, Some(rest)) => {
                let ideal = ideal.unwrap_or_default();
                prop_assert!(us(hold_us) > Duration::ZERO);
                prop_assert!(rest + us(16) >= ideal && rest <= ideal + us(32) + us(16), "{rest:?} {ideal:?}");
            }
            (Some(ideal), None) => prop_assert!(false, "{ideal:?} too early"),
        }
    }

    #[test]
    fn batches_keep_every_page_with_its_strongest_access(batch in prop::collection::vec((0u32..40, prop_oneof![Just(Access::Read), Just(Access::Write)]), 0..64)) {
        let mut expected: BTreeMap<u32, Access> = BTreeMap::new();
        for (page, access) in &batch {
            let strongest = expected.entry(*page).or_insert(*access);
            *strongest = (*strongest).max(*access);
        }
        let mut faults: Vec<Fault> = batch
            .into_iter()
            .map(|(page, access)| Fault { page: Page(page), access, thread: page, since: Duration::ZERO, reading: 0, generation: 0 })
            .collect();
        sort_and_deduplicate(&mut faults);
        let found: Vec<_> = faults.iter().map(|f| (f.page.0, f.access)).collect();
        prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn deferred_faults_come_in_order_of_time(times in prop::collection::vec(0u64..1000, 0..50)) {
        let deferred = |ms: u64| Deferred {
            due: Duration::from_millis(ms),
            fault: Fault { page: Page(ms as u32), access: Access::Read, thread: 0, since: Duration::ZERO, reading: 0, generation: 0 },
            generation: 0,
            history: History::default(),
        };
        let mut heap: BinaryHeap<_> = times.iter().map(|ms| deferred(*ms)).collect();
        let mut sorted = times;
        sorted.sort_unstable();
        let mut found = Vec::new();
        while let Some(next) = heap.pop() {
            found.push(next.due.as_millis() as u64);
        }
        prop_assert_eq!(found, sorted);
    }

    /// Whatever the reasons and their order, the number of attempts and each pause are bounded, and waiting
    /// does not count as an attempt.
    #[test]
    fn attempts_end(reasons in prop::collection::vec(0u8..3, 0..300)) {
        let mut attempts = Attempts::default();
        let mut failures = 0;
        for reason in reasons {
            let answer = match reason {
                0 => {
                    let wait = Duration::from_micros(77);
                    prop_assert_eq!(attempts.next(&Unresolved::Wait(wait)), Ok(wait));
                    continue;
                }
                1 => attempts.next(&Unresolved::Retry),
                _ => attempts.next(&Unresolved::OutOfMemory),
            };
            failures += 1;
            prop_assert_eq!(answer.is_err(), failures > 60);
            prop_assert!(answer.is_err() || answer.is_ok_and(|pause| pause <= Duration::from_millis(21)));
        }
        prop_assert!(attempts.next(&Unresolved::Fatal(FatalCause::ContentsLost)).is_err());
    }

    /// Compares validated advice with the expected result, page by page.
    #[test]
    fn advice_is_cut_to_what_is_possible(
        len in 1usize..=512, states in prop::collection::vec(0u8..6, 512), faulting in indices(), prefetch in indices(),
        hold_ms in 0u64..4000, throttle_ms in 0u64..4000, stay in any::<bool>(), to_device in any::<bool>(), duplicate in indices(),
    ) {
        let word = |(i, state): (usize, &u8)| match state {
            0 => Word(0),
            1 => Word(0).to_system(Tick(0)),
            2 => Word(0).to_private(DeviceId(0), Frame(i as u32), 0),
            3 => Word(0).to_private(DeviceId(1), Frame(i as u32), 0),
            _ => Word(0).to_private(DeviceId(state - 4), Frame(i as u32), 0).to_duplicated(),
        };
        let words = BlockWords::read(states.iter().take(len).enumerate().map(word).collect());
        let view = BlockView { free_frames: 9, capacity: 99, ..BlockView::of(&words) };
        let to = if to_device { Place::Device(DeviceId(0)) } else { Place::System };
        let fault = BlockFault { block: Block(3), pages: set(&faulting), access: Access::Read, to, now: Duration::ZERO, waited: false };
        let ms = Duration::from_millis;
        let given = Advice { stay, prefetch: set(&prefetch), hold: ms(hold_ms), throttle: ms(throttle_ms), migrate: Vec::new(), duplicate: set(&duplicate) };
        let (advice, cut) = given.clone().validated(&fault, &view);
        let there: &[u8] = if to_device { &[2, 4] } else { &[1, 4, 5] };
        for (i, state) in states.iter().enumerate() {
            let possible = i < len && !faulting.contains(&i) && !there.contains(state);
            prop_assert_eq!(advice.prefetch.contains(i), possible && prefetch.contains(&i), "page {}", i);
        }
        prop_assert_eq!((advice.hold, advice.throttle), (ms(hold_ms).min(MAX_HOLD), ms(throttle_ms).min(MAX_HOLD)));
        prop_assert_eq!(advice.stay, stay && to_device);
        for i in 0..512 {
            let possible = i < len && !to_device;
            prop_assert_eq!(advice.duplicate.contains(i), possible && duplicate.contains(&i), "page {}", i);
        }
        let impossible = prefetch.iter().any(|i| *i >= len || faulting.contains(i))
            || duplicate.iter().any(|i| *i >= len || to_device);
        prop_assert_eq!(cut, impossible || hold_ms > 1000 || throttle_ms > 1000 || (stay && !to_device));
        prop_assert!(!advice.clone().validated(&fault, &view).1, "cutting twice cuts nothing");
    }

    /// Any composition of policies, on any block, advises only what is possible and never panics.
    #[test]
    fn policies_answer_everything(
        len in 1usize..=512, states in prop::collection::vec(0u8..4, 512),
        faults in prop::collection::vec((0usize..512, any::<bool>(), 0u64..2000, 0u8..20), 1..40),
        faulting in prop::sample::select(vec!["density:min_faults=2", "density:threshold=1", "sequential:min_run=1,window=512",
            "first-touch", "access-counter", "adaptive", "on-demand"]),
        modifiers in prop::sample::select(vec!["", "+hints", "+thrash:threshold=1,pin_threshold=1", "+hints+thrash:nap=0us,pin=1ms"]),
    ) {
        let word = |(i, state): (usize, &u8)| match state {
            0 => Word(0),
            1 => Word(0).to_system(Tick(0)),
            _ => Word(0).to_private(DeviceId(state - 2), Frame(i as u32), 0),
        };
        let words = BlockWords::read(states.iter().take(len).enumerate().map(word).collect());
        let view = BlockView { free_frames: 9, capacity: 99, pages: 2048, ..BlockView::of(&words) };
        let spec: PolicySpec = format!("{faulting}{modifiers}").parse().unwrap();
        let mut policy = crate::policy::PolicyFactory::fault_policy(&spec);
        let mut now = Duration::ZERO;
        for (page, to_device, after, what) in faults {
            now += Duration::from_micros(after);
            let device = Place::Device(DeviceId(0));
            let to = if to_device { device } else { Place::System };
            let fault = BlockFault { block: Block(0), pages: PageSet::from_iter([page % len]), access: Access::Write, to, now, waited: false };
            let range = PageRange::with_len(Page(page as u32), 40);
            match what {
                0 => policy.hinted(range, Hint::PreferredLocation(Some(to))),
                1 => policy.hinted(range, Hint::ReadMostly(to_device)),
                2 => policy.hinted(range, Hint::AccessedBy(DeviceId(0), to_device)),
                3 => policy.freed(range),
                4 => for wish in policy.tick(now, Default::default()) {
                    prop_assert!((1..=4096).contains(&wish.pages.len()));
                },
                5 => {
                    let seen = BlockFault { to: device, ..fault };
                    let hot = policy.remote_accesses(&seen, 256, &view);
                    prop_assert!(hot.difference(&view.resident(Place::System)).is_empty());
                }
                _ => {
                    let (advice, cut) = policy.advise(&fault, &view).validated(&fault, &view);
                    prop_assert!(!cut, "the built-in policies advise what is possible: {advice:?}");
                    prop_assert!(advice.migrate.iter().all(|wish| wish.pages.end.0 <= 2048));
                }
            }
        }
    }

    #[test]
    fn any_text_is_a_policy_or_an_error(text in "(density|on-demand|lru|timeslice|thrash|fifo|hints|[a-z+:=,0-9 µ]{0,9})([:+=,](threshold|min|min_faults|lru|pin|[0-9]{0,21}(us|ms|s)?|.{0,3})){0,6}") {
        if let Ok(spec) = text.parse::<PolicySpec>() {
            let again = spec.to_string().parse::<PolicySpec>();
            prop_assert_eq!(again.as_ref().ok(), Some(&spec), "{} is printed differently", text);
        }
    }
}

const _: () = assert!(BLOCK_PAGES == 512, "the properties above draw whole blocks");
