//! Calls of drivers that are going on, so that one that does not return is noticed and named.

use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::device::Device;
use super::driver::Driver;
use crate::pages::{DeviceId, Page};

/// A call of a driver that takes longer than it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlowCall {
    pub(crate) device: DeviceId,
    /// The first page the call is about.
    pub(crate) page: Page,
    pub(crate) thread: ThreadId,
    pub(crate) since: Duration,
}

/// Calls that can be watched at a time; calls do not nest, so that is a number of threads.
const WATCHED: usize = 32;

/// The calls, each with whether it was reported. In place: after a move of pages has flushed the TLB, each more page of
/// memory that book-keeping touches costs.
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

    /// The calls that have lasted this long and were not reported before.
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

    /// Whether this thread is in a call that was reported as slow.
    pub(crate) fn is_slow(&self, thread: ThreadId) -> bool {
        let calls = self.calls();
        let mut calls = calls.iter().flatten();
        calls.any(|(call, slow)| call.thread == thread && *slow)
    }
}

/// The place of a call, unless all were taken. Given back also when the driver panics.
struct Entry<'a>(&'a DriverCalls, Option<usize>);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.1 {
            self.0.calls()[place] = None;
        }
    }
}

impl DriverCalls {
    /// Calls a device's driver, at time `now`, about pages of which `page` is the first.
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
        let _entry = Entry(self, place);
        call(&*device.driver)
    }
}
