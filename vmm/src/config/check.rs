//! Checks of a configuration that are possible before anything starts.

use hmm_backend::limits;
use hmm_backend::pages::{DeviceId, Hint, PAGE_SIZE, Place};
use hmmvisor_abi::map;
use hmmvisor_policies::PolicyChoice;

use super::error::TooLarge;
use super::{Config, ConfigError};
use crate::guest::linux::cpuid::Template;
use crate::guest::linux::layout::Layout;
use crate::host::Host;
use hmmvisor_experiments::size::Size;

/// Managed memory comes in blocks of this size.
const BLOCK: u64 = 2 << 20;

/// The most service threads, and entries in the list of CPUs that they run on.
const MAX_SERVICE_THREADS: usize = 64;
/// The most hints: a user cannot tell apart more parts of memory.
const MAX_HINTS: usize = 4096;
/// The most regions, each of which has policies of its own.
const MAX_REGIONS: usize = 64;
/// The most parameters; no workload has as many.
const MAX_PARAMS: usize = 64;

/// An upper bound of the memory that the VMM itself needs.
const OVERHEAD: u64 = 32 << 20;
/// Threads besides vCPUs, devices and the fault service.
const THREADS: u64 = 8;

/// The longest period, in seconds.
const DAY: u64 = 24 * 60 * 60;

/// An error if a number is not from 1 to `max`.
fn in_range(what: &'static str, given: u64, max: u64) -> Result<(), ConfigError> {
    match (1..=max).contains(&given) {
        true => Ok(()),
        false => Err(ConfigError::Range {
            what,
            given,
            min: 1,
            max,
        }),
    }
}

/// An error if a size is 0, or no multiple of its unit.
fn multiple(what: &'static str, given: Size, unit: u64) -> Result<(), ConfigError> {
    let unit = Size(unit);
    match given.0 != 0 && given.0.is_multiple_of(unit.0) {
        true => Ok(()),
        false => Err(ConfigError::Multiple { what, given, unit }),
    }
}

/// Returns each element with each one before it, the earlier one first, both with their numbers from 1 on.
fn pairs<T>(all: &[T]) -> impl Iterator<Item = ((usize, &T), (usize, &T))> {
    let numbered = (1..).zip(all);
    numbered.flat_map(move |later| (1..later.0).zip(all).map(move |earlier| (earlier, later)))
}

/// Returns where two parts of memory, each a start and a size, begin to overlap.
fn overlap(one: (Size, Size), other: (Size, Size)) -> Option<Size> {
    let start = one.0.max(other.0);
    let end = |part: (Size, Size)| part.0.0 + part.1.0;
    (start.0 < end(one).min(end(other))).then_some(start)
}

impl Config {
    /// Returns why the host cannot run it, as far as that can be found out without trying.
    pub fn check(&self, host: &Host) -> Result<(), ConfigError> {
        let vcpus = self.machine.vcpus.into();
        in_range("the number of vCPUs", vcpus, map::MAX_VCPUS)?;
        self.check_boot()?;
        self.check_numbers()?;
        self.check_lists()?;
        self.check_sizes(host)?;
        self.check_room(host)?;
        self.check_hints()?;
        self.check_regions()?;
        self.check_cpus(host)?;
        self.check_params()
    }

    /// An error if there are too few or too many of something, or a time is too long.
    fn check_numbers(&self) -> Result<(), ConfigError> {
        let no_accelerators = self.boot.kernel.is_some() && self.devices.count == 0;
        if !no_accelerators {
            in_range(
                "the number of accelerators",
                self.devices.count.into(),
                map::MAX_ACCELS,
            )?;
        }
        if let Some(seconds) = self.machine.watchdog {
            in_range("the watchdog's time in seconds", seconds, DAY)?;
        }
        let balloon = self.balloon.unwrap_or_default();
        let what = "the number of seconds between hints";
        balloon.hints.map_or(Ok(()), |it| in_range(what, it, DAY))?;
        let what = "the number of seconds between statistics";
        let statistics = balloon.statistics;
        statistics.map_or(Ok(()), |it| in_range(what, it, DAY))?;
        let virtio = self.virtio_devices();
        if virtio > 0 {
            in_range(
                "the number of accelerators, disks and other virtio devices together",
                u64::from(self.devices.count) + virtio as u64,
                map::MAX_ACCELS,
            )?;
        }
        let count = self.devices.count;
        if let Some(DeviceId(device)) = self.links.matrix.last_device()
            && u32::from(device) >= count
        {
            return Err(ConfigError::LinkOfNone { device, count });
        }
        if let Some((DeviceId(first), DeviceId(second))) = self.links.hole(count) {
            return Err(ConfigError::NoLink { first, second });
        }
        in_range(
            "the number of pages that are evicted at a time",
            self.devices.eviction_batch.into(),
            1 << 20,
        )?;
        in_range("the number of shards", self.engine.shards as u64, 64)?;
        let what = "the number of service threads";
        let threads = self.service.threads.map(|n| n as u64);
        threads.map_or(Ok(()), |n| in_range(what, n, MAX_SERVICE_THREADS as u64))
    }

    /// An error if a list of CPUs is empty, or names one that this process may not use.
    fn check_cpus(&self, host: &Host) -> Result<(), ConfigError> {
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
        Ok(())
    }

    /// An error if a parameter would break the guest's command line, or is given twice.
    fn check_params(&self) -> Result<(), ConfigError> {
        let is_word = |word: &str| {
            !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        let params = &self.workload.params;
        for (i, (name, value)) in params.iter().enumerate() {
            if !is_word(name) || !is_word(value) || name.contains('=') {
                return Err(ConfigError::Param(format!("{name}={value}")));
            }
            if params[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(ConfigError::RepeatedParam(name.clone()));
            }
        }
        Ok(())
    }

    /// An error if a list is longer than its purpose allows.
    fn check_lists(&self) -> Result<(), ConfigError> {
        let length = |list: &Option<Vec<usize>>| list.as_ref().map_or(0, Vec::len);
        let lists = [
            (
                "[service] cpus",
                length(&self.service.cpus),
                MAX_SERVICE_THREADS,
            ),
            (
                "[placement] vcpu_cpus",
                length(&self.placement.vcpu_cpus),
                map::MAX_VCPUS as usize,
            ),
            (
                "[placement] device_cpus",
                length(&self.placement.device_cpus),
                map::MAX_ACCELS as usize,
            ),
            ("[[disk]]", self.disk.len(), map::MAX_ACCELS as usize),
            ("[[hint]]", self.hint.len(), MAX_HINTS),
            ("[[policy.region]]", self.policy.region.len(), MAX_REGIONS),
            ("[workload] params", self.workload.params.len(), MAX_PARAMS),
        ];
        match lists.into_iter().find(|(_, given, max)| given > max) {
            Some((what, given, max)) => Err(ConfigError::TooMany { what, given, max }),
            None => Ok(()),
        }
    }

    /// An error if the host's limits leave too little memory, address space or threads. Guest memory fills as the guest touches it,
    /// and the guest may touch all of it: without this check the kernel would kill the run in the middle.
    fn check_room(&self, host: &Host) -> Result<(), ConfigError> {
        let devices = u64::from(self.devices.count).saturating_mul(self.devices.memory_max().0);
        let pages = self.machine.memory.0.saturating_add(devices);
        let needed = pages.saturating_add(OVERHEAD);
        for group in &host.groups {
            let Some(memory) = group.memory else { continue };
            if needed > memory.room() {
                return Err(ConfigError::Group {
                    needed,
                    group: group.name(),
                    room: memory.room(),
                    limit: memory.limit,
                    file: memory.file,
                });
            }
        }
        let (vcpus, count) = (
            u64::from(self.machine.vcpus),
            u64::from(self.devices.count) + self.virtio_devices() as u64,
        );
        let service = self.service.threads.unwrap_or(0) as u64;
        let threads = vcpus + vcpus.max(service) + count + THREADS;
        // Guest memory has a place to be copied to for a device that wants a page for itself; all is aligned to blocks; and there
        // are tables.
        let memory = self.machine.memory.0;
        let tables = memory / 32 + count * BLOCK + OVERHEAD;
        let needed = memory.saturating_mul(2).saturating_add(devices);
        let needed = limits::address_space_of(needed.saturating_add(tables), threads);
        if let Some((room, limit)) = host.address_space
            && needed > room
        {
            return Err(ConfigError::AddressSpace {
                needed,
                room,
                limit,
            });
        }
        Ok(())
    }

    /// An error if options of an operating system and of small guests are mixed.
    fn check_boot(&self) -> Result<(), ConfigError> {
        let boot = &self.boot;
        let (conflict, kernel) = match boot.kernel {
            Some(_) => (
                [
                    ("a guest file", self.guest.is_some()),
                    ("a workload", self.workload.name.is_some()),
                    ("parameters", !self.workload.params.is_empty()),
                ],
                "for another guest, together with a kernel; give one of them",
            ),
            None => (
                [
                    ("an initial ramdisk", boot.initrd.is_some()),
                    ("a kernel command line", boot.cmdline.is_some()),
                    ("a processor", boot.cpu != Template::default()),
                ],
                "without a kernel to give it to; name one with --kernel",
            ),
        };
        match conflict.into_iter().find(|(_, given)| *given) {
            Some((what, _)) => Err(ConfigError::Boot { what, kernel }),
            None => Ok(()),
        }
    }

    /// An error if a size is no multiple of its unit, or too large.
    fn check_sizes(&self, host: &Host) -> Result<(), ConfigError> {
        self.check_units()?;
        let limits = self.size_limits(host).into_iter();
        let mut limits = limits.chain(self.balloon_limit());
        match limits.find(|it| it.given > it.limit) {
            Some(too_large) => Err(too_large.into()),
            None => Ok(()),
        }
    }

    /// An error if a size is no multiple of its unit.
    fn check_units(&self) -> Result<(), ConfigError> {
        multiple("guest memory", self.machine.memory, BLOCK)?;
        multiple("device memory", self.devices.memory, PAGE_SIZE)?;
        multiple(
            "the largest device memory",
            self.devices.memory_max(),
            PAGE_SIZE,
        )?;
        match self.machine.shared {
            Size(0) => Ok(()),
            shared => multiple("shared memory", shared, BLOCK),
        }
    }

    /// Returns the limits of memory. They are for sizes that are multiples of their units.
    fn size_limits(&self, host: &Host) -> [TooLarge; 6] {
        let memory = self.machine.memory;
        // Shared memory has no gap in it.
        let (shared_limit_of, shared_limit) = match &self.boot.kernel {
            Some(_) => {
                let last = Layout::new(memory).last();
                ("the last piece of guest memory", last.end - last.start)
            }
            None => ("guest memory", memory.0),
        };
        let map_limit = match self.boot.kernel {
            Some(_) => "a kernel can get",
            None => "the guest's page tables can map",
        };
        [
            TooLarge {
                what: "guest memory",
                given: memory,
                limit_of: map_limit,
                limit: Size(map::MANAGED_MAX),
                remedy: "use less with --memory",
            },
            TooLarge {
                what: "guest memory",
                given: memory,
                limit_of: "this host's memory",
                limit: Size(host.memory),
                remedy: "use less with --memory",
            },
            TooLarge {
                what: "device memory",
                given: self.devices.memory,
                limit_of: "guest memory",
                limit: memory,
                remedy: "use less with --device-memory, or more with --memory",
            },
            TooLarge {
                what: "the largest device memory",
                given: self.devices.memory_max(),
                limit_of: "guest memory",
                limit: memory,
                remedy: "use less with --device-memory-max, or more with --memory",
            },
            TooLarge {
                what: "device memory",
                given: self.devices.memory,
                limit_of: "what it can grow to",
                limit: self.devices.memory_max(),
                remedy: "use less with --device-memory, or more with --device-memory-max",
            },
            TooLarge {
                what: "shared memory",
                given: self.machine.shared,
                limit_of: shared_limit_of,
                limit: Size(shared_limit),
                remedy: "use less with --shared",
            },
        ]
    }

    /// Returns the limit of the balloon, if there is one.
    fn balloon_limit(&self) -> Option<TooLarge> {
        Some(TooLarge {
            what: "the balloon",
            given: self.balloon?.size,
            limit_of: "guest memory",
            limit: self.machine.memory,
            remedy: "use less with --balloon",
        })
    }

    fn check_regions(&self) -> Result<(), ConfigError> {
        for region in &self.policy.region {
            let (start, size) = (region.start, region.size);
            if start != Size(0) {
                multiple("[[policy.region]] start", start, BLOCK)?;
            }
            multiple("[[policy.region]] size", size, BLOCK)?;
            let end = Size(start.0.saturating_add(size.0));
            if end > self.machine.memory {
                return Err(ConfigError::from(TooLarge {
                    what: "[[policy.region]] start and size",
                    given: end,
                    limit_of: "guest memory",
                    limit: self.machine.memory,
                    remedy: "end the region earlier",
                }));
            }
        }
        for ((first, one), (second, other)) in pairs(&self.policy.region) {
            if let Some(start) = overlap((one.start, one.size), (other.start, other.size)) {
                return Err(ConfigError::Overlap {
                    first,
                    second,
                    start,
                });
            }
        }
        Ok(())
    }

    fn check_hints(&self) -> Result<(), ConfigError> {
        for (i, it) in self.hint.iter().enumerate() {
            let refuse = |why| {
                let (number, hint) = (i + 1, it.hint);
                Err(ConfigError::Hint { number, hint, why })
            };
            let memory = self.machine.memory;
            let (start, bytes) = (it.start.0, it.bytes.0);
            if bytes == 0 || !start.is_multiple_of(PAGE_SIZE) || !bytes.is_multiple_of(PAGE_SIZE) {
                return refuse("start and bytes must be whole pages of 4 KiB, at least one".into());
            }
            if start.checked_add(bytes).is_none_or(|end| end > memory.0) {
                return refuse(format!("it goes beyond the end of guest memory ({memory})"));
            }
            let (Hint::PreferredLocation(Some(Place::Device(DeviceId(device))))
            | Hint::AccessedBy(DeviceId(device), _)) = it.hint
            else {
                continue;
            };
            let count = self.devices.count;
            if u32::from(device) >= count {
                return refuse(format!(
                    "there is no such device; the last is device{}",
                    count - 1
                ));
            }
        }
        let spec = &self.policy.spec;
        if let Some(first) = self.hint.first()
            && !self.listens_to_hints()
        {
            return Err(ConfigError::Hint {
                number: 1,
                hint: first.hint,
                why: format!("policy {spec} does not listen to hints; add `+hints`"),
            });
        }
        self.check_contradictions()
    }

    /// Returns what there is to say about the workload's parameter `hint` if the policy does not listen to hints. It is no error:
    /// policies with and without hints are compared on one workload.
    pub fn unheard_hint(&self) -> Option<String> {
        let hint = self.hint_of_workload()?;
        let policy = &self.policy.spec;
        (!self.listens_to_hints()).then(|| {
            format!(
                "parameter `hint={hint}` has no effect: policy {policy} does not listen to hints; add `+hints`"
            )
        })
    }

    /// Whether the policy of some part of memory listens to hints.
    fn listens_to_hints(&self) -> bool {
        let regions = self.policy.region.iter().map(|region| &region.spec);
        let mut specs = regions.chain([&self.policy.spec]);
        specs.any(PolicyChoice::listens_to_hints)
    }

    /// Returns the hint that the embedded guest is to give, if its parameter names one.
    fn hint_of_workload(&self) -> Option<&str> {
        if self.guest.is_some() || self.boot.kernel.is_some() {
            return None;
        }
        let workload = match &self.workload.name {
            // An unknown name is refused when the guest is chosen, as are values that the parameter does not have.
            Some(name) => hmmvisor_guest_images::find(name).ok()?,
            None => hmmvisor_guest_images::workloads().first()?,
        };
        let param = workload.params.iter().find(|it| it.name == "hint")?;
        let given = self.workload.params.iter();
        let (_, value) = given.into_iter().find(|(name, _)| name == param.name)?;
        let number = param.parse(value).ok()?;
        (number != param.default).then_some(value)
    }

    /// An error if two hints about the same pages say different things. One that takes back an earlier one is no contradiction.
    fn check_contradictions(&self) -> Result<(), ConfigError> {
        for ((first, one), (second, other)) in pairs(&self.hint) {
            if let Some(start) = overlap((one.start, one.bytes), (other.start, other.bytes))
                && contradict(one.hint, other.hint)
            {
                return Err(ConfigError::Contradiction {
                    first,
                    one: one.hint,
                    second,
                    other: other.hint,
                    start,
                });
            }
        }
        Ok(())
    }
}

/// Whether a hint says something else about pages than an earlier one, which it does not take back.
fn contradict(earlier: Hint, later: Hint) -> bool {
    match (earlier, later) {
        (Hint::PreferredLocation(one), Hint::PreferredLocation(other @ Some(_))) => one != other,
        (Hint::AccessedBy(one, false), Hint::AccessedBy(other, true)) => one == other,
        (Hint::ReadMostly(false), Hint::ReadMostly(true)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HintConfig, RegionConfig};

    fn host() -> Host {
        Host {
            memory: 8 << 30,
            cpus: vec![1, 0],
            groups: Vec::new(),
            address_space: None,
        }
    }

    /// Returns the complaint about a change to the default configuration.
    fn complaint(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.check(&host()).unwrap_err().to_string()
    }

    #[test]
    fn lists_are_no_longer_than_what_they_are_for() {
        let hint = HintConfig {
            start: Size(0),
            bytes: Size(4096),
            hint: Hint::ReadMostly(true),
        };
        let region = |i: usize| RegionConfig {
            start: Size(i as u64 * BLOCK),
            size: Size(BLOCK),
            spec: PolicyChoice::default(),
        };
        type Change = Box<dyn Fn(&mut Config, usize)>;
        let changes: [(&str, usize, Change); 7] = [
            (
                "[service] cpus",
                64,
                Box::new(|it, n| it.service.cpus = Some(vec![0; n])),
            ),
            (
                "[placement] vcpu_cpus",
                64,
                Box::new(|it, n| it.placement.vcpu_cpus = Some(vec![0; n])),
            ),
            (
                "[placement] device_cpus",
                16,
                Box::new(|it, n| it.placement.device_cpus = Some(vec![0; n])),
            ),
            (
                "[[hint]]",
                4096,
                Box::new(move |it, n| {
                    it.policy.spec = "on-demand+hints".parse().unwrap();
                    it.hint = vec![hint.clone(); n];
                }),
            ),
            (
                "[[policy.region]]",
                64,
                Box::new(move |it, n| it.policy.region = (0..n).map(region).collect()),
            ),
            (
                "[workload] params",
                64,
                Box::new(|it, n| {
                    let param = |i| (format!("a{i}"), "1".to_owned());
                    it.workload.params = (0..n).map(param).collect();
                }),
            ),
            // One less: the accelerator has a window, too.
            (
                "[[disk]]",
                15,
                Box::new(|it, n| it.disk = vec!["a.img".parse().unwrap(); n]),
            ),
        ];
        for (what, max, change) in changes {
            let mut config = Config::default();
            change(&mut config, max);
            config.check(&host()).unwrap();
            let complaint = complaint(|config| change(config, 100_000));
            match what {
                "[[disk]]" => assert!(complaint.contains("must be from 1 to 16"), "{complaint}"),
                _ => assert_eq!(
                    complaint,
                    format!("{what} has 100000 entries, but must have no more than {max}")
                ),
            }
        }
    }

    #[test]
    fn what_the_host_has_no_room_for_is_refused() {
        let with = |host: Host| Config::default().check(&host);
        let group = |limit: u64| Host {
            groups: vec![hmm_backend::limits::Group {
                folder: "/groups/tight".into(),
                threads: None,
                memory: Some(hmm_backend::limits::GroupMemory {
                    limit,
                    used: 16 << 20,
                    swap: 0,
                    file: "memory.max",
                }),
            }],
            ..host()
        };
        with(group(320 << 20)).unwrap();
        assert_eq!(
            with(group(256 << 20)).unwrap_err().to_string(),
            "guest and accelerators may need 304 MiB, but control group /groups/tight has 240 MiB left of its 256 MiB: use less with --memory or --device-memory, or raise its memory.max"
        );
        let space = |room: u64| Host {
            address_space: Some((room, 1 << 30)),
            ..host()
        };
        with(space(900 << 20)).unwrap();
        let complaint = with(space(600 << 20)).unwrap_err().to_string();
        assert!(
            complaint.contains("has 614400 KiB left of its 1048576 KiB")
                && complaint.contains("ulimit -v"),
            "{complaint}"
        );
    }

    #[test]
    fn the_default_is_fine() {
        Config::default().check(&host()).unwrap();
        let mut linux = Config::default();
        linux.boot.kernel = Some("vmlinuz".into());
        linux.devices.count = 0;
        linux.check(&host()).unwrap();
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
        assert!(
            complaint(|config| config.devices.memory_max = Some(Size(1 << 30)))
                .contains("more than guest memory (256 MiB)")
        );
        assert!(
            complaint(|config| config.devices.memory_max = Some(Size(1 << 20)))
                .contains("more than what it can grow to (1 MiB)")
        );
        assert!(
            complaint(|config| config.machine.shared = Size(258 << 20))
                .contains("shared memory of 258 MiB is more than guest memory (256 MiB)")
        );
        assert!(
            complaint(|config| {
                config.boot.kernel = Some("vmlinuz".into());
                (config.machine.memory, config.machine.shared) = (Size(4 << 30), Size(2 << 30));
            })
            .contains("more than the last piece of guest memory (1 GiB)")
        );
        assert!(
            complaint(|config| config.balloon = "257M".parse().ok())
                .contains("the balloon of 257 MiB is more than guest memory (256 MiB)")
        );
        let disks = |count: usize| vec!["a.img".parse().unwrap(); count];
        assert!(
            complaint(|config| {
                (config.disk, config.rng) = (disks(15), true);
            })
            .contains("virtio devices together is 17, but must be from 1 to 16")
        );
        assert!(complaint(|config| config.service.cpus = Some(vec![2])).contains("only [0, 1]"));
        assert!(complaint(|config| config.service.cpus = Some(vec![])).contains("empty"));
        assert!(complaint(|config| config.machine.watchdog = Some(0)).contains("from 1 to 86400"));
        assert_eq!(
            complaint(|config| config.boot.cmdline = Some("quiet".into())),
            "a kernel command line without a kernel to give it to; name one with --kernel"
        );
        assert!(complaint(|config| config.boot.initrd = Some("i".into())).contains("ramdisk"));
        assert!(complaint(|config| config.boot.cpu = Template::Baseline).contains("--kernel"));
        let with_kernel = |change: fn(&mut Config)| {
            complaint(|config| {
                config.boot.kernel = Some("vmlinuz".into());
                change(config);
            })
        };
        assert!(with_kernel(|config| config.guest = Some("g".into())).contains("a guest file"));
        assert!(
            with_kernel(|config| config.workload.name = Some("bfs".into())).contains("a workload")
        );
        let hint = |start, bytes, hint: &str| {
            let hint = HintConfig {
                start: Size(start),
                bytes: Size(bytes),
                hint: hint.parse().unwrap(),
            };
            complaint(|config| config.hint = vec![hint])
        };
        assert_eq!(
            hint(4096, 4096, "read-mostly"),
            "[[hint]] number 1, `read-mostly`: policy adaptive+lru+timeslice does not listen to hints; add `+hints`"
        );
        assert!(hint(1, 4096, "read-mostly").contains("whole pages"));
        assert!(hint(0, 0, "read-mostly").contains("whole pages"));
        assert!(
            hint(4096, 256 << 20, "read-mostly")
                .contains("beyond the end of guest memory (256 MiB)")
        );
        assert!(hint(0, u64::MAX - 4095, "read-mostly").contains("beyond the end"));
        assert!(
            hint(0, 4096, "accessed-by:device1")
                .ends_with("there is no such device; the last is device0")
        );
        assert_eq!(
            complaint(|config| {
                config.workload.params = vec![("n".into(), "1".into()), ("n".into(), "2".into())];
            }),
            "parameter `n` is given twice; give it once"
        );
        let region = |start: u64, size: u64| RegionConfig {
            start: Size(start << 20),
            size: Size(size << 20),
            spec: PolicyChoice::default(),
        };
        assert_eq!(
            complaint(|config| {
                config.policy.region = vec![region(0, 4), region(64, 32), region(4, 62)];
            }),
            "[[policy.region]] number 2 and number 3 overlap from 64 MiB on; give each part of memory one policy"
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

    #[test]
    fn hints_of_a_workload_that_no_policy_hears_are_noticed() {
        let with = |workload: Option<&str>, value: &str, policy: &str| {
            let mut config = Config::default();
            config.workload.name = workload.map(str::to_owned);
            config.workload.params = vec![("hint".into(), value.into())];
            config.policy.spec = policy.parse().unwrap();
            config.check(&host()).unwrap();
            config
        };
        let unheard = with(None, "preferred:system", "density");
        assert_eq!(
            unheard.unheard_hint().unwrap(),
            "parameter `hint=preferred:system` has no effect: policy density+lru+timeslice does not listen to hints; add `+hints`"
        );
        let bfs = with(Some("bfs"), "4", "density");
        assert!(bfs.unheard_hint().unwrap().contains("`hint=4`"));
        for (workload, value, policy) in [
            (None, "none", "density"),
            (None, "0", "density"),
            (None, "read-mostly", "density+hints"),
            (None, "preferred:device", "density+thrash"),
            // These are wrong for another reason, which is found later.
            (None, "nonsense", "density"),
            (Some("chase"), "read-mostly", "density"),
            (Some("nosuch"), "read-mostly", "density"),
        ] {
            assert_eq!(with(workload, value, policy).unheard_hint(), None);
        }
        let mut guest = unheard.clone();
        guest.guest = Some("g".into());
        assert_eq!(guest.unheard_hint(), None);
        let mut region = unheard;
        region.policy.region = vec![RegionConfig {
            start: Size(0),
            size: Size(BLOCK),
            spec: "density+hints".parse().unwrap(),
        }];
        assert_eq!(region.unheard_hint(), None);
    }

    #[test]
    fn hints_do_not_contradict_each_other() {
        let check = |hints: &[(u64, u64, &str)]| {
            let mut config = Config::default();
            config.policy.spec = "density+hints".parse().unwrap();
            config.devices.count = 2;
            let hint = |(start, pages, hint): &(u64, u64, &str)| HintConfig {
                start: Size(start * PAGE_SIZE),
                bytes: Size(pages * PAGE_SIZE),
                hint: hint.parse().unwrap(),
            };
            config.hint = hints.iter().map(hint).collect();
            config.check(&host()).map_err(|error| error.to_string())
        };
        let (system, device) = ("preferred:system", "preferred:device0");
        assert_eq!(
            check(&[(0, 1, device), (0, 256, system), (255, 2, device)]).unwrap_err(),
            "[[hint]] number 1, `preferred:device0`, and number 2, `preferred:system`, contradict each other from 0 bytes on; give one of them"
        );
        assert!(
            check(&[(0, 256, system), (255, 2, device)])
                .unwrap_err()
                .contains("from 1020 KiB on")
        );
        for (one, other) in [
            ("preferred:none", system),
            (device, "preferred:device1"),
            ("not-read-mostly", "read-mostly"),
            ("not-accessed-by:device1", "accessed-by:device1"),
        ] {
            assert!(check(&[(0, 2, one), (1, 2, other)]).is_err(), "{one}");
            check(&[(0, 2, one), (2, 2, other)]).unwrap();
        }
        for (one, other) in [
            (system, system),
            (system, "preferred:none"),
            (system, "read-mostly"),
            ("accessed-by:device0", "accessed-by:device1"),
            ("not-accessed-by:device0", "accessed-by:device1"),
            ("read-mostly", "not-read-mostly"),
        ] {
            check(&[(0, 2, one), (1, 2, other)]).unwrap();
        }
    }
}
