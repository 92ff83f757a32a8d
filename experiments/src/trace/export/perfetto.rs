//! Perfetto: what each vCPU, accelerator and the service did, and how residency and bandwidth went.

mod messages;
mod tracks;

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::PAGE_SIZE;
use prost::Message;

use self::messages::{DebugAnnotation, Trace, TracePacket, TrackEvent, event_type};
use self::tracks::{Track, Tracks};
use super::events::{Written, each_event};
use super::residency::ResidencyTracker;
use super::row::access_name;
use crate::output::Output;
use crate::trace::TraceReader;

/// The length of the windows, in nanoseconds. Bandwidth is what was moved in a window.
const WINDOW: u64 = 1_000_000;

/// Writes a slice for each fault, an instant for each other event, and counters of residency and bandwidth.
pub fn write(trace: &mut TraceReader, file: &mut Output) -> Written {
    let mut export = Export {
        tracks: Tracks::default(),
        threads: trace.totals().threads.clone(),
        residency: ResidencyTracker::new(trace.meta().pages()),
        busy_until: BTreeMap::new(),
        shown: BTreeMap::new(),
        moved: [0; 3],
        window: 0,
        packets: Vec::new(),
    };
    let mut out = BufWriter::with_capacity(1 << 18, file);
    let mut bytes = Vec::new();
    let mut put = |packets: &mut Vec<TracePacket>| {
        let trace = Trace {
            packet: std::mem::take(packets),
        };
        bytes.clear();
        // Parts of a trace one after the other are a trace.
        trace.encode(&mut bytes).expect("vectors grow");
        out.write_all(&bytes)
    };
    let written = each_event(trace, |event| {
        export.event(event);
        put(&mut export.packets)
    })?;
    export.end_window(u64::MAX);
    put(&mut export.packets)?;
    out.flush()?;
    Ok(written)
}

struct Export {
    tracks: Tracks,
    /// Threads' numbers to vCPUs'.
    threads: BTreeMap<u32, u32>,
    residency: ResidencyTracker,
    /// The end of a track's last slice.
    busy_until: BTreeMap<Track, u64>,
    /// The last value of a counter.
    shown: BTreeMap<Track, i64>,
    /// Bytes to devices and to system memory in the current window.
    moved: [u64; 3],
    /// The current window's number.
    window: u64,
    packets: Vec<TracePacket>,
}

impl Export {
    fn event(&mut self, event: &Event) {
        let time = u64::try_from(event.time.as_nanos()).unwrap_or(u64::MAX);
        // Events of several threads may be a little out of order.
        if time / WINDOW > self.window {
            self.end_window(time / WINDOW);
        }
        let track = self.track(event);
        match event.kind {
            EventKind::CpuFault | EventKind::DeviceFault => {
                let latency = u64::try_from(event.latency.as_nanos()).unwrap_or(u64::MAX);
                self.slice(track, event, time.saturating_sub(latency), time);
            }
            _ => self.instant(track, event, time),
        }
        let bytes = u64::from(event.pages) * PAGE_SIZE;
        match event.kind {
            EventKind::ToDevice => self.moved[0] = self.moved[0].saturating_add(bytes),
            EventKind::BetweenDevices => self.moved[2] = self.moved[2].saturating_add(bytes),
            EventKind::ToSystem | EventKind::Duplicated => {
                self.moved[1] = self.moved[1].saturating_add(bytes);
            }
            _ => {}
        }
        if self.residency.apply(event) {
            for (device, pages) in self.residency.pages().clone() {
                self.counter(Track::Residency(device), time, pages as i64);
            }
        }
    }

    fn track(&self, event: &Event) -> Track {
        match (event.kind, event.device) {
            (EventKind::CpuFault, _) | (EventKind::Access, None) => {
                match self.threads.get(&event.thread) {
                    Some(vcpu) => Track::Vcpu(*vcpu),
                    None => Track::Thread(event.thread),
                }
            }
            (
                EventKind::DeviceFault | EventKind::MappedInPlace | EventKind::Access,
                Some(device),
            ) => Track::Accelerator(device),
            (EventKind::ToDevice | EventKind::ToSystem | EventKind::BetweenDevices, _)
            | (EventKind::Duplicated | EventKind::Collapsed, _) => Track::Migrations,
            _ => Track::Service,
        }
    }

    fn slice(&mut self, track: Track, event: &Event, begin: u64, end: u64) {
        // Slices of a track must not overlap; a thread has one fault at a time, but clocks are read at different moments.
        let free = self.busy_until.entry(track).or_default();
        let begin = begin.max(*free);
        let end = end.max(begin);
        *free = end;
        self.packet(track, begin, event_type::SLICE_BEGIN, Some(event));
        self.packet(track, end, event_type::SLICE_END, None);
    }

    fn instant(&mut self, track: Track, event: &Event, time: u64) {
        self.packet(track, time, event_type::INSTANT, Some(event));
    }

    fn counter(&mut self, track: Track, time: u64, value: i64) {
        if self.shown.insert(track, value) == Some(value) {
            return;
        }
        let packet = TracePacket {
            track_event: Some(TrackEvent {
                r#type: Some(event_type::COUNTER),
                track_uuid: Some(self.tracks.uuid(track, &mut self.packets)),
                counter_value: Some(value),
                ..TrackEvent::default()
            }),
            ..TracePacket::at(time)
        };
        self.packets.push(packet);
    }

    /// Shows what was moved in the window that ends, because something happens in `next`.
    fn end_window(&mut self, next: u64) {
        let moved = std::mem::take(&mut self.moved);
        let begin = self.window * WINDOW;
        let per_second = 1_000_000_000 / WINDOW;
        let tracks = [Track::ToDevices, Track::ToSystem, Track::BetweenDevices];
        for (track, bytes) in tracks.into_iter().zip(moved) {
            // Most runs have one device.
            if track == Track::BetweenDevices && bytes == 0 && !self.shown.contains_key(&track) {
                continue;
            }
            self.counter(
                track,
                begin,
                i64::try_from(bytes.saturating_mul(per_second)).unwrap_or(i64::MAX),
            );
            if next > self.window + 1 {
                self.counter(track, begin.saturating_add(WINDOW), 0);
            }
        }
        self.window = next;
    }

    fn packet(&mut self, track: Track, time: u64, kind: i32, event: Option<&Event>) {
        let packet = TracePacket {
            track_event: Some(TrackEvent {
                r#type: Some(kind),
                track_uuid: Some(self.tracks.uuid(track, &mut self.packets)),
                name: event.map(name),
                categories: event
                    .map(|event| event.kind.name().to_owned())
                    .into_iter()
                    .collect(),
                debug_annotations: event.map(annotations).unwrap_or_default(),
                counter_value: None,
            }),
            ..TracePacket::at(time)
        };
        self.packets.push(packet);
    }
}

/// Returns the label of a slice.
fn name(event: &Event) -> String {
    let what = match event.kind {
        EventKind::CpuFault => "CPU fault",
        EventKind::DeviceFault => "device fault",
        other => other.name(),
    };
    if let Some(hint) = event.hint {
        return format!("{what} ({hint})");
    }
    match (event.cause, event.access) {
        (Some(cause), _) => format!("{what} ({})", cause.name()),
        (None, Some(access)) => format!("{what} ({})", access_name(access)),
        (None, None) => what.to_owned(),
    }
}

fn annotations(event: &Event) -> Vec<DebugAnnotation> {
    let number = |name: &str, value: u64| DebugAnnotation {
        name: Some(name.to_owned()),
        uint_value: Some(value),
        ..DebugAnnotation::default()
    };
    let text = |name: &str, value: &str| DebugAnnotation {
        name: Some(name.to_owned()),
        string_value: Some(value.to_owned()),
        ..DebugAnnotation::default()
    };
    let mut all = vec![
        number("page", event.page.0.into()),
        number("pages", event.pages.into()),
    ];
    if event.repeats > 1 {
        all.push(number("repeats", event.repeats.into()));
    }
    all.extend(event.device.map(|device| number("device", device.0.into())));
    all.extend(event.cause.map(|cause| text("cause", cause.name())));
    all.extend(
        event
            .access
            .map(|access| text("access", access_name(access))),
    );
    all
}
