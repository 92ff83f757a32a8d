//! Checks that end the run when they find wrong data.

use crate::exit::fail;
use crate::memory::Words;
use core::ops::Range;
use hmmvisor_abi::control::EXIT_WRONG_DATA;

/// Every word of the range must be what `expected` says of its index.
pub fn words(what: &str, words: Words, range: Range<u64>, mut expected: impl FnMut(u64) -> u64) {
    for index in range {
        word(what, words, index, expected(index), words.get(index));
    }
}

/// A word that was read must be as expected.
pub fn word(what: &str, words: Words, index: u64, expected: u64, found: u64) {
    if found != expected {
        wrong_word(what, words, index, expected, found);
    }
}

/// A number that is not one word of memory must be as expected.
pub fn value(what: &str, expected: u64, found: u64) {
    if found != expected {
        fail!(
            EXIT_WRONG_DATA,
            "wrong data: {what}: expected {expected:#x}, found {found:#x}"
        );
    }
}

#[cold]
fn wrong_word(what: &str, words: Words, index: u64, expected: u64, found: u64) -> ! {
    // Whether the word is still wrong tells a stale read from lost contents.
    let again = words.get(index);
    let address = words.address() + index * 8;
    fail!(
        EXIT_WRONG_DATA,
        "wrong data: {what}, word {index} at {address:#x}: expected {expected:#x}, found {found:#x}, \
         then {again:#x}"
    );
}
