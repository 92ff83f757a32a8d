//! What to run: the TOML file's schema, its defaults, and what is checked before anything starts.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hmm_backend::{EngineChoice, PAGE_SIZE, PolicySpec};
use hmmvisor_abi::map;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::file::{self, FileError};
use crate::host::Host;
use crate::size::Size;

/// Managed memory comes in blocks of this size.
const BLOCK: u64 = 2 << 20;
/// A configuration file is no larger than this.
const FILE_LIMIT: u64 = 1 << 20;

/// A run's configuration. Everything has a default; the default runs the embedded guest.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seed of all pseudo-random choices of the guest.
    pub seed: u64,
    /// An ELF file to run instead of the embedded guest.
    pub guest: Option<PathBuf>,
    /// Where to write the figures as JSON; `-` is standard output.
    pub json: Option<PathBuf>,
    /// Processors and memory.
    pub machine: MachineConfig,
    /// Accelerators.
    pub devices: DevicesConfig,
    /// How pages migrate.
    pub engine: EngineConfig,
    /// What migrates when.
    pub policy: PolicyConfig,
    /// The program in the guest.
    pub workload: WorkloadConfig,
    /// Threads that serve CPU faults.
    pub service: ServiceConfig,
    /// Which host CPUs do what.
    pub placement: PlacementConfig,
}

/// `[machine]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs, 1 to 64.
    pub vcpus: u32,
    /// Managed memory, a multiple of 2 MiB.
    pub memory: Size,
}

/// `[devices]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DevicesConfig {
    /// Number of accelerators, 1 to 16.
    pub count: u32,
    /// Memory of each accelerator, a multiple of 4 KiB.
    pub memory: Size,
}

/// `[engine]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// `auto`, `remap` or `copy`.
    #[serde(deserialize_with = "from_str")]
    pub kind: EngineChoice,
    /// Number of userfaultfds that managed memory is spread over.
    pub shards: usize,
}

/// `[policy]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// For example `density:threshold=60+lru`; `hmmvisor policies` lists what there is.
    #[serde(deserialize_with = "from_str")]
    pub spec: PolicySpec,
}

/// `[workload]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkloadConfig {
    /// Name of the workload; `hmmvisor workloads` lists what there is.
    pub name: Option<String>,
    /// Its parameters, as `(name, value)`.
    #[serde(deserialize_with = "params")]
    pub params: Vec<(String, String)>,
}

/// `[service]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// Number of threads; by default one for each host CPU that runs vCPUs.
    pub threads: Option<usize>,
    /// Host CPUs to pin them to, cyclically; by default those that run vCPUs.
    pub cpus: Option<Vec<usize>>,
}

/// `[placement]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlacementConfig {
    /// Pin vCPUs and service threads where nothing else is said. Serving a fault on the CPU that
    /// took it saves waking another one, which costs several times the fault.
    pub pin: bool,
    /// Host CPUs to pin vCPUs to, cyclically; by default all that this process may use.
    pub vcpu_cpus: Option<Vec<usize>>,
    /// Host CPUs to pin the accelerators' threads to, cyclically; by default they are not pinned.
    pub device_cpus: Option<Vec<usize>>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            seed: 1,
            guest: None,
            json: None,
            machine: MachineConfig::default(),
            devices: DevicesConfig::default(),
            engine: EngineConfig::default(),
            policy: PolicyConfig::default(),
            workload: WorkloadConfig::default(),
            service: ServiceConfig::default(),
            placement: PlacementConfig::default(),
        }
    }
}

impl Default for MachineConfig {
    fn default() -> MachineConfig {
        MachineConfig {
            vcpus: 1,
            memory: Size(256 << 20),
        }
    }
}

impl Default for DevicesConfig {
    fn default() -> DevicesConfig {
        DevicesConfig {
            count: 1,
            memory: Size(16 << 20),
        }
    }
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            kind: EngineChoice::Auto,
            shards: 1,
        }
    }
}

impl Default for PlacementConfig {
    fn default() -> PlacementConfig {
        PlacementConfig {
            pin: true,
            vcpu_cpus: None,
            device_cpus: None,
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading configuration file {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: FileError,
    },
    /// The file is no text.
    #[error("reading configuration file {}: it is not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The file is not TOML or has something unknown in it; the error shows where.
    #[error("in configuration file {}: {error}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// What and where.
        error: toml::de::Error,
    },
    /// A number out of its range.
    #[error("{what} is {given}, but must be from {min} to {max}")]
    Range {
        /// What has the number.
        what: &'static str,
        /// The number.
        given: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// A size of nothing, or with a remainder.
    #[error("{what} of {given}: must be a positive multiple of {unit}")]
    Multiple {
        /// What has the size.
        what: &'static str,
        /// The size.
        given: Size,
        /// What it must be a multiple of.
        unit: Size,
    },
    /// A size beyond what there is.
    #[error("{what} of {given} is more than {limit_of} ({limit}); {remedy}")]
    TooLarge {
        /// What has the size.
        what: &'static str,
        /// The size.
        given: Size,
        /// What limits it.
        limit_of: &'static str,
        /// The limit.
        limit: Size,
        /// What to do.
        remedy: &'static str,
    },
    /// A host CPU that this process may not use.
    #[error("{what} names host CPU {cpu}, but this process may use only {allowed:?}")]
    Cpu {
        /// The key.
        what: &'static str,
        /// The CPU.
        cpu: usize,
        /// Those it may use.
        allowed: Vec<usize>,
    },
    /// A list of CPUs without any.
    #[error("{what} is empty; leave it out for the default")]
    NoCpus {
        /// The key.
        what: &'static str,
    },
    /// A parameter that would break the guest's command line.
    #[error(
        "parameter `{0}`: names and values must not be empty or contain spaces, and names no `=`"
    )]
    Param(String),
    /// The report could not be written.
    #[error("writing the JSON report to {}: {why}", path.display())]
    Json {
        /// Where to.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

impl Config {
    /// Reads a TOML file.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let file_error = |error| ConfigError::File {
            path: path.to_owned(),
            error,
        };
        let bytes = file::read(path, FILE_LIMIT).map_err(file_error)?;
        let text = String::from_utf8(bytes).map_err(|_| ConfigError::NotText {
            path: path.to_owned(),
        })?;
        toml::from_str(&text).map_err(|error| ConfigError::Toml {
            path: path.to_owned(),
            error,
        })
    }

    /// Whether the host can run it, as far as that can be told without trying.
    pub fn check(&self, host: &Host) -> Result<(), ConfigError> {
        let range = |what, given: u64, max: u64| match (1..=max).contains(&given) {
            true => Ok(()),
            false => Err(ConfigError::Range {
                what,
                given,
                min: 1,
                max,
            }),
        };
        range(
            "the number of vCPUs",
            self.machine.vcpus.into(),
            map::MAX_VCPUS,
        )?;
        range(
            "the number of accelerators",
            self.devices.count.into(),
            map::MAX_ACCELS,
        )?;
        range("the number of shards", self.engine.shards as u64, 64)?;
        if let Some(threads) = self.service.threads {
            range("the number of service threads", threads as u64, 64)?;
        }
        self.check_sizes(host)?;

        let lists = [
            ("[service] cpus", &self.service.cpus),
            ("[placement] vcpu_cpus", &self.placement.vcpu_cpus),
            ("[placement] device_cpus", &self.placement.device_cpus),
        ];
        for (what, cpus) in lists {
            let Some(cpus) = cpus else { continue };
            if cpus.is_empty() {
                return Err(ConfigError::NoCpus { what });
            }
            if let Some(cpu) = cpus.iter().find(|cpu| !host.cpus.contains(cpu)) {
                let mut allowed = host.cpus.clone();
                allowed.sort_unstable();
                return Err(ConfigError::Cpu {
                    what,
                    cpu: *cpu,
                    allowed,
                });
            }
        }

        let is_word = |word: &str| {
            !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        for (name, value) in &self.workload.params {
            if !is_word(name) || !is_word(value) || name.contains('=') {
                return Err(ConfigError::Param(format!("{name}={value}")));
            }
        }
        self.check_json()
    }

    fn check_sizes(&self, host: &Host) -> Result<(), ConfigError> {
        let multiple = |what, given: Size, unit| match given.0 != 0 && given.0.is_multiple_of(unit)
        {
            true => Ok(()),
            false => Err(ConfigError::Multiple {
                what,
                given,
                unit: Size(unit),
            }),
        };
        let (memory, device) = (self.machine.memory, self.devices.memory);
        multiple("guest memory", memory, BLOCK)?;
        multiple("device memory", device, PAGE_SIZE)?;
        let limits = [
            (
                "guest memory",
                memory,
                "the guest's page tables can map",
                map::MANAGED_MAX,
                "use less with --memory",
            ),
            (
                "guest memory",
                memory,
                "this host's memory",
                host.memory,
                "use less with --memory",
            ),
            (
                "device memory",
                device,
                "guest memory",
                memory.0,
                "use less with --device-memory, or more with --memory",
            ),
        ];
        for (what, given, limit_of, limit, remedy) in limits {
            if given.0 > limit {
                return Err(ConfigError::TooLarge {
                    what,
                    given,
                    limit_of,
                    limit: Size(limit),
                    remedy,
                });
            }
        }
        Ok(())
    }

    /// A run may take hours; a wrong path should not only show at its end.
    fn check_json(&self) -> Result<(), ConfigError> {
        let Some(path) = self.json.as_ref().filter(|path| path.as_os_str() != "-") else {
            return Ok(());
        };
        let refuse = |why: &str| {
            Err(ConfigError::Json {
                path: path.clone(),
                why: why.to_owned(),
            })
        };
        let folder = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        if path.is_dir() {
            refuse("it is a folder; name a file in it")
        } else if !folder.is_dir() {
            refuse("its folder does not exist; make it first")
        } else {
            Ok(())
        }
    }
}

fn from_str<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    String::deserialize(deserializer)?
        .parse()
        .map_err(D::Error::custom)
}

/// A table of scalars, each as it would be written on the command line.
fn params<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    let table = BTreeMap::<String, toml::Value>::deserialize(deserializer)?;
    let param = |(name, value)| {
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Table(_) | toml::Value::Array(_) => {
                return Err(D::Error::custom(format!(
                    "parameter `{name}` must be a number or a word"
                )));
            }
            scalar => scalar.to_string(),
        };
        Ok((name, value))
    };
    table.into_iter().map(param).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            memory: 8 << 30,
            cpus: vec![1, 0],
        }
    }

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    /// The complaint about a change to the default configuration.
    fn complaint(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.check(&host()).unwrap_err().to_string()
    }

    #[test]
    fn the_default_is_fine_and_an_empty_file_means_it() {
        Config::default().check(&host()).unwrap();
        let empty = parse("").unwrap();
        assert_eq!(format!("{empty:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            r#"
            seed = 7
            guest = "guest.elf"
            json = "-"
            [machine]
            vcpus = 4
            memory = "1G"
            [devices]
            count = 2
            memory = 33554432
            [engine]
            shards = 3
            [workload]
            name = "bfs"
            params = { degree = 4, vertices = "64K" }
            [service]
            threads = 2
            cpus = [0]
            [placement]
            pin = false
            vcpu_cpus = [0, 1]
            device_cpus = [1]
            "#,
        )
        .unwrap();
        config.check(&host()).unwrap();
        assert_eq!(
            (config.seed, config.machine.vcpus, config.devices.count),
            (7, 4, 2)
        );
        assert_eq!(
            (config.machine.memory, config.devices.memory),
            (Size(1 << 30), Size(32 << 20))
        );
        assert_eq!((config.engine.shards, config.service.threads), (3, Some(2)));
        assert_eq!(config.placement.vcpu_cpus, Some(vec![0, 1]));
        let params: Vec<_> = config
            .workload
            .params
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        assert_eq!(params, [("degree", "4"), ("vertices", "64K")]);
    }

    #[test]
    fn mistakes_are_shown_with_file_line_and_column() {
        for (text, line, what) in [
            ("seed = 1\nsed = 2\n", 2, "unknown field `sed`"),
            (
                "[machine]\nvcpu = 2\n",
                2,
                "unknown field `vcpu`, expected `vcpus` or `memory`",
            ),
            ("[machine]\n\nmemory = \"64X\"\n", 3, "is not a size"),
            ("[machine]\nmemory = -1\n", 2, "cannot be negative"),
            ("seed = -1", 1, "expected u64"),
            ("[machine", 1, "unclosed table"),
            (
                "[workload]\nparams = { n = [1] }",
                2,
                "must be a number or a word",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("config.toml"), "{error}");
            assert!(
                error.contains(&format!("at line {line}, column ")),
                "{error}"
            );
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn what_cannot_run_is_refused() {
        let ranged = complaint(|config| config.machine.vcpus = 65);
        assert_eq!(
            ranged,
            "the number of vCPUs is 65, but must be from 1 to 64"
        );
        assert!(complaint(|config| config.devices.count = 0).contains("from 1 to 16"));
        assert!(complaint(|config| config.machine.memory = Size(0)).contains("multiple of 2 MiB"));
        assert!(
            complaint(|config| config.machine.memory = Size(3 << 20)).contains("multiple of 2 MiB")
        );
        assert!(
            complaint(|config| config.devices.memory = Size(5000)).contains("multiple of 4 KiB")
        );
        assert!(
            complaint(|config| config.machine.memory = Size(16 << 30))
                .contains("this host's memory (8 GiB)")
        );
        assert!(
            complaint(|config| config.devices.memory = Size(1 << 30))
                .contains("more than guest memory (256 MiB)")
        );
        assert!(complaint(|config| config.service.cpus = Some(vec![2])).contains("only [0, 1]"));
        assert!(complaint(|config| config.service.cpus = Some(vec![])).contains("empty"));
        assert!(complaint(|config| config.json = Some("/".into())).contains("folder"));
        assert!(
            complaint(|config| config.json = Some("/nosuch/x".into())).contains("does not exist")
        );
        for (name, value) in [
            ("a b", "1"),
            ("a", "1 2"),
            ("", "1"),
            ("a", ""),
            ("a=b", "1"),
        ] {
            let param = (name.to_owned(), value.to_owned());
            assert!(
                complaint(|config| config.workload.params = vec![param])
                    .contains("must not be empty")
            );
        }
    }
}
