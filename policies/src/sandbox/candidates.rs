//! Folios that a script may choose victims from, passed to it as numbers in a buffer, from which the prelude makes
//! tables. Building tables from outside costs several times as much.

/// The most candidates at a time.
pub(crate) const MOST: usize = 256;
/// Bytes of all of them.
pub(crate) const BYTES: usize = MOST * 6 * 8;

/// A folio that could be evicted.
pub(crate) struct Candidate {
    /// The folio's first frame.
    pub(crate) frame: u32,
    /// The page in that frame.
    pub(crate) page: u32,
    /// The folio's size in pages.
    pub(crate) pages: u32,
    /// How often the device has faulted on it.
    pub(crate) uses: u32,
    /// Events since it arrived.
    pub(crate) age: u64,
    /// Events since it was last used, or arrived.
    pub(crate) idle: u64,
}

/// Writes candidates in the form in which the prelude's `with_candidates` reads them.
pub(crate) fn to_bytes(candidates: &[Candidate]) -> Vec<u8> {
    let numbers = |it: &Candidate| {
        [
            it.frame.into(),
            it.page.into(),
            it.pages.into(),
            it.uses.into(),
            it.age as f64,
            it.idle as f64,
        ]
    };
    let numbers = candidates.iter().flat_map(numbers);
    numbers
        .flat_map(|number: f64| number.to_le_bytes())
        .collect()
}
