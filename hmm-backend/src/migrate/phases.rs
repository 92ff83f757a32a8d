//! What the phases of both directions of migration share.

use std::time::Duration;

use crate::memory::{Passage, Reach, Run};
use crate::observe::Cause;
use crate::pages::{Frame, Page, PageRange, PageSet};
use crate::residency::Word;

/// Proof that a migration went through all its phases: only the last phase makes it.
#[derive(Debug)]
pub struct Finalized {
    pub(crate) pages: u32,
}

impl Finalized {
    /// Returns the number of pages that moved.
    pub fn pages(&self) -> u32 {
        self.pages
    }
}

/// Why a migration takes place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reason {
    pub(crate) cause: Cause,
    /// The pages of the (only) block that were touched. With cause demand, all other pages of the migration are
    /// prefetched.
    pub(crate) faulting: PageSet,
    /// How long the pages stay at their destination.
    pub(crate) hold: Duration,
    /// For a migration to system memory: whether private device memory keeps its copy.
    pub(crate) duplicate: bool,
}

impl Reason {
    /// Returns the reason of a migration that no fault has caused.
    pub(crate) fn of(cause: Cause) -> Reason {
        Reason {
            cause,
            faulting: PageSet::EMPTY,
            hold: Duration::ZERO,
            duplicate: false,
        }
    }

    /// Splits a range of pages by the cause for which they move.
    pub(super) fn causes(
        &self,
        range: PageRange,
    ) -> impl Iterator<Item = (Cause, PageRange)> + use<'_> {
        let mut rest = range;
        std::iter::from_fn(move || {
            let start = rest.start.index_in_block();
            let (cause, len) = match self.cause {
                _ if rest.is_empty() => return None,
                Cause::Demand => {
                    let len = self.faulting.end_of_run(start) - start;
                    match self.faulting.contains(start) {
                        true => (Cause::Demand, rest.len().min(len as u32)),
                        false => (Cause::Prefetch, rest.len().min(len as u32)),
                    }
                }
                cause => (cause, rest.len()),
            };
            let part = PageRange::with_len(rest.start, len);
            rest.start = part.end;
            Some((cause, part))
        })
    }
}

/// Returns how many of `pages` are in the range.
pub(super) fn count_of(pages: &[Page], range: PageRange) -> u32 {
    pages.iter().filter(|page| range.contains(**page)).count() as u32
}

/// Joins pieces of neighbouring pages in neighbouring frames with the same permission into runs, each as long
/// as one kernel call can move.
pub(super) fn runs(
    reach: Reach,
    pieces: impl Iterator<Item = (PageRange, Frame, Word)>,
) -> impl Iterator<Item = Run> {
    let mut pieces = pieces.map(|(pages, frame, word)| Run {
        page: pages.start,
        frame,
        pages: pages.len(),
        permission: word.permission(),
    });
    let mut next = pieces.next();
    std::iter::from_fn(move || {
        let mut run = next.take()?;
        for piece in pieces.by_ref() {
            let joins = piece.page == run.page.plus(run.pages)
                && piece.frame.0 == run.frame.0 + run.pages
                && piece.permission == run.permission
                && (reach == Reach::Everywhere || piece.page.block() == run.page.block());
            if !joins {
                next = Some(piece);
                break;
            }
            run.pages += piece.pages;
        }
        Some(run)
    })
}

/// Joins pieces of neighbouring pages in frames that are neighbours on both devices.
pub(super) fn passages(pieces: impl Iterator<Item = Passage>) -> Vec<Passage> {
    let mut joined: Vec<Passage> = Vec::new();
    for piece in pieces {
        match joined.last_mut() {
            Some(last) if last.joins(&piece) => last.pages += piece.pages,
            _ => joined.push(piece),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::Permission;

    #[test]
    fn each_page_of_a_folio_has_its_cause() {
        let causes = |cause, faulting: &[usize], range: (u32, u32)| -> Vec<_> {
            let reason = Reason {
                faulting: faulting.iter().copied().collect(),
                ..Reason::of(cause)
            };
            let range = PageRange::new(Page(range.0), Page(range.1));
            let parts = reason.causes(range);
            parts
                .map(|(c, part)| (c, part.start.0, part.len()))
                .collect()
        };
        let (demand, prefetch) = (Cause::Demand, Cause::Prefetch);
        assert_eq!(
            causes(demand, &[3, 4, 7], (512, 520)),
            [
                (prefetch, 512, 3),
                (demand, 515, 2),
                (prefetch, 517, 2),
                (demand, 519, 1)
            ]
        );
        assert_eq!(causes(demand, &[511], (511, 512)), [(demand, 511, 1)]);
        assert_eq!(causes(demand, &[], (0, 512)), [(prefetch, 0, 512)]);
        assert_eq!(
            causes(Cause::Eviction, &[3], (0, 8)),
            [(Cause::Eviction, 0, 8)]
        );
    }

    #[test]
    fn runs_break_at_gaps_blocks_and_permissions() {
        let pieces = [
            (0, 1, 7),
            (1, 1, 8),
            (2, 2, 9),
            (4, 1, 12),
            (511, 1, 13),
            (512, 1, 14),
        ];
        let piece = |(p, n, f)| {
            let word = match p {
                2 => Word(0).with_permission(Permission::ReadOnly),
                _ => Word(0),
            };
            (PageRange::with_len(Page(p), n), Frame(f), word)
        };
        let found = |reach| {
            let runs = runs(reach, pieces.into_iter().map(piece));
            runs.map(|r| (r.page.0, r.frame.0, r.pages))
                .collect::<Vec<_>>()
        };
        let alike = [(0, 7, 2), (2, 9, 2), (4, 12, 1)];
        assert_eq!(
            found(Reach::Block),
            [&alike[..], &[(511, 13, 1), (512, 14, 1)]].concat()
        );
        assert_eq!(
            found(Reach::Everywhere),
            [&alike[..], &[(511, 13, 2)]].concat()
        );
    }
}
