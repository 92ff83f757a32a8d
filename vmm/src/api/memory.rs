//! Requests about memory.

use std::collections::BTreeMap;

use hmm_backend::Pinned;
use hmm_backend::pages::{DeviceId, Page, PageRange, Permission, Place};
use hmm_backend::residency::{Residency, Word};
use hmmvisor_api::{self as api, Byte, Doing, Memory, Migrate, Pages, Pin, Pins, Run, Where};
use parking_lot::Mutex;

use super::error::Refusal;
use super::live::Live;

/// The most runs in one answer about residency.
const MOST_RUNS: usize = 1 << 16;
/// The most pins at a time.
const MOST_PINS: usize = 1024;

/// The pins that requests have made and not ended. They end with the machine at the latest.
#[derive(Default)]
pub(crate) struct PinBoard(Mutex<Held>);

#[derive(Default)]
struct Held {
    next: u64,
    pins: BTreeMap<u64, Pinned>,
}

impl Live {
    fn all_pages(&self) -> PageRange {
        PageRange::new(Page(0), Page(self.backend.pages()))
    }

    pub(super) fn memory(&self) -> Result<Memory, Refusal> {
        let mut memory = Memory {
            pages: self.backend.pages().into(),
            ..Memory::default()
        };
        self.look(self.all_pages(), |_, byte| {
            *match byte.place() {
                Where::Untouched => &mut memory.untouched_pages,
                Where::System => &mut memory.system_pages,
                Where::Device => &mut memory.device_pages,
                Where::Coherent => &mut memory.coherent_pages,
                Where::Duplicated => &mut memory.duplicated_pages,
                Where::Exclusive => &mut memory.exclusive_pages,
                Where::Poisoned => &mut memory.poisoned_pages,
            } += 1;
            memory.read_only_pages += u64::from(byte.read_only());
            Ok(())
        })?;
        Ok(memory)
    }

    /// Returns one byte for each page.
    pub(super) fn residency_bytes(&self, pages: Pages) -> Result<Vec<u8>, Refusal> {
        let range = self.range(pages)?;
        let mut bytes = Vec::with_capacity(range.len() as usize);
        self.look(range, |_, byte| {
            bytes.push(byte.0);
            Ok(())
        })?;
        Ok(bytes)
    }

    pub(super) fn residency(&self, pages: Pages) -> Result<Vec<Run>, Refusal> {
        let mut runs: Vec<(Run, Byte)> = Vec::new();
        self.look(self.range(pages)?, |page, byte| {
            let full = runs.len() == MOST_RUNS;
            match runs.last_mut() {
                Some((run, same)) if *same == byte => run.pages += 1,
                _ if full => {
                    let detail =
                        format!("the pages are in more than {MOST_RUNS} runs; ask for fewer pages");
                    return Err(Refusal::bad("pages", detail));
                }
                _ => runs.push((
                    Run {
                        first: page.0,
                        pages: 1,
                        place: byte.place(),
                        device: byte.device(),
                        read_only: byte.read_only(),
                    },
                    byte,
                )),
            }
            Ok(())
        })?;
        Ok(runs.into_iter().map(|(run, _)| run).collect())
    }

    /// Calls `each` with every page of a range, and where it is at this moment. No page is locked for it.
    fn look(
        &self,
        range: PageRange,
        mut each: impl FnMut(Page, Byte) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let hole = self.backend.hole();
        for part in range.split_by_block() {
            if part.overlap(hole) == 0 {
                for (page, word) in part.pages().zip(self.backend.words(part)?) {
                    each(page, byte(word))?;
                }
                continue;
            }
            for page in part.pages() {
                let byte = match hole.contains(page) {
                    true => Byte::new(Where::Untouched, None, false),
                    false => byte(self.backend.word(page)?),
                };
                each(page, byte)?;
            }
        }
        Ok(())
    }

    /// Returns the pages that a request names.
    pub(super) fn range(&self, Pages { first, pages }: Pages) -> Result<PageRange, Refusal> {
        let all = self.backend.pages();
        match first.checked_add(pages) {
            Some(end) if pages > 0 && end <= all => Ok(PageRange::new(Page(first), Page(end))),
            _ => {
                let detail = format!(
                    "guest memory has the pages 0 to {}, and at least one has to be named; there is no such range of {pages} from {first} on",
                    all - 1
                );
                Err(Refusal::bad("first, pages", detail))
            }
        }
    }

    pub(super) fn migrate(&self, request: &Migrate) -> Result<u64, Refusal> {
        let Migrate { first, pages, to } = request;
        let range = self.range(Pages {
            first: *first,
            pages: *pages,
        })?;
        let device = match to.as_str() {
            "system" => None,
            to => {
                let number = to.strip_prefix("device").and_then(|it| it.parse().ok());
                Some(DeviceId(number.ok_or_else(|| {
                    let detail = format!(
                        "`{to}` is no place; write system, or device0 for the first accelerator"
                    );
                    Refusal::bad("to", detail)
                })?))
            }
        };
        self.going_on()?;
        let to = device.map_or(Place::System, Place::Device);
        let operations = &self.operations;
        let moved = operations.follow(Doing::Migrate, device.map(|it| it.0), |progress| {
            self.backend.migrate(to, range, progress)
        })?;
        moved.map_err(|error| Refusal::of_device("to", error))
    }

    pub(super) fn protect(&self, request: &api::Protect) -> Result<(), Refusal> {
        let api::Protect {
            first,
            pages,
            permission,
        } = *request;
        let permission = match permission {
            api::Permission::ReadOnly => Permission::ReadOnly,
            api::Permission::ReadWrite => Permission::Writable,
        };
        let range = self.range(Pages { first, pages })?;
        self.going_on()?;
        Ok(self.backend.set_permission(range, permission)?)
    }

    pub(super) fn hint(&self, request: &api::Hint) -> Result<(), Refusal> {
        let api::Hint { first, pages, hint } = request;
        let range = self.range(Pages {
            first: *first,
            pages: *pages,
        })?;
        let hint = hint.parse().map_err(|error| Refusal::bad("hint", error))?;
        Ok(self.backend.hint(range, hint)?)
    }

    pub(super) fn poison(&self, page: u32) -> Result<(), Refusal> {
        let one = Pages {
            first: page,
            pages: 1,
        };
        let range = self.range(one).map_err(|error| error.about("page"))?;
        self.going_on()?;
        Ok(self.backend.memory_failure(range.start)?)
    }

    pub(super) fn pin(&self, pages: Pages) -> Result<Pin, Refusal> {
        let range = self.range(pages)?;
        self.going_on()?;
        let full = || {
            let detail = format!("there are {MOST_PINS} pins; end one of them first");
            Refusal::conflict(detail)
        };
        if self.pins.0.lock().pins.len() >= MOST_PINS {
            return Err(full());
        }
        // Not under the lock: it waits until the pages are in system memory.
        let pinned = self.backend.pin(range)?;
        let mut held = self.pins.0.lock();
        if held.pins.len() >= MOST_PINS {
            return Err(full());
        }
        let number = held.next;
        held.next += 1;
        held.pins.insert(number, pinned);
        Ok(pin(number, range))
    }

    pub(super) fn pins(&self) -> Pins {
        let held = self.pins.0.lock();
        let pins = held.pins.iter();
        Pins {
            pins: pins.map(|(number, it)| pin(*number, it.range())).collect(),
        }
    }

    pub(super) fn unpin(&self, number: u64) -> Result<(), Refusal> {
        let pinned = self.pins.0.lock().pins.remove(&number);
        match pinned {
            Some(pinned) => {
                drop(pinned);
                Ok(())
            }
            None => {
                let detail = format!("there is no pin {number}; GET /v1/memory/pins lists all");
                Err(Refusal::missing("no such pin", detail))
            }
        }
    }
}

fn pin(number: u64, range: PageRange) -> Pin {
    Pin {
        pin: number,
        first: range.start.0,
        pages: range.len(),
    }
}

fn byte(word: Word) -> Byte {
    let (place, device) = match word.residency() {
        Residency::Untouched => (Where::Untouched, None),
        Residency::System => (Where::System, None),
        Residency::Device(placed) => (Where::Device, Some(placed.device)),
        Residency::Coherent(placed) => (Where::Coherent, Some(placed.device)),
        Residency::Duplicated(placed) => (Where::Duplicated, Some(placed.device)),
        Residency::Exclusive(device) => (Where::Exclusive, Some(device)),
        Residency::Poisoned => (Where::Poisoned, None),
    };
    Byte::new(place, device.map(|device| device.0), word.read_only())
}
