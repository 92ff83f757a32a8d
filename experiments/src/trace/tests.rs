//! Round trips, damaged files, and any bytes at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hmm_backend::observe::{Cause, Event, EventKind};
use hmm_backend::pages::{Access, DeviceId, Hint, Page, PageRange, Place};
use proptest::prelude::*;
use tempfile::TempDir;

use super::format::BLOCK_EVENTS;
use super::*;

fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.hmmtrace");
    (folder, path)
}

fn meta() -> TraceMeta {
    TraceMeta {
        workload: Some("vecadd".to_owned()),
        memory: 1 << 30,
        seed: 7,
        ..TraceMeta::default()
    }
}

const HINTS: [Hint; 7] = [
    Hint::PreferredLocation(None),
    Hint::PreferredLocation(Some(Place::System)),
    Hint::PreferredLocation(Some(Place::Device(DeviceId(255)))),
    Hint::AccessedBy(DeviceId(0), true),
    Hint::AccessedBy(DeviceId(7), false),
    Hint::ReadMostly(true),
    Hint::ReadMostly(false),
];

/// Returns an event that differs from its neighbours in everything.
fn event(i: u32) -> Event {
    let kind = EventKind::ALL[i as usize % EventKind::ALL.len()];
    Event {
        time: Duration::from_nanos(u64::from(i) * 1000),
        kind,
        page: Page(i.wrapping_mul(0x9e37_79b9) % 200_000),
        pages: i % 513,
        device: (!i.is_multiple_of(3)).then_some(DeviceId(i as u8)),
        cause: [
            None,
            Some(Cause::Demand),
            Some(Cause::Prefetch),
            Some(Cause::Eviction),
            Some(Cause::User),
            Some(Cause::Detach),
        ][i as usize % 6],
        access: [None, Some(Access::Read), Some(Access::Write)][i as usize % 3],
        thread: i / 10,
        latency: Duration::from_nanos(u64::from(i % 2) * 777),
        hint: (kind == EventKind::Hint).then_some(HINTS[i as usize / 14 % HINTS.len()]),
        repeats: match kind {
            EventKind::Access => 1 + i % 100,
            _ => 1,
        },
    }
}

fn read(reader: TraceReader) -> (Vec<Event>, Option<TraceError>) {
    let mut events = Vec::new();
    for event in reader {
        match event {
            Ok(event) => events.push(event),
            Err(error) => return (events, Some(error)),
        }
    }
    (events, None)
}

/// Returns a trace of three blocks with a note; the blocks' ends.
fn three_blocks(path: &std::path::Path) -> (Vec<Event>, Vec<u64>) {
    let events: Vec<_> = (0..300).map(event).collect();
    let mut writer = TraceWriter::create(path, &meta()).unwrap();
    let mut ends = vec![writer.length()];
    for part in events.chunks(100) {
        writer.write(part).unwrap();
        writer.flush().unwrap();
        ends.push(writer.length());
    }
    writer.finish().unwrap();
    (events, ends)
}

#[test]
fn what_is_written_is_read() {
    let (_folder, path) = place();
    let events: Vec<_> = (0..3 * BLOCK_EVENTS as u32 + 17).map(event).collect();
    let mut writer = TraceWriter::create(&path, &meta()).unwrap();
    writer.threads(BTreeMap::from([(1234, 0)]));
    for part in events.chunks(1001) {
        writer.write(part).unwrap();
    }
    writer.dropped(EventKind::Access, 5);
    writer.dropped(EventKind::Access, 2);
    let totals = writer.finish().unwrap();
    let reader = TraceReader::open(&path).unwrap();
    assert_eq!(reader.tail(), Tail::Complete);
    assert_eq!(reader.meta(), &meta());
    assert_eq!(reader.totals(), &totals);
    assert_eq!(totals.events, events.len() as u64);
    assert_eq!(totals.dropped, BTreeMap::from([("access".to_owned(), 7)]));
    assert_eq!(totals.threads, BTreeMap::from([(1234, 0)]));
    let (found, error) = read(reader);
    assert!(error.is_none());
    assert!(found == events);
}

#[test]
fn what_was_flushed_is_there_when_the_writer_is_not() {
    let (_folder, path) = place();
    let events: Vec<_> = (0..100).map(event).collect();
    let mut writer = TraceWriter::create(&path, &meta()).unwrap();
    writer.write(&events[..60]).unwrap();
    writer.threads(BTreeMap::from([(9, 1)]));
    writer.dropped(EventKind::Fatal, 3);
    writer.flush().unwrap();
    writer.write(&events[60..]).unwrap();
    // As if killed: nothing is done on the way out.
    std::mem::forget(writer);
    let reader = TraceReader::open(&path).unwrap();
    assert_eq!(reader.tail(), Tail::Unfinished);
    assert_eq!(reader.totals().events, 60);
    assert_eq!(reader.totals().dropped["fatal"], 3);
    assert_eq!(reader.totals().threads[&9], 1);
    let (found, error) = read(reader);
    assert!(error.is_none() && found == events[..60]);
}

/// Whatever cannot be written, and whenever that begins and ends: each event is in the file or counted as lost.
#[test]
fn events_that_cannot_be_written_are_counted() {
    let n = BLOCK_EVENTS as u32;
    // How many events were written before the disk was full, while it was full, and after.
    for (before, full, after) in [
        (0, 1, 0),
        (0, 3 * n + 5, 0),
        (10, n, 7),
        (n - 1, 2 * n + 3, n + 1),
        (n + 9, 20, 2 * n),
    ] {
        // With something to note, the note is what fails first.
        for lost_before in [0, 3] {
            let (_folder, path) = place();
            let mut writer = TraceWriter::create(&path, &meta()).unwrap();
            let events: Vec<_> = (0..before + full + after).map(event).collect();
            let (first, rest) = events.split_at(before as usize);
            let (second, third) = rest.split_at(full as usize);
            writer.write(first).unwrap();
            writer.dropped(EventKind::Freed, lost_before);
            // Every write to a file that was opened for reading fails.
            let unwritable = fs::File::open(&path).unwrap();
            let good = std::mem::replace(writer.file(), unwritable);
            let written = writer.write(second);
            assert_eq!(written.is_err(), before % n + full >= n, "{before} {full}");
            writer.flush().unwrap_err();
            let in_all =
                |totals: &TraceTotals| totals.events + totals.dropped.values().sum::<u64>();
            let so_far = u64::from(before + full) + lost_before;
            assert_eq!(in_all(writer.totals()), so_far, "{before} {full}");
            *writer.file() = good;
            writer.write(third).unwrap();
            let totals = writer.finish().unwrap();
            assert_eq!(in_all(&totals), events.len() as u64 + lost_before);
            // The file says the same, and has them.
            let reader = TraceReader::open(&path).unwrap();
            assert_eq!((reader.tail(), reader.totals()), (Tail::Complete, &totals));
            let (read, error) = read(reader);
            assert!(error.is_none(), "{error:?}");
            assert_eq!(read.len() as u64, totals.events);
        }
    }
}

#[test]
fn a_truncated_file_gives_its_complete_blocks_and_says_what_is_missing() {
    let (_folder, path) = place();
    let (events, ends) = three_blocks(&path);
    let bytes = fs::read(&path).unwrap();
    for length in 0..bytes.len() as u64 {
        fs::write(&path, &bytes[..length as usize]).unwrap();
        let reader = match TraceReader::open(&path) {
            Ok(reader) => reader,
            Err(error) => {
                assert!(length < ends[0]);
                assert!(matches!(error, TraceError::NoHeader { .. }), "{error}");
                continue;
            }
        };
        let complete = ends.iter().rposition(|end| *end <= length).unwrap();
        let tail = reader.tail();
        match tail {
            Tail::Unfinished => assert_eq!(length, ends[complete]),
            Tail::Truncated {
                offset,
                present,
                missing,
            } => {
                assert_eq!((offset, present), (ends[complete], length - offset));
                let end = ends
                    .get(complete + 1)
                    .copied()
                    .unwrap_or(bytes.len() as u64);
                let known = present >= super::format::BLOCK_HEADER as u64;
                assert!(length + missing == end || !known && length + missing < end);
            }
            other => panic!("{other:?} at {length}"),
        }
        let (found, error) = read(reader);
        assert!(error.is_none(), "{length}: {error:?}");
        assert!(found == events[..complete * 100]);
    }
}

#[test]
fn a_changed_byte_is_noticed_where_it_is() {
    let (_folder, path) = place();
    let (events, ends) = three_blocks(&path);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        let reader = match TraceReader::open(&path) {
            Ok(reader) => reader,
            Err(_) => {
                assert!((at as u64) < ends[0]);
                continue;
            }
        };
        assert!(at as u64 >= ends[0], "a changed header, byte {at}");
        let before = ends.iter().rposition(|end| *end <= at as u64).unwrap();
        let tail = reader.tail();
        let (found, error) = read(reader);
        assert!(found == events[..before * 100], "byte {at}");
        // A length that has grown looks like a file that was cut off.
        let noticed = match (&error, tail) {
            (Some(TraceError::Corrupt { offset, .. }), _) => *offset,
            (None, Tail::Truncated { offset, .. }) => offset,
            other => panic!("byte {at}: {other:?}"),
        };
        assert_eq!(noticed, ends[before], "byte {at}");
    }
}

#[test]
fn other_files_are_told_apart() {
    let (_folder, path) = place();
    let message = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        TraceReader::open(&path).err().unwrap().to_string()
    };
    assert!(message(b"\x7fELF and so on, long enough").contains("is not a trace of Hmmvisor"));
    assert!(message(b"x").contains("is not a trace"));
    assert!(message(b"").contains("ends at offset 0"));
    assert!(message(b"HMMT").contains("ends at offset 4"));
    let mut future = b"HMMTRACE".to_vec();
    future.extend([9, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']);
    let text = message(&future);
    assert!(
        text.contains("version 9") && text.contains("up to version 5"),
        "{text}"
    );
    let missing = TraceReader::open(&path.join("nosuch")).err().unwrap();
    assert!(missing.to_string().contains("nosuch"));
}

#[test]
fn a_later_writers_description_is_understood() {
    let (_folder, path) = place();
    let json = br#"{"workload":"x","novelty":[1,{}]}"#;
    let mut bytes = b"HMMTRACE\x01\0\0\0".to_vec();
    bytes.extend((json.len() as u32).to_le_bytes());
    bytes.extend(crc32fast::hash(json).to_le_bytes());
    bytes.extend(json);
    fs::write(&path, bytes).unwrap();
    let reader = TraceReader::open(&path).unwrap();
    assert_eq!(reader.meta().workload.as_deref(), Some("x"));
    assert_eq!(reader.tail(), Tail::Unfinished);
}

#[test]
fn a_payload_holds_its_events_and_nothing_else() {
    let events: Vec<_> = (0..10).map(event).collect();
    let mut payload = Vec::new();
    columns::encode(&events, &mut payload);
    assert_eq!(columns::decode(&payload, 10).as_ref(), Some(&events));
    assert_eq!(columns::decode(&payload, 9), None);
    assert_eq!(columns::decode(&payload, 11), None);
    payload.push(0);
    assert_eq!(columns::decode(&payload, 10), None);
}

#[test]
fn files_of_version_1_are_read() {
    let events: Vec<_> = (0..100)
        .map(event)
        .filter(|event| event.kind != EventKind::Hint)
        .map(|event| Event {
            repeats: 1,
            ..event
        })
        .collect();
    let (_folder, path) = place();
    let mut writer = TraceWriter::create(&path, &meta()).unwrap();
    let header = writer.length() as usize;
    writer.write(&events).unwrap();
    writer.finish().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // The version, and a block without the last columns: a byte for each access, and nothing.
    bytes[8] = 1;
    bytes.truncate(header);
    let mut payload = Vec::new();
    columns::encode(&events, &mut payload);
    let accesses = events
        .iter()
        .filter(|event| event.kind == EventKind::Access);
    payload.truncate(payload.len() - 1 - accesses.count());
    assert_eq!(payload.pop(), Some(0));
    let stored = zstd::bulk::compress(&payload, 1).unwrap();
    let block = format::BlockHeader::new(
        format::BlockKind::Events,
        events.len() as u32,
        payload.len() as u32,
        &stored,
    );
    bytes.extend(block.encode());
    bytes.extend(stored);
    fs::write(&path, bytes).unwrap();
    let (found, error) = read(TraceReader::open(&path).unwrap());
    assert!(error.is_none(), "{error:?}");
    assert!(found == events);
}

/// A file of version 2 of an access trace has no repeats, but its times count accesses.
#[test]
fn times_of_version_2_tell_how_often_accesses_were_repeated() {
    let access = |time, page| {
        Event::new(
            Duration::from_nanos(time),
            EventKind::Access,
            PageRange::single(Page(page)),
        )
    };
    let freed = Event {
        kind: EventKind::Freed,
        ..access(10, 1)
    };
    let events = [access(0, 1), access(7, 2), freed, access(10, 3)];
    let (_folder, path) = place();
    let meta = TraceMeta {
        kind: TraceKind::Access,
        ..meta()
    };
    let mut writer = TraceWriter::create(&path, &meta).unwrap();
    for event in events {
        writer.write(&[event]).unwrap();
        // Also over the end of a block.
        writer.flush().unwrap();
    }
    writer.finish().unwrap();
    let repeats = || {
        let (found, error) = read(TraceReader::open(&path).unwrap());
        assert!(error.is_none(), "{error:?}");
        found.iter().map(|event| event.repeats).collect::<Vec<_>>()
    };
    assert_eq!(repeats(), [1, 1, 1, 1]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    fs::write(&path, bytes).unwrap();
    assert_eq!(repeats(), [7, 3, 1, 1]);
}

/// Numbers that no writer writes: an error names the block.
#[test]
fn impossible_events_are_refused() {
    let event = |kind, page, pages| Event {
        page: Page(page),
        pages,
        ..Event::new(Duration::ZERO, kind, PageRange::single(Page(0)))
    };
    let late = Event {
        time: Duration::from_nanos(u64::MAX),
        ..event(EventKind::Access, 0, 1)
    };
    for (bad, why) in [
        (
            event(EventKind::Access, 1, 1 << 18),
            "beyond the trace's memory",
        ),
        (
            event(EventKind::Freed, u32::MAX, u32::MAX),
            "beyond the trace's memory",
        ),
        (
            event(EventKind::ToDevice, 0, 513),
            "more pages than there can be",
        ),
        (late, "292 years"),
    ] {
        let (_folder, path) = place();
        let mut writer = TraceWriter::create(&path, &meta()).unwrap();
        writer
            .write(&[event(EventKind::Freed, 0, 1 << 18)])
            .unwrap();
        writer.flush().unwrap();
        let good = writer.length();
        writer.write(&[bad]).unwrap();
        writer.finish().unwrap();
        let (found, error) = read(TraceReader::open(&path).unwrap());
        assert_eq!(found.len(), 1);
        let error = error.unwrap().to_string();
        assert!(error.contains(&format!("at offset {good}: ")), "{error}");
        assert!(error.contains(why), "{error}");
    }
}

/// Events that a reader would refuse are an error of the writer: neither written nor left out.
#[test]
fn tables_that_are_too_large_are_an_error() {
    let (_folder, path) = place();
    let mut writer = TraceWriter::create(&path, &meta()).unwrap();
    writer.mapping(
        (0..1 << 20)
            .map(|i| (i << 9, 512, u64::MAX - u64::from(i)))
            .collect(),
    );
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("16777216 are the most"), "{error}");
    // As many as there may be do fit.
    let mut writer = TraceWriter::create(&path, &meta()).unwrap();
    let most = limits::BLOCKS as u32;
    writer.mapping((0..most).map(|_| (u32::MAX, u32::MAX, u64::MAX)).collect());
    let threads = limits::THREADS as u32;
    writer.threads((0..threads).map(|i| (u32::MAX - i, threads - 1)).collect());
    let totals = writer.finish().unwrap();
    let reader = TraceReader::open(&path).unwrap();
    assert_eq!((reader.tail(), reader.totals()), (Tail::Complete, &totals));
    // One more is refused by the reader, too.
    let mut writer = TraceWriter::create(&path, &meta()).unwrap();
    writer.threads((0..threads).map(|i| (i, i + 1)).collect());
    writer.finish().unwrap();
    let tail = TraceReader::open(&path).unwrap().tail();
    assert!(
        matches!(tail, Tail::Corrupt { why, .. } if why.contains("vCPUs")),
        "{tail:?}"
    );
}

fn any_event() -> impl Strategy<Value = Event> {
    let cause = prop::sample::select(Cause::ALL.to_vec());
    let access = prop::sample::select(vec![Access::Read, Access::Write]);
    (
        (any::<u64>(), prop::sample::select(EventKind::ALL.to_vec())),
        (any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>()),
        1..u32::MAX,
        prop::option::of(any::<u8>()),
        prop::option::of(cause),
        (
            prop::option::of(access),
            prop::option::of(prop::sample::select(HINTS.to_vec())),
        ),
    )
        .prop_map(
            |(
                (time, kind),
                (page, pages, thread, latency),
                repeats,
                device,
                cause,
                (access, hint),
            )| Event {
                time: Duration::from_nanos(time),
                kind,
                page: Page(page),
                pages,
                device: device.map(DeviceId),
                cause,
                access,
                thread,
                latency: Duration::from_nanos(latency),
                hint: hint.filter(|_| kind == EventKind::Hint),
                repeats: match kind {
                    EventKind::Access => repeats,
                    _ => 1,
                },
            },
        )
}

proptest! {
    #[test]
    fn any_events_survive(events in prop::collection::vec(any_event(), 0..200)) {
        let mut payload = Vec::new();
        columns::encode(&events, &mut payload);
        prop_assert_eq!(columns::decode(&payload, events.len() as u32), Some(events));
    }

    #[test]
    fn any_payload_is_refused_or_read(payload in prop::collection::vec(any::<u8>(), 0..300), count in 0..40u32) {
        let _ = columns::decode(&payload, count);
    }

    #[test]
    fn any_bytes_are_refused_or_read(
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        keep in 0..400usize,
    ) {
        // Somewhere in a good file, so that what is behind its checks is reached, too.
        let (_folder, path) = place();
        three_blocks(&path);
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        let keep = bytes.split_off((at + keep).min(bytes.len()));
        bytes.truncate(at);
        bytes.extend(garbage);
        bytes.extend(keep);
        fs::write(&path, bytes).unwrap();
        if let Ok(reader) = TraceReader::open(&path) {
            let _ = read(reader);
        }
    }
}
