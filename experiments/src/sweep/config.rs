//! A sweep's TOML file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use hmm_backend::pages::{Fidelity, PAGE_SIZE};
use hmm_backend::policy::LinkModel;
use itertools::iproduct;
use serde::Deserialize;
use toml::Spanned;

use super::Runner;
use super::error::SweepError;
use super::plan::{Fnv, Link, Policy, Source, Stamp, Sweep, SweepRun, TraceSource, Workload};
use crate::size::Size;
use crate::toml_files;

/// A sweep's file is no larger than this.
const FILE_LIMIT: u64 = 1 << 20;
/// The most runs of a sweep: more are probably a mistyped list of seeds.
const MOST_RUNS: usize = 100_000;
/// Entries of each list but that of seeds, which has as many as there may be runs.
const MOST_ENTRIES: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    title: String,
    #[serde(default)]
    question: String,
    live_at_a_time: Option<Spanned<usize>>,
    #[serde(default = "yes")]
    optimal: bool,
    seeds: Option<Spanned<Seeds>>,
    policies: Spanned<Vec<Spanned<String>>>,
    device_memory: Spanned<Vec<Spanned<Size>>>,
    accesses: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    links: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    workload: Vec<Spanned<WorkloadTable>>,
    #[serde(default)]
    trace: Vec<Spanned<TraceTable>>,
}

fn yes() -> bool {
    true
}

/// How many, from 1, or which.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a number of seeds, or a list of seeds")]
enum Seeds {
    Number(u64),
    List(Vec<u64>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table [[workload]]")]
struct WorkloadTable {
    name: String,
    #[serde(default)]
    params: BTreeMap<String, Spanned<toml::Value>>,
    mode: Spanned<String>,
    memory: Option<Spanned<Size>>,
    vcpus: Option<u32>,
    devices: Option<u32>,
    /// The engine of live runs.
    engine: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table [[trace]]")]
struct TraceTable {
    name: String,
    /// Several differ in the seed only.
    files: Spanned<Vec<Spanned<String>>>,
}

impl Sweep {
    /// Reads a sweep's file and checks all that it names. Paths of traces are relative to its folder.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong; the error says on which line.
    pub fn read(path: &Path, runner: &dyn Runner) -> Result<Sweep, SweepError> {
        let text = read(path).map_err(|error| SweepError::Read {
            path: path.to_owned(),
            error,
        })?;
        let tables: Tables = toml::from_str(&text).map_err(|error| SweepError::Toml {
            path: path.to_owned(),
            error: Box::new(error),
        })?;
        Reader {
            path,
            text: &text,
            runner,
        }
        .sweep(tables)
    }
}

/// Returns the text of a file, or of what has no length, such as a pipe.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(FILE_LIMIT + 1)
        .read_to_string(&mut text)?;
    match text.len() as u64 > FILE_LIMIT {
        true => Err(io::Error::other(format!(
            "it is larger than {}",
            Size(FILE_LIMIT)
        ))),
        false => Ok(text),
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    runner: &'a dyn Runner,
}

impl Reader<'_> {
    fn wrong(&self, at: Range<usize>, what: impl Into<String>) -> SweepError {
        let before = self.text.get(..at.start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        SweepError::Value {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            what: what.into(),
        }
    }

    fn sweep(&self, tables: Tables) -> Result<Sweep, SweepError> {
        let nowhere = 0..0;
        let files = tables
            .trace
            .iter()
            .map(|table| table.get_ref().files.get_ref().len());
        self.not_long(nowhere.clone(), "links", tables.links.len(), MOST_ENTRIES)?;
        let workloads = tables.workload.len();
        self.not_long(nowhere.clone(), "[[workload]]", workloads, MOST_ENTRIES)?;
        self.not_long(nowhere, "files of all [[trace]]", files.sum(), MOST_ENTRIES)?;
        let policies = self.policies(&tables.policies)?;
        let memories = self.device_memories(&tables.device_memory)?;
        let links = self.links(&tables.links)?;
        let fidelities = self.fidelities(tables.accesses.as_ref())?;
        let sources = self.sources(&tables)?;
        let seeds = match &tables.seeds {
            Some(seeds) => self.seeds(seeds)?,
            None => vec![1],
        };
        if let Some(number) = &tables.live_at_a_time
            && *number.get_ref() == 0
        {
            return Err(self.wrong(number.span(), "live_at_a_time must be at least 1"));
        }

        let mut runs = Vec::new();
        for source in &sources {
            // A live run takes the time it takes.
            let links = match source {
                Source::Live(_) => vec![None],
                _ => links.iter().cloned().map(Some).collect(),
            };
            // A trace is what came of one seed, and replays have no chances.
            let seeds = match source {
                Source::Trace(trace) => vec![trace.seed],
                _ => seeds.clone(),
            };
            for device_memory in memories {
                if device_memory.get_ref().0 > source.memory() {
                    let what = format!(
                        "device memory of {} is more than guest memory ({})",
                        device_memory.get_ref(),
                        Size(source.memory())
                    );
                    return Err(self.wrong(device_memory.span(), what));
                }
                for (link, fidelity, policy, seed) in
                    iproduct!(&links, &fidelities, &policies, &seeds)
                {
                    if runs.len() == MOST_RUNS {
                        let what = format!(
                            "sources, device_memory, links, accesses, policies and seeds together are more than {MOST_RUNS} runs; leave some out"
                        );
                        let at = tables.seeds.as_ref().map_or(0..0, Spanned::span);
                        return Err(self.wrong(at, what));
                    }
                    runs.push(SweepRun {
                        index: runs.len(),
                        source: source.clone(),
                        policy: policy.clone(),
                        device_memory: device_memory.get_ref().0,
                        fidelity: *fidelity,
                        link: link.clone(),
                        seed: *seed,
                        optimal: tables.optimal,
                    });
                }
            }
        }
        Ok(Sweep {
            title: tables.title,
            question: tables.question,
            live_at_a_time: tables.live_at_a_time.map(Spanned::into_inner),
            runs,
        })
    }

    /// Reads how much devices tell of their accesses.
    fn fidelities(
        &self,
        list: Option<&Spanned<Vec<Spanned<String>>>>,
    ) -> Result<Vec<Fidelity>, SweepError> {
        let Some(list) = list else {
            return Ok(vec![Fidelity::default()]);
        };
        self.not_empty(list, "accesses")?;
        let mut fidelities = Vec::new();
        for name in list.get_ref() {
            let wrong = |what: String| self.wrong(name.span(), what);
            let fidelity: Fidelity = name.get_ref().parse().map_err(wrong)?;
            if fidelities.contains(&fidelity) {
                return Err(wrong(format!("`{fidelity}` is named twice")));
            }
            fidelities.push(fidelity);
        }
        Ok(fidelities)
    }

    fn policies(&self, list: &Spanned<Vec<Spanned<String>>>) -> Result<Vec<Policy>, SweepError> {
        self.not_empty(list, "policies")?;
        let mut policies: Vec<Policy> = Vec::new();
        for spec in list.get_ref() {
            let wrong = |what| self.wrong(spec.span(), what);
            let exact = self.runner.policy(spec.get_ref()).map_err(wrong)?;
            if let Some(same) = policies.iter().find(|policy| policy.exact == exact) {
                let what = format!(
                    "policy `{}` is the same as `{}`, which is `{exact}`; name it once",
                    spec.get_ref(),
                    same.spec
                );
                return Err(self.wrong(spec.span(), what));
            }
            policies.push(Policy {
                spec: spec.get_ref().clone(),
                exact,
            });
        }
        Ok(policies)
    }

    fn device_memories<'t>(
        &self,
        list: &'t Spanned<Vec<Spanned<Size>>>,
    ) -> Result<&'t [Spanned<Size>], SweepError> {
        self.not_empty(list, "device_memory")?;
        for (index, size) in list.get_ref().iter().enumerate() {
            let bytes = size.get_ref().0;
            if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) {
                let what = format!(
                    "device memory of {}: must be a positive multiple of 4 KiB",
                    size.get_ref()
                );
                return Err(self.wrong(size.span(), what));
            }
            if list.get_ref()[..index]
                .iter()
                .any(|it| it.get_ref().0 == bytes)
            {
                let what = format!("device memory of {} is named twice", size.get_ref());
                return Err(self.wrong(size.span(), what));
            }
        }
        Ok(list.get_ref())
    }

    fn not_empty<T>(&self, list: &Spanned<Vec<T>>, name: &str) -> Result<(), SweepError> {
        match list.get_ref().is_empty() {
            true => Err(self.wrong(
                list.span(),
                format!("{name} is empty: there is nothing to run"),
            )),
            false => self.not_long(list.span(), name, list.get_ref().len(), MOST_ENTRIES),
        }
    }

    fn not_long(
        &self,
        at: Range<usize>,
        name: &str,
        entries: usize,
        most: usize,
    ) -> Result<(), SweepError> {
        match entries > most {
            true => Err(self.wrong(
                at,
                format!("{name} has {entries} entries, but must have no more than {most}"),
            )),
            false => Ok(()),
        }
    }

    fn links(&self, tables: &BTreeMap<String, Spanned<String>>) -> Result<Vec<Link>, SweepError> {
        if tables.is_empty() {
            return Ok(vec![Link {
                name: "default".to_owned(),
                model: LinkModel::default(),
            }]);
        }
        let mut links: Vec<Link> = Vec::new();
        for (name, spec) in tables {
            let model = spec.get_ref().parse();
            let model: LinkModel = model.map_err(|what: String| self.wrong(spec.span(), what))?;
            if let Some(same) = links.iter().find(|link| link.model == model) {
                let what = format!(
                    "link `{name}` is the same as `{}`, which is {model}; name it once",
                    same.name
                );
                return Err(self.wrong(spec.span(), what));
            }
            links.push(Link {
                name: name.clone(),
                model,
            });
        }
        Ok(links)
    }

    fn sources(&self, tables: &Tables) -> Result<Vec<Source>, SweepError> {
        let mut sources = Vec::new();
        let mut add = |source: Source, at: Range<usize>| {
            if sources.contains(&source) {
                return Err(self.wrong(at, "the same is in the sweep already; name it once"));
            }
            // Traces of one name count as runs with several seeds, and a copy of a trace is no other run.
            if let Source::Trace(trace) = &source
                && let Some(same) = same_content(&sources, trace)
            {
                let what = format!(
                    "trace {} has the same content as {}; name it once",
                    trace.file, same.file
                );
                return Err(self.wrong(at, what));
            }
            sources.push(source);
            Ok(())
        };
        for table in &tables.workload {
            add(self.workload(table)?, table.span())?;
        }
        for table in &tables.trace {
            let TraceTable { name, files } = table.get_ref();
            self.not_empty(files, "files")?;
            for file in files.get_ref() {
                add(Source::Trace(self.trace(name, file)?), file.span())?;
            }
        }
        match sources.is_empty() {
            true => Err(self.wrong(
                0..0,
                "there is nothing to run; add a [[workload]] or a [[trace]]",
            )),
            false => Ok(sources),
        }
    }

    fn workload(&self, table: &Spanned<WorkloadTable>) -> Result<Source, SweepError> {
        let given = table.get_ref();
        let mut params = Vec::new();
        for (name, value) in &given.params {
            let wrong = |what| self.wrong(value.span(), what);
            let value = toml_files::param(name, value.get_ref()).map_err(wrong)?;
            params.push((name.clone(), value));
        }
        let workload = Workload {
            name: given.name.clone(),
            params,
            vcpus: given.vcpus.unwrap_or(1),
            devices: given.devices.unwrap_or(1),
            engine: match &given.engine {
                Some(engine) => engine.get_ref().clone(),
                None => "auto".to_owned(),
            },
            memory: given
                .memory
                .as_ref()
                .map_or(256 << 20, |size| size.get_ref().0),
        };
        let source = match given.mode.get_ref().as_str() {
            "live" => Source::Live(workload),
            "model" => Source::Model(workload),
            other => {
                let what = format!(
                    "unknown mode `{other}`; there are: live (in a guest), model (the workload's accesses replayed, without a guest)"
                );
                return Err(self.wrong(given.mode.span(), what));
            }
        };
        if let (Source::Model(_), Some(engine)) = (&source, &given.engine) {
            let what = "an engine is of live runs; leave it out with mode = \"model\"";
            return Err(self.wrong(engine.span(), what));
        }
        match self.runner.workload(&source) {
            Ok(()) => Ok(source),
            Err(what) => Err(self.wrong(table.span(), what)),
        }
    }

    fn trace(&self, name: &str, file: &Spanned<String>) -> Result<TraceSource, SweepError> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let path = folder.join(file.get_ref());
        let wrong =
            |what: String| self.wrong(file.span(), format!("trace {}: {what}", path.display()));
        // First: what changes while it is read has changed.
        let stamp = Stamp::of(&path).map_err(|error| wrong(error.to_string()))?;
        let facts = self.runner.trace(&path).map_err(&wrong)?;
        Ok(TraceSource {
            name: name.to_owned(),
            file: file.get_ref().clone(),
            digest: digest(&path).map_err(|error| wrong(error.to_string()))?,
            memory: facts.memory,
            seed: facts.seed,
            stamp,
            path,
        })
    }

    fn seeds(&self, seeds: &Spanned<Seeds>) -> Result<Vec<u64>, SweepError> {
        let list = match seeds.get_ref() {
            Seeds::Number(number) => (1..=(*number).min(MOST_RUNS as u64 + 1)).collect(),
            Seeds::List(list) => {
                self.not_long(seeds.span(), "seeds", list.len(), MOST_RUNS)?;
                list.clone()
            }
        };
        if list.is_empty() {
            return Err(self.wrong(seeds.span(), "there must be at least one seed"));
        }
        let mut sorted = list.clone();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(self.wrong(seeds.span(), format!("seed {} is named twice", pair[0]))),
            None => Ok(list),
        }
    }
}

/// Returns the trace among these sources that has the same content.
fn same_content<'s>(sources: &'s [Source], trace: &TraceSource) -> Option<&'s TraceSource> {
    sources.iter().find_map(|source| match source {
        Source::Trace(other) if other.digest == trace.digest => Some(other),
        Source::Trace(_) | Source::Live(_) | Source::Model(_) => None,
    })
}

fn digest(path: &Path) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    let mut hash = Fnv::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.0),
            n => hash.add_part(&buffer[..n]),
        }
    }
}
