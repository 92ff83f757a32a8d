//! The residency word: everything the backend knows about a folio, in 64 bits.
//!
//! | bits | meaning |
//! |---|---|
//! | 0–2 | state: 0 untouched, 1 system, 2 device, 3 coherent, 4 poisoned, 5 duplicated, 6 exclusive; bit 0 says that CPUs reach it |
//! | 3 | locked: one winner works on the folio |
//! | 4 | waiters: a thread or a CPU sleeps until the lock is released |
//! | 5 | mirrored: some device may have a translation of a page of the folio |
//! | 6 | read-only for CPUs and devices |
//! | 7–10 | order of the folio |
//! | 11–16 | system: number of pins; device, coherent, duplicated, exclusive: device number |
//! | 17–31 | generation: counts state changes |
//! | 32–63 | system, exclusive: held until (ticks); device, coherent, duplicated: the folio's first frame |
//!
//! The table keeps the word in the entry of the folio's first page, its head. The entries of the other pages, the
//! tails, only lead to the head: state 7, and the order. So a folio that migrates as a whole changes one entry.

use super::pattern::Pattern;
use crate::pages::time::Tick;
use crate::pages::{Access, DeviceId, Frame, Page, Permission};

/// Where in a device's memory a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// The device.
    pub device: DeviceId,
    /// The frame that holds this page.
    pub frame: Frame,
    /// Order of the folio the frame belongs to.
    pub order: u8,
}

impl Placed {
    /// The first frame of the folio of `page`, which this is the place of.
    pub(crate) fn folio_frame(self, page: Page) -> Frame {
        Frame(self.frame.0 - (page.0 - page.folio_head(self.order).0))
    }
}

/// Whether CPUs reach a device's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MemoryKind {
    /// They do not.
    Private,
    /// They reach it in place.
    Coherent,
}

/// The place of a page's contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Residency {
    /// Never touched, or freed: the page reads as zeros and has no memory.
    Untouched,
    /// In system memory.
    System,
    /// In a device's memory.
    Device(Placed),
    /// In a device's coherent memory: CPUs and devices access it in place. It moves only on request.
    Coherent(Placed),
    /// The same contents are in a device's private memory and in system memory, for reading only. The device reads
    /// its frame; CPUs and other devices read the page in system memory. A write ends the duplication first.
    Duplicated(Placed),
    /// In system memory, with exclusive access for one device, which performs atomic operations on the page. Any
    /// other access revokes the exclusive access.
    Exclusive(DeviceId),
    /// The contents are lost; every access is fatal.
    Poisoned,
}

impl Residency {
    /// Whether CPUs read the page without a fault.
    pub fn reached_by_cpus(self) -> bool {
        use Residency::*;
        matches!(self, System | Coherent(_) | Duplicated(_))
    }

    /// Whether there are two copies of the contents.
    pub fn duplicated(self) -> bool {
        matches!(self, Residency::Duplicated(_))
    }

    /// Where in a device's memory the page is, if it is in one.
    pub fn placed(self) -> Option<Placed> {
        match self {
            Residency::Device(placed)
            | Residency::Coherent(placed)
            | Residency::Duplicated(placed) => Some(placed),
            Residency::Untouched
            | Residency::System
            | Residency::Exclusive(_)
            | Residency::Poisoned => None,
        }
    }

    /// The device whose memory holds the page, or which has exclusive access to it.
    pub(crate) fn device(self) -> Option<DeviceId> {
        match self {
            Residency::Exclusive(device) => Some(device),
            other => other.placed().map(|placed| placed.device),
        }
    }
}

pub(crate) const STATE: u64 = 0b111;
pub(crate) const UNTOUCHED: u64 = 0b000;
const SYSTEM: u64 = 0b001;
pub(crate) const DEVICE: u64 = 0b010;
const COHERENT: u64 = 0b011;
const POISONED: u64 = 0b100;
pub(crate) const DUPLICATED: u64 = 0b101;
const EXCLUSIVE: u64 = 0b110;
/// Only in entries of the table, never in a word.
pub(super) const TAIL: u64 = 0b111;
/// Set in all states in which CPUs reach the page, at least for reading.
pub(crate) const REACHED: u64 = 0b001;
/// A mask: `state & ON_DEVICE == DEVICE` holds for the states in which only a device's memory has the contents
/// (device and coherent), and for no other.
pub(crate) const ON_DEVICE: u64 = 0b110;
pub(crate) const LOCKED: u64 = 1 << 3;
pub(crate) const WAITERS: u64 = 1 << 4;
pub(crate) const MIRRORED: u64 = 1 << 5;
const READ_ONLY: u64 = 1 << 6;
const ORDER_SHIFT: u32 = 7;
const ORDER_MASK: u64 = 0xf;
pub(crate) const AUX_SHIFT: u32 = 11;
pub(crate) const AUX_MASK: u64 = 0x3f;
pub(crate) const PIN: u64 = 1 << AUX_SHIFT;
const GENERATION_SHIFT: u32 = 17;
const GENERATION_MASK: u64 = 0x7fff << GENERATION_SHIFT;
const VALUE_SHIFT: u32 = 32;

/// The maximum number of pins of a page, and the number of devices that a word can name.
pub(crate) const AUX_MAX: u64 = AUX_MASK;

/// What the table has for a page.
#[derive(Clone, Copy)]
pub(super) enum Entry {
    /// The page is the first of its folio, whose word this is.
    Head(Word),
    /// The page is another one of a folio of this order.
    Tail {
        /// Leads to the head: [`Page::folio_head`].
        order: u8,
    },
}

impl Entry {
    pub(super) fn decode(bits: u64) -> Entry {
        let word = Word(bits);
        match bits & STATE {
            TAIL => Entry::Tail {
                order: word.order(),
            },
            _ => Entry::Head(word),
        }
    }

    pub(super) fn encode(self) -> u64 {
        match self {
            Entry::Head(word) => word.0,
            Entry::Tail { order } => TAIL | u64::from(order) << ORDER_SHIFT,
        }
    }
}

/// A value of the residency word.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Word(pub(crate) u64);

impl Word {
    /// Returns what this word of a folio says of the page `index` pages behind the folio's head.
    pub(crate) fn of_page(self, index: u32) -> Word {
        match self.0 & STATE {
            DEVICE | COHERENT | DUPLICATED => {
                Word(self.0.wrapping_add(u64::from(index) << VALUE_SHIFT))
            }
            _ => self,
        }
    }

    /// Where the contents are.
    pub fn residency(self) -> Residency {
        match self.0 & STATE {
            UNTOUCHED => Residency::Untouched,
            SYSTEM => Residency::System,
            DEVICE => Residency::Device(self.placed()),
            COHERENT => Residency::Coherent(self.placed()),
            DUPLICATED => Residency::Duplicated(self.placed()),
            EXCLUSIVE => Residency::Exclusive(self.owner()),
            // Entries of tails are not words.
            _ => Residency::Poisoned,
        }
    }

    /// Whether a thread holds the lock in this word.
    pub fn locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    pub(crate) fn waiters(self) -> bool {
        self.0 & WAITERS != 0
    }

    /// Whether some device may have a translation of the page.
    pub(crate) fn mirrored(self) -> bool {
        self.0 & MIRRORED != 0
    }

    /// Whether CPUs and devices may only read the page.
    pub fn read_only(self) -> bool {
        self.0 & READ_ONLY != 0
    }

    /// The number of state changes so far, modulo 2¹⁵.
    pub fn generation(self) -> u16 {
        ((self.0 & GENERATION_MASK) >> GENERATION_SHIFT) as u16
    }

    /// Number of pins; only pages in system memory can have any.
    pub fn pins(self) -> u64 {
        if self.0 & STATE == SYSTEM {
            self.aux()
        } else {
            0
        }
    }

    /// The tick until which a page in system memory is held where it is; `None` in other states.
    pub(crate) fn system_held_until(self) -> Option<Tick> {
        matches!(self.0 & STATE, SYSTEM | EXCLUSIVE).then_some(Tick((self.0 >> VALUE_SHIFT) as u32))
    }

    pub(crate) fn order(self) -> u8 {
        (self.0 >> ORDER_SHIFT & ORDER_MASK) as u8
    }

    /// Whether CPUs reach the contents, at least for reading.
    pub(crate) fn reached_by_cpus(self) -> bool {
        Pattern::REACHED_BY_CPUS.fits(self)
    }

    /// Whether CPUs can do this access without a fault.
    pub(crate) fn serves_cpus(self, access: Access) -> bool {
        let writable = || !self.read_only() && self.0 & STATE != DUPLICATED;
        self.reached_by_cpus() && (access == Access::Read || writable())
    }

    fn aux(self) -> u64 {
        self.0 >> AUX_SHIFT & AUX_MASK
    }

    fn owner(self) -> DeviceId {
        DeviceId(self.aux() as u8)
    }

    fn placed(self) -> Placed {
        Placed {
            device: self.owner(),
            frame: Frame((self.0 >> VALUE_SHIFT) as u32),
            order: self.order(),
        }
    }

    /// The bits that a change of state keeps: the permission and the generation, increased by one. Lock, waiters and
    /// mirrored are cleared: the holder has invalidated the mirrors before it changes the state.
    fn successor(self, state: u64) -> u64 {
        // The mask removes the generation's carry.
        self.0.wrapping_add(1 << GENERATION_SHIFT) & (GENERATION_MASK | READ_ONLY) | state
    }

    pub(crate) fn to_untouched(self) -> Word {
        Word(self.successor(UNTOUCHED))
    }

    pub(crate) fn to_system(self, held_until: Tick) -> Word {
        Word(self.successor(SYSTEM) | u64::from(held_until.0) << VALUE_SHIFT)
    }

    /// The word of a folio of `1 << order` pages in the frames from `first` on.
    pub(crate) fn to_device(
        self,
        device: DeviceId,
        kind: MemoryKind,
        first: Frame,
        order: u8,
    ) -> Word {
        let state = match kind {
            MemoryKind::Private => DEVICE,
            MemoryKind::Coherent => COHERENT,
        };
        Word(
            self.successor(state)
                | u64::from(device.0) << AUX_SHIFT
                | u64::from(order) << ORDER_SHIFT
                | u64::from(first.0) << VALUE_SHIFT,
        )
    }

    /// The word of a folio in a device's private memory.
    #[cfg(any(test, feature = "fuzzing", feature = "measure"))]
    pub(crate) fn to_private(self, device: DeviceId, first: Frame, order: u8) -> Word {
        self.to_device(device, MemoryKind::Private, first, order)
    }

    /// The contents of the frame are now also in system memory.
    pub(crate) fn to_duplicated(self) -> Word {
        self.in_the_same_frame(DUPLICATED)
    }

    /// The system copy of a duplicate is gone: only the frame holds the contents.
    pub(crate) fn to_device_alone(self) -> Word {
        self.in_the_same_frame(DEVICE)
    }

    fn in_the_same_frame(self, state: u64) -> Word {
        const PLACE: u64 =
            u64::MAX << VALUE_SHIFT | AUX_MASK << AUX_SHIFT | ORDER_MASK << ORDER_SHIFT;
        Word(self.successor(state) | self.0 & PLACE)
    }

    pub(crate) fn to_exclusive(self, device: DeviceId, held_until: Tick) -> Word {
        Word(
            self.successor(EXCLUSIVE)
                | u64::from(device.0) << AUX_SHIFT
                | u64::from(held_until.0) << VALUE_SHIFT,
        )
    }

    pub(crate) fn to_poisoned(self) -> Word {
        Word(self.successor(POISONED))
    }

    /// The same word in a folio of another order.
    pub(crate) fn with_order(self, order: u8) -> Word {
        Word(self.0 & !(ORDER_MASK << ORDER_SHIFT) | u64::from(order) << ORDER_SHIFT)
    }

    /// The same word with the later one of the two generations. They count modulo 2¹⁵: the later one is the one that
    /// is reached from the other in fewer steps.
    pub(crate) fn with_later_generation(self, other: Word) -> Word {
        let ahead = other.generation().wrapping_sub(self.generation()) & 0x7fff;
        match ahead < 0x4000 {
            true => Word(self.0 & !GENERATION_MASK | other.0 & GENERATION_MASK),
            false => self,
        }
    }

    pub(crate) fn with(self, flags: u64) -> Word {
        Word(self.0 | flags)
    }

    pub(crate) fn without(self, flags: u64) -> Word {
        Word(self.0 & !flags)
    }

    pub(crate) fn with_permission(self, permission: Permission) -> Word {
        match permission {
            Permission::ReadOnly => self.with(READ_ONLY),
            Permission::Writable => self.without(READ_ONLY),
        }
    }

    pub(crate) fn permission(self) -> Permission {
        match self.read_only() {
            true => Permission::ReadOnly,
            false => Permission::Writable,
        }
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.residency())?;
        for (bit, name) in [
            (LOCKED, " locked"),
            (WAITERS, " waiters"),
            (MIRRORED, " mirrored"),
            (READ_ONLY, " read-only"),
        ] {
            if self.0 & bit != 0 {
                f.write_str(name)?;
            }
        }
        write!(f, " pins={} gen={}", self.pins(), self.generation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_overlap() {
        let word = Word(0)
            .with_permission(Permission::ReadOnly)
            .to_private(DeviceId(63), Frame(u32::MAX), 9)
            .with(LOCKED | WAITERS | MIRRORED);
        assert_eq!(
            word.residency(),
            Residency::Device(Placed {
                device: DeviceId(63),
                frame: Frame(u32::MAX),
                order: 9
            })
        );
        assert!(word.locked() && word.waiters() && word.mirrored() && word.read_only());
        assert_eq!((word.generation(), word.pins()), (1, 0));
        assert!(
            Pattern::on_device(DeviceId(63)).fits(word)
                && !Pattern::on_device(DeviceId(62)).fits(word)
                && !word.reached_by_cpus()
        );
        let twice = word.to_duplicated();
        assert_eq!(
            twice.residency(),
            Residency::Duplicated(Placed {
                device: DeviceId(63),
                frame: Frame(u32::MAX),
                order: 9
            })
        );
        assert_eq!((twice.generation(), twice.read_only()), (2, true));
        assert!(!twice.locked() && !twice.waiters() && !twice.mirrored());
        assert!(Pattern::duplicated_on(DeviceId(63)).fits(twice));
        assert!(!Pattern::duplicated_on(DeviceId(62)).fits(twice));
        assert!(!Pattern::on_device(DeviceId(63)).fits(twice));
        assert_eq!((twice.pins(), twice.system_held_until()), (0, None));
        let alone = twice.with(LOCKED | MIRRORED).to_device_alone();
        assert_eq!(alone.residency(), word.residency());
        assert!(!alone.locked() && !alone.mirrored() && alone.generation() == 3);
        let system = word.to_system(Tick(7));
        assert!(system.reached_by_cpus() && !Pattern::on_device(DeviceId(0)).fits(system));
        assert_eq!(system.residency(), Residency::System);
        assert_eq!(system.system_held_until(), Some(Tick(7)));
        assert!(!system.locked() && !system.mirrored() && system.read_only());
        assert_eq!(Word(system.0 + 3 * PIN).pins(), 3);
        let exclusive = system.to_exclusive(DeviceId(5), Tick(9));
        assert_eq!(exclusive.residency(), Residency::Exclusive(DeviceId(5)));
        assert_eq!(exclusive.system_held_until(), Some(Tick(9)));
        assert_eq!((exclusive.pins(), exclusive.generation()), (0, 3));
        // Which accesses CPUs can do without a fault.
        let serves =
            |word: Word| [Access::Read, Access::Write].map(|access| word.serves_cpus(access));
        assert_eq!(
            serves(system.with_permission(Permission::Writable)),
            [true, true]
        );
        assert_eq!(serves(system), [true, false]);
        assert_eq!(
            serves(twice.with_permission(Permission::Writable)),
            [true, false]
        );
        assert_eq!(serves(exclusive), [false, false]);
        // The later one of two generations, also across the wrap.
        let later = |a: Word, b: Word| a.with_later_generation(b).generation();
        assert_eq!((later(system, exclusive), later(exclusive, system)), (3, 3));
        let mut old = word;
        while old.generation() != 0x7fff {
            old = old.to_untouched();
        }
        assert_eq!((later(old, word), later(word, old)), (1, 1));
        assert_eq!(old.with_later_generation(word).residency(), old.residency());
        // The generation wraps around without changing its neighbours.
        let mut word = exclusive;
        for _ in 0..1 << 15 {
            word = word.to_exclusive(DeviceId(5), Tick(9));
        }
        assert_eq!(word, exclusive);
    }
}
