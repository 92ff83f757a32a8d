//! The parts of the guest that need no guest around them.

#[allow(dead_code, reason = "the guest uses all of it")]
#[path = "../src/catalog.rs"]
mod catalog;
#[allow(dead_code, reason = "the guest uses all of it")]
#[path = "../guest/src/cmdline.rs"]
mod cmdline;
#[path = "../guest/src/pages.rs"]
mod pages;
#[path = "../guest/src/pattern.rs"]
mod pattern;
#[allow(dead_code, reason = "the guest uses all of it")]
#[path = "../guest/src/random.rs"]
mod random;

use cmdline::{BadCmdline, Params};
use pages::Pages;
use pattern::Pattern;
use random::{Random, hash, hash_below};

#[test]
fn what_the_host_renders_the_guest_understands() {
    for workload in hmmvisor_guest_images::workloads() {
        let line = workload.cmdline(&[]).unwrap();
        let params = Params::parse(&line).unwrap();
        assert_eq!(params.workload.name, workload.name);
        for param in workload.params {
            assert_eq!(params.get(param.name), param.default, "{line}");
        }
    }
}

#[test]
fn command_lines_without_everything_get_defaults() {
    let params = Params::parse("").unwrap();
    assert_eq!((params.workload.name, params.get("rounds")), ("vecadd", 4));
    let params = Params::parse("n=64K workload=stream wait=interrupt").unwrap();
    assert_eq!(params.workload.name, "stream");
    assert_eq!(
        [params.get("n"), params.get("rounds"), params.get("wait")],
        [65536, 4, 1]
    );
}

#[test]
fn bad_command_lines_are_refused() {
    let error = |line| Params::parse(line).unwrap_err();
    assert_eq!(error("workload=nosuch"), BadCmdline::Workload("nosuch"));
    assert_eq!(error("workload=vecadd quiet"), BadCmdline::NoValue("quiet"));
    assert_eq!(error("workload=vecadd len=1"), BadCmdline::Parameter("len"));
    assert_eq!(error("workload=vecadd n=0"), BadCmdline::Value("n", "0"));
    assert_eq!(error("n=-1"), BadCmdline::Value("n", "-1"));
    // A parameter given twice: the guest takes the first, but checks both.
    assert_eq!(error("n=1 n=x"), BadCmdline::Value("n", "x"));
}

#[test]
fn random_numbers_are_those_of_splitmix64() {
    // From the reference implementation, seed 1234567.
    let expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ];
    assert_eq!([0, 1, 2].map(|index| hash(1234567, index)), expected);
}

#[test]
fn random_sequences_differ_and_repeat() {
    let draw = |seed, sequence| -> Vec<u64> {
        let mut random = Random::new(seed, sequence);
        (0..100).map(|_| random.next()).collect()
    };
    assert_eq!(draw(1, 0), draw(1, 0));
    assert_ne!(draw(1, 0), draw(1, 1));
    assert_ne!(draw(1, 0), draw(2, 0));
}

#[test]
fn random_numbers_stay_below_their_bound_and_reach_all_of_it() {
    let mut seen = [false; 7];
    (0..1000).for_each(|index| seen[hash_below(3, index, 7) as usize] = true);
    assert_eq!(seen, [true; 7]);
    assert!((0..1000).all(|index| hash_below(3, index, 1) == 0));
}

#[test]
fn patterns_know_their_sums() {
    let pattern = Pattern::random(&mut Random::new(5, 0));
    for len in [0, 1, 2, 511, 512] {
        let sum = |pattern: Pattern| (0..len).map(|i| pattern.at(i)).fold(0, u64::wrapping_add);
        assert_eq!(pattern.sum(len), sum(pattern));
        assert_eq!(pattern.from(100).sum(len), sum(pattern.from(100)));
        assert_eq!(pattern.from(100).at(len), pattern.at(100 + len));
        assert_eq!(
            pattern.plus(pattern).at(len),
            pattern.at(len).wrapping_mul(2)
        );
    }
    assert_eq!(Pattern::ZERO.at(7), 0);
}

#[test]
fn pages_are_handed_out_once_and_merge_when_they_come_back() {
    const TOTAL: u64 = 1000;
    const BASE: u64 = 1 << 20;
    let mut pages = Pages::<64>::new();
    pages.give(BASE, TOTAL);
    let mut random = Random::new(9, 0);
    let mut owned = [false; TOTAL as usize];
    let mut taken: Vec<(u64, u64)> = Vec::new();
    for _ in 0..20_000 {
        if random.one_in(2) && taken.len() < 60 {
            let count = 1 + random.below(50);
            let free = owned.iter().filter(|owned| !**owned).count() as u64;
            assert_eq!(pages.available(), free);
            let run = owned
                .chunk_by(|a, b| a == b)
                .filter(|run| !run[0])
                .map(<[bool]>::len)
                .max();
            let Some(first) = pages.take(count) else {
                assert!(
                    run.unwrap_or(0) < count as usize,
                    "{count} pages were refused"
                );
                continue;
            };
            for page in first..first + count {
                assert!(
                    !std::mem::replace(&mut owned[(page - BASE) as usize], true),
                    "page {page} twice"
                );
            }
            taken.push((first, count));
        } else if !taken.is_empty() {
            let (first, count) = taken.swap_remove(random.below(taken.len() as u64) as usize);
            owned[(first - BASE) as usize..(first + count - BASE) as usize].fill(false);
            pages.give(first, count);
        }
    }
    taken
        .into_iter()
        .for_each(|(first, count)| pages.give(first, count));
    assert_eq!(pages.take(TOTAL), Some(BASE), "all pages are one run again");
    assert_eq!(pages.take(1), None);
}

#[test]
#[should_panic(expected = "freed twice")]
fn freeing_twice_is_noticed() {
    let mut pages = Pages::<8>::new();
    pages.give(10, 10);
    pages.take(5);
    pages.give(9, 2);
    pages.give(10, 1);
}
