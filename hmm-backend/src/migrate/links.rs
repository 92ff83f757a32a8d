//! The links between system memory and the devices: what transfers cost, and, if that is enforced, how long they take.
//!
//! A link has a lane for each direction. A transfer is what one migration moves of a device's pages in one direction; pages
//! without contents do not cross the link. Transfers on one lane come one after the other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::host::sleep_exactly;
use crate::observe::Direction;
use crate::pages::time::Clock;
use crate::pages::{DeviceId, PAGE_SIZE};
use crate::policy::LinkModel;

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

/// What crossed a link in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkTraffic {
    /// The device.
    pub device: DeviceId,
    /// The link's costs.
    pub model: LinkModel,
    /// To the device's memory, or from there to system memory.
    pub direction: Direction,
    /// Number of transfers.
    pub transfers: u64,
    /// Bytes of pages with contents.
    pub bytes: u64,
    /// Time of the transfers on the link, one after the other.
    pub time: Duration,
}

/// One direction of a link.
#[derive(Default)]
struct Lane {
    transfers: AtomicU64,
    bytes: AtomicU64,
    nanos: AtomicU64,
    /// When the last transfer ends.
    busy_until: Mutex<Duration>,
}

/// The links of all devices.
pub(crate) struct Links {
    default: LinkModel,
    others: BTreeMap<DeviceId, LinkModel>,
    pacing: Pacing,
    lanes: Box<[[Lane; 2]]>,
}

impl Links {
    /// Links for this many devices, all like `default` but those in `others`.
    pub(crate) fn new(
        devices: usize,
        default: LinkModel,
        others: BTreeMap<DeviceId, LinkModel>,
        pacing: Pacing,
    ) -> Links {
        Links {
            default,
            others,
            pacing,
            lanes: (0..devices).map(|_| Default::default()).collect(),
        }
    }

    fn model(&self, device: DeviceId) -> LinkModel {
        self.others.get(&device).copied().unwrap_or(self.default)
    }

    /// Counts a transfer of this many pages; returns when its time is over, if that is enforced. Its pages are locked.
    pub(crate) fn transfer(
        &self,
        clock: &Clock,
        device: DeviceId,
        direction: Direction,
        pages: u32,
    ) {
        if pages == 0 {
            return;
        }
        let lane = &self.lanes[usize::from(device.0)][direction as usize];
        let bytes = u64::from(pages) * PAGE_SIZE;
        let time = self.model(device).time(bytes);
        lane.transfers.fetch_add(1, Ordering::Relaxed);
        lane.bytes.fetch_add(bytes, Ordering::Relaxed);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        lane.nanos.fetch_add(nanos, Ordering::Relaxed);
        if let (Pacing::Enforced, Clock::Real(_)) = (self.pacing, clock) {
            let now = clock.now();
            let end = {
                let mut busy_until = lane.busy_until.lock();
                *busy_until = now.max(*busy_until) + time;
                *busy_until
            };
            sleep_exactly(end - now);
        }
    }

    /// Returns what crossed the links of the first `devices` devices so far.
    pub(crate) fn traffic(&self, devices: usize) -> Vec<LinkTraffic> {
        let mut all = Vec::new();
        for (number, lanes) in self.lanes.iter().enumerate().take(devices) {
            let device = DeviceId(number as u8);
            for direction in [Direction::ToDevice, Direction::ToSystem] {
                let lane = &lanes[direction as usize];
                all.push(LinkTraffic {
                    device,
                    model: self.model(device),
                    direction,
                    transfers: lane.transfers.load(Ordering::Relaxed),
                    bytes: lane.bytes.load(Ordering::Relaxed),
                    time: Duration::from_nanos(lane.nanos.load(Ordering::Relaxed)),
                });
            }
        }
        all
    }
}
