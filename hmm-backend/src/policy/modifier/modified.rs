//! Wraps a policy with a modifier that changes its advice.

use std::time::Duration;

use crate::pages::{Hint, Page, PageRange, PageSet};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy, MAX_WISHES, Seen, Wish};

/// A change to another policy's advice.
pub(in crate::policy) trait Modifier: Send {
    /// Changes the advice.
    fn modify(&mut self, advice: &mut Advice, fault: &BlockFault, view: &BlockView<'_>);

    /// Of pages that would migrate because they are used often, returns those that may.
    fn permitted(&mut self, pages: PageSet, seen: &BlockFault) -> PageSet {
        let _ = seen;
        pages
    }

    fn hinted(&mut self, pages: PageRange, hint: Hint) {
        let _ = (pages, hint);
    }

    fn freed(&mut self, pages: PageRange) {
        let _ = pages;
    }

    fn tick_interval(&self) -> Option<Duration> {
        None
    }

    /// Returns at most `most` wishes.
    fn tick(&mut self, now: Duration, most: usize) -> Vec<Wish> {
        let _ = (now, most);
        Vec::new()
    }
}

/// A policy wrapped by a modifier.
pub(in crate::policy) struct Modified<M> {
    modifier: M,
    inner: Box<dyn FaultPolicy>,
    /// When the modifier and the inner policy are due for their next tick; their intervals may differ.
    due: [Duration; 2],
}

impl<M: Modifier + 'static> Modified<M> {
    pub(in crate::policy) fn boxed(
        modifier: M,
        inner: Box<dyn FaultPolicy>,
    ) -> Box<dyn FaultPolicy> {
        Box::new(Modified {
            modifier,
            inner,
            due: [Duration::ZERO; 2],
        })
    }
}

impl<M: Modifier> FaultPolicy for Modified<M> {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        let mut advice = self.inner.advise(fault, view);
        self.modifier.modify(&mut advice, fault, view);
        advice
    }

    fn used(&mut self, page: Page) {
        self.inner.used(page);
    }

    fn remote_access_threshold(&self) -> Option<u32> {
        self.inner.remote_access_threshold()
    }

    fn remote_accesses(&mut self, seen: &BlockFault, count: u32, view: &BlockView<'_>) -> PageSet {
        let pages = self.inner.remote_accesses(seen, count, view);
        self.modifier.permitted(pages, seen)
    }

    fn hinted(&mut self, pages: PageRange, hint: Hint) {
        self.modifier.hinted(pages, hint);
        self.inner.hinted(pages, hint);
    }

    fn freed(&mut self, pages: PageRange) {
        self.modifier.freed(pages);
        self.inner.freed(pages);
    }

    fn tick_interval(&self) -> Option<Duration> {
        let both = [self.modifier.tick_interval(), self.inner.tick_interval()];
        both.into_iter().flatten().min()
    }

    fn tick(&mut self, now: Duration, seen: Seen) -> Vec<Wish> {
        let mut wishes = Vec::new();
        let [modifier, inner] = &mut self.due;
        if let Some(interval) = self.inner.tick_interval()
            && *inner <= now
        {
            *inner = now + interval;
            wishes = self.inner.tick(now, seen);
        }
        if *modifier <= now {
            // Wishes that do not fit are returned by a later tick.
            let most = MAX_WISHES.saturating_sub(wishes.len());
            wishes.extend(self.modifier.tick(now, most));
            *modifier = now + self.modifier.tick_interval().unwrap_or_default();
        }
        wishes
    }
}

/// Minimum residency: migrated pages stay at their destination for at least this time. Like Xe's timeslice
/// (`drm_pagemap`), but for both directions: the side that got a page makes progress with it before the other side
/// can take it away again.
pub(in crate::policy) struct Timeslice(pub(in crate::policy) Duration);

impl Modifier for Timeslice {
    fn modify(&mut self, advice: &mut Advice, _: &BlockFault, _: &BlockView<'_>) {
        advice.hold = advice.hold.max(self.0);
    }
}
