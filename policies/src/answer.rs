//! What a script returned, as advice. Values of a wrong type are an error; numbers out of range are cut, here or
//! by the backend.

use std::time::Duration;

use hmm_backend::{
    Advice, BLOCK_PAGES, BlockFault, DeviceId, Page, PageRange, PageSet, Place, Wish,
};
use mlua::{Table, Value};

use crate::page_sets;

/// The most values that mean something.
pub(crate) type Returned = (Value, Value, Value, Value, Value);

/// A script's decision about a fault.
pub(crate) struct Answer {
    pub(crate) advice: Advice,
    /// The default policy shall say what to bring along.
    pub(crate) default_prefetch: bool,
}

/// Pages that a script named.
enum Pages {
    None,
    Default,
    Set(PageSet),
    /// First page and number.
    Range(f64, f64),
}

/// What a value is, in words.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Number(n) => format!("the number {n}"),
        Value::Integer(n) => format!("the number {n}"),
        Value::Nil => "nothing".into(),
        other => format!("a {}", other.type_name()),
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) if n.is_nan() => None,
        Value::Number(n) => Some(*n),
        Value::Integer(n) => Some(*n as f64),
        _ => None,
    }
}

fn pages(first: &Value, count: &Value) -> Result<Pages, String> {
    let n = match count {
        Value::Nil => 1.0,
        value => number(value).ok_or_else(|| format!("{} as the number of pages", kind(value)))?,
    };
    match first {
        Value::Nil | Value::Boolean(false) => Ok(Pages::None),
        Value::Boolean(true) => Ok(Pages::Default),
        Value::Buffer(buffer) if buffer.len() == page_sets::BYTES => {
            Ok(Pages::Set(page_sets::from_bytes(&buffer.read_bytes(0))))
        }
        value => match number(value) {
            Some(first) => Ok(Pages::Range(first, n)),
            None => Err(format!(
                "{} where a page, a page set, a table, true or nil is expected",
                kind(value)
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

fn time(value: &Value, what: &str) -> Result<Duration, String> {
    match value {
        Value::Nil => Ok(Duration::ZERO),
        value => match number(value) {
            Some(us) => Ok(Duration::try_from_secs_f64(us.max(0.0) / 1e6).unwrap_or(Duration::MAX)),
            None => Err(format!("{} as the time to {what}", kind(value))),
        },
    }
}

fn flag(value: &Value, what: &str) -> Result<bool, String> {
    match value {
        Value::Nil => Ok(false),
        Value::Boolean(flag) => Ok(*flag),
        value => Err(format!("{} for `{what}`", kind(value))),
    }
}

/// `on_fault`: what to bring along (pages, their number), how long to hold and to throttle, whether to stay; or a
/// table of these.
pub(crate) fn advice(returned: Returned, fault: &BlockFault) -> Result<Answer, String> {
    let (first, count, hold, throttle, stay) = returned;
    if let Value::Table(table) = &first {
        let get = |name| table.raw_get::<Value>(name).map_err(|e| e.to_string());
        let mut answer = plain(
            &get("prefetch")?,
            &get("count")?,
            &get("hold")?,
            &get("throttle")?,
            &get("stay")?,
            fault,
        )?;
        answer.advice.migrate.extend(wish_list(&get("migrate")?)?);
        answer.advice.duplicate = duplicates(&get("duplicate")?)?;
        return Ok(answer);
    }
    plain(&first, &count, &hold, &throttle, &stay, fault)
}

fn plain(
    first: &Value,
    count: &Value,
    hold: &Value,
    throttle: &Value,
    stay: &Value,
    fault: &BlockFault,
) -> Result<Answer, String> {
    let mut advice = Advice {
        stay: flag(stay, "stay")?,
        hold: time(hold, "hold")?,
        throttle: time(throttle, "throttle")?,
        ..Advice::default()
    };
    let mut default_prefetch = false;
    match pages(first, count)? {
        Pages::None => {}
        Pages::Default => default_prefetch = true,
        Pages::Set(set) => advice.prefetch = set,
        Pages::Range(first, n) => {
            let block_start = fault.block.first_page();
            let block = PageRange::with_len(block_start, BLOCK_PAGES as u32);
            let range = range(first, n);
            let inside = PageRange::new(range.start.max(block.start), range.end.min(block.end));
            if !inside.is_empty() {
                let start = inside.start.index_in_block();
                let end = start + inside.len() as usize;
                advice.prefetch.insert_range(start..end);
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
    // They are served in any case: a range around them is not out of range.
    advice.prefetch = advice.prefetch.difference(&fault.pages);
    Ok(Answer {
        advice,
        default_prefetch,
    })
}

/// `true` for all pages that come to system memory, or some of them.
fn duplicates(value: &Value) -> Result<PageSet, String> {
    match pages(value, &Value::Nil) {
        Ok(Pages::None) => Ok(PageSet::EMPTY),
        Ok(Pages::Default) => Ok(PageSet::from_range(0..BLOCK_PAGES as usize)),
        Ok(Pages::Set(set)) => Ok(set),
        Ok(Pages::Range(..)) | Err(_) => Err(format!("{} for `duplicate`", kind(value))),
    }
}

/// `on_remote_accesses`: `true` for all the pages, or some of them.
pub(crate) fn remote(returned: Returned, seen: &BlockFault) -> Result<PageSet, String> {
    Ok(match pages(&returned.0, &returned.1)? {
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

/// `on_tick`: a list of wishes.
pub(crate) fn wishes(returned: Returned) -> Result<Vec<Wish>, String> {
    wish_list(&returned.0)
}

/// A list of `{first, count, device}`; without a device they go to system memory.
fn wish_list(value: &Value) -> Result<Vec<Wish>, String> {
    let Value::Table(list) = value else {
        return match value {
            Value::Nil => Ok(Vec::new()),
            value => Err(format!(
                "{} where a list of {{first, count, device}} is expected",
                kind(value)
            )),
        };
    };
    // The backend takes no more than a few; a long list must not cost its time.
    const MOST: usize = 64;
    (1..=list.raw_len().min(MOST))
        .map(|i| match list.raw_get::<Value>(i) {
            Ok(Value::Table(wish)) => read_wish(&wish),
            Ok(value) => Err(format!(
                "{} in a list of {{first, count, device}}",
                kind(&value)
            )),
            Err(error) => Err(error.to_string()),
        })
        .collect()
}

fn read_wish(wish: &Table) -> Result<Wish, String> {
    let get = |i: usize| wish.raw_get::<Value>(i).map_err(|e| e.to_string());
    let (first, count) = (get(1)?, get(2)?);
    let Pages::Range(first, n) = pages(&first, &count)? else {
        return Err(format!("{} as the first page of a wish", kind(&first)));
    };
    let to = match get(3)? {
        Value::Nil => Place::System,
        value => match number(&value) {
            Some(id) if (0.0..=255.0).contains(&id) => Place::Device(DeviceId(id as u8)),
            _ => return Err(format!("{} as the device of a wish", kind(&value))),
        },
    };
    Ok(Wish {
        pages: range(first, n),
        to,
    })
}

/// `victims`: a list of indices of candidates, from 1.
pub(crate) fn indices(returned: Returned, candidates: usize) -> Result<Vec<usize>, String> {
    let Value::Table(list) = &returned.0 else {
        return match &returned.0 {
            Value::Nil => Ok(Vec::new()),
            value => Err(format!(
                "{} where a list of candidates' indices is expected",
                kind(value)
            )),
        };
    };
    (1..=list.raw_len().min(candidates))
        .map(|i| {
            let value = list.raw_get::<Value>(i).map_err(|e| e.to_string())?;
            match number(&value) {
                Some(n) if n >= 1.0 && n <= candidates as f64 => Ok(n as usize - 1),
                _ => Err(format!(
                    "{} as the index of one of {candidates} candidates",
                    kind(&value)
                )),
            }
        })
        .collect()
}
