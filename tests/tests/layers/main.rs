//! The shape of the code: which file imports which, measured from the sources themselves.
//!
//! In each package, folders are layers: no file imports one of a folder above its own, and no circle of imports crosses
//! folders or has more than two files, but for those listed with their reason. A failure names the imports that break
//! the rule, file by file. `cargo test -p hmmvisor-testkit --test layers -- --nocapture` prints the figures.

mod imports;

use std::collections::{BTreeMap, BTreeSet};

use imports::{Graph, Import};

/// A package's rule.
struct House {
    package: &'static str,
    /// Folders of `src` (or files there, without their suffix), the lowest first. A folder imports only those before it.
    /// Files that are not listed are the top.
    layers: &'static [&'static str],
    /// Circles of more than two files that belong together.
    circles: &'static [&'static [&'static str]],
}

const HOUSES: &[House] = &[
    House {
        package: "hmm-backend",
        layers: &[
            "host",
            "pages",
            "observe",
            "residency",
            "memory",
            "policy",
            "migrate",
            "fault",
            "ops",
            "service",
            "backend",
        ],
        // A driver is called with the phases of a migration, whose devices have the driver.
        circles: &[&[
            "migrate/core.rs",
            "migrate/device.rs",
            "migrate/driver.rs",
            "migrate/driver_calls.rs",
            "migrate/to_device.rs",
            "migrate/to_system.rs",
        ]],
    },
    House {
        package: "devices",
        layers: &[],
        circles: &[],
    },
    House {
        package: "policies",
        layers: &[],
        circles: &[],
    },
    House {
        package: "experiments",
        layers: &[],
        circles: &[],
    },
    House {
        package: "experiments/accesses",
        layers: &[],
        circles: &[],
    },
    House {
        package: "api",
        layers: &[],
        circles: &[],
    },
    House {
        package: "torture",
        layers: &[],
        circles: &[],
    },
    House {
        package: "vmm",
        layers: &[
            "host", "outlet", "messages", "sandbox", "ending", "machine", "console", "guest",
            "config", "vm", "api", "run", "cli",
        ],
        circles: &[],
    },
];

/// The folder of `src` that a file is in; `src` itself for those that are in none.
fn folder(file: &str) -> &str {
    file.split_once('/').map_or("src", |(folder, _)| folder)
}

/// What a package's layers call the file: its folder, or its own name.
fn layer(file: &str) -> &str {
    match file.split_once('/') {
        Some((folder, _)) => folder,
        None => file.strip_suffix(".rs").unwrap_or(file),
    }
}

fn lines<'a>(imports: impl IntoIterator<Item = &'a Import>) -> String {
    let line = |i: &Import| format!("  {} -> {}: {}\n", i.from, i.to, i.what);
    imports.into_iter().map(line).collect()
}

/// The imports that run upwards between layers.
fn upwards<'a>(house: &House, graph: &'a Graph) -> Vec<&'a Import> {
    let level = |file: &str| {
        let at = house.layers.iter().position(|known| *known == layer(file));
        at.unwrap_or(house.layers.len())
    };
    let upward = |i: &&Import| level(&i.from) < level(&i.to);
    match house.layers.is_empty() {
        true => Vec::new(),
        false => graph.imports.iter().filter(upward).collect(),
    }
}

fn check(house: &House) -> Vec<String> {
    let graph = Graph::of(house.package);
    let mut wrong = Vec::new();
    let up = upwards(house, &graph);
    if !up.is_empty() {
        wrong.push(format!(
            "{}: a layer imports one above it:\n{}",
            house.package,
            lines(up.iter().copied())
        ));
    }
    for circle in graph.circles() {
        let within = |i: &&Import| circle.contains(&*i.from) && circle.contains(&*i.to);
        let arrows = || lines(graph.imports.iter().filter(within));
        let folders: BTreeSet<&str> = circle.iter().map(|file| folder(file)).collect();
        if folders.len() > 1 {
            wrong.push(format!(
                "{}: a circle of imports crosses folders:\n{}",
                house.package,
                arrows()
            ));
        } else if circle.len() > 2
            && !house
                .circles
                .iter()
                .any(|known| circle.iter().all(|file| known.contains(file)))
        {
            wrong.push(format!(
                "{}: a circle of {} files:\n{}",
                house.package,
                circle.len(),
                arrows()
            ));
        }
    }
    let rooms: BTreeMap<(&str, &str), usize> = graph
        .imports
        .iter()
        .map(|i| (folder(&i.from), folder(&i.to)))
        .filter(|(from, to)| from != to)
        .fold(BTreeMap::new(), |mut rooms, room| {
            *rooms.entry(room).or_default() += 1;
            rooms
        });
    println!(
        "{}: {} files, {} imports between files, {} of them between folders, {} pairs of folders, {} upwards; circles of {:?} files",
        house.package,
        graph.files,
        graph.imports.len(),
        rooms.values().sum::<usize>(),
        rooms.len(),
        up.len(),
        graph
            .circles()
            .iter()
            .map(BTreeSet::len)
            .collect::<Vec<_>>(),
    );
    wrong
}

#[test]
fn imports_run_downwards_and_not_in_circles() {
    let wrong: Vec<String> = HOUSES.iter().flat_map(check).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The test itself can fail: made-up files with one import upwards and one circle.
#[test]
fn a_wrong_import_is_named() {
    let graph = Graph::of_sources(&[
        ("lib.rs", "mod low; mod high; pub use high::High;"),
        ("low/mod.rs", "mod a; mod b; mod c; pub use a::A;"),
        (
            "low/a.rs",
            "use super::b::B; pub struct A(crate::high::High);",
        ),
        ("low/b.rs", "use crate::low::c::C; pub struct B;"),
        (
            "low/c.rs",
            "use crate::low::A; pub struct C; #[cfg(test)] mod tests { use crate::high::High; }",
        ),
        ("high.rs", "pub struct High;"),
    ]);
    let found: Vec<String> = graph
        .imports
        .iter()
        .map(|i| format!("{} -> {}", i.from, i.to))
        .collect();
    assert_eq!(
        found,
        [
            "low/a.rs -> high.rs",
            "low/a.rs -> low/b.rs",
            "low/b.rs -> low/c.rs",
            "low/c.rs -> low/a.rs"
        ]
    );
    assert_eq!(
        graph.circles(),
        [BTreeSet::from(["low/a.rs", "low/b.rs", "low/c.rs"])]
    );
    let house = House {
        package: "",
        layers: &["low", "high"],
        circles: &[],
    };
    assert_eq!(
        lines(upwards(&house, &graph)),
        "  low/a.rs -> high.rs: High\n"
    );
}
