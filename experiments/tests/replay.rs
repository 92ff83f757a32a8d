//! Replays of hand-made traces, whose outcome can be said beforehand, and of random ones, where nothing may beat the
//! optimum.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hmm_backend::observe::{Cause, Event, EventKind};
use hmm_backend::pages::{Access, DeviceId, Fidelity, Page, PageRange};
use hmm_backend::policy::{LinkModel, PolicyFactory, PolicySpec};
use hmmvisor_experiments::replay::{Costs, ReplayConfig, ReplayError, Replayed, Time, replay};
use hmmvisor_policies::{Chosen, Limits, PolicyChoice};
use proptest::prelude::*;

const DEVICE: Option<DeviceId> = Some(DeviceId(0));
const CPU: Option<DeviceId> = None;

fn config(policy: &str, device_pages: u64) -> ReplayConfig {
    ReplayConfig {
        fidelity: Fidelity::Faults,
        eviction_batch: 64,
        policy: Arc::new(policy.parse::<PolicySpec>().unwrap()),
        memory: 4 << 20,
        device_memory: device_pages * 4096,
        devices: 1,
        links: LinkModel {
            latency: Duration::from_micros(1),
            bandwidth: 4096 * 1_000_000,
        }
        .into(),
        costs: Costs {
            access: Duration::from_nanos(10),
            fault: Duration::from_micros(100),
            remote: Duration::from_micros(5),
            ..Costs::default()
        },
        time: Time::Modelled,
        optimal: true,
        moves: true,
    }
}

fn access(device: Option<DeviceId>, page: u32, access: Access) -> Event {
    Event {
        device,
        access: Some(access),
        ..Event::new(
            Duration::ZERO,
            EventKind::Access,
            PageRange::single(Page(page)),
        )
    }
}

fn write(device: Option<DeviceId>, page: u32) -> Event {
    access(device, page, Access::Write)
}

const PLAIN: &str = "on-demand+lru+timeslice:min=0us";

#[test]
fn a_page_that_goes_to_the_device_and_back_costs_two_transfers() {
    let trace = [
        write(CPU, 7),
        write(DEVICE, 7),
        write(DEVICE, 7),
        write(CPU, 7),
    ];
    let done = replay(trace, &config(PLAIN, 16)).unwrap();
    assert_eq!(
        (done.accesses, done.cpu_faults, done.device_faults),
        (4, 2, 1)
    );
    assert_eq!((done.pages_to_device, done.pages_to_system), (1, 1));
    assert_eq!((done.bytes_to_device, done.bytes_to_system), (4096, 4096));
    assert_eq!(
        (done.transfers, done.unused, done.thrashing_pages),
        (2, Some(0), 0)
    );
    // 4 accesses, 3 faults, 2 transfers of 1 + 1 µs.
    assert_eq!(done.modelled_ns, 4 * 10 + 3 * 100_000 + 2 * 2_000);
    let least = done.optimal.unwrap();
    assert_eq!(least.pages_to_device, 1);
}

#[test]
fn a_sweep_over_too_much_memory_evicts_all_of_it_under_lru_and_little_at_best() {
    let pages = 64;
    let trace: Vec<_> = (0..4 * pages).map(|i| write(DEVICE, i % pages)).collect();
    let done = replay(trace, &config(PLAIN, 48)).unwrap();
    assert_eq!(done.pages_to_device, u64::from(4 * pages));
    assert_eq!(done.thrashing_pages, u64::from(pages));
    // Each round after the first misses what did not fit.
    let least = done.optimal.unwrap();
    assert!(
        (64 + 3 * 16..64 + 3 * 32).contains(&least.pages_to_device),
        "{least:?}"
    );
}

/// Two devices take turns on a page. Directly, each turn is one transfer, and over a link of their own it takes that link's time.
#[test]
fn a_page_that_goes_from_device_to_device_costs_one_transfer() {
    let trace: Vec<_> = std::iter::once(write(CPU, 7))
        .chain((0..4).map(|turn| write(Some(DeviceId(turn % 2)), 7)))
        .collect();
    for (links, each) in [
        ("latency=1us,bandwidth=4096000000", 3_000),
        (
            "latency=1us,bandwidth=4096000000; peer: latency=2us,bandwidth=4096000000000",
            2_001,
        ),
    ] {
        let config = ReplayConfig {
            devices: 2,
            links: links.parse().unwrap(),
            optimal: false,
            ..config(PLAIN, 16)
        };
        let done = replay(trace.clone(), &config).unwrap();
        assert_eq!((done.pages_to_device, done.pages_to_system), (1, 0));
        assert_eq!(done.pages_between_devices, 3);
        assert_eq!(
            (done.bytes_to_device, done.bytes_between_devices),
            (4096, 3 * 4096)
        );
        assert_eq!((done.transfers, done.thrashing_pages), (4, 0));
        let link = 2_000 + 3 * each;
        assert_eq!(done.modelled_ns, 5 * 10 + 5 * 100_000 + link, "{links}");
    }
}

/// Sizes come from files, which may be damaged.
#[test]
fn more_memory_than_can_be_kept_account_of_is_refused() {
    for (memory, devices, device_memory) in [
        (0, 1, 4096),
        (u64::MAX, 1, 4096),
        (1 << 42, 64, 4096),
        (1 << 30, 1, 1 << 42),
        (1 << 30, 1, u64::MAX),
    ] {
        let config = ReplayConfig {
            memory,
            devices,
            device_memory,
            ..config(PLAIN, 16)
        };
        let error = replay([write(CPU, 0)], &config).unwrap_err();
        let told = matches!(
            error,
            ReplayError::TooLarge { .. } | ReplayError::Backend(_)
        );
        assert!(told, "{error}");
    }
}

#[test]
fn freed_pages_do_not_cross_the_link() {
    let freed = Event::new(
        Duration::ZERO,
        EventKind::Freed,
        PageRange::new(Page(0), Page(8)),
    );
    let mut trace: Vec<_> = (0..8).map(|page| write(DEVICE, page)).collect();
    trace.push(freed);
    trace.extend((0..8).map(|page| write(CPU, page)));
    let done = replay(trace, &config(PLAIN, 16)).unwrap();
    assert_eq!((done.bytes_to_device, done.bytes_to_system), (0, 0));
    assert_eq!((done.pages_to_device, done.pages_to_system), (8, 0));
}

#[test]
fn hints_in_a_trace_are_passed_to_the_policy() {
    let hint = |hint: &str, start, end| Event {
        hint: Some(hint.parse().unwrap()),
        ..Event::new(
            Duration::ZERO,
            EventKind::Hint,
            PageRange::new(Page(start), Page(end)),
        )
    };
    let mut trace = vec![hint("preferred:system", 0, 8), hint("preferred:none", 2, 3)];
    trace.extend((0..9).map(|page| write(CPU, page)));
    trace.extend((0..9).map(|page| write(DEVICE, page)));
    let policy = "on-demand+hints+lru+timeslice:min=0us";
    let done = replay(trace.clone(), &config(policy, 16)).unwrap();
    assert_eq!((done.pages_to_device, done.remote_accesses), (2, 7));
    let done = replay(trace, &config(PLAIN, 16)).unwrap();
    assert_eq!((done.pages_to_device, done.remote_accesses), (9, 0));
}

#[test]
fn prefetched_pages_that_nobody_uses_are_counted() {
    // The CPU's first touch of a page brings 16; the device takes one of them back and forth.
    let policy = "density+lru+timeslice:min=0us";
    let mut trace: Vec<_> = (0..16).map(|page| write(CPU, page)).collect();
    trace.push(write(DEVICE, 0));
    trace.push(write(CPU, 0));
    let done = replay(trace, &config(policy, 64)).unwrap();
    assert_eq!((done.pages_to_device, done.pages_to_system), (16, 16));
    // 15 pages went to the device and were not used; those that came back have not left again.
    assert_eq!(done.unused, Some(15));
}

#[test]
fn prefetched_first_touches_that_nobody_uses_are_counted() {
    // The device's first touch brings 16 untouched pages; the CPU takes them, and uses one.
    let policy = "density+lru+timeslice:min=0us";
    let mut trace = vec![write(DEVICE, 0), write(CPU, 0)];
    let done = replay(trace.clone(), &config(policy, 64)).unwrap();
    assert_eq!((done.pages_to_device, done.pages_to_system), (16, 16));
    assert_eq!(done.unused, Some(15));
    // What was freed has not left.
    let freed = Event::new(
        Duration::ZERO,
        EventKind::Freed,
        PageRange::new(Page(0), Page(16)),
    );
    trace.insert(1, freed);
    assert_eq!(replay(trace, &config(policy, 64)).unwrap().unused, Some(0));
}

#[test]
fn what_somebody_asked_for_is_done_and_what_the_policy_did_then_is_not() {
    let range = PageRange::new(Page(0), Page(4));
    let to_device = |cause| Event {
        device: DEVICE,
        cause: Some(cause),
        ..Event::new(Duration::ZERO, EventKind::ToDevice, range)
    };
    let trace = [
        to_device(Cause::Demand),
        to_device(Cause::User),
        write(CPU, 0),
    ];
    let done = replay(trace, &config(PLAIN, 16)).unwrap();
    assert_eq!((done.pages_to_device, done.cpu_faults), (4, 1));
    let moves: Vec<_> = done
        .moves
        .iter()
        .map(|e| (e.kind, e.page.0, e.pages))
        .collect();
    assert_eq!(
        moves.iter().filter(|m| m.0 == EventKind::ToDevice).count(),
        1
    );
}

/// On the CPU once, then a device's accesses.
fn used_by_a_device(n: u32) -> Vec<Event> {
    let mut trace = vec![write(CPU, 3)];
    trace.extend((0..n).map(|_| write(DEVICE, 3)));
    trace
}

#[test]
fn accesses_in_place_cost_more_and_bring_the_page_when_there_are_many() {
    let policy = "access-counter:threshold=8+lru+timeslice:min=0us";
    let done = replay(used_by_a_device(7), &config(policy, 16)).unwrap();
    assert_eq!((done.remote_accesses, done.pages_to_device), (7, 0));
    assert_eq!(done.modelled_ns, 8 * 10 + 2 * 100_000 + 7 * 5_000);
    let done = replay(used_by_a_device(20), &config(policy, 16)).unwrap();
    assert_eq!((done.remote_accesses, done.pages_to_device), (8, 1));
    // Coming to the device is the policy's doing, and the next access finds no translation.
    assert_eq!((done.prefetched, done.device_faults), (1, 1));
}

fn scripted(file: &Path, text: &str) -> Chosen {
    std::fs::write(file, text).unwrap();
    let spec = format!("{}+timeslice:min=0us", file.display());
    let choice: PolicyChoice = spec.parse().unwrap();
    let log = Arc::new(|line: &str| panic!("{line}"));
    choice.load(Limits::default(), log).unwrap()
}

/// Whatever function of a script is called, it finds what the others have noted; and nothing of another machine.
#[test]
fn a_script_has_one_state_for_each_machine() {
    let folder = tempfile::tempdir().unwrap();
    let text = "return {
        on_fault = function(page)
            state.faults = (state.faults or 0) + 1
            state.last = page
            return false
        end,
        victims = function(want, candidates)
            -- 16 pages fit; page n is the fault number n + 1 of this machine.
            assert(state.faults == state.last + 1 and state.faults > 16)
            return { 1 }
        end,
    }";
    let chosen = scripted(&folder.path().join("state.luau"), text);
    for _ in 0..2 {
        let config = ReplayConfig {
            policy: chosen.factory.clone(),
            ..config(PLAIN, 16)
        };
        let done = replay((0..20).map(|page| write(DEVICE, page)), &config).unwrap();
        assert_eq!((done.device_faults, done.evicted), (20, 4));
    }
    assert_eq!(chosen.scripts[0].figures().failures, 0);
}

/// Scripts are notified of accesses in place, also beside regions with other policies.
#[test]
fn a_script_may_count_accesses_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("counter.luau");
    let script = |threshold: &str| {
        let text = format!(
            "return {{ {threshold}
                on_fault = function(page, write, device) return nil, nil, nil, nil, device ~= nil end,
                on_remote_accesses = function() return true end,
            }}"
        );
        scripted(&file, &text).factory
    };
    let counted = |policy: Arc<dyn PolicyFactory>, n| {
        let config = ReplayConfig {
            policy,
            ..config(PLAIN, 16)
        };
        let done = replay(used_by_a_device(n), &config).unwrap();
        (done.remote_accesses, done.pages_to_device)
    };
    // The group of 16 pages comes, as far as a quarter of device memory.
    let eight = script("remote_access_threshold = 8,");
    assert_eq!(counted(eight.clone(), 7), (7, 0));
    assert_eq!(counted(eight.clone(), 20), (8, 4));
    assert_eq!(counted(script(""), 300), (256, 4));
}

#[test]
fn traces_that_do_not_fit_are_refused() {
    let error = |event| replay([write(CPU, 0), event], &config(PLAIN, 16)).unwrap_err();
    let beyond = error(write(CPU, 5000));
    assert!(
        matches!(
            beyond,
            ReplayError::OutOfMemory {
                event: 1,
                page: 5000,
                pages: 1024
            }
        ),
        "{beyond}"
    );
    let other = error(write(Some(DeviceId(3)), 0));
    assert!(
        matches!(
            other,
            ReplayError::NoDevice {
                event: 1,
                device: 3,
                devices: 1
            }
        ),
        "{other}"
    );
}

fn json(done: &Replayed) -> String {
    serde_json::to_string(done).unwrap()
}

/// Numbers in a trace set neither time nor memory: accesses that change nothing are only counted.
#[test]
fn four_billion_accesses_are_as_quick_as_one() {
    let many = |device, pages| Event {
        pages,
        repeats: u32::MAX,
        ..write(device, 0)
    };
    for policy in [
        PLAIN,
        "access-counter:threshold=1+lru",
        "access-counter:threshold=65535",
    ] {
        let trace = [
            many(DEVICE, 1),
            many(CPU, 1),
            many(DEVICE, 512),
            many(DEVICE, 1),
        ];
        let done = replay(trace, &config(policy, 2)).unwrap();
        assert_eq!(done.accesses, 515 * u64::from(u32::MAX), "{policy}");
    }
    let all = Event {
        pages: 1 << 10,
        ..write(DEVICE, 0)
    };
    let mut damaged = config(PLAIN, 16);
    damaged.memory = 1 << 40;
    // Pages that nothing happened to are freed at once.
    let freed = Event {
        kind: EventKind::Freed,
        pages: 1 << 20,
        ..write(CPU, 0)
    };
    let trace = std::iter::once(all).chain(std::iter::repeat_n(freed, 1000));
    let done = replay(trace, &damaged).unwrap();
    assert_eq!(done.accesses, 1 << 10);
}

/// How often a program accesses the same pages in a row.
fn run_of_accesses() -> impl Strategy<Value = (Event, Event, u32)> {
    let device = prop::sample::select(vec![CPU, DEVICE, DEVICE, DEVICE]);
    let words = prop::sample::select(vec![
        (Access::Read, Access::Read),
        (Access::Write, Access::Write),
        (Access::Write, Access::Read),
    ]);
    (device, 0u32..40, 1u32..4, words, 1u32..30).prop_map(
        |(device, page, pages, (first, others), repeats)| {
            let event = |word| Event {
                pages,
                ..access(device, page, word)
            };
            (event(first), event(others), repeats)
        },
    )
}

proptest! {
    /// One event for accesses in a row has the same outcome as one event for each.
    #[test]
    fn merging_accesses_changes_nothing(
        runs in prop::collection::vec(run_of_accesses(), 1..30),
        policy in prop::sample::select(vec![
            "on-demand+lru+timeslice:min=0us",
            "density+lru",
            "access-counter:threshold=7+lru",
            "access-counter:threshold=40+timeslice:min=1ms",
            "hints+thrash+lru",
        ]),
        device_pages in 4u64..24,
    ) {
        let merged: Vec<_> = runs
            .iter()
            .map(|(first, _, repeats)| Event { repeats: *repeats, ..*first })
            .collect();
        let each: Vec<_> = runs
            .iter()
            .flat_map(|(first, others, repeats)| {
                let others = std::iter::repeat_n(*others, *repeats as usize - 1);
                std::iter::once(*first).chain(others)
            })
            .collect();
        let config = config(policy, device_pages);
        let outcome = |trace: Vec<Event>| {
            let done = replay(trace, &config).unwrap();
            (serde_json::to_string(&done).unwrap(), done.moves)
        };
        prop_assert_eq!(outcome(merged), outcome(each));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is accessed: the same outcome each time, and no policy that migrates on access has fewer arrivals
    /// than the optimum.
    #[test]
    fn replays_are_repeatable_and_never_better_than_the_optimum(
        list in prop::collection::vec((0u32..96, 0u8..8), 1..400), frames in 8u64..64,
        policy in prop::sample::select(vec![PLAIN, "density+lru+timeslice:min=0us", "on-demand", "density:threshold=20"]),
    ) {
        let trace = list.iter().map(|(page, kind)| match kind {
            0 => Event::new(Duration::ZERO, EventKind::Freed, PageRange::single(Page(*page))),
            1 | 2 => write(CPU, *page),
            3 => access(CPU, *page, Access::Read),
            4 => access(DEVICE, *page, Access::Read),
            _ => write(DEVICE, *page),
        });
        let config = config(policy, frames);
        let done = replay(trace.clone(), &config).unwrap();
        prop_assert_eq!(json(&done), json(&replay(trace, &config).unwrap()));
        let least = done.optimal.unwrap();
        // A page that could not get room in time is reached in place: one arrival less.
        prop_assert!(done.pages_to_device + done.mapped_in_place >= least.pages_to_device, "{}", json(&done));
        prop_assert!(done.cpu_faults + done.device_faults <= done.accesses);
    }
}
