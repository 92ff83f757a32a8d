//! Counters, latency histograms and the event rings, kept per thread and merged on request.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use super::cause::{Cause, FaultCause};
use super::events::{Event, Events, Ring};

macro_rules! counters {
    ($($main:ident),* ; $($(#[doc = $doc:literal])* $rarer:ident = $field:ident),* $(,)?) => {
        /// What is counted besides migrations.
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Counter { $($main,)* $($rarer),* }

        const COUNTERS: usize = [$(Counter::$main,)* $(Counter::$rarer),*].len();

        /// Counters of rarer events.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[doc = $doc])* pub $field: u64),* }

        impl Counters {
            fn read(value: impl Fn(Counter) -> u64) -> Counters {
                Counters { $($field: value(Counter::$rarer)),* }
            }

            /// Returns all counters with their names, for reports.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($field), self.$field)),*].into_iter()
            }

            /// Returns what each counter counts, in the order of [`Self::named`].
            pub fn descriptions() -> impl Iterator<Item = &'static str> {
                [$(concat!($($doc),*)),*].into_iter().map(str::trim)
            }
        }
    };
}

counters! {
    CpuFaults, FirstTouchFaults, DeviceFaults, PageFreeCalls, PagesFreed;
    /// CPU faults whose page had already arrived when the service thread read the fault's message.
    FaultsStale = faults_stale,
    /// Faults that found another thread at work on the page, so that the faulting CPU slept until that thread
    /// unlocked it.
    FaultsLost = faults_lost,
    /// Faults postponed because the page was held or the policy throttled them.
    FaultsDeferred = faults_deferred,
    /// Faults postponed because the page could not be moved yet.
    FaultsRetried = faults_retried,
    /// Pieces of advice cut to what was possible.
    AdviceCut = advice_cut,
    /// Decisions for which a policy took too long.
    AdviceLate = advice_late,
    /// Wishes dropped because the queue was full.
    WishesDropped = wishes_dropped,
    /// Pages whose prefetch was dropped because the queue was full.
    PrefetchDropped = prefetch_dropped,
    /// Translations of pages in place that devices got.
    MappedInPlace = mapped_in_place,
    /// Pages left out of a migration because another thread was at work on them.
    PagesSkippedBusy = pages_skipped_busy,
    /// Pages left out of a migration because they were pinned.
    PagesSkippedPinned = pages_skipped_pinned,
    /// Pages left out of a migration because a policy's hold on them had not ended.
    PagesSkippedHeld = pages_skipped_held,
    /// Folios of device memory that were split.
    FolioSplits = folio_splits,
    /// Folios given back because their driver could not fill them.
    FoliosRolledBack = folios_rolled_back,
    /// Migrations to a device that found its memory full.
    DeviceMemoryFull = device_memory_full,
    /// Invalidations of devices' translations.
    Invalidations = invalidations,
    /// Pages copied to system memory for reading, the device's copy staying.
    Duplicated = duplicated,
    /// Migrations from one device to another that went through system memory because the source's driver refused to flush.
    FlushesRefused = flushes_refused,
    /// Duplicated pages of which one of the two copies was dropped.
    Collapsed = collapsed,
    /// Pages to which a device got exclusive access.
    ExclusiveGrants = exclusive_grants,
    /// Pages whose exclusive access was revoked.
    ExclusiveRevocations = exclusive_revocations,
    /// Pages of system memory that the host's kernel no longer had: their contents were lost.
    PagesVanished = pages_vanished,
    /// Accessed bits of folios that eviction policies have looked at.
    BitsRead = bits_read,
    /// Visits of pages that devices told of.
    Visits = visits,
    /// Visits that devices told of and that could not be: the pages do not exist.
    VisitsCut = visits_cut,
    /// Driver calls that took longer than the service's limit.
    SlowDriverCalls = slow_driver_calls,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The maximum.
    pub max: f64,
    /// Number of samples.
    pub count: u64,
}

/// How long faults took, counted by time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LatencyBuckets {
    /// How many faults took at most each of [`LatencyBuckets::BOUNDS`]; each includes the one before.
    pub counts: [u64; LatencyBuckets::BOUNDS.len()],
    /// How many faults there were.
    pub count: u64,
    /// How long they took together, to two digits.
    pub sum: Duration,
}

impl LatencyBuckets {
    /// The times by which is counted: 1, 2.5 and 5 of each power of ten from a microsecond to a second.
    pub const BOUNDS: [Duration; 19] = {
        let mut bounds = [Duration::ZERO; 19];
        let (mut at, mut nanos) = (0, 1000);
        while at < bounds.len() {
            bounds[at] = Duration::from_nanos(match at % 3 {
                0 => nanos,
                1 => nanos * 5 / 2,
                _ => nanos * 5,
            });
            if at % 3 == 2 {
                nanos *= 10;
            }
            at += 1;
        }
        bounds
    };

    fn of(histogram: &Histogram<u64>) -> LatencyBuckets {
        let mut buckets = LatencyBuckets {
            count: histogram.len(),
            ..LatencyBuckets::default()
        };
        let mut sum: u128 = 0;
        for step in histogram.iter_recorded() {
            let (time, count) = (step.value_iterated_to(), step.count_since_last_iteration());
            sum += u128::from(time) * u128::from(count);
            let first = Self::BOUNDS.partition_point(|bound| bound.as_nanos() < time.into());
            for counted in &mut buckets.counts[first..] {
                *counted += count;
            }
        }
        buckets.sum = Duration::from_nanos(sum.try_into().unwrap_or(u64::MAX));
        buckets
    }
}

/// How long faults took, by their causes; faults of other causes have not been.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultLatencies {
    /// Those of CPUs: of [`FaultCause::OF_CPUS`]. Together as many as [`Stats::cpu_faults`].
    pub cpus: BTreeMap<FaultCause, LatencyBuckets>,
    /// Those of devices: of [`FaultCause::OF_DEVICES`]. Together as many as [`Stats::device_faults`].
    pub devices: BTreeMap<FaultCause, LatencyBuckets>,
}

/// The statistics of a backend since it was made.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Served CPU faults (of vCPUs and of the VMM's own accesses): the pages were not in system memory. Equals the
    /// number of [`EventKind::CpuFault`] events and latencies.
    ///
    /// [`EventKind::CpuFault`]: crate::observe::EventKind::CpuFault
    pub cpu_faults: u64,
    /// CPU faults on pages that had never been touched.
    pub first_touch_faults: u64,
    /// Served device faults: accesses to one or more pages, for which a page had to move or a translation in place
    /// had to be given. Equals the number of [`EventKind::DeviceFault`] events and latencies.
    ///
    /// [`EventKind::DeviceFault`]: crate::observe::EventKind::DeviceFault
    pub device_faults: u64,
    /// Pages migrated to devices, by cause. Includes untouched pages that were filled with zeros there.
    pub to_device: BTreeMap<Cause, u64>,
    /// Pages migrated to system memory, by cause. Includes pages copied there, but not duplicates of which one copy
    /// was dropped.
    pub to_system: BTreeMap<Cause, u64>,
    /// Pages migrated from one device's memory directly to another's, by cause. They are in neither of the other two.
    pub between_devices: BTreeMap<Cause, u64>,
    /// Calls of [`crate::driver::Driver::page_free`].
    pub page_free_calls: u64,
    /// Pages with contents that the guest freed.
    pub pages_freed: u64,
    /// The highest number of pages that were in the memory of all devices together at any time.
    pub device_pages_peak: u64,
    /// Number of pages that the memory of all devices together can hold.
    pub device_pages_capacity: u64,
    /// Latency of CPU faults that needed service, from the arrival of the message to the wake-up.
    pub fault_latency: Latency,
    /// Latency of device faults, from the access to the translation.
    pub device_fault_latency: Latency,
    /// Rarer events.
    pub counters: Counters,
}

impl Stats {
    /// Number of pages migrated to devices.
    pub fn pages_to_device(&self) -> u64 {
        self.to_device.values().sum()
    }

    /// Number of pages migrated to system memory.
    pub fn pages_to_system(&self) -> u64 {
        self.to_system.values().sum()
    }

    /// Number of pages migrated from one device's memory directly to another's.
    pub fn pages_between_devices(&self) -> u64 {
        self.between_devices.values().sum()
    }
}

/// The direction of a migration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From system memory to a device's.
    ToDevice,
    /// From a device's memory to system memory.
    ToSystem,
    /// From a device's memory directly to another device's.
    BetweenDevices,
}

/// The source of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Toucher {
    Cpu,
    Device,
}

/// Number of stripes that the threads are spread over. Each of the first threads has a stripe of its own, all others share
/// the last one: correct, but slower.
const STRIPES: usize = 16;

/// The number of the stripe that all further threads share.
const SHARED: usize = STRIPES - 1;

#[repr(align(128))]
struct Stripe {
    counters: [AtomicU64; COUNTERS],
    migrated: [[AtomicU64; Cause::ALL.len()]; 3],
    faults: Mutex<FaultLog>,
    events: Mutex<Ring>,
}

/// The faults that a stripe's threads have served.
#[derive(Default)]
struct FaultLog {
    /// How long they took, of CPUs and of devices, by cause. A histogram has 25 KiB, and is made when it is needed.
    latency: [[Option<Box<Histogram<u64>>>; FaultCause::COUNT]; 2],
    /// How many faults each thread had that ran a CPU, for the first [`MOST_THREADS`] threads.
    by_thread: Vec<(u32, u64)>,
    /// How many the other threads had.
    others: u64,
}

/// The most threads whose faults are counted one by one: more than a machine has vCPUs.
const MOST_THREADS: usize = 256;

impl FaultLog {
    fn latency(&mut self, toucher: Toucher, cause: FaultCause, time: Duration) {
        let histogram = &mut self.latency[toucher as usize][cause as usize];
        histogram
            .get_or_insert_with(|| Box::new(new_histogram()))
            .saturating_record(time.as_nanos().min(u64::MAX.into()) as u64);
    }

    fn count(&mut self, thread: u32) {
        let is_full = self.by_thread.len() >= MOST_THREADS;
        let known = self.by_thread.iter_mut().find(|(id, _)| *id == thread);
        match known {
            Some((_, faults)) => *faults += 1,
            None if is_full => self.others += 1,
            None => self.by_thread.push((thread, 1)),
        }
    }
}

/// Counts and records everything that happens in a backend.
pub(crate) struct Recorder {
    stripes: Box<[Stripe]>,
    events: AtomicBool,
}

impl Recorder {
    /// A recorder with rings of `events` events per stripe; 0 disables events.
    pub(crate) fn new(events: usize) -> Recorder {
        let stripe = |_| Stripe {
            counters: [const { AtomicU64::new(0) }; _],
            migrated: [const { [const { AtomicU64::new(0) }; _] }; 3],
            faults: Mutex::default(),
            events: Mutex::new(Ring::new(events)),
        };
        Recorder {
            stripes: (0..STRIPES).map(stripe).collect(),
            events: AtomicBool::new(events > 0),
        }
    }

    /// The number of this thread's stripe.
    fn stripe_number() -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static MINE: Cell<usize> = const { Cell::new(usize::MAX) });
        let mut mine = MINE.get();
        if mine == usize::MAX {
            mine = NEXT.fetch_add(1, Ordering::Relaxed).min(SHARED);
            MINE.set(mine);
        }
        mine
    }

    fn stripe(&self) -> &Stripe {
        &self.stripes[Self::stripe_number()]
    }

    /// Adds to a counter of this thread's stripe.
    fn count(&self, counter: impl Fn(&Stripe) -> &AtomicU64, n: u64) {
        let number = Self::stripe_number();
        let counter = counter(&self.stripes[number]);
        if number == SHARED {
            counter.fetch_add(n, Ordering::Relaxed);
        } else {
            // No other thread writes to it, and an atomic addition takes ten times as long.
            counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        }
    }

    pub(crate) fn add(&self, counter: Counter, n: u64) {
        self.count(|stripe| &stripe.counters[counter as usize], n);
    }

    pub(crate) fn migrated(&self, direction: Direction, cause: Cause, pages: u64) {
        self.count(
            |stripe| &stripe.migrated[direction as usize][cause as usize],
            pages,
        );
    }

    /// Counts a served fault of the CPU that this thread ran.
    pub(crate) fn cpu_fault(&self, thread: u32, cause: FaultCause, time: Duration) {
        self.add(Counter::CpuFaults, 1);
        let mut faults = self.stripe().faults.lock();
        faults.latency(Toucher::Cpu, cause, time);
        faults.count(thread);
    }

    /// Counts a served fault of a device.
    pub(crate) fn device_fault(&self, cause: FaultCause, time: Duration) {
        self.add(Counter::DeviceFaults, 1);
        let mut faults = self.stripe().faults.lock();
        faults.latency(Toucher::Device, cause, time);
    }

    /// Puts an event into this thread's ring. `event` is called only if events are enabled.
    pub(crate) fn event(&self, event: impl FnOnce() -> Event) {
        if self.events.load(Ordering::Relaxed) {
            self.stripe().events.lock().push(event());
        }
    }

    /// From now on each ring holds this many events; 0 ends the recording of events and drops those in the rings.
    pub(crate) fn set_events(&self, capacity: usize) {
        if capacity == 0 {
            self.events.store(false, Ordering::Relaxed);
        }
        for stripe in &self.stripes {
            stripe.events.lock().set_capacity(capacity);
        }
        if capacity > 0 {
            self.events.store(true, Ordering::Relaxed);
        }
    }

    /// Takes the events until `now` out of the rings and returns them in order of time. Later events wait for the
    /// next call: the rings are emptied one after the other, and a thread whose ring was emptied first may already
    /// have recorded events that are older than those in the last ring.
    pub(crate) fn drain_events(&self, now: Duration) -> Events {
        let mut all = Events::default();
        for stripe in &self.stripes {
            stripe.events.lock().drain_into(&mut all, now);
        }
        all.events.sort_by_key(|e| e.time);
        all
    }

    /// All statistics except those that only the devices know.
    pub(crate) fn stats(&self) -> Stats {
        let sum = |f: &dyn Fn(&Stripe) -> &AtomicU64| -> u64 {
            self.stripes
                .iter()
                .map(|s| f(s).load(Ordering::Relaxed))
                .sum()
        };
        let counter = |c: Counter| sum(&|s| &s.counters[c as usize]);
        let migrated = |d: Direction| {
            let count = |c: Cause| (c, sum(&|s| &s.migrated[d as usize][c as usize]));
            Cause::ALL
                .into_iter()
                .map(count)
                .filter(|(_, n)| *n > 0)
                .collect()
        };
        Stats {
            cpu_faults: counter(Counter::CpuFaults),
            first_touch_faults: counter(Counter::FirstTouchFaults),
            device_faults: counter(Counter::DeviceFaults),
            to_device: migrated(Direction::ToDevice),
            to_system: migrated(Direction::ToSystem),
            between_devices: migrated(Direction::BetweenDevices),
            page_free_calls: counter(Counter::PageFreeCalls),
            pages_freed: counter(Counter::PagesFreed),
            device_pages_peak: 0,
            device_pages_capacity: 0,
            fault_latency: self.merged(Toucher::Cpu, FaultCause::OF_CPUS),
            device_fault_latency: self.merged(Toucher::Device, FaultCause::OF_DEVICES),
            counters: Counters::read(counter),
        }
    }

    /// How long faults have taken so far.
    pub(crate) fn fault_latencies(&self) -> FaultLatencies {
        let by_cause = |toucher, causes: &[FaultCause]| {
            let buckets = |cause: &FaultCause| {
                let all = self.histogram(toucher, &[*cause]);
                all.map(|all| (*cause, LatencyBuckets::of(&all)))
            };
            causes.iter().filter_map(buckets).collect()
        };
        FaultLatencies {
            cpus: by_cause(Toucher::Cpu, FaultCause::OF_CPUS),
            devices: by_cause(Toucher::Device, FaultCause::OF_DEVICES),
        }
    }

    /// How many CPU faults each thread has had, by its number.
    pub(crate) fn faults_by_thread(&self) -> BTreeMap<u32, u64> {
        let mut all = BTreeMap::new();
        for stripe in &self.stripes {
            let faults = stripe.faults.lock();
            for (thread, count) in &faults.by_thread {
                *all.entry(*thread).or_default() += count;
            }
            if faults.others > 0 {
                *all.entry(0).or_default() += faults.others;
            }
        }
        all
    }

    /// Adds up the histograms of some causes; none if there was no such fault.
    fn histogram(&self, toucher: Toucher, causes: &[FaultCause]) -> Option<Histogram<u64>> {
        let mut all = None;
        for stripe in &self.stripes {
            let faults = stripe.faults.lock();
            let of_side = &faults.latency[toucher as usize];
            for histogram in causes
                .iter()
                .filter_map(|it| of_side[*it as usize].as_ref())
            {
                all.get_or_insert_with(new_histogram)
                    .add(&**histogram)
                    .expect("all histograms are alike");
            }
        }
        all
    }

    fn merged(&self, toucher: Toucher, causes: &[FaultCause]) -> Latency {
        let Some(all) = self.histogram(toucher, causes) else {
            return Latency::default();
        };
        let us = |ns: u64| ns as f64 / 1000.0;
        Latency {
            p50: us(all.value_at_quantile(0.5)),
            p99: us(all.value_at_quantile(0.99)),
            max: us(all.max()),
            count: all.len(),
        }
    }
}

/// A histogram from 100 ns to 100 s with two significant digits.
fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(100, 100_000_000_000, 2).expect("the bounds are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_what_took_at_most_their_time() {
        let recorder = Recorder::new(0);
        for micros in [1, 3, 3, 40, 2_000_000] {
            let time = Duration::from_micros(micros);
            recorder.cpu_fault(7, FaultCause::Migrated, time);
        }
        let all = recorder.fault_latencies();
        assert_eq!((all.cpus.len(), all.devices.len()), (1, 0));
        let cpu = &all.cpus[&FaultCause::Migrated];
        assert_eq!(cpu.count, 5);
        let at_most = |micros| {
            let bound = Duration::from_micros(micros);
            let index = LatencyBuckets::BOUNDS.iter().position(|it| *it == bound);
            cpu.counts[index.unwrap()]
        };
        assert_eq!(at_most(5), 3);
        assert_eq!((at_most(25), at_most(50), at_most(1_000_000)), (3, 4, 4));
        let sum = cpu.sum.as_secs_f64();
        assert!((sum / 2.000_047 - 1.0).abs() < 0.01, "{sum}");
    }

    #[test]
    fn faults_are_counted_by_cause_and_thread() {
        let recorder = Recorder::new(0);
        let time = Duration::from_micros(5);
        for (thread, cause) in [
            (7, FaultCause::Migrated),
            (8, FaultCause::FirstTouch),
            (7, FaultCause::There),
            (7, FaultCause::Migrated),
        ] {
            recorder.cpu_fault(thread, cause, time);
        }
        recorder.device_fault(FaultCause::Migrated, time);
        recorder.device_fault(FaultCause::InPlace, time);
        assert_eq!(recorder.faults_by_thread(), [(7, 3), (8, 1)].into());
        let all = recorder.fault_latencies();
        let counts = |of: &BTreeMap<FaultCause, LatencyBuckets>| -> Vec<_> {
            of.iter().map(|(cause, it)| (*cause, it.count)).collect()
        };
        let of_cpus = [
            (FaultCause::FirstTouch, 1),
            (FaultCause::Migrated, 2),
            (FaultCause::There, 1),
        ];
        assert_eq!(counts(&all.cpus), of_cpus);
        let of_devices = [(FaultCause::Migrated, 1), (FaultCause::InPlace, 1)];
        assert_eq!(counts(&all.devices), of_devices);
        let stats = recorder.stats();
        assert_eq!((stats.fault_latency.count, stats.cpu_faults), (4, 4));
        let of_devices = (stats.device_fault_latency.count, stats.device_faults);
        assert_eq!(of_devices, (2, 2));
    }

    #[test]
    fn every_counter_says_what_it_counts() {
        let named = Counters::default().named();
        assert_eq!(named.count(), Counters::descriptions().count());
        assert!(Counters::descriptions().all(|text| text.ends_with('.')));
    }
}
