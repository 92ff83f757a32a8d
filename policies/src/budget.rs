//! What one event may cost: instructions, counted at loops and calls, and time.
//!
//! The interpreter calls [`interrupt`] at every backward jump, call and return, and while it matches patterns. An event
//! runs on one thread from begin to end, so what is left of its budget is a thread's own variable: no lock, no
//! lookup. Once it is used up every further interrupt fails as well, so a script that catches the error gets no
//! further than its next loop, call or return.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::time::Duration;

use mlua::ffi::{self, lua_State};

/// Looking at the clock costs more than the rest.
const LOOK_EVERY: u32 = 8;

/// Bounds of one event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Loops and calls.
    pub(crate) steps: u32,
    /// Time on a clock and then as much again on a CPU: a thread that was not running has not been slow.
    pub(crate) time: Duration,
}

/// Why an event was stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Overrun {
    Steps(u32),
    Time(Duration),
}

thread_local! {
    static STEPS_LEFT: Cell<u32> = const { Cell::new(u32::MAX) };
    static EVENT: RefCell<Event> = const { RefCell::new(Event::NONE) };
}

struct Event {
    budget: Budget,
    /// When it began, as soon as somebody looks.
    until: Option<Duration>,
    cpu_until: Option<Duration>,
    overrun: Option<Overrun>,
}

impl Event {
    const NONE: Event = Event {
        budget: Budget {
            steps: u32::MAX,
            time: Duration::MAX,
        },
        until: None,
        cpu_until: None,
        overrun: None,
    };

    /// Whether the event's time is over.
    fn late(&mut self) -> bool {
        let Some(until) = self.until else {
            // Every event looks once, most never again: the coarse clock is the cheap one. It is late by a timer tick at
            // most; an event that is therefore thought to be too long still has all of its CPU time.
            self.until = Some(clock(libc::CLOCK_MONOTONIC_COARSE) + self.budget.time);
            return false;
        };
        if clock(libc::CLOCK_MONOTONIC) < until {
            return false;
        }
        let cpu = clock(libc::CLOCK_THREAD_CPUTIME_ID);
        cpu >= *self.cpu_until.get_or_insert(cpu + self.budget.time)
    }
}

/// Runs `event` within the budget. Also returns what it ran out of, if it did.
pub(crate) fn within<T>(budget: Budget, event: impl FnOnce() -> T) -> (T, Option<Overrun>) {
    STEPS_LEFT.set(budget.steps);
    EVENT.with_borrow_mut(|it| {
        (it.budget, it.until, it.cpu_until, it.overrun) = (budget, None, None, None);
    });
    let result = event();
    // Whatever runs later without a budget, such as a destructor, is not to be stopped.
    STEPS_LEFT.set(u32::MAX);
    (result, EVENT.with_borrow(|it| it.overrun))
}

/// Takes a step. Whether there was one left.
fn step() -> bool {
    let left = STEPS_LEFT.get();
    if left == 0 {
        return false;
    }
    STEPS_LEFT.set(left - 1);
    !left.is_multiple_of(LOOK_EVERY) || look(left)
}

#[cold]
fn look(left: u32) -> bool {
    EVENT.with_borrow_mut(|event| {
        // Without a budget: not an event.
        if event.budget.time == Duration::MAX {
            return true;
        }
        let late = event.late();
        if late || left == LOOK_EVERY {
            // The few steps that would be left are not worth a look of their own.
            STEPS_LEFT.set(0);
            event.overrun = Some(match late {
                true => Overrun::Time(event.budget.time),
                false => Overrun::Steps(event.budget.steps),
            });
        }
        !late && left != LOOK_EVERY
    })
}

/// The interpreter's callback. It has no destructors to run when the error unwinds through it.
pub(crate) unsafe extern "C-unwind" fn interrupt(state: *mut lua_State, gc: c_int) {
    // During garbage collection nothing may be raised.
    if gc >= 0 || step() {
        return;
    }
    // SAFETY: the interpreter calls this between two instructions of a running function, where raising an error
    // is allowed; room for the message is asked for first.
    unsafe {
        ffi::lua_rawcheckstack(state, 3);
        ffi::luaL_where(state, 0);
        if ffi::lua_objlen(state, -1) == 0 {
            // In a library function that matches patterns: where it was called.
            ffi::lua_settop(state, -2);
            ffi::luaL_where(state, 1);
        }
        ffi::lua_pushstring(state, c"stopped: it takes too long".as_ptr());
        ffi::lua_concat(state, 2);
        ffi::lua_error(state);
    }
}

/// What a clock of the kernel says; that of CPU time is the calling thread's.
fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one structure.
    unsafe { libc::clock_gettime(id, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
