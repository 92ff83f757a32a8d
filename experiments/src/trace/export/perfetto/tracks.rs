//! The tracks of the viewer: described when they are first used.

use std::collections::BTreeSet;

use hmm_backend::pages::DeviceId;

use super::messages::{CounterDescriptor, TracePacket, TrackDescriptor, unit};

/// A line in the viewer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Track {
    /// Everything that belongs to the run.
    Run,
    /// A vCPU's faults.
    Vcpu(u32),
    /// The faults of another thread, or of one whose vCPU is not known.
    Thread(u32),
    /// An accelerator's faults and accesses.
    Accelerator(DeviceId),
    /// Migrations.
    Migrations,
    /// Other actions and decisions of the service.
    Service,
    /// Pages in a device's memory.
    Residency(DeviceId),
    /// Bytes per second to devices.
    ToDevices,
    /// Bytes per second to system memory.
    ToSystem,
    /// Bytes per second from one device directly to another.
    BetweenDevices,
}

/// The tracks described so far.
#[derive(Default)]
pub struct Tracks(BTreeSet<Track>);

impl Tracks {
    /// Returns the number of a track; adds its description to `packets` if there is none yet.
    pub fn uuid(&mut self, track: Track, packets: &mut Vec<TracePacket>) -> u64 {
        if self.0.insert(track) {
            let parent = (track != Track::Run).then(|| self.uuid(Track::Run, packets));
            packets.push(TracePacket {
                track_descriptor: Some(TrackDescriptor {
                    uuid: Some(number(track)),
                    name: Some(name(track)),
                    parent_uuid: parent,
                    counter: counter(track),
                }),
                ..TracePacket::at(0)
            });
        }
        number(track)
    }
}

/// Returns a track's number: the kind in the upper half, so that no two are the same; never 0.
fn number(track: Track) -> u64 {
    let (kind, index) = match track {
        Track::Run => (1, 0),
        Track::Vcpu(vcpu) => (2, vcpu),
        Track::Thread(thread) => (3, thread),
        Track::Accelerator(device) => (4, device.0.into()),
        Track::Migrations => (5, 0),
        Track::Service => (6, 0),
        Track::Residency(device) => (7, device.0.into()),
        Track::ToDevices => (8, 0),
        Track::ToSystem => (9, 0),
        Track::BetweenDevices => (10, 0),
    };
    kind << 32 | u64::from(index)
}

fn name(track: Track) -> String {
    match track {
        Track::Run => "hmmvisor".to_owned(),
        Track::Vcpu(vcpu) => format!("vCPU {vcpu}"),
        Track::Thread(0) => "unknown thread".to_owned(),
        Track::Thread(thread) => format!("thread {thread}"),
        Track::Accelerator(device) => format!("accelerator {}", device.0),
        Track::Migrations => "service: migrations".to_owned(),
        Track::Service => "service: decisions".to_owned(),
        Track::Residency(device) => format!("pages on accelerator {}", device.0),
        Track::ToDevices => "bandwidth to devices".to_owned(),
        Track::ToSystem => "bandwidth to system memory".to_owned(),
        Track::BetweenDevices => "bandwidth between devices".to_owned(),
    }
}

fn counter(track: Track) -> Option<CounterDescriptor> {
    match track {
        Track::Residency(_) => Some(CounterDescriptor {
            unit: Some(unit::COUNT),
            unit_name: Some("pages".to_owned()),
        }),
        Track::ToDevices | Track::ToSystem | Track::BetweenDevices => Some(CounterDescriptor {
            unit: Some(unit::BYTES),
            unit_name: Some("bytes/s".to_owned()),
        }),
        _ => None,
    }
}
