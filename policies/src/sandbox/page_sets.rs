//! Page sets for scripts: the pages of one block as a bitmap in a 64-byte buffer, with the operations that would be
//! slow in the interpreter. They are plain C functions, a third as expensive as closures.

use std::ffi::c_int;

use hmm_backend::pages::{BLOCK_PAGES, PageSet};
use mlua::ffi::{self, lua_State};
use mlua::{Lua, Table};

/// Bytes of a set.
pub(crate) const BYTES: usize = BLOCK_PAGES as usize / 8;
const PAGES: usize = BLOCK_PAGES as usize;

pub(crate) type Bits = [u64; BYTES / 8];

/// The set as a script has it.
pub(crate) fn to_bytes(set: &PageSet) -> [u8; BYTES] {
    bytes_of(&set.bits())
}

fn bytes_of(bits: &Bits) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(bits) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn bits_of(bytes: &[u8; BYTES]) -> Bits {
    let mut bits = Bits::default();
    for (word, chunk) in bits.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    bits
}

/// The set that a script has made.
pub(crate) fn from_bytes(bytes: &[u8; BYTES]) -> PageSet {
    PageSet::from_bits(bits_of(bytes))
}

/// The lowest index from `at` whose bit is set in what `view` makes of the words.
fn next_where(bits: &Bits, at: usize, view: impl Fn(u64) -> u64) -> Option<usize> {
    let mut ignore = (1u64 << (at % 64)) - 1;
    for (i, word) in bits.iter().enumerate().skip(at / 64) {
        let left = view(*word) & !ignore;
        if left != 0 {
            return Some(i * 64 + left.trailing_zeros() as usize);
        }
        ignore = 0;
    }
    None
}

/// Calls `f` for the words that `start..end` touches, with the mask of the indices that are in it.
fn each_word(bits: &mut Bits, start: usize, end: usize, mut f: impl FnMut(&mut u64, u64)) {
    let mut at = start;
    while at < end {
        let (word, low) = (at / 64, at % 64);
        let high = (end - word * 64).min(64);
        f(&mut bits[word], (u64::MAX >> (64 - (high - low))) << low);
        at = word * 64 + high;
    }
}

fn count_in(bits: &mut Bits, start: usize, end: usize) -> u32 {
    let mut count = 0;
    each_word(bits, start, end, |word, mask| {
        count += (*word & mask).count_ones()
    });
    count
}

/// The table `pages`, without what the prelude adds.
pub(crate) fn table(lua: &Lua) -> mlua::Result<Table> {
    let functions: [(&str, ffi::lua_CFunction); 11] = [
        ("count", count),
        ("fill", fill),
        ("clear", clear),
        ("has", has),
        ("next", next),
        ("around", around),
        ("densest", densest),
        ("copy", copy),
        ("union", union),
        ("intersect", intersect),
        ("subtract", subtract),
    ];
    let table = lua.create_table()?;
    for (name, function) in functions {
        // SAFETY: each of them checks its arguments, keeps to the few stack slots every C function has, and owns
        // nothing that an error would leak.
        table.set(name, unsafe { lua.create_c_function(function)? })?;
    }
    Ok(table)
}

/// The set that is argument `n`. Raises an error if that is no set.
///
/// # Safety
///
/// Only in a C function that the interpreter has called.
unsafe fn set(state: *mut lua_State, n: c_int) -> *mut [u8; BYTES] {
    let mut len = 0;
    // SAFETY: looks at an argument; anything but a buffer gives null.
    let buffer = unsafe { ffi::lua_tobuffer(state, n, &mut len) };
    if buffer.is_null() || len != BYTES {
        // SAFETY: this function owns nothing.
        unsafe { ffi::luaL_argerror(state, n, c"a page set is expected".as_ptr()) };
    }
    buffer.cast()
}

/// A copy of the set that is argument `n`.
///
/// # Safety
///
/// The same as for [`set`].
unsafe fn bits(state: *mut lua_State, n: c_int) -> Bits {
    // SAFETY: the buffer has this size and lives while it is an argument.
    bits_of(unsafe { &*set(state, n) })
}

/// Argument `n` as a whole number, cut to what indices can be.
///
/// # Safety
///
/// The same as for [`set`].
unsafe fn index(state: *mut lua_State, n: c_int) -> usize {
    // SAFETY: raises an error if it is no number. Conversion saturates, and makes 0 of what is none.
    (unsafe { ffi::luaL_checknumber(state, n) } as usize).min(PAGES)
}

/// Arguments 2 and 3, first index and number, as a range within the block.
///
/// # Safety
///
/// The same as for [`set`].
unsafe fn range(state: *mut lua_State) -> (usize, usize) {
    // SAFETY: as the caller promises.
    let (start, n) = unsafe { (index(state, 2), index(state, 3)) };
    (start, (start + n).min(PAGES))
}

unsafe extern "C-unwind" fn count(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter; one result.
    unsafe {
        let mut bits = bits(state, 1);
        let (start, end) = range(state);
        ffi::lua_pushnumber(state, count_in(&mut bits, start, end).into());
    }
    1
}

unsafe extern "C-unwind" fn fill(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter; the buffer is an argument, and no other code reads it meanwhile.
    unsafe {
        let set = set(state, 1);
        let (start, end) = range(state);
        let mut bits = bits_of(&*set);
        each_word(&mut bits, start, end, |word, mask| *word |= mask);
        *set = bytes_of(&bits);
    }
    0
}

unsafe extern "C-unwind" fn clear(state: *mut lua_State) -> c_int {
    // SAFETY: as in `fill`.
    unsafe {
        let set = set(state, 1);
        let (start, end) = range(state);
        let mut bits = bits_of(&*set);
        each_word(&mut bits, start, end, |word, mask| *word &= !mask);
        *set = bytes_of(&bits);
    }
    0
}

unsafe extern "C-unwind" fn has(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter; one result.
    unsafe {
        let bits = bits(state, 1);
        let at = index(state, 2);
        let has = bits.get(at / 64).is_some_and(|w| w >> (at % 64) & 1 != 0);
        ffi::lua_pushboolean(state, has.into());
    }
    1
}

unsafe extern "C-unwind" fn next(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter; one result.
    unsafe {
        let bits = bits(state, 1);
        match next_where(&bits, index(state, 2), |word| word) {
            Some(at) => ffi::lua_pushnumber(state, at as f64),
            None => ffi::lua_pushnil(state),
        }
    }
    1
}

/// How many pages of the set are in the aligned groups of 2, 4, ... 512 pages around an index.
fn path_of(bits: &Bits, at: usize) -> [u32; ORDERS] {
    // Counting the bits of a word goes by ever larger fields, and these are the groups: one count gives six of them.
    const FIELDS: [u64; 6] = [
        0x5555_5555_5555_5555,
        0x3333_3333_3333_3333,
        0x0f0f_0f0f_0f0f_0f0f,
        0x00ff_00ff_00ff_00ff,
        0x0000_ffff_0000_ffff,
        0x0000_0000_ffff_ffff,
    ];
    let mut path = [0; ORDERS];
    let mut word = bits[at / 64];
    for (i, field) in FIELDS.into_iter().enumerate() {
        word = (word & field) + (word >> (1 << i) & field);
        let size = 2 << i;
        let group = word >> (at % 64 / size * size);
        // A field has room for more than the number it can hold, and the last one is the whole word.
        path[i] = (group & (u64::MAX >> (64 - size))) as u32;
    }
    let counts = bits.map(u64::count_ones);
    for (i, count) in path[FIELDS.len()..].iter_mut().enumerate() {
        let (word, words) = (at / 64, 2 << i);
        let start = word / words * words;
        *count = counts[start..start + words].iter().sum();
    }
    path
}

/// Sizes of aligned groups, beyond the single page.
const ORDERS: usize = 9;

/// [`path_of`] an index: nine results.
unsafe extern "C-unwind" fn around(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter; every C function has room for 20 results.
    unsafe {
        let bits = bits(state, 1);
        for count in path_of(&bits, index(state, 2).min(PAGES - 1)) {
            ffi::lua_pushnumber(state, count.into());
        }
    }
    ORDERS as c_int
}

/// The largest aligned group around an index of which more than so many percent are in the set, as its first index and its
/// size: the page alone if there is none. In a block with fewer pages (argument 4), a group has only the pages that exist.
unsafe extern "C-unwind" fn densest(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter; two results.
    unsafe {
        let mut bits = bits(state, 1);
        let at = index(state, 2).min(PAGES - 1);
        let percent = ffi::luaL_checknumber(state, 3);
        let len = match ffi::lua_type(state, 4) {
            ffi::LUA_TNONE | ffi::LUA_TNIL => PAGES,
            _ => index(state, 4).max(at + 1),
        };
        if len < PAGES {
            each_word(&mut bits, len, PAGES, |word, mask| *word &= !mask);
        }
        let path = path_of(&bits, at);
        let (mut start, mut n) = (at, 1);
        for order in (1..=ORDERS).rev() {
            let size = 1 << order;
            let first = at / size * size;
            let pages = size.min(len - first);
            // Twice as large as the block is no group of its own.
            let dense = f64::from(path[order - 1]) * 100.0 > pages as f64 * percent;
            if size < 2 * len && dense {
                (start, n) = (first, pages);
                break;
            }
        }
        ffi::lua_pushnumber(state, start as f64);
        ffi::lua_pushnumber(state, n as f64);
    }
    2
}

/// Changes the set that is argument 1 by the one that is argument 2.
///
/// # Safety
///
/// The same as for [`set`].
unsafe fn combine(state: *mut lua_State, f: impl Fn(u64, u64) -> u64) {
    // SAFETY: as in `fill`; the other set is copied first, it may be the same.
    unsafe {
        let set = set(state, 1);
        let other = bits(state, 2);
        let mut bits = bits_of(&*set);
        for (word, other) in bits.iter_mut().zip(other) {
            *word = f(*word, other);
        }
        *set = bytes_of(&bits);
    }
}

unsafe extern "C-unwind" fn copy(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter.
    unsafe { combine(state, |_, other| other) };
    0
}

unsafe extern "C-unwind" fn union(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter.
    unsafe { combine(state, |word, other| word | other) };
    0
}

unsafe extern "C-unwind" fn intersect(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter.
    unsafe { combine(state, |word, other| word & other) };
    0
}

unsafe extern "C-unwind" fn subtract(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter.
    unsafe { combine(state, |word, other| word & !other) };
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_counts_what_each_group_holds() {
        let dense = [u64::MAX; 8];
        let mixed = std::array::from_fn(|i| 0x9e37_79b9_7f4a_7c15_u64.rotate_left(i as u32 * 7));
        for bits in [dense, Bits::default(), mixed] {
            for at in 0..PAGES {
                let path = path_of(&bits, at);
                for (i, count) in path.into_iter().enumerate() {
                    let start = at >> (i + 1) << (i + 1);
                    let expected = count_in(&mut bits.clone(), start, start + (2 << i));
                    assert_eq!(count, expected, "page {at}, order {}", i + 1);
                }
            }
        }
    }

    #[test]
    fn the_densest_group_is_that_of_a_walk_up_the_tree() {
        let lua = Lua::new();
        lua.globals().set("pages", table(&lua).unwrap()).unwrap();
        let densest: mlua::Function = lua.load("return pages.densest").eval().unwrap();
        let mixed: Bits = std::array::from_fn(|i| {
            // Ever sparser, so that all sizes occur.
            (0..i).fold(!0, |bits, j| {
                bits & 0x9e37_79b9_7f4a_7c15_u64.rotate_left(j as u32 * 11)
            })
        });
        let set = lua.create_buffer(bytes_of(&mixed)).unwrap();
        let mut sizes = std::collections::BTreeSet::new();
        for len in [1_usize, 2, 3, 20, 64, 65, 256, 257, 300, 511, 512] {
            for (at, percent) in (0..len).flat_map(|at| [(at, 20.5), (at, 51.0), (at, 100.0)]) {
                let mut expected = (at, 1);
                let mut size = 1;
                while size < len.next_power_of_two() {
                    size *= 2;
                    let start = at / size * size;
                    let end = (start + size).min(len);
                    let count = count_in(&mut mixed.clone(), start, end);
                    if f64::from(count) * 100.0 > (end - start) as f64 * percent {
                        expected = (start, end - start);
                    }
                }
                let found: (usize, usize) = densest.call((&set, at, percent, len)).unwrap();
                assert_eq!(found, expected, "page {at} of {len}, {percent} %");
                sizes.insert(found.1);
            }
        }
        assert!(sizes.len() > 9, "{sizes:?}");
        assert!(densest.call::<usize>((&set, 0)).is_err());
    }
}
