//! Replays accesses under a policy, without a VM: the backend's own page states, policies and migrations, driven
//! by a trace. Deterministic: the same events and configuration give the same outcome.
//!
//! An access that finds its page where it can be reached costs a look at a table; anything else goes through the same
//! code as a fault of a live guest.

mod config;
mod file;
mod in_order;
mod ledger;
mod optimal;
mod outcome;
mod page_table;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

pub use config::{Costs, ReplayConfig, Time};
pub use file::{FileReplay, FileReplayError};
use hmm_backend::mirror::{Mirror, MirrorError, RemoteCounters, Served};
use hmm_backend::observe::{Cause, Event, EventKind};
use hmm_backend::pages::{Access, DeviceId, PAGE_SIZE, Page, PageRange};
use hmm_backend::policy::LinkModel;
use hmm_backend::{Backend, BackendConfig, ModelBackend, Pinned};
use in_order::{InOrder, began};
use ledger::Ledger;
pub use optimal::{Optimal, OptimalError};
use optimal::{Step, Steps};
pub use outcome::{ReplayError, Replayed};
use page_table::ReplayPageTable;

/// Events between two looks at what migrated, if migrations are kept.
const KEPT: usize = 1 << 16;

/// The most pages that are looked at for the repeats of one event. Repeats are looked at one by one while they change
/// something, for instance because the policy hears of pages used in place. From this number on, the remaining repeats
/// are only counted: a large number in a file must not keep a replay busy.
const MOST_LOOKS: u32 = 1024;

/// Replays these events.
pub fn replay(
    events: impl IntoIterator<Item = Event>,
    config: &ReplayConfig,
) -> Result<Replayed, ReplayError> {
    let mut replay = Replay::new(config)?;
    let events = events.into_iter().filter(is_input).enumerate();
    match config.time {
        Time::Modelled => {
            for (number, event) in events {
                replay.event(number as u64, &event)?;
            }
        }
        Time::Trace => {
            for (number, event) in InOrder::new(events) {
                replay.event(number as u64, &event)?;
            }
        }
    }
    replay.finish()
}

/// Whether the guest or the host caused this event, rather than the policy of the recorded run.
fn is_input(event: &Event) -> bool {
    match event.kind {
        EventKind::Access
        | EventKind::CpuFault
        | EventKind::DeviceFault
        | EventKind::Freed
        | EventKind::Pinned
        | EventKind::Unpinned
        | EventKind::Hint
        | EventKind::Placed => true,
        EventKind::ToDevice
        | EventKind::BetweenDevices
        | EventKind::ToSystem
        | EventKind::Collapsed => event.cause == Some(Cause::User),
        _ => false,
    }
}

struct Device {
    mirror: Mirror<ReplayPageTable>,
    pages: ReplayPageTable,
}

/// What was done to put pages where they are when the trace begins. It is no work of the policy, and in no figure.
#[derive(Default)]
struct Placing {
    /// Pages may have been placed since the figures below were taken.
    goes_on: bool,
    to_device: u64,
    to_system: u64,
    evicted: u64,
    transfers: u64,
    /// To devices, to system memory and between devices.
    bytes: [u64; 3],
    links: Duration,
}

/// What the modelled time does not contain yet.
#[derive(Default)]
struct Uncharged {
    /// Accesses since the clock was advanced last, and those in place among them.
    accesses: u64,
    remote: u64,
    /// Transfers and their pages up to the last advance of the clock.
    transfers: u64,
    pages: u64,
    /// The time of all transfers up to then, if there are several links.
    links: Duration,
}

struct Replay<'c> {
    config: &'c ReplayConfig,
    model: ModelBackend,
    ledger: Arc<Ledger>,
    devices: Vec<Device>,
    pages: u32,
    accesses: u64,
    remote_accesses: u64,
    steps: Steps,
    moves: Vec<Event>,
    /// The pins by start and end of their pages. The same pages may be pinned several times.
    pinned: BTreeMap<(Page, Page), Vec<Pinned>>,
    uncharged: Uncharged,
    placing: Placing,
    /// Time of looking at accessed bits.
    looks: Duration,
}

impl<'c> Replay<'c> {
    fn new(config: &'c ReplayConfig) -> Result<Self, ReplayError> {
        let unit = hmm_backend::pages::BLOCK_PAGES * PAGE_SIZE;
        // What has no next multiple is refused as it is.
        let memory = config.memory.checked_next_multiple_of(unit);
        let memory = memory.unwrap_or(config.memory);
        config.check_books(memory)?;
        let mut backend = BackendConfig::new(memory);
        backend.policy = config.policy.clone();
        backend.links = config.links.clone();
        backend.eviction_batch = config.eviction_batch;
        backend.events = if config.moves { KEPT } else { 0 };
        let model = ModelBackend::new(backend)?;
        let pages = model.backend().pages();
        let ledger = Arc::new(Ledger::new(pages));
        let mut devices = Vec::new();
        for _ in 0..config.devices {
            let id = model
                .backend()
                .attach(config.device_memory, ledger.clone())?;
            let pages = ReplayPageTable::new(pages, config.fidelity);
            let mirror = model.backend().mirror(id, pages.clone())?;
            devices.push(Device { mirror, pages });
        }
        Ok(Replay {
            config,
            model,
            ledger,
            devices,
            pages,
            accesses: 0,
            remote_accesses: 0,
            steps: Steps::default(),
            moves: Vec::new(),
            pinned: BTreeMap::new(),
            uncharged: Uncharged::default(),
            placing: Placing::default(),
            looks: Duration::ZERO,
        })
    }

    fn backend(&self) -> &Arc<Backend> {
        self.model.backend()
    }

    fn event(&mut self, number: u64, event: &Event) -> Result<(), ReplayError> {
        let range = PageRange::with_len(event.page, event.pages);
        if range.end.0 > self.pages {
            return Err(ReplayError::OutOfMemory {
                event: number,
                page: range.end.0.saturating_sub(1),
                pages: self.pages,
            });
        }
        if self.config.time == Time::Trace {
            self.model.advance_to(began(event));
        }
        let repeats = match event.kind {
            EventKind::Access => event.repeats,
            _ => 1,
        };
        let access = event.access.unwrap_or(Access::Read);
        if event.kind != EventKind::Placed {
            self.end_placing();
        }
        match (event.kind, event.device) {
            (EventKind::Placed, place) => {
                self.placing.goes_on = true;
                self.ledger.touched(range);
                match place {
                    Some(device) => drop(self.backend().migrate_to_device(device, range)?),
                    None => self.model.place_in_system(range)?,
                }
            }
            (EventKind::Freed, _) => {
                // Where no page has contents, there is nothing to free.
                for part in self.ledger.with_contents(range) {
                    self.backend().guest_freed(part)?;
                    self.ledger.freed(part, self.pinned.len());
                    self.note(part, Step::Freed)?;
                }
            }
            (EventKind::Hint, _) => {
                if let Some(hint) = event.hint {
                    self.backend().hint(range, hint)?;
                }
            }
            (EventKind::Pinned, _) => {
                let pin = self.backend().pin(range)?;
                self.ledger.touched(range);
                let key = (range.start, range.end);
                self.pinned.entry(key).or_default().push(pin);
            }
            (EventKind::Unpinned, _) => {
                if let Entry::Occupied(mut pins) = self.pinned.entry((range.start, range.end)) {
                    pins.get_mut().pop();
                    if pins.get().is_empty() {
                        pins.remove();
                    }
                }
            }
            (EventKind::ToDevice | EventKind::BetweenDevices, Some(device)) => {
                self.backend().migrate_to_device(device, range)?;
            }
            (EventKind::ToSystem | EventKind::Collapsed, _) => {
                self.backend().migrate_to_system(range)?;
            }
            (_, None) => self.cpu(number, range, access, repeats)?,
            (_, Some(device)) => self.device(number, device, range, access, repeats)?,
        }
        Ok(())
    }

    /// Notes what the placing of pages has done, if any were placed since the last event of another kind.
    fn end_placing(&mut self) {
        if !std::mem::take(&mut self.placing.goes_on) {
            return;
        }
        let stats = self.backend().stats();
        let (transfers, pages) = self.ledger.transferred();
        let links = self.time_on_links();
        let evicted = stats.to_system.get(&Cause::Eviction).copied();
        self.placing = Placing {
            goes_on: false,
            to_device: stats.pages_to_device(),
            to_system: stats.pages_to_system(),
            evicted: evicted.unwrap_or_default(),
            transfers,
            bytes: self.ledger.bytes(),
            links,
        };
        (self.uncharged.transfers, self.uncharged.pages) = (transfers, pages);
        self.uncharged.links = links;
        if self.config.moves {
            self.backend().drain_events();
        }
    }

    fn note(&mut self, range: PageRange, step: Step) -> Result<(), ReplayError> {
        if self.config.optimal {
            for page in range.pages() {
                self.steps.push(page, step)?;
            }
        }
        Ok(())
    }

    /// CPUs access pages, each `repeats` times. After the first time the pages are in place.
    fn cpu(
        &mut self,
        number: u64,
        range: PageRange,
        access: Access,
        repeats: u32,
    ) -> Result<(), ReplayError> {
        self.note(range, Step::Cpu)?;
        self.ledger.touched(range);
        for page in range.pages() {
            self.count(1, 0);
            if self.model.cpu_faults(page, access) {
                self.pass_accesses();
                self.model
                    .serve_cpu_fault(page, access)
                    .map_err(|cause| fatal(number, page, &cause))?;
                self.pass_fault();
            }
            self.ledger.used(page);
        }
        self.count(
            u64::from(range.len()) * u64::from(repeats.saturating_sub(1)),
            0,
        );
        Ok(())
    }

    /// Adds this many accesses to all sums; `remote` of them are accesses in place.
    fn count(&mut self, accesses: u64, remote: u64) {
        for (sum, more) in [
            (&mut self.accesses, accesses),
            (&mut self.uncharged.accesses, accesses),
            (&mut self.remote_accesses, remote),
            (&mut self.uncharged.remote, remote),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// A device accesses pages, each `repeats` times. Accesses that change nothing are only counted.
    fn device(
        &mut self,
        number: u64,
        id: DeviceId,
        range: PageRange,
        access: Access,
        repeats: u32,
    ) -> Result<(), ReplayError> {
        let devices = self.devices.len() as u8;
        let index = usize::from(id.0);
        if index >= self.devices.len() {
            return Err(ReplayError::NoDevice {
                event: number,
                device: id.0,
                devices,
            });
        }
        self.note(range, Step::Device)?;
        if repeats > 1 && range.len() > 1 {
            // All of them are needed again after the last one; a third time would add nothing to that.
            self.note(range, Step::Device)?;
        }
        self.ledger.touched(range);
        let mut left = repeats.max(1);
        let mut looks = 0u32;
        loop {
            for part in range.split_by_block() {
                self.device_once(number, index, part, access)?;
            }
            left -= 1;
            if left == 0 {
                return Ok(());
            }
            looks = looks.saturating_add(range.len());
            let alike = match looks < MOST_LOOKS {
                true => self.alike(index, range, access).min(left),
                false => left,
            };
            self.device_again(index, range, access, alike)?;
            left -= alike;
            if left == 0 {
                return Ok(());
            }
        }
    }

    /// Returns how many more accesses to all of these pages change nothing: no fault, and no group of pages used in place so often
    /// that the policy hears of it.
    fn alike(&self, index: usize, range: PageRange, access: Access) -> u32 {
        let pages = &self.devices[index].pages;
        if !range.pages().all(|page| pages.permits(page, access)) {
            return 0;
        }
        let (mut group, mut in_place, mut alike) = (None, 0, u32::MAX);
        let remote = pages.remote();
        for page in range.pages().filter(|page| pages.is_remote(*page)) {
            let Some(accesses) = remote.until_hot(page) else {
                return u32::MAX;
            };
            let this = Some(RemoteCounters::group(page));
            in_place = if group == this { in_place + 1 } else { 1 };
            group = this;
            alike = alike.min((accesses - 1) / in_place);
        }
        alike
    }

    /// Counts `times` further accesses of the device to each of these pages. Nothing changes on the way.
    fn device_again(
        &mut self,
        index: usize,
        range: PageRange,
        access: Access,
        times: u32,
    ) -> Result<(), ReplayError> {
        if times == 0 {
            return Ok(());
        }
        self.visits(index, range, access, times);
        let remote = self.count_in_place(index, range, times);
        let times = u64::from(times);
        self.count(u64::from(range.len()) * times, remote * times);
        match remote {
            0 => Ok(()),
            _ => self.report_remote_accesses(index),
        }
    }

    /// The device accesses pages that it reaches, each `times` times.
    fn visits(&mut self, index: usize, range: PageRange, access: Access, times: u32) {
        let Device { mirror, pages } = &mut self.devices[index];
        for page in range.pages() {
            if pages.visit(page, access, times) {
                mirror.tell_visits();
            }
        }
    }

    /// Counts what the device uses in place; returns how many of the pages that are.
    fn count_in_place(&self, index: usize, range: PageRange, times: u32) -> u64 {
        let pages = &self.devices[index].pages;
        let mut remote = 0;
        for page in range.pages().filter(|page| pages.is_remote(*page)) {
            pages.remote().count(page, times);
            remote += 1;
        }
        remote
    }

    fn device_once(
        &mut self,
        number: u64,
        index: usize,
        range: PageRange,
        access: Access,
    ) -> Result<(), ReplayError> {
        self.count(range.len().into(), 0);
        let device = &self.devices[index];
        if range.pages().all(|page| device.pages.permits(page, access)) {
            self.visits(index, range, access, 1);
        } else {
            self.pass_accesses();
            let Device { mirror, pages } = &mut self.devices[index];
            let threshold = mirror.remote_access_threshold();
            let served = mirror
                .fault_range(range, access, |_, mappings| {
                    pages.set_threshold(threshold);
                    mappings.iter().for_each(|mapping| pages.map(mapping));
                })
                .map_err(|error| match error {
                    MirrorError::Fatal { page, cause } => fatal(number, page, &cause),
                    other => fatal(number, range.start, &other),
                })?;
            // A driver maps what it prefetches, so the translation of a page that is there takes no time.
            if served == Served::Fault {
                self.pass_fault();
            }
        }
        range.pages().for_each(|page| self.ledger.used(page));
        let remote = self.count_in_place(index, range, 1);
        if remote > 0 {
            self.count(0, remote);
            self.report_remote_accesses(index)?;
        }
        Ok(())
    }

    /// Tells the policy of groups of pages that the device uses often in place.
    fn report_remote_accesses(&mut self, index: usize) -> Result<(), ReplayError> {
        let hot = self.devices[index].pages.remote().take_hot();
        if let Some((groups, count)) = hot {
            self.pass_accesses();
            for group in groups {
                // Groups are of whole blocks, of which memory is made.
                self.devices[index].mirror.used_in_place(group, count)?;
            }
            self.pass_transfers(Duration::ZERO);
        }
        Ok(())
    }

    /// Advances the clock by the time of accesses, before a policy is asked.
    fn pass_accesses(&mut self) {
        if self.config.time == Time::Modelled {
            let costs = self.config.costs;
            let accesses = std::mem::take(&mut self.uncharged.accesses);
            let remote = std::mem::take(&mut self.uncharged.remote);
            let time = times(costs.access, accesses) + times(costs.remote, remote);
            self.model.advance_to(self.backend().now() + time);
        }
    }

    /// Advances the clock by the time of a fault and of its transfers.
    fn pass_fault(&mut self) {
        self.pass_transfers(self.config.costs.fault);
    }

    /// Advances the clock by this time and that of the transfers.
    fn pass_transfers(&mut self, time: Duration) {
        if self.config.moves {
            self.keep_moves();
        }
        let looks = self.look_time();
        self.looks += looks;
        if self.config.time == Time::Modelled {
            let (transfers, pages) = self.ledger.transferred();
            let link = match self.one_link() {
                Some(link) => link_time(
                    link,
                    transfers - self.uncharged.transfers,
                    pages - self.uncharged.pages,
                ),
                None => {
                    let all = self.time_on_links();
                    all - std::mem::replace(&mut self.uncharged.links, all)
                }
            };
            (self.uncharged.transfers, self.uncharged.pages) = (transfers, pages);
            self.model
                .advance_to(self.backend().now() + time + looks + link);
        }
    }

    /// Returns the time of the looks at accessed bits since the last call: each bit, and a flush for each device.
    fn look_time(&self) -> Duration {
        let Costs { bit, flush, .. } = self.config.costs;
        let read = self.devices.iter().map(|it| it.pages.take_bits_read());
        let time = read.filter(|n| *n > 0).map(|n| times(bit, n) + flush);
        time.sum()
    }

    /// Returns the link that all transfers cross, if there is only one.
    fn one_link(&self) -> Option<LinkModel> {
        let links = &self.config.links;
        (self.devices.len() == 1).then(|| links.host(DeviceId(0)))
    }

    /// Returns the time of all transfers so far, one after the other.
    fn time_on_links(&self) -> Duration {
        let traffic = self.backend().link_traffic();
        let each = traffic
            .iter()
            .map(|it| link_time(it.model, it.transfers, it.bytes / PAGE_SIZE));
        each.sum()
    }

    fn keep_moves(&mut self) {
        let moved = |e: &Event| {
            use EventKind::*;
            matches!(
                e.kind,
                ToDevice | ToSystem | BetweenDevices | Duplicated | Collapsed
            )
        };
        let events = self.backend().drain_events().events;
        self.moves.extend(events.into_iter().filter(moved));
    }

    fn finish(mut self) -> Result<Replayed, ReplayError> {
        self.end_placing();
        self.pass_accesses();
        if self.config.moves {
            self.keep_moves();
        }
        let stats = self.backend().stats();
        let of = |map: &std::collections::BTreeMap<Cause, u64>, cause| {
            map.get(&cause).copied().unwrap_or_default()
        };
        let placing = &self.placing;
        let transfers = self.ledger.transferred().0 - placing.transfers;
        let mut bytes = self.ledger.bytes();
        for (bytes, placed) in bytes.iter_mut().zip(placing.bytes) {
            *bytes -= placed;
        }
        let pages = bytes.iter().sum::<u64>() / PAGE_SIZE;
        let [to_device, to_system, between_devices] = bytes;
        let costs = &self.config.costs;
        let faults = stats.cpu_faults + stats.device_faults;
        let accesses =
            times(costs.access, self.accesses) + times(costs.remote, self.remote_accesses);
        let link = match self.one_link() {
            Some(link) => link_time(link, transfers, pages),
            None => self.time_on_links() - placing.links,
        };
        let all = accesses + times(costs.fault, faults) + self.looks + link;
        let frames = self.config.device_memory / PAGE_SIZE;
        let optimal = match self.config.optimal {
            true => Some(self.steps.optimal(frames, self.config.devices)?),
            false => None,
        };
        Ok(Replayed {
            policy: self.config.policy.name(),
            accesses: self.accesses,
            remote_accesses: self.remote_accesses,
            cpu_faults: stats.cpu_faults,
            device_faults: stats.device_faults,
            mapped_in_place: stats.counters.mapped_in_place,
            pages_to_device: stats.pages_to_device() - placing.to_device,
            pages_to_system: stats.pages_to_system() - placing.to_system,
            bytes_to_device: to_device,
            bytes_to_system: to_system,
            pages_between_devices: stats.pages_between_devices(),
            bytes_between_devices: between_devices,
            evicted: of(&stats.to_system, Cause::Eviction) - placing.evicted,
            prefetched: [&stats.to_device, &stats.to_system, &stats.between_devices]
                .map(|pages| of(pages, Cause::Prefetch))
                .iter()
                .sum(),
            bits_read: stats.counters.bits_read,
            unused: (self.config.time == Time::Modelled).then(|| self.ledger.unused()),
            thrashing_pages: self.ledger.thrashing(),
            advice_cut: stats.counters.advice_cut,
            transfers,
            modelled_ns: match self.config.time {
                Time::Modelled => nanos(self.backend().now()),
                Time::Trace => nanos(all),
            },
            optimal,
            moves: std::mem::take(&mut self.moves),
        })
    }
}

/// Returns the time of this many transfers with this many pages together.
fn link_time(link: LinkModel, transfers: u64, pages: u64) -> Duration {
    let bytes = link.time(pages * PAGE_SIZE) - link.latency;
    match transfers {
        0 => Duration::ZERO,
        _ => bytes + times(link.latency, transfers),
    }
}

/// Returns `cost` multiplied by `count`.
fn times(cost: Duration, count: u64) -> Duration {
    let nanos = u64::try_from(cost.as_nanos()).ok();
    match nanos.and_then(|nanos| nanos.checked_mul(count)) {
        Some(nanos) => Duration::from_nanos(nanos),
        // 2^64 times a whole second fits.
        None => Duration::from_nanos_u128(cost.as_nanos() * u128::from(count)),
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn fatal(event: u64, page: Page, cause: &impl ToString) -> ReplayError {
    ReplayError::Fatal {
        event,
        page: page.0,
        cause: cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time of a replay is made of what it counts: prefetched pages are used without faults.
    #[test]
    fn modelled_time_is_the_sum_of_what_is_counted() {
        let policy = "density+lru+timeslice:min=0us";
        let policy: hmm_backend::policy::PolicySpec = policy.parse().unwrap();
        let config = ReplayConfig {
            policy: Arc::new(policy),
            memory: 4 << 20,
            device_memory: 1 << 20,
            devices: 1,
            links: "latency=1us,bandwidth=4096M"
                .parse::<LinkModel>()
                .unwrap()
                .into(),
            costs: Costs::default(),
            fidelity: hmm_backend::pages::Fidelity::Faults,
            eviction_batch: 64,
            time: Time::Modelled,
            optimal: false,
            moves: false,
        };
        let accesses = (0..600).map(|page| Event {
            device: (page < 500).then_some(DeviceId(0)),
            access: Some(Access::Write),
            ..Event::new(
                Duration::ZERO,
                EventKind::Access,
                PageRange::single(Page(page % 500)),
            )
        });
        let done = replay(accesses, &config).unwrap();
        assert!((1..100).contains(&done.device_faults));
        let faults = done.cpu_faults + done.device_faults;
        let pages = (done.bytes_to_device + done.bytes_to_system) / PAGE_SIZE;
        let sum = done.accesses * 4 + faults * 20_000 + (done.transfers + pages) * 1_000;
        assert_eq!(done.modelled_ns, sum);
    }

    #[test]
    fn more_than_four_billion_accesses_take_their_time() {
        let count = (1 << 32) + 5;
        let time = times(Duration::from_nanos(4), count);
        assert_eq!(time, Duration::from_nanos(4 * count));
        assert_eq!(nanos(times(Duration::from_secs(1), u64::MAX)), u64::MAX);
    }
}
