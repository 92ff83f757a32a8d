//! Locks and barriers for more vCPUs than the host may have cores.

use crate::control;
use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Turns of a wait loop before it starts giving the host's core away: the vCPU that it waits for may not
/// be running.
pub const SPINS: u32 = 200;

/// One wait loop's patience.
pub struct Relax {
    turns: u32,
}

impl Relax {
    pub fn new() -> Self {
        Self { turns: 0 }
    }

    /// One turn of the loop.
    pub fn relax(&mut self) {
        if self.turns < SPINS {
            self.turns += 1;
            spin_loop();
        } else {
            control::yield_now();
        }
    }
}

/// A value for one vCPU at a time.
pub struct SpinLock<T> {
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out the value to one vCPU at a time.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    pub const fn new(value: T) -> Self {
        Self {
            locked: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    pub fn lock(&self) -> SpinGuard<'_, T> {
        let mut relax = Relax::new();
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            relax.relax();
        }
    }

    /// Like `lock`, but gives up in the end.
    pub fn try_lock_for(&self, turns: u32) -> Option<SpinGuard<'_, T>> {
        let mut relax = Relax::new();
        (0..turns).find_map(|_| {
            let guard = self.try_lock();
            if guard.is_none() {
                relax.relax();
            }
            guard
        })
    }

    fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        // The plain load keeps waiters from fighting for the cache line.
        if self.locked.load(Ordering::Relaxed) || self.locked.swap(true, Ordering::Acquire) {
            return None;
        }
        Some(SpinGuard { lock: self })
    }
}

/// The right to use a lock's value.
pub struct SpinGuard<'a, T> {
    lock: &'a SpinLock<T>,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard exists only while its vCPU has the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard exists only while its vCPU has the lock, and it is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.locked.store(false, Ordering::Release);
    }
}

/// A barrier at which vCPUs wait for each other, any number of times.
pub struct Barrier {
    arrived: AtomicU64,
    /// How often the barrier has opened.
    opened: AtomicU64,
}

impl Barrier {
    pub const fn new() -> Self {
        Self {
            arrived: AtomicU64::new(0),
            opened: AtomicU64::new(0),
        }
    }

    /// Returns when `count` vCPUs are here; what they did before is visible to all.
    pub fn wait(&self, count: u64) {
        let opened = self.opened.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == count {
            // No vCPU arrives for the next time before the barrier opens.
            self.arrived.store(0, Ordering::Relaxed);
            self.opened.store(opened + 1, Ordering::Release);
            return;
        }
        let mut relax = Relax::new();
        while self.opened.load(Ordering::Acquire) == opened {
            relax.relax();
        }
    }
}
