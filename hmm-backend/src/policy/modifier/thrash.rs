//! NVIDIA UVM's handling of pages that migrate back and forth (`uvm_perf_thrashing.c` of the open kernel modules,
//! 595.45), for CPUs on one side and devices on the other. It detects such pages, lets one side nap while the other
//! one works, and pins the page for a time if the thrashing continues.
//!
//! A tree of rules decides about a thrashing page, from which side reaches which place. Here, CPUs reach only system
//! memory, and a device reaches its own memory and system memory. A page that both sides want is therefore pinned in
//! system memory, where the device accesses it in place. Differences from UVM are listed in `docs/policies.md`.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::hints::Preferences;
use super::lapse::{Lapse, nanos};
use super::modified::Modifier;
use crate::pages::{BLOCK_PAGES, Block, Hint, Page, PageRange, PageSet, Place};
use crate::policy::{Advice, BlockFault, BlockView, MAX_WISH, Wish};
use crate::residency::{Placed, Residency};

/// Parameters of [`Thrash`]. UVM's values are the defaults.
#[derive(Clone, Copy, Debug)]
pub struct ThrashParams {
    /// Number of migrations of a page, each within the lapse after the one before, that make it a thrashing page.
    pub threshold: u8,
    /// The initial lapse; it adapts.
    pub lapse: Duration,
    /// How long a throttled side waits.
    pub nap: Duration,
    /// How long a page is pinned; 0 means for ever.
    pub pin: Duration,
    /// Number of naps before a page is pinned.
    pub pin_threshold: u8,
    /// How often the state of a block is reset.
    pub max_resets: u32,
    /// The state of a block is reset when none of its pages has thrashed for this time.
    pub epoch: Duration,
}

impl Default for ThrashParams {
    fn default() -> Self {
        ThrashParams {
            threshold: 3,
            lapse: Duration::from_micros(500),
            nap: Duration::from_micros(500),
            pin: Duration::from_millis(150),
            pin_threshold: 10,
            max_resets: 4,
            epoch: Duration::from_secs(1),
        }
    }
}

/// The two sides, as bits of a mask.
const CPUS: u8 = 1;
const DEVICES: u8 = 2;

fn side(place: Place) -> u8 {
    match place {
        Place::System => CPUS,
        Place::Device(_) => DEVICES,
    }
}

/// The state of a page; times are in nanoseconds. 32 bytes for each page of the blocks that both sides want.
#[derive(Clone, Copy, Debug, Default)]
struct PageState {
    /// Time of the last migration.
    last: u64,
    /// End of the period of naps.
    nap_end: u64,
    /// End of the pin.
    pin_end: u64,
    /// Number of migrations that came within the lapse after the one before.
    events: u8,
    /// Number of naps while the page was not pinned.
    naps: u8,
    /// The sides that thrash, as a mask.
    thrashers: u8,
    /// The sides that nap in this period, as a mask.
    napping: u8,
    /// The requester that need not nap in this period.
    exempt: Option<Place>,
    pinned: Option<Place>,
}

#[derive(Debug)]
struct BlockState {
    /// Destination and time of the last migration.
    to: Place,
    last: u64,
    /// Allocated when both sides want the block.
    pages: Option<Box<[PageState]>>,
    thrashing: PageSet,
    /// The time when one of its pages last thrashed.
    thrashed: u64,
    pinned: u32,
    resets: u32,
}

/// The decision on a fault on a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Nothing,
    /// Serve the fault no earlier than this time.
    Throttle(u64),
    Pin(Place),
}

impl PageState {
    /// Returns how long the page has not migrated. The time of a nap does not count, because the sleeping side still
    /// wants the page.
    fn quiet(&self, now: u64) -> u64 {
        let since = match self.napping {
            0 => self.last,
            _ => self.last.max(self.nap_end),
        };
        now.saturating_sub(since)
    }
}

/// The thrashing modifier.
#[derive(Debug)]
pub struct Thrash {
    params: ThrashParams,
    lapse: Lapse,
    blocks: HashMap<Block, BlockState>,
    preferences: Preferences,
    /// The pins in the order in which they end.
    pins: VecDeque<(u64, Page)>,
    /// Whether pins have ended whose wishes did not fit into the last tick.
    overdue: bool,
}

impl Thrash {
    /// A modifier without any state yet.
    pub fn new(params: ThrashParams) -> Thrash {
        Thrash {
            lapse: Lapse::new(params.lapse),
            params,
            blocks: HashMap::new(),
            preferences: Preferences::default(),
            pins: VecDeque::new(),
            overdue: false,
        }
    }

    /// Decides about a fault on this page.
    fn verdict(&mut self, page: Page, requester: Place, now: u64) -> Verdict {
        let (block, index) = (page.block(), page.index_in_block());
        let params = self.params;
        let Some(state) = self.blocks.get_mut(&block) else {
            return Verdict::Nothing;
        };
        if now.saturating_sub(state.thrashed) > nanos(params.epoch)
            && state.pinned == 0
            && state.resets < params.max_resets
            && !state.thrashing.is_empty()
        {
            state.pages = None;
            state.thrashing = PageSet::EMPTY;
            state.resets += 1;
        }
        let Some(it) = state.pages.as_mut().map(|pages| &mut pages[index]) else {
            return Verdict::Nothing;
        };
        if it.pinned.is_some() && params.pin > Duration::ZERO && it.pin_end <= now {
            // The tick that would have ended this pin has not come yet.
            state.pinned -= 1;
            state.thrashing.remove(index);
            *it = PageState::default();
        }
        if it.events < params.threshold {
            return Verdict::Nothing;
        }
        let quiet = it.quiet(now);
        if it.napping == 0 {
            self.lapse.vote(quiet);
        }
        let who = side(requester);
        let exempt = it.exempt == Some(requester);
        if it.napping & who != 0 && !exempt && now < it.nap_end {
            return Verdict::Throttle(it.nap_end);
        }
        if quiet > self.lapse.nanos() && it.pinned.is_none() {
            return Verdict::Nothing;
        }
        it.thrashers |= who;
        if now > it.nap_end {
            // A new period of naps begins. No requester is exempt twice in a row.
            it.last = now - quiet;
            it.nap_end = now + nanos(params.nap);
            it.exempt = (!exempt).then_some(requester);
            it.napping = 0;
        } else if it.exempt.is_none() {
            it.exempt = Some(requester);
        }
        let preferred = self.preferences.of(block, index);
        let verdict = match rules(it, requester, preferred, params.pin_threshold) {
            // The period ends at this moment: there is nothing to wait for.
            Verdict::Throttle(until) if until <= now => Verdict::Nothing,
            verdict => verdict,
        };
        match verdict {
            Verdict::Nothing => {}
            Verdict::Throttle(_) => {
                if it.napping & who == 0 && it.pinned.is_none() {
                    it.naps = it.naps.saturating_add(1);
                }
                it.napping |= who;
            }
            Verdict::Pin(place) => {
                if it.pinned.is_none() {
                    state.pinned += 1;
                    it.pin_end = now + nanos(params.pin);
                    if params.pin > Duration::ZERO {
                        self.pins.push_back((it.pin_end, page));
                    }
                }
                it.pinned = Some(place);
                it.naps = 0;
            }
        }
        verdict
    }

    /// Notes that these pages of a block migrate.
    fn migrated(&mut self, block: Block, pages: &PageSet, to: Place, now: u64) {
        if pages.is_empty() {
            return;
        }
        let state = self.blocks.entry(block).or_insert_with(|| BlockState {
            to,
            last: now,
            pages: None,
            thrashing: PageSet::EMPTY,
            thrashed: 0,
            pinned: 0,
            resets: 0,
        });
        let both =
            side(state.to) != side(to) && now.saturating_sub(state.last) <= self.lapse.nanos();
        (state.to, state.last) = (to, now);
        if both && state.pages.is_none() {
            state.pages = Some(vec![PageState::default(); BLOCK_PAGES as usize].into());
        }
        let Some(states) = &mut state.pages else {
            return;
        };
        for index in pages.iter() {
            let it = &mut states[index];
            let gap = it.quiet(now);
            if it.last != 0 && gap <= self.lapse.nanos() {
                it.events = it.events.saturating_add(1);
                if it.events >= self.params.threshold {
                    state.thrashing.insert(index);
                    state.thrashed = now;
                }
            } else if it.events >= self.params.threshold && it.pinned.is_none() {
                *it = PageState::default();
                state.thrashing.remove(index);
            }
            it.last = now;
        }
    }
}

/// UVM's tree of rules: the first match decides. The numbers are those of `docs/policies.md`.
fn rules(it: &PageState, requester: Place, preferred: Option<Place>, enough_naps: u8) -> Verdict {
    let exempt = it.exempt == Some(requester);
    // CPUs and all devices reach system memory; only the device itself reaches a device's memory.
    let all_reach =
        |place| place == Place::System || (it.thrashers & CPUS == 0 && place == requester);
    let reaches = |place| place == Place::System || place == requester;
    let throttle = Verdict::Throttle(it.nap_end);
    match preferred {
        // 1
        Some(home) if all_reach(home) => return Verdict::Pin(home),
        // 3
        Some(home) if home == requester => {
            return match it.pinned {
                Some(at) if at == home || exempt => Verdict::Pin(home),
                Some(_) => throttle,
                None if !exempt => throttle,
                None if it.naps >= enough_naps => Verdict::Pin(home),
                None => Verdict::Nothing,
            };
        }
        _ => {}
    }
    match it.pinned {
        // 4
        Some(_) if exempt && all_reach(requester) => Verdict::Pin(requester),
        Some(_) if exempt => Verdict::Pin(Place::System),
        Some(at) if reaches(at) => Verdict::Pin(at),
        Some(_) => throttle,
        // 5
        None if !exempt => throttle,
        // 6
        None if it.naps >= enough_naps => Verdict::Pin(requester),
        None => Verdict::Nothing,
    }
}

impl Modifier for Thrash {
    fn modify(&mut self, advice: &mut Advice, fault: &BlockFault, view: &BlockView<'_>) {
        let now = nanos(fault.now);
        let mut throttle_until = now;
        let mut stay = false;
        for index in fault.pages.iter() {
            match self.verdict(fault.block.page(index), fault.to, now) {
                Verdict::Nothing => {}
                // The fault has had its nap and is served now.
                Verdict::Throttle(_) if fault.waited => {}
                Verdict::Throttle(until) => throttle_until = throttle_until.max(until),
                // System memory is the only place that a device reaches besides its own memory.
                Verdict::Pin(place) => stay |= place == Place::System && fault.to != Place::System,
            }
        }
        if let Some(state) = self.blocks.get(&fault.block) {
            advice.prefetch = advice.prefetch.difference(&state.thrashing);
        }
        if throttle_until > now {
            let nap = Duration::from_nanos(throttle_until - now);
            advice.throttle = advice.throttle.max(nap);
            return;
        }
        advice.stay |= stay;
        if !advice.stay {
            let moves = |i: &usize| match view.residency(*i) {
                Residency::System => fault.to != Place::System,
                // A duplicate takes no page away from the device.
                Residency::Device(_) if advice.duplicate.contains(*i) => false,
                Residency::Device(Placed { device, .. }) => fault.to != Place::Device(device),
                _ => false,
            };
            let all = fault.pages.union(&advice.prefetch);
            let inside = all.intersection(&PageSet::from_range(0..view.len()));
            let moving: PageSet = inside.iter().filter(moves).collect();
            self.migrated(fault.block, &moving, fault.to, now);
        }
    }

    /// Pinned and throttled pages do not migrate.
    fn permitted(&mut self, pages: PageSet, seen: &BlockFault) -> PageSet {
        match self.blocks.get(&seen.block) {
            Some(state) => pages.difference(&state.thrashing),
            None => pages,
        }
    }

    fn hinted(&mut self, pages: PageRange, hint: Hint) {
        self.preferences.hinted(pages, hint);
    }

    fn freed(&mut self, pages: PageRange) {
        for part in pages.split_by_block() {
            let Some(state) = self.blocks.get_mut(&part.start.block()) else {
                continue;
            };
            for page in part.pages() {
                let index = page.index_in_block();
                state.thrashing.remove(index);
                if let Some(pages) = &mut state.pages {
                    let it = std::mem::take(&mut pages[index]);
                    state.pinned -= u32::from(it.pinned.is_some());
                }
            }
        }
    }

    fn tick_interval(&self) -> Option<Duration> {
        let quarter = self.params.pin / 4;
        let bounds = (Duration::from_millis(1), Duration::from_millis(100));
        match self.overdue {
            true => Some(Duration::ZERO),
            false => (self.params.pin > Duration::ZERO).then(|| quarter.clamp(bounds.0, bounds.1)),
        }
    }

    /// Ends pins. Devices that access such a page in place must fault again: a wish for a page that is already in
    /// system memory removes their translations.
    fn tick(&mut self, now: Duration, most: usize) -> Vec<Wish> {
        let now = nanos(now);
        let mut wishes: Vec<Wish> = Vec::new();
        self.overdue = false;
        while let Some(&(end, page)) = self.pins.front()
            && end <= now
        {
            let joins = |last: &Wish| last.pages.end == page && last.pages.len() < MAX_WISH;
            if wishes.len() == most && !wishes.last().is_some_and(joins) {
                self.overdue = true;
                break;
            }
            self.pins.pop_front();
            let Some(state) = self.blocks.get_mut(&page.block()) else {
                continue;
            };
            let index = page.index_in_block();
            let Some(it) = state.pages.as_mut().map(|pages| &mut pages[index]) else {
                continue;
            };
            // The page may have been freed or looked at since then, and may be pinned again.
            if it.pin_end != end || it.pinned.is_none() {
                continue;
            }
            let at = it.pinned;
            *it = PageState::default();
            state.pinned -= 1;
            state.thrashing.remove(index);
            if at == Some(Place::System) {
                match wishes.last_mut() {
                    Some(last) if joins(last) => last.pages.end = page.plus(1),
                    _ => wishes.push(Wish {
                        pages: PageRange::single(page),
                        to: Place::System,
                    }),
                }
            }
        }
        wishes
    }
}

#[cfg(test)]
impl Thrash {
    /// Pins a page in system memory until `until`.
    pub(super) fn pin_for_test(&mut self, page: Page, until: Duration) {
        let state = self.blocks.entry(page.block()).or_insert(BlockState {
            to: Place::System,
            last: 1,
            pages: Some(vec![PageState::default(); BLOCK_PAGES as usize].into()),
            thrashing: PageSet::EMPTY,
            thrashed: 1,
            pinned: 0,
            resets: 0,
        });
        state.pinned += 1;
        if let Some(pages) = &mut state.pages {
            let it = &mut pages[page.index_in_block()];
            it.pinned = Some(Place::System);
            it.pin_end = nanos(until);
        }
        self.pins.push_back((nanos(until), page));
    }
}
