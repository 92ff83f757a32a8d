//! The table of the sandbox: what each kind of thread may ask of the kernel once the machine has been made. `docs/security.md` explains
//! the rows to operators; a call that is not here ends the run.
//!
//! A row is the sum of its groups. Calls that take a request number (`ioctl`, `fcntl`, `prctl`) are allowed request by request, and no
//! thread ever makes memory executable.

use libc::c_long;

/// A kind of thread: all threads of a kind have the same rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// The process's first thread: waits for the end, then writes the report.
    Main,
    /// Runs a vCPU: registers and memory that the guest controls.
    Vcpu,
    /// Serves CPU faults on managed memory.
    Service,
    /// Watches the service threads, and starts others in the place of those that a driver keeps.
    ServiceWatch,
    /// Executes an accelerator's commands, which the guest writes.
    Accelerator,
    /// Serves a virtio device's rings, which the guest writes.
    Virtio,
    /// Writes the trace.
    Recorder,
    /// Writes the guest's output, or the messages of policy scripts.
    Output,
    /// Reads the console's input.
    Console,
    /// Takes signals.
    Signals,
    /// Loads policy scripts again when their files change.
    Scripts,
    /// Kicks vCPUs, shows the progress.
    Helper,
    /// Stops the machine.
    Stop,
    /// Disturbs the guest in `torture`.
    Chaos,
    /// Serves the HTTP API.
    Api,
}

/// What a kind of thread may do.
pub(super) struct Row {
    pub(super) kind: Kind,
    /// How the names of its threads begin. The first row that fits is a thread's.
    pub(super) threads: &'static [&'static str],
    pub(super) calls: &'static [&'static [Allowed]],
    pub(super) files: Files,
}

/// The files that a kind of thread may open by their paths, beyond the descriptors that are open when the guest starts and what tells the
/// limits of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Files {
    /// None.
    Nothing,
    /// The outputs of the run, which take their place at its end.
    Outputs,
    /// The policy scripts, to be read again.
    Scripts,
    /// Outputs that are asked for later, in the folders that the user has allowed.
    Later,
    /// `/dev/userfaultfd`.
    Userfaultfd,
}

impl Files {
    pub(super) const ALL: [Files; 5] = [
        Files::Nothing,
        Files::Outputs,
        Files::Scripts,
        Files::Later,
        Files::Userfaultfd,
    ];
}

/// A system call that is allowed, always or under a condition.
pub(super) struct Allowed {
    pub(super) call: c_long,
    pub(super) when: When,
}

/// The condition of [`Allowed`]. Arguments are numbered from 0; of those that are no pointers, the lower 32 bits count.
pub(super) enum When {
    Always,
    /// The argument is one of these.
    Is(u8, &'static [u64]),
    /// The argument has none of these bits.
    Lacks(u8, u64),
    /// The argument is a null pointer.
    Null(u8),
    /// The first argument is this process's id.
    OwnProcess,
    /// The argument has none of these bits, and Landlock is there to refuse what the thread may not open.
    LacksUnderLandlock(u8, u64),
}

const fn always(call: c_long) -> Allowed {
    let when = When::Always;
    Allowed { call, when }
}

const fn is(call: c_long, argument: u8, values: &'static [u64]) -> Allowed {
    let when = When::Is(argument, values);
    Allowed { call, when }
}

const fn lacks(call: c_long, argument: u8, bits: u64) -> Allowed {
    let when = When::Lacks(argument, bits);
    Allowed { call, when }
}

const EXECUTABLE: u64 = libc::PROT_EXEC as u64;
/// What `open` must not be asked for by a thread that opens nothing but files to read.
const CHANGES: u64 = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u64
    | (libc::O_TMPFILE & !libc::O_DIRECTORY) as u64;

/// Every thread: descriptors that are open, memory, locks, time, its own signals, its end, and what a panic needs.
const EVERY: &[Allowed] = &[
    // Descriptors that are open: events, files, rings of faults, page tables.
    always(libc::SYS_read),
    always(libc::SYS_write),
    always(libc::SYS_writev),
    always(libc::SYS_pread64),
    always(libc::SYS_lseek),
    always(libc::SYS_close),
    always(libc::SYS_poll),
    always(libc::SYS_ppoll),
    is(
        libc::SYS_fcntl,
        1,
        &[
            libc::F_GETFD as u64,
            libc::F_GETFL as u64,
            libc::F_DUPFD_CLOEXEC as u64,
        ],
    ),
    // Memory: the allocator's, stacks, guests' pages that are given back.
    always(libc::SYS_brk),
    lacks(libc::SYS_mmap, 2, EXECUTABLE),
    lacks(libc::SYS_mprotect, 2, EXECUTABLE),
    always(libc::SYS_mremap),
    always(libc::SYS_munmap),
    always(libc::SYS_madvise),
    always(libc::SYS_mincore),
    // The allocator's number of arenas.
    always(libc::SYS_sched_getaffinity),
    // Locks and time.
    always(libc::SYS_futex),
    always(libc::SYS_sched_yield),
    always(libc::SYS_clock_gettime),
    always(libc::SYS_clock_nanosleep),
    always(libc::SYS_nanosleep),
    always(libc::SYS_restart_syscall),
    // Names of threads and mappings; how exact short sleeps are.
    is(
        libc::SYS_prctl,
        0,
        &[
            libc::PR_SET_NAME as u64,
            libc::PR_GET_NAME as u64,
            libc::PR_SET_VMA as u64,
            libc::PR_SET_TIMERSLACK as u64,
        ],
    ),
    always(libc::SYS_gettid),
    always(libc::SYS_getpid),
    // Advice differs for root.
    always(libc::SYS_getuid),
    always(libc::SYS_geteuid),
    // Seeds of hash tables; the guest's random numbers.
    always(libc::SYS_getrandom),
    // Signals to threads of this process: kicks of vCPUs, aborts.
    Allowed {
        call: libc::SYS_tgkill,
        when: When::OwnProcess,
    },
    always(libc::SYS_rt_sigprocmask),
    always(libc::SYS_rt_sigreturn),
    always(libc::SYS_sigaltstack),
    always(libc::SYS_exit),
    always(libc::SYS_exit_group),
    // A panic puts the terminal back, and shows a backtrace.
    is(
        libc::SYS_ioctl,
        1,
        &[
            libc::TCGETS,
            libc::TCSETS,
            // The same in newer C libraries.
            libc::TCGETS2,
            libc::TCSETS2,
            libc::TIOCGPGRP,
        ],
    ),
    always(libc::SYS_getpgrp),
    always(libc::SYS_getcwd),
    always(libc::SYS_readlink),
    always(libc::SYS_statx),
    always(libc::SYS_newfstatat),
    always(libc::SYS_fstat),
    // Errors name the limit of the host that is reached: they ask for limits, and read some files of the kernel. Landlock refuses
    // others.
    Allowed {
        call: libc::SYS_prlimit64,
        when: When::Null(2),
    },
    Allowed {
        call: libc::SYS_openat,
        when: When::LacksUnderLandlock(2, CHANGES),
    },
];

/// Threads that migrate pages: requests of userfaultfd (`linux/userfaultfd.h`).
const MIGRATIONS: &[Allowed] = &[is(
    libc::SYS_ioctl,
    1,
    &[
        UFFDIO_WAKE,
        UFFDIO_COPY,
        UFFDIO_ZEROPAGE,
        UFFDIO_MOVE,
        UFFDIO_WRITEPROTECT,
    ],
)];
const UFFDIO_WAKE: u64 = 0x8010_aa02;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const UFFDIO_MOVE: u64 = 0xc028_aa05;
const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;

/// Threads that take devices off: their memory is no longer userfaultfd's.
const DETACHING: &[Allowed] = &[is(libc::SYS_ioctl, 1, &[UFFDIO_UNREGISTER])];
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;

/// Threads that attach devices: memory that userfaultfd manages.
const ATTACHING: &[Allowed] = &[
    always(libc::SYS_userfaultfd),
    is(
        libc::SYS_openat,
        2,
        &[(libc::O_RDWR | libc::O_CLOEXEC) as u64],
    ),
    is(
        libc::SYS_ioctl,
        1,
        &[USERFAULTFD_IOC_NEW, UFFDIO_API, UFFDIO_REGISTER],
    ),
];
const USERFAULTFD_IOC_NEW: u64 = 0xaa00;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;

/// vCPUs: requests of KVM (`linux/kvm.h`).
const VCPUS: &[Allowed] = &[
    is(
        libc::SYS_ioctl,
        1,
        &[
            KVM_RUN,
            KVM_GET_REGS,
            KVM_GET_SREGS,
            KVM_X86_SET_MCE,
            // A guest that changes which vCPU its devices interrupt.
            KVM_SET_GSI_ROUTING,
            // After a pause.
            KVM_KVMCLOCK_CTRL,
        ],
    ),
    // When the thread begins: which CPU it runs on, and that it does not preempt the thread that wakes it.
    always(libc::SYS_sched_setaffinity),
    always(libc::SYS_sched_setscheduler),
];
const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_GET_SREGS: u64 = 0x8138_ae83;
const KVM_X86_SET_MCE: u64 = 0x4040_ae9e;
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;
const KVM_SET_GSI_ROUTING: u64 = 0x4008_ae6a;

/// Threads that are bound to a CPU when they begin.
const PLACED: &[Allowed] = &[always(libc::SYS_sched_setaffinity)];

/// Disks: descriptors that are open.
const DISKS: &[Allowed] = &[
    always(libc::SYS_preadv),
    always(libc::SYS_pwritev),
    always(libc::SYS_pwrite64),
    always(libc::SYS_fdatasync),
    always(libc::SYS_fallocate),
];

/// Threads that start others.
const STARTING: &[Allowed] = &[
    always(libc::SYS_clone3),
    always(libc::SYS_clone),
    always(libc::SYS_set_robust_list),
    always(libc::SYS_rseq),
];

/// Waiting for events and timers.
const EVENTS: &[Allowed] = &[
    always(libc::SYS_eventfd2),
    always(libc::SYS_epoll_create1),
    always(libc::SYS_epoll_ctl),
    always(libc::SYS_epoll_wait),
    always(libc::SYS_epoll_pwait),
    always(libc::SYS_timerfd_create),
    always(libc::SYS_timerfd_settime),
];

/// Outputs that take their place: a file without a name gets one, a new file replaces an old one, an old one is written over.
const OUTPUTS: &[Allowed] = &[
    always(libc::SYS_openat),
    always(libc::SYS_flock),
    always(libc::SYS_ftruncate),
    always(libc::SYS_fsync),
    always(libc::SYS_fallocate),
    always(libc::SYS_copy_file_range),
    always(libc::SYS_sendfile),
    always(libc::SYS_linkat),
    always(libc::SYS_rename),
    always(libc::SYS_renameat),
    always(libc::SYS_renameat2),
    always(libc::SYS_unlink),
    always(libc::SYS_unlinkat),
];

/// Outputs that are opened while the guest runs: a new file gets the mode and the owner of the one that it replaces.
const REPLACING: &[Allowed] = &[
    always(libc::SYS_fchmod),
    always(libc::SYS_fchown),
    always(libc::SYS_flistxattr),
];

/// A console's file, which is emptied when the guest's first byte comes; a terminal's size.
const CONSOLE_FILE: &[Allowed] = &[
    always(libc::SYS_ftruncate),
    is(libc::SYS_ioctl, 1, &[libc::TIOCGWINSZ]),
];

/// An HTTP server on sockets that are open, in tokio.
const SERVING: &[Allowed] = &[
    always(libc::SYS_accept4),
    always(libc::SYS_recvfrom),
    always(libc::SYS_sendto),
    always(libc::SYS_recvmsg),
    always(libc::SYS_sendmsg),
    always(libc::SYS_shutdown),
    always(libc::SYS_getsockname),
    always(libc::SYS_getpeername),
    always(libc::SYS_getsockopt),
    always(libc::SYS_setsockopt),
    // tokio's pipe of signals.
    is(libc::SYS_socketpair, 0, &[libc::AF_UNIX as u64]),
    is(libc::SYS_ioctl, 1, &[libc::FIONBIO]),
    is(libc::SYS_fcntl, 1, &[libc::F_SETFL as u64]),
];

/// Waiting for signals.
const SIGNALS: &[Allowed] = &[always(libc::SYS_rt_sigtimedwait)];

/// How the names of threads begin that have the rights of the thread that has started them: `report` also before the main thread is
/// confined, when a run cannot start; the fault service's, which are not started by `thread::spawn`.
const INHERITING: &[&str] = &["report", "hmm-fault+"];

/// The table. A kind's own groups come first, because their conditions are then checked first.
pub(super) const ROWS: &[Row] = &[
    Row {
        kind: Kind::Main,
        threads: &["main"],
        // Also for the threads that write the report, which it starts.
        calls: &[EVENTS, STARTING, OUTPUTS, DETACHING, MIGRATIONS, EVERY],
        files: Files::Outputs,
    },
    Row {
        kind: Kind::Vcpu,
        threads: &["vcpu"],
        calls: &[VCPUS, MIGRATIONS, EVERY],
        files: Files::Nothing,
    },
    Row {
        kind: Kind::Service,
        threads: &["hmm-fault"],
        calls: &[MIGRATIONS, PLACED, EVERY],
        files: Files::Nothing,
    },
    Row {
        kind: Kind::ServiceWatch,
        threads: &["hmm-watch"],
        // Also for the service threads that it starts.
        calls: &[MIGRATIONS, STARTING, PLACED, EVERY],
        files: Files::Nothing,
    },
    Row {
        kind: Kind::Accelerator,
        threads: &["accelerator"],
        calls: &[MIGRATIONS, EVERY],
        files: Files::Nothing,
    },
    Row {
        kind: Kind::Virtio,
        threads: &["virtio-"],
        calls: &[MIGRATIONS, DISKS, EVERY],
        files: Files::Nothing,
    },
    Row {
        kind: Kind::Recorder,
        threads: &["recorder"],
        calls: &[OUTPUTS, EVERY],
        files: Files::Outputs,
    },
    Row {
        kind: Kind::Output,
        threads: &["output", "messages"],
        calls: &[CONSOLE_FILE, EVERY],
        files: Files::Nothing,
    },
    Row {
        kind: Kind::Console,
        threads: &["console"],
        calls: &[EVERY],
        files: Files::Nothing,
    },
    Row {
        kind: Kind::Signals,
        threads: &["signals"],
        calls: &[SIGNALS, EVERY],
        files: Files::Nothing,
    },
    Row {
        kind: Kind::Scripts,
        threads: &["script-reload"],
        calls: &[EVERY],
        files: Files::Scripts,
    },
    Row {
        kind: Kind::Helper,
        threads: &["memory-errors", "progress"],
        calls: &[CONSOLE_FILE, EVERY],
        files: Files::Nothing,
    },
    Row {
        kind: Kind::Stop,
        threads: &["stop"],
        calls: &[MIGRATIONS, DETACHING, EVERY],
        files: Files::Nothing,
    },
    Row {
        kind: Kind::Chaos,
        threads: &["chaos"],
        calls: &[MIGRATIONS, ATTACHING, DETACHING, EVERY],
        files: Files::Userfaultfd,
    },
    Row {
        kind: Kind::Api,
        threads: &["api"],
        calls: &[
            MIGRATIONS, DETACHING, EVENTS, STARTING, SERVING, OUTPUTS, REPLACING, EVERY,
        ],
        files: Files::Later,
    },
];

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; ROWS.len()] = {
        let mut all = [Kind::Main; ROWS.len()];
        let mut index = 0;
        while index < all.len() {
            all[index] = ROWS[index].kind;
            index += 1;
        }
        all
    };

    /// Returns the kind of the thread with this name; none if the table has no row for it.
    pub fn of_thread(name: &str) -> Option<Kind> {
        let fits = |row: &&Row| row.threads.iter().any(|it| name.starts_with(it));
        ROWS.iter().find(fits).map(|row| row.kind)
    }

    /// Whether the thread with this name has the rights of the thread that has started it.
    pub(super) fn is_inherited(name: &str) -> bool {
        INHERITING.iter().any(|it| name.starts_with(it))
    }

    pub(super) fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_stands_at_its_number() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number, "{kind:?}");
        }
    }

    #[test]
    fn threads_have_their_rows() {
        for (name, kind) in [
            ("vcpu63", Some(Kind::Vcpu)),
            ("hmm-fault0", Some(Kind::Service)),
            ("hmm-watch", Some(Kind::ServiceWatch)),
            ("virtio-blk0", Some(Kind::Virtio)),
            ("unheard-of", None),
        ] {
            assert_eq!(Kind::of_thread(name), kind, "{name}");
        }
    }

    #[test]
    fn no_row_has_what_a_confined_process_never_needs() {
        let never = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_bpf,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_setuid,
            libc::SYS_capset,
            libc::SYS_seccomp,
            libc::SYS_rt_sigaction,
            libc::SYS_io_uring_setup,
            libc::SYS_pidfd_getfd,
            libc::SYS_memfd_create,
            libc::SYS_chmod,
            libc::SYS_pkey_mprotect,
        ];
        for row in ROWS {
            for allowed in row.calls.iter().copied().flatten() {
                let (kind, call) = (row.kind, allowed.call);
                assert!(!never.contains(&call), "{kind:?}: {call}");
            }
        }
    }
}
