//! Every example script is loaded, asked, and does what its comment says.

mod views;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use hmm_backend::pages::{DeviceId, Frame, Page, PageRange, Place};
use hmm_backend::policy::{
    Advice, BlockFault, BlockView, EvictionPolicy, FaultPolicy, NoBits, PolicyFactory, PolicySpec,
    Seen,
};
use hmmvisor_policies::{EXAMPLES, Limits, PolicyChoice, ScriptError, ScriptSpec, Scripts};
use views::{Random, each_view};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A script that must not fail.
fn load(spec: &str) -> Arc<Scripts> {
    let text = format!("{}/{spec}", env!("CARGO_MANIFEST_DIR"));
    let choice: PolicyChoice = text.parse().unwrap();
    let chosen = choice
        .load(Limits::default(), Arc::new(|line| eprintln!("{line}")))
        .unwrap();
    chosen.scripts[0].clone()
}

/// Asks at real faults, in `blocks` blocks.
fn ask<T: Send + 'static>(
    blocks: u32,
    mut question: impl FnMut(&BlockFault, &BlockView<'_>) -> T + Send + 'static,
) -> Vec<T> {
    let (said, heard) = mpsc::channel();
    each_view(blocks, 42, move |fault, view| {
        said.send(question(fault, view)).unwrap();
    });
    heard.into_iter().collect()
}

/// Asks once, at a fault on one page towards a place.
fn decide(
    policy: &mut dyn FaultPolicy,
    at: (u32, Place, Duration),
    (fault, view): (&BlockFault, &BlockView<'_>),
) -> Advice {
    let page = Page(at.0);
    let fault = BlockFault {
        block: page.block(),
        pages: [page.index_in_block()].into_iter().collect(),
        to: at.1,
        now: at.2,
        ..*fault
    };
    policy.advise(&fault, view)
}

const DEVICE: Place = Place::Device(DeviceId(0));

#[test]
fn there_is_a_test_for_every_example() {
    let text = std::fs::read_to_string(path("tests/examples.rs")).unwrap();
    let mut examples = 0;
    for entry in std::fs::read_dir(path("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".luau") && !name.ends_with(".d.luau") {
            examples += 1;
            assert!(text.contains(&format!("(\"{name}\"")), "{name}");
        }
    }
    assert!(examples >= 6);
}

/// The names that a declaration or type in the definitions has, in order.
fn declared(definitions: &str, head: &str) -> Vec<String> {
    let (_, rest) = definitions.split_once(head).expect(head);
    let (body, _) = rest.split_once("\n}").expect("its end");
    let name = |line: &str| {
        let (name, _) = line.strip_prefix('\t')?.split_once(':')?;
        let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c == '_') || name == "BLOCK";
        is_name.then(|| name.to_owned())
    };
    let mut names: Vec<String> = body.lines().filter_map(name).collect();
    names.sort();
    names
}

/// What the script prints when it is loaded and chooses victims.
fn printed(text: &str) -> (Vec<String>, Result<Arc<Scripts>, ScriptError>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("names.luau");
    std::fs::write(&path, text).unwrap();
    let (said, heard) = mpsc::channel();
    let said = std::sync::Mutex::new(said);
    let log = Arc::new(move |line: &str| said.lock().unwrap().send(line.to_owned()).unwrap());
    let scripts = Scripts::with(ScriptSpec::file(path), Limits::default(), log);
    let scripts = scripts.inspect(|scripts| {
        let mut eviction = scripts.eviction_policy(8);
        eviction.allocated(Frame(0), 0, Page(0));
        eviction.victims(1, &mut NoBits);
    });
    let mut lines: Vec<String> = heard
        .try_iter()
        .map(|line| line.rsplit(' ').next().unwrap().to_owned())
        .collect();
    lines.sort();
    lines.dedup();
    (lines, scripts)
}

/// Editors and readers learn of everything there is, and of nothing that is not there.
#[test]
fn definitions_and_reference_name_everything() {
    let read = |file| std::fs::read_to_string(path(file)).unwrap();
    let (definitions, reference) = (read("hmmvisor.d.luau"), read("../docs/policy-scripts.md"));
    let mut names = Vec::new();
    for (table, head) in [("hmm", "\ndeclare hmm: {"), ("pages", "\ndeclare pages: {")] {
        let text = format!("for name in {table} do print(name) end return {{ on_fault = print }}");
        let (there, scripts) = printed(&text);
        scripts.unwrap();
        assert!(there.len() > 5);
        assert_eq!(declared(&definitions, head), there);
        names.extend(there);
    }

    let text = "return { victims = function(_, list) for name in list[1] do print(name) end end }";
    let (there, scripts) = printed(text);
    assert_eq!(scripts.unwrap().figures().failures, 0);
    assert_eq!(declared(&definitions, "\nexport type Candidate = {"), there);
    names.extend(there);

    let error = printed("return { nothing = 1 }")
        .1
        .err()
        .unwrap()
        .to_string();
    let (_, known) = error.split_once("it may return: ").unwrap();
    let mut there: Vec<String> = known.split(", ").map(str::to_owned).collect();
    there.sort();
    assert_eq!(declared(&definitions, "\nexport type Policy = {"), there);
    names.extend(there);

    // The crate's own test compares these with what is read.
    names.extend(declared(&definitions, "\nexport type Advice = {"));
    names.extend(["state", "preferred", "accessed-by", "read-mostly"].map(str::to_owned));
    for name in names {
        assert!(definitions.contains(&name), "the definitions: {name}");
        assert!(reference.contains(&name), "the reference: {name}");
    }
}

/// Thousands of random blocks and faults: one page and several, both directions, all thresholds.
#[test]
fn density_decides_as_the_built_in_does() {
    for (script, built_in) in [
        ("density.luau", "density"),
        ("density.luau:threshold=1", "density:threshold=1"),
        ("density.luau:threshold=80", "density:threshold=80"),
        ("density.luau:threshold=100", "density:threshold=100"),
        ("density.luau:min_faults=4", "density:min_faults=4"),
    ] {
        let scripts = if script == "density.luau" {
            load("density.luau")
        } else {
            load(script)
        };
        let spec: PolicySpec = built_in.parse().unwrap();
        let (mut ours, mut theirs) = (scripts.fault_policy(), spec.fault_policy());
        let mut random = Random(7);
        let results = ask(24, move |fault, view| {
            (0..100)
                .map(|_| {
                    let several = if random.below(3) == 0 {
                        1 + random.below(40)
                    } else {
                        1
                    };
                    let pages = (0..several).map(|_| random.below(512) as usize);
                    let fault = BlockFault {
                        pages: pages.collect(),
                        to: if random.below(2) == 0 {
                            Place::System
                        } else {
                            DEVICE
                        },
                        ..*fault
                    };
                    let (ours, cut) = ours.advise(&fault, view).validated(&fault, view);
                    let (theirs, _) = theirs.advise(&fault, view).validated(&fault, view);
                    assert_eq!(ours, theirs, "{fault:?}");
                    assert!(!cut);
                    !ours.prefetch.is_empty()
                })
                .filter(|something| *something)
                .count()
        });
        assert_eq!(results.len(), 24, "{script}");
        assert!(
            results.iter().sum::<usize>() > 100 || script.contains("100"),
            "{script}"
        );
        let figures = scripts.figures();
        assert_eq!((figures.decisions, figures.failures), (2400, 0), "{script}");
    }
}

#[test]
fn on_demand_brings_nothing_along() {
    let scripts = load("on_demand.luau");
    let mut policy = scripts.fault_policy();
    let advice = ask(4, move |fault, view| policy.advise(fault, view));
    assert_eq!(advice.len(), 4);
    for advice in advice {
        assert!(advice.prefetch.is_empty() && advice.migrate.is_empty());
        // What stands beside the script.
        assert_eq!(advice.hold, Duration::from_micros(100));
    }
    assert_eq!(scripts.figures().decisions, 4);
}

#[test]
fn stride_finds_sequences_and_strides() {
    let scripts = load("stride.luau");
    let mut policy = scripts.fault_policy();
    let found = ask(1, move |fault, view| {
        let mut at = |page, to| decide(&mut *policy, (page, to, fault.now), (fault, view));
        let mut last = Vec::new();
        for page in [100, 101, 102] {
            last.push(at(page, Place::System));
        }
        // The device's stream is its own.
        for page in [0, 8, 16] {
            last.push(at(page, DEVICE));
        }
        // It goes on beyond the block.
        last.push(at(510, Place::System));
        last.push(at(511, Place::System));
        last.push(at(512, Place::System));
        last
    });
    let found = &found[0];
    assert!(found[0].prefetch.is_empty() && found[1].prefetch.is_empty());
    assert_eq!(found[2].prefetch, (103..119).collect());
    assert_eq!(found[5].prefetch, (1..=16).map(|i| 16 + 8 * i).collect());
    // 408 pages further on is too far for the window: a new stream.
    assert!(found[6].prefetch.is_empty(), "{:?}", found[6]);
    assert_eq!(found[8].prefetch, (1..17).collect());
    assert_eq!(scripts.figures().failures, 0);
}

/// A device that adds two arrays walks through three, in turns.
#[test]
fn stride_follows_several_arrays_of_one_device() {
    let scripts = load("stride.luau");
    let mut policy = scripts.fault_policy();
    let found = ask(1, move |fault, view| {
        let mut at = |page| decide(&mut *policy, (page, DEVICE, fault.now), (fault, view));
        // The last array is entered from the block before it.
        let arrays = [0, 5120, 10240 - 2];
        let steps = (0..4).flat_map(|step| arrays.map(|start| start + step));
        steps
            .map(&mut at)
            .map(|advice| advice.prefetch.count())
            .collect::<Vec<_>>()
    });
    let found = &found[0];
    assert_eq!(found[..6], [0; 6], "{found:?}");
    assert!(found[6..].iter().all(|pages| *pages > 0), "{found:?}");
    assert_eq!(scripts.figures().failures, 0);
}

#[test]
fn markov_learns_what_comes_next() {
    let scripts = load("markov.luau");
    let mut policy = scripts.fault_policy();
    let wishes = ask(1, move |fault, view| {
        let mut wishes = Vec::new();
        for round in 0..4 {
            for page in [32, 900, 5000] {
                let advice = decide(&mut *policy, (page, DEVICE, fault.now), (fault, view));
                assert!(advice.prefetch.count() == 15);
                if round == 3 {
                    wishes.extend(advice.migrate);
                }
            }
        }
        policy.freed(PageRange::with_len(Page(32), 1));
        let freed = decide(&mut *policy, (32, DEVICE, fault.now), (fault, view));
        (wishes, freed.migrate.len())
    });
    let (wishes, freed) = &wishes[0];
    let starts: Vec<_> = wishes
        .iter()
        .map(|w| (w.pages.start.0, w.pages.len(), w.to))
        .collect();
    assert_eq!(
        starts,
        [(896, 16, DEVICE), (4992, 16, DEVICE), (32, 16, DEVICE)]
    );
    assert_eq!(*freed, 0);
    assert_eq!(scripts.figures().failures, 0);
}

#[test]
fn learned_brings_more_along_where_more_is_there() {
    let scripts = load("learned.luau");
    let mut policy = scripts.fault_policy();
    let results = ask(32, move |fault, view| {
        let index = fault.pages.first().unwrap();
        let start = index / 64 * 64;
        let near = view.resident(fault.to).count_in(start..start + 64);
        (near, policy.advise(fault, view).prefetch.count())
    });
    let wide = |(_, n): &&(usize, usize)| *n > 16;
    let (dense, sparse): (Vec<_>, Vec<_>) = results.iter().partition(|(near, _)| *near > 40);
    assert!(dense.iter().any(|it| wide(&it)), "{results:?}");
    assert!(
        !sparse
            .iter()
            .filter(|(near, _)| *near == 0)
            .any(|it| wide(&it)),
        "{results:?}"
    );
    assert_eq!(scripts.figures().failures, 0);
}

#[test]
fn thrash_guard_stops_ping_pong() {
    let scripts = load("thrash_guard.luau");
    let mut policy = scripts.fault_policy();
    let results = ask(1, move |fault, view| {
        let mut results = Vec::new();
        for i in 0..8 {
            let to = if i % 2 == 0 { Place::System } else { DEVICE };
            let now = Duration::from_micros(i * 100);
            results.push(decide(&mut *policy, (50, to, now), (fault, view)));
        }
        results
    });
    let results = &results[0];
    // The third change of side is the device's: it works in place; the sixth is a CPU's... and so on.
    assert!(results.iter().any(|advice| advice.stay));
    assert!(!results[0].stay && !results[1].stay);
    // What density says of the first faults.
    assert!(!results[0].prefetch.is_empty() || !results[1].prefetch.is_empty());
    assert_eq!(scripts.figures().failures, 0);

    // Slow enough, it is no thrashing.
    let mut policy = scripts.fault_policy();
    let results = ask(1, move |fault, view| {
        (0..8)
            .map(|i| {
                let to = if i % 2 == 0 { Place::System } else { DEVICE };
                let now = Duration::from_millis(i * 100);
                decide(&mut *policy, (50, to, now), (fault, view))
            })
            .any(|advice| advice.stay || advice.hold > Duration::from_millis(1))
    });
    assert_eq!(results, [false]);
}

#[test]
fn hot_cold_fetches_hot_blocks_and_evicts_the_least_used() {
    let scripts = load("hot_cold.luau");
    let mut policy = scripts.fault_policy();
    assert_eq!(policy.tick_interval(), Some(Duration::from_millis(50)));
    let results = ask(1, move |fault, view| {
        let mut counts = Vec::new();
        for _ in 0..8 {
            let advice = decide(&mut *policy, (70, Place::System, fault.now), (fault, view));
            counts.push(advice.prefetch.count());
        }
        for _ in 0..8 {
            policy.tick(fault.now, Seen::default());
        }
        let advice = decide(&mut *policy, (70, Place::System, fault.now), (fault, view));
        counts.push(advice.prefetch.count());
        counts
    });
    assert_eq!(results, [[0, 0, 0, 0, 0, 0, 0, 63, 0]]);

    let mut eviction = scripts.eviction_policy(64);
    for frame in 0..16 {
        eviction.allocated(Frame(frame), 0, Page(frame));
    }
    for frame in [0, 1, 2, 3] {
        eviction.touched(Frame(frame), 1);
    }
    // Those in use are the newest for LRU, too: 4 of 16 candidates, in order.
    assert_eq!(eviction.victims(2, &mut NoBits), [Frame(4), Frame(5)]);
    for frame in 4..15 {
        eviction.touched(Frame(frame), 1);
        eviction.touched(Frame(frame), 1);
    }
    // LRU would begin with 15 and 0; of the candidates (15, 0, 1, 2, 3, 4, 5, 6) the least used come first.
    assert_eq!(
        eviction.victims(3, &mut NoBits),
        [Frame(15), Frame(0), Frame(1)]
    );
    eviction.freed(Frame(15));
    assert_eq!(eviction.victims(1, &mut NoBits), [Frame(0)]);
    assert_eq!(scripts.figures().failures, 0);
}

#[test]
fn keep_evicts_neither_its_range_nor_what_comes_back() {
    // Folios of 16 pages, each a 64 KiB group.
    let come = |eviction: &mut dyn EvictionPolicy, group: u32| {
        eviction.allocated(Frame(group * 16), 4, Page(group * 16));
    };
    let first = |eviction: &mut dyn EvictionPolicy| eviction.victims(16, &mut NoBits)[0].0 / 16;

    let scripts = load("keep.luau");
    let mut eviction = scripts.eviction_policy(1024);
    (0..4).for_each(|group| come(&mut *eviction, group));
    assert_eq!(first(&mut *eviction), 0);
    eviction.freed(Frame(0));
    come(&mut *eviction, 0);
    // The least recently used is not 0, which is the newest now; then it would be.
    for expected in [1, 2, 3] {
        assert_eq!(first(&mut *eviction), expected);
        eviction.freed(Frame(expected * 16));
    }
    come(&mut *eviction, 5);
    // LRU would say 0, but that has come back once.
    assert_eq!(first(&mut *eviction), 5);
    assert_eq!(scripts.figures().failures, 0);

    let scripts = load("keep.luau:first=0,count=17");
    let mut eviction = scripts.eviction_policy(1024);
    (0..4).for_each(|group| come(&mut *eviction, group));
    assert_eq!(first(&mut *eviction), 2);
    eviction.freed(Frame(32));
    eviction.freed(Frame(48));
    // When there is nothing else.
    assert_eq!(first(&mut *eviction), 0);
    assert_eq!(scripts.figures().failures, 0);
}

#[test]
fn all_examples_are_listed_in_the_program_and_in_the_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = std::fs::read_dir(folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut there: Vec<String> = names
        .filter(|name| name.ends_with(".luau") && !name.ends_with(".d.luau"))
        .collect();
    there.sort();
    let mut listed: Vec<&str> = EXAMPLES.iter().map(|example| example.name).collect();
    listed.sort_unstable();
    assert_eq!(listed, there);
    let reference = std::fs::read_to_string(folder.join("../docs/policy-scripts.md")).unwrap();
    for example in EXAMPLES {
        let row = format!("| `{}` | ", example.name);
        assert!(reference.contains(&row), "{row}");
        assert!(example.summary().len() > 10, "{row}{}", example.summary());
    }
}
