//! The table: which calls fail, how, when, and in which runs.

use std::fmt;

use libc::{
    EACCES, EAGAIN, EBADF, EBUSY, EEXIST, EFAULT, EINTR, EINVAL, EIO, EMFILE, ENOENT, ENOLCK,
    ENOMEM, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, ESRCH, c_int,
};

use crate::scene::{Engine, Scene};
use How::{Done, End, Errno, Part, PartBut, Short};
use Scene::{Chaos, Console, Doubt, Endless, Torture, Virtio};

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Nothing is done.
    Errno(c_int),
    /// Nothing is done, and 0 returned: the end of a file.
    End,
    /// Half of it is done, and the call says so.
    Short,
    /// All of it is done, and the call says that it failed (Linux 6.18 does that: a page moves, the answer is EEXIST).
    Done(c_int),
    /// One page is done, and the call says so.
    Part,
    /// One page is done, and the call says that nothing was, because of this.
    PartBut(c_int),
}

impl How {
    /// For the library.
    pub fn names(self) -> (&'static str, c_int) {
        match self {
            Errno(error) => ("errno", error),
            End => ("end", 0),
            Short => ("short", 0),
            Done(error) => ("done", error),
            Part => ("part", EAGAIN),
            PartBut(error) => ("part-but", error),
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match *self {
            Errno(error) => f.write_str(name(error)),
            End => f.write_str("end of file"),
            Short => f.write_str("half of it"),
            Done(error) => write!(f, "done but {}", name(error)),
            Part => f.write_str("one page of it"),
            PartBut(error) => write!(f, "one page but {}", name(error)),
        }
    }
}

macro_rules! names {
    ($($error:ident)*) => {
        /// The name of an error of this table.
        pub fn name(error: c_int) -> &'static str {
            match error {
                $(libc::$error => stringify!($error),)*
                _ => "an error without a name",
            }
        }
    };
}
names!(EACCES EAGAIN EBADF EBUSY EEXIST EFAULT EINTR EINVAL EIO EMFILE ENOENT ENOMEM ENOSPC ENOSYS EOPNOTSUPP EPERM ESRCH);

/// Which calls fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// The nth.
    Once(u64),
    /// One in ten from the nth on.
    Some(u64),
    /// All from the nth on.
    Always(u64),
    /// The first, in another run the second, and so on.
    Each,
}

impl Pattern {
    /// For the library: the first one, and how many until the next.
    pub fn numbers(self) -> (u64, u64) {
        match self {
            Pattern::Once(nth) => (nth, 0),
            Pattern::Some(nth) => (nth, 10),
            Pattern::Always(nth) => (nth, 1),
            Pattern::Each => (1, 0),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Pattern::Once(nth) => write!(f, "once({nth})"),
            Pattern::Some(nth) => write!(f, "some({nth})"),
            Pattern::Always(nth) => write!(f, "always({nth})"),
            Pattern::Each => f.write_str("each"),
        }
    }
}

/// A run with failing calls.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub call: &'static str,
    pub about: &'static str,
    pub how: How,
    pub pattern: Pattern,
    pub scene: Scene,
    pub engine: Engine,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Row {
            call,
            about,
            how,
            pattern,
            scene,
            engine,
        } = self;
        let about = match *about {
            "" => String::new(),
            about => format!(" {about}"),
        };
        write!(f, "{call}{about}, {how}, {pattern}, {scene:?}, {engine}")
    }
}

impl Row {
    /// Whether such a call is this row's.
    pub fn is_about(&self, call: &str, about: &str) -> bool {
        self.call == call && about.contains(self.about)
    }

    /// Whether a run must not even notice: what real kernels answer now and then.
    pub fn must_succeed(&self) -> bool {
        let moved =
            self.about == "UFFDIO_MOVE" && matches!(self.how, Done(EEXIST) | PartBut(EEXIST));
        let puts_off = [
            "UFFDIO_",
            "KVM_RUN",
            "MADV_DONTNEED",
            "[userfaultfd]",
            "[eventfd]",
        ];
        let again = match self.how {
            Errno(EINTR) | Part | Short => true,
            Errno(EAGAIN) => puts_off.iter().any(|about| self.about.starts_with(about)),
            _ => false,
        } && matches!(self.pattern, Pattern::Once(_) | Pattern::Each);
        self.scene != Endless && (moved || again)
    }

    /// Whether the guest may wait for ever: its input has ended.
    pub fn may_wait(&self) -> bool {
        self.about == "/keys" && matches!(self.how, Errno(_))
    }

    /// Whether a run in which this fails must not end with 0: what the user asked for is not there.
    pub fn must_not_succeed(&self) -> bool {
        let output = ["/t.trace", "(deleted)", "fd 1:"].contains(&self.about);
        let lasting = matches!(self.how, Errno(error) if error != EINTR && error != EAGAIN);
        lasting && (self.call == "write" && output || self.call == "fsync")
    }
}

/// How often a run makes a call.
#[derive(Clone, Copy)]
enum Calls {
    /// Hundreds of times.
    Often,
    /// Some dozen times.
    Sometimes,
    /// A few times, at whatever time.
    Seldom,
    /// Once or a few times.
    Rarely,
    /// A few times, and each is another matter: when a run begins.
    Start,
}

impl Calls {
    fn patterns(self, scene: Scene) -> &'static [Pattern] {
        use Pattern::{Always, Each, Once, Some};
        match (self, scene) {
            // An end of its own is not what this is about.
            (Calls::Often, Endless) => &[Some(20), Always(50)],
            (Calls::Often, _) => &[Once(50), Some(20), Always(50)],
            (Calls::Sometimes, Endless) => &[Some(5), Always(10)],
            (Calls::Sometimes, _) => &[Once(10), Some(5), Always(10)],
            (Calls::Seldom, Endless) => &[Always(1)],
            (Calls::Seldom, _) => &[Once(1), Once(2), Some(3), Always(1)],
            (Calls::Rarely, Endless) => &[Always(1)],
            (Calls::Rarely, _) => &[Once(1), Always(1)],
            (Calls::Start, _) => &[Each],
        }
    }
}

/// Calls of one kind.
struct Kind {
    call: &'static str,
    about: &'static str,
    hows: &'static [How],
    calls: Calls,
    scenes: &'static [Scene],
    engines: &'static [Engine],
}

/// What a call that fills missing pages may answer.
const FILLING: &[How] = &[
    How::Errno(EAGAIN),
    How::Errno(ENOMEM),
    How::Errno(EEXIST),
    How::Errno(EFAULT),
    How::Done(EEXIST),
    How::Part,
];

const BOTH: &[Engine] = &[Engine::Remap, Engine::Copy];
const ANY: &[Engine] = &[Engine::Remap, Engine::Copy, Engine::CopyInPlace];
const IN_PLACE: &[Engine] = &[Engine::CopyInPlace];
const REMAP: &[Engine] = &[Engine::Remap];

const fn kind(
    call: &'static str,
    about: &'static str,
    hows: &'static [How],
    calls: Calls,
    scenes: &'static [Scene],
    engines: &'static [Engine],
) -> Kind {
    Kind {
        call,
        about,
        hows,
        calls,
        scenes,
        engines,
    }
}

use Calls::{Often, Rarely, Seldom, Sometimes, Start};

const TORTURES: &[Scene] = &[Torture, Chaos, Endless];

const TABLE: &[Kind] = &[
    // Faults, migrations, frees.
    kind(
        "ioctl",
        "UFFDIO_COPY",
        &[
            Errno(EAGAIN),
            Errno(ENOMEM),
            Errno(EEXIST),
            Errno(EFAULT),
            Errno(EINVAL),
            Errno(ESRCH),
            Done(EEXIST),
            Part,
            PartBut(EAGAIN),
        ],
        Often,
        TORTURES,
        &[Engine::Copy, Engine::CopyInPlace],
    ),
    kind("ioctl", "UFFDIO_COPY", FILLING, Sometimes, TORTURES, REMAP),
    kind(
        "ioctl",
        "UFFDIO_ZEROPAGE",
        FILLING,
        Sometimes,
        &[Torture, Endless],
        REMAP,
    ),
    // In a run beside other work there may be no more than two.
    kind(
        "ioctl",
        "UFFDIO_ZEROPAGE",
        FILLING,
        Rarely,
        &[Torture, Endless],
        &[Engine::Copy, Engine::CopyInPlace],
    ),
    kind(
        "ioctl",
        "UFFDIO_MOVE",
        &[
            Errno(EAGAIN),
            Errno(EBUSY),
            Errno(ENOMEM),
            Errno(EEXIST),
            Errno(ENOENT),
            Errno(EINVAL),
            Done(EEXIST),
            Done(EAGAIN),
            Part,
            PartBut(EEXIST),
            PartBut(EAGAIN),
        ],
        Often,
        TORTURES,
        BOTH,
    ),
    kind(
        "ioctl",
        "UFFDIO_WAKE",
        &[Errno(EINVAL), Errno(EAGAIN)],
        Rarely,
        &[Torture, Chaos, Endless],
        ANY,
    ),
    kind(
        "ioctl",
        "UFFDIO_WRITEPROTECT",
        &[Errno(EAGAIN), Errno(ENOMEM), Errno(EINVAL), Errno(ENOENT)],
        Often,
        &[Torture, Chaos, Endless],
        IN_PLACE,
    ),
    kind(
        "ioctl",
        "UFFDIO_WRITEPROTECT",
        &[Errno(EAGAIN), Errno(ENOMEM), Errno(EINVAL)],
        Seldom,
        &[Chaos],
        BOTH,
    ),
    kind(
        "madvise",
        "MADV_DONTNEED",
        &[Errno(EAGAIN), Errno(ENOMEM), Errno(EINVAL)],
        Sometimes,
        &[Torture, Chaos, Endless, Virtio],
        ANY,
    ),
    kind(
        "madvise",
        "MADV_REMOVE",
        &[Errno(EAGAIN), Errno(ENOMEM), Errno(EINVAL), Errno(EIO)],
        Seldom,
        &[Virtio],
        BOTH,
    ),
    kind(
        "madvise",
        "MADV_POPULATE_WRITE",
        &[Errno(EAGAIN), Errno(ENOMEM), Errno(EFAULT), Errno(EINVAL)],
        Rarely,
        &[Chaos, Console],
        REMAP,
    ),
    kind(
        "read",
        "[userfaultfd]",
        &[
            Errno(EAGAIN),
            Errno(EINTR),
            Errno(EIO),
            Errno(EINVAL),
            Errno(ENOMEM),
            End,
        ],
        Sometimes,
        &[Torture, Endless],
        BOTH,
    ),
    kind(
        "ppoll",
        "",
        &[Errno(EINTR), Errno(ENOMEM), Errno(EINVAL), Errno(EFAULT)],
        Sometimes,
        &[Torture, Endless],
        BOTH,
    ),
    // Doorbells, wishes, ends.
    kind(
        "write",
        "[eventfd]",
        &[Errno(EAGAIN), Errno(EIO), Errno(EINTR)],
        Seldom,
        &[Torture, Endless, Virtio, Console],
        REMAP,
    ),
    kind(
        "write",
        "[eventfd]",
        &[Errno(EBADF)],
        Start,
        &[Torture, Virtio, Console],
        REMAP,
    ),
    kind(
        "read",
        "[eventfd]",
        &[Errno(EAGAIN), Errno(EINTR), Errno(EIO)],
        Often,
        &[Torture, Endless, Virtio],
        BOTH,
    ),
    kind(
        "epoll_wait",
        "",
        &[Errno(EINTR), Errno(EINVAL), Errno(EBADF)],
        Rarely,
        &[Torture, Endless, Virtio],
        REMAP,
    ),
    kind(
        "poll",
        "",
        &[Errno(EINTR), Errno(ENOMEM), Errno(EAGAIN)],
        Seldom,
        &[Console],
        REMAP,
    ),
    // vCPUs.
    kind(
        "ioctl",
        "KVM_RUN",
        &[
            Errno(EAGAIN),
            Errno(EINTR),
            Errno(EFAULT),
            Errno(ENOMEM),
            Errno(EINVAL),
        ],
        Often,
        &[Torture, Endless],
        BOTH,
    ),
    kind(
        "ioctl",
        "KVM_RUN",
        &[Errno(EAGAIN), Errno(EINTR), Errno(EFAULT), Errno(EIO)],
        Often,
        &[Virtio, Console],
        REMAP,
    ),
    // Files.
    kind(
        "flock",
        "",
        &[Errno(EINTR), Errno(ENOLCK)],
        Start,
        &[Torture, Chaos, Doubt, Endless],
        REMAP,
    ),
    kind(
        "write",
        "/t.trace",
        &[
            Errno(ENOSPC),
            Errno(EIO),
            Errno(EINTR),
            Errno(EAGAIN),
            Short,
            End,
        ],
        Seldom,
        &[Torture, Endless],
        REMAP,
    ),
    kind(
        "write",
        "(deleted)",
        &[Errno(ENOSPC), Errno(EIO), Errno(EINTR), Short, End],
        Rarely,
        &[Torture],
        REMAP,
    ),
    kind(
        "write",
        "fd 1:",
        &[
            Errno(ENOSPC),
            Errno(EIO),
            Errno(EINTR),
            Errno(EAGAIN),
            Short,
        ],
        Rarely,
        &[Torture, Console],
        REMAP,
    ),
    kind(
        "read",
        "/keys",
        &[Errno(EIO), Errno(EINTR), Errno(EAGAIN), Short],
        Rarely,
        &[Console],
        REMAP,
    ),
    // What the kernel says about this process and its limits.
    kind(
        "open",
        "/proc/",
        &[Errno(EACCES), Errno(EMFILE)],
        Start,
        &[Torture, Virtio],
        REMAP,
    ),
    kind(
        "read",
        "/proc/",
        &[Errno(EIO), Errno(EINTR), Errno(ENOMEM)],
        Seldom,
        &[Torture],
        REMAP,
    ),
    kind(
        "preadv",
        "",
        &[Errno(EIO), Errno(EINTR), Errno(EFAULT), Short, End],
        Seldom,
        &[Virtio],
        BOTH,
    ),
    kind(
        "pwritev",
        "",
        &[Errno(EIO), Errno(ENOSPC), Errno(EINTR), Short, End],
        Seldom,
        &[Virtio],
        BOTH,
    ),
    kind(
        "fdatasync",
        "",
        &[Errno(EIO), Errno(EINTR), Errno(ENOSPC)],
        Seldom,
        &[Virtio],
        BOTH,
    ),
    kind(
        "fallocate",
        "",
        &[Errno(EIO), Errno(EINTR), Errno(ENOSPC), Errno(EOPNOTSUPP)],
        Seldom,
        &[Virtio],
        BOTH,
    ),
    kind(
        "getrandom",
        "",
        &[Errno(EAGAIN), Errno(EINTR), Errno(EIO), Short],
        Often,
        &[Virtio],
        REMAP,
    ),
    kind(
        "getrandom",
        "",
        &[Errno(EINTR), Errno(ENOSYS)],
        Start,
        &[Torture],
        REMAP,
    ),
    // The beginning.
    kind(
        "mmap",
        "",
        &[Errno(ENOMEM)],
        Start,
        &[Torture, Virtio],
        BOTH,
    ),
    kind(
        "munmap",
        "",
        &[Errno(ENOMEM), Errno(EINVAL)],
        Seldom,
        &[Torture, Virtio],
        BOTH,
    ),
    kind(
        "madvise",
        "MADV_HUGEPAGE",
        &[Errno(EINVAL)],
        Start,
        &[Chaos],
        REMAP,
    ),
    kind(
        "madvise",
        "MADV_DONTFORK",
        &[Errno(EINVAL), Errno(ENOMEM)],
        Start,
        &[Torture],
        REMAP,
    ),
    kind("prctl", "", &[Errno(EINVAL)], Start, &[Torture], REMAP),
    kind(
        "memfd_create",
        "",
        &[Errno(EMFILE), Errno(ENOMEM)],
        Start,
        &[Virtio],
        REMAP,
    ),
    kind(
        "ftruncate64",
        "",
        &[Errno(EINVAL), Errno(EIO)],
        Start,
        &[Virtio],
        REMAP,
    ),
    kind(
        "eventfd",
        "",
        &[Errno(EMFILE)],
        Start,
        &[Torture, Virtio, Console],
        REMAP,
    ),
    kind(
        "epoll_create1",
        "",
        &[Errno(EMFILE)],
        Start,
        &[Torture],
        REMAP,
    ),
    kind(
        "epoll_ctl",
        "",
        &[Errno(ENOMEM), Errno(ENOSPC)],
        Start,
        &[Torture],
        REMAP,
    ),
    kind(
        "pthread_create",
        "",
        &[Errno(EAGAIN)],
        Start,
        &[Torture, Chaos, Virtio, Console],
        REMAP,
    ),
    kind(
        "pthread_sigmask",
        "",
        &[Errno(EINVAL)],
        Start,
        &[Torture],
        REMAP,
    ),
    kind(
        "sched_getaffinity",
        "",
        &[Errno(EPERM)],
        Start,
        &[Torture],
        REMAP,
    ),
    kind(
        "sched_setaffinity",
        "",
        &[Errno(EINVAL)],
        Start,
        &[Torture],
        REMAP,
    ),
    kind(
        "sched_setscheduler",
        "",
        &[Errno(EPERM)],
        Start,
        &[Torture],
        REMAP,
    ),
    kind(
        "open",
        "/dev/kvm",
        &[Errno(EACCES), Errno(EMFILE), Errno(EINTR)],
        Start,
        &[Torture],
        REMAP,
    ),
    // Files in the run's folder, and, for files without names, the folder.
    kind(
        "open",
        "/failing-calls-",
        &[Errno(EACCES), Errno(EMFILE)],
        Start,
        &[Torture],
        REMAP,
    ),
    kind(
        "pread64",
        "/pagemap",
        &[Errno(EIO), Errno(EINTR), Errno(EPERM), Short, End],
        Sometimes,
        &[Doubt],
        BOTH,
    ),
    kind(
        "open",
        "/proc/self/pagemap",
        &[Errno(EACCES)],
        Start,
        &[Doubt],
        BOTH,
    ),
    kind(
        "open",
        "/proc/self/pagemap",
        &[Errno(EACCES), Errno(EMFILE)],
        Start,
        &[Torture],
        BOTH,
    ),
    kind(
        "readlink",
        "",
        &[Errno(EACCES), Errno(EIO)],
        Start,
        &[Torture, Console],
        REMAP,
    ),
    kind(
        "fsync",
        "",
        &[Errno(EIO), Errno(ENOSPC), Errno(EINTR)],
        Start,
        &[Chaos],
        REMAP,
    ),
    kind(
        "fchmod",
        "",
        &[Errno(EPERM), Errno(EIO)],
        Start,
        &[Chaos],
        REMAP,
    ),
    kind(
        "open",
        "disk.img",
        &[Errno(EACCES), Errno(EMFILE)],
        Start,
        &[Virtio],
        REMAP,
    ),
    kind(
        "open",
        "guest",
        &[Errno(EACCES), Errno(EMFILE)],
        Start,
        &[Virtio],
        REMAP,
    ),
    kind(
        "open",
        "kernel",
        &[Errno(EACCES), Errno(EMFILE)],
        Start,
        &[Console],
        REMAP,
    ),
    kind(
        "read",
        "/guest",
        &[Errno(EIO), Errno(EINTR), Short, End],
        Start,
        &[Virtio],
        REMAP,
    ),
    kind(
        "read",
        "/kernel",
        &[Errno(EIO), Errno(EINTR), Short, End],
        Start,
        &[Console],
        REMAP,
    ),
    kind(
        "fcntl",
        "F_ADD_SEALS",
        &[Errno(EPERM), Errno(EINVAL)],
        Start,
        &[Virtio],
        REMAP,
    ),
    kind(
        "fcntl",
        "F_DUPFD_CLOEXEC",
        &[Errno(EMFILE)],
        Start,
        &[Console],
        REMAP,
    ),
    kind(
        "lseek64",
        "/kernel",
        &[Errno(EINVAL)],
        Start,
        &[Console],
        REMAP,
    ),
    kind(
        "fcntl",
        "F_OFD_SETLK",
        &[Errno(EAGAIN), Errno(EINVAL)],
        Start,
        &[Virtio],
        REMAP,
    ),
    kind(
        "syscall",
        "SYS_userfaultfd",
        &[Errno(EPERM), Errno(EMFILE)],
        Start,
        &[Torture],
        BOTH,
    ),
    // The sandbox.
    kind(
        "syscall",
        "SYS_seccomp",
        &[Errno(EINVAL), Errno(ENOMEM)],
        Start,
        &[Torture, Virtio],
        REMAP,
    ),
    kind(
        "syscall",
        "SYS_landlock_",
        &[Errno(EOPNOTSUPP), Errno(EMFILE), Errno(ENOMEM)],
        Start,
        &[Torture],
        REMAP,
    ),
    kind(
        "syscall",
        "SYS_cap",
        &[Errno(EPERM)],
        Start,
        &[Torture],
        REMAP,
    ),
    kind(
        "open",
        "/dev/userfaultfd",
        &[Errno(EACCES), Errno(EMFILE)],
        Start,
        &[Chaos],
        REMAP,
    ),
    kind(
        "ioctl",
        "UFFDIO_API",
        &[Errno(EINVAL)],
        Start,
        &[Torture],
        BOTH,
    ),
    kind(
        "ioctl",
        "UFFDIO_REGISTER",
        &[Errno(EINVAL), Errno(ENOMEM)],
        Start,
        &[Torture],
        BOTH,
    ),
];

/// KVM's calls at the beginning.
const KVM: &[(&str, &[How])] = &[
    ("KVM_GET_API_VERSION", &[Errno(EINVAL)]),
    ("KVM_CHECK_EXTENSION", &[Errno(EINVAL)]),
    ("KVM_CREATE_VM", &[Errno(EBUSY), Errno(ENOMEM)]),
    ("KVM_GET_VCPU_MMAP_SIZE", &[Errno(EINVAL)]),
    ("KVM_SET_TSS_ADDR", &[Errno(EINVAL)]),
    (
        "KVM_SET_USER_MEMORY_REGION",
        &[Errno(EEXIST), Errno(ENOMEM)],
    ),
    ("KVM_ENABLE_CAP", &[Errno(EINVAL)]),
    ("KVM_CREATE_IRQCHIP", &[Errno(ENOMEM)]),
    ("KVM_IRQFD", &[Errno(EBUSY)]),
    ("KVM_IOEVENTFD", &[Errno(EEXIST), Errno(ENOSPC)]),
    ("KVM_CREATE_VCPU", &[Errno(ENOMEM)]),
    ("KVM_GET_SUPPORTED_CPUID", &[Errno(ENOMEM)]),
    ("KVM_SET_CPUID2", &[Errno(EINVAL)]),
    ("KVM_X86_SETUP_MCE", &[Errno(EINVAL)]),
    ("KVM_GET_SREGS", &[Errno(EINVAL)]),
    ("KVM_SET_SREGS", &[Errno(EINVAL)]),
    ("KVM_SET_REGS", &[Errno(EINVAL)]),
    ("KVM_SET_FPU", &[Errno(EINVAL)]),
    ("KVM_GET_LAPIC", &[Errno(EINVAL)]),
    ("KVM_SET_LAPIC", &[Errno(EINVAL)]),
    ("KVM_SET_MP_STATE", &[Errno(EINVAL)]),
    ("KVM_GET_TSC_KHZ", &[Errno(EIO)]),
];

/// Only of Linux guests, or of virtio devices.
const KVM_ELSEWHERE: &[(&str, Scene, &[How])] = &[
    (
        "KVM_SET_GSI_ROUTING",
        Virtio,
        &[Errno(EINVAL), Errno(ENOMEM)],
    ),
    ("KVM_SET_MSRS", Console, &[Errno(EINVAL)]),
];

/// The whole table.
pub fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in TABLE {
        for &scene in kind.scenes {
            for &engine in kind.engines {
                if !scene.engines().contains(&engine) {
                    continue;
                }
                for &how in kind.hows {
                    for &pattern in kind.calls.patterns(scene) {
                        rows.push(Row {
                            call: kind.call,
                            about: kind.about,
                            how,
                            pattern,
                            scene,
                            engine,
                        });
                    }
                }
            }
        }
    }
    let everywhere = KVM.iter().map(|(about, hows)| (*about, Torture, *hows));
    for (about, scene, hows) in everywhere.chain(KVM_ELSEWHERE.iter().copied()) {
        for &how in hows {
            rows.push(Row {
                call: "ioctl",
                about,
                how,
                pattern: Pattern::Each,
                scene,
                engine: Engine::Remap,
            });
        }
    }
    rows
}

/// Rows of the table that take a second each and once found something, or are the only ones of their path.
pub fn quick() -> Vec<Row> {
    let all = all();
    let row = |name: &&str| {
        let row = all.iter().find(|row| row.to_string() == **name);
        *row.unwrap_or_else(|| panic!("no such row: {name}"))
    };
    QUICK.iter().map(row).collect()
}

const QUICK: &[&str] = &[
    "ioctl UFFDIO_COPY, EAGAIN, always(50), Endless, copy",
    "ioctl UFFDIO_MOVE, one page of it, always(50), Torture, remap",
    "ioctl UFFDIO_MOVE, EAGAIN, always(50), Endless, copy",
    "ioctl UFFDIO_MOVE, EEXIST, some(20), Torture, remap",
    "ioctl UFFDIO_WAKE, EINVAL, once(1), Torture, remap",
    "ioctl UFFDIO_WRITEPROTECT, ENOMEM, some(20), Torture, copy-in-place",
    "read [userfaultfd], EAGAIN, always(10), Endless, remap",
    "ioctl KVM_RUN, EFAULT, once(50), Console, remap",
    "write /t.trace, ENOSPC, always(1), Torture, remap",
    "write (deleted), EIO, once(1), Torture, remap",
    "preadv, EINTR, always(1), Virtio, remap",
    "preadv, end of file, once(1), Virtio, copy",
    "pwritev, half of it, always(1), Virtio, remap",
    "pwritev, ENOSPC, once(2), Virtio, remap",
    "fdatasync, EINTR, always(1), Virtio, copy",
    "fallocate, EINTR, always(1), Virtio, remap",
    "fallocate, EOPNOTSUPP, always(1), Virtio, remap",
    "getrandom, EINTR, always(50), Virtio, remap",
    "mmap, ENOMEM, each, Torture, copy",
    "eventfd, EMFILE, each, Virtio, remap",
    "pthread_create, EAGAIN, each, Torture, remap",
    "memfd_create, EMFILE, each, Virtio, remap",
    "ioctl UFFDIO_REGISTER, ENOMEM, each, Torture, remap",
    "ioctl KVM_CREATE_VCPU, ENOMEM, each, Torture, remap",
    "ioctl KVM_IRQFD, EBUSY, each, Torture, remap",
    "madvise MADV_DONTNEED, EAGAIN, once(10), Torture, remap",
    "madvise MADV_DONTNEED, ENOMEM, once(10), Torture, copy",
    "madvise MADV_DONTNEED, EINVAL, always(10), Torture, copy-in-place",
    "madvise MADV_DONTNEED, EAGAIN, some(5), Virtio, remap",
    "madvise MADV_REMOVE, EIO, once(1), Virtio, copy",
    "ioctl UFFDIO_COPY, EEXIST, once(10), Torture, remap",
    "ioctl UFFDIO_COPY, EEXIST, some(20), Torture, copy",
    "ioctl UFFDIO_ZEROPAGE, EEXIST, some(5), Torture, remap",
    "ioctl UFFDIO_MOVE, done but EEXIST, some(20), Torture, remap",
    "ioctl UFFDIO_MOVE, done but EEXIST, always(50), Torture, copy",
    "ioctl UFFDIO_MOVE, one page but EEXIST, some(20), Torture, remap",
    "read [userfaultfd], end of file, always(10), Torture, copy",
    "ppoll, EINTR, always(10), Endless, remap",
    "ioctl UFFDIO_COPY, one page but EAGAIN, once(50), Torture, copy",
    "read /kernel, half of it, each, Console, remap",
    "read /kernel, EIO, each, Console, remap",
    "write [eventfd], EAGAIN, once(1), Virtio, remap",
    "write [eventfd], EIO, always(1), Torture, remap",
    "write [eventfd], EINTR, always(1), Endless, remap",
    "read [eventfd], EINTR, always(50), Virtio, remap",
    "read [eventfd], EIO, always(50), Torture, copy",
    "epoll_wait, EINTR, always(1), Torture, remap",
    "poll, EINTR, always(1), Console, remap",
    "ioctl KVM_RUN, EAGAIN, always(50), Torture, remap",
    "ioctl KVM_RUN, EINTR, always(50), Endless, copy",
    "write /t.trace, EINTR, always(1), Torture, remap",
    "write fd 1:, EINTR, always(1), Console, remap",
    "write fd 1:, ENOSPC, always(1), Torture, remap",
    "read /keys, EINTR, once(1), Console, remap",
];

/// Calls that are not worth a row: the standard library makes them before `main` and does not mind, or nothing can be said
/// when saying fails; or which files there are is a matter of the machine (a limit that cannot be read is taken for none).
pub fn harmless(call: &str, about: &str) -> bool {
    match call {
        "sigaction" | "sigaltstack" => true,
        "fcntl" => about == "F_GETFD",
        "open" | "read" => about.contains("/sys/fs/cgroup"),
        "write" => about.starts_with("fd 2:"),
        _ => false,
    }
}
