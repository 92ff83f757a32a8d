//! `--sandbox log`: a thread that is told of each system call which the table does not allow, tells it on standard error, once, and has it
//! go on.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use hmmvisor_devices::thread;

use super::violation::{Call, MAIN};

/// The name of the listening thread, the only one that is not confined.
pub(super) const THREAD: &str = "sandbox-log";

/// The way to the listening thread.
pub(super) struct Listener {
    /// Takes the numbers of new descriptors to listen on. A pipe: threads that are confined already may write.
    to_thread: File,
}

/// `struct seccomp_notif`
#[repr(C)]
#[derive(Default)]
struct Notification {
    id: u64,
    thread: u32,
    flags: u32,
    call: i32,
    architecture: u32,
    instruction: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`
#[repr(C)]
struct Verdict {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`
const CONTINUE: u32 = 1;

vmm_sys_util::ioctl_iowr_nr!(SECCOMP_IOCTL_NOTIF_RECV, b'!' as u32, 0, Notification);
vmm_sys_util::ioctl_iowr_nr!(SECCOMP_IOCTL_NOTIF_SEND, b'!' as u32, 1, Verdict);

impl Listener {
    /// Starts the thread. It lives as long as the process, and is not confined itself.
    pub(super) fn start() -> io::Result<Listener> {
        let (reader, writer) = io::pipe()?;
        let body = move || listen(File::from(OwnedFd::from(reader)));
        thread::spawn(THREAD, |_| {}, body)?;
        Ok(Listener {
            to_thread: OwnedFd::from(writer).into(),
        })
    }

    /// Has the thread listen on the descriptor of a filter.
    pub(super) fn add(&self, filter: OwnedFd) -> io::Result<()> {
        let number = filter.into_raw_fd();
        (&self.to_thread).write_all(&number.to_ne_bytes())
    }
}

fn listen(mut new: File) {
    let mut filters: Vec<OwnedFd> = Vec::new();
    let mut told = BTreeSet::new();
    loop {
        let poll_in = |fd: RawFd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let filters_in = filters.iter().map(|filter| poll_in(filter.as_raw_fd()));
        let mut ready: Vec<_> = [poll_in(new.as_raw_fd())]
            .into_iter()
            .chain(filters_in)
            .collect();
        // SAFETY: valid structures, as many as the count says.
        if unsafe { libc::poll(ready.as_mut_ptr(), ready.len() as libc::nfds_t, -1) } < 0 {
            continue;
        }
        for (filter, ready) in filters.iter().zip(&ready[1..]) {
            if ready.revents & libc::POLLIN != 0 {
                notice(filter, &mut told);
            }
        }
        // No thread is left that has the filter.
        let mut gone = ready[1..]
            .iter()
            .map(|ready| ready.revents & (libc::POLLHUP | libc::POLLERR) != 0);
        filters.retain(|_| !gone.next().unwrap_or(false));
        let mut number = [0; size_of::<RawFd>()];
        if ready[0].revents != 0 && new.read_exact(&mut number).is_ok() {
            // SAFETY: `add` has passed on what it owned.
            filters.push(unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(number)) });
        }
    }
}

/// Takes one notification, tells the call if it is new, and has it go on. A thread that was interrupted meanwhile has no notification any
/// more.
fn notice(filter: &OwnedFd, told: &mut BTreeSet<(String, i32, Option<u64>)>) {
    let mut notification = Notification::default();
    // SAFETY: the kernel fills the structure, which has its layout.
    let received = unsafe {
        vmm_sys_util::ioctl::ioctl_with_mut_ref(
            filter,
            SECCOMP_IOCTL_NOTIF_RECV(),
            &mut notification,
        )
    };
    if received < 0 {
        return;
    }
    let comm = format!("/proc/self/task/{}/comm", notification.thread);
    let name = fs::read_to_string(comm).unwrap_or_default();
    let name = match notification.thread == std::process::id() {
        true => MAIN,
        false => name.trim_end(),
    };
    let [first, second, third, ..] = notification.arguments;
    let kind = name.trim_end_matches(|it: char| it.is_ascii_digit());
    // Requests of one call are as different as calls.
    let request = (i64::from(notification.call) == libc::SYS_ioctl).then_some(second);
    if told.insert((kind.to_owned(), notification.call, request)) {
        let call = Call {
            number: notification.call.into(),
            arguments: [first, second, third],
        };
        tracing::warn!(
            "sandbox: thread {name} makes the system call {call}, which `--sandbox on` does not allow"
        );
    }
    let mut verdict = Verdict {
        id: notification.id,
        value: 0,
        error: 0,
        flags: CONTINUE,
    };
    // SAFETY: the kernel reads the structure, which has its layout. A failure means that the thread does not wait any more.
    unsafe {
        vmm_sys_util::ioctl::ioctl_with_mut_ref(filter, SECCOMP_IOCTL_NOTIF_SEND(), &mut verdict)
    };
}
