//! Hints and their effect: NVIDIA UVM's choice of residency (`uvm_va_block.c` of the open kernel modules, 595.45),
//! for CPUs on one side and devices that reach system memory on the other.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use super::modified::Modifier;
use crate::pages::{Block, DeviceId, Hint, PageRange, PageSet, Place};
use crate::policy::{Advice, BlockFault, BlockView};
use crate::residency::Residency;

impl FromStr for Hint {
    type Err = String;

    /// Parses what [`fmt::Display`] writes: `preferred:system`, `preferred:device0`, `preferred:none`,
    /// `accessed-by:device0`, `not-accessed-by:device0`, `read-mostly` or `not-read-mostly`.
    fn from_str(text: &str) -> Result<Hint, String> {
        let device = |text: &str| {
            let number = text.strip_prefix("device")?;
            number.parse().ok().map(DeviceId)
        };
        let hint = match text.split_once(':').unwrap_or((text, "")) {
            ("preferred", "none") => Some(Hint::PreferredLocation(None)),
            ("preferred", "system") => Some(Hint::PreferredLocation(Some(Place::System))),
            ("preferred", place) => {
                device(place).map(|id| Hint::PreferredLocation(Some(Place::Device(id))))
            }
            ("accessed-by", by) => device(by).map(|id| Hint::AccessedBy(id, true)),
            ("not-accessed-by", by) => device(by).map(|id| Hint::AccessedBy(id, false)),
            ("read-mostly", "") => Some(Hint::ReadMostly(true)),
            ("not-read-mostly", "") => Some(Hint::ReadMostly(false)),
            _ => None,
        };
        hint.ok_or_else(|| {
            format!(
                "unknown hint '{text}'; there are: preferred:system, preferred:deviceN, preferred:none, \
                 accessed-by:deviceN, not-accessed-by:deviceN, read-mostly, not-read-mostly"
            )
        })
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::PreferredLocation(None) => f.write_str("preferred:none"),
            Hint::PreferredLocation(Some(Place::System)) => f.write_str("preferred:system"),
            Hint::PreferredLocation(Some(Place::Device(id))) => {
                write!(f, "preferred:device{}", id.0)
            }
            Hint::AccessedBy(id, true) => write!(f, "accessed-by:device{}", id.0),
            Hint::AccessedBy(id, false) => write!(f, "not-accessed-by:device{}", id.0),
            Hint::ReadMostly(true) => f.write_str("read-mostly"),
            Hint::ReadMostly(false) => f.write_str("not-read-mostly"),
        }
    }
}

/// Sets of pages of one block by a key. There are few keys, and no set is empty.
#[derive(Debug)]
struct Sets<K>(Vec<(K, PageSet)>);

impl<K> Default for Sets<K> {
    fn default() -> Self {
        Sets(Vec::new())
    }
}

impl<K: PartialEq + Copy> Sets<K> {
    fn insert(&mut self, key: K, pages: &PageSet) {
        match self.0.iter_mut().find(|(k, _)| *k == key) {
            Some((_, set)) => *set = set.union(pages),
            None => self.0.push((key, *pages)),
        }
    }

    fn remove(&mut self, key: impl Fn(K) -> bool, pages: &PageSet) {
        self.0.retain_mut(|(k, set)| {
            if key(*k) {
                *set = set.difference(pages);
            }
            !set.is_empty()
        });
    }

    fn get(&self, key: K) -> PageSet {
        let found = self.0.iter().find(|(k, _)| *k == key);
        found.map_or(PageSet::EMPTY, |(_, set)| *set)
    }
}

/// The preferred locations of pages, block by block.
#[derive(Debug, Default)]
pub(super) struct Preferences(HashMap<Block, Sets<Place>>);

impl Preferences {
    /// Applies a hint about the preferred location; ignores other hints.
    pub(super) fn hinted(&mut self, pages: PageRange, hint: Hint) {
        let Hint::PreferredLocation(place) = hint else {
            return;
        };
        for part in pages.split_by_block() {
            let block = part.start.block();
            let sets = self.0.entry(block).or_default();
            let pages = PageSet::of(part);
            sets.remove(|_| true, &pages);
            if let Some(place) = place {
                sets.insert(place, &pages);
            }
            if sets.0.is_empty() {
                self.0.remove(&block);
            }
        }
    }

    /// The preferred location of the page with this index, if it has one.
    pub(super) fn of(&self, block: Block, index: usize) -> Option<Place> {
        let mut sets = self.0.get(&block)?.0.iter();
        sets.find(|(_, set)| set.contains(index))
            .map(|(place, _)| *place)
    }
}

#[derive(Debug, Default)]
struct BlockHints {
    accessed_by: Sets<DeviceId>,
    read_mostly: PageSet,
}

/// The modifier that follows hints.
#[derive(Debug, Default)]
pub struct Hints {
    preferences: Preferences,
    others: HashMap<Block, BlockHints>,
}

impl Hints {
    /// Whether the first page of a device's fault stays in system memory; `None` if no hint decides that. The numbers
    /// are those of UVM's rules, in UVM's order; the missing rules cannot apply here.
    fn stays(&self, fault: &BlockFault, device: DeviceId, view: &BlockView<'_>) -> Option<bool> {
        let index = fault.pages.first()?;
        let residency = view.residency(index);
        let preferred = self.preferences.of(fault.block, index);
        let others = self.others.get(&fault.block);
        // 2: A read-mostly page moves to the side that faults. CPUs that read it afterwards get a duplicate.
        if others.is_some_and(|o| o.read_mostly.contains(index)) {
            return Some(false);
        }
        // 3: The device is the preferred location.
        if preferred == Some(fault.to) {
            return Some(false);
        }
        // 6: The page is untouched: it is created at its preferred location if the device reaches it there.
        if residency == Residency::Untouched && preferred == Some(Place::System) {
            return Some(true);
        }
        // 7: The device reaches the page where it is.
        let accessed_by = others.is_some_and(|o| o.accessed_by.get(device).contains(index));
        if accessed_by && residency == Residency::System {
            return Some(true);
        }
        // 9: The page moves to its preferred location if the device reaches it there.
        if preferred == Some(Place::System) {
            return Some(true);
        }
        None
    }
}

impl Modifier for Hints {
    fn modify(&mut self, advice: &mut Advice, fault: &BlockFault, view: &BlockView<'_>) {
        if let Place::Device(device) = fault.to
            && let Some(stays) = self.stays(fault, device, view)
        {
            advice.stay = stays;
        }
        if let (Place::System, Some(hints)) = (fault.to, self.others.get(&fault.block)) {
            let there = PageSet::from_range(0..view.len());
            let read_mostly = hints.read_mostly.intersection(&there);
            advice.duplicate = advice.duplicate.union(&read_mostly);
        }
        let Some(sets) = self.preferences.0.get(&fault.block) else {
            return;
        };
        // Do not prefetch pages away from their preferred location. If an untouched block is first touched at the
        // preferred location, prefetch all its pages with that preferred location.
        for (_, pages) in sets.0.iter().filter(|(place, _)| *place != fault.to) {
            advice.prefetch = advice.prefetch.difference(pages);
        }
        let home = sets.get(fault.to);
        let untouched = |i| view.residency(i) == Residency::Untouched;
        if fault.pages.iter().all(|i| home.contains(i)) && (0..view.len()).all(untouched) {
            let home = home.intersection(&PageSet::from_range(0..view.len()));
            advice.prefetch = advice.prefetch.union(&home.difference(&fault.pages));
        }
    }

    fn permitted(&mut self, pages: PageSet, seen: &BlockFault) -> PageSet {
        match self.preferences.0.get(&seen.block) {
            Some(sets) => pages.difference(&sets.get(Place::System)),
            None => pages,
        }
    }

    fn hinted(&mut self, pages: PageRange, hint: Hint) {
        self.preferences.hinted(pages, hint);
        for part in pages.split_by_block() {
            let set = PageSet::of(part);
            let block = part.start.block();
            let hints = match hint {
                Hint::PreferredLocation(_) => continue,
                Hint::AccessedBy(..) | Hint::ReadMostly(_) => self.others.entry(block).or_default(),
            };
            match hint {
                Hint::AccessedBy(device, true) => hints.accessed_by.insert(device, &set),
                Hint::AccessedBy(device, false) => hints.accessed_by.remove(|d| d == device, &set),
                Hint::ReadMostly(true) => hints.read_mostly = hints.read_mostly.union(&set),
                Hint::ReadMostly(false) => hints.read_mostly = hints.read_mostly.difference(&set),
                Hint::PreferredLocation(_) => {}
            }
            if hints.accessed_by.0.is_empty() && hints.read_mostly.is_empty() {
                self.others.remove(&block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::modified::Modified;
    use super::*;
    use crate::pages::{Access, Page};
    use crate::policy::test_view::*;
    use crate::policy::{Density, OnDemand};

    const DEVICE: Place = Place::Device(DeviceId(0));

    fn range(start: u32, end: u32) -> PageRange {
        PageRange::new(Page(start), Page(end))
    }

    #[test]
    fn hints_are_read_as_they_are_printed() {
        for text in [
            "preferred:none",
            "preferred:system",
            "preferred:device3",
            "accessed-by:device0",
            "not-accessed-by:device15",
            "read-mostly",
            "not-read-mostly",
        ] {
            assert_eq!(text.parse::<Hint>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "preferred",
            "preferred:gpu",
            "accessed-by:device",
            "read-mostly:no",
        ] {
            let error = text.parse::<Hint>().unwrap_err();
            assert!(error.starts_with(&format!("unknown hint '{text}'; there are:")));
        }
    }

    /// UVM's rules, row by row: hint, page, access, and whether the page stays in system memory.
    #[test]
    fn a_device_fault_follows_the_rules() {
        let words = block(64, &PageSet::from_range(0..10), &PageSet::EMPTY);
        let (system, untouched) = (3, 30);
        let (read, write) = (Access::Read, Access::Write);
        let preferred = |place| Hint::PreferredLocation(place);
        for (hint, page, access, stay) in [
            (None, system, read, false),
            // 2: A read-mostly page moves to the side that faults, whatever other hints say.
            (Some(Hint::ReadMostly(true)), system, read, false),
            (Some(Hint::ReadMostly(true)), system, write, false),
            (Some(Hint::ReadMostly(true)), untouched, read, false),
            // 3
            (Some(preferred(Some(DEVICE))), system, write, false),
            // 6
            (Some(preferred(Some(Place::System))), untouched, write, true),
            // 7
            (
                Some(Hint::AccessedBy(DeviceId(0), true)),
                system,
                write,
                true,
            ),
            (
                Some(Hint::AccessedBy(DeviceId(0), true)),
                untouched,
                write,
                false,
            ),
            (
                Some(Hint::AccessedBy(DeviceId(1), true)),
                system,
                write,
                false,
            ),
            // 9
            (Some(preferred(Some(Place::System))), system, write, true),
            // 11
            (
                Some(preferred(Some(Place::Device(DeviceId(1))))),
                system,
                write,
                false,
            ),
        ] {
            let mut policy = Modified::boxed(Hints::default(), Box::new(OnDemand));
            if let Some(hint) = hint {
                policy.hinted(range(0, 64), hint);
            }
            let fault = BlockFault {
                access,
                ..fault([page], DEVICE)
            };
            let advice = policy.advise(&fault, &view(&words));
            assert_eq!(advice.stay, stay, "{hint:?}, page {page}, {access:?}");
        }
    }

    #[test]
    fn cpus_duplicate_what_is_read_mostly() {
        let words = block(64, &PageSet::EMPTY, &PageSet::from_range(0..64));
        let mut policy = Modified::boxed(Hints::default(), Box::new(OnDemand));
        policy.hinted(range(10, 600), Hint::ReadMostly(true));
        policy.hinted(range(20, 30), Hint::ReadMostly(false));
        let fault = fault([15, 25], Place::System);
        let (advice, cut) = policy
            .advise(&fault, &view(&words))
            .validated(&fault, &view(&words));
        assert!(!cut);
        let duplicated: Vec<_> = advice.duplicate.runs().collect();
        assert_eq!(duplicated, [10..20, 30..64]);
    }

    #[test]
    fn hints_are_taken_back_page_by_page() {
        let words = block(64, &PageSet::from_range(0..64), &PageSet::EMPTY);
        let mut policy = Modified::boxed(Hints::default(), Box::new(OnDemand));
        let mut stays = |change: Option<(u32, u32, &str)>| -> Vec<usize> {
            if let Some((start, end, hint)) = change {
                policy.hinted(range(start, end), hint.parse().unwrap());
            }
            let advise = |i: &usize| policy.advise(&fault([*i], DEVICE), &view(&words)).stay;
            [0, 5, 10, 15].into_iter().filter(advise).collect()
        };
        assert_eq!(stays(Some((0, 11, "preferred:system"))), [0, 5, 10]);
        assert_eq!(stays(Some((5, 6, "preferred:device0"))), [0, 10]);
        assert_eq!(stays(Some((0, 1, "preferred:none"))), [10]);
        assert_eq!(stays(Some((0, 600, "accessed-by:device0"))), [0, 10, 15]);
        assert_eq!(stays(Some((0, 600, "not-accessed-by:device0"))), [10]);
    }

    #[test]
    fn nothing_is_brought_along_from_home_and_homes_are_filled_at_once() {
        let words = block(512, &PageSet::EMPTY, &PageSet::EMPTY);
        let mut policy = Modified::boxed(Hints::default(), Box::new(Density::default()));
        policy.hinted(range(0, 8), "preferred:system".parse().unwrap());
        policy.hinted(range(100, 200), "preferred:device0".parse().unwrap());
        let mut runs = |page| -> Vec<_> {
            let advice = policy.advise(&fault([page], DEVICE), &view(&words));
            advice.prefetch.runs().collect()
        };
        assert_eq!(runs(12), [8..12, 13..16]);
        assert_eq!(runs(150), [100..150, 151..200]);
    }
}
