//! The decisions of the adaptive policy, one by one, and that its state is bounded and its decisions deterministic.

use std::time::Duration;

use proptest::prelude::*;

use super::tracked::MOST_BLOCKS;
use super::window::Window;
use super::*;
use crate::pages::{Block, DeviceId, Page};
use crate::policy::test_view::*;
use crate::residency::BlockWords;

const DEVICE: Place = Place::Device(DeviceId(0));
/// More accesses in place than it takes for a page that moves alone, fewer than for two into a full memory.
const ENOUGH_FOR_ONE: u32 = 64;

/// A policy, and the residency of one block that its advice changes.
struct Guest {
    policy: Adaptive,
    system: PageSet,
    device: PageSet,
    now: Duration,
    free_frames: u32,
}

impl Guest {
    /// All pages are in system memory, where a CPU has filled them; device memory has room.
    fn new() -> Guest {
        Guest {
            policy: Adaptive::default(),
            system: PageSet::from_range(0..512),
            device: PageSet::EMPTY,
            now: Duration::from_millis(1),
            free_frames: 4096,
        }
    }

    /// Device memory is full.
    fn full() -> Guest {
        Guest {
            free_frames: 0,
            ..Guest::new()
        }
    }

    /// All pages but these are on the device, so that none comes with them, and CPUs bring single pages.
    fn alone(pages: impl IntoIterator<Item = usize>) -> Guest {
        let mut guest = Guest::new();
        guest.system = pages.into_iter().collect();
        guest.device = PageSet::from_range(0..512).difference(&guest.system);
        guest.policy.regions.region(Block(0)).to_system = Window::new(0);
        guest
    }

    fn words(&self) -> BlockWords<'static> {
        block(512, &self.system, &self.device)
    }

    /// A fault, a microsecond after the one before. Returns how many pages moved.
    fn touch(&mut self, page: usize, to: Place) -> usize {
        self.now += Duration::from_micros(1);
        let words = self.words();
        let view = BlockView {
            free_frames: self.free_frames,
            capacity: 4096,
            ..view(&words)
        };
        let fault = BlockFault {
            now: self.now,
            ..fault([page], to)
        };
        let advice = self.policy.advise(&fault, &view);
        if advice.stay {
            return 0;
        }
        let moved = advice.prefetch.union(&fault.pages);
        self.place(&moved, to);
        moved.count()
    }

    fn place(&mut self, pages: &PageSet, to: Place) {
        let (here, there) = match to {
            Place::System => (&mut self.system, &mut self.device),
            Place::Device(_) => (&mut self.device, &mut self.system),
        };
        *here = here.union(pages);
        *there = there.difference(pages);
    }

    fn evict(&mut self, pages: std::ops::Range<usize>) {
        let pages = PageSet::from_range(pages).intersection(&self.device);
        self.place(&pages, Place::System);
    }

    /// The device uses this page's group in place so often. Returns how many pages moved.
    fn use_in_place(&mut self, page: usize, accesses: u32) -> usize {
        let words = self.words();
        let start = page / 16 * 16;
        let mut moved = PageSet::EMPTY;
        for _ in 0..accesses / REPORT {
            let seen = BlockFault {
                now: self.now,
                ..fault(start..start + 16, DEVICE)
            };
            let view = BlockView {
                free_frames: self.free_frames,
                capacity: 4096,
                ..view(&words)
            };
            moved = self.policy.remote_accesses(&seen, REPORT, &view);
        }
        self.place(&moved, DEVICE);
        moved.count()
    }
}

#[test]
fn while_there_is_room_a_fault_brings_512_kib_and_the_next_one_the_rest() {
    let mut guest = Guest::new();
    let moved = [0, 128, 256].map(|page| guest.touch(page, DEVICE));
    assert_eq!(moved, [128, 128, 256]);
}

#[test]
fn in_a_full_memory_a_walk_brings_four_times_as_much_each_time() {
    let mut guest = Guest::full();
    let moved = [0, 16, 64, 256].map(|page| guest.touch(page, DEVICE));
    assert_eq!(moved, [16, 48, 192, 256]);
}

#[test]
fn a_walk_backwards_grows_as_well() {
    let mut guest = Guest::full();
    let moved = [511, 495, 447].map(|page| guest.touch(page, DEVICE));
    assert_eq!(moved, [16, 48, 192]);
}

#[test]
fn faults_far_from_each_other_do_not_grow_the_window() {
    let mut guest = Guest::full();
    // No two distances are equal.
    for page in [0, 100, 210, 330, 460] {
        assert_eq!(guest.touch(page, DEVICE), 16, "page {page}");
    }
}

#[test]
fn what_is_evicted_unused_shrinks_the_window() {
    for (used, moved) in [(1, 4), (2, 4), (3, 16)] {
        let mut guest = Guest::full();
        guest.touch(0, DEVICE);
        // The page that was touched is used, too.
        (1..used).for_each(|page| guest.policy.used(Page(page)));
        guest.evict(0..512);
        assert_eq!(guest.touch(200, DEVICE), moved, "{used} of 16 used");
    }
}

#[test]
fn what_a_cpu_has_brought_back_in_bulk_comes_again_in_bulk() {
    let mut guest = Guest::new();
    guest.touch(0, DEVICE);
    assert_eq!(guest.touch(100, Place::System), 16);
    assert_eq!(guest.touch(100, DEVICE), 16);
}

#[test]
fn cpu_faults_that_follow_each_other_grow_the_window() {
    let mut guest = Guest::new();
    guest.place(&PageSet::from_range(0..512), DEVICE);
    let moved = [0, 16, 64].map(|page| guest.touch(page, Place::System));
    assert_eq!(moved, [16, 48, 192]);
}

#[test]
fn a_device_that_misses_what_came_along_with_a_cpus_page_shrinks_the_cpus_window() {
    for (missed, moved) in [(200, 16), (0, 16), (1, 4)] {
        let mut guest = Guest::new();
        guest.place(
            &PageSet::from_range(0..512).difference(&[200].into_iter().collect()),
            DEVICE,
        );
        guest.touch(0, Place::System);
        guest.touch(missed, DEVICE);
        assert_eq!(
            guest.touch(100, Place::System),
            moved,
            "page {missed} missed"
        );
    }
}

#[test]
fn pages_that_a_cpu_fills_are_not_pulled_away_from_a_device() {
    let mut guest = Guest::full();
    guest.system = PageSet::EMPTY;
    assert_eq!(guest.touch(0, Place::System), 16);
    guest.touch(1, DEVICE);
    assert_eq!(guest.touch(100, Place::System), 16);
}

#[test]
fn a_single_page_that_has_come_back_is_used_in_place_until_it_is_hot() {
    let mut guest = Guest::alone([100]);
    assert_eq!(guest.touch(100, DEVICE), 1);
    assert_eq!(guest.touch(100, Place::System), 1);
    assert_eq!(guest.touch(100, DEVICE), 0);
    assert_eq!(guest.use_in_place(100, ENOUGH_FOR_ONE - REPORT), 0);
    assert_eq!(guest.use_in_place(100, REPORT), 1);
}

#[test]
fn a_single_page_that_was_evicted_is_used_in_place_until_it_is_hot() {
    let mut guest = Guest::alone([100]);
    guest.touch(100, DEVICE);
    guest.evict(100..101);
    assert_eq!(guest.touch(100, DEVICE), 0);
    assert_eq!(guest.use_in_place(100, ENOUGH_FOR_ONE), 1);
}

#[test]
fn into_a_full_memory_more_pages_take_more_accesses() {
    for (room, accesses) in [(4096, ENOUGH_FOR_ONE), (0, ENOUGH_FOR_ONE + REPORT)] {
        let mut guest = Guest::alone([100, 107]);
        for to in [DEVICE, Place::System, DEVICE] {
            guest.touch(100, to);
            guest.touch(107, to);
        }
        guest.free_frames = room;
        assert_eq!(guest.use_in_place(100, accesses - REPORT), 0, "{room} free");
        assert_eq!(guest.use_in_place(100, REPORT), 2, "{room} free");
    }
}

#[test]
fn pages_in_use_in_place_do_not_come_with_their_neighbours() {
    let mut guest = Guest::alone([100]);
    for to in [DEVICE, Place::System, DEVICE] {
        guest.touch(100, to);
    }
    guest.evict(0..512);
    assert_eq!(guest.touch(0, DEVICE), 127);
}

/// A page that has proved hot in this many microseconds, and has been on the device for as many.
fn proved(heating: u64, stay: u64) -> Guest {
    let mut guest = Guest::alone([100]);
    for to in [DEVICE, Place::System, DEVICE] {
        guest.touch(100, to);
    }
    guest.now += Duration::from_micros(heating);
    assert_eq!(guest.use_in_place(100, ENOUGH_FOR_ONE), 1);
    guest.now += Duration::from_micros(stay);
    guest
}

#[test]
fn after_a_stay_that_was_worth_it_pages_come_at_once() {
    let mut guest = proved(50, 60);
    guest.touch(100, Place::System);
    assert_eq!(guest.touch(100, DEVICE), 1);
}

#[test]
fn after_a_stay_that_was_not_worth_it_a_proof_takes_twice_as_much() {
    let mut guest = proved(50, 10);
    guest.touch(100, Place::System);
    assert_eq!(guest.touch(100, DEVICE), 0);
    assert_eq!(guest.use_in_place(100, ENOUGH_FOR_ONE), 0);
    assert_eq!(guest.use_in_place(100, REPORT), 1);
}

#[test]
fn a_proof_is_good_for_a_few_evictions() {
    let mut guest = proved(50, 60);
    for _ in 0..3 {
        guest.evict(100..101);
        assert_eq!(guest.touch(100, DEVICE), 1);
        guest.now += Duration::from_micros(60);
    }
    guest.evict(100..101);
    assert_eq!(guest.touch(100, DEVICE), 0);
}

#[test]
fn freed_pages_are_new() {
    let mut guest = proved(50, 10);
    guest.touch(100, Place::System);
    guest.policy.freed(PageRange::single(Page(100)));
    assert_eq!(guest.touch(100, DEVICE), 1);
}

#[test]
fn no_more_blocks_are_known_than_documented() {
    let words = block(512, &PageSet::from_range(0..512), &PageSet::EMPTY);
    let mut policy = Adaptive::default();
    for number in 0..MOST_BLOCKS as u32 + 10 {
        let fault = BlockFault {
            block: Block(number),
            ..fault([0], DEVICE)
        };
        policy.advise(&fault, &view(&words));
    }
    assert_eq!(policy.regions.len(), MOST_BLOCKS);
    assert!(policy.regions.known(Block(9)).is_none());
    assert!(policy.regions.known(Block(10)).is_some());
}

/// What may happen to a page.
#[derive(Clone, Copy, Debug)]
enum Step {
    Touch(usize, Place),
    Evict(usize),
    InPlace(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..512usize, prop_oneof![Just(DEVICE), Just(Place::System)])
            .prop_map(|(page, to)| Step::Touch(page, to)),
        1 => (0..512usize).prop_map(Step::Evict),
        1 => (0..512usize).prop_map(Step::InPlace),
    ];
    prop::collection::vec(step, 0..200)
}

fn outcome(steps: &[Step]) -> Vec<usize> {
    let mut guest = Guest::new();
    let moved = |step: &Step| match *step {
        Step::Touch(page, to) => {
            let there = match to {
                Place::System => guest.system.contains(page),
                Place::Device(_) => guest.device.contains(page),
            };
            if there { 0 } else { guest.touch(page, to) }
        }
        Step::Evict(page) => {
            guest.evict(page..(page + 64).min(512));
            0
        }
        Step::InPlace(page) => guest.use_in_place(page, ENOUGH_FOR_ONE),
    };
    steps.iter().map(moved).collect()
}

proptest! {
    #[test]
    fn the_same_history_gives_the_same_advice(steps in steps()) {
        prop_assert_eq!(outcome(&steps), outcome(&steps));
    }
}
