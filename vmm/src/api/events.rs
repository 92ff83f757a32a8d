//! The stream of events: JSON lines, as long as the client reads and the run lasts.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hmm_backend::EventReader;
use hmm_backend::observe::{Event, EventKind, Events};
use hmm_backend::pages::Access;
use hmmvisor_api as api;
use hyper::body::Frame;
use tokio::time::{Interval, MissedTickBehavior};

use super::error::Refusal;
use super::live::Live;
use super::patience::{Lasting, OpenStream, OpenStreams, Patience};
use crate::ending::Ending;
use crate::machine::vcpu_threads::ThreadIds;

/// The media type.
pub(super) const TYPE: &str = "application/x-ndjson";
/// How often the events are taken out of the backend's rings.
const TAKE: Duration = Duration::from_millis(20);
/// Events that the ring of each of the backend's threads holds: many times what a thread produces in [`TAKE`]. Each has 72
/// bytes.
const RING: usize = 1 << 12;
/// The most events that wait for a client while others take theirs.
const MOST: usize = 1 << 14;
/// The most events in one piece of the stream.
const PIECE: usize = 256;

/// Returns the kinds of events that a client wants: a list of names, with commas. All without a list.
pub(super) fn kinds(list: Option<&str>) -> Result<Vec<EventKind>, Refusal> {
    let Some(list) = list else {
        return Ok(EventKind::ALL.to_vec());
    };
    let kind = |name: &str| {
        let known = EventKind::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| {
            let all = EventKind::ALL.map(EventKind::name).join(", ");
            let detail = format!("there is no kind `{name}` of events; there are: {all}");
            Refusal::bad("kinds", detail)
        })
    };
    list.split(',').map(|name| kind(name.trim())).collect()
}

/// Makes the stream.
pub(super) fn stream(
    live: &Live,
    kinds: Vec<EventKind>,
    patience: &Patience,
) -> Result<Body, Refusal> {
    let open = live.streams.open().ok_or_else(|| {
        let most = OpenStreams::MOST;
        let detail = format!("{most} clients read events; one of them has to end first");
        Refusal::conflict(detail)
    })?;
    let mut interval = tokio::time::interval(TAKE);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Ok(Body::new(Stream {
        _open: open,
        _lasting: patience.without_end(),
        reader: live.tap.reader(RING, MOST),
        kinds,
        interval,
        ending: live.ending.clone(),
        threads: live.threads.clone(),
        waiting: VecDeque::new(),
        dropped: BTreeMap::new(),
    }))
}

/// The body of an answer that goes on. It is asked for the next piece only when the client has room; meanwhile events wait in
/// the reader, and those that find no room there are counted.
struct Stream {
    _open: OpenStream,
    _lasting: Lasting,
    reader: EventReader,
    kinds: Vec<EventKind>,
    interval: Interval,
    ending: Arc<Ending>,
    threads: ThreadIds,
    waiting: VecDeque<Event>,
    /// Events that the client has to be told are missing.
    dropped: BTreeMap<String, u64>,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.piece() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            // Looked at before the last events are taken, so that none is left.
            let ended = self.ending.get().is_some();
            if !ended {
                ready!(self.interval.poll_tick(context));
            }
            let events = self.reader.take();
            self.add(events);
            if ended && self.waiting.is_empty() && self.dropped.is_empty() {
                return Poll::Ready(None);
            }
        }
    }
}

impl Stream {
    fn add(&mut self, events: Events) {
        for kind in &self.kinds {
            let dropped = events.dropped(*kind);
            if dropped > 0 {
                *self.dropped.entry(kind.name().to_owned()).or_default() += dropped;
            }
        }
        let wanted = |event: &Event| self.kinds.contains(&event.kind);
        self.waiting
            .extend(events.events.into_iter().filter(wanted));
    }

    /// Returns the next lines, if there are some.
    fn piece(&mut self) -> Option<Bytes> {
        let mut text = Vec::new();
        if !self.dropped.is_empty() {
            let dropped = std::mem::take(&mut self.dropped);
            line(&mut text, &api::Event::Dropped { dropped });
        }
        let count = self.waiting.len().min(PIECE);
        for event in self.waiting.drain(..count) {
            let vcpu = match event.kind {
                EventKind::CpuFault => self.threads.vcpu(event.thread),
                _ => None,
            };
            line(&mut text, &happened(&event, vcpu));
        }
        (!text.is_empty()).then(|| text.into())
    }
}

fn line(text: &mut Vec<u8>, event: &api::Event) {
    // Writing to memory cannot fail, nor can numbers and strings.
    let _ = serde_json::to_writer(&mut *text, event);
    text.push(b'\n');
}

fn happened(event: &Event, vcpu: Option<u32>) -> api::Event {
    let access = |access| match access {
        Access::Read => "read".to_owned(),
        Access::Write => "write".to_owned(),
    };
    api::Event::Happened {
        time_s: event.time.as_secs_f64(),
        kind: event.kind.name().to_owned(),
        first: event.page.0,
        pages: event.pages,
        device: event.device.map(|device| device.0),
        vcpu,
        cause: event.cause.map(|cause| cause.name().to_owned()),
        access: event.access.map(access),
        latency_us: (!event.latency.is_zero()).then_some(event.latency.as_secs_f64() * 1e6),
    }
}
