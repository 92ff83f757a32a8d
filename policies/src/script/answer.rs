//! Converts the values that a script returned into advice. Values of a wrong type are an error; numbers out of range are cut, here or
//! by the backend.

use std::ffi::c_int;
use std::time::Duration;

use hmm_backend::pages::{BLOCK_PAGES, DeviceId, Page, PageRange, PageSet, Place};
use hmm_backend::policy::{Advice, BlockFault, Wish};

use super::results::{Item, Key, RESULTS, Results, Table};
use crate::sandbox::page_sets;

/// The keys of an advice that is a table.
pub(crate) const KEYS: [&str; 7] = [
    "prefetch",
    "count",
    "hold",
    "throttle",
    "stay",
    "migrate",
    "duplicate",
];

/// Pages that a script named.
enum Pages {
    None,
    Default,
    Set(PageSet),
    /// First page and number.
    Range(f64, f64),
}

fn number(item: &Item) -> Option<f64> {
    match item {
        Item::Number(n) if !n.is_nan() => Some(*n),
        _ => None,
    }
}

fn pages(first: &Item, count: &Item) -> Result<Pages, String> {
    let n = match count {
        Item::Nil => 1.0,
        item => number(item).ok_or_else(|| format!("{} as the number of pages", item.kind()))?,
    };
    match first {
        Item::Nil | Item::Flag(false) => match count {
            Item::Nil => Ok(Pages::None),
            count => Err(format!(
                "{} as the number of pages, but no page",
                count.kind()
            )),
        },
        Item::Flag(true) => Ok(Pages::Default),
        Item::Set(bytes) => Ok(Pages::Set(page_sets::from_bytes(bytes))),
        item => match number(item) {
            Some(first) => Ok(Pages::Range(first, n)),
            None => Err(format!(
                "{} where a page, a page set, a table, true or nil is expected",
                item.kind()
            )),
        },
    }
}

/// Pages from `first`, as far as page numbers go.
fn range(first: f64, n: f64) -> PageRange {
    // Conversions saturate.
    let (start, end) = (first.floor() as u32, (first.floor() + n.floor()) as u32);
    PageRange::new(Page(start), Page(end))
}

fn time(item: &Item, what: &str) -> Result<Duration, String> {
    match item {
        Item::Nil => Ok(Duration::ZERO),
        item => match number(item) {
            Some(us) => Ok(Duration::try_from_secs_f64(us.max(0.0) / 1e6).unwrap_or(Duration::MAX)),
            None => Err(format!("{} as the time to {what}", item.kind())),
        },
    }
}

fn flag(item: &Item, what: &str) -> Result<bool, String> {
    match item {
        Item::Nil => Ok(false),
        Item::Flag(flag) => Ok(*flag),
        item => Err(format!("{} for `{what}`", item.kind())),
    }
}

/// Refuses a table that has another key than one of `known`.
fn only_keys(table: &Table, known: &[&str]) -> Result<(), String> {
    let is_known = |key: &Key| match key {
        Key::Text(name) => known.iter().any(|known| known.as_bytes() == *name),
        _ => false,
    };
    // A table has each key once, so among one more than are known there is one that is not.
    match table.unknown_key(known.len() + 1, is_known) {
        Some(key) => Err(format!(
            "a table with {key}; its keys may be: {}",
            known.join(", ")
        )),
        None => Ok(()),
    }
}

/// Refuses a table that has another key than the places 1 to `len`, looking at up to `most` of them.
fn only_places(table: &Table, len: usize, most: usize, expected: &str) -> Result<(), String> {
    let is_place = |key: &Key| match key {
        Key::Number(n) => *n >= 1.0 && *n <= len as f64 && n.fract() == 0.0,
        _ => false,
    };
    match table.unknown_key(most, is_place) {
        Some(key) => Err(format!("a table with {key} where {expected} is expected")),
        None => Ok(()),
    }
}

/// Refuses a value from this place on.
fn nothing_from(place: c_int, results: &Results<'_>, why: &str) -> Result<(), String> {
    let mut items = (place..RESULTS).map(|i| results.get(i));
    match items.find(|item| !matches!(item, Item::Nil)) {
        Some(item) => Err(format!("{} {why}", item.kind())),
        None => Ok(()),
    }
}

/// What a script says about a fault.
struct Said {
    pages: Pages,
    hold: Duration,
    throttle: Duration,
    stay: bool,
    migrate: Vec<Wish>,
    duplicate: PageSet,
}

/// `on_fault`: what to prefetch (pages, their number), how long to hold and to throttle, whether to stay; or a
/// table of these, whose [`KEYS`] are kept from place `keys` on. Joins that with the advice there is: the longer times, all
/// pages. Returns whether density shall say what to prefetch. After an error the advice is as it was.
pub(crate) fn advice(
    results: &Results<'_>,
    keys: usize,
    fault: &BlockFault,
    advice: &mut Advice,
) -> Result<bool, String> {
    let said = match results.get(0) {
        Item::Table(table) => {
            nothing_from(
                1,
                results,
                "after a table, which has to be the whole advice",
            )?;
            only_keys(&table, &KEYS)?;
            Said {
                pages: table.field(keys, |first| {
                    table.field(keys + 1, |count| pages(&first, &count))
                })?,
                hold: table.field(keys + 2, |it| time(&it, "hold"))?,
                throttle: table.field(keys + 3, |it| time(&it, "throttle"))?,
                stay: table.field(keys + 4, |it| flag(&it, "stay"))?,
                migrate: table.field(keys + 5, |it| wish_list(&it))?,
                duplicate: table.field(keys + 6, |it| duplicates(&it))?,
            }
        }
        first => {
            nothing_from(
                5,
                results,
                "as a sixth value; there are five: pages, count, hold, throttle, stay",
            )?;
            Said {
                pages: pages(&first, &results.get(1))?,
                hold: time(&results.get(2), "hold")?,
                throttle: time(&results.get(3), "throttle")?,
                stay: flag(&results.get(4), "stay")?,
                migrate: Vec::new(),
                duplicate: PageSet::EMPTY,
            }
        }
    };
    advice.stay |= said.stay;
    advice.hold = advice.hold.max(said.hold);
    advice.throttle = advice.throttle.max(said.throttle);
    // Touched pages are served in any case: a set or a range with them is not out of range.
    let mut bring = |set: &PageSet| {
        advice.prefetch = advice.prefetch.union(&set.difference(&fault.pages));
    };
    match said.pages {
        Pages::None | Pages::Default => {}
        Pages::Set(set) => bring(&set),
        Pages::Range(first, n) => {
            let block_start = fault.block.first_page();
            let block = PageRange::with_len(block_start, BLOCK_PAGES as u32);
            let range = range(first, n);
            let inside = PageRange::new(range.start.max(block.start), range.end.min(block.end));
            if !inside.is_empty() {
                let start = inside.start.index_in_block();
                bring(&PageSet::from_range(start..start + inside.len() as usize));
            }
            // What lies in other blocks is not urgent.
            for part in [
                PageRange::new(range.start, range.end.min(block.start)),
                PageRange::new(range.start.max(block.end), range.end),
            ] {
                if !part.is_empty() {
                    advice.migrate.push(Wish {
                        pages: part,
                        to: fault.to,
                    });
                }
            }
        }
    }
    advice.migrate.extend(said.migrate);
    advice.duplicate = advice.duplicate.union(&said.duplicate);
    Ok(matches!(said.pages, Pages::Default))
}

/// Reads `duplicate`: `true` for all pages that come to system memory, or some of them.
fn duplicates(item: &Item) -> Result<PageSet, String> {
    match pages(item, &Item::Nil) {
        Ok(Pages::None) => Ok(PageSet::EMPTY),
        Ok(Pages::Default) => Ok(PageSet::from_range(0..BLOCK_PAGES as usize)),
        Ok(Pages::Set(set)) => Ok(set),
        Ok(Pages::Range(..)) | Err(_) => Err(format!("{} for `duplicate`", item.kind())),
    }
}

/// Reads the answer of `on_remote_accesses`: `true` for all the pages, or some of them.
pub(crate) fn remote(results: &Results<'_>, seen: &BlockFault) -> Result<PageSet, String> {
    nothing_from(2, results, "as a third value; there are two: pages, count")?;
    Ok(match pages(&results.get(0), &results.get(1))? {
        Pages::None => PageSet::EMPTY,
        Pages::Default => seen.pages,
        Pages::Set(set) => set,
        Pages::Range(first, n) => {
            let range = range(first, n);
            let wanted = |i| range.contains(seen.block.page(i));
            PageSet::from_fn(BLOCK_PAGES as usize, wanted)
        }
    })
}

/// Reads the answer of `on_tick`: a list of wishes.
pub(crate) fn wishes(results: &Results<'_>) -> Result<Vec<Wish>, String> {
    nothing_from(1, results, "after the list of wishes")?;
    wish_list(&results.get(0))
}

/// How errors name the list that [`wish_list`] reads, and an element of it.
const WISHES: &str = "a list of {first, count, device}";
const WISH: &str = "{first, count, device}";

/// Reads a list of `{first, count, device}`; without a device, the pages go to system memory.
fn wish_list(item: &Item) -> Result<Vec<Wish>, String> {
    // The backend takes only a few wishes, so the rest of a long list is not read.
    const MOST: usize = 64;
    let wish = |item: Item| match item {
        Item::Table(wish) => {
            only_places(&wish, 3, 4, WISH)?;
            let pages = wish.element(1, |first| {
                wish.element(2, |count| match pages(&first, &count)? {
                    Pages::Range(first, n) => Ok(range(first, n)),
                    _ => Err(format!("{} as the first page of a wish", first.kind())),
                })
            })?;
            let to = wish.element(3, |device| match (&device, number(&device)) {
                (Item::Nil, _) => Ok(Place::System),
                (_, Some(id)) if (0.0..=255.0).contains(&id) => {
                    Ok(Place::Device(DeviceId(id as u8)))
                }
                _ => Err(format!("{} as the device of a wish", device.kind())),
            })?;
            Ok(Wish { pages, to })
        }
        item => Err(format!("{} in {WISHES}", item.kind())),
    };
    list(item, MOST, WISHES, wish)
}

/// Reads a list of which `most` elements are wanted. Nothing is an empty one.
fn list<T>(
    item: &Item,
    most: usize,
    expected: &str,
    element: impl Fn(Item<'_>) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let list = match item {
        Item::Table(list) => list,
        Item::Nil => return Ok(Vec::new()),
        item => return Err(format!("{} where {expected} is expected", item.kind())),
    };
    only_places(list, list.len(), most, expected)?;
    (1..=list.len().min(most))
        .map(|i| list.element(i, &element))
        .collect()
}

/// Reads the answer of `victims`: a list of indices of candidates, which the script counts from 1.
pub(crate) fn indices(results: &Results<'_>, candidates: usize) -> Result<Vec<usize>, String> {
    const INDICES: &str = "a list of candidates' indices";
    nothing_from(1, results, "after the list of indices")?;
    let index = |item: Item| match number(&item) {
        Some(n) if n >= 1.0 && n <= candidates as f64 => Ok(n as usize - 1),
        _ => Err(format!(
            "{} as the index of one of {candidates} candidates",
            item.kind()
        )),
    };
    list(&results.get(0), candidates, INDICES, index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_have_the_keys_of_advice() {
        let definitions = include_str!("../../hmmvisor.d.luau");
        let (_, advice) = definitions.split_once("export type Advice = {").unwrap();
        let (advice, _) = advice.split_once("\n}").unwrap();
        let lines = advice.lines().map(str::trim);
        let declared: Vec<&str> = lines
            .filter(|line| !line.starts_with("--"))
            .filter_map(|line| Some(line.split_once(':')?.0))
            .collect();
        assert_eq!(declared, KEYS);
    }
}
