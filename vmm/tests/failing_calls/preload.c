// A library that is loaded in front of the C library and makes calls of the kernel fail.
//
// What it does is in its environment:
//   FAILING_CALLS_COUNTS  a file of at least two 64-bit numbers: calls that fit so far, calls that were made to fail
//   FAILING_CALLS_LOG     if set, a file that gets each different "CALL ABOUT" once
//   FAILING_CALLS_NO_MOVE if set, the kernel seems not to have UFFDIO_MOVE
//   FAILING_CALLS_DOUBT   if set, one UFFDIO_MOVE in ten is done and answered with EEXIST
//   FAILING_CALLS_CALL    the function, such as `ioctl`
//   FAILING_CALLS_ABOUT   a part of what the call is about: the name of a request or advice, a path, or
//                         "fd N: LINK" for calls on a descriptor
//   FAILING_CALLS_HOW     how it fails, see `enum how`
//   FAILING_CALLS_ERRNO   the error
//   FAILING_CALLS_FIRST   the first call that fails, from 1
//   FAILING_CALLS_EVERY   0: only that one; N: it and every Nth from there
//
// Calls that the C library makes within itself do not come here.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <termios.h>
#include <unistd.h>

enum how {
    ERRNO,    // nothing is done, the error is returned
    END,      // nothing is done, 0 is returned: the end of a file
    SHORT,    // a part is done and its size returned
    DONE,     // all is done, and the error is returned
    PART,     // one page is done, and the call says so
    PART_BUT, // one page is done, and the call says that nothing was
};

static const char *call, *about;
static enum how how;
static int error, no_move, doubt;
static uint64_t first, every;
static _Atomic uint64_t *counts;
static int log_fd = -1;

static int (*real_ioctl)(int, unsigned long, ...);
static int (*real_open)(const char *, int, ...);
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_write)(int, const void *, size_t);
static long (*real_syscall)(long, ...);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);

static uint64_t number(const char *name) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : 0;
}

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void begin(void) {
    static const char *const ways[] = {"errno", "end", "short", "done", "part", "part-but"};
    real_ioctl = real("ioctl");
    real_open = real("open");
    real_read = real("read");
    real_write = real("write");
    real_syscall = real("syscall");
    real_mmap = real("mmap");
    const char *path = getenv("FAILING_CALLS_COUNTS");
    if (!path)
        return;
    int fd = real_open(path, O_RDWR | O_CLOEXEC);
    void *shared = real_mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || shared == MAP_FAILED)
        abort();
    close(fd);
    const char *log_path = getenv("FAILING_CALLS_LOG");
    if (log_path)
        log_fd = real_open(log_path, O_WRONLY | O_APPEND | O_CLOEXEC);
    call = getenv("FAILING_CALLS_CALL");
    about = getenv("FAILING_CALLS_ABOUT");
    doubt = getenv("FAILING_CALLS_DOUBT") != NULL;
    no_move = getenv("FAILING_CALLS_NO_MOVE") != NULL;
    const char *way = getenv("FAILING_CALLS_HOW");
    for (unsigned i = 0; way && i < sizeof ways / sizeof *ways; i++)
        if (!strcmp(way, ways[i]))
            how = i;
    error = (int)number("FAILING_CALLS_ERRNO");
    first = number("FAILING_CALLS_FIRST");
    every = number("FAILING_CALLS_EVERY");
    counts = shared;
}

// Notes a call that has not been seen yet. Which ones have been is a matter of hashes: two that collide are one.
static void note(const char *name, const char *what) {
    static _Atomic unsigned char seen[1 << 16];
    char line[512];
    int n = snprintf(line, sizeof line, "%s %s\n", name, what);
    if (n >= (int)sizeof line)
        n = sizeof line - 1;
    uint32_t hash = 2166136261u;
    for (int i = 0; i < n; i++)
        hash = (hash ^ (unsigned char)line[i]) * 16777619u;
    if (!seen[hash >> 16]) {
        seen[hash >> 16] = 1;
        if (real_write(log_fd, line, n) != n)
            abort();
    }
}

// Whether this call fails.
static int fails(const char *name, const char *what) {
    if (!counts)
        return 0;
    if (log_fd >= 0)
        note(name, what);
    if (!call || strcmp(call, name) || (about && !strstr(what, about)))
        return 0;
    uint64_t n = ++counts[0];
    int hit = every ? n >= first && (n - first) % every == 0 : n == first;
    if (hit)
        ++counts[1];
    return hit;
}

// "fd N: LINK"
static const char *descriptor(int fd, char *buffer, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int n = snprintf(buffer, size, "fd %d: ", fd);
    ssize_t len = real_syscall(SYS_readlink, path, buffer + n, size - n - 1);
    buffer[n + (len < 0 ? 0 : len)] = 0;
    return buffer;
}

// Descriptors are looked up only where it matters.
static int fails_on(const char *name, int fd) {
    char buffer[512];
    int kept = errno;
    if (!counts || (log_fd < 0 && (!call || strcmp(call, name))))
        return 0;
    const char *what = descriptor(fd, buffer, sizeof buffer);
    errno = kept;
    return fails(name, what);
}

static int fail(void) {
    errno = error;
    return -1;
}

#define NAME(constant)                                                                             \
    case (unsigned long)constant:                                                                  \
        return #constant
static const char *request_name(unsigned long request) {
    switch (request) {
        NAME(UFFDIO_API);
        NAME(UFFDIO_REGISTER);
        NAME(UFFDIO_UNREGISTER);
        NAME(UFFDIO_WAKE);
        NAME(UFFDIO_COPY);
        NAME(UFFDIO_ZEROPAGE);
        NAME(UFFDIO_WRITEPROTECT);
    case 0xc028aa05:
        return "UFFDIO_MOVE";
    case 0xc020aa08:
        return "UFFDIO_POISON";
    case 0xaa00:
        return "USERFAULTFD_IOC_NEW";
        NAME(KVM_GET_API_VERSION);
        NAME(KVM_CREATE_VM);
        NAME(KVM_CHECK_EXTENSION);
        NAME(KVM_GET_VCPU_MMAP_SIZE);
        NAME(KVM_GET_SUPPORTED_CPUID);
        NAME(KVM_GET_MSR_INDEX_LIST);
        NAME(KVM_X86_GET_MCE_CAP_SUPPORTED);
        NAME(KVM_CREATE_VCPU);
        NAME(KVM_SET_USER_MEMORY_REGION);
        NAME(KVM_SET_TSS_ADDR);
        NAME(KVM_SET_IDENTITY_MAP_ADDR);
        NAME(KVM_CREATE_IRQCHIP);
        NAME(KVM_IRQ_LINE);
        NAME(KVM_SET_GSI_ROUTING);
        NAME(KVM_IRQFD);
        NAME(KVM_IOEVENTFD);
        NAME(KVM_CREATE_PIT2);
        NAME(KVM_SET_CLOCK);
        NAME(KVM_GET_CLOCK);
        NAME(KVM_RUN);
        NAME(KVM_GET_REGS);
        NAME(KVM_SET_REGS);
        NAME(KVM_GET_SREGS);
        NAME(KVM_SET_SREGS);
        NAME(KVM_GET_MSRS);
        NAME(KVM_SET_MSRS);
        NAME(KVM_SET_CPUID2);
        NAME(KVM_GET_CPUID2);
        NAME(KVM_SET_SIGNAL_MASK);
        NAME(KVM_GET_FPU);
        NAME(KVM_SET_FPU);
        NAME(KVM_GET_LAPIC);
        NAME(KVM_SET_LAPIC);
        NAME(KVM_GET_MP_STATE);
        NAME(KVM_SET_MP_STATE);
        NAME(KVM_X86_SETUP_MCE);
        NAME(KVM_X86_SET_MCE);
        NAME(KVM_GET_TSC_KHZ);
        NAME(KVM_SET_TSC_KHZ);
        NAME(KVM_ENABLE_CAP);
        NAME(KVM_GET_XCRS);
        NAME(KVM_SET_XCRS);
        NAME(KVM_GET_DEBUGREGS);
        NAME(KVM_GET_VCPU_EVENTS);
        NAME(KVM_SET_VCPU_EVENTS);
        NAME(KVM_SIGNAL_MSI);
        NAME(KVM_KVMCLOCK_CTRL);
        NAME(TCGETS);
        NAME(TCSETS);
        NAME(TIOCGWINSZ);
        NAME(FIONBIO);
        case 0x5451:
        return "FIOCLEX";
    default:
        return NULL;
    }
}

static const char *advice_name(int advice) {
    switch (advice) {
        NAME(MADV_NORMAL);
        NAME(MADV_DONTNEED);
        NAME(MADV_REMOVE);
        NAME(MADV_DONTFORK);
        NAME(MADV_HUGEPAGE);
        NAME(MADV_NOHUGEPAGE);
        NAME(MADV_DONTDUMP);
        NAME(MADV_FREE);
    case 22:
        return "MADV_POPULATE_READ";
    case 23:
        return "MADV_POPULATE_WRITE";
    default:
        return NULL;
    }
}

static const char *fcntl_name(int command) {
    switch (command) {
        NAME(F_DUPFD);
        NAME(F_DUPFD_CLOEXEC);
        NAME(F_GETFD);
        NAME(F_SETFD);
        NAME(F_GETFL);
        NAME(F_SETFL);
        NAME(F_GETLK);
        NAME(F_SETLK);
        NAME(F_OFD_SETLK);
        NAME(F_OFD_GETLK);
        NAME(F_ADD_SEALS);
        NAME(F_GET_SEALS);
    default:
        return NULL;
    }
}

static const char *named(const char *name, unsigned long value, char *buffer, size_t size) {
    if (name)
        return name;
    snprintf(buffer, size, "number %#lx", value);
    return buffer;
}

// Calls that fill pages: where the kernel writes how far it came, and the bytes that were asked for.
static int64_t *progress(unsigned long request, void *argument, uint64_t **len) {
    uint64_t *words = argument;
    switch (request) {
    case UFFDIO_COPY:
    case 0xc028aa05:
        *len = &words[2];
        return (int64_t *)&words[4];
    case UFFDIO_ZEROPAGE:
    case 0xc020aa08:
        *len = &words[1];
        return (int64_t *)&words[3];
    default:
        return NULL;
    }
}

int ioctl(int fd, unsigned long request, ...) {
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    char buffer[64];
    request &= 0xffffffff;
    if (!fails("ioctl", named(request_name(request), request, buffer, sizeof buffer))) {
        int result = real_ioctl(fd, request, argument);
        static _Atomic unsigned moves;
        if (result == 0 && request == 0xc028aa05 && doubt && ++moves % 10 == 0) {
            ((int64_t *)argument)[4] = -EEXIST;
            errno = EEXIST;
            return -1;
        }
        if (result == 0 && request == UFFDIO_API && no_move)
            ((struct uffdio_api *)argument)->features &= ~(1ull << 16);
        return result;
    }
    uint64_t *len;
    int64_t *done = progress(request, argument, &len);
    uint64_t asked = done ? *len : 0;
    if (how == DONE)
        real_ioctl(fd, request, argument);
    if (done && (how == PART || how == PART_BUT)) {
        *len = 4096;
        int result = real_ioctl(fd, request, argument);
        *len = asked;
        if (how == PART && result == 0) {
            *done = 4096;
            if (asked == 4096)
                return 0;
            errno = EAGAIN;
            return -1;
        }
    }
    if (done)
        *done = -error;
    return fail();
}

int madvise(void *start, size_t len, int advice) {
    char buffer[64];
    if (fails("madvise", named(advice_name(advice), advice, buffer, sizeof buffer)))
        return fail();
    return ((int (*)(void *, size_t, int))real("madvise"))(start, len, advice);
}

static void *map(void *start, size_t len, int protection, int flags, int fd, off_t offset) {
    char buffer[512];
    const char *what = flags & MAP_ANONYMOUS ? "anonymous" : descriptor(fd, buffer, sizeof buffer);
    if (fails("mmap", what))
        return fail(), MAP_FAILED;
    return real_mmap(start, len, protection, flags, fd, offset);
}

void *mmap(void *start, size_t len, int protection, int flags, int fd, off_t offset) {
    return map(start, len, protection, flags, fd, offset);
}

void *mmap64(void *start, size_t len, int protection, int flags, int fd, off64_t offset) {
    return map(start, len, protection, flags, fd, offset);
}

#define SIMPLE(type, function, parameters, arguments, what, failed)                                \
    type function parameters {                                                                     \
        static type(*next) parameters;                                                             \
        if (!next)                                                                                 \
            next = real(#function);                                                                \
        if (fails(#function, what))                                                                \
            return failed;                                                                         \
        return next arguments;                                                                     \
    }

#define ON(type, function, parameters, arguments, fd)                                              \
    type function parameters {                                                                     \
        static type(*next) parameters;                                                             \
        if (!next)                                                                                 \
            next = real(#function);                                                                \
        if (fails_on(#function, fd))                                                               \
            return fail();                                                                         \
        return next arguments;                                                                     \
    }

SIMPLE(int, munmap, (void *start, size_t len), (start, len), "", fail())
SIMPLE(int, mprotect, (void *start, size_t len, int protection), (start, len, protection), "", fail())
SIMPLE(int, eventfd, (unsigned int value, int flags), (value, flags), "", fail())
SIMPLE(int, memfd_create, (const char *name, unsigned int flags), (name, flags), name, fail())
SIMPLE(int, epoll_create1, (int flags), (flags), "", fail())
SIMPLE(int, epoll_wait, (int fd, struct epoll_event *events, int most, int timeout),
       (fd, events, most, timeout), "", fail())
SIMPLE(int, ppoll, (struct pollfd * fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask),
       (fds, count, timeout, mask), "", fail())
// Not one that does not wait: no signal can interrupt it, and the standard library makes one before `main`.
int poll(struct pollfd *fds, nfds_t count, int timeout) {
    int (*next)(struct pollfd *, nfds_t, int) = real("poll");
    return timeout != 0 && fails("poll", "") ? fail() : next(fds, count, timeout);
}
SIMPLE(int, timerfd_create, (int clock, int flags), (clock, flags), "", fail())
SIMPLE(int, timerfd_settime,
       (int fd, int flags, const struct itimerspec *new, struct itimerspec *old),
       (fd, flags, new, old), "", fail())
SIMPLE(int, signalfd, (int fd, const sigset_t *mask, int flags), (fd, mask, flags), "", fail())
SIMPLE(int, inotify_init1, (int flags), (flags), "", fail())
SIMPLE(int, inotify_add_watch, (int fd, const char *path, uint32_t mask), (fd, path, mask), path, fail())
SIMPLE(int, pipe2, (int fds[2], int flags), (fds, flags), "", fail())
SIMPLE(int, sched_setaffinity, (pid_t pid, size_t size, const cpu_set_t *set), (pid, size, set), "", fail())
SIMPLE(int, sched_getaffinity, (pid_t pid, size_t size, cpu_set_t *set), (pid, size, set), "", fail())
SIMPLE(int, sched_setscheduler, (pid_t pid, int policy, const struct sched_param *param),
       (pid, policy, param), "", fail())
SIMPLE(int, pthread_create,
       (pthread_t * thread, const pthread_attr_t *attributes, void *(*body)(void *), void *argument),
       (thread, attributes, body, argument), "", error)
SIMPLE(int, pthread_setaffinity_np, (pthread_t thread, size_t size, const cpu_set_t *set),
       (thread, size, set), "", error)
SIMPLE(int, pthread_sigmask, (int way, const sigset_t *set, sigset_t *old), (way, set, old), "", error)
SIMPLE(int, sigaction, (int signal, const struct sigaction *new, struct sigaction *old),
       (signal, new, old), "", fail())
SIMPLE(int, sigaltstack, (const stack_t *new, stack_t *old), (new, old), "", fail())
SIMPLE(int, rename, (const char *from, const char *to), (from, to), to, fail())
SIMPLE(int, unlink, (const char *path), (path), path, fail())
SIMPLE(ssize_t, readlink, (const char *path, char *buffer, size_t size), (path, buffer, size), path, fail())

SIMPLE(int, linkat, (int from_folder, const char *from, int to_folder, const char *to, int flags),
       (from_folder, from, to_folder, to, flags), to, fail())
SIMPLE(int, mincore, (void *start, size_t len, unsigned char *present), (start, len, present), "", fail())

ON(int, fchmod, (int fd, mode_t mode), (fd, mode), fd)
ON(int, fchown, (int fd, uid_t user, gid_t group), (fd, user, group), fd)
ON(int, epoll_ctl, (int poll, int what, int fd, struct epoll_event *event), (poll, what, fd, event), fd)
ON(int, fdatasync, (int fd), (fd), fd)
ON(int, fsync, (int fd), (fd), fd)
ON(int, ftruncate64, (int fd, off64_t size), (fd, size), fd)
ON(int, flock, (int fd, int what), (fd, what), fd)
ON(int, fstat64, (int fd, struct stat64 *status), (fd, status), fd)
ON(int, fallocate, (int fd, int mode, off_t offset, off_t len), (fd, mode, offset, len), fd)
ON(off64_t, lseek64, (int fd, off64_t offset, int from), (fd, offset, from), fd)
ON(ssize_t, pwrite64, (int fd, const void *bytes, size_t len, off64_t at), (fd, bytes, len, at), fd)
ON(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), fd)
ON(ssize_t, readv, (int fd, const struct iovec *parts, int count), (fd, parts, count), fd)
ON(int, tcgetattr, (int fd, struct termios *state), (fd, state), fd)
ON(int, tcsetattr, (int fd, int when, const struct termios *state), (fd, when, state), fd)

#define TRANSFER(function, real_function, parameters, arguments, short_arguments, fd)              \
    ssize_t function parameters {                                                                  \
        static ssize_t(*next) parameters;                                                          \
        if (!next)                                                                                 \
            next = real(#function);                                                                \
        if (!fails_on(#function, fd))                                                              \
            return next arguments;                                                                 \
        switch (how) {                                                                             \
        case END:                                                                                  \
            return 0;                                                                              \
        case SHORT:                                                                                \
            return next short_arguments;                                                           \
        default:                                                                                   \
            return fail();                                                                         \
        }                                                                                          \
    }

static size_t half(size_t len) { return len > 1 ? len / 2 : len; }

TRANSFER(read, read, (int fd, void *bytes, size_t len), (fd, bytes, len), (fd, bytes, half(len)), fd)
TRANSFER(write, write, (int fd, const void *bytes, size_t len), (fd, bytes, len), (fd, bytes, half(len)), fd)
TRANSFER(pread64, pread64, (int fd, void *bytes, size_t len, off64_t at), (fd, bytes, len, at),
         (fd, bytes, half(len), at), fd)
TRANSFER(preadv, preadv, (int fd, const struct iovec *parts, int count, off_t at),
         (fd, parts, count, at), (fd, &(struct iovec){parts->iov_base, half(parts->iov_len)}, 1, at), fd)
TRANSFER(pwritev, pwritev, (int fd, const struct iovec *parts, int count, off_t at),
         (fd, parts, count, at), (fd, &(struct iovec){parts->iov_base, half(parts->iov_len)}, 1, at), fd)

ssize_t getrandom(void *bytes, size_t len, unsigned int flags) {
    ssize_t (*next)(void *, size_t, unsigned int) = real("getrandom");
    if (!fails("getrandom", ""))
        return next(bytes, len, flags);
    return how == SHORT ? next(bytes, half(len), flags) : fail();
}

static int open_at(int folder, const char *path, int flags, mode_t mode) {
    if (fails("open", path))
        return fail();
    return (int)real_syscall(SYS_openat, folder, path, flags, mode);
}

#define OPEN(function, ...)                                                                        \
    va_list list;                                                                                  \
    va_start(list, flags);                                                                         \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;                        \
    va_end(list);                                                                                  \
    return open_at(__VA_ARGS__, path, flags, mode)

int open(const char *path, int flags, ...) { OPEN(open, AT_FDCWD); }
int open64(const char *path, int flags, ...) { OPEN(open64, AT_FDCWD); }
int openat64(int folder, const char *path, int flags, ...) { OPEN(openat64, folder); }

int fcntl(int fd, int command, ...) {
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    int (*next)(int, int, ...) = real("fcntl");
    char buffer[64];
    if (fails("fcntl", named(fcntl_name(command), command, buffer, sizeof buffer)))
        return fail();
    return next(fd, command, argument);
}

int prctl(int option, ...) {
    va_list list;
    va_start(list, option);
    unsigned long a[4];
    for (int i = 0; i < 4; i++)
        a[i] = va_arg(list, unsigned long);
    va_end(list);
    int (*next)(int, ...) = real("prctl");
    char buffer[64];
    if (fails("prctl", named(NULL, option, buffer, sizeof buffer)))
        return fail();
    return next(option, a[0], a[1], a[2], a[3]);
}

static const char *syscall_name(long number) {
    switch (number) {
        NAME(SYS_userfaultfd);
        NAME(SYS_futex);
        NAME(SYS_statx);
        NAME(SYS_gettid);
        NAME(SYS_tgkill);
        NAME(SYS_getrandom);
        NAME(SYS_clone3);
        NAME(SYS_copy_file_range);
        NAME(SYS_seccomp);
        NAME(SYS_landlock_create_ruleset);
        NAME(SYS_landlock_add_rule);
        NAME(SYS_landlock_restrict_self);
        NAME(SYS_capget);
        NAME(SYS_capset);
    default:
        return NULL;
    }
}

long syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    long a[6];
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    char buffer[64];
    // Locks: when these fail, nothing is left to be tested.
    if (number != SYS_futex &&
        fails("syscall", named(syscall_name(number), number, buffer, sizeof buffer)))
        return fail();
    return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
