//! A driver with books and a device with an MMU, sound or with one bug.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;

use hmm_backend::Backend;
use hmm_backend::driver::{
    DeviceFolio, Driver, FaultError, Finalized, MigrateError, ToDevice, ToSystem,
};
use hmm_backend::mirror::{DeviceMmu, Mapping, Mirror, Target};
use hmm_backend::observe::Cause;
use hmm_backend::pages::{Access, DeviceId, Frame, PAGE_SIZE, Page, PageRange};
use hmmvisor_testkit::conformance::{AccessRefused, DeviceAccess, Subject};
use parking_lot::{Mutex, MutexGuard};

/// The mistake that the model makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    Sound,
    KeepsTouchedPage,
    DeclinesAnOrder,
    ScribblesBeforeCopy,
    ScribblesOnZeros,
    AssumesNeighbours,
    AssumesAllMove,
    LocksBooksDuringMigration,
    TakesBusyForFatal,
    TakesShortageForFatal,
    OneCookieForMany,
    SharesCookieOnSplit,
    PanicsOnSplit,
    ForgetsGuestFrees,
    ForgetsSecondReturn,
    RefusesEviction,
    RefusesDetach,
    SleepsOnDetach,
    SwallowsErrors,
    RacyBooks,
    LocksGlobally,
    KnowsOneDevice,
    ForgetsFlushed,
    KeepsTranslations,
    KeepsContentsByFrame,
    IgnoresPermission,
}
use Bug::*;

pub struct ModelDriver {
    bug: Bug,
    /// Frame and order by cookie.
    books: Mutex<HashMap<u64, (Frame, u8)>>,
    serial: AtomicU64,
    complaints: Mutex<Vec<String>>,
    /// Address of managed memory.
    host: OnceLock<usize>,
    /// A count that is not kept atomically.
    racy: AtomicUsize,
    /// Times the largest folio of the rule has come back.
    returns: AtomicU64,
    in_migration: AtomicBool,
    global: Mutex<()>,
    holder: Mutex<Option<ThreadId>>,
}

impl ModelDriver {
    fn allocate(&self, device: DeviceId, frame: Frame, order: u8) -> u64 {
        let cookie = self.serial.fetch_add(1, SeqCst) + 1;
        self.book(device, cookie, frame, order);
        cookie
    }

    fn book(&self, device: DeviceId, cookie: u64, frame: Frame, order: u8) {
        if self.bug == KnowsOneDevice && device != DeviceId(0) {
            return;
        }
        self.books.lock().insert(cookie, (frame, order));
        self.count(1);
    }

    fn count(&self, change: isize) {
        let count = self.racy.load(SeqCst);
        std::thread::yield_now();
        self.racy.store(count.wrapping_add_signed(change), SeqCst);
    }

    /// The first word of a page, by the address that CPUs use.
    fn scribble(&self, page: Page, only_on_zero: bool) {
        let base = *self.host.get().expect("connected");
        let word = (base + page.offset() as usize) as *mut u64;
        // SAFETY: an aligned word of managed memory, which outlives the driver's calls; no code makes
        // references to it that are not atomic.
        let word = unsafe { AtomicU64::from_ptr(word) };
        if !only_on_zero || word.load(SeqCst) == 0 {
            word.store(1, SeqCst);
        }
    }

    /// Held until the end of a migration, if that is the bug; a mutex that its holder may take again.
    fn global(&self) -> Option<MutexGuard<'_, ()>> {
        let me = std::thread::current().id();
        if self.bug != LocksGlobally || *self.holder.lock() == Some(me) {
            return None;
        }
        let guard = self.global.lock();
        *self.holder.lock() = Some(me);
        Some(guard)
    }

    fn release(&self, guard: Option<MutexGuard<'_, ()>>) {
        if guard.is_some() {
            *self.holder.lock() = None;
        }
    }
}

impl Driver for ModelDriver {
    fn migrate_to_device(&self, mut migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        let global = self.global();
        let folios: Vec<_> = migration.folios().collect();
        if self.bug == AssumesNeighbours {
            let neighbours = folios
                .windows(2)
                .all(|w| w[0].page.plus(w[0].pages()) == w[1].page);
            assert!(neighbours, "the pages of a migration have gaps");
        }
        let same = (self.bug == OneCookieForMany && folios.len() > 7).then_some(4711);
        migration.set_cookies(|folio| match same {
            Some(cookie) => {
                self.book(folio.device, cookie, folio.frame, folio.order);
                cookie
            }
            None => self.allocate(folio.device, folio.frame, folio.order),
        });
        if self.bug == DeclinesAnOrder {
            migration.retain(|folio| folio.order != 8);
        }
        let large = folios.iter().find(|folio| folio.order == 8);
        if let (ScribblesBeforeCopy, Some(folio)) = (self.bug, large) {
            self.scribble(folio.page, false);
        }
        let locked = (self.bug == LocksBooksDuringMigration).then(|| self.books.lock());
        let result = migration.run();
        drop(locked);
        if self.bug == AssumesAllMove {
            let offered: u32 = folios.iter().map(DeviceFolio::pages).sum();
            assert_eq!(result.as_ref().map(Finalized::pages), Ok(offered));
        }
        self.release(global);
        result
    }

    fn migrate_to_ram(&self, mut migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        let cause = migration.cause();
        match self.bug {
            RefusesEviction if cause == Cause::Eviction => return Err(FaultError::Retry),
            RefusesDetach if cause == Cause::Detach && migration.folios().count() > 2 => {
                return Err(FaultError::Fatal("the pages are in use".into()));
            }
            SleepsOnDetach if cause == Cause::Detach => loop {
                std::thread::park();
            },
            KeepsTouchedPage if migration.fault() == Some(Page(11)) => {
                migration.retain(|folio| folio.page != Page(11));
            }
            _ => {}
        }
        let global = self.global();
        let folios: Vec<_> = migration.folios().collect();
        let whole = folios.iter().any(|f| (f.page, f.order) == (Page(0), 6));
        self.in_migration.store(true, SeqCst);
        let seen = match whole {
            true => self.returns.fetch_add(1, SeqCst),
            false => 0,
        };
        let result = migration
            .copy()
            .and_then(|copied| copied.commit())
            .map(|committed| {
                for page in folios
                    .iter()
                    .flat_map(|f| (0..f.pages()).map(|i| f.page.plus(i)))
                {
                    // Pages of one rule only, which all move: others may have stayed.
                    if self.bug == ScribblesOnZeros && (128..256).contains(&page.0) {
                        self.scribble(page, true);
                    }
                }
                if self.bug == ForgetsSecondReturn && seen == 1 {
                    // What page_free takes away is entered once more.
                    self.allocate(DeviceId(0), Frame(0), 0);
                }
                committed.finalize()
            });
        self.in_migration.store(false, SeqCst);
        self.release(global);
        result.map_err(|error| match (self.bug, error) {
            (TakesBusyForFatal, FaultError::Retry) => FaultError::Fatal("busy".into()),
            (TakesShortageForFatal, FaultError::OutOfMemory) => FaultError::Fatal("short".into()),
            (_, error) => error,
        })
    }

    fn flush(&self, folios: &[DeviceFolio], _: DeviceId) -> Result<(), MigrateError> {
        if self.bug == ForgetsFlushed {
            let mut books = self.books.lock();
            folios
                .iter()
                .for_each(|folio| _ = books.remove(&folio.cookie));
        }
        Ok(())
    }

    fn page_free(&self, folio: DeviceFolio) {
        let global = self.global();
        let by_guest = !self.in_migration.load(SeqCst);
        let whole = (folio.page, folio.order) == (Page(0), 6);
        let skip = self.bug == ForgetsGuestFrees && by_guest && whole
            || self.bug == KnowsOneDevice && folio.device != DeviceId(0);
        if !skip {
            let known = self.books.lock().remove(&folio.cookie);
            self.count(-1);
            if known != Some((folio.frame, folio.order)) {
                self.complaints
                    .lock()
                    .push(format!("free of {folio:?}, the cookie is of {known:?}"));
            }
        }
        self.release(global);
    }

    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        assert!(
            self.bug != PanicsOnSplit || folio.order < 9,
            "this folio cannot be split"
        );
        let order = folio.order - 1;
        if self.bug == SharesCookieOnSplit && folio.order == 9 {
            return folio.cookie;
        }
        if self.bug == KnowsOneDevice && folio.device != DeviceId(0) {
            return folio.cookie;
        }
        self.books.lock().insert(folio.cookie, (folio.frame, order));
        self.allocate(folio.device, Frame(folio.frame.0 + (1 << order)), order)
    }
}

/// The model as a subject.
pub struct Model(Arc<ModelDriver>);

impl Model {
    pub fn with(bug: Bug) -> Model {
        Model(Arc::new(ModelDriver {
            bug,
            books: Mutex::default(),
            serial: AtomicU64::new(0),
            complaints: Mutex::default(),
            host: OnceLock::new(),
            racy: AtomicUsize::new(0),
            returns: AtomicU64::new(0),
            in_migration: AtomicBool::new(false),
            global: Mutex::default(),
            holder: Mutex::default(),
        }))
    }
}

impl Subject for Model {
    fn driver(&self) -> Arc<dyn Driver> {
        self.0.clone()
    }

    fn connect(
        &mut self,
        backend: &Arc<Backend>,
        device: DeviceId,
    ) -> Option<Box<dyn DeviceAccess>> {
        let host = backend.host_memory().0 as usize;
        self.0.host.set(host).expect("connected once");
        let table = Table {
            bug: self.0.bug,
            entries: HashMap::new(),
        };
        Some(Box::new(ModelDevice {
            bug: self.0.bug,
            mirror: backend.mirror(device, table).expect("a mirror"),
            contents: HashMap::new(),
        }))
    }

    fn live(&self) -> Option<usize> {
        Some(match self.0.bug {
            RacyBooks => self.0.racy.load(SeqCst),
            _ => self.0.books.lock().len(),
        })
    }

    fn complaints(&self) -> Vec<String> {
        self.0.complaints.lock().clone()
    }
}

struct Table {
    bug: Bug,
    entries: HashMap<Page, Mapping>,
}

impl DeviceMmu for Table {
    fn invalidate(&mut self, pages: PageRange) {
        if self.bug != KeepsTranslations {
            self.entries.retain(|page, _| !pages.contains(*page));
        }
    }
}

struct ModelDevice {
    bug: Bug,
    mirror: Mirror<Table>,
    /// The values written, by frame and word.
    contents: HashMap<(Frame, usize), u64>,
}

impl ModelDevice {
    fn with<R>(
        &mut self,
        page: Page,
        access: Access,
        act: impl Fn(&Mapping) -> R,
    ) -> Result<R, AccessRefused> {
        loop {
            let guard = self.mirror.lock();
            if let Some(mapping) = guard.entries.get(&page)
                && (access == Access::Read || mapping.writable || self.bug == IgnoresPermission)
            {
                return Ok(act(mapping));
            }
            drop(guard);
            self.mirror.fault(page, access, |table, mapping| {
                table.entries.insert(page, mapping);
            })?;
        }
    }
}

fn cell(mapping: &Mapping, word: usize) -> &AtomicU64 {
    assert!(word < PAGE_SIZE as usize / 8);
    // SAFETY: a word of a page of the backend's memory, which is mapped as long as the mirror. Whether it still is this
    // page is what the suite is to find out.
    unsafe { AtomicU64::from_ptr(mapping.host.as_ptr().cast::<u64>().add(word)) }
}

fn frame(mapping: &Mapping) -> Option<Frame> {
    match mapping.target {
        Target::Device(frame) => Some(frame),
        Target::System => None,
    }
}

impl DeviceAccess for ModelDevice {
    fn read(&mut self, page: Page, word: usize) -> Result<u64, AccessRefused> {
        let read = self.with(page, Access::Read, |mapping| {
            (cell(mapping, word).load(SeqCst), frame(mapping))
        });
        match (self.bug, read) {
            (SwallowsErrors, Err(_)) => Ok(0),
            (KeepsContentsByFrame, Ok((0, Some(frame)))) => {
                Ok(self.contents.get(&(frame, word)).copied().unwrap_or(0))
            }
            (_, read) => read.map(|(value, _)| value),
        }
    }

    fn write(&mut self, page: Page, word: usize, value: u64) -> Result<(), AccessRefused> {
        let frame = self.with(page, Access::Write, |mapping| {
            cell(mapping, word).store(value, SeqCst);
            frame(mapping)
        })?;
        if let Some(frame) = frame {
            self.contents.insert((frame, word), value);
        }
        Ok(())
    }
}
