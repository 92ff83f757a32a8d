//! Events as columns: equal kinds of values beside each other compress well.
//!
//! A payload is ten columns, each preceded by its length in bytes: kinds, flags, devices, times, pages, page counts, threads, latencies, hints, repeats. Numbers are varints (seven bits a byte,
//! the lowest first); times, pages and threads are differences to the event before, signed ones as zigzag. Columns of
//! devices, threads and latencies have entries only for events with the flag, hints only for hints, repeats only for accesses.
//! Version 1 of the format has no column of hints, versions 1 and 2 none of repeats.

use std::time::Duration;

use hmm_backend::observe::{Cause, Event, EventKind};
use hmm_backend::pages::{Access, DeviceId, Hint, Page, Place};

// An event's flags: the low three bits are its cause, 0 for none, then two for the access, then what else it has.
const ACCESS_SHIFT: u32 = 3;
const HAS_DEVICE: u8 = 1 << 5;
const HAS_LATENCY: u8 = 1 << 6;
const OTHER_THREAD: u8 = 1 << 7;

const COLUMNS: usize = 10;
/// How many there were in version 1; version 2 had one more.
const COLUMNS_1: usize = 8;

/// Returns the number of a kind in files. It never changes and is never used again for another one.
fn kind_code(kind: EventKind) -> u8 {
    match kind {
        EventKind::CpuFault => 0,
        EventKind::DeviceFault => 1,
        EventKind::ToDevice => 2,
        EventKind::ToSystem => 3,
        EventKind::MappedInPlace => 4,
        EventKind::Freed => 5,
        EventKind::Deferred => 6,
        EventKind::Fatal => 7,
        EventKind::Access => 8,
        EventKind::Advice => 9,
        EventKind::SlowDriver => 10,
        EventKind::Pinned => 11,
        EventKind::Unpinned => 12,
        EventKind::Duplicated => 13,
        EventKind::Collapsed => 14,
        EventKind::Hint => 15,
        EventKind::BetweenDevices => 16,
        EventKind::Placed => 17,
    }
}

fn kind_of(code: u8) -> Option<EventKind> {
    EventKind::ALL
        .into_iter()
        .find(|kind| kind_code(*kind) == code)
}

fn cause_code(cause: Option<Cause>) -> u8 {
    match cause {
        None => 0,
        Some(Cause::Demand) => 1,
        Some(Cause::Prefetch) => 2,
        Some(Cause::Eviction) => 3,
        Some(Cause::User) => 4,
        Some(Cause::Detach) => 5,
    }
}

fn access_code(access: Option<Access>) -> u8 {
    match access {
        None => 0,
        Some(Access::Read) => 1,
        Some(Access::Write) => 2,
    }
}

/// Returns a hint's number in files, and the number of the device that it names.
fn hint_code(hint: Option<Hint>) -> (u8, Option<DeviceId>) {
    match hint {
        None => (0, None),
        Some(Hint::PreferredLocation(None)) => (1, None),
        Some(Hint::PreferredLocation(Some(Place::System))) => (2, None),
        Some(Hint::PreferredLocation(Some(Place::Device(id)))) => (3, Some(id)),
        Some(Hint::AccessedBy(id, true)) => (4, Some(id)),
        Some(Hint::AccessedBy(id, false)) => (5, Some(id)),
        Some(Hint::ReadMostly(true)) => (6, None),
        Some(Hint::ReadMostly(false)) => (7, None),
    }
}

/// Takes the next hint out of a column, the reverse of [`hint_code`]; none if no writer writes this.
fn take_hint(hints: &mut &[u8]) -> Option<Option<Hint>> {
    let code = take(hints)?;
    Some(match code {
        0 => None,
        1 => Some(Hint::PreferredLocation(None)),
        2 => Some(Hint::PreferredLocation(Some(Place::System))),
        3 => Some(Hint::PreferredLocation(Some(Place::Device(DeviceId(
            take(hints)?,
        ))))),
        4 | 5 => Some(Hint::AccessedBy(DeviceId(take(hints)?), code == 4)),
        6 | 7 => Some(Hint::ReadMostly(code == 6)),
        _ => return None,
    })
}

/// Appends the payload for events.
pub fn encode(events: &[Event], out: &mut Vec<u8>) {
    let mut columns: [Vec<u8>; COLUMNS] = [const { Vec::new() }; COLUMNS];
    let [
        kinds,
        flags,
        devices,
        times,
        pages,
        counts,
        threads,
        latencies,
        hints,
        repeats,
    ] = &mut columns;
    let (mut time, mut page, mut thread) = (0, 0, 0);
    for event in events {
        kinds.push(kind_code(event.kind));
        let mut flag = cause_code(event.cause) | access_code(event.access) << ACCESS_SHIFT;
        if let Some(device) = event.device {
            flag |= HAS_DEVICE;
            devices.push(device.0);
        }
        let now = nanos(event.time);
        put(times, zigzag(now.wrapping_sub(time) as i64));
        time = now;
        put(pages, zigzag(i64::from(event.page.0) - i64::from(page)));
        page = event.page.0;
        put(counts, event.pages.into());
        if event.thread != thread {
            flag |= OTHER_THREAD;
            put(threads, event.thread.into());
            thread = event.thread;
        }
        if !event.latency.is_zero() {
            flag |= HAS_LATENCY;
            put(latencies, nanos(event.latency));
        }
        if event.kind == EventKind::Hint {
            let (code, device) = hint_code(event.hint);
            hints.push(code);
            hints.extend(device.map(|device| device.0));
        }
        if event.kind == EventKind::Access {
            put(repeats, u64::from(event.repeats.saturating_sub(1)));
        }
        flags.push(flag);
    }
    for column in &columns {
        put(out, column.len() as u64);
        out.extend_from_slice(column);
    }
}

/// Returns the events in a payload; none if no writer writes this.
pub fn decode(payload: &[u8], count: u32) -> Option<Vec<Event>> {
    let mut rest = payload;
    let mut columns: [&[u8]; COLUMNS] = [&[]; COLUMNS];
    for (number, column) in columns.iter_mut().enumerate() {
        if number >= COLUMNS_1 && rest.is_empty() {
            break;
        }
        let length = usize::try_from(get(&mut rest)?).ok()?;
        (*column, rest) = rest.split_at_checked(length)?;
    }
    let [
        kinds,
        flags,
        devices,
        times,
        pages,
        counts,
        threads,
        latencies,
        hints,
        repeats,
    ] = &mut columns;
    let counted = !repeats.is_empty();
    // Checked before room is made for as many events as the header says.
    if kinds.len() != count as usize {
        return None;
    }
    let mut events = Vec::with_capacity(count as usize);
    let (mut time, mut page, mut thread) = (0u64, 0u32, 0u32);
    for _ in 0..count {
        let kind = kind_of(take(kinds)?)?;
        let flag = take(flags)?;
        time = time.wrapping_add(unzigzag(get(times)?) as u64);
        let difference = unzigzag(get(pages)?);
        page = u32::try_from(i64::from(page).checked_add(difference)?).ok()?;
        let pages = u32::try_from(get(counts)?).ok()?;
        if flag & OTHER_THREAD != 0 {
            thread = u32::try_from(get(threads)?).ok()?;
        }
        events.push(Event {
            time: Duration::from_nanos(time),
            kind,
            page: Page(page),
            pages,
            device: match flag & HAS_DEVICE {
                0 => None,
                _ => Some(DeviceId(take(devices)?)),
            },
            cause: match flag & 7 {
                0 => None,
                code => Some(
                    Cause::ALL
                        .into_iter()
                        .find(|cause| cause_code(Some(*cause)) == code)?,
                ),
            },
            access: match flag >> ACCESS_SHIFT & 3 {
                0 => None,
                1 => Some(Access::Read),
                2 => Some(Access::Write),
                _ => return None,
            },
            thread,
            latency: match flag & HAS_LATENCY {
                0 => Duration::ZERO,
                _ => Duration::from_nanos(get(latencies)?),
            },
            hint: match kind {
                EventKind::Hint => take_hint(hints)?,
                _ => None,
            },
            repeats: match kind {
                EventKind::Access if counted => {
                    u32::try_from(get(repeats)?).ok()?.checked_add(1)?
                }
                _ => 1,
            },
        });
    }
    let all_used = rest.is_empty() && columns.iter().all(|column| column.is_empty());
    all_used.then_some(events)
}

/// 584 years are enough.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

fn get(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes)?;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit only.
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
