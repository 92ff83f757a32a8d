//! Signals of the processes that tests start.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the process heed signals. A shell that runs these tests in the background has them ignore SIGINT, commands inherit that, and
/// `hmmvisor` goes on ignoring what was ignored when it started.
pub fn heed_signals(command: &mut Command) {
    let heed = || {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
            // SAFETY: sets a disposition, in the child.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls that are allowed between fork and exec, and touches no memory.
    unsafe { command.pre_exec(heed) };
}
