//! A sweep's TOML file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use hmm_backend::{LinkModel, PAGE_SIZE};
use serde::Deserialize;
use toml::Spanned;

use super::Runner;
use super::error::SweepError;
use super::plan::{Fnv, Link, Policy, Run, Source, Sweep, TraceSource, Workload};
use crate::size::Size;

/// More runs than anybody would wait for; a mistyped list of seeds rather than a wish.
const MOST_RUNS: usize = 1_000_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    title: String,
    #[serde(default)]
    question: String,
    live_at_a_time: Option<Spanned<usize>>,
    seeds: Spanned<Seeds>,
    policies: Spanned<Vec<Spanned<String>>>,
    device_memory: Spanned<Vec<Spanned<Size>>>,
    #[serde(default)]
    link: Vec<Spanned<LinkTable>>,
    #[serde(default)]
    workload: Vec<Spanned<WorkloadTable>>,
    #[serde(default)]
    trace: Vec<Spanned<TraceTable>>,
}

/// How many, from 1, or which.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a number of seeds, or a list of seeds")]
enum Seeds {
    Number(u64),
    List(Vec<u64>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkTable {
    name: String,
    latency: Spanned<String>,
    bandwidth: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadTable {
    name: String,
    #[serde(default)]
    params: BTreeMap<String, Spanned<toml::Value>>,
    mode: Spanned<String>,
    memory: Option<Spanned<Size>>,
    vcpus: Option<u32>,
    devices: Option<u32>,
    engine: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TraceTable {
    file: Spanned<String>,
    name: Option<String>,
}

impl Sweep {
    /// Reads a sweep's file and checks all that it names. Trace files are looked for in its folder.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong; the error says on which line.
    pub fn read(path: &Path, runner: &dyn Runner) -> Result<Sweep, SweepError> {
        let text = fs::read_to_string(path).map_err(|error| SweepError::Read {
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
        let policies = self.policies(&tables.policies)?;
        let memories = self.device_memories(&tables.device_memory)?;
        let links = self.links(&tables.link)?;
        let sources = self.sources(&tables)?;
        let seeds = self.seeds(&tables.seeds)?;
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
            for device_memory in memories {
                if device_memory.get_ref().0 > source.memory() {
                    let what = format!(
                        "device memory of {} is more than guest memory ({})",
                        device_memory.get_ref(),
                        Size(source.memory())
                    );
                    return Err(self.wrong(device_memory.span(), what));
                }
                for link in &links {
                    for policy in &policies {
                        for seed in &seeds {
                            if runs.len() == MOST_RUNS {
                                let what = format!("these are more than {MOST_RUNS} runs");
                                return Err(self.wrong(tables.seeds.span(), what));
                            }
                            runs.push(Run {
                                index: runs.len(),
                                source: source.clone(),
                                policy: policy.clone(),
                                device_memory: device_memory.get_ref().0,
                                link: link.clone(),
                                seed: *seed,
                            });
                        }
                    }
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
            false => Ok(()),
        }
    }

    fn links(&self, tables: &[Spanned<LinkTable>]) -> Result<Vec<Link>, SweepError> {
        let mut links: Vec<Link> = Vec::new();
        for table in tables {
            let LinkTable {
                name,
                latency,
                bandwidth,
            } = table.get_ref();
            if links.iter().any(|link| link.name == *name) {
                return Err(self.wrong(table.span(), format!("link `{name}` is named twice")));
            }
            let model = LinkModel {
                latency: parse_latency(latency.get_ref())
                    .map_err(|what| self.wrong(latency.span(), what))?,
                bandwidth: parse_bandwidth(bandwidth.get_ref())
                    .map_err(|what| self.wrong(bandwidth.span(), what))?,
            };
            links.push(Link {
                name: name.clone(),
                model,
            });
        }
        if links.is_empty() {
            links.push(Link {
                name: "default".to_owned(),
                model: LinkModel::default(),
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
            sources.push(source);
            Ok(())
        };
        for table in &tables.workload {
            add(self.workload(table)?, table.span())?;
        }
        for table in &tables.trace {
            add(Source::Trace(self.trace(table.get_ref())?), table.span())?;
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
            let value = match value.get_ref() {
                toml::Value::String(text) => text.clone(),
                toml::Value::Table(_) | toml::Value::Array(_) => {
                    let what = format!("parameter `{name}` must be a number or a word");
                    return Err(self.wrong(value.span(), what));
                }
                scalar => scalar.to_string(),
            };
            params.push((name.clone(), value));
        }
        let workload = Workload {
            name: given.name.clone(),
            params,
            vcpus: given.vcpus.unwrap_or(1),
            devices: given.devices.unwrap_or(1),
            engine: given.engine.clone().unwrap_or_else(|| "auto".to_owned()),
            memory: given
                .memory
                .as_ref()
                .map_or(256 << 20, |size| size.get_ref().0),
        };
        self.runner
            .workload(&workload)
            .map_err(|what| self.wrong(table.span(), what))?;
        match given.mode.get_ref().as_str() {
            "live" => Ok(Source::Live(workload)),
            "model" => Ok(Source::Model(workload)),
            other => Err(self.wrong(
                given.mode.span(),
                format!(
                    "unknown mode `{other}`; there are: live (in a guest), model (the workload's accesses replayed, without a guest)"
                ),
            )),
        }
    }

    fn trace(&self, table: &TraceTable) -> Result<TraceSource, SweepError> {
        let file = table.file.get_ref();
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let path = folder.join(file);
        let wrong = |what: String| self.wrong(table.file.span(), what);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut trace = TraceSource {
            name: table.name.clone().unwrap_or_else(|| stem.into_owned()),
            file: file.clone(),
            digest: digest(&path)
                .map_err(|error| wrong(format!("trace {}: {error}", path.display())))?,
            path: path.clone(),
            memory: 0,
        };
        trace.memory = self
            .runner
            .trace(&trace)
            .map_err(|what| wrong(format!("trace {}: {what}", path.display())))?;
        Ok(trace)
    }

    fn seeds(&self, seeds: &Spanned<Seeds>) -> Result<Vec<u64>, SweepError> {
        let list = match seeds.get_ref() {
            Seeds::Number(number) => (1..=(*number).min(MOST_RUNS as u64 + 1)).collect(),
            Seeds::List(list) => list.clone(),
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

/// A number and its unit.
fn parse_unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    let number: f64 = digits.parse().ok()?;
    Some(number * factor).filter(|value| value.is_finite() && *value >= 0.0)
}

fn parse_latency(text: &str) -> Result<Duration, String> {
    const LONGEST: f64 = 1e9;
    parse_unit(text, &[("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)])
        .filter(|ns| *ns <= LONGEST)
        .map(|ns| Duration::from_nanos(ns as u64))
        .ok_or_else(|| {
            format!("`{text}` is not a latency; write one up to 1s, such as 800ns or 10us")
        })
}

fn parse_bandwidth(text: &str) -> Result<u64, String> {
    let units = [("MB/s", 1e6), ("GB/s", 1e9), ("TB/s", 1e12)];
    parse_unit(text, &units)
        .filter(|rate| (1e6..=1e15).contains(rate))
        .map(|rate| rate as u64)
        .ok_or_else(|| {
            format!("`{text}` is not a bandwidth; write one from 1MB/s to 1000TB/s, such as 25GB/s (powers of 1000)")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_in_decimal_units() {
        assert_eq!(parse_latency("10us"), Ok(Duration::from_micros(10)));
        assert_eq!(parse_latency("0.5us"), Ok(Duration::from_nanos(500)));
        assert_eq!(parse_bandwidth("25GB/s"), Ok(25_000_000_000));
        for bad in ["", "10", "us", "-1us", "1e99s", "2s", "10 years"] {
            assert!(parse_latency(bad).is_err(), "{bad}");
        }
        for bad in ["", "25", "25G", "0GB/s", "-1GB/s", "1e9GB/s"] {
            assert!(parse_bandwidth(bad).is_err(), "{bad}");
        }
    }
}
