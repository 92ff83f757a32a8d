//! SIGINT, SIGTERM, SIGHUP and the other signals that end a process from outside, taken by a thread of their own, so that they end a
//! run whatever its other threads are doing, and the terminal is as it was.
//!
//! Before the guest runs, the first signal ends the process at once. From [`Signals::on_signal`] on, the first one asks the run to
//! end in good order; if the process is still there after [`ORDERLY_END`], or when a second signal comes, the thread ends it.
//! What was ignored when the process began (by `nohup`, for instance) stays ignored. The same thread sees to the
//! terminal when the process is stopped and continued.

use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hmmvisor_devices::thread;
use parking_lot::{Mutex, MutexGuard};

use crate::console::terminal;
use crate::ending::LOOK_AGAIN;
use crate::messages::last_words;

/// How long a run may take to end after the first signal. The process is gone within a second after it: what is left is for the
/// kernel, which has the guest's memory to free.
pub const ORDERLY_END: Duration = Duration::from_millis(600);

/// The same signal twice within this time counts once: `timeout` sends it to its command, and then to its group, which the
/// command is in.
const SAME: Duration = Duration::from_millis(100);

/// Signals that end a run; SIGHUP has policy scripts reloaded if there are any. Those that a thread causes itself are not among
/// them: the terminal restores itself for those.
const ENDING: [(libc::c_int, &str); 11] = [
    (libc::SIGINT, "SIGINT"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGHUP, "SIGHUP"),
    (
        libc::SIGXCPU,
        "SIGXCPU: all CPU time is used up that `ulimit -t` allows",
    ),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGPWR, "SIGPWR"),
];

/// Signals of job control. The terminal is restored while the process is stopped.
const JOB_CONTROL: [libc::c_int; 2] = [libc::SIGTSTP, libc::SIGCONT];

/// What a handler has done with a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It has begun to end the run.
    Ends,
    /// It has done something else, and the run goes on.
    GoesOn,
}

type Handler = dyn FnMut(libc::c_int) -> Taken + Send;

/// The thread that takes signals.
#[derive(Clone)]
pub struct Signals(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// None before the guest runs.
    handler: Option<Box<Handler>>,
    /// The first signal that ends the run, and when it came.
    first: Option<(libc::c_int, Instant)>,
}

impl Signals {
    /// Starts the thread. Call it before any other thread is started: the signals are blocked for the calling thread and
    /// all that it will start.
    ///
    /// # Errors
    /// The system has no thread, or no memory for one. Signals then do what they do by default.
    pub fn start() -> io::Result<Signals> {
        let ending = ENDING.into_iter().map(|(signal, _)| signal);
        let ending = ending.filter(|signal| !is_ignored(*signal));
        let stopping = JOB_CONTROL
            .into_iter()
            .filter(|signal| *signal == libc::SIGCONT || !is_ignored(*signal));
        let set = set_of(ending.chain(stopping));
        mask(libc::SIG_BLOCK, &set)?;
        let signals = Signals(Arc::default());
        let (its, taken) = (signals.clone(), set);
        let started = thread::spawn("signals", |_| fail(), move || its.wait_and_handle(&taken));
        match started {
            Ok(_) => Ok(signals),
            Err(error) => {
                mask(libc::SIG_UNBLOCK, &set)?;
                Err(error)
            }
        }
    }

    /// From now on `handler` learns of signals; it must return at once. When it says that the run ends, the process is gone
    /// within a second.
    pub fn on_signal(&self, handler: impl FnMut(libc::c_int) -> Taken + Send + 'static) {
        self.state().handler = Some(Box::new(handler));
    }

    /// Returns when the process must be gone; none before a signal has come.
    fn deadline(&self) -> Option<Instant> {
        self.state().first.map(|(_, at)| at + ORDERLY_END)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Waits for signals and handles each, for as long as the process lives: the thread's body.
    fn wait_and_handle(&self, set: &libc::sigset_t) {
        loop {
            let deadline = self.deadline();
            let limit = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            match wait(set, limit) {
                None => {
                    let first = self.state().first;
                    if let Some((signal, _)) = first.filter(|(_, at)| at.elapsed() >= ORDERLY_END) {
                        end(signal);
                    }
                }
                Some(libc::SIGCONT) => terminal::resume(),
                Some(libc::SIGTSTP) => stop_here(),
                Some(signal) => {
                    let mut state = self.state();
                    let taken = state.handler.as_mut().map(|handler| handler(signal));
                    match (taken, state.first) {
                        (Some(Taken::GoesOn), _) => {}
                        (Some(Taken::Ends), None) => state.first = Some((signal, Instant::now())),
                        (Some(Taken::Ends), Some((first, at)))
                            if first == signal && at.elapsed() < SAME => {}
                        // No handler is there before the guest runs: the first signal ends the process. So does the second one later.
                        (None, _) | (Some(Taken::Ends), Some(_)) => end(signal),
                    }
                }
            }
        }
    }
}

/// Calls `wait`, which waits for at most the given time and says whether it has succeeded, until it has: for at most `most`, and
/// after a signal only until `reserve` before the process must be gone.
pub fn wait_for(
    signals: Option<&Signals>,
    most: Duration,
    reserve: Duration,
    mut wait: impl FnMut(Duration) -> bool,
) -> bool {
    let begin = Instant::now();
    loop {
        let mut until = begin + most;
        if let Some(deadline) = signals.and_then(Signals::deadline) {
            until = until.min(deadline - reserve);
        }
        let left = until.saturating_duration_since(Instant::now());
        if wait(left.min(LOOK_AGAIN)) {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}

/// Returns a signal's name, with its meaning if it is a rare one.
pub fn name(signal: i32) -> String {
    let known = ENDING.into_iter().find(|(number, _)| *number == signal);
    known.map_or_else(|| format!("signal {signal}"), |(_, name)| name.to_owned())
}

/// Ends the process, whatever its other threads are doing.
fn end(signal: libc::c_int) -> ! {
    terminal::restore();
    if stderr_has_room() {
        let name = name(signal);
        last_words(format_args!(
            "interrupted by {name} (ended without a summary)"
        ));
    }
    // SAFETY: ends the process without running anything of it, which may hang.
    unsafe { libc::_exit(128 + signal) }
}

/// Ends the process because this thread has panicked: without it nothing else would.
fn fail() -> ! {
    terminal::restore();
    // SAFETY: ends the process without running anything of it, which may hang.
    unsafe { libc::_exit(1) }
}

/// Whether a short text can be written to standard error without waiting.
fn stderr_has_room() -> bool {
    let mut stderr = libc::pollfd {
        fd: libc::STDERR_FILENO,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one valid structure, as the count says.
    let ready = unsafe { libc::poll(&mut stderr, 1, 0) };
    ready == 1 && stderr.revents & libc::POLLOUT != 0
}

/// Does what SIGTSTP does by default, with the terminal as it was before the run while the process is stopped.
fn stop_here() {
    terminal::restore();
    let set = set_of([libc::SIGTSTP].into_iter());
    // The signal, pending while it is blocked, stops the process when it is unblocked.
    // SAFETY: takes a number.
    unsafe { libc::raise(libc::SIGTSTP) };
    let _ = mask(libc::SIG_UNBLOCK, &set);
    let _ = mask(libc::SIG_BLOCK, &set);
    // Continued. SIGCONT comes, too; but a process of an orphaned group has not been stopped.
    terminal::resume();
}

/// Whether the process ignores a signal.
fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the kernel fills the structure, or fails; nothing is changed.
    if unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: the call succeeded.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Waits for the next of these signals; none if none comes in time, or, rarely, earlier.
fn wait(set: &libc::sigset_t, limit: Option<Duration>) -> Option<libc::c_int> {
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_nsec: limit.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the kernel reads a valid set and, if there is one, a valid time; it writes nothing.
    match unsafe { libc::sigtimedwait(set, ptr::null_mut(), limit) } {
        ..0 => {
            if io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock {
                // Interrupted. The pause avoids a busy loop should that repeat.
                std::thread::sleep(Duration::from_millis(1));
            }
            None
        }
        signal => Some(signal),
    }
}

fn set_of(signals: impl Iterator<Item = libc::c_int>) -> libc::sigset_t {
    // SAFETY: a bitmap; all zeros is valid.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    for signal in signals {
        // SAFETY: the set is valid and the signal exists.
        unsafe { libc::sigaddset(&mut set, signal) };
    }
    set
}

fn mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: changes only which signals this thread takes; the old set is not asked for.
    match unsafe { libc::pthread_sigmask(how, set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
