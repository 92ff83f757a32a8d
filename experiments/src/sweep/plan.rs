//! A sweep: the list of its runs.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hmm_backend::pages::Fidelity;
use hmm_backend::policy::LinkModel;

use super::row::Row;
use super::shard::Shard;

/// A workload of the embedded guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// The name in the catalogue.
    pub name: String,
    /// The parameters that the sweep's file gives.
    pub params: Vec<(String, String)>,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Number of accelerators.
    pub devices: u32,
    /// `auto`, `remap` or `copy`.
    pub engine: String,
    /// Guest memory in bytes.
    pub memory: u64,
}

/// A trace file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceSource {
    /// The trace's name in results.
    pub name: String,
    /// The path as the sweep's file gives it.
    pub file: String,
    /// The path by which it is opened.
    pub path: PathBuf,
    /// Guest memory in bytes.
    pub memory: u64,
    /// The seed of the run that the trace was made from.
    pub seed: u64,
    /// A hash of the file's content.
    pub digest: u64,
    /// The identity of the file when its content was read.
    pub stamp: Stamp,
}

/// The identity of a file, to notice that it was replaced or written: device, inode, size, time of the last change of its data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamp(u64, u64, u64, i64, i64);

impl Stamp {
    /// Returns the identity of the file as it is now.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn of(path: &Path) -> io::Result<Stamp> {
        let file = path.metadata()?;
        let (seconds, nanoseconds) = (file.mtime(), file.mtime_nsec());
        Ok(Stamp(
            file.dev(),
            file.ino(),
            file.len(),
            seconds,
            nanoseconds,
        ))
    }
}

impl TraceSource {
    /// Checks that the file is still what the sweep was planned with: results of anything else are worth nothing.
    ///
    /// # Errors
    /// The file has been changed, or cannot be looked at; the text says so.
    pub fn unchanged(&self) -> Result<(), String> {
        let trace = self.path.display();
        match Stamp::of(&self.path) {
            Ok(stamp) if stamp == self.stamp => Ok(()),
            Ok(_) => Err(format!(
                "trace {trace} has been changed since the sweep began"
            )),
            Err(error) => Err(format!("looking at trace {trace}: {error}")),
        }
    }
}

/// What a sweep needs to know of a trace: a part of the description in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceFacts {
    /// Guest memory in bytes.
    pub memory: u64,
    /// The seed of the run that the trace was made from.
    pub seed: u64,
}

/// What is run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// The workload in a guest.
    Live(Workload),
    /// The workload's page accesses, made without a VM and replayed.
    Model(Workload),
    /// A trace, replayed.
    Trace(TraceSource),
}

impl Source {
    /// Returns `live`, `model` or `trace`.
    pub fn mode(&self) -> &'static str {
        match self {
            Source::Live(_) => "live",
            Source::Model(_) => "model",
            Source::Trace(_) => "trace",
        }
    }

    /// Returns the size of guest memory in bytes.
    pub fn memory(&self) -> u64 {
        match self {
            Source::Live(workload) | Source::Model(workload) => workload.memory,
            Source::Trace(trace) => trace.memory,
        }
    }
}

/// A policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// The policy, as the sweep's file names it.
    pub spec: String,
    /// The policy's exact name, with all parameters and the checksums of its files.
    pub exact: String,
}

/// A link model with a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// The link's name in results.
    pub name: String,
    /// The cost of its transfers.
    pub model: LinkModel,
}

/// One run of a sweep.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SweepRun {
    /// The run's number in the sweep, from 0.
    pub index: usize,
    /// What is run.
    pub source: Source,
    /// The policy.
    pub policy: Policy,
    /// Memory of each device, in bytes.
    pub device_memory: u64,
    /// How much devices tell of their accesses.
    pub fidelity: Fidelity,
    /// The cost of transfers; none in a live run.
    pub link: Option<Link>,
    /// The seed of all pseudo-random choices.
    pub seed: u64,
    /// Whether to compute what Belady's MIN would do, too: takes up to 12 bytes for each access.
    pub optimal: bool,
}

/// A sweep, checked: everything that it names exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sweep {
    /// The sweep's title.
    pub title: String,
    /// The question that it is to answer.
    pub question: String,
    /// How many live runs at a time; by default half of the cores.
    pub live_at_a_time: Option<usize>,
    /// The runs, in the order of their numbers.
    pub runs: Vec<SweepRun>,
}

/// Hmmvisor's version. Results of different versions do not mix.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Sweep {
    /// Returns a hash of everything that the results depend on: title, all runs, the version. It is the same wherever
    /// the sweep's file and its traces are.
    pub fn id(&self) -> String {
        let mut hash = Fnv::new();
        hash.add(VERSION.as_bytes());
        hash.add(self.title.as_bytes());
        for run in &self.runs {
            run.hash(&mut hash);
        }
        format!("{:016x}", hash.0)
    }

    /// Returns the runs of a part.
    pub fn part(&self, shard: Shard) -> impl Iterator<Item = &SweepRun> {
        self.runs.iter().filter(move |run| shard.has(run.index))
    }

    /// Returns the traces that are replayed, each once.
    pub(super) fn traces(&self) -> impl Iterator<Item = &Path> {
        let mut traces: Vec<_> = self
            .runs
            .iter()
            .filter_map(|run| match &run.source {
                Source::Trace(trace) => Some(trace.path.as_path()),
                Source::Live(_) | Source::Model(_) => None,
            })
            .collect();
        traces.sort_unstable();
        traces.dedup();
        traces.into_iter()
    }

    /// Returns a row with the configuration of this run.
    pub(super) fn row(&self, id: &str, run: &SweepRun) -> Row {
        let workload = match &run.source {
            Source::Live(workload) | Source::Model(workload) => Some(workload),
            Source::Trace(_) => None,
        };
        let live = match &run.source {
            Source::Live(workload) => Some(workload),
            _ => None,
        };
        let (source, params) = match &run.source {
            Source::Live(workload) | Source::Model(workload) => {
                let params = workload
                    .params
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"));
                (workload.name.clone(), params.collect::<Vec<_>>().join(" "))
            }
            Source::Trace(trace) => (trace.name.clone(), trace.file.clone()),
        };
        let link = run.link.as_ref();
        Row {
            sweep: Some(id.to_owned()),
            title: Some(self.title.clone()),
            version: Some(VERSION.to_owned()),
            run: Some(run.index as u64),
            mode: Some(run.source.mode().to_owned()),
            source: Some(source),
            params: Some(params),
            engine: live.map(|it| it.engine.clone()),
            vcpus: workload.map(|it| it.vcpus.into()),
            devices: workload.map(|it| it.devices.into()),
            memory_bytes: Some(run.source.memory()),
            policy: Some(run.policy.spec.clone()),
            policy_exact: Some(run.policy.exact.clone()),
            device_memory_bytes: Some(run.device_memory),
            fidelity: Some(run.fidelity.to_string()),
            link: link.map(|it| it.name.clone()),
            link_latency_ns: link.map(|it| it.model.latency.as_nanos() as u64),
            link_bandwidth: link.map(|it| it.model.bandwidth),
            seed: Some(run.seed),
            ..Row::default()
        }
    }
}

// Every field is named below, so that a new field does not compile before it says whether results depend on it.

impl SweepRun {
    fn hash(&self, hash: &mut Fnv) {
        let SweepRun {
            index,
            source,
            policy: Policy { spec, exact },
            device_memory,
            fidelity,
            link,
            seed,
            optimal,
        } = self;
        hash.add_number(*index as u64);
        hash.add(source.mode().as_bytes());
        match source {
            Source::Live(workload) | Source::Model(workload) => workload.hash(hash),
            Source::Trace(trace) => trace.hash(hash),
        }
        hash.add(spec.as_bytes());
        hash.add(exact.as_bytes());
        hash.add_number(*device_memory);
        hash.add(fidelity.name().as_bytes());
        if let Some(Link { name, model }) = link {
            let LinkModel { latency, bandwidth } = model;
            hash.add(name.as_bytes());
            hash.add(&latency.as_nanos().to_le_bytes());
            hash.add_number(*bandwidth);
        }
        hash.add_number(*seed);
        hash.add_number(u64::from(*optimal));
    }
}

impl Workload {
    fn hash(&self, hash: &mut Fnv) {
        let Workload {
            name,
            params,
            vcpus,
            devices,
            engine,
            memory,
        } = self;
        hash.add(name.as_bytes());
        hash.add_number(params.len() as u64);
        for (name, value) in params {
            hash.add(name.as_bytes());
            hash.add(value.as_bytes());
        }
        hash.add_number((*vcpus).into());
        hash.add_number((*devices).into());
        hash.add(engine.as_bytes());
        hash.add_number(*memory);
    }
}

impl TraceSource {
    fn hash(&self, hash: &mut Fnv) {
        // The path of the file does not count: the rows have its name, and its content decides.
        let TraceSource {
            name,
            file,
            path: _,
            memory,
            seed,
            digest,
            stamp: _,
        } = self;
        hash.add(name.as_bytes());
        hash.add(file.as_bytes());
        hash.add_number(*memory);
        hash.add_number(*seed);
        hash.add_number(*digest);
    }
}

/// The FNV-1a hash: the same everywhere and for ever, which the standard library's does not promise.
pub(super) struct Fnv(pub(super) u64);

impl Fnv {
    pub(super) fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    /// Adds the bytes and where they end.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.add_part(bytes);
        self.add_part(&(bytes.len() as u64).to_le_bytes());
    }

    fn add_number(&mut self, number: u64) {
        self.add(&number.to_le_bytes());
    }

    pub(super) fn add_part(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
