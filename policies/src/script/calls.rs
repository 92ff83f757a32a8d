//! Calls of a script's functions without the detours of a general binding: they come with every fault.
//!
//! The functions lie at the bottom of the stack of a Luau thread of their own. A call pushes a copy and plain values, and
//! looks at the results in place.

use std::ffi::c_int;

use mlua::ffi::{self, lua_State};
use mlua::{Lua, Value};

use super::results::{DEEPEST, RESULTS, Results};
use super::text;

/// An argument that needs no memory of the interpreter.
#[derive(Clone, Copy)]
pub(crate) enum Arg {
    Nil,
    Flag(bool),
    Number(f64),
    /// One of the values given to [`Calls::new`], by its place.
    Kept(usize),
}

impl From<bool> for Arg {
    fn from(flag: bool) -> Arg {
        Arg::Flag(flag)
    }
}

impl From<f64> for Arg {
    fn from(number: f64) -> Arg {
        Arg::Number(number)
    }
}

impl<T: Into<f64>> From<Option<T>> for Arg {
    fn from(number: Option<T>) -> Arg {
        number.map_or(Arg::Nil, |n| Arg::Number(n.into()))
    }
}

/// A Luau thread with the functions to call at the bottom of its stack.
pub(crate) struct Calls {
    thread: *mut lua_State,
    kept: c_int,
}

// SAFETY: the Luau thread belongs to an interpreter that moves together with this (see `Calls::new`), and all uses of it
// have a caller that has the interpreter to itself.
unsafe impl Send for Calls {}

/// Arguments of one call, at most.
const MOST_ARGS: usize = 8;

impl Calls {
    /// Keeps these values for as long as the interpreter lives. The caller must not use the result longer, nor give
    /// others access to the interpreter.
    pub(crate) fn new(lua: &Lua, values: Vec<Value>) -> mlua::Result<Calls> {
        let kept = values.len() as c_int;
        let room = kept + 1 + MOST_ARGS as c_int + RESULTS + DEEPEST;
        let mut thread = std::ptr::null_mut();
        // SAFETY: runs protected, with the values on the stack; makes a thread, which the registry keeps alive, moves
        // them there, and leaves nothing.
        unsafe {
            lua.exec_raw::<()>(mlua::Variadic::from_iter(values), |state| {
                thread = ffi::lua_newthread(state);
                ffi::lua_ref(state, -1);
                ffi::lua_settop(state, -2);
                ffi::luaL_checkstack(thread, room, c"calls".as_ptr());
                ffi::lua_xmove(state, thread, kept);
            })?;
        }
        Ok(Calls { thread, kept })
    }

    /// Lets the interpreter call back at every instruction of these functions, from the next call on.
    pub(crate) fn watch_instructions(&self) {
        // SAFETY: sets a flag of the thread, which lives as long as the interpreter.
        unsafe { ffi::lua_singlestep(self.thread, 1) };
    }

    /// Calls the function that was kept at `place`, and reads what it returns.
    pub(crate) fn call<R>(
        &self,
        place: usize,
        args: &[Arg],
        read: impl FnOnce(&Results<'_>) -> R,
    ) -> mlua::Result<R> {
        assert!(args.len() <= MOST_ARGS);
        let thread = self.thread;
        // SAFETY: the thread lives as long as the interpreter, and no other code uses that meanwhile: `Script` owns both
        // and hands out neither. There is room on the stack; pushing such values needs no memory, so nothing is raised
        // outside of the protected call.
        unsafe {
            ffi::lua_pushvalue(thread, place as c_int + 1);
            for arg in args {
                match *arg {
                    Arg::Nil => ffi::lua_pushnil(thread),
                    Arg::Flag(flag) => ffi::lua_pushboolean(thread, flag.into()),
                    Arg::Number(number) => ffi::lua_pushnumber(thread, number),
                    Arg::Kept(at) => ffi::lua_pushvalue(thread, at as c_int + 1),
                }
            }
            let status = ffi::lua_pcall(thread, args.len() as c_int, RESULTS, 0);
            let result = match status {
                ffi::LUA_OK => Ok(read(&Results::new(thread, self.kept + 1))),
                _ => Err(self.error(status)),
            };
            ffi::lua_settop(thread, self.kept);
            result
        }
    }

    /// Writes to the beginning of the buffer that was kept at `place`.
    pub(crate) fn write(&self, place: usize, bytes: &[u8]) {
        let mut len = 0;
        // SAFETY: looks at a value that stays where it is on the stack; anything but a buffer gives null. No other code uses
        // the interpreter meanwhile, as in `call`, so there is no other reference to the buffer's bytes.
        unsafe {
            let buffer = ffi::lua_tobuffer(self.thread, place as c_int + 1, &mut len);
            assert!(
                !buffer.is_null() && bytes.len() <= len,
                "a buffer of {} bytes is kept",
                bytes.len()
            );
            buffer
                .cast::<u8>()
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    /// The error on the stack.
    ///
    /// # Safety
    ///
    /// Only right after a call that failed.
    unsafe fn error(&self, status: c_int) -> mlua::Error {
        let mut len = 0;
        // SAFETY: a string is not converted, and lives while it is on the stack; only whether it is one is asked first.
        let text = unsafe {
            match ffi::lua_type(self.thread, -1) {
                ffi::LUA_TSTRING => {
                    let start = ffi::lua_tolstring(self.thread, -1, &mut len);
                    // Of a long one, more than is shown: the rest need not be copied.
                    let len = len.min(4 * text::SHOWN);
                    let bytes = std::slice::from_raw_parts(start.cast::<u8>(), len);
                    String::from_utf8_lossy(bytes).into_owned()
                }
                _ => "an error that is no text".to_owned(),
            }
        };
        match status {
            ffi::LUA_ERRMEM => mlua::Error::MemoryError(text),
            _ => mlua::Error::RuntimeError(text),
        }
    }
}
