//! Pages that the kernel does not move for a while, as a real kernel does now and then: a driver must handle that.

use std::collections::BTreeMap;

use hmm_backend::pages::{Page, PageRange};
use hmm_backend::testing::{KernelAnswers, KernelCall, MadeUpAnswer};
use parking_lot::Mutex;

/// For each kind of call and page, the error and how often it is still to come.
#[derive(Default)]
pub struct Obstacles(Mutex<BTreeMap<(KernelCall, Page), (i32, u32)>>);

impl Obstacles {
    /// The next calls of this kind that come to these pages fail with this error, so many times for each page.
    pub fn put(
        &self,
        call: KernelCall,
        pages: impl IntoIterator<Item = u32>,
        errno: i32,
        times: u32,
    ) {
        let pages = pages
            .into_iter()
            .map(|page| ((call, Page(page)), (errno, times)));
        self.0.lock().extend(pages);
    }

    /// Pages whose obstacles nothing has met as often as it should have.
    pub fn left(&self) -> usize {
        self.0.lock().len()
    }
}

impl KernelAnswers for Obstacles {
    fn answer(&self, call: KernelCall, pages: PageRange) -> Option<MadeUpAnswer> {
        let mut obstacles = self.0.lock();
        let (key, (errno, times)) = obstacles
            .range((call, pages.start)..(call, pages.end))
            .next()
            .map(|(key, value)| (*key, *value))?;
        match times {
            1 => obstacles.remove(&key),
            more => obstacles.insert(key, (errno, more - 1)),
        };
        let done = key.1.0 - pages.start.0;
        Some(MadeUpAnswer {
            done,
            errno,
            ..MadeUpAnswer::default()
        })
    }
}
