//! Explains which limit of the host is behind a refused request.
//!
//! The kernel answers a request for a thread, a descriptor or memory with one of a few error numbers, each of which
//! stands for several limits. [`Refusal::new`] reads all of these limits at that moment and names the one that is
//! reached. If it cannot tell which one, it names all that are set.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read};
use std::iter::successors;
use std::path::Path;

mod groups;

pub use groups::{Group, GroupMemory, groups};

use crate::host::patience::Repeats;

/// The kind of resource that was requested from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A thread and the memory of its stack.
    Thread,
    /// Memory of the process or of the kernel: the number of bytes requested, 0 if unknown.
    Memory(u64),
    /// A KVM object (virtual machine, vCPU), which may need kernel memory and a kernel thread.
    Kvm,
    /// Anything else: files, events.
    Other,
}

/// An error of the host, with advice on what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{error}{}", Behind(.advice))]
pub struct Refusal {
    #[source]
    error: io::Error,
    advice: Option<String>,
}

impl Refusal {
    /// Adds advice to the host's answer to a request, from the limits as they are now.
    pub fn new(resource: Resource, error: io::Error) -> Refusal {
        let advice = advice(resource, &error);
        Refusal { error, advice }
    }

    /// The refusal for an allocation of `bytes` bytes that failed without an error number (`ENOMEM` is assumed).
    pub fn of_memory(bytes: u64) -> Refusal {
        let error = io::Error::from_raw_os_error(libc::ENOMEM);
        Refusal::new(Resource::Memory(bytes), error)
    }

    /// The host's answer.
    pub fn error(&self) -> &io::Error {
        &self.error
    }

    /// Whether a limit is known to be behind the refusal.
    pub fn has_advice(&self) -> bool {
        self.advice.is_some()
    }
}

/// Checks in advance whether this process can have `bytes` more memory and `threads` more threads. Three things are
/// checked, because exceeding them later would end the process instead of failing a call:
///
/// * the control groups have that much memory left; beyond their limit the kernel refuses nothing and kills a process
///   of the group;
/// * the address space and data limits leave room for the memory, the threads and a heap, because a failed heap
///   allocation aborts the process;
/// * the main thread's stack limit is large enough, because a stack overflow ends the process.
///
/// The error is a [`Refusal`] that names the limit.
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

/// Address space for `bytes` of memory, `threads` threads and a heap: a generous estimate.
pub fn address_space_of(bytes: u64, threads: u64) -> u64 {
    const HEAP: u64 = 64 << 20;
    const THREAD: u64 = 4 << 20;
    bytes
        .saturating_add(threads.saturating_mul(THREAD))
        .saturating_add(HEAP)
}

/// Returns what to do about an error of the host, if one of its limits is behind it.
pub fn advice(resource: Resource, error: &io::Error) -> Option<String> {
    Limits::now().advice(resource, error.raw_os_error()?)
}

/// Returns an error's text, followed by advice if one of the host's limits is behind the error. The host's answer is
/// searched for among the error's sources; if a [`Refusal`] is among them, the text already contains the advice.
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

/// Displays advice after an error's text, with a separator.
struct Behind<'a>(&'a Option<String>);

impl std::fmt::Display for Behind<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0
            .as_ref()
            .map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}

/// Whether this process has root's rights.
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

/// The limits of this process and this host. A limit that does not exist or cannot be read is `None`.
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
    /// `ulimit -u`, and how many threads the user has.
    user_threads: Option<Use>,
    /// `kernel.threads-max`, and how many threads the host has.
    all_threads: Option<Use>,
    /// `kernel.pid_max`, and how many threads the host has.
    pids: Option<Use>,
    /// `ulimit -v`.
    address_space: Option<Use>,
    /// `ulimit -d`.
    data: Option<Use>,
    /// `ulimit -s`; it applies only to the main thread.
    stack: Option<u64>,
    /// `vm.max_map_count`.
    mappings: Option<Use>,
    /// The commit limit, if overcommit is off.
    commit: Option<Use>,
    /// The control groups of this process, from its own to the outermost.
    groups: Vec<Group>,
}

/// The stack of a Rust thread, plus what the C library maps when a thread starts.
const STACK: u64 = (2 << 20) + (64 << 10);
/// Stack that the main thread may need, estimated generously. All other threads have stacks of a fixed size.
const MAIN_STACK: u64 = 1 << 20;
/// A count this near to its limit may have been at the limit when the request failed.
const NEAR: u64 = 2;
/// Assumed size of a request whose size is unknown.
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

    /// Returns what to do about this error number.
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
        // The kernel does not apply this limit to root.
        if let (false, Some(Use { limit, .. })) = (self.root, reached(&self.user_threads)) {
            return format!("this user may have {limit} processes and threads: raise `ulimit -u`");
        }
        // The C library reports `EAGAIN` also when it cannot map the thread's stack.
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

    /// Returns advice on the first limit on mappings that a new mapping of `bytes` bytes exceeds.
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
            return Some("this host does not overcommit memory, and its commit limit is reached: set vm.overcommit_memory=0, or ask for less".to_owned());
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

/// Returns how many bytes of address space this process may still map, and the limit (`ulimit -v`). `None` without a
/// limit.
pub fn address_space() -> Option<(u64, u64)> {
    let Use { used, limit } = Limits::now().address_space?;
    Some((limit.saturating_sub(used), limit))
}

/// Returns the contents of a kernel file as text. `None` if the file cannot be read, is not UTF-8, or if reads are
/// interrupted again and again (the standard library would repeat them without limit).
pub fn read(path: impl AsRef<Path>) -> Option<String> {
    read_open(File::open(path).ok()?)
}

/// Returns what is left of a kernel file that is open, like [`read`].
pub fn read_open(mut file: File) -> Option<String> {
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

/// Returns the number that follows `KEY:` or `KEY` at the start of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| {
        let rest = line.strip_prefix(key)?;
        rest.strip_prefix(':').or_else(|| rest.strip_prefix(' '))
    })?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns a soft limit of this process, or `None` if it is unlimited.
fn rlimit(resource: i32) -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel fills the structure, which lives throughout the call. (The cast is needed because C
    // libraries differ in the type of the resource number.)
    let result = unsafe { libc::getrlimit(resource as _, &mut limit) };
    (result == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Returns how many threads the user of this process has.
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

/// Turns a write beyond the file size limit (`ulimit -f`) into an error. Without this call, SIGXFSZ ends the process.
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

    /// The limits of a host that is far from reaching any of them.
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
            // No limit is reached any more: the advice names all that are set.
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
        // The limit does not apply to root, and errors with other numbers need no advice.
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
