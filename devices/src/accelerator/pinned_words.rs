//! Pinned memory as words: the queue's, and the page of translations.

use std::sync::atomic::{AtomicU64, Ordering};

use hmm_backend::Pinned;

use crate::commands::managed::WORD;

/// Pinned pages that the guest and the device share.
pub struct PinnedWords(pub Pinned);

impl PinnedWords {
    /// Their words, one after the other, as they are when it is their turn.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        // Acquire: the guest wrote them before it wrote the register that brought us here.
        self.as_ref().iter().map(|it| it.load(Ordering::Acquire))
    }
}

impl AsRef<[AtomicU64]> for PinnedWords {
    fn as_ref(&self) -> &[AtomicU64] {
        // SAFETY: the pinned pages are mapped and stay in system memory for as long as `self.0` lives,
        // which the returned borrow does not outlive. They are page-aligned and any bits are valid
        // words. The guest changes them at any time, which is why they are atomics; nothing in this
        // process makes a plain reference to them.
        unsafe {
            std::slice::from_raw_parts(
                self.0.host().cast::<AtomicU64>(),
                (self.0.len() / WORD) as usize,
            )
        }
    }
}
