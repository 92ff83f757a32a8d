//! What the main thread does while the guest runs: wait for its end, for signals, for the time to show
//! progress.

use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::timerfd::TimerFd;

use crate::control::Control;
use crate::ending::{End, Ending};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::signals::Signals;

/// Runs shorter than this show no progress.
const FIRST_TICK: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

// What a descriptor is, attached to its events.
const ENDED: u32 = 0;
const SIGNAL: u32 = 1;
const TIMER: u32 = 2;

/// Waits until the run has ended, whatever ends it, and returns why.
pub fn wait(
    ending: &Arc<Ending>,
    signals: Option<&Signals>,
    progress: Option<(&Progress, &Control)>,
) -> End {
    if let Err(error) = try_wait(ending, signals, progress) {
        ending.set(End::Failed(Failure::EventLoop(error)));
    }
    if let Some((progress, _)) = progress {
        progress.finish();
    }
    ending.get().expect("waited until there is one").clone()
}

fn try_wait(
    ending: &Arc<Ending>,
    signals: Option<&Signals>,
    progress: Option<(&Progress, &Control)>,
) -> Result<(), String> {
    let timer = match progress {
        Some(_) => {
            let mut timer = TimerFd::new().map_err(|error| error.to_string())?;
            timer
                .reset(FIRST_TICK, Some(TICK))
                .map_err(|error| error.to_string())?;
            Some(timer)
        }
        None => None,
    };
    let mut manager = EventManager::new().map_err(|error| error.to_string())?;
    manager.add_subscriber(Waiter {
        ending,
        signals,
        progress,
        timer,
        error: None,
    });
    while ending.get().is_none() {
        manager.run().map_err(|error| error.to_string())?;
    }
    Ok(())
}

struct Waiter<'a> {
    ending: &'a Arc<Ending>,
    signals: Option<&'a Signals>,
    progress: Option<(&'a Progress, &'a Control)>,
    timer: Option<TimerFd>,
    error: Option<event_manager::Error>,
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
        add(self.signals.map(|signals| signals as _), SIGNAL);
        add(self.timer.as_ref().map(|timer| timer as _), TIMER);
        if let Some(error) = self.error.take() {
            // Nothing would ever wake the loop.
            self.ending
                .set(End::Failed(Failure::EventLoop(error.to_string())));
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        match events.data() {
            SIGNAL => {
                if let Some(signal) = self.signals.and_then(Signals::take) {
                    self.ending.set(End::Signal(signal));
                }
            }
            TIMER => {
                // Only to make it unreadable until the next tick.
                let _ = self.timer.as_mut().map(TimerFd::wait);
                if let Some((progress, control)) = self.progress {
                    progress.show(control.progress());
                }
            }
            // The run has ended: the loop looks for itself.
            _ => {}
        }
    }
}
