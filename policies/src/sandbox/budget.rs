//! The budget of one event: steps, counted at loops and calls, time, and the size of the texts it makes.
//!
//! The interpreter calls [`interrupt`] at every backward jump, call and return, and while it matches patterns. Code that can
//! run long between two such steps does *work*, estimated as the nanoseconds that it takes at most: a library function declares
//! its work before it begins ([`charge`]), and every allocation counts as work ([`allocated`]). After enough work the
//! clock is read, as after some steps.
//!
//! An event runs on one thread from begin to end, so what is left of its budget is a thread's own variable: no lock, no
//! lookup. Once it is used up every further step fails as well, so a script that catches the error gets no further
//! than its next loop, call or return. In code without any of these, the next large allocation fails.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use mlua::Lua;
use mlua::ffi::{self, lua_State};

/// Steps between two looks at the clock, a power of two. Looking at the clock costs more than the rest.
const LOOK_EVERY: u32 = 8;
/// Work between two looks.
const LOOK_AFTER: u64 = 50_000;
/// Work of an instruction, when each of them counts: their texts may be compared between two of them.
const INSTRUCTION: u64 = LOOK_AFTER / 16;
/// Work of a step of pattern matching from which on each step looks at the clock.
const LONG_STEP: u64 = 4096;
/// Two texts of this size are compared within a fraction of a microsecond, so that a file full of comparisons is within
/// the time.
const LARGE_TEXT: usize = 4096;
/// Bytes that an event may still allocate when it has to end: enough for an error's message.
const LAST_MEMORY: usize = 128 << 10;

/// Bounds of one event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Loops and calls.
    pub(crate) steps: u32,
    /// Time on a clock and of a CPU: a thread that was not running has not been slow.
    pub(crate) time: Duration,
    /// Bytes of the largest text that it may make.
    pub(crate) text: usize,
}

/// The units of work between which the clock is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Attention {
    /// Steps: between two of them, little can be done.
    Steps,
    /// Instructions: there may be large texts, and comparing two of them is one instruction.
    Instructions,
}

/// Why an event was stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Overrun {
    Steps(u32),
    Time(Duration),
    Text(usize),
}

thread_local! {
    static STEPS_LEFT: Cell<u32> = const { Cell::new(u32::MAX) };
    /// Bits of a step's number: when none of them is set, the clock is read.
    static LOOK_MASK: Cell<u32> = const { Cell::new(LOOK_EVERY - 1) };
    /// Work until the clock is read again.
    static WORK_LEFT: Cell<u64> = const { Cell::new(0) };
    /// Whether there was so much work since the last reading of the clock that the time may be over now.
    static WORKED: Cell<bool> = const { Cell::new(false) };
    /// Whether a large text was made.
    static LARGE: Cell<bool> = const { Cell::new(false) };
    /// A tick of the coarse clock, and an upper bound of the CPU time that this thread had used at its end.
    static TICK: Cell<(Duration, Duration)> = const { Cell::new((Duration::ZERO, Duration::ZERO)) };
    /// The event that runs on this thread; null between events.
    static EVENT: Cell<*mut Event> = const { Cell::new(ptr::null_mut()) };
}

struct Event {
    budget: Budget,
    /// The interpreter it runs in, to which nothing refers after the event.
    lua: *const Lua,
    /// Set when it begins, which is when it first takes a step or works.
    until: Option<Duration>,
    cpu_until: Duration,
    overrun: Option<Overrun>,
    /// Set by [`Event::stop`].
    last: Option<Last>,
}

/// What an event that has to end may still allocate.
#[derive(Clone, Copy)]
struct Last {
    /// The limit on memory that there was before.
    limit: usize,
    /// Bytes left.
    bytes: usize,
}

impl Event {
    /// Begins, unless it has begun.
    fn begin(&mut self) -> bool {
        if self.until.is_some() {
            return false;
        }
        // Most events look at a clock once, here: the coarse clock is the cheap one. The clock of CPU time is expensive,
        // and is read once a tick. Both are late by a tick at most; for CPU time that is made good.
        let now = clock(libc::CLOCK_MONOTONIC_COARSE);
        let (tick, mut cpu) = TICK.get();
        if tick != now {
            cpu = clock(libc::CLOCK_THREAD_CPUTIME_ID) + tick_length();
            TICK.set((now, cpu));
        }
        self.until = Some(now.saturating_add(self.budget.time));
        self.cpu_until = cpu.saturating_add(self.budget.time);
        true
    }

    /// Whether its time is over.
    fn is_late(&self) -> bool {
        self.until.is_some_and(|until| {
            clock(libc::CLOCK_MONOTONIC) >= until
                && clock(libc::CLOCK_THREAD_CPUTIME_ID) >= self.cpu_until
        })
    }

    /// Lets nothing more be done.
    fn stop(&mut self, overrun: Overrun) {
        STEPS_LEFT.set(0);
        self.overrun.get_or_insert(overrun);
        // Running out of steps happens at a step, where an error can be raised.
        if !matches!(overrun, Overrun::Steps(_)) && self.last.is_none() {
            let bytes = LAST_MEMORY;
            self.last = self.leave(bytes).map(|limit| Last { limit, bytes });
        }
    }

    /// Counts an allocation. After [`Event::stop`] the limit follows: the collector may free texts as fast as the
    /// script makes them, and a limit on what is in use would not be reached.
    fn allocated(&mut self, bytes: usize) {
        let Some(last) = self.last else {
            return;
        };
        let bytes = last.bytes.saturating_sub(bytes);
        self.leave(bytes);
        self.last = Some(Last { bytes, ..last });
    }

    /// Lets the interpreter allocate `bytes` more; returns its limit until now.
    fn leave(&self, bytes: usize) -> Option<usize> {
        // SAFETY: the interpreter outlives the event, whose `within` borrows it; this thread has it to itself.
        let lua = unsafe { &*self.lua };
        lua.set_memory_limit(lua.used_memory() + bytes).ok()
    }
}

/// The result of an event.
pub(crate) struct Outcome<T> {
    pub(crate) result: T,
    /// The part of the budget that was used up, if any.
    pub(crate) overrun: Option<Overrun>,
    /// Whether it has made a large text: from then on, [`Attention::Instructions`] is needed.
    pub(crate) large_text: bool,
}

/// Runs `event` within the budget.
pub(crate) fn within<T>(
    lua: &Lua,
    budget: Budget,
    attention: Attention,
    event: impl FnOnce() -> T,
) -> Outcome<T> {
    let mut it = Event {
        budget,
        lua,
        until: None,
        cpu_until: Duration::MAX,
        overrun: None,
        last: None,
    };
    let is_closely_watched = attention == Attention::Instructions;
    if is_closely_watched {
        it.begin();
    }
    STEPS_LEFT.set(budget.steps);
    LOOK_MASK.set(LOOK_EVERY - 1);
    WORK_LEFT.set(0);
    WORKED.set(is_closely_watched);
    LARGE.set(false);
    EVENT.set(&raw mut it);
    let end = End;
    let result = event();
    drop(end);
    if let Some(last) = it.last {
        let _ = lua.set_memory_limit(last.limit);
    }
    Outcome {
        result,
        overrun: it.overrun,
        large_text: LARGE.get(),
    }
}

/// Ends this thread's event when it is dropped. Code that runs later without a budget, such as a destructor, must not be
/// stopped.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        EVENT.set(ptr::null_mut());
        STEPS_LEFT.set(u32::MAX);
    }
}

/// Applies `read` to the event that runs on this thread; returns `without` if there is none.
fn of_event<R>(without: R, read: impl FnOnce(&mut Event) -> R) -> R {
    let event = EVENT.get();
    if event.is_null() {
        return without;
    }
    // SAFETY: `within` has put it there, waits for the event, and takes it away before it ends. Nothing that is done with
    // it calls the interpreter's functions, which could come back here.
    read(unsafe { &mut *event })
}

/// Returns the part of the budget that the event has used up. Called when its function has returned: a value that came too late does not count.
pub(crate) fn finish() -> Option<Overrun> {
    if STEPS_LEFT.get() != 0 && !WORKED.get() {
        return None;
    }
    of_event(None, |event| {
        let until = event.until.unwrap_or(Duration::MAX);
        if event.overrun.is_none()
            && clock(libc::CLOCK_MONOTONIC_COARSE) >= until
            && event.is_late()
        {
            event.overrun = Some(Overrun::Time(event.budget.time));
        }
        event.overrun
    })
}

/// Takes a step; returns whether there was one left.
fn step() -> bool {
    let left = STEPS_LEFT.get();
    if left == 0 {
        return false;
    }
    STEPS_LEFT.set(left - 1);
    left & LOOK_MASK.get() != 0 || look(left)
}

#[cold]
fn look(left: u32) -> bool {
    of_event(true, |event| {
        // An event that has just begun cannot be late.
        let fresh = event.begin() || left == event.budget.steps;
        if !fresh && event.is_late() {
            event.stop(Overrun::Time(event.budget.time));
        } else if left <= LOOK_EVERY {
            // The few steps that would be left are not worth a look of their own.
            event.stop(Overrun::Steps(event.budget.steps));
        }
        event.overrun.is_none()
    })
}

/// The most work that one library call may be: a fifth of the event's time.
pub(crate) fn most_work() -> u64 {
    of_event(u64::MAX, |event| {
        let time = event.budget.time;
        let nanos = time.as_secs().saturating_mul(1_000_000_000);
        nanos.saturating_add(time.subsec_nanos().into()) / 5
    })
}

/// Counts work that was done or is about to be done; returns whether there is time for it.
pub(crate) fn charge(work: u64) -> bool {
    let left = WORK_LEFT.get();
    if work < left {
        WORK_LEFT.set(left - work);
        return STEPS_LEFT.get() != 0;
    }
    look_after_work()
}

#[cold]
fn look_after_work() -> bool {
    WORK_LEFT.set(LOOK_AFTER);
    of_event(true, |event| {
        if !event.begin() {
            WORKED.set(true);
            if event.is_late() {
                event.stop(Overrun::Time(event.budget.time));
            }
        }
        event.overrun.is_none()
    })
}

/// Sets how much work a step is from now on.
pub(crate) fn long_steps(work: u64) {
    if work >= LONG_STEP {
        LOOK_MASK.set(0);
    }
}

/// The interpreter's callback for steps. It has no destructors to run when the error unwinds through it.
pub(crate) unsafe extern "C-unwind" fn interrupt(state: *mut lua_State, gc: c_int) {
    // During garbage collection nothing may be raised.
    if gc >= 0 || step() {
        return;
    }
    // SAFETY: the interpreter calls this between two instructions of a running function.
    unsafe { raise(state) }
}

/// The interpreter's callback for each instruction, if [`Attention::Instructions`] is set.
pub(crate) unsafe extern "C-unwind" fn instruction(state: *mut lua_State, _: *mut ffi::lua_Debug) {
    if !charge(INSTRUCTION) {
        // SAFETY: as in `interrupt`.
        unsafe { raise(state) }
    }
}

/// The interpreter's callback for allocations. It must not raise an error.
pub(crate) unsafe extern "C-unwind" fn allocated(
    _: *mut lua_State,
    _: *mut c_void,
    _: usize,
    bytes: usize,
    _: u8,
    kind: c_int,
    _: c_int,
) {
    if STEPS_LEFT.get() == 0 {
        of_event((), |event| event.allocated(bytes));
    }
    if kind == ffi::LUA_TSTRING && bytes > LARGE_TEXT {
        LARGE.set(true);
        of_event((), |event| {
            let text = event.budget.text;
            if bytes > text.saturating_add(1 << 10) {
                event.stop(Overrun::Text(text));
            }
        });
    }
    // Copying, page faults, and later the collector's work.
    charge(bytes as u64 / 2);
}

/// Raises the error that ends an event.
///
/// # Safety
///
/// Only where the interpreter lets an error be raised; the caller has nothing to drop.
pub(crate) unsafe fn raise(state: *mut lua_State) {
    // SAFETY: as the caller promises; room for the message is asked for first.
    unsafe {
        ffi::lua_rawcheckstack(state, 3);
        ffi::luaL_where(state, 0);
        if ffi::lua_objlen(state, -1) == 0 {
            // In a library function: where it was called.
            ffi::lua_settop(state, -2);
            ffi::luaL_where(state, 1);
        }
        ffi::lua_pushstring(state, c"stopped: it takes too long".as_ptr());
        ffi::lua_concat(state, 2);
        ffi::lua_error(state);
    }
}

/// The time of a clock.
fn clock(id: libc::clockid_t) -> Duration {
    // SAFETY: writes one structure.
    time_of(|time| unsafe { libc::clock_gettime(id, time) })
}

/// How long the coarse clock stands still.
fn tick_length() -> Duration {
    static LENGTH: OnceLock<Duration> = OnceLock::new();
    *LENGTH.get_or_init(|| {
        // SAFETY: writes one structure.
        time_of(|time| unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, time) })
    })
}

/// The time that a call writes.
fn time_of(call: impl FnOnce(&mut libc::timespec) -> c_int) -> Duration {
    let (tv_sec, tv_nsec) = (0, 0);
    let mut time = libc::timespec { tv_sec, tv_nsec };
    call(&mut time);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
