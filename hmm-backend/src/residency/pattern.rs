//! Scans a block's residency words for pages that match a pattern. Policies scan all 512 words on nearly every fault.

use super::word::{
    AUX_MASK, AUX_SHIFT, DEVICE, DUPLICATED, ON_DEVICE, REACHED, STATE, UNTOUCHED, Word,
};
use crate::pages::{BLOCK_PAGES, DeviceId, PageSet};

/// A condition on some bits of a word's lower half: `word & mask == value`.
#[derive(Clone, Copy)]
pub(crate) struct Pattern {
    mask: u32,
    value: u32,
}

impl Pattern {
    /// CPUs reach the contents.
    pub(crate) const REACHED_BY_CPUS: Pattern = Pattern::new(REACHED, REACHED);
    /// The page has no contents.
    pub(crate) const UNTOUCHED: Pattern = Pattern::new(STATE, UNTOUCHED);

    /// The contents are in the memory of this device and nowhere else.
    pub(crate) const fn on_device(device: DeviceId) -> Pattern {
        Pattern::new(
            ON_DEVICE | AUX_MASK << AUX_SHIFT,
            DEVICE | (device.0 as u64) << AUX_SHIFT,
        )
    }

    /// The contents are in the memory of this device and in system memory.
    pub(crate) const fn duplicated_on(device: DeviceId) -> Pattern {
        Pattern::new(
            STATE | AUX_MASK << AUX_SHIFT,
            DUPLICATED | (device.0 as u64) << AUX_SHIFT,
        )
    }

    const fn new(mask: u64, value: u64) -> Pattern {
        assert!(mask >> 32 == 0 && value >> 32 == 0);
        Pattern {
            mask: mask as u32,
            value: value as u32,
        }
    }

    pub(crate) fn fits(self, word: Word) -> bool {
        word.0 as u32 & self.mask == self.value
    }

    /// Returns the indices of the words that match. `words` must not be longer than a block.
    pub(crate) fn find(self, words: &[Word]) -> PageSet {
        #[cfg(target_arch = "x86_64")]
        if let Ok(words) = words.try_into()
            && is_x86_feature_detected!("avx2")
        {
            // SAFETY: the processor supports AVX2, as was just checked.
            return unsafe { self.find_in_block(words) };
        }
        let mut bits = PageSet::EMPTY.bits();
        for (bits, words) in bits.iter_mut().zip(words.chunks(64)) {
            let (sixteens, rest) = words.as_chunks::<16>();
            for (i, words) in sixteens.iter().enumerate() {
                *bits |= u64::from(self.find_in(words)) << (16 * i);
            }
            for (i, word) in rest.iter().enumerate() {
                *bits |= u64::from(self.fits(*word)) << (16 * sixteens.len() + i);
            }
        }
        PageSet::from_bits(bits)
    }

    /// Returns a mask in which bit `i` tells whether word `i` matches.
    fn find_in(self, words: &[Word; 16]) -> u16 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has SSE2.
        return unsafe { self.find_by_vectors(words) };
        #[cfg(not(target_arch = "x86_64"))]
        return self.find_one_by_one(words);
    }

    /// Does what `find_one_by_one` does, with SSE2. Compilers do not generate the instruction that collects the signs
    /// of 16 bytes; with it, the scan takes half the time.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "sse2")]
    fn find_by_vectors(self, words: &[Word; 16]) -> u16 {
        use std::arch::x86_64::*;
        let mask = _mm_set1_epi32(self.mask as i32);
        let value = _mm_set1_epi32(self.value as i32);
        let two =
            |i: usize| _mm_castsi128_ps(_mm_set_epi64x(words[i + 1].0 as i64, words[i].0 as i64));
        // Compares the lower halves of four words: all ones (-1) where they match. Packing to 16 and 8 bits keeps -1.
        let four = |i| {
            let lower = _mm_castps_si128(_mm_shuffle_ps::<0b10_00_10_00>(two(i), two(i + 2)));
            _mm_cmpeq_epi32(_mm_and_si128(lower, mask), value)
        };
        let eight = |i| _mm_packs_epi32(four(i), four(i + 4));
        _mm_movemask_epi8(_mm_packs_epi16(eight(0), eight(8))) as u16
    }

    /// Scans a whole block with AVX2, whose vectors are twice as long, in half the time of SSE2.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn find_in_block(self, words: &[Word; BLOCK_PAGES as usize]) -> PageSet {
        use std::arch::x86_64::*;
        let mask = _mm256_set1_epi32(self.mask as i32);
        let value = _mm256_set1_epi32(self.value as i32);
        let find = |words: &[Word; 32]| {
            let four = |i: usize| {
                let [a, b, c, d] = [0, 1, 2, 3].map(|j| words[i + j].0 as i64);
                _mm256_castsi256_ps(_mm256_set_epi64x(d, c, b, a))
            };
            // These operations work on each 128-bit half separately and interleave pairs of words. The order that
            // results is always the same and is restored below.
            let eight = |i| {
                let lower = _mm256_shuffle_ps::<0b10_00_10_00>(four(i), four(i + 4));
                _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(lower), mask), value)
            };
            let sixteen = |i| _mm256_packs_epi32(eight(i), eight(i + 8));
            let all = _mm256_packs_epi16(sixteen(0), sixteen(16));
            // The lower half now has the first pair of every four words, the upper half the second pair.
            let (first, second) = (
                _mm256_castsi256_si128(all),
                _mm256_extracti128_si256::<1>(all),
            );
            let low = _mm_movemask_epi8(_mm_unpacklo_epi16(first, second)) as u32;
            let high = _mm_movemask_epi8(_mm_unpackhi_epi16(first, second)) as u32;
            u64::from(low | high << 16)
        };
        let mut bits = PageSet::EMPTY.bits();
        for (bits, words) in bits.iter_mut().zip(words.as_chunks::<64>().0) {
            let (halves, _) = words.as_chunks::<32>();
            *bits = find(&halves[0]) | find(&halves[1]) << 32;
        }
        PageSet::from_bits(bits)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn find_one_by_one(self, words: &[Word; 16]) -> u16 {
        let words = words.iter().enumerate();
        words.fold(0, |bits, (i, word)| bits | u16::from(self.fits(*word)) << i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::Frame;
    use crate::pages::time::Tick;
    use crate::residency::word::{LOCKED, MIRRORED};
    use crate::residency::{Placed, Residency};

    #[test]
    fn finds_what_the_residency_says() {
        let device = DeviceId(63);
        // Flags and values besides the state must not matter. The states follow a quadratic sequence: a periodic one
        // could hide a mistake in the order of the words.
        let word = |i: usize| {
            let word = match i * i / 7 % 8 {
                0 => Word(0),
                1 => Word(0).to_system(Tick(u32::MAX)),
                2 => Word(0).to_device(device, Frame(u32::MAX), 9),
                3 => Word(0).to_device(DeviceId(62), Frame(7), 0),
                4 => Word(0).to_exclusive(device, Tick(1)),
                5 => Word(0).to_device(device, Frame(1), 3).to_duplicated(),
                6 => Word(0).to_device(DeviceId(0), Frame(1), 0).to_duplicated(),
                _ => Word(0).to_poisoned(),
            };
            match i % 3 {
                0 => word.with(LOCKED | MIRRORED).with_read_only(true),
                _ => word,
            }
        };
        for len in [0, 1, 15, 16, 17, 63, 64, 65, 511, 512] {
            let words: Vec<Word> = (0..len).map(word).collect();
            let check = |pattern: Pattern, is: &dyn Fn(Residency) -> bool| {
                let expected = PageSet::from_fn(len, |i| is(words[i].residency()));
                assert_eq!(pattern.find(&words), expected, "{len}");
            };
            check(Pattern::REACHED_BY_CPUS, &|r| r.reached_by_cpus());
            check(Pattern::UNTOUCHED, &|r| r == Residency::Untouched);
            check(
                Pattern::on_device(device),
                &|r| matches!(r, Residency::Device(Placed { device: d, .. }) if d == device),
            );
            check(
                Pattern::duplicated_on(device),
                &|r| matches!(r, Residency::Duplicated(Placed { device: d, .. }) if d == device),
            );
        }
    }
}
