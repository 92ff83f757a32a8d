//! `hmmvisor check`: finds out whether this machine can run guests, and says what to do if not.

use std::mem;
use std::time::{Duration, Instant};

use hmm_backend::engine::MoveProbe;
use hmm_backend::limits;
use hmmvisor_experiments::figures::{bytes, time};
use hmmvisor_guest_images as guest_images;

use hmmvisor::ending::End;
use hmmvisor::guest::linux::kernel_mode::{self, NATIVE};
use hmmvisor::guest::program::Program;
use hmmvisor::host::Host;
use hmmvisor::machine::kvm;
use hmmvisor::vm::{Hooks, Vm, VmConfig};

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

impl Finding {
    fn new(what: impl Into<String>, state: State, detail: impl Into<String>) -> Finding {
        Finding {
            what: what.into(),
            state,
            detail: detail.into(),
        }
    }
}

/// Looks at everything a run needs. It can run if nothing is [`State::Missing`].
pub fn check() -> Vec<Finding> {
    let mut findings = kvm_findings();
    findings.extend(userfaultfd_findings());
    findings.extend(host_findings());
    // A guest is tried only when nothing is known to be missing.
    if findings
        .iter()
        .all(|finding| finding.state != State::Missing)
    {
        findings.push(trial());
        findings.push(kernel_mode_finding());
    }
    findings
}

fn kvm_findings() -> Vec<Finding> {
    match kvm::device() {
        Err(error) => vec![Finding::new(
            "KVM",
            State::Missing,
            kvm::KvmError::from(error).to_string(),
        )],
        Ok(kvm) => {
            let version = match kvm::version(&kvm) {
                Ok(version) => (State::Ok, format!("/dev/kvm, interface version {version}")),
                Err(error) => (State::Missing, error.to_string()),
            };
            let mut findings = vec![Finding::new("KVM", version.0, version.1)];
            findings.extend(kvm::capabilities(&kvm).map(|capability| {
                let (state, detail) = match capability.present {
                    Ok(true) => (State::Ok, capability.purpose.to_owned()),
                    Ok(false) => (
                        State::Missing,
                        format!(
                            "needed for {}; use a newer kernel with it configured in",
                            capability.purpose
                        ),
                    ),
                    Err(error) => (State::Missing, error.to_string()),
                };
                Finding::new(format!("KVM {}", capability.name), state, detail)
            }));
            findings
        }
    }
}

fn userfaultfd_findings() -> Vec<Finding> {
    let support = match hmm_backend::engine::probe_userfaultfd() {
        Err(error) => {
            return vec![Finding::new(
                "userfaultfd",
                State::Missing,
                error.to_string(),
            )];
        }
        Ok(support) => support,
    };
    let mut findings = vec![Finding::new(
        "userfaultfd",
        State::Ok,
        format!("by {}", support.via),
    )];
    let no_engine = !support.remap && !support.write_protect;
    let mut feature = |what, present, purpose: &str, since: &str, without: State| {
        findings.push(match present {
            true => Finding::new(what, State::Ok, purpose),
            false => Finding::new(what, without, format!("{purpose} needs {since}")),
        });
    };
    let engine = if no_engine {
        State::Missing
    } else {
        State::Limited
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
    match hmm_backend::engine::probe_moves(MOVES) {
        Err(error) => Finding::new(what, State::Limited, format!("cannot be tried: {error}")),
        Ok(MoveProbe {
            rounds,
            unreported: 0,
        }) => Finding::new(
            what,
            State::Ok,
            format!("right in {rounds} rounds of two threads at one huge page"),
        ),
        Ok(MoveProbe { rounds, unreported }) => Finding::new(
            what,
            State::Limited,
            format!(
                "wrong: in round {rounds} this kernel moved {unreported} pages with UFFDIO_MOVE and answered that they are still there \
                 (a fault of Linux 6.18). Hmmvisor looks where a page is after each such answer, so nothing is lost; other users of \
                 UFFDIO_MOVE may lose pages"
            ),
        ),
    }
}

fn host_findings() -> Vec<Finding> {
    let host = Host::here();
    let mut cpus = host.cpus.clone();
    cpus.sort_unstable();
    let cpus = match cpus.len() {
        1 => Finding::new(
            "host CPUs",
            State::Limited,
            "1: vCPUs and accelerators take turns on it",
        ),
        n => Finding::new("host CPUs", State::Ok, format!("{n}: {cpus:?}")),
    };
    let available = meminfo("MemAvailable").unwrap_or(host.memory);
    let default = hmmvisor::config::Config::default().machine.memory;
    let memory = format!("{} of {} available", bytes(available), bytes(host.memory));
    let memory = match available > default.0 {
        true => Finding::new("host memory", State::Ok, memory),
        false => Finding::new(
            "host memory",
            State::Limited,
            format!("{memory}: less than the default guest's {default}; free some or use --memory"),
        ),
    };
    let mut findings = vec![cpus, memory];

    let (address_space, unlimited) = address_space_limit();
    findings.push(match address_space {
        _ if unlimited => Finding::new("address space limit", State::Ok, "none"),
        limit if limit >= ADDRESS_SPACE => {
            Finding::new("address space limit", State::Ok, bytes(limit))
        }
        limit => Finding::new(
            "address space limit",
            State::Limited,
            format!(
                "{}, too little for the default guest; raise it with `ulimit -v`",
                bytes(limit)
            ),
        ),
    });
    let overcommit = limits::read("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    findings.push(match overcommit.trim() {
        "2" => Finding::new(
            "memory overcommit",
            State::Limited,
            "off: guest and device memory count in full from the start; `sysctl vm.overcommit_memory=0` changes that",
        ),
        _ => Finding::new("memory overcommit", State::Ok, "allowed"),
    });
    let devices = hmmvisor::config::Config::default().devices.memory;
    for group in &host.groups {
        if let Some(memory) = group.memory {
            let room = memory.room();
            let state = match room > default.0 + devices.0 {
                true => State::Ok,
                false => State::Limited,
            };
            let detail = format!(
                "{} left of {} ({}/{})",
                bytes(room),
                bytes(memory.limit),
                group.name(),
                memory.file
            );
            findings.push(Finding::new("control group memory limit", state, detail));
        }
        if let Some((used, limit)) = group.threads {
            let state = match limit.saturating_sub(used) >= THREADS {
                true => State::Ok,
                false => State::Limited,
            };
            let detail = format!(
                "{used} of {limit} processes and threads ({}/pids.max)",
                group.name()
            );
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

/// Returns the limit, and whether there is none.
fn address_space_limit() -> (u64, bool) {
    // SAFETY: a structure of integers; all zeros is valid.
    let mut limit: libc::rlimit = unsafe { mem::zeroed() };
    // SAFETY: the kernel fills the structure, which lives throughout the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) };
    (
        limit.rlim_cur,
        result != 0 || limit.rlim_cur == libc::RLIM_INFINITY,
    )
}

/// Checks whether operating systems can boot.
fn kernel_mode_finding() -> Finding {
    let what = "guest kernel mode";
    match kernel_mode::instructions_per_second() {
        Err(error) => Finding::new(
            what,
            State::Limited,
            format!("cannot be tried: {error}; Linux will not boot here"),
        ),
        Ok(speed) if speed >= NATIVE => Finding::new(
            what,
            State::Ok,
            format!(
                "native, {:.0} million instructions/s: stock Linux kernels boot",
                speed / 1e6
            ),
        ),
        Ok(speed) => Finding::new(
            what,
            State::Limited,
            format!(
                "emulated, {:.1} million instructions/s: this KVM runs only ring 3 natively, so stock Linux will NOT boot here \
                 (too slow, and some of its instructions cannot be emulated); it needs VT-x or AMD-V, in a virtual machine nested. \
                 Other guests run at full speed",
                speed / 1e6
            ),
        ),
    }
}

/// Starts the embedded guest without managed memory: it can only say so and exit, which uses everything of KVM that a guest
/// needs.
fn trial() -> Finding {
    let what = "trial guest";
    let begin = Instant::now();
    let config = VmConfig {
        vcpus: 1,
        vcpu_cpus: Vec::new(),
        managed: None,
        guest: Box::new(Program::new(guest_images::IMAGE, "", 0)),
        console: Box::new(std::io::sink()),
        hooks: Hooks::default(),
    };
    let started = Vm::new(config).and_then(|mut vm| vm.start().map(|()| vm));
    let vm = match started {
        Ok(vm) => vm,
        Err(error) => return Finding::new(what, State::Missing, error.to_string()),
    };
    match vm.ending().wait(TRIAL) {
        Some(End::Exit(_)) => {
            let all = time(begin.elapsed().as_nanos() as f64);
            let detail = format!("ran in ring 3 and exited, {all} in all");
            Finding::new(what, State::Ok, detail)
        }
        Some(End::Failed(failure)) => Finding::new(what, State::Missing, failure.to_string()),
        Some(_) | None => Finding::new(
            what,
            State::Missing,
            "started but did not exit within 5 s; see `dmesg | grep -i kvm`",
        ),
    }
}
