//! A sweep's rows, grouped for comparison.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hmm_backend::policy::LinkModel;

use super::statistics::Estimate;
use crate::figures::count;
use crate::report::drawing::axis::Unit;
use crate::size::Size;
use crate::sweep::Row;

/// The figures that can be compared.
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

    /// Events in which the policy's script failed, in all runs together.
    pub(super) fn script_failures(&self) -> u64 {
        self.0.iter().filter_map(|row| row.script_failures).sum()
    }

    pub(super) fn mean(&self, value: impl Fn(&Row) -> Option<f64>) -> Option<Estimate> {
        let values: Vec<f64> = self.0.iter().filter_map(|row| value(row)).collect();
        Estimate::of(&values)
    }
}

/// The configuration that runs share if they are compared with each other.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key<'a> {
    mode: Option<&'a str>,
    source: Option<&'a str>,
    params: Option<&'a str>,
    vcpus: Option<u64>,
    devices: Option<u64>,
    memory: Option<u64>,
    engine: Option<&'a str>,
    fidelity: Option<&'a str>,
    link: Option<&'a str>,
    link_model: Option<LinkModel>,
}

impl<'a> Key<'a> {
    fn of(row: &'a Row) -> Key<'a> {
        let mode = row.mode.as_deref();
        // Traces of one name are of one program with several seeds. Their files differ, and their memory may: of an
        // imported trace it is what was accessed.
        let workload = mode != Some("trace");
        Key {
            mode,
            source: row.source.as_deref(),
            params: row.params.as_deref().filter(|_| workload),
            vcpus: row.vcpus,
            devices: row.devices,
            memory: row.memory_bytes.filter(|_| workload),
            engine: row.engine.as_deref(),
            fidelity: row.fidelity.as_deref(),
            link: row.link.as_deref(),
            link_model: row
                .link_latency_ns
                .zip(row.link_bandwidth)
                .map(|link| LinkModel {
                    latency: Duration::from_nanos(link.0),
                    bandwidth: link.1,
                }),
        }
    }
}

/// Runs of one workload or trace on one machine with one link: what is compared with each other.
pub(super) struct Group<'a> {
    key: Key<'a>,
    pub(super) name: String,
    /// Live runs measure time, replays model it.
    pub(super) live: bool,
    /// Device memories in bytes, ascending.
    pub(super) sizes: Vec<u64>,
    cells: BTreeMap<(u64, &'a str), Cell<'a>>,
}

impl<'a> Group<'a> {
    /// What the time of its rows is.
    pub(super) fn time_name(&self) -> &'static str {
        match self.live {
            true => "elapsed time",
            false => "modelled time",
        }
    }

    /// Returns the runs of a policy with this much device memory.
    pub(super) fn cell(&self, size: u64, policy: &'a str) -> Option<&Cell<'a>> {
        self.cells.get(&(size, policy))
    }
}

/// All runs.
pub(super) struct Results<'a> {
    /// The policies, in the order of the sweep.
    pub(super) policies: Vec<&'a str>,
    pub(super) groups: Vec<Group<'a>>,
    pub(super) failed: Vec<&'a Row>,
    /// Runs whose script failed now and then.
    pub(super) script_failed: usize,
}

impl<'a> Results<'a> {
    pub(super) fn of(rows: &'a [Row]) -> Results<'a> {
        let mut results = Results {
            policies: Vec::new(),
            groups: Vec::new(),
            failed: Vec::new(),
            script_failed: 0,
        };
        for row in rows {
            let policy = row.policy.as_deref().unwrap_or("unknown");
            results.script_failed += usize::from(row.script_failures.is_some_and(|n| n > 0));
            if !results.policies.contains(&policy) {
                results.policies.push(policy);
            }
            if row.error.is_some() {
                results.failed.push(row);
                continue;
            }
            let key = Key::of(row);
            let place = results.groups.iter().position(|group| group.key == key);
            let place = place.unwrap_or_else(|| {
                results.groups.push(Group {
                    key,
                    name: key.to_string(),
                    live: key.mode == Some("live"),
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

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.source.unwrap_or_default())?;
        if let Some(params) = self.params.filter(|params| !params.is_empty()) {
            write!(f, " ({params})")?;
        }
        if let Some(bytes) = self.memory {
            write!(f, ", {} of guest memory", Size(bytes))?;
        }
        let several = self.vcpus.is_some_and(|n| n > 1) || self.devices.is_some_and(|n| n > 1);
        match self.mode {
            Some("live") => f.write_str(", live")?,
            Some("trace") => f.write_str(", traced")?,
            _ => {}
        }
        if several || self.mode == Some("live") {
            let (vcpus, devices) = (self.vcpus.unwrap_or(1), self.devices.unwrap_or(1));
            let (vcpus, devices) = (count(vcpus, "vCPU"), count(devices, "accelerator"));
            write!(f, ": {vcpus}, {devices}")?;
        }
        if let Some(engine) = self.engine {
            write!(f, ", engine {engine}")?;
        }
        match self.fidelity {
            None | Some("faults") => {}
            Some(told) => write!(f, ", accesses: {told}")?,
        }
        match (self.link, self.link_model) {
            (Some(name), Some(model)) => write!(f, ", link {name} ({model})"),
            (Some(name), None) => write!(f, ", link {name}"),
            (None, _) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(mode: &str) -> Row {
        Row {
            mode: Some(mode.into()),
            source: Some("bfs".into()),
            params: Some("vertices=4K".into()),
            vcpus: Some(1),
            devices: Some(1),
            memory_bytes: Some(64 << 20),
            policy: Some("density".into()),
            device_memory_bytes: Some(1 << 20),
            link: (mode != "live").then(|| "pcie".into()),
            link_latency_ns: (mode != "live").then_some(10_000),
            link_bandwidth: (mode != "live").then_some(25_000_000_000),
            modelled_ns: Some(1),
            ..Row::default()
        }
    }

    /// Returns the names of the groups, and how many runs share their only cell.
    fn groups(rows: &[Row]) -> Vec<(String, usize)> {
        let results = Results::of(rows);
        let mut groups: Vec<_> = results
            .groups
            .iter()
            .map(|group| {
                let cells: Vec<_> = group.cells.values().collect();
                assert_eq!(cells.len(), 1, "{}", group.name);
                (group.name.clone(), cells[0].0.len())
            })
            .collect();
        groups.sort();
        groups
    }

    #[test]
    fn other_configurations_are_no_other_seeds() {
        let seeds = |seed| Row {
            seed: Some(seed),
            ..row("model")
        };
        let mut rows = vec![seeds(1), seeds(2), row("live"), row("trace")];
        rows.push(Row {
            vcpus: Some(2),
            ..row("model")
        });
        rows.push(Row {
            devices: Some(2),
            ..row("model")
        });
        rows.push(Row {
            memory_bytes: Some(128 << 20),
            ..row("model")
        });
        rows.push(Row {
            params: Some("vertices=8K".into()),
            ..row("model")
        });
        rows.push(Row {
            engine: Some("copy".into()),
            ..row("live")
        });
        rows.push(Row {
            link: Some("slow".into()),
            ..row("model")
        });
        let groups = groups(&rows);
        assert_eq!(groups.len(), rows.len() - 1, "{groups:?}");
        for (index, (name, runs)) in groups.iter().enumerate() {
            // Two seeds of one, and one of each other; each with a heading of its own.
            let seeds = name
                == "bfs (vertices=4K), 64 MiB of guest memory, link pcie (latency=10us,bandwidth=25G)";
            assert_eq!(*runs, if seeds { 2 } else { 1 }, "{name}");
            assert!(!groups[..index].iter().any(|(other, _)| other == name));
        }
    }

    #[test]
    fn traces_of_one_name_are_one_group_whatever_they_accessed() {
        let trace = |file: &str, memory| Row {
            params: Some(file.into()),
            memory_bytes: Some(memory),
            vcpus: None,
            devices: None,
            ..row("trace")
        };
        let rows = [trace("1.trace", 6 << 20), trace("2.trace", 8 << 20)];
        assert_eq!(
            groups(&rows),
            [(
                "bfs, traced, link pcie (latency=10us,bandwidth=25G)".to_owned(),
                2
            )]
        );
        let results = Results::of(&rows);
        let cell = results.groups[0].cell(1 << 20, "density").unwrap();
        assert!(cell.estimate(Metric::Time).unwrap().error.is_some());
    }
}
