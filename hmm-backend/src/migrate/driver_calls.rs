//! Records the driver calls in progress, so that a call that does not return is noticed and reported.

use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::device::Device;
use super::driver::Driver;
use crate::pages::{DeviceId, Page};

/// A driver call in progress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlowCall {
    pub(crate) device: DeviceId,
    /// The first page the call is about.
    pub(crate) page: Page,
    pub(crate) thread: ThreadId,
    pub(crate) since: Duration,
}

/// The most calls watched at a time. Calls do not nest, so it is a number of threads.
const WATCHED: usize = 32;

/// The calls, each with whether it was reported. A fixed array in place, because after a migration has flushed
/// the TLB, each additional page of memory that bookkeeping touches has a cost.
type Calls = [Option<(SlowCall, bool)>; WATCHED];

#[derive(Default)]
pub(crate) struct DriverCalls {
    calls: Mutex<Calls>,
}

thread_local! {
    static THIS_THREAD: ThreadId = std::thread::current().id();
}

impl DriverCalls {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock()
    }

    /// Returns the calls that have lasted at least `limit` and were not returned before.
    pub(crate) fn newly_slow(&self, now: Duration, limit: Duration) -> Vec<SlowCall> {
        let mut calls = self.calls();
        let slow = calls
            .iter_mut()
            .flatten()
            .filter(|(call, reported)| !reported && now.saturating_sub(call.since) >= limit);
        slow.map(|(call, reported)| {
            *reported = true;
            *call
        })
        .collect()
    }

    /// Returns whether this thread is in a call that was reported as slow.
    pub(crate) fn is_slow(&self, thread: ThreadId) -> bool {
        let calls = self.calls();
        let mut calls = calls.iter().flatten();
        calls.any(|(call, slow)| call.thread == thread && *slow)
    }
}

/// The place of a call in the array, or none if all were taken. Its drop clears the place, also when the driver
/// panics.
struct CallGuard<'a>(&'a DriverCalls, Option<usize>);

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.1 {
            self.0.calls()[place] = None;
        }
    }
}

impl DriverCalls {
    /// Calls a device's driver at time `now` and records the call meanwhile; `page` is the first page it is
    /// about.
    pub(crate) fn call<R>(
        &self,
        device: &Device,
        page: Page,
        now: Duration,
        call: impl FnOnce(&dyn Driver) -> R,
    ) -> R {
        let this = SlowCall {
            device: device.id,
            page,
            thread: THIS_THREAD.with(|id| *id),
            since: now,
        };
        let mut calls = self.calls();
        let place = calls.iter().position(Option::is_none);
        if let Some(place) = place {
            calls[place] = Some((this, false));
        }
        drop(calls);
        let _entry = CallGuard(self, place);
        call(&*device.driver)
    }
}
