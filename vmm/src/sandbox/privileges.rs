//! The privileges that a thread gives up for good: thin wrappers around system calls.

use std::io;

/// A set of Linux capabilities, one bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Capabilities(u64);

impl Capabilities {
    pub(super) const NONE: Capabilities = Capabilities(0);
    /// Opens files whatever their mode says (`CAP_DAC_OVERRIDE`).
    pub(super) const ANY_FILE: Capabilities = Capabilities(1 << 1);
    /// Opens a userfaultfd that sees the kernel's faults (`CAP_SYS_PTRACE`).
    pub(super) const USERFAULTFD: Capabilities = Capabilities(1 << 19);

    fn words(self) -> [u32; 2] {
        [self.0 as u32, (self.0 >> 32) as u32]
    }
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words of each set.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    /// 0 is the calling thread.
    thread: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Has the calling thread, and those that it will start, never gain a privilege by executing a program.
pub(super) fn gain_no_more() -> io::Result<()> {
    // SAFETY: takes integers.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives up all capabilities of the calling thread but those in `kept` that it has.
pub(super) fn give_up(kept: Capabilities) -> io::Result<()> {
    let kept = kept.words();
    let mut words = held()?;
    for (word, kept) in words.iter_mut().zip(kept) {
        word.effective &= kept;
        word.permitted &= kept;
        word.inheritable = 0;
    }
    set(&words)
}

/// Calls `look` while the calling thread's capabilities have no effect.
pub(super) fn without<T>(look: impl FnOnce() -> T) -> io::Result<T> {
    let held = held()?;
    set(&held.map(|word| Word {
        effective: 0,
        ..word
    }))?;
    let seen = look();
    set(&held)?;
    Ok(seen)
}

fn held() -> io::Result<[Word; 2]> {
    let mut header = header();
    let mut words = [Word::default(); 2];
    // SAFETY: the kernel fills the two words that this version of the structures has.
    match unsafe { libc::syscall(libc::SYS_capget, &mut header, words.as_mut_ptr()) } {
        0 => Ok(words),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(words: &[Word; 2]) -> io::Result<()> {
    let mut header = header();
    // SAFETY: the kernel reads the two words that this version of the structures has.
    match unsafe { libc::syscall(libc::SYS_capset, &mut header, words.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn header() -> Header {
    Header {
        version: VERSION,
        thread: 0,
    }
}
