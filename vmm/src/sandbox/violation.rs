//! What becomes of a system call that the table does not allow: the message, and the end of the process.
//!
//! The filters answer with `SECCOMP_RET_TRAP`: the kernel does not execute the call, and the thread that has made it gets SIGSYS at
//! once, whose handler names the thread and the call and ends the process. That needs no other thread, which may be
//! hung or taken over, and says more than `SECCOMP_RET_KILL_PROCESS`, after which a shell prints "Bad system call". A
//! thread that has blocked the signal, or whose handler makes a forbidden call itself, is killed by the kernel, and the process with it.

use std::fmt;
use std::io;
use std::mem;
use std::sync::OnceLock;

use super::names;
use crate::messages::last_words;

/// The exit code of a run that a violation has ended: what a shell shows for a process that SIGSYS has killed.
pub const EXIT_CODE: i32 = 128 + libc::SIGSYS;

/// `SYS_SECCOMP`: the signal's cause is a filter.
const BY_FILTER: libc::c_int = 1;

/// Puts the terminal back before the process ends; set once.
static BEFORE_THE_END: OnceLock<fn()> = OnceLock::new();

/// The main thread in messages. The kernel calls it by the program's name.
pub(super) const MAIN: &str = "main";

/// A system call: its number and its first three arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) number: i64,
    pub(super) arguments: [u64; 3],
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second, third] = self.arguments;
        let name = names::name(self.number).unwrap_or("unknown");
        write!(
            f,
            "{name} ({}) with arguments {first:#x}, {second:#x}, {third:#x}",
            self.number
        )
    }
}

/// Has violations end the process from now on, with `before_the_end` called last.
///
/// # Errors
/// The kernel's.
pub(super) fn end_the_process(before_the_end: fn()) -> io::Result<()> {
    // The first one stays: it is the same in all uses.
    let _ = BEFORE_THE_END.set(before_the_end);
    // SAFETY: a structure of integers and pointers; all zeros is valid.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_sigsys as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler does only what is allowed in one.
    match unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the process with a message. May be called from a signal handler.
fn end(message: fmt::Arguments<'_>, code: i32) -> ! {
    last_words(message);
    if let Some(before_the_end) = BEFORE_THE_END.get() {
        before_the_end();
    }
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(code) }
}

/// Ends the process because a thread cannot be confined: it must not begin.
pub(super) fn refuse(thread: &str, why: &dyn fmt::Display) -> ! {
    end(
        format_args!("confining thread {thread}: {why}; `--sandbox off` runs without confinement"),
        1,
    )
}

extern "C" fn on_sigsys(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    /// The part of `siginfo_t` that the kernel fills for SIGSYS.
    #[repr(C)]
    struct SigSys {
        signal: libc::c_int,
        errno: libc::c_int,
        code: libc::c_int,
        address: usize,
        call: libc::c_int,
    }
    // SAFETY: the kernel passes a valid structure, which is larger and as aligned as this one.
    let info = unsafe { &*info.cast::<SigSys>() };
    if info.code != BY_FILTER {
        // Another process has sent the signal: it does what it does by default.
        // SAFETY: may be called from a signal handler.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        return;
    }
    // SAFETY: the kernel passes the registers of the interrupted thread.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let argument = |register: libc::c_int| registers[register as usize] as u64;
    let call = Call {
        number: info.call.into(),
        arguments: [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX].map(argument),
    };
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes the thread's name, at most 16 bytes with the final zero.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    // SAFETY: have no arguments and cannot fail.
    let name = match unsafe { libc::gettid() == libc::getpid() } {
        true => MAIN,
        false => str::from_utf8(&name[..length]).unwrap_or("?"),
    };
    end(
        format_args!(
            "thread {name} made the system call {call}, which the sandbox does not allow; \
             the call was not executed, and the run has ended. Either the guest, a disk or a script has taken over the \
             thread, or this is a bug in Hmmvisor: report it with this line. `--sandbox log` tells such calls and lets them pass"
        ),
        EXIT_CODE,
    )
}
