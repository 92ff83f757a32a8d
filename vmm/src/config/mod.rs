//! What to run: the TOML file's schema and its defaults.

mod check;
pub mod console_choice;
mod device_kind;
mod error;
pub mod links;
pub mod virtio;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::guest::linux::cpuid::Template;
use crate::host::file;
use crate::machine::memory_errors::OnMemoryError;
use crate::messages::{Format, Threshold};
use crate::sandbox::Mode;
use hmm_backend::EVICTION_BATCH;
use hmm_backend::engine::EngineChoice;
use hmm_backend::pages::{Fidelity, Hint, PAGE_SIZE, Page, PageRange};
use hmmvisor_experiments::size::Size;
use hmmvisor_experiments::toml_files;
use hmmvisor_policies::PolicyChoice;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

pub use device_kind::DeviceKind;
pub use error::ConfigError;

use console_choice::ConsoleChoice;
use links::LinksConfig;
use virtio::{BalloonConfig, DiskConfig};

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
    /// An operating system to run instead of the embedded guest.
    pub boot: BootConfig,
    /// Where the guest's serial output goes, and an operating system's input comes from.
    #[serde(deserialize_with = "from_str")]
    pub console: ConsoleChoice,
    /// Where to write the figures as JSON; `-` is standard output.
    pub json: Option<PathBuf>,
    /// Where to write the run's trace.
    pub record: Option<PathBuf>,
    /// How the running machine is seen and steered from outside.
    pub api: ApiConfig,
    /// Processors and memory.
    pub machine: MachineConfig,
    /// Accelerators.
    pub devices: DevicesConfig,
    /// What transfers to and from accelerators cost.
    pub links: LinksConfig,
    /// Virtio disks.
    pub disk: Vec<DiskConfig>,
    /// A virtio balloon. Without, an operating system has an empty one and other guests have none.
    pub balloon: Option<BalloonConfig>,
    /// A virtio entropy device. An operating system has one in any case.
    pub rng: bool,
    /// How pages migrate.
    pub engine: EngineConfig,
    /// The policies, which decide what migrates when.
    pub policy: PolicyConfig,
    /// Hints about parts of managed memory, for policies that use them.
    pub hint: Vec<HintConfig>,
    /// The program in the guest.
    pub workload: WorkloadConfig,
    /// Threads that serve CPU faults.
    pub service: ServiceConfig,
    /// The host CPUs that the threads run on.
    pub placement: PlacementConfig,
    /// What the threads may ask of the kernel while the guest runs.
    pub sandbox: SandboxConfig,
    /// Messages on standard error.
    pub log: LogConfig,
}

/// `[api]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "the table [api]")]
pub struct ApiConfig {
    /// The path of the Unix socket to answer at; without, there is no API.
    pub socket: Option<PathBuf>,
    /// Where the metrics are served by TCP, read-only, at `/metrics`; without, they are not.
    pub metrics: Option<MetricsAddress>,
}

/// Where metrics are served: `127.0.0.1:9100`, or `9100` for that port of the loopback interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct MetricsAddress(pub SocketAddr);

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<MetricsAddress, String> {
        let port = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let address = text.parse().map(port).or_else(|_| text.parse());
        address.map(MetricsAddress).map_err(|_| {
            format!("`{text}` is no address; write it like 127.0.0.1:9100, or 9100 for that port of this machine alone")
        })
    }
}

impl TryFrom<String> for MetricsAddress {
    type Error = String;

    fn try_from(text: String) -> Result<MetricsAddress, String> {
        text.parse()
    }
}

/// `[machine]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "the table [machine]")]
pub struct MachineConfig {
    /// Number of vCPUs, 1 to 64.
    pub vcpus: u32,
    /// Guest memory, a multiple of 2 MiB.
    pub memory: Size,
    /// How much of it, at its end, never migrates: accelerators reach it in place. A multiple of 2 MiB.
    pub shared: Size,
    /// What becomes of a vCPU's access to a page that cannot be supplied: `machine-check` or `end`.
    #[serde(deserialize_with = "from_str")]
    pub on_memory_error: OnMemoryError,
    /// End the run when the guest has accessed no device for this many seconds.
    pub watchdog: Option<u64>,
}

/// `[boot]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "the table [boot]")]
pub struct BootConfig {
    /// The kernel: a bzImage, or a vmlinux with a PVH entry.
    pub kernel: Option<PathBuf>,
    /// The kernel's initial ramdisk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
    /// The processor that it sees: `host` or `baseline`.
    #[serde(deserialize_with = "from_str")]
    pub cpu: Template,
}

/// `[devices]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "the table [devices]")]
pub struct DevicesConfig {
    /// Number of accelerators, 1 to 16; an operating system may have none.
    pub count: u32,
    /// Memory of each accelerator, a multiple of 4 KiB.
    pub memory: Size,
    /// Up to what it can grow while the machine runs, a multiple of 4 KiB; without, it cannot grow beyond `memory`.
    pub memory_max: Option<Size>,
    /// What that memory is: `private` or `coherent`.
    #[serde(deserialize_with = "from_str")]
    pub kind: DeviceKind,
    /// How much the accelerators tell of accesses that do not fault: `faults` (nothing), `bits` or `all`.
    #[serde(deserialize_with = "from_str")]
    pub accesses: Fidelity,
    /// The least number of pages that are evicted at a time, from 1.
    pub eviction_batch: u32,
}

/// `[engine]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "the table [engine]")]
pub struct EngineConfig {
    /// `auto`, `remap` or `copy`.
    #[serde(deserialize_with = "from_str")]
    pub kind: EngineChoice,
    /// Number of userfaultfds that managed memory is spread over.
    pub shards: usize,
    /// Whether prefetched pages arrive before the vCPU that faulted goes on. Runs that are compared with a replay need this.
    pub lockstep: bool,
}

/// `[policy]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "the table [policy]")]
pub struct PolicyConfig {
    /// The policy: a name like `density:threshold=60+lru` (`hmmvisor policies` lists what there is), or a script's file.
    #[serde(deserialize_with = "from_str")]
    pub spec: PolicyChoice,
    /// Parts of managed memory with another policy for faults.
    pub region: Vec<RegionConfig>,
}

/// `[[policy.region]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table [[policy.region]]")]
pub struct RegionConfig {
    /// Where the region begins in managed memory, a multiple of 2 MiB.
    pub start: Size,
    /// The region's size, a multiple of 2 MiB.
    pub size: Size,
    /// The policy for faults on it, written like `[policy] spec`, without a component that decides about evictions.
    #[serde(deserialize_with = "region_spec")]
    pub spec: PolicyChoice,
}

/// `[[hint]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table [[hint]]")]
pub struct HintConfig {
    /// Where the pages start, from the start of managed memory.
    pub start: Size,
    /// How much memory they are.
    pub bytes: Size,
    /// `preferred:system`, `preferred:deviceN`, `accessed-by:deviceN`, `read-mostly`, or what takes one back.
    #[serde(deserialize_with = "from_str")]
    pub hint: Hint,
}

impl HintConfig {
    /// Returns the pages.
    pub fn pages(&self) -> PageRange {
        let page = |bytes| Page((bytes / PAGE_SIZE) as u32);
        PageRange::new(page(self.start.0), page(self.start.0 + self.bytes.0))
    }
}

/// `[workload]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "the table [workload]")]
pub struct WorkloadConfig {
    /// Name of the workload; `hmmvisor workloads` lists what there is.
    pub name: Option<String>,
    /// The workload's parameters, as `(name, value)`.
    #[serde(deserialize_with = "params")]
    pub params: Vec<(String, String)>,
}

/// `[service]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "the table [service]")]
pub struct ServiceConfig {
    /// Number of threads; by default one for each host CPU that runs vCPUs.
    pub threads: Option<usize>,
    /// Host CPUs to pin them to, cyclically; by default those that run vCPUs.
    pub cpus: Option<Vec<usize>>,
}

/// `[placement]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "the table [placement]")]
pub struct PlacementConfig {
    /// Pin vCPUs and service threads where nothing else is said. Serving a fault on the CPU that
    /// took it saves waking another one, which costs several times the fault.
    pub pin: bool,
    /// Host CPUs to pin vCPUs to, cyclically; by default all that this process may use.
    pub vcpu_cpus: Option<Vec<usize>>,
    /// Host CPUs to pin the accelerators' threads to, cyclically; by default they are not pinned.
    pub device_cpus: Option<Vec<usize>>,
}

/// `[sandbox]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "the table [sandbox]")]
pub struct SandboxConfig {
    /// `on`, `log` or `off`.
    #[serde(deserialize_with = "from_str")]
    pub mode: Mode,
    /// Folders in which outputs may be made that are asked for while the guest runs.
    pub allow_write: Vec<PathBuf>,
}

/// `[log]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "the table [log]")]
pub struct LogConfig {
    /// `text` or `json`.
    #[serde(deserialize_with = "from_str")]
    pub format: Format,
    /// The least weight of messages that are written: `error`, `warn` or `info`.
    #[serde(deserialize_with = "from_str")]
    pub level: Threshold,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            seed: 1,
            guest: None,
            boot: BootConfig::default(),
            console: ConsoleChoice::default(),
            json: None,
            record: None,
            api: ApiConfig::default(),
            machine: MachineConfig::default(),
            devices: DevicesConfig::default(),
            links: LinksConfig::default(),
            disk: Vec::new(),
            balloon: None,
            rng: false,
            engine: EngineConfig::default(),
            policy: PolicyConfig::default(),
            hint: Vec::new(),
            workload: WorkloadConfig::default(),
            service: ServiceConfig::default(),
            placement: PlacementConfig::default(),
            sandbox: SandboxConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for MachineConfig {
    fn default() -> MachineConfig {
        MachineConfig {
            vcpus: 1,
            memory: Size(256 << 20),
            shared: Size(0),
            on_memory_error: OnMemoryError::default(),
            watchdog: None,
        }
    }
}

impl DevicesConfig {
    /// Returns up to what the memory of each accelerator can grow.
    pub fn memory_max(&self) -> Size {
        self.memory_max.unwrap_or(self.memory)
    }
}

impl Default for DevicesConfig {
    fn default() -> DevicesConfig {
        DevicesConfig {
            count: 1,
            memory: Size(16 << 20),
            memory_max: None,
            kind: DeviceKind::default(),
            accesses: Fidelity::default(),
            eviction_batch: EVICTION_BATCH,
        }
    }
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            kind: EngineChoice::Auto,
            shards: 1,
            lockstep: false,
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

    /// Returns the balloon that the machine has. An operating system has one in any case, so that the pages it frees are given back.
    pub fn effective_balloon(&self) -> Option<BalloonConfig> {
        let always = self.boot.kernel.is_some().then(BalloonConfig::default);
        self.balloon.or(always)
    }

    /// Whether the machine has an entropy device. An operating system has one in any case: it waits for entropy when it boots.
    pub fn has_entropy(&self) -> bool {
        self.rng || self.boot.kernel.is_some()
    }

    /// Returns the number of virtio devices that the machine has.
    pub fn virtio_devices(&self) -> usize {
        let balloon = usize::from(self.effective_balloon().is_some());
        self.disk.len() + balloon + usize::from(self.has_entropy())
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

/// Reads a region's policy.
fn region_spec<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PolicyChoice, D::Error> {
    PolicyChoice::of_region(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Reads a table of scalars and returns each as it would be written on the command line.
fn params<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    let table = BTreeMap::<String, toml::Value>::deserialize(deserializer)?;
    let param = |(name, value): (String, toml::Value)| {
        let value = toml_files::param(&name, &value).map_err(D::Error::custom)?;
        Ok((name, value))
    };
    table.into_iter().map(param).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn an_empty_file_means_the_default() {
        let empty = parse("").unwrap();
        assert_eq!(format!("{empty:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            r#"
            seed = 7
            guest = "guest.elf"
            console = "console.log"
            json = "-"
            record = "run.hmmtrace"
            rng = true
            [balloon]
            size = "64M"
            hints = 5
            [machine]
            vcpus = 4
            memory = "1G"
            shared = "64M"
            on_memory_error = "end"
            watchdog = 60
            [boot]
            kernel = "vmlinuz"
            initrd = "initrd.img"
            cmdline = "console=ttyS0"
            cpu = "baseline"
            [devices]
            count = 2
            memory = 33554432
            [engine]
            shards = 3
            [[disk]]
            file = "root.img"
            read_only = true
            [[disk]]
            file = "data.img"
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
            [[hint]]
            start = 8192
            bytes = "1M"
            hint = "preferred:device1"
            [[hint]]
            start = "0"
            bytes = "4K"
            hint = "read-mostly"
            "#,
        )
        .unwrap();
        assert_eq!(
            (config.seed, config.machine.vcpus, config.devices.count),
            (7, 4, 2)
        );
        assert_eq!(
            (config.machine.memory, config.devices.memory),
            (Size(1 << 30), Size(32 << 20))
        );
        assert_eq!(config.record.as_deref(), Some(Path::new("run.hmmtrace")));
        assert_eq!(config.machine.on_memory_error, OnMemoryError::End);
        assert_eq!(config.machine.watchdog, Some(60));
        assert_eq!(config.console, ConsoleChoice::File("console.log".into()));
        let boot = &config.boot;
        assert_eq!(boot.kernel.as_deref(), Some(Path::new("vmlinuz")));
        assert_eq!(boot.initrd.as_deref(), Some(Path::new("initrd.img")));
        assert_eq!(boot.cmdline.as_deref(), Some("console=ttyS0"));
        assert_eq!(boot.cpu, Template::Baseline);
        assert_eq!((config.engine.shards, config.service.threads), (3, Some(2)));
        let balloon = BalloonConfig {
            size: Size(64 << 20),
            hints: Some(5),
            statistics: None,
        };
        assert_eq!((config.balloon, config.rng), (Some(balloon), true));
        assert_eq!(
            config.disk,
            ["root.img,ro", "data.img"].map(|disk| disk.parse().unwrap())
        );
        assert_eq!(config.placement.vcpu_cpus, Some(vec![0, 1]));
        let hints: Vec<_> = config.hint.iter().map(|h| (h.pages(), h.hint)).collect();
        let pages = |start, end| PageRange::new(Page(start), Page(end));
        let device = Hint::PreferredLocation(Some(hmm_backend::pages::Place::Device(
            hmm_backend::pages::DeviceId(1),
        )));
        assert_eq!(
            hints,
            [
                (pages(2, 258), device),
                (pages(0, 1), Hint::ReadMostly(true))
            ]
        );
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
                "unknown field `vcpu`, expected one of `vcpus`, `memory`, `shared`, `on_memory_error`, `watchdog`",
            ),
            ("[machine]\n\nmemory = \"64X\"\n", 3, "is not a size"),
            ("[machine]\nmemory = -1\n", 2, "cannot be negative"),
            (
                "[machine]\non_memory_error = \"stop\"\n",
                2,
                "`stop` is neither machine-check nor end",
            ),
            (
                "[[hint]]\nstart = 0\nbytes = 4096\nhint = \"preferred:gpu\"\n",
                4,
                "unknown hint 'preferred:gpu'; there are: preferred:system",
            ),
            ("[[hint]]\nstart = 0\n", 1, "missing field `bytes`"),
            ("seed = -1", 1, "expected u64"),
            (
                "workload = \"bfs\"",
                1,
                "invalid type: string \"bfs\", expected the table [workload]",
            ),
            ("hint = [1]", 1, "expected a table [[hint]]"),
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
    fn a_region_has_no_policy_for_evictions() {
        let region = |spec: &str| {
            let text =
                format!("[[policy.region]]\nstart = \"2M\"\nsize = \"2M\"\nspec = \"{spec}\"\n");
            parse(&text).map_err(|error| error.to_string())
        };
        for (spec, name) in [
            ("on-demand+lfu", "lfu"),
            ("lru", "lru"),
            ("markov.luau: n=1 + s3-fifo:small=10", "s3-fifo"),
        ] {
            let message = region(spec).unwrap_err();
            let expected = format!(
                "`{name}` decides about evictions, which have no region; name it in [policy] spec"
            );
            assert!(message.contains(&expected), "{message}");
            // What parses as TOML is not called an error of TOML.
            assert!(
                message.contains("config.toml: at line 4, column 8"),
                "{message}"
            );
            assert!(!message.contains("TOML parse"), "{message}");
        }
        for spec in ["on-demand", "density:threshold=60+hints+timeslice:min=1ms"] {
            region(spec).unwrap();
        }
    }
}
