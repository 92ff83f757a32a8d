//! Options of `run`, over the configuration file.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use hmm_backend::engine::EngineChoice;
use hmm_backend::pages::Fidelity;
use hmmvisor::OnMemoryError;
use hmmvisor::config::console_choice::ConsoleChoice;
use hmmvisor::config::links::{LinkOption, LinksConfig, PeerOption};
use hmmvisor::config::virtio::{BalloonConfig, DiskConfig};
use hmmvisor::config::{Config, DeviceKind, LogConfig, MetricsAddress};
use hmmvisor::guest::linux::cpuid::Template;
use hmmvisor::messages::{Format, Threshold};
use hmmvisor::sandbox::Mode;
use hmmvisor::size::Size;
use hmmvisor_policies::PolicyChoice;

use super::commands;
use super::mistake::Mistake;

/// Options of `run`. Each overrides its key in the configuration file.
#[derive(Args)]
pub struct RunArgs {
    /// Configuration file; the options below override what it says
    #[arg(value_name = "CONFIG.toml")]
    config: Option<PathBuf>,
    /// Program to run in the guest; `hmmvisor workloads` lists them [default: vecadd]
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Parameter of the workload; may be given several times
    #[arg(long = "param", value_name = "K=V", value_parser = param)]
    params: Vec<(String, String)>,
    /// What migrates when, like `density:threshold=60+lru`; `hmmvisor policies` lists the parts; or a script's file, like `stride.luau:window=32+lru` [default: adaptive+lru+timeslice]
    #[arg(long, value_name = "SPEC")]
    policy: Option<PolicyChoice>,
    /// How pages migrate: auto, remap (moves them, Linux 6.8 or later) or copy [default: auto]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<EngineChoice>,
    /// Number of vCPUs, 1 to 64 [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    vcpus: Option<u32>,
    /// Guest memory, whose pages migrate, like 64M or 1G [default: 256M]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<Size>,
    /// How much of guest memory, at its end, never migrates: accelerators reach it in place; like 64M [default: 0]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    shared: Option<Size>,
    /// When a page that a vCPU accesses cannot be supplied: machine-check (the guest is told, and may
    /// recover) or end (of the run) [default: machine-check]
    #[arg(long, value_name = "WHAT")]
    on_memory_error: Option<OnMemoryError>,
    /// Memory of each accelerator [default: 16M]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    device_memory: Option<Size>,
    /// Up to what that memory can grow while the machine runs, by the API [default: what --device-memory says]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    device_memory_max: Option<Size>,
    /// What that memory is: private (out of reach of vCPUs, pages migrate on faults) or coherent (reached by all in
    /// place, pages move only when the guest asks for it) [default: private]
    #[arg(long, value_name = "KIND")]
    device_kind: Option<DeviceKind>,
    /// How much the accelerators tell of accesses that do not fault, for policies that evict by use: faults (nothing), bits
    /// (accessed bits of their page tables) or all [default: faults]
    #[arg(long, value_name = "faults|bits|all")]
    accesses: Option<Fidelity>,
    /// What a transfer between system memory and an accelerator costs, like latency=10us,bandwidth=25G; it is added up. With
    /// `,enforce` transfers take that time [default: latency=10us,bandwidth=25G]
    #[arg(long, value_name = "LINK[,enforce]")]
    link: Option<LinkOption>,
    /// What a transfer from one accelerator directly to another costs, over a link of their own; host: they have none, and go over
    /// the links of both to the host [default: host]
    #[arg(long, value_name = "LINK|host")]
    peer_link: Option<PeerOption>,
    /// Number of accelerators, 1 to 16; 0 is possible with --kernel [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    devices: Option<u32>,
    /// Seed of the guest's pseudo-random numbers [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Run this ELF file instead of the embedded guest; docs/guest-abi.md says what it finds
    #[arg(long, value_name = "FILE")]
    guest: Option<PathBuf>,
    /// Boot this operating system kernel, a bzImage (vmlinuz) or vmlinux, instead of the embedded guest; docs/linux.md
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The kernel's initial ramdisk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line [default: "console=ttyS0 panic=-1"]
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// The processor that the kernel sees: host, or baseline (x86-64-v2) [default: host]
    #[arg(long, value_name = "TEMPLATE")]
    cpu: Option<Template>,
    /// Where the serial port leads: auto (a terminal if standard input is one, where Ctrl-A x quits; otherwise as stdio), stdio
    /// (standard input and output as they are), or a file for the output, - being standard output [default: auto]
    #[arg(long, value_name = "auto|stdio|FILE")]
    console: Option<ConsoleChoice>,
    /// End the run when the guest has accessed no device for this many seconds; idle systems access none either [default: never]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    watchdog: Option<u64>,
    /// A raw disk image for the guest (virtio-blk), with `,ro` read-only; may be given several times, and replaces the
    /// configuration file's disks
    #[arg(long = "disk", value_name = "FILE[,ro]")]
    disks: Vec<DiskConfig>,
    /// Give the guest a memory balloon (virtio-balloon), and have it give back this much. With `hints=N`, ask it every N seconds for
    /// pages that are free; with `statistics=N`, for figures about its memory [default: 0 with --kernel, otherwise no balloon]
    #[arg(
        long,
        value_name = "SIZE[,hints=N][,statistics=N]",
        allow_hyphen_values = true
    )]
    balloon: Option<BalloonConfig>,
    /// Give the guest a source of random numbers (virtio-rng); with --kernel it has one anyway
    #[arg(long)]
    rng: bool,
    /// Write the figures as one JSON object, to FILE; without FILE or with `-` to standard output, and all else to standard
    /// error. A file that is there is replaced at the end of the run
    #[arg(long, value_name = "FILE|-", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Write a trace of all faults, migrations and frees; `hmmvisor trace` reads it. A trace that is there is replaced when the
    /// new one is whole
    #[arg(long, value_name = "FILE|-")]
    record: Option<PathBuf>,
    /// What the threads may ask of the kernel while the guest runs: on (what their kind needs; anything else ends the run), log
    /// (everything, but tells what `on` does not allow) or off; docs/security.md [default: on]
    #[arg(long, value_name = "on|log|off")]
    sandbox: Option<Mode>,
    /// A folder in which outputs may be made that are asked for while the guest runs; may be given several times, and adds to
    /// the configuration file's
    #[arg(long, value_name = "DIR")]
    allow_write: Vec<PathBuf>,
    #[command(flatten)]
    log: LogArgs,
    /// Answer at this Unix socket while the machine runs (HTTP/1.1; `hmmvisor ctl`, `curl --unix-socket`); docs/api.md
    #[arg(long, value_name = "SOCKET")]
    api: Option<PathBuf>,
    /// Serve the figures for Prometheus at http://ADDR:PORT/metrics, read-only; a port alone is one of the loopback interface
    #[arg(long, value_name = "[ADDR:]PORT")]
    metrics: Option<MetricsAddress>,
}

/// How messages are written on standard error.
#[derive(Args, Clone, Copy)]
pub struct LogArgs {
    /// How messages are written on standard error: text, or json (an object for each) [default: text]
    #[arg(long, value_name = "text|json")]
    log_format: Option<Format>,
    /// The least weight of messages that are written: error, warn, or info (also what the run and requests do) [default: warn]
    #[arg(long, value_name = "error|warn|info")]
    log_level: Option<Threshold>,
}

impl LogArgs {
    /// Returns what the options say, and where they say nothing what `config` does.
    pub fn over(self, config: LogConfig) -> LogConfig {
        LogConfig {
            format: self.log_format.unwrap_or(config.format),
            level: self.log_level.unwrap_or(config.level),
        }
    }
}

impl RunArgs {
    /// Returns how messages are written if there is no configuration.
    pub fn log(&self) -> LogConfig {
        self.log.over(LogConfig::default())
    }

    /// Returns the path of the configuration file, if one was given.
    pub fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Returns the configuration: the file's, or the defaults, changed by the options.
    pub fn config(self) -> Result<Config> {
        let mut config = match &self.config {
            // More likely a mistyped command than a file.
            Some(path) if path.extension().is_none() && !path.exists() => bail!(Mistake(format!(
                "there is no configuration file `{0}`; if `{0}` was meant as a command: there are {1}, and they come first",
                path.display(),
                commands()
            ))),
            Some(path) => Config::read(path)?,
            None => match &self.json {
                // The only file of the command line: it is meant to be read.
                Some(file) if file.extension().is_some_and(|it| it == "toml") => {
                    bail!(Mistake(format!(
                        "--json takes {0} as the file to write; for the configuration {0}, write `run {0} --json`",
                        file.display()
                    )))
                }
                _ => Config::default(),
            },
        };
        fn set<T>(place: &mut T, option: Option<T>) {
            if let Some(value) = option {
                *place = value;
            }
        }
        // Another workload has other parameters.
        if self.workload.is_some() && self.workload != config.workload.name {
            config.workload.params.clear();
        }
        config
            .workload
            .params
            .retain(|(name, _)| self.params.iter().all(|(given, _)| given != name));
        config.workload.params.extend(self.params);
        config.workload.name = self.workload.or(config.workload.name);
        config.guest = self.guest.or(config.guest);
        config.json = self.json.or(config.json);
        config.record = self.record.or(config.record);
        config.api.socket = self.api.or(config.api.socket);
        config.api.metrics = self.metrics.or(config.api.metrics);
        set(&mut config.policy.spec, self.policy);
        set(&mut config.engine.kind, self.engine);
        set(&mut config.machine.vcpus, self.vcpus);
        set(&mut config.machine.memory, self.memory);
        set(&mut config.machine.shared, self.shared);
        set(&mut config.machine.on_memory_error, self.on_memory_error);
        set(&mut config.devices.memory, self.device_memory);
        config.devices.memory_max = self.device_memory_max.or(config.devices.memory_max);
        set(&mut config.devices.kind, self.device_kind);
        set(&mut config.devices.accesses, self.accesses);
        set(&mut config.devices.count, self.devices);
        if let Some(LinkOption { model, pacing }) = self.link {
            config.links = LinksConfig {
                matrix: model.into(),
                peer_given: false,
                pacing,
            };
        }
        if let Some(PeerOption(link)) = self.peer_link {
            (config.links.matrix.peer, config.links.peer_given) = (link, true);
            config.links.matrix.peers.clear();
        }
        set(&mut config.seed, self.seed);
        config.boot.kernel = self.kernel.or(config.boot.kernel);
        config.boot.initrd = self.initrd.or(config.boot.initrd);
        config.boot.cmdline = self.cmdline.or(config.boot.cmdline);
        config.machine.watchdog = self.watchdog.or(config.machine.watchdog);
        set(&mut config.boot.cpu, self.cpu);
        set(&mut config.console, self.console);
        if !self.disks.is_empty() {
            config.disk = self.disks;
        }
        config.balloon = self.balloon.or(config.balloon);
        config.rng |= self.rng;
        set(&mut config.sandbox.mode, self.sandbox);
        config.sandbox.allow_write.extend(self.allow_write);
        config.log = self.log.over(config.log);
        Ok(config)
    }
}

/// Parses `NAME=VALUE`.
pub fn param(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err("write it as NAME=VALUE".to_owned()),
    }
}
