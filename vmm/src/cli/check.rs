//! `hmmvisor check`: finds out whether this machine can run guests, and says what to do if not.

use std::iter;
use std::time::{Duration, Instant};

use hmm_backend::limits;
use hmmvisor_experiments::figures::{bytes, time};
use hmmvisor_guest_images as guest_images;

use hmmvisor::ending::End;
use hmmvisor::guest::linux::kernel_mode::{self, NATIVE};
use hmmvisor::host::Host;
use hmmvisor::machine::kvm::{self, API_VERSION, Capability, KvmError};
use hmmvisor::sandbox::Support;
use hmmvisor::vm::{Vm, VmConfig};

/// How long the kernel's reports of moved pages are tried.
const MOVES: Duration = Duration::from_millis(200);
/// How long the trial guest may take.
const TRIAL: Duration = Duration::from_secs(5);
/// Address space that the default run needs, generously.
const ADDRESS_SPACE: u64 = 1 << 30;

/// Threads that the default run needs, generously.
const THREADS: u64 = 16;

/// The outcome of one check.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What was checked.
    pub what: String,
    /// Its state.
    pub state: State,
    /// Details, or what to do.
    pub detail: String,
}

/// The state of what was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is as it should be.
    Ok,
    /// It is missing or limited, but guests run.
    Limited,
    /// Without it no guest can run.
    Missing,
}

impl State {
    /// The state of what there is enough of, or not.
    fn of(is_enough: bool) -> State {
        match is_enough {
            true => State::Ok,
            false => State::Limited,
        }
    }
}

impl Finding {
    fn new(what: impl Into<String>, state: State, detail: impl Into<String>) -> Finding {
        let (what, detail) = (what.into(), detail.into());
        Finding {
            what,
            state,
            detail,
        }
    }

    fn ok(what: impl Into<String>, detail: impl Into<String>) -> Finding {
        Finding::new(what, State::Ok, detail)
    }

    fn limited(what: impl Into<String>, detail: impl Into<String>) -> Finding {
        Finding::new(what, State::Limited, detail)
    }

    fn missing(what: impl Into<String>, detail: impl Into<String>) -> Finding {
        Finding::new(what, State::Missing, detail)
    }
}

/// Looks at everything a run needs. It can run if nothing is [`State::Missing`].
pub fn check() -> Vec<Finding> {
    let mut findings = kvm_findings();
    findings.extend(userfaultfd_findings());
    findings.extend(sandbox_findings());
    findings.extend(host_findings());
    // A guest is tried only when nothing is known to be missing.
    if can_run(&findings) {
        findings.push(trial());
        findings.push(kernel_mode_finding());
    }
    findings
}

/// Whether nothing is known to be missing.
pub fn can_run(findings: &[Finding]) -> bool {
    findings.iter().all(|it| it.state != State::Missing)
}

fn kvm_findings() -> Vec<Finding> {
    let kvm = match kvm::device() {
        Ok(kvm) => kvm,
        Err(error) => return vec![Finding::missing("KVM", KvmError::from(error).to_string())],
    };
    let version = match kvm::check_version(&kvm) {
        Ok(()) => Finding::ok("KVM", format!("/dev/kvm, interface version {API_VERSION}")),
        Err(error) => Finding::missing("KVM", error.to_string()),
    };
    let capabilities = kvm::capabilities(&kvm).map(|capability| {
        let Capability { name, purpose, .. } = capability;
        let what = format!("KVM {name}");
        let needed = "use a newer kernel with it configured in";
        match capability.present {
            Ok(true) => Finding::ok(what, purpose),
            Ok(false) => Finding::missing(what, format!("needed for {purpose}; {needed}")),
            Err(error) => Finding::missing(what, error.to_string()),
        }
    });
    iter::once(version).chain(capabilities).collect()
}

fn userfaultfd_findings() -> Vec<Finding> {
    let support = match hmm_backend::engine::probe_userfaultfd() {
        Ok(support) => support,
        Err(error) => return vec![Finding::missing("userfaultfd", error.to_string())],
    };
    let mut findings = vec![Finding::ok("userfaultfd", format!("by {}", support.via))];
    let no_engine = !support.remap && !support.write_protect;
    let mut feature = |what, present, purpose: &str, since: &str, without: State| {
        findings.push(match present {
            true => Finding::ok(what, purpose),
            false => Finding::new(what, without, format!("{purpose} needs {since}")),
        });
    };
    let engine = match no_engine {
        true => State::Missing,
        false => State::Limited,
    };
    feature(
        "engine remap",
        support.remap,
        "moves pages without copying (UFFDIO_MOVE)",
        "Linux 6.8",
        engine,
    );
    feature(
        "engine copy",
        support.write_protect,
        "copies pages (userfaultfd write protection)",
        "Linux 5.7",
        engine,
    );
    feature(
        "poisoned pages",
        support.poison,
        "marks pages that are lost",
        "Linux 6.6",
        State::Limited,
    );
    feature(
        "faulting threads",
        support.thread_id,
        "names the vCPU of a fatal fault",
        "Linux 4.14",
        State::Limited,
    );
    if support.remap {
        findings.push(moved_pages());
    }
    findings
}

/// Checks whether the kernel's answers about pages that it moves are right.
fn moved_pages() -> Finding {
    let what = "reports of moved pages";
    let probe = hmm_backend::engine::probe_moves(MOVES);
    match probe.map(|it| (it.rounds, it.unreported)) {
        Err(error) => Finding::limited(what, format!("cannot be tried: {error}")),
        Ok((rounds, 0)) => {
            let detail = format!("right in {rounds} rounds of two threads at one huge page");
            Finding::ok(what, detail)
        }
        Ok((rounds, unreported)) => Finding::limited(
            what,
            format!(
                "wrong: in round {rounds} this kernel moved {unreported} pages with UFFDIO_MOVE and answered that they are still there \
                 (a fault of Linux 6.18). Hmmvisor looks where a page is after each such answer, so nothing is lost; other users of \
                 UFFDIO_MOVE may lose pages"
            ),
        ),
    }
}

fn sandbox_findings() -> [Finding; 2] {
    let Support { filters, files } = Support::here();
    let what = "sandbox, system calls";
    let filters = match filters {
        Ok(()) => Finding::ok(what, "threads make only those of their kind (seccomp)"),
        Err(error) => Finding::limited(
            what,
            format!(
                "seccomp: {error}; runs need `--sandbox off`, or a kernel with CONFIG_SECCOMP_FILTER"
            ),
        ),
    };
    let what = "sandbox, files";
    let without = "threads that write outputs are not confined to their files; Landlock needs Linux 5.13 and `landlock` among the kernel's `lsm=`";
    let files = match files {
        Ok(true) => Finding::ok(what, "threads open only those of the run (Landlock)"),
        Ok(false) => Finding::limited(what, without),
        Err(error) => Finding::limited(what, format!("{error}; {without}")),
    };
    [filters, files]
}

fn host_findings() -> Vec<Finding> {
    let host = Host::here();
    let mut cpus = host.cpus.clone();
    cpus.sort_unstable();
    let cpus = match cpus.len() {
        1 => Finding::limited("host CPUs", "1: vCPUs and accelerators take turns on it"),
        n => Finding::ok("host CPUs", format!("{n}: {cpus:?}")),
    };
    let available = meminfo("MemAvailable").unwrap_or(host.memory);
    let default = hmmvisor::config::Config::default().machine.memory;
    let memory = format!("{} of {} available", bytes(available), bytes(host.memory));
    let memory = match available > default.0 {
        true => Finding::ok("host memory", memory),
        false => Finding::limited(
            "host memory",
            format!("{memory}: less than the default guest's {default}; free some or use --memory"),
        ),
    };
    let mut findings = vec![cpus, memory];

    findings.push(match host.address_space {
        None => Finding::ok("address space limit", "none"),
        Some((_, limit)) if limit >= ADDRESS_SPACE => {
            Finding::ok("address space limit", bytes(limit))
        }
        Some((_, limit)) => {
            let remedy = "too little for the default guest; raise it with `ulimit -v`";
            Finding::limited("address space limit", format!("{}, {remedy}", bytes(limit)))
        }
    });
    let overcommit = limits::read("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    findings.push(match overcommit.trim() {
        "2" => Finding::limited("memory overcommit", "off: guest and device memory count in full from the start; `sysctl vm.overcommit_memory=0` changes that",
        ),
        _ => Finding::ok("memory overcommit", "allowed"),
    });
    let devices = hmmvisor::config::Config::default().devices.memory;
    for group in &host.groups {
        if let Some(memory) = group.memory {
            let room = memory.room();
            let state = State::of(room > default.0 + devices.0);
            let (left, limit) = (bytes(room), bytes(memory.limit));
            let detail = format!("{left} left of {limit} ({}/{})", group.name(), memory.file);
            findings.push(Finding::new("control group memory limit", state, detail));
        }
        if let Some((used, limit)) = group.threads {
            let state = State::of(limit.saturating_sub(used) >= THREADS);
            let name = group.name();
            let detail = format!("{used} of {limit} processes and threads ({name}/pids.max)");
            findings.push(Finding::new("control group thread limit", state, detail));
        }
    }
    findings
}

fn meminfo(key: &str) -> Option<u64> {
    let text = limits::read("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}

/// Checks whether operating systems can boot.
fn kernel_mode_finding() -> Finding {
    let what = "guest kernel mode";
    let millions = match kernel_mode::instructions_per_second() {
        Ok(speed) => speed / 1e6,
        Err(error) => {
            let detail = format!("cannot be tried: {error}; Linux will not boot here");
            return Finding::limited(what, detail);
        }
    };
    if millions * 1e6 >= NATIVE {
        let speed = format!("native, {millions:.0} million instructions/s");
        return Finding::ok(what, format!("{speed}: stock Linux kernels boot"));
    }
    Finding::limited(
        what,
        format!(
            "emulated, {millions:.1} million instructions/s: this KVM runs only ring 3 natively, so stock Linux will NOT boot here \
             (too slow, and some of its instructions cannot be emulated); it needs VT-x or AMD-V, in a virtual machine nested. \
             Other guests run at full speed"
        ),
    )
}

/// Starts the embedded guest without managed memory: it can only say so and exit, which uses everything of KVM that a guest
/// needs.
fn trial() -> Finding {
    let what = "trial guest";
    let begin = Instant::now();
    let started =
        Vm::new(VmConfig::new(guest_images::IMAGE)).and_then(|mut vm| vm.start().map(|()| vm));
    let vm = match started {
        Ok(vm) => vm,
        Err(error) => return Finding::missing(what, error.to_string()),
    };
    match vm.ending().wait(TRIAL) {
        Some(End::Exit(_)) => {
            let all = time(begin.elapsed().as_nanos() as f64);
            Finding::ok(what, format!("ran in ring 3 and exited, {all} in all"))
        }
        Some(End::Failed(failure)) => Finding::missing(what, failure.to_string()),
        Some(_) | None => Finding::missing(
            what,
            "started but did not exit within 5 s; see `dmesg | grep -i kvm`",
        ),
    }
}
