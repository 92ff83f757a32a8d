//! What the host refuses, and which of its limits is behind that.
//!
//! The kernel answers a request for a thread, a descriptor or memory with one of a few error numbers, each of which stands for
//! several limits. [`Refusal::new`] looks at all of them at that moment and names the one that is reached, or, where that does not
//! show, those that are set.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read};
use std::iter::successors;
use std::path::Path;

mod groups;

pub use groups::{Group, GroupMemory, groups};

use crate::host::patience::Repeats;

/// What the host was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A thread, and the memory of its stack.
    Thread,
    /// Memory, or something that takes memory of the kernel; of how many bytes, if that is known.
    Memory(u64),
    /// A virtual machine, a vCPU or another object of KVM, which may take memory and a thread of the kernel.
    Kvm,
    /// Anything else: files, events.
    Other,
}

/// An error of the host with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{error}{}", Behind(.advice))]
pub struct Refusal {
    #[source]
    error: io::Error,
    advice: Option<String>,
}

impl Refusal {
    /// The host's answer to a request for this, with the limits as they are now.
    pub fn new(resource: Resource, error: io::Error) -> Refusal {
        let advice = advice(resource, &error);
        Refusal { error, advice }
    }

    /// So many bytes of memory that the allocator did not get from the host.
    pub fn of_memory(bytes: u64) -> Refusal {
        let error = io::Error::from_raw_os_error(libc::ENOMEM);
        Refusal::new(Resource::Memory(bytes), error)
    }

    /// The host's answer.
    pub fn error(&self) -> &io::Error {
        &self.error
    }

    /// Whether a limit is known to be behind it.
    pub fn has_advice(&self) -> bool {
        self.advice.is_some()
    }
}

/// Whether this process can have so much more memory and so many more threads, as far as that can be told beforehand: the control
/// groups have that much memory left (beyond that, the kernel does not refuse memory but kills a process of the group), and there is
/// address space, of which all may be data, for it and for a heap, whose refusal would end the process without a word. So would that
/// of the main thread's stack.
pub fn room_for(bytes: u64, threads: u64) -> Result<(), Refusal> {
    let has_room = |group: &Group| group.memory.is_none_or(|memory| bytes <= memory.room());
    let mapped = address_space_of(bytes, threads);
    if !groups().iter().all(has_room) {
        return Err(Refusal::of_memory(bytes));
    }
    let limits = Limits::now();
    let refused = |limit: &Option<Use>| limit.is_some_and(|limit| !limit.has_room_for(mapped));
    if refused(&limits.address_space) || refused(&limits.data) {
        return Err(Refusal::of_memory(mapped));
    }
    match limits.stack.filter(|stack| *stack < MAIN_STACK) {
        Some(stack) => Err(Refusal {
            error: io::Error::from_raw_os_error(libc::ENOMEM),
            advice: Some(format!(
                "this process may have {} KiB of stack and needs {} KiB: raise `ulimit -s`",
                stack >> 10,
                MAIN_STACK >> 10
            )),
        }),
        None => Ok(()),
    }
}

/// Address space for so many bytes, so many threads and a heap, generously.
pub fn address_space_of(bytes: u64, threads: u64) -> u64 {
    const HEAP: u64 = 64 << 20;
    const THREAD: u64 = 4 << 20;
    bytes
        .saturating_add(threads.saturating_mul(THREAD))
        .saturating_add(HEAP)
}

/// What to do about an answer of the host, if one of its limits is behind it.
pub fn advice(resource: Resource, error: &io::Error) -> Option<String> {
    Limits::now().advice(resource, error.raw_os_error()?)
}

/// An error's text, with what to do if one of the host's limits is behind it and the text does not say so yet. It finds the host's
/// answer among the error's sources.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    type Source<'a> = &'a (dyn Error + 'static);
    fn next<'a>(error: &Source<'a>) -> Option<Source<'a>> {
        (*error).source()
    }
    let mut text = error.to_string();
    let sources = || successors(Some(error), next);
    let answer = sources().find_map(|source| source.downcast_ref::<io::Error>());
    if let Some(advice) = answer.and_then(|answer| advice(Resource::Other, answer))
        && !sources().any(|source| source.is::<Refusal>())
    {
        text = format!("{text}; {advice}");
    }
    text
}

impl From<io::Error> for Refusal {
    /// The answer to a request for something that is neither a thread nor memory.
    fn from(error: io::Error) -> Refusal {
        Refusal::new(Resource::Other, error)
    }
}

/// Advice behind an error's text.
struct Behind<'a>(&'a Option<String>);

impl std::fmt::Display for Behind<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0
            .as_ref()
            .map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}

/// Whether this process has the rights that `run as root` would give it.
pub fn is_root() -> bool {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A limit and how much of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    used: u64,
    limit: u64,
}

impl Use {
    fn has_room_for(self, more: u64) -> bool {
        self.used
            .checked_add(more)
            .is_some_and(|sum| sum <= self.limit)
    }
}

/// The limits of this process and this host. What is not there, or cannot be read, is no limit.
#[derive(Clone, Debug, Default)]
struct Limits {
    root: bool,
    /// `ulimit -n`.
    open_files: Option<u64>,
    /// `fs.file-max`.
    all_files: Option<u64>,
    /// `ulimit -f`.
    file_size: Option<u64>,
    /// `ulimit -l`.
    locked: Option<u64>,
    /// `ulimit -u`, and the user's threads.
    user_threads: Option<Use>,
    /// `kernel.threads-max`, and all threads.
    all_threads: Option<Use>,
    /// `kernel.pid_max`, and all threads.
    pids: Option<Use>,
    /// `ulimit -v`.
    address_space: Option<Use>,
    /// `ulimit -d`.
    data: Option<Use>,
    /// `ulimit -s`, which holds for the main thread alone.
    stack: Option<u64>,
    /// `vm.max_map_count`.
    mappings: Option<Use>,
    /// The commit limit, where overcommit is off.
    commit: Option<Use>,
    /// The control groups that this process is in, from its own to the outermost.
    groups: Vec<Group>,
}

/// The stack of a thread of Rust's and what else it maps when it starts.
const STACK: u64 = (2 << 20) + (64 << 10);
/// What the main thread may need of a stack, generously. All others have stacks of their own size.
const MAIN_STACK: u64 = 1 << 20;
/// So near to its limit, a count may have been at it a moment ago.
const NEAR: u64 = 2;
/// A request of unknown size is at least as large as this.
const SMALL: u64 = 1 << 20;

impl Limits {
    fn now() -> Limits {
        let statm = read("/proc/self/status").unwrap_or_default();
        let kib = |key| field(&statm, key).map(|kib| kib * 1024);
        let used = |limit: Option<u64>, used: Option<u64>| {
            Some(Use {
                limit: limit?,
                used: used.unwrap_or(0),
            })
        };
        let threads = read("/proc/loadavg").and_then(|text| {
            let (_, all) = text.split_whitespace().nth(3)?.split_once('/')?;
            all.parse().ok()
        });
        let mappings = read("/proc/self/maps").map(|maps| maps.lines().count() as u64);
        let memory = read("/proc/meminfo").unwrap_or_default();
        let commit = |key| field(&memory, key).map(|kib| kib * 1024);
        let no_overcommit = number("/proc/sys/vm/overcommit_memory") == Some(2);
        let user_threads = rlimit(libc::RLIMIT_NPROC as i32);
        Limits {
            root: is_root(),
            open_files: rlimit(libc::RLIMIT_NOFILE as i32),
            all_files: number("/proc/sys/fs/file-max"),
            file_size: rlimit(libc::RLIMIT_FSIZE as i32),
            locked: rlimit(libc::RLIMIT_MEMLOCK as i32),
            user_threads: used(user_threads, user_threads.and_then(|_| threads_of_user())),
            all_threads: used(number("/proc/sys/kernel/threads-max"), threads),
            pids: used(number("/proc/sys/kernel/pid_max"), threads),
            address_space: used(rlimit(libc::RLIMIT_AS as i32), kib("VmSize")),
            data: used(rlimit(libc::RLIMIT_DATA as i32), kib("VmData")),
            stack: rlimit(libc::RLIMIT_STACK as i32),
            mappings: used(number("/proc/sys/vm/max_map_count"), mappings),
            commit: if no_overcommit {
                used(commit("CommitLimit"), commit("Committed_AS"))
            } else {
                None
            },
            groups: groups(),
        }
    }

    /// What to do about this error number.
    fn advice(&self, resource: Resource, errno: i32) -> Option<String> {
        match (errno, resource) {
            (libc::EMFILE, _) => self.open_files.map(|limit| {
                format!("this process may have {limit} open files: raise `ulimit -n`")
            }),
            (libc::ENFILE, _) => self.all_files.map(|limit| {
                format!("this host may have {limit} open files: raise fs.file-max, or close some")
            }),
            (libc::EFBIG, _) => self.file_size.map(|limit| {
                format!("this process may write files of {limit} bytes: raise `ulimit -f`")
            }),
            (libc::EAGAIN, Resource::Thread | Resource::Kvm) => Some(self.threads()),
            (libc::EAGAIN, Resource::Memory(_)) => self.locked.map(|limit| {
                format!("this process may lock {limit} bytes of memory: raise `ulimit -l`")
            }),
            (libc::ENOMEM, Resource::Thread) => Some(self.memory(STACK)),
            (libc::ENOMEM, Resource::Memory(bytes)) => Some(self.memory(bytes)),
            (libc::ENOMEM, Resource::Kvm | Resource::Other) => Some(self.memory(SMALL)),
            _ => None,
        }
    }

    fn threads(&self) -> String {
        let reached = |limit: &Option<Use>| limit.filter(|limit| !limit.has_room_for(1 + NEAR));
        for group in &self.groups {
            if let Some((used, limit)) = group.threads
                && used + 1 + NEAR > limit
            {
                return group_threads(group, limit);
            }
        }
        // The kernel does not hold root to it.
        if let (false, Some(Use { limit, .. })) = (self.root, reached(&self.user_threads)) {
            return format!("this user may have {limit} processes and threads: raise `ulimit -u`");
        }
        // The C library answers for the memory of a stack in the same way.
        if let Some(advice) = self.mapped(STACK) {
            return advice;
        }
        if let Some(Use { limit, .. }) = reached(&self.all_threads) {
            return format!("this host may have {limit} threads: raise kernel.threads-max");
        }
        if let Some(Use { limit, .. }) = reached(&self.pids) {
            return format!("this host may have {limit} threads: raise kernel.pid_max");
        }
        let mut set = Vec::new();
        if let (false, Some(Use { limit, .. })) = (self.root, self.user_threads) {
            set.push(format!("`ulimit -u` ({limit})"));
        }
        for group in &self.groups {
            if let Some((_, limit)) = group.threads {
                set.push(format!(
                    "pids.max of control group {} ({limit})",
                    group.name()
                ));
            }
        }
        if let Some(Use { limit, .. }) = self.all_threads {
            set.push(format!("kernel.threads-max ({limit})"));
        }
        format!(
            "raise the limit on threads that is reached: {}",
            set.join(", ")
        )
    }

    fn memory(&self, bytes: u64) -> String {
        if let Some(advice) = self.mapped(bytes) {
            return advice;
        }
        for group in &self.groups {
            if let Some(memory) = group.memory
                && bytes > memory.room()
            {
                return format!(
                    "control group {} may have {} bytes of memory: raise its {}, or ask for less",
                    group.name(),
                    memory.limit,
                    memory.file,
                );
            }
        }
        let mut set = Vec::new();
        if let Some(Use { limit, .. }) = self.address_space {
            set.push(format!("`ulimit -v` ({} KiB)", limit >> 10));
        }
        if let Some(Use { limit, .. }) = self.data {
            set.push(format!("`ulimit -d` ({} KiB)", limit >> 10));
        }
        match set.is_empty() {
            true => "ask for less, or free some of the host's memory".to_owned(),
            false => format!("ask for less, or raise {}", set.join(" and ")),
        }
    }

    /// The limit on mappings that a new one of so many bytes exceeds.
    fn mapped(&self, bytes: u64) -> Option<String> {
        let exceeded = |limit: &Option<Use>, more| limit.filter(|limit| !limit.has_room_for(more));
        if let Some(Use { limit, .. }) = exceeded(&self.address_space, bytes) {
            return Some(format!(
                "this process may have {} KiB of address space: raise `ulimit -v`, or ask for less",
                limit >> 10
            ));
        }
        if let Some(Use { limit, .. }) = exceeded(&self.data, bytes) {
            return Some(format!(
                "this process may have {} KiB of data: raise `ulimit -d`, or ask for less",
                limit >> 10
            ));
        }
        if let Some(Use { limit, .. }) = exceeded(&self.mappings, 1 + NEAR) {
            return Some(format!(
                "this process may have {limit} mappings: raise vm.max_map_count"
            ));
        }
        if exceeded(&self.commit, bytes).is_some() {
            return Some("this host promises no more memory than it has: set vm.overcommit_memory=0, or ask for less".to_owned());
        }
        None
    }
}

fn group_threads(group: &Group, limit: u64) -> String {
    format!(
        "control group {} may have {limit} processes and threads: raise its pids.max",
        group.name()
    )
}

/// Bytes of address space that this process may still map, and how many it may have in all (`ulimit -v`); none without a limit.
pub fn address_space() -> Option<(u64, u64)> {
    let Use { used, limit } = Limits::now().address_space?;
    Some((limit.saturating_sub(used), limit))
}

/// A file in which the kernel tells something, as text; none if it cannot be read, or is interrupted for good, which the standard
/// library would try for ever.
pub fn read(path: impl AsRef<Path>) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let interrupted = |error: &io::Error| error.kind() == io::ErrorKind::Interrupted;
    let reads = Repeats::default();
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match reads.of(interrupted, || file.read(&mut piece)).ok()? {
            0 => return String::from_utf8(text).ok(),
            len => text.extend_from_slice(&piece[..len]),
        }
    }
}

fn number(path: impl AsRef<Path>) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// A number behind `KEY:` or `KEY`.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| {
        let rest = line.strip_prefix(key)?;
        rest.strip_prefix(':').or_else(|| rest.strip_prefix(' '))
    })?;
    line.split_whitespace().next()?.parse().ok()
}

/// A soft limit of this process, if there is one.
fn rlimit(resource: i32) -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel fills the structure, which lives throughout the call. (The libraries disagree on the type of the number.)
    let result = unsafe { libc::getrlimit(resource as _, &mut limit) };
    (result == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// How many threads this user has.
fn threads_of_user() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    // SAFETY: the call has no arguments and cannot fail.
    let user = unsafe { libc::getuid() };
    let count = |process: fs::DirEntry| {
        process.file_name().to_str()?.parse::<u32>().ok()?;
        if process.metadata().ok()?.uid() != user {
            return None;
        }
        Some(fs::read_dir(process.path().join("task")).ok()?.count() as u64)
    };
    Some(
        fs::read_dir("/proc")
            .ok()?
            .flatten()
            .filter_map(count)
            .sum(),
    )
}

/// Makes writes beyond the limit on file sizes (`ulimit -f`) an error. Otherwise a signal ends the process at the first one.
pub fn refuse_large_files() {
    // SAFETY: ignoring a signal runs no code in a handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(used: u64, limit: u64) -> Option<Use> {
        Some(Use { used, limit })
    }

    fn group(threads: Option<(u64, u64)>, room: Option<u64>) -> Group {
        Group {
            folder: "/groups/of-mine".into(),
            threads,
            memory: room.map(|limit| GroupMemory {
                limit,
                used: 0,
                swap: 0,
                file: "memory.max",
            }),
        }
    }

    /// Limits as a host has them that is far from all of them.
    fn ample() -> Limits {
        Limits {
            open_files: Some(1024),
            all_files: Some(1 << 20),
            locked: Some(8 << 20),
            user_threads: used(100, 60_000),
            all_threads: used(500, 120_000),
            pids: used(500, 4_194_304),
            mappings: used(100, 65_530),
            ..Limits::default()
        }
    }

    #[test]
    fn the_limit_that_is_reached_is_named() {
        use Resource::{Memory, Other, Thread};
        type Change = fn(&mut Limits);
        let cases: [(i32, Resource, Change, &str); 20] = [
            (
                libc::EAGAIN,
                Resource::Kvm,
                |it| it.groups = vec![group(Some((7, 7)), None)],
                "raise its pids.max",
            ),
            (
                libc::EMFILE,
                Other,
                |it| it.open_files = Some(16),
                "16 open files: raise `ulimit -n`",
            ),
            (libc::EMFILE, Thread, |_| (), "`ulimit -n`"),
            (libc::ENFILE, Other, |_| (), "fs.file-max"),
            (
                libc::EFBIG,
                Other,
                |it| it.file_size = Some(512),
                "512 bytes: raise `ulimit -f`",
            ),
            (libc::EAGAIN, Memory(1), |_| (), "`ulimit -l`"),
            (
                libc::EAGAIN,
                Thread,
                |it| it.user_threads = used(40, 40),
                "40 processes and threads: raise `ulimit -u`",
            ),
            (
                libc::EAGAIN,
                Thread,
                |it| it.all_threads = used(500, 500),
                "raise kernel.threads-max",
            ),
            (
                libc::EAGAIN,
                Thread,
                |it| it.pids = used(500, 500),
                "raise kernel.pid_max",
            ),
            (
                libc::EAGAIN,
                Thread,
                |it| it.groups = vec![group(Some((6, 7)), None)],
                "of-mine may have 7 processes and threads: raise its pids.max",
            ),
            (
                libc::EAGAIN,
                Thread,
                |it| it.address_space = used(99 << 20, 100 << 20),
                "102400 KiB of address space: raise `ulimit -v`",
            ),
            (
                libc::EAGAIN,
                Thread,
                |it| it.mappings = used(65_529, 65_530),
                "raise vm.max_map_count",
            ),
            // None is reached any more: all of them.
            (
                libc::EAGAIN,
                Thread,
                |it| it.groups = vec![group(Some((1, 900)), None)],
                "`ulimit -u` (60000), pids.max of control group /groups/of-mine (900), kernel.threads-max (120000)",
            ),
            (
                libc::ENOMEM,
                Memory(2 << 20),
                |it| it.address_space = used(99 << 20, 100 << 20),
                "raise `ulimit -v`",
            ),
            (
                libc::ENOMEM,
                Memory(2 << 20),
                |it| it.data = used(99 << 20, 100 << 20),
                "raise `ulimit -d`",
            ),
            (
                libc::ENOMEM,
                Memory(4096),
                |it| it.mappings = used(65_530, 65_530),
                "65530 mappings: raise vm.max_map_count",
            ),
            (
                libc::ENOMEM,
                Memory(2 << 20),
                |it| it.commit = used(100, 200),
                "set vm.overcommit_memory=0",
            ),
            (
                libc::ENOMEM,
                Memory(2 << 20),
                |it| it.groups = vec![group(None, Some(1 << 20))],
                "of-mine may have 1048576 bytes of memory: raise its memory.max",
            ),
            (
                libc::ENOMEM,
                Memory(4096),
                |it| it.address_space = used(1 << 20, 100 << 20),
                "raise `ulimit -v` (102400 KiB)",
            ),
            (
                libc::ENOMEM,
                Other,
                |_| (),
                "free some of the host's memory",
            ),
        ];
        for (errno, resource, change, expected) in cases {
            let mut limits = ample();
            change(&mut limits);
            let advice = limits.advice(resource, errno).unwrap_or_default();
            assert!(
                advice.contains(expected),
                "{errno} for {resource:?}: {advice}"
            );
        }
        // Root is not held to it, and other errors say enough.
        let root = Limits {
            root: true,
            user_threads: used(40, 40),
            ..ample()
        };
        let advice = root.advice(Thread, libc::EAGAIN).unwrap_or_default();
        assert!(!advice.contains("ulimit -u"), "{advice}");
        assert_eq!(ample().advice(Other, libc::ENOENT), None);
    }

    #[test]
    fn an_error_is_explained_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("writing: {0}")]
        struct Outer<T: Error + 'static>(#[source] T);
        let answer = || io::Error::from_raw_os_error(libc::EMFILE);
        let plain = explain(&Outer(answer()));
        assert!(plain.starts_with("writing: Too many open files (os error 24); this process may"));
        assert_eq!(explain(&Outer(Refusal::from(answer()))), plain);
        let other = io::Error::from_raw_os_error(libc::EIO);
        assert_eq!(
            explain(&Outer(other)),
            "writing: Input/output error (os error 5)"
        );
    }

    #[test]
    fn a_refusal_is_one_sentence() {
        let refusal = Refusal::from(io::Error::from_raw_os_error(libc::EMFILE));
        let text = refusal.to_string();
        assert!(
            text.starts_with("Too many open files (os error 24); this process may have "),
            "{text}"
        );
        assert_eq!(
            Refusal::from(io::Error::from_raw_os_error(libc::EIO)).to_string(),
            "Input/output error (os error 5)"
        );
    }
}
