//! A sweep's rows, grouped for comparison.

use std::collections::BTreeMap;

use super::axis::Unit;
use super::statistics::Estimate;
use crate::size::Size;
use crate::sweep::Row;

/// What can be compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    /// Modelled, or where there is no model, wall-clock time, in nanoseconds.
    Time,
    /// Bytes migrated both ways.
    Bytes,
    /// Faults of CPUs and devices.
    Faults,
}

impl Metric {
    pub(super) fn of(self, row: &Row) -> Option<f64> {
        match self {
            Metric::Time => match row.modelled_ns {
                Some(ns) => Some(ns as f64),
                None => row.elapsed_s.map(|seconds| seconds * 1e9),
            },
            Metric::Bytes => row.bytes_moved().map(|bytes| bytes as f64),
            Metric::Faults => Some((row.cpu_faults? + row.device_faults.unwrap_or(0)) as f64),
        }
    }

    pub(super) fn unit(self, largest: f64) -> Unit {
        match self {
            Metric::Time => Unit::time(largest),
            Metric::Bytes => Unit::bytes(largest),
            Metric::Faults => Unit::count(),
        }
    }
}

/// The runs with one policy and size, which differ in the seed only.
pub(super) struct Cell<'a>(Vec<&'a Row>);

impl Cell<'_> {
    pub(super) fn estimate(&self, metric: Metric) -> Option<Estimate> {
        self.mean(|row| metric.of(row))
    }

    pub(super) fn mean(&self, value: impl Fn(&Row) -> Option<f64>) -> Option<Estimate> {
        let values: Vec<f64> = self.0.iter().filter_map(|row| value(row)).collect();
        Estimate::of(&values)
    }
}

/// Runs of one workload or trace with one link: what is compared with each other.
pub(super) struct Group<'a> {
    pub(super) name: String,
    /// Live runs measure time, replays model it.
    pub(super) live: bool,
    /// Device memories in bytes, ascending.
    pub(super) sizes: Vec<u64>,
    cells: BTreeMap<(u64, &'a str), Cell<'a>>,
}

impl<'a> Group<'a> {
    /// The runs of a policy with this much device memory.
    pub(super) fn cell(&self, size: u64, policy: &'a str) -> Option<&Cell<'a>> {
        self.cells.get(&(size, policy))
    }
}

/// All runs.
pub(super) struct Results<'a> {
    /// In the order of the sweep.
    pub(super) policies: Vec<&'a str>,
    pub(super) groups: Vec<Group<'a>>,
    pub(super) failed: Vec<&'a Row>,
}

impl<'a> Results<'a> {
    pub(super) fn of(rows: &'a [Row]) -> Results<'a> {
        let mut results = Results {
            policies: Vec::new(),
            groups: Vec::new(),
            failed: Vec::new(),
        };
        for row in rows {
            let policy = row.policy.as_deref().unwrap_or("unknown");
            if !results.policies.contains(&policy) {
                results.policies.push(policy);
            }
            if row.error.is_some() {
                results.failed.push(row);
                continue;
            }
            let name = group_name(row);
            let place = results.groups.iter().position(|group| group.name == name);
            let place = place.unwrap_or_else(|| {
                results.groups.push(Group {
                    name,
                    live: row.mode.as_deref() == Some("live"),
                    sizes: Vec::new(),
                    cells: BTreeMap::new(),
                });
                results.groups.len() - 1
            });
            let group = &mut results.groups[place];
            let size = row.device_memory_bytes.unwrap_or(0);
            if let Err(at) = group.sizes.binary_search(&size) {
                group.sizes.insert(at, size);
            }
            let cell = group.cells.entry((size, policy));
            cell.or_insert_with(|| Cell(Vec::new())).0.push(row);
        }
        results
    }
}

fn group_name(row: &Row) -> String {
    let mut name = row.source.clone().unwrap_or_default();
    let params = row.params.as_deref().unwrap_or("");
    if !params.is_empty() && row.mode.as_deref() != Some("trace") {
        name += &format!(" ({params})");
    }
    if let Some(bytes) = row.memory_bytes {
        name += &format!(", {} of guest memory", Size(bytes));
    }
    match (row.mode.as_deref(), &row.link) {
        (Some("live"), _) => {
            let engine = row.engine.as_deref().unwrap_or("auto");
            let vcpus = row.vcpus.unwrap_or(1);
            let devices = row.devices.unwrap_or(1);
            name += &format!(", live: {vcpus} vCPUs, {devices} accelerators, engine {engine}");
        }
        (_, Some(link)) => name += &format!(", link {link}"),
        _ => {}
    }
    name
}
