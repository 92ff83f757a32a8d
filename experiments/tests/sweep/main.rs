//! Sweeps with a made-up runner: what is asked for, what is kept, what is refused.

mod bad_input;
mod disk_full;
mod parallel;
mod ready;
mod resume;
mod shards;
mod tables;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use hmmvisor_experiments::sweep::{
    Measured, Parallel, Runner, Settings, Shard, Source, Sweep, SweepRun, TraceFacts,
};
use tempfile::TempDir;

/// Answers from the configuration alone, and remembers what it was asked.
#[derive(Default)]
pub struct Fake {
    asked: Mutex<Vec<usize>>,
    /// Runs that fail.
    broken: Vec<usize>,
}

impl Fake {
    /// The runs that were done, in order.
    fn asked(&self) -> Vec<usize> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.sort_unstable();
        asked
    }
}

impl Runner for Fake {
    fn policy(&self, spec: &str) -> Result<String, String> {
        match spec {
            "density" => Ok("density+lru".into()),
            "density+lru" | "on-demand" => Ok(spec.into()),
            _ => Err(format!(
                "unknown policy '{spec}'; there are: on-demand, density, lru"
            )),
        }
    }

    fn workload(&self, source: &Source) -> Result<(), String> {
        let (Source::Live(workload) | Source::Model(workload)) = source else {
            panic!("{source:?}")
        };
        match workload.name.as_str() {
            "bfs" | "pingpong" => Ok(()),
            other => Err(format!(
                "unknown workload `{other}`; there are bfs, pingpong"
            )),
        }
    }

    fn trace(&self, path: &Path) -> Result<TraceFacts, String> {
        std::fs::metadata(path).map_err(|error| error.to_string())?;
        Ok(TraceFacts {
            memory: 256 << 20,
            seed: 7,
        })
    }

    fn run(&self, run: &SweepRun) -> Result<Measured, String> {
        self.asked.lock().unwrap().push(run.index);
        if self.broken.contains(&run.index) {
            return Err("the guest found wrong data".into());
        }
        let pages = run.policy.spec.len() as u64 * 100 + run.seed;
        Ok(Measured {
            cpu_faults: Some(pages),
            bytes_to_device: Some(pages * 4096),
            bytes_to_system: Some(pages * 2048),
            modelled_ns: Some(pages * 1_000 + (1 << 40) / run.device_memory),
            fault_p50_us: matches!(run.source, Source::Live(_)).then_some(0.5),
            ..Measured::default()
        })
    }
}

const SWEEP: &str = r#"
title = "A sweep"
question = "Does it work?"
seeds = 3
policies = ["on-demand", "density"]
device_memory = ["8M", "16M"]

[links]
pcie = "latency=10us,bandwidth=25G"

[[workload]]
name = "bfs"
mode = "model"
params = { vertices = "64K" }

[[workload]]
name = "pingpong"
mode = "live"
"#;

/// A folder with a sweep's file.
pub struct Folder {
    temp: TempDir,
}

impl Folder {
    fn new() -> Folder {
        Folder {
            temp: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn sweep(&self, text: &str) -> Result<Sweep, String> {
        let file = self.path("sweep.toml");
        std::fs::write(&file, text).unwrap();
        Sweep::read(&file, &Fake::default()).map_err(|error| error.to_string())
    }
}

fn settings(folder: &Path) -> Settings {
    Settings {
        folder: folder.to_owned(),
        reads: Vec::new(),
        shard: Shard::WHOLE,
        resume: false,
        parallel: Parallel { jobs: 3, live: 1 },
        progress: false,
    }
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_matrix_is_complete() {
    let sweep = Folder::new().sweep(SWEEP).unwrap();
    // 2 workloads × 2 sizes × 1 link × 2 policies × 3 seeds
    assert_eq!(sweep.runs.len(), 24);
    for (index, run) in sweep.runs.iter().enumerate() {
        assert_eq!(run.index, index);
        assert_eq!(run.link.is_none(), matches!(run.source, Source::Live(_)));
        let others = &sweep.runs[index + 1..];
        assert!(
            !others.iter().any(|other| SweepRun {
                index,
                ..other.clone()
            } == *run),
            "run {index} is there twice"
        );
    }
}
