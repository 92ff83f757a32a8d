//! What a script's function returned, looked at where it left it: nothing is copied, and no memory of the interpreter
//! is needed.

use std::ffi::{CStr, c_int};
use std::fmt;
use std::marker::PhantomData;

use mlua::ffi::{self, lua_State};

use super::text;
use crate::sandbox::page_sets;

/// Values of a function's that are looked at: those that mean something, and one more, which is a mistake.
pub(crate) const RESULTS: c_int = 6;
/// Values that are on the stack beside the results while they are read: a list, a table in it, and an element of that, or
/// a key with its value.
pub(crate) const DEEPEST: c_int = 8;

/// The results of a call, on the stack.
pub(crate) struct Results<'a> {
    thread: *mut lua_State,
    /// The place of the first one.
    first: c_int,
    call: PhantomData<&'a ()>,
}

/// A value.
pub(crate) enum Item<'a> {
    Nil,
    Flag(bool),
    Number(f64),
    Set(&'a [u8; page_sets::BYTES]),
    Table(Table<'a>),
    /// Nothing that scripts are to return: its type.
    Other(&'a str),
}

/// A table on the stack, looked at without its metatable.
pub(crate) struct Table<'a> {
    thread: *mut lua_State,
    at: c_int,
    call: PhantomData<&'a ()>,
}

/// A key of a table.
pub(crate) enum Key<'a> {
    Text(&'a [u8]),
    Number(f64),
    /// Any other type: its name.
    Other(&'a str),
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Text(bytes) => write!(f, "the key `{}`", String::from_utf8_lossy(bytes)),
            Key::Number(n) => write!(f, "the key [{n}]"),
            Key::Other(kind) => write!(f, "a {kind} as a key"),
        }
    }
}

impl Item<'_> {
    /// Returns what the value is, in the words of messages.
    pub(crate) fn kind(&self) -> String {
        match self {
            Item::Nil => "nothing".into(),
            Item::Number(n) => text::number(*n),
            Item::Flag(_) => "a boolean".into(),
            Item::Set(_) => "a buffer".into(),
            Item::Table(_) => "a table".into(),
            Item::Other(kind) => format!("a {kind}"),
        }
    }
}

impl<'a> Results<'a> {
    /// # Safety
    ///
    /// The results lie on the stack of `thread` from `first` on, with room for [`DEEPEST`] more values, and during `'a`
    /// no other code uses the interpreter.
    pub(crate) unsafe fn new(thread: *mut lua_State, first: c_int) -> Results<'a> {
        Results {
            thread,
            first,
            call: PhantomData,
        }
    }

    /// The `i`-th result, from 0.
    pub(crate) fn get(&self, i: c_int) -> Item<'_> {
        assert!(i < RESULTS);
        // SAFETY: one of the results.
        unsafe { look(self.thread, self.first + i) }
    }
}

impl Table<'_> {
    /// Elements of the list.
    pub(crate) fn len(&self) -> usize {
        // SAFETY: a table on the stack.
        unsafe { ffi::lua_objlen(self.thread, self.at) }
    }

    /// Looks at an element of the list, from 1.
    pub(crate) fn element<R>(&self, i: usize, read: impl FnOnce(Item<'_>) -> R) -> R {
        // SAFETY: pushes a value that the table has, or nil.
        unsafe {
            ffi::lua_rawgeti_(self.thread, self.at, i as c_int);
            self.pop_after(read)
        }
    }

    /// Looks at a field, whose name [`Calls`](crate::script::calls::Calls) keeps at this place.
    pub(crate) fn field<R>(&self, name: usize, read: impl FnOnce(Item<'_>) -> R) -> R {
        // SAFETY: pushes the name; the value that the table has, or nil, takes its place.
        unsafe {
            ffi::lua_pushvalue(self.thread, name as c_int + 1);
            ffi::lua_rawget(self.thread, self.at);
            self.pop_after(read)
        }
    }

    /// The first key, of at most `most`, that `is_known` does not accept, in words.
    pub(crate) fn unknown_key(
        &self,
        most: usize,
        is_known: impl Fn(&Key<'_>) -> bool,
    ) -> Option<String> {
        let mut next = 0;
        for _ in 0..most {
            // SAFETY: pushes a key and its value if there are more; the key is on the stack while it is looked at.
            let unknown = unsafe {
                next = ffi::lua_rawiter(self.thread, self.at, next);
                if next < 0 {
                    return None;
                }
                let top = ffi::lua_gettop(self.thread);
                let key = key(self.thread, top - 1);
                let unknown = (!is_known(&key)).then(|| key.to_string());
                ffi::lua_settop(self.thread, top - 2);
                unknown
            };
            if unknown.is_some() {
                return unknown;
            }
        }
        None
    }

    /// Looks at the value on top, and takes it away.
    ///
    /// # Safety
    ///
    /// There is one above the table.
    unsafe fn pop_after<R>(&self, read: impl FnOnce(Item<'_>) -> R) -> R {
        // SAFETY: the value is there until `read` returns, which leaves the stack as it was: it can only do as this
        // function does.
        unsafe {
            let top = ffi::lua_gettop(self.thread);
            let result = read(look(self.thread, top));
            ffi::lua_settop(self.thread, top - 1);
            result
        }
    }
}

/// The name of a type of values.
///
/// # Safety
///
/// The thread's interpreter lives during `'a`.
unsafe fn type_name<'a>(thread: *mut lua_State, kind: c_int) -> &'a str {
    // SAFETY: names of types are constants of the interpreter's.
    let name = unsafe { CStr::from_ptr(ffi::lua_typename(thread, kind)) };
    name.to_str().unwrap_or("value")
}

/// The key at a place of the stack.
///
/// # Safety
///
/// It is there and not changed during `'a`.
unsafe fn key<'a>(thread: *mut lua_State, at: c_int) -> Key<'a> {
    // SAFETY: neither a string nor a number is converted, so this needs no memory; a string's bytes stay where they are.
    unsafe {
        match ffi::lua_type(thread, at) {
            ffi::LUA_TSTRING => {
                let mut len = 0;
                let start = ffi::lua_tolstring(thread, at, &mut len);
                Key::Text(std::slice::from_raw_parts(start.cast(), len))
            }
            ffi::LUA_TNUMBER => Key::Number(ffi::lua_tonumber(thread, at)),
            other => Key::Other(type_name(thread, other)),
        }
    }
}

/// The value at a place of the stack.
///
/// # Safety
///
/// It is there and not changed during `'a`.
unsafe fn look<'a>(thread: *mut lua_State, at: c_int) -> Item<'a> {
    // SAFETY: converts nothing, so it needs no memory; a buffer's bytes stay where they are.
    unsafe {
        match ffi::lua_type(thread, at) {
            ffi::LUA_TNIL => Item::Nil,
            ffi::LUA_TBOOLEAN => Item::Flag(ffi::lua_toboolean(thread, at) != 0),
            ffi::LUA_TNUMBER => Item::Number(ffi::lua_tonumber(thread, at)),
            ffi::LUA_TTABLE => Item::Table(Table {
                thread,
                at,
                call: PhantomData,
            }),
            other => {
                let mut len = 0;
                let bytes = ffi::lua_tobuffer(thread, at, &mut len);
                if !bytes.is_null() && len == page_sets::BYTES {
                    return Item::Set(&*bytes.cast());
                }
                Item::Other(type_name(thread, other))
            }
        }
    }
}
