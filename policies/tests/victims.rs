//! Device memory is short: the candidates that a script gets, and that its order counts.

use std::sync::{Arc, Mutex};

use hmm_backend::pages::{Frame, Page};
use hmm_backend::policy::{EvictionPolicy, NoBits, PolicyFactory};
use hmmvisor_policies::{Limits, PolicyChoice, Scripts};

type Lines = Arc<Mutex<Vec<String>>>;

/// The eviction policy for a device of 1024 frames that a script with this `victims` makes.
fn eviction(body: &str, beside: &str) -> (Box<dyn EvictionPolicy>, Arc<Scripts>, Lines) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("victims.luau");
    let text = format!("return {{ victims = function(want, candidates)\n{body}\nend }}");
    std::fs::write(&path, text).unwrap();
    let choice: PolicyChoice = format!("{}{beside}", path.display()).parse().unwrap();
    let lines = Lines::default();
    let said = lines.clone();
    let log = Arc::new(move |line: &str| said.lock().unwrap().push(line.to_owned()));
    let chosen = choice.load(Limits::default(), log).unwrap();
    let scripts = chosen.scripts[0].clone();
    (scripts.eviction_policy(1024), scripts, lines)
}

fn frames(list: &[u32]) -> Vec<Frame> {
    list.iter().copied().map(Frame).collect()
}

/// Orders candidates by a field, the greatest first.
fn greatest(field: &str) -> String {
    format!(
        "local order = {{}}
        for i in candidates do order[i] = i end
        table.sort(order, function(a, b) return candidates[a].{field} > candidates[b].{field} end)
        return order"
    )
}

#[test]
fn candidates_come_in_the_order_of_the_policy_beside_with_all_that_is_known() {
    let body = "for i, it in candidates do
            print(want, i, it.frame, it.page, it.pages, it.uses, it.age, it.idle)
        end";
    let (mut eviction, scripts, lines) = eviction(body, "");
    eviction.allocated(Frame(0), 2, Page(512));
    eviction.allocated(Frame(8), 0, Page(7));
    eviction.allocated(Frame(9), 0, Page(3000));
    eviction.touched(Frame(0), 1);
    eviction.split(Frame(0), Frame(2), 1);
    eviction.touched(Frame(8), 1);
    eviction.touched(Frame(8), 1);
    eviction.freed(Frame(9));
    // A script that returns nothing evicts in the proposed order.
    assert_eq!(eviction.victims(2, &mut NoBits), frames(&[0]));
    assert_eq!(
        *lines.lock().unwrap(),
        [
            // What is cut keeps its past; both halves have pages of their own.
            "victims.luau: 2 1 0 512 2 1 5 2",
            "victims.luau: 2 2 2 514 2 1 5 2",
            "victims.luau: 2 3 8 7 1 2 4 0",
        ]
    );
    assert_eq!(scripts.figures().failures, 0);
}

#[test]
fn a_list_with_another_key_than_places_is_an_error_of_the_script() {
    let (mut eviction, scripts, lines) = eviction("return { first = 2 }", "");
    eviction.allocated(Frame(0), 0, Page(512));
    eviction.allocated(Frame(8), 0, Page(7));
    assert_eq!(eviction.victims(1, &mut NoBits), frames(&[0]));
    assert_eq!(scripts.figures().failures, 1);
    let said = lines.lock().unwrap();
    let expected = "victims.luau:1: victims returned a table with the key `first` where a list of candidates' indices is expected";
    assert!(said[0].starts_with(expected), "{said:?}");
}

#[test]
fn a_scripts_order_counts() {
    for (field, expected) in [
        ("page", [3, 2]),
        ("frame", [7, 6]),
        ("idle", [1, 2]),
        ("age", [0, 1]),
        ("uses", [0, 7]),
    ] {
        let (mut eviction, scripts, _) = eviction(&greatest(field), "");
        for (frame, page) in (0..8).zip([100, 700, 800, 900, 5, 4, 3, 2]) {
            eviction.allocated(Frame(frame), 0, Page(page));
        }
        eviction.touched(Frame(0), 1);
        eviction.touched(Frame(0), 1);
        eviction.touched(Frame(7), 1);
        assert_eq!(
            eviction.victims(2, &mut NoBits),
            frames(&expected),
            "by {field}"
        );
        assert_eq!(scripts.figures().failures, 0);
    }
}

/// A folio that cannot be evicted is not proposed again, even if the script prefers it, until another folio has arrived.
#[test]
fn what_cannot_go_is_not_proposed_again_at_once() {
    for beside in ["", "+fifo", "+clock", "+lfu", "+s3-fifo", "+by-migration"] {
        let (mut eviction, _, _) = eviction(&greatest("page"), beside);
        for frame in 0..8 {
            eviction.allocated(Frame(frame), 0, Page(frame));
        }
        assert_eq!(
            eviction.victims(2, &mut NoBits),
            frames(&[7, 6]),
            "{beside}"
        );
        eviction.refused(Frame(7));
        eviction.refused(Frame(6));
        assert_eq!(
            eviction.victims(2, &mut NoBits),
            frames(&[5, 4]),
            "{beside}"
        );
        for frame in 0..6 {
            eviction.refused(Frame(frame));
        }
        // There is nothing else.
        let mut all = eviction.victims(8, &mut NoBits);
        all.sort();
        assert_eq!(all, frames(&[0, 1, 2, 3, 4, 5, 6, 7]), "{beside}");
        eviction.allocated(Frame(8), 0, Page(8));
        assert_eq!(
            eviction.victims(3, &mut NoBits),
            frames(&[8, 7, 6]),
            "{beside}"
        );
    }
}

/// The proposing policy is notified, too, so that it proposes others: this one evicts chunks of 512 frames only.
#[test]
fn what_cannot_go_makes_way_in_the_proposals() {
    let (mut eviction, _, _) = eviction(&greatest("page"), "+by-migration");
    for frame in [0, 1, 2, 3, 512] {
        eviction.allocated(Frame(frame), 0, Page(frame));
    }
    assert_eq!(eviction.victims(1, &mut NoBits), frames(&[3]));
    (0..4).for_each(|frame| eviction.refused(Frame(frame)));
    assert_eq!(eviction.victims(1, &mut NoBits), frames(&[512]));
}

/// A refusal is no use.
#[test]
fn refusals_do_not_count_as_uses() {
    let (mut eviction, _, lines) = eviction("print(candidates[1].uses, candidates[1].idle)", "");
    eviction.allocated(Frame(0), 0, Page(0));
    eviction.refused(Frame(0));
    eviction.allocated(Frame(1), 0, Page(1));
    eviction.refused(Frame(1));
    eviction.victims(1, &mut NoBits);
    assert_eq!(*lines.lock().unwrap(), ["victims.luau: 0 1"]);
}

#[test]
fn a_script_looks_at_few() {
    let (mut eviction, scripts, lines) = eviction("print(want, #candidates)", "");
    for frame in 0..1000 {
        eviction.allocated(Frame(frame), 0, Page(frame));
    }
    assert_eq!(eviction.victims(10, &mut NoBits).len(), 10);
    // More are wanted than it can choose from: the proposal's order goes on.
    let many: Vec<u32> = (0..400).collect();
    assert_eq!(eviction.victims(400, &mut NoBits), frames(&many));
    assert_eq!(
        *lines.lock().unwrap(),
        ["victims.luau: 10 40", "victims.luau: 400 256"]
    );
    assert_eq!(scripts.figures().failures, 0);
}

/// Choosing costs a script no more than the bounds of an event, and is worth it.
#[test]
fn the_most_candidates_there_are_fit_into_the_bounds() {
    let (mut eviction, scripts, _) = eviction(&greatest("page"), "");
    for frame in 0..1000 {
        eviction.allocated(Frame(frame), 0, Page(7 * frame % 1000));
    }
    let last = eviction.victims(200, &mut NoBits).last().copied();
    // Of the pages 7 * n % 1000, n below 256, the 200 highest.
    let mut pages: Vec<u32> = (0..256).map(|n| 7 * n % 1000).collect();
    pages.sort_by(|a, b| b.cmp(a));
    let lowest = (0..256).find(|n| 7 * n % 1000 == pages[199]);
    assert_eq!(last, lowest.map(Frame));
    assert_eq!(
        (scripts.figures().decisions, scripts.figures().failures),
        (1, 0)
    );
}
