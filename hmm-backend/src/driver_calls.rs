//! Calls of drivers that are going on, so that one that does not return is noticed and named.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use crate::backend::Backend;
use crate::device::Device;
use crate::driver::{DeviceId, Driver};
use crate::error::FaultError;
use crate::migrate::{Finalized, Reason, Source, ToSystem};
use crate::page::Page;

/// A call of a driver that takes longer than it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlowCall {
    pub(crate) device: DeviceId,
    /// The first page the call is about.
    pub(crate) page: Page,
    pub(crate) thread: ThreadId,
    pub(crate) since: Duration,
}

/// One entry for each call, a few at most: calls do not nest.
#[derive(Default)]
pub(crate) struct DriverCalls {
    calls: Mutex<Vec<(SlowCall, bool)>>,
}

impl DriverCalls {
    fn calls(&self) -> MutexGuard<'_, Vec<(SlowCall, bool)>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calls that have lasted this long and were not reported before.
    pub(crate) fn newly_slow(&self, now: Duration, limit: Duration) -> Vec<SlowCall> {
        let mut calls = self.calls();
        let slow = calls
            .iter_mut()
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
        calls
            .iter()
            .any(|(call, slow)| call.thread == thread && *slow)
    }
}

/// Ends the entry also when the driver panics.
struct Entry<'a>(&'a DriverCalls, ThreadId);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.0.calls().retain(|(call, _)| call.thread != self.1);
    }
}

impl Backend {
    /// Calls a device's driver about pages of which `page` is the first.
    pub(crate) fn call_driver<R>(
        &self,
        device: &Device,
        page: Page,
        call: impl FnOnce(&dyn Driver) -> R,
    ) -> R {
        let thread = std::thread::current().id();
        let entry = SlowCall {
            device: device.id,
            page,
            thread,
            since: self.clock.now(),
        };
        self.driver_calls.calls().push((entry, false));
        let _entry = Entry(&self.driver_calls, thread);
        call(&*device.driver)
    }

    /// Has a device's driver migrate folios to system memory; `fault` is the page somebody waits for.
    pub(crate) fn send_back(
        &self,
        device: &Device,
        sources: Vec<Source<'_>>,
        reason: Reason,
        fault: Option<Page>,
    ) -> Result<Finalized, FaultError> {
        let first = sources.first().map_or(Page(0), |source| source.lock.head());
        let migration = ToSystem::new(self, device, sources, reason, fault);
        self.call_driver(device, first, |driver| driver.migrate_to_ram(migration))
    }
}
