//! Two faults, a migration, a free and an eviction at once, each in a thread of its own. With five threads, each
//! further preemption multiplies the number of interleavings by some hundreds. The bounds are therefore lower than in
//! `races`: all five parts run without preemptions, and each four of them with one. Without preemptions a thread
//! hardly ever finds a page locked: the runs of all five check the orders of the parts, and the runs of four find an
//! unlock that wakes no waiter.
//!
//! Loom has at most five threads, so the thread that starts them plays one part itself. Without a preemption it
//! plays this part to its end, or until it must wait, before another thread runs. The choice of this part therefore
//! matters.

use super::*;

type Part = fn(&World);

/// The parts: two CPU faults, a migration, a free, an eviction.
const ONE_PAGE: [Part; 5] = [
    |w| w.cpu(0, 0),
    |w| w.cpu(1, 0),
    |w| w.to_device(0),
    |w| w.free(0),
    |w| w.evict(0),
];
/// The same parts on the two pages of one folio.
const TWO_PAGES: [Part; 5] = [
    |w| w.cpu(0, 0),
    |w| w.cpu(1, 1),
    |w| w.to_device(1),
    |w| w.free(0),
    |w| w.evict(0),
];
/// The indices of the CPU faults.
const FAULTS: [usize; 2] = [0, 1];
const FREE: usize = 3;

const ALL: [usize; 5] = [0, 1, 2, 3, 4];

/// All combinations of four parts.
fn each_four() -> impl Iterator<Item = Vec<usize>> {
    ALL.map(|left_out| ALL.into_iter().filter(|who| *who != left_out).collect())
        .into_iter()
}

/// The same parts in every rotation: each of them comes first once.
fn started_by_each(who: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let starts = 0..who.len();
    starts.map(|first| [&who[first..], &who[..first]].concat())
}

/// Plays these parts at once, the first of them in this thread.
fn play(world: &Arc<World>, parts: &[Part; 5], who: &[usize]) {
    let (first, others) = who.split_first().unwrap();
    let others = others.iter().map(|other| meanwhile(world, parts[*other]));
    let others: Vec<_> = others.collect();
    parts[*first](world);
    for other in others {
        other.join().unwrap();
    }
}

fn race_for_one_page(preemptions: usize, who: Vec<usize>) {
    eprint!("{who:?}: ");
    let faults = FAULTS.iter().filter(|cpu| who.contains(cpu)).count() as u64;
    model(preemptions, move |world| {
        play(&world, &ONE_PAGE, &who);
        if who.contains(&FREE) {
            // The free came before all increments, between them, or after them.
            assert!(world.contents(0) <= faults, "{}", world.contents(0));
        } else {
            assert_eq!(world.contents(0), 10 + faults);
        }
        assert_eq!(world.contents(1), 11);
    });
}

fn race_for_two_pages(preemptions: usize, who: Vec<usize>) {
    eprint!("{who:?}: ");
    let faults = FAULTS.map(|cpu| u64::from(who.contains(&cpu)));
    model(preemptions, move |world| {
        play(&world, &TWO_PAGES, &who);
        if who.contains(&FREE) {
            assert!(world.contents(0) <= faults[0], "{}", world.contents(0));
        } else {
            assert_eq!(world.contents(0), 10 + faults[0]);
        }
        assert_eq!(world.contents(1), 11 + faults[1]);
    });
}

/// No preemptions, started by each part in turn except the free, which is the next test. With one preemption the test
/// does not finish in 25 minutes.
#[test]
fn all_five_race_for_one_page() {
    started_by_each(&ALL)
        .filter(|who| who[0] != FREE)
        .for_each(|who| race_for_one_page(0, who));
}

/// No preemptions. After the free, the page is untouched and moves back and forth more often than from any other
/// start, so this test takes longest.
#[test]
#[ignore = "takes a minute; tests/proof/loom runs it"]
fn all_five_race_for_one_page_started_by_the_free() {
    started_by_each(&ALL)
        .filter(|who| who[0] == FREE)
        .for_each(|who| race_for_one_page(0, who));
}

/// No preemptions, started by each part in turn.
#[test]
fn all_five_race_for_two_pages() {
    started_by_each(&ALL).for_each(|who| race_for_two_pages(0, who));
}

/// One preemption, started by the first of the four.
#[test]
fn each_four_race_for_one_page() {
    // Without the first CPU's fault the race is the same as without the second's, so that combination is skipped.
    each_four()
        .skip(1)
        .for_each(|who| race_for_one_page(1, who));
}

/// One preemption, started by the first of the four.
#[test]
fn each_four_race_for_two_pages() {
    each_four().for_each(|who| race_for_two_pages(1, who));
}

/// One preemption, started by each of the four in turn.
#[test]
#[ignore = "takes minutes; tests/proof/loom runs it"]
fn each_four_race_for_one_page_whoever_starts() {
    for four in each_four().skip(1) {
        started_by_each(&four).for_each(|who| race_for_one_page(1, who));
    }
}

/// One preemption, started by each of the four in turn.
#[test]
#[ignore = "takes minutes; tests/proof/loom runs it"]
fn each_four_race_for_two_pages_whoever_starts() {
    for four in each_four() {
        started_by_each(&four).for_each(|who| race_for_two_pages(1, who));
    }
}

/// One preemption, started by the first CPU's fault.
#[test]
#[ignore = "takes minutes; tests/proof/loom runs it"]
fn all_five_race_for_two_pages_with_a_preemption() {
    race_for_two_pages(1, ALL.to_vec());
}
