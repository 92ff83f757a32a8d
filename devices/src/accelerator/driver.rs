//! The device's side of the migration contract.
//!
//! This accelerator has nothing to program when pages move, so the default phases do. It uses the
//! contract to check it: the cookie of each folio is a serial number, kept in a table by frame until
//! the folio is freed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hmm_backend::driver::{DeviceFolio, Driver, Finalized, MigrateError, ToDevice};
use hmm_backend::pages::{Frame, PAGE_SIZE};

use super::stats::AcceleratorCounters;

/// The driver of an [`Accelerator`](crate::Accelerator): books of the folios in device memory.
pub struct AcceleratorDriver {
    /// Cookie of the folio that begins at each frame; 0 if none does.
    cookies: Box<[AtomicU64]>,
    next_cookie: AtomicU64,
    pub(crate) counters: Arc<AcceleratorCounters>,
}

impl AcceleratorDriver {
    /// Empty device memory of this many bytes, whole pages.
    pub fn new(memory: u64) -> AcceleratorDriver {
        AcceleratorDriver {
            // SAFETY: zero is a valid value of an atomic integer. Frames never used cost no memory.
            cookies: unsafe {
                Box::<[AtomicU64]>::new_zeroed_slice((memory / PAGE_SIZE) as usize).assume_init()
            },
            next_cookie: AtomicU64::new(1),
            counters: Arc::default(),
        }
    }

    /// Number of folios in use.
    pub fn live(&self) -> usize {
        let used = |cookie: &&AtomicU64| cookie.load(Ordering::Relaxed) != 0;
        self.cookies.iter().filter(used).count()
    }

    /// Number of broken rules of the contract, by the caller of this driver or by the driver itself.
    pub fn violations(&self) -> u64 {
        self.counters.stats().contract_violations
    }

    /// Records a folio that comes into use; returns its cookie.
    fn allocate(&self, frame: Frame, order: u8) -> u64 {
        let cookie = self.next_cookie.fetch_add(1, Ordering::Relaxed);
        let first = frame.0 as usize;
        let Some(frames) = self.cookies.get(first..first + (1 << order)) else {
            self.violation("folio outside device memory", frame);
            return cookie;
        };
        // Relaxed: the backend orders what happens to one folio.
        if frames.iter().any(|it| it.load(Ordering::Relaxed) != 0) {
            self.violation("frame allocated while in use", frame);
        }
        frames[0].store(cookie, Ordering::Relaxed);
        self.counters.folios_allocated.add(1);
        cookie
    }

    fn violation(&self, what: &str, frame: Frame) {
        self.counters.contract_violations.add(1);
        if cfg!(debug_assertions) {
            eprintln!("driver contract broken: {what} (frame {:#x})", frame.0);
        }
    }
}

impl Driver for AcceleratorDriver {
    fn migrate_to_device(&self, mut migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        migration.set_cookies(|folio| self.allocate(folio.frame, folio.order));
        migration.run()
    }

    fn page_free(&self, folio: DeviceFolio) {
        let freed = self
            .cookies
            .get(folio.frame.0 as usize)
            .map(|it| it.compare_exchange(folio.cookie, 0, Ordering::Relaxed, Ordering::Relaxed));
        match freed {
            Some(Ok(cookie)) if cookie != 0 => self.counters.folios_freed.add(1),
            _ => self.violation(
                "page_free without a folio or with a wrong cookie",
                folio.frame,
            ),
        }
    }

    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        let lower = self.cookies.get(folio.frame.0 as usize);
        if lower.is_none_or(|it| it.load(Ordering::Relaxed) != folio.cookie) || folio.order == 0 {
            self.violation("split of a folio that is not there", folio.frame);
            return folio.cookie;
        }
        let order = folio.order - 1;
        self.allocate(Frame(folio.frame.0 + (1 << order)), order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm_backend::pages::{DeviceId, Page};

    fn driver() -> AcceleratorDriver {
        AcceleratorDriver::new(16 * PAGE_SIZE)
    }

    fn folio(frame: u32, order: u8, cookie: u64) -> DeviceFolio {
        DeviceFolio {
            device: DeviceId(0),
            frame: Frame(frame),
            order,
            page: Page(0),
            cookie,
        }
    }

    #[test]
    fn each_folio_is_freed_once() {
        let driver = driver();
        let violations = || driver.counters.stats().contract_violations;
        for _ in 0..2 {
            let whole = driver.allocate(Frame(8), 2);
            let upper = driver.folio_split(folio(8, 2, whole));
            assert_ne!(whole, upper);
            driver.page_free(folio(8, 1, whole));
            driver.page_free(folio(10, 1, upper));
        }
        assert_eq!(violations(), 0);
        let stats = driver.counters.stats();
        assert_eq!((stats.folios_allocated, stats.folios_freed), (4, 4));
        driver.page_free(folio(10, 1, 4));
        driver.page_free(folio(10, 1, 0));
        driver.page_free(folio(99, 0, 1));
        assert_eq!(violations(), 3);
    }

    #[test]
    fn wrong_cookies_and_double_use_are_noticed() {
        let driver = driver();
        let violations = || driver.counters.stats().contract_violations;
        let cookie = driver.allocate(Frame(5), 0);
        driver.page_free(folio(5, 0, cookie + 1));
        assert_eq!(violations(), 1);
        driver.allocate(Frame(4), 1);
        assert_eq!(violations(), 2);
        driver.allocate(Frame(16), 0);
        assert_eq!(violations(), 3);
        driver.folio_split(folio(5, 0, cookie));
        assert_eq!(violations(), 4);
    }
}
