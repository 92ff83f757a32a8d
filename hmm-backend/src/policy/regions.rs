//! Which policy decides where.

use std::sync::Arc;

use super::contract::PolicyFactory;
use super::file::PolicyFile;
use crate::pages::{Page, PageRange};

/// The text before each region in the name of policies with regions.
pub const PART: &str = "; memory ";

/// The most regions with a policy of their own.
pub(crate) const MAX_REGIONS: usize = 64;

/// A policy for all pages, and regions that have policies of their own.
pub(crate) struct Regions<P> {
    everywhere: P,
    /// The newest first: it counts where regions overlap.
    regions: Vec<(PageRange, P)>,
}

impl<P> Regions<P> {
    /// Has this policy decide about all pages.
    pub(crate) fn new(everywhere: P) -> Regions<P> {
        Regions {
            everywhere,
            regions: Vec::new(),
        }
    }

    /// The policy of the pages that have no region's.
    pub(crate) fn everywhere(&self) -> &P {
        &self.everywhere
    }

    /// All policies.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &P> {
        let regions = self.regions.iter().map(|(_, policy)| policy);
        regions.chain([&self.everywhere])
    }

    /// All policies.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut P> {
        let regions = self.regions.iter_mut().map(|(_, policy)| policy);
        regions.chain([&mut self.everywhere])
    }

    /// The policy of a page.
    pub(crate) fn of(&mut self, page: Page) -> &mut P {
        let mut regions = self.regions.iter_mut();
        match regions.find(|(pages, _)| pages.contains(page)) {
            Some((_, policy)) => policy,
            None => &mut self.everywhere,
        }
    }

    /// Whether there is room for a region with these pages.
    pub(crate) fn has_room_for(&self, pages: PageRange) -> bool {
        let stays = |(old, _): &&(PageRange, P)| !within(*old, pages);
        self.regions.iter().filter(stays).count() < MAX_REGIONS
    }

    /// Has another policy decide about these pages; `None` is all pages, and ends the regions. Policies that no page has
    /// any more end.
    pub(crate) fn set(&mut self, pages: Option<PageRange>, policy: P) {
        match pages {
            Some(pages) => {
                self.regions.retain(|(old, _)| !within(*old, pages));
                self.regions.insert(0, (pages, policy));
            }
            None => *self = Regions::new(policy),
        }
    }
}

impl Regions<Arc<dyn PolicyFactory>> {
    /// Joins the descriptions of the policies, each with the memory that it is for.
    pub(crate) fn describe(&self, say: impl Fn(&dyn PolicyFactory) -> String) -> String {
        let mut text = say(&*self.everywhere);
        for (pages, policy) in &self.regions {
            let mib = |page: Page| page.offset() >> 20;
            let (start, end) = (mib(pages.start), mib(pages.end));
            text += &format!("{PART}{start} MiB to {end} MiB: {}", say(&**policy));
        }
        text
    }

    /// The files that the policies were read from.
    pub(crate) fn files(&self) -> Vec<PolicyFile> {
        self.iter().flat_map(|policy| policy.files()).collect()
    }
}

fn within(inner: PageRange, outer: PageRange) -> bool {
    inner.overlap(outer) == inner.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_region_with_a_page_decides_about_it() {
        let range = |start, end| PageRange::new(Page(start), Page(end));
        let mut regions = Regions::new('a');
        let text = |regions: &mut Regions<char>| -> String {
            (0..8).map(|page| *regions.of(Page(page))).collect()
        };
        assert_eq!(text(&mut regions), "aaaaaaaa");
        regions.set(Some(range(2, 6)), 'b');
        regions.set(Some(range(5, 7)), 'c');
        assert_eq!(text(&mut regions), "aabbbcca");
        assert_eq!(regions.iter().count(), 3);
        regions.set(Some(range(1, 6)), 'd');
        assert_eq!(text(&mut regions), "addddd".to_owned() + "ca");
        assert_eq!(regions.iter().count(), 3, "no page has b any more");
        regions.set(None, 'e');
        assert_eq!(
            (text(&mut regions).as_str(), regions.iter().count()),
            ("eeeeeeee", 1)
        );
        for page in 0..MAX_REGIONS as u32 {
            assert!(regions.has_room_for(range(page, page + 1)));
            regions.set(Some(range(page, page + 1)), 'f');
        }
        assert!(!regions.has_room_for(range(99, 100)));
        assert!(regions.has_room_for(range(3, 4)), "instead of the old one");
    }
}
