//! The links between system memory and the devices, and between devices: what transfers cost, and, if that is enforced, how long they
//! take.
//!
//! A link has a lane for each direction. A transfer is what one migration moves between two places; pages without contents do
//! not cross a link. Transfers on one lane come one after the other. A transfer between two devices without a link of their own
//! takes two lanes of the host's links at once: the source's up and the destination's down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::host::sleep_exactly;
use crate::pages::time::Clock;
use crate::pages::{DeviceId, PAGE_SIZE, Place};
use crate::policy::{LinkMatrix, LinkModel};

/// Whether transfers take the time of their link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pacing {
    /// They take the time that the host takes; that of the link is only added up.
    #[default]
    Accounted,
    /// They take at least the link's time, during which their pages are locked: vCPUs and devices that want them wait. Not in a replay,
    /// which has a clock of its own.
    Enforced,
}

/// What transfers cross.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// The host's links: to and from system memory, and between devices that have no link of their own.
    Host,
    /// A link that two devices have of their own.
    Peer,
}

/// What crossed from one place to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkTraffic {
    /// Where the contents were.
    pub from: Place,
    /// Where they went.
    pub to: Place,
    /// What they crossed.
    pub route: Route,
    /// The costs.
    pub model: LinkModel,
    /// Number of transfers.
    pub transfers: u64,
    /// Bytes of pages with contents.
    pub bytes: u64,
    /// Time of the transfers, one after the other.
    pub time: Duration,
}

/// The transfers from one place to another.
#[derive(Default)]
struct Lane {
    transfers: AtomicU64,
    bytes: AtomicU64,
    nanos: AtomicU64,
    /// When the last transfer ends.
    busy_until: Mutex<Duration>,
}

/// A device's link to the host.
struct HostLanes {
    model: LinkModel,
    down: Lane,
    up: Lane,
}

/// The links of all devices.
pub(crate) struct Links {
    matrix: LinkMatrix,
    pacing: Pacing,
    hosts: Box<[HostLanes]>,
    /// From one device to another; those that were used.
    peers: Mutex<BTreeMap<(DeviceId, DeviceId), Arc<Lane>>>,
}

impl Links {
    /// Links for this many devices.
    pub(crate) fn new(devices: usize, matrix: LinkMatrix, pacing: Pacing) -> Links {
        let host = |number| HostLanes {
            model: matrix.host(DeviceId(number as u8)),
            down: Lane::default(),
            up: Lane::default(),
        };
        Links {
            hosts: (0..devices).map(host).collect(),
            matrix,
            pacing,
            peers: Mutex::default(),
        }
    }

    /// Returns the costs.
    pub(crate) fn matrix(&self) -> &LinkMatrix {
        &self.matrix
    }

    fn host(&self, device: DeviceId) -> &HostLanes {
        &self.hosts[usize::from(device.0)]
    }

    /// Counts a transfer of this many pages; returns when its time is over, if that is enforced. Its pages are locked.
    pub(crate) fn transfer(&self, clock: &Clock, from: Place, to: Place, pages: u32) {
        if pages == 0 {
            return;
        }
        let bytes = u64::from(pages) * PAGE_SIZE;
        let over_host = |link: &HostLanes, lane: &Lane| {
            let time = link.model.time(bytes);
            lane.count(bytes, time);
            self.pace(clock, time, &[lane]);
        };
        match (from, to) {
            (Place::System, Place::Device(device)) => {
                let link = self.host(device);
                over_host(link, &link.down);
            }
            (Place::Device(device), Place::System) => {
                let link = self.host(device);
                over_host(link, &link.up);
            }
            (Place::Device(a), Place::Device(b)) => {
                let time = self.matrix.between(from, to).time(bytes);
                let lane = self.peers.lock().entry((a, b)).or_default().clone();
                lane.count(bytes, time);
                match self.matrix.peer(a, b) {
                    Some(_) => self.pace(clock, time, &[&lane]),
                    None => self.pace(clock, time, &[&self.host(a).up, &self.host(b).down]),
                }
            }
            (Place::System, Place::System) => {}
        }
    }

    /// Waits until these lanes are free and the time is over, if that is enforced. Lanes up come before lanes down, so that two
    /// transfers do not wait for each other.
    #[inline]
    fn pace(&self, clock: &Clock, time: Duration, lanes: &[&Lane]) {
        if let (Pacing::Enforced, Clock::Real(_)) = (self.pacing, clock) {
            let now = clock.now();
            let end = {
                let mut busy: Vec<_> = lanes.iter().map(|lane| lane.busy_until.lock()).collect();
                let start = busy.iter().fold(now, |start, until| start.max(**until));
                busy.iter_mut().for_each(|until| **until = start + time);
                start + time
            };
            sleep_exactly(end - now);
        }
    }

    /// Returns what crossed so far: between system memory and each of the first `devices` devices, and between the pairs of
    /// devices between which anything did.
    pub(crate) fn traffic(&self, devices: usize) -> Vec<LinkTraffic> {
        let mut all = Vec::new();
        let mut add = |from, to, route, lane: &Lane| {
            all.push(LinkTraffic {
                from,
                to,
                route,
                model: self.matrix.between(from, to),
                transfers: lane.transfers.load(Ordering::Relaxed),
                bytes: lane.bytes.load(Ordering::Relaxed),
                time: Duration::from_nanos(lane.nanos.load(Ordering::Relaxed)),
            });
        };
        for (number, lanes) in self.hosts.iter().enumerate().take(devices) {
            let device = Place::Device(DeviceId(number as u8));
            add(Place::System, device, Route::Host, &lanes.down);
            add(device, Place::System, Route::Host, &lanes.up);
        }
        for ((a, b), lane) in &*self.peers.lock() {
            let route = match self.matrix.peer(*a, *b) {
                Some(_) => Route::Peer,
                None => Route::Host,
            };
            add(Place::Device(*a), Place::Device(*b), route, lane);
        }
        all
    }
}

impl Lane {
    fn count(&self, bytes: u64, time: Duration) {
        self.transfers.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_transfer_is_counted_once_and_on_its_route() {
        let [a, b, c] = [0, 1, 2].map(DeviceId);
        let mut matrix = LinkMatrix::default();
        matrix.peers.insert((a, b), Some(LinkModel::default()));
        let links = Links::new(3, matrix, Pacing::Accounted);
        let clock = Clock::Model(0.into());
        let device = Place::Device;
        for (from, to, pages) in [
            (Place::System, device(a), 1),
            (device(a), device(b), 2),
            (device(b), device(a), 3),
            (device(c), device(b), 4),
            (device(c), Place::System, 5),
            (device(b), device(c), 0),
        ] {
            links.transfer(&clock, from, to, pages);
        }
        let traffic = links.traffic(3);
        let used: Vec<_> = traffic
            .iter()
            .filter(|it| it.transfers > 0)
            .map(|it| (it.from, it.to, it.route, it.transfers, it.bytes / PAGE_SIZE))
            .collect();
        assert_eq!(
            used,
            [
                (Place::System, device(a), Route::Host, 1, 1),
                (device(c), Place::System, Route::Host, 1, 5),
                (device(a), device(b), Route::Peer, 1, 2),
                (device(b), device(a), Route::Peer, 1, 3),
                (device(c), device(b), Route::Host, 1, 4),
            ]
        );
        assert_eq!(traffic.len(), 2 * 3 + 3);
    }

    #[test]
    fn without_a_link_of_their_own_two_devices_keep_both_host_links_busy() {
        let [a, b] = [0, 1].map(DeviceId);
        let clock = Clock::Real(std::time::Instant::now());
        let paced = |peer| {
            let matrix = LinkMatrix {
                peer,
                ..LinkMatrix::default()
            };
            let links = Links::new(2, matrix, Pacing::Enforced);
            links.transfer(&clock, Place::Device(a), Place::Device(b), 1);
            let busy = |lane: &Lane| !lane.busy_until.lock().is_zero();
            let lanes = [a, b].map(|it| (busy(&links.host(it).up), busy(&links.host(it).down)));
            let own = busy(&links.peers.lock()[&(a, b)]);
            (lanes, own)
        };
        let free = (false, false);
        assert_eq!(paced(None), ([(true, false), (false, true)], false));
        assert_eq!(paced(Some(LinkModel::default())), ([free, free], true));
    }
}
