//! Scenarios for the thrashing modifier, each step with the result of UVM's rules.

use std::time::Duration;

use super::Modified;
use super::thrash::*;
use crate::pages::{DeviceId, Hint, Page, PageRange, PageSet, Place};
use crate::policy::test_view::*;
use crate::policy::{Advice, BlockFault, Density, FaultPolicy, MAX_WISHES, OnDemand, Seen, Wish};

const DEVICE: Place = Place::Device(DeviceId(0));
const PAGE: usize = 7;

fn us(n: u64) -> Duration {
    Duration::from_micros(n)
}

/// One page, the place where it is, and the policy under test.
struct Scenario {
    policy: Box<dyn FaultPolicy>,
    at: Place,
    now: Duration,
}

impl Scenario {
    fn new(params: ThrashParams) -> Scenario {
        Scenario {
            policy: Modified::boxed(Thrash::new(params), Box::new(OnDemand)),
            at: Place::System,
            now: us(1000),
        }
    }

    fn words(&self) -> crate::residency::BlockWords<'static> {
        let page = PageSet::from_iter([PAGE]);
        match self.at {
            Place::System => block(512, &page, &PageSet::EMPTY),
            Place::Device(_) => block(512, &PageSet::EMPTY, &page),
        }
    }

    /// A fault towards `to`, `after` the one before. The page migrates there unless the advice says otherwise.
    fn fault(&mut self, to: Place, after: Duration) -> Advice {
        self.now += after;
        let fault = BlockFault {
            now: self.now,
            ..fault([PAGE], to)
        };
        let words = self.words();
        let (advice, cut) = self
            .policy
            .advise(&fault, &view(&words))
            .validated(&fault, &view(&words));
        assert!(!cut);
        if advice.throttle.is_zero() && !advice.stay {
            self.at = to;
        }
        advice
    }

    /// Lets the page migrate back and forth until it counts as thrashing. The first migration is the block's first,
    /// the second is the page's first, and the next three come within the lapse. The last one goes to the device.
    fn make_thrash(&mut self) {
        for to in [DEVICE, Place::System, DEVICE, Place::System, DEVICE] {
            assert_eq!(self.fault(to, us(100)), Advice::default());
        }
    }
}

/// A short name for the advice.
fn said(advice: &Advice) -> &'static str {
    match (advice.stay, advice.throttle.is_zero()) {
        (false, true) => "migrate",
        (true, true) => "stay",
        _ => "nap",
    }
}

#[test]
fn one_side_naps_while_the_other_works() {
    let mut it = Scenario::new(ThrashParams::default());
    it.make_thrash();
    // A period of naps begins: the first requester is exempt.
    assert_eq!(said(&it.fault(Place::System, us(100))), "migrate");
    // The other side waits until the period ends.
    assert_eq!(it.fault(DEVICE, us(100)).throttle, us(400));
    assert_eq!(it.fault(DEVICE, us(100)).throttle, us(300));
    // Then the other side is exempt.
    assert_eq!(said(&it.fault(DEVICE, us(301))), "migrate");
    assert_eq!(it.fault(Place::System, us(1)).throttle, us(499));
    assert_eq!(said(&it.fault(Place::System, us(500))), "migrate");
}

#[test]
fn nobody_is_exempt_twice_in_a_row() {
    let mut it = Scenario::new(ThrashParams {
        nap: us(100),
        ..ThrashParams::default()
    });
    it.make_thrash();
    assert_eq!(said(&it.fault(Place::System, us(100))), "migrate");
    it.at = DEVICE;
    assert_eq!(said(&it.fault(Place::System, us(101))), "nap");
    assert_eq!(it.fault(Place::System, us(1)).throttle, us(99));
    it.at = Place::System;
    assert_eq!(
        said(&it.fault(DEVICE, us(1))),
        "migrate",
        "no requester was exempt in this period yet"
    );
    assert_eq!(said(&it.fault(Place::System, us(1))), "nap");
}

#[test]
fn after_enough_naps_the_page_is_pinned_where_both_reach_it() {
    let params = ThrashParams {
        pin_threshold: 3,
        ..ThrashParams::default()
    };
    let mut it = Scenario::new(params);
    it.make_thrash();
    for (to, after, expected) in [
        // The requester and the time since the last fault: each sleeper returns just after its nap.
        (Place::System, 100, "migrate"),
        (DEVICE, 100, "nap"),
        (DEVICE, 401, "migrate"),
        (Place::System, 100, "nap"),
        (Place::System, 401, "migrate"),
        (DEVICE, 100, "nap"),
        // Three naps are enough: the next exempt requester gets the page pinned.
        (DEVICE, 401, "migrate"),
        // The page is pinned on the device, where CPUs cannot reach it: they nap, and then the page is pinned for
        // them.
        (Place::System, 100, "nap"),
        (Place::System, 401, "migrate"),
        // While the page is pinned in system memory, the device accesses it there, exempt or not.
        (DEVICE, 10, "stay"),
        (DEVICE, 100, "stay"),
        (DEVICE, 600, "stay"),
        (DEVICE, 50_000, "stay"),
    ] {
        let advice = it.fault(to, us(after));
        assert_eq!(said(&advice), expected, "{to:?} at {:?}", it.now);
    }
    assert_eq!(it.at, Place::System);
    // No pin ends before 150 ms have passed since the first pin. Then devices must fault again.
    assert_eq!(it.policy.tick_interval(), Some(us(37_500)));
    let early = it.policy.tick(it.now, Seen::default());
    assert_eq!(early, []);
    it.now += us(100_000);
    let expected = Wish {
        pages: PageRange::single(Page(PAGE as u32)),
        to: Place::System,
    };
    assert_eq!(it.policy.tick(it.now, Seen::default()), [expected]);
    assert_eq!(
        said(&it.fault(DEVICE, us(1))),
        "migrate",
        "all is forgotten"
    );
}

#[test]
fn pages_that_come_late_do_not_thrash() {
    let mut it = Scenario::new(ThrashParams::default());
    for _ in 0..20 {
        assert_eq!(said(&it.fault(DEVICE, us(600))), "migrate");
        assert_eq!(said(&it.fault(Place::System, us(600))), "migrate");
    }
    // First touches and faults of one side only are not migrations back and forth.
    let mut it = Scenario::new(ThrashParams::default());
    for _ in 0..20 {
        it.at = Place::System;
        assert_eq!(said(&it.fault(DEVICE, us(10))), "migrate");
    }
}

#[test]
fn a_thrashing_page_that_rests_is_forgiven() {
    let mut it = Scenario::new(ThrashParams::default());
    it.make_thrash();
    // Longer than the lapse: no nap, and the page counts as if it had never thrashed.
    assert_eq!(said(&it.fault(Place::System, us(700))), "migrate");
    for to in [DEVICE, Place::System, DEVICE] {
        assert_eq!(said(&it.fault(to, us(100))), "migrate");
    }
}

#[test]
fn home_is_where_a_page_is_pinned_at_once() {
    let mut it = Scenario::new(ThrashParams::default());
    let home = Hint::PreferredLocation(Some(Place::System));
    it.policy.hinted(PageRange::single(Page(PAGE as u32)), home);
    it.make_thrash();
    assert_eq!(said(&it.fault(Place::System, us(100))), "migrate");
    assert_eq!(said(&it.fault(DEVICE, us(100))), "stay");
}

#[test]
fn thrashing_pages_are_not_brought_along() {
    let mut it = Scenario::new(ThrashParams::default());
    it.policy = Modified::boxed(
        Thrash::new(ThrashParams::default()),
        Box::new(Density::default()),
    );
    for to in [DEVICE, Place::System, DEVICE, Place::System, DEVICE] {
        it.fault(to, us(100));
    }
    let fault = BlockFault {
        now: it.now,
        ..fault([PAGE + 1], Place::System)
    };
    let words = it.words();
    let advice = it.policy.advise(&fault, &view(&words));
    let expected: Vec<usize> = (0..16).filter(|i| ![PAGE, PAGE + 1].contains(i)).collect();
    assert_eq!(advice.prefetch.iter().collect::<Vec<_>>(), expected);
    it.policy.freed(PageRange::single(Page(PAGE as u32)));
    let advice = it.policy.advise(&fault, &view(&words));
    assert!(advice.prefetch.contains(PAGE), "freed: nothing is known");
}

/// A side that has had its nap is served, and that migration counts like any other.
#[test]
fn a_fault_that_has_waited_is_not_throttled_and_counts() {
    let mut it = Scenario::new(ThrashParams {
        pin_threshold: 255,
        ..ThrashParams::default()
    });
    it.make_thrash();
    assert_eq!(said(&it.fault(Place::System, us(100))), "migrate");
    assert_eq!(said(&it.fault(DEVICE, us(100))), "nap");
    // The nap was shorter than advised: the other side's period is not over.
    let fault = BlockFault {
        now: it.now + us(1),
        waited: true,
        ..fault([PAGE], DEVICE)
    };
    let words = it.words();
    let advice = it.policy.advise(&fault, &view(&words));
    assert_eq!(said(&advice), "migrate");
}

/// Any number of pages can be pinned at the same time, and their pins then end at the same time.
#[test]
fn ends_of_pins_that_do_not_fit_into_one_tick_follow_at_once() {
    let mut thrash = Thrash::new(ThrashParams::default());
    let pages = 100u32;
    for page in 0..pages {
        thrash.pin_for_test(Page(page * 2), us(1000));
    }
    let mut policy = Modified::boxed(thrash, Box::new(OnDemand));
    let usual = policy.tick_interval().unwrap();
    let mut now = us(1000);
    let mut ended = 0;
    loop {
        let wishes = policy.tick(now, Seen::default());
        assert!(wishes.len() <= MAX_WISHES);
        ended += wishes.iter().map(|wish| wish.pages.len()).sum::<u32>();
        match policy.tick_interval().unwrap() {
            Duration::ZERO => now += us(100),
            interval => {
                assert_eq!(interval, usual);
                break;
            }
        }
    }
    assert_eq!(ended, pages);
}
