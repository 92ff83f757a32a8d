//! The main thread's loop while the guest runs: waits for the run's end, for timers of periodic actions, and for changes of policy
//! scripts. It must wait for nothing else, so that the watchdog works whatever the other threads do.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use hmm_backend::limits::Refusal;
use hmmvisor_policies::FileWatch;
use vmm_sys_util::timerfd::TimerFd;

use crate::ending::failure::Failure;
use crate::ending::{End, Ending, LOOK_AGAIN};
use crate::run::policy_scripts::{Reloader, Script};

/// Waits in a row that may fail before that is an error; each takes a millisecond.
const FAILURES: u32 = 1000;

// The number attached to a descriptor's events says what the descriptor is.
const ENDED: u32 = 0;
/// The first periodic action; the others follow.
const PERIODIC: u32 = 1;
/// The first script's file; the others follow.
const SCRIPTS: u32 = 1000;

/// An action that the main thread repeats.
pub struct Periodic<'a> {
    every: Duration,
    action: Box<dyn FnMut() + 'a>,
}

impl<'a> Periodic<'a> {
    /// Makes a periodic action. It happens for the first time after one period.
    pub fn new(every: Duration, action: impl FnMut() + 'a) -> Periodic<'a> {
        Periodic {
            every,
            action: Box::new(action),
        }
    }
}

/// Ends the run when there has been no sign of life of the guest for `limit` seconds. `signs` counts them; none while the
/// machine is paused.
pub fn watchdog<'a>(
    limit: u64,
    signs: impl Fn() -> Option<u64> + 'a,
    ending: &'a Ending,
) -> Periodic<'a> {
    let mut watchdog = GuestWatchdog::new(limit, signs);
    Periodic::new(Duration::from_secs(1), move || {
        if watchdog.tick() {
            ending.set(End::Failed(Failure::Hang(limit)));
        }
    })
}

struct GuestWatchdog<'a> {
    /// How long the guest may be quiet, in seconds.
    limit: u64,
    /// Counts the guest's signs of life; none while the machine is paused.
    signs: Box<dyn Fn() -> Option<u64> + 'a>,
    /// Their number at the last tick.
    before: Option<u64>,
    /// Seconds without a sign.
    quiet: u64,
}

impl<'a> GuestWatchdog<'a> {
    fn new(limit: u64, signs: impl Fn() -> Option<u64> + 'a) -> GuestWatchdog<'a> {
        GuestWatchdog {
            limit,
            before: signs(),
            signs: Box::new(signs),
            quiet: 0,
        }
    }

    /// Counts another second; returns whether the guest has been quiet for too long.
    fn tick(&mut self) -> bool {
        let now = (self.signs)();
        self.quiet = if now.is_some() && now == self.before {
            self.quiet + 1
        } else {
            0
        };
        self.before = now;
        self.quiet >= self.limit
    }
}

/// Waits until the run has ended, whatever ends it, and returns why.
pub fn wait(
    ending: &Arc<Ending>,
    periodic: Vec<Periodic<'_>>,
    scripts: &[Script],
    reloader: Option<&Reloader>,
) -> End {
    if let Err(error) = try_wait(ending, periodic, scripts, reloader) {
        ending.set(End::Failed(Failure::EventLoop(error)));
    }
    ending.get().expect("waited until there is one").clone()
}

fn try_wait(
    ending: &Arc<Ending>,
    periodic: Vec<Periodic<'_>>,
    scripts: &[Script],
    reloader: Option<&Reloader>,
) -> Result<(), String> {
    let new_timer = |every| {
        let mut timer =
            TimerFd::new().map_err(|error| cause(&event_manager::Error::EventFd(error)))?;
        let set = timer.reset(every, Some(every));
        set.map(|()| timer)
            .map_err(|error| cause(&event_manager::Error::EventFd(error)))
    };
    let periodic = periodic
        .into_iter()
        .map(|it| new_timer(it.every).map(|timer| (it.action, timer)))
        .collect::<Result<_, _>>()?;
    let mut manager = EventManager::new().map_err(|error| cause(&error))?;
    manager.add_subscriber(Waiter {
        ending,
        periodic,
        scripts,
        reloader,
        error: None,
        failures: 0,
    });
    let mut failures = 0;
    while ending.get().is_none() {
        // Looks at the end itself, also without an event: the system may have refused it.
        let begin = Instant::now();
        match manager.run_with_timeout(LOOK_AGAIN.as_millis() as i32) {
            // Interrupted, which the event manager does not distinguish from a timeout. The pause avoids a busy loop.
            Ok(0) if begin.elapsed() < LOOK_AGAIN => std::thread::sleep(Duration::from_millis(1)),
            Ok(_) => failures = 0,
            // Interrupted, for instance because the process was stopped and continued.
            Err(_) if failures < FAILURES => {
                failures += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(cause(&error)),
        }
    }
    Ok(())
}

/// Returns the error as text, with the limit that caused it.
fn cause(error: &event_manager::Error) -> String {
    let errno = match error {
        event_manager::Error::Epoll(errno) | event_manager::Error::EventFd(errno) => errno.errno(),
        _ => return error.to_string(),
    };
    Refusal::from(io::Error::from_raw_os_error(errno)).to_string()
}

struct Waiter<'a> {
    ending: &'a Arc<Ending>,
    periodic: Vec<(Box<dyn FnMut() + 'a>, TimerFd)>,
    scripts: &'a [Script],
    reloader: Option<&'a Reloader>,
    error: Option<event_manager::Error>,
    /// Failed calls in a row.
    failures: u32,
}

impl Waiter<'_> {
    /// Counts a failed read of a descriptor, which stays readable: pauses, to avoid a busy loop, and ends the run after too many.
    fn failed(&mut self, what: &str, error: &io::Error) {
        self.failures += 1;
        if self.failures > FAILURES {
            self.ending.event_failed(what, error);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl MutEventSubscriber for Waiter<'_> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut add = |source: Option<&dyn std::os::fd::AsRawFd>, what| {
            let Some(source) = source else { return };
            let events = Events::with_data_raw(source.as_raw_fd(), what, EventSet::IN);
            if let Err(error) = ops.add(events) {
                self.error.get_or_insert(error);
            }
        };
        add(Some(self.ending.as_ref()), ENDED);
        for ((_, timer), what) in self.periodic.iter().zip(PERIODIC..) {
            add(Some(timer), what);
        }
        for (script, what) in self.scripts.iter().zip(SCRIPTS..) {
            add(script.watch.as_ref().map(|watch| watch as _), what);
        }
        if let Some(error) = self.error.take() {
            // Without its events the loop would never wake.
            self.ending
                .set(End::Failed(Failure::EventLoop(cause(&error))));
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        match events.data() {
            what @ PERIODIC..SCRIPTS => {
                if let Some((action, timer)) = self.periodic.get_mut((what - PERIODIC) as usize) {
                    match timer.wait() {
                        Ok(_) => {
                            self.failures = 0;
                            action();
                        }
                        Err(error) => self.failed("reading a timer", &error.into()),
                    }
                }
            }
            what @ SCRIPTS.. => {
                let index = (what - SCRIPTS) as usize;
                if let (Some(script), Some(reloader)) = (self.scripts.get(index), self.reloader) {
                    match script.watch.as_ref().is_some_and(FileWatch::changed) {
                        true => reloader.reload(index),
                        // Another file of the folder has changed, or the system refuses to say which; the pause avoids a busy loop.
                        false => std::thread::sleep(Duration::from_millis(1)),
                    }
                }
            }
            // The run has ended: the loop's condition sees it.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_watchdog_waits_for_that_many_quiet_seconds_in_a_row() {
        let signs = Cell::new(0);
        let mut watchdog = GuestWatchdog::new(3, || Some(signs.get()));
        let mut ticks = |lives: &[bool]| {
            let tick = |lives: &bool| {
                signs.set(signs.get() + u64::from(*lives));
                watchdog.tick()
            };
            lives.iter().map(tick).collect::<Vec<_>>()
        };
        assert_eq!(ticks(&[false, false, true, false, false]), [false; 5]);
        assert_eq!(
            ticks(&[true, false, false, false]),
            [false, false, false, true]
        );
    }
}
