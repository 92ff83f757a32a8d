//! NVIDIA UVM's eviction (`uvm_pmm_gpu.c` of the open kernel modules, 595.45). Device memory is managed in chunks of
//! 2 MiB. A chunk becomes the newest when a part of it is allocated, and the oldest chunk is evicted as a whole. The
//! policy does not see the device's accesses, so "least recently used" means "least recently migrated to".

use super::lists::Lists;
use crate::pages::{BLOCK_PAGES, Frame, Page};
use crate::policy::{AccessedBits, EvictionPolicy};

/// Frames in a chunk.
const CHUNK: u32 = BLOCK_PAGES as u32;

/// The by-migration policy. Its one list contains chunks as if each were a folio of one frame.
#[derive(Debug)]
pub struct ByMigration {
    chunks: Lists,
    /// Frames of the folio that starts at each frame, 0 if none does.
    folios: Box<[u16]>,
    /// Frames in use in each chunk.
    used: Box<[u16]>,
}

impl ByMigration {
    /// For a device with this many frames.
    pub fn new(frames: u32) -> ByMigration {
        let chunks = frames.div_ceil(CHUNK);
        ByMigration {
            chunks: Lists::new(chunks, 1),
            // Zeroed memory costs nothing until it is written.
            folios: vec![0; frames as usize].into_boxed_slice(),
            used: vec![0; chunks as usize].into_boxed_slice(),
        }
    }

    fn chunk(head: Frame) -> Frame {
        Frame(head.0 / CHUNK)
    }
}

impl EvictionPolicy for ByMigration {
    fn allocated(&mut self, head: Frame, order: u8, _: Page) {
        let chunk = Self::chunk(head);
        self.folios[head.0 as usize] = 1 << order;
        self.used[chunk.0 as usize] += 1 << order;
        if self.chunks.contains(chunk) {
            self.chunks.move_to(0, chunk);
        } else {
            self.chunks.push(0, chunk, 0);
        }
    }

    fn touched(&mut self, _: Frame, _: u32) {}

    fn refused(&mut self, head: Frame) {
        let chunk = Self::chunk(head);
        if self.chunks.contains(chunk) {
            self.chunks.move_to(0, chunk);
        }
    }

    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        self.folios[head.0 as usize] = 1 << order;
        self.folios[upper.0 as usize] = 1 << order;
    }

    fn freed(&mut self, head: Frame) {
        let chunk = Self::chunk(head);
        let used = &mut self.used[chunk.0 as usize];
        *used -= std::mem::take(&mut self.folios[head.0 as usize]);
        if *used == 0 {
            self.chunks.remove(chunk);
        }
    }

    fn victims(&mut self, frames: u32, _: &mut dyn AccessedBits) -> Vec<Frame> {
        let mut victims = Vec::new();
        let mut sum = 0;
        let mut at = self.chunks.oldest(0);
        while let Some(chunk) = at.filter(|_| sum < frames) {
            let first = chunk.0 * CHUNK;
            let end = (first + CHUNK).min(self.folios.len() as u32);
            victims.extend(
                (first..end)
                    .filter(|f| self.folios[*f as usize] > 0)
                    .map(Frame),
            );
            sum += u32::from(self.used[chunk.0 as usize]);
            at = self.chunks.next(chunk);
        }
        victims
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Folio, Model, check, ops};
    use super::*;
    use crate::policy::NoBits;
    use proptest::prelude::*;

    /// Runs the policy on a device that is `STRETCH` times as large as the one of the test's operations, so that a
    /// chunk has 8 of the test's frames.
    struct Stretched(ByMigration);

    const STRETCH: u32 = CHUNK / 8;

    fn stretched(frame: Frame) -> Frame {
        Frame(frame.0 * STRETCH)
    }

    impl EvictionPolicy for Stretched {
        fn allocated(&mut self, head: Frame, order: u8, page: Page) {
            self.0
                .allocated(stretched(head), order + STRETCH.ilog2() as u8, page);
        }
        fn touched(&mut self, head: Frame, times: u32) {
            self.0.touched(stretched(head), times);
        }
        fn refused(&mut self, head: Frame) {
            self.0.refused(stretched(head));
        }
        fn split(&mut self, head: Frame, upper: Frame, order: u8) {
            self.0.split(
                stretched(head),
                stretched(upper),
                order + STRETCH.ilog2() as u8,
            );
        }
        fn freed(&mut self, head: Frame) {
            self.0.freed(stretched(head));
        }
        fn victims(&mut self, frames: u32, bits: &mut dyn AccessedBits) -> Vec<Frame> {
            let victims = self.0.victims(frames * STRETCH, bits);
            victims.into_iter().map(|f| Frame(f.0 / STRETCH)).collect()
        }
    }

    #[derive(Default)]
    struct Naive {
        folios: Vec<Folio>,
        /// Chunks of 8 frames, the newest last.
        chunks: Vec<u32>,
    }

    impl Naive {
        fn newest(&mut self, head: u32) {
            self.chunks.retain(|c| *c != head / 8);
            self.chunks.push(head / 8);
        }
    }

    impl Model for Naive {
        fn allocated(&mut self, folio: Folio) {
            self.folios.push(folio);
            self.newest(folio.head);
        }
        fn touched(&mut self, _: u32) {}
        fn refused(&mut self, head: u32) {
            if self.folios.iter().any(|f| f.head / 8 == head / 8) {
                self.newest(head);
            }
        }
        fn split(&mut self, head: u32) {
            let folio = self.folios.iter_mut().find(|f| f.head == head).unwrap();
            let upper = folio.halve();
            self.folios.push(upper);
        }
        fn freed(&mut self, head: u32) {
            self.folios.retain(|f| f.head != head);
            let folios = &self.folios;
            self.chunks
                .retain(|c| folios.iter().any(|f| f.head / 8 == *c));
        }
        fn victims(&mut self, frames: u32) -> Vec<u32> {
            let mut victims = Vec::new();
            let mut sum = 0;
            for chunk in &self.chunks {
                if sum >= frames {
                    break;
                }
                let mut inside: Vec<_> = self
                    .folios
                    .iter()
                    .filter(|f| f.head / 8 == *chunk)
                    .collect();
                inside.sort_by_key(|f| f.head);
                sum += inside.iter().map(|f| f.frames()).sum::<u32>();
                victims.extend(inside.iter().map(|f| f.head));
            }
            victims
        }
    }

    proptest! {
        #[test]
        fn agrees_with_chunks_in_a_vector(ops in ops()) {
            check(Stretched(ByMigration::new(64 * STRETCH)), Naive::default(), ops)?;
        }
    }

    #[test]
    fn a_migration_into_a_chunk_saves_all_of_it() {
        let mut policy = ByMigration::new(2 * CHUNK);
        policy.allocated(Frame(0), 0, Page(0));
        policy.allocated(Frame(CHUNK), 0, Page(1));
        policy.touched(Frame(0), 1);
        assert_eq!(
            policy.victims(1, &mut NoBits),
            [Frame(0)],
            "accesses do not count"
        );
        policy.allocated(Frame(1), 0, Page(2));
        assert_eq!(policy.victims(1, &mut NoBits), [Frame(CHUNK)]);
        assert_eq!(
            policy.victims(2, &mut NoBits),
            [Frame(CHUNK), Frame(0), Frame(1)]
        );
    }
}
