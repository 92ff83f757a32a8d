//! The library functions of scripts, and the cost of a call of each.
//!
//! The interpreter can stop a script between two steps, but not within a library function. So a function whose time
//! grows with its arguments is [`metered`]: before it begins, its work is estimated from above, in nanoseconds. A call that
//! could take more than a fifth of an event's time by itself is refused, and after enough work the clock is read.
//!
//! Functions that are not listed here do not exist for scripts: a function that is new in a later version of the interpreter is
//! taken away until its cost is known.

use std::ffi::{CStr, c_int, c_void};

use mlua::ffi::{self, lua_CFunction, lua_State};
use mlua::{Function, Lua, Table, Value};

use super::budget;

/// The cost of a call.
#[derive(Clone, Copy)]
enum Cost {
    /// Bounded whatever the arguments are; or it grows with the result, which allocations count
    /// ([`budget::allocated`]); or it calls back functions of the script, which take steps.
    Small,
    /// The work that this measure finds.
    Work(Measure),
    /// Counted by another function, which is called in its place.
    Own(lua_CFunction),
}

/// How much work a call would be. Looks at arguments and changes nothing.
type Measure = unsafe fn(*mut lua_State) -> u64;

use Cost::{Own, Small, Work};

/// All functions but those of [`NUMBERS`]; without a dot, globals.
const LIBRARY: &[(&CStr, Cost)] = &[
    (c"assert", Work(texts)),
    (c"error", Work(texts)),
    (c"getmetatable", Small),
    (c"ipairs", Small),
    (c"next", Work(heap)),
    (c"pairs", Small),
    (c"pcall", Small),
    (c"print", Small),
    (c"rawequal", Small),
    (c"rawget", Small),
    (c"rawlen", Small),
    (c"rawset", Small),
    (c"select", Small),
    (c"setmetatable", Small),
    (c"tonumber", Work(texts)),
    (c"tostring", Small),
    (c"type", Small),
    (c"typeof", Small),
    (c"unpack", Work(unpacked)),
    (c"xpcall", Small),
    (c"string.byte", Work(bytes)),
    (c"string.char", Work(arguments)),
    (c"string.find", Work(searched)),
    (c"string.format", Work(texts)),
    (c"string.gmatch", Own(gmatch)),
    (c"string.gsub", Work(substituted)),
    (c"string.len", Small),
    (c"string.lower", Work(texts)),
    (c"string.match", Work(matched)),
    (c"string.pack", Work(packed)),
    (c"string.packsize", Work(packed)),
    (c"string.rep", Work(repeated)),
    (c"string.reverse", Work(texts)),
    (c"string.split", Work(split)),
    (c"string.sub", Small),
    (c"string.unpack", Work(packed)),
    (c"string.upper", Work(texts)),
    (c"table.clear", Work(heap)),
    (c"table.clone", Work(heap)),
    (c"table.concat", Work(concatenated)),
    (c"table.create", Work(created)),
    (c"table.find", Own(find)),
    // In the prelude: loops of the script's own.
    (c"table.foreach", Small),
    (c"table.foreachi", Small),
    (c"table.freeze", Small),
    (c"table.getn", Small),
    (c"table.insert", Work(shifted)),
    (c"table.isfrozen", Small),
    (c"table.maxn", Work(heap)),
    (c"table.move", Work(moved)),
    (c"table.pack", Work(arguments)),
    (c"table.remove", Work(shifted)),
    (c"table.sort", Own(sort)),
    (c"table.unpack", Work(unpacked)),
    (c"buffer.copy", Work(buffers)),
    (c"buffer.create", Work(buffer_created)),
    (c"buffer.fill", Work(buffers)),
    (c"buffer.fromstring", Work(texts)),
    (c"buffer.len", Small),
    (c"buffer.readbits", Small),
    (c"buffer.readf32", Small),
    (c"buffer.readf64", Small),
    (c"buffer.readi16", Small),
    (c"buffer.readi32", Small),
    (c"buffer.readi8", Small),
    (c"buffer.readstring", Work(buffers)),
    (c"buffer.readu16", Small),
    (c"buffer.readu32", Small),
    (c"buffer.readu8", Small),
    (c"buffer.tostring", Work(buffers)),
    (c"buffer.writebits", Small),
    (c"buffer.writef32", Small),
    (c"buffer.writef64", Small),
    (c"buffer.writei16", Small),
    (c"buffer.writei32", Small),
    (c"buffer.writei8", Small),
    (c"buffer.writestring", Work(texts)),
    (c"buffer.writeu16", Small),
    (c"buffer.writeu32", Small),
    (c"buffer.writeu8", Small),
];

/// Libraries whose functions take and return numbers, or are this program's own and of constant cost.
const NUMBERS: [&str; 4] = ["math", "bit32", "hmm", "pages"];

/// Globals that are no functions.
const OTHERS: [&str; 5] = ["_G", "_VERSION", "string", "table", "buffer"];

/// Puts meters in front of the functions that need one.
pub(crate) fn meter(lua: &Lua) -> mlua::Result<()> {
    let less: Function = lua
        .load("return function(a, b) return a < b end")
        .set_name("=less")
        .call(())?;
    for (at, (name, cost)) in LIBRARY.iter().enumerate() {
        let own = match cost {
            Small => continue,
            Work(_) => metered,
            Own(function) => *function,
        };
        let (table, field) = place(lua, name)?;
        let original: Function = table.get(field)?;
        let mut is_plain = true;
        // SAFETY: runs protected, with the two functions on the stack; the third upvalue is the second of them.
        let function = unsafe {
            lua.exec_raw::<Value>((original, less.clone()), |state| {
                let Some(original) = ffi::lua_tocfunction(state, 1) else {
                    is_plain = false;
                    return;
                };
                ffi::lua_pushlightuserdata(state, original as *mut c_void);
                ffi::lua_pushnumber(state, at as f64);
                ffi::lua_pushvalue(state, 2);
                ffi::lua_pushcclosurek(state, own, name.as_ptr(), 3, None);
                ffi::lua_replace(state, 1);
                ffi::lua_settop(state, 1);
            })?
        };
        if !is_plain {
            return Err(mlua::Error::runtime(format!(
                "{} is no function of the interpreter's",
                name.to_string_lossy()
            )));
        }
        table.raw_set(field, function)?;
    }
    Ok(())
}

/// Takes away every function that is not listed; returns their names.
pub(crate) fn withdraw_unknown(lua: &Lua) -> mlua::Result<Vec<String>> {
    let globals = lua.globals();
    let mut unknown = Vec::new();
    for pair in globals.pairs::<String, Value>() {
        let (name, value) = pair?;
        let known = match &value {
            Value::Table(_) => OTHERS.contains(&&*name) || NUMBERS.contains(&&*name),
            Value::Function(_) => is_listed(&name),
            _ => OTHERS.contains(&&*name),
        };
        if !known {
            unknown.push((globals.clone(), name));
        } else if let Value::Table(library) = value
            && !NUMBERS.contains(&&*name)
            && name != "_G"
        {
            for pair in library.pairs::<String, Value>() {
                let (field, value) = pair?;
                if value.is_function() && !is_listed(&format!("{name}.{field}")) {
                    unknown.push((library.clone(), field));
                }
            }
        }
    }
    for (table, name) in &unknown {
        table.raw_set(name.as_str(), Value::Nil)?;
    }
    Ok(unknown.into_iter().map(|(_, name)| name).collect())
}

fn is_listed(name: &str) -> bool {
    LIBRARY
        .iter()
        .any(|(it, _)| it.to_bytes() == name.as_bytes())
}

/// The table that has a function, and its name there.
fn place<'a>(lua: &Lua, name: &'a CStr) -> mlua::Result<(Table, &'a str)> {
    let name = name.to_str().unwrap_or_default();
    match name.split_once('.') {
        Some((library, field)) => Ok((lua.globals().get(library)?, field)),
        None => Ok((lua.globals(), name)),
    }
}

/// The wrapper of a function: runs its meter, then the function, with the arguments where they are.
unsafe extern "C-unwind" fn metered(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter, with the upvalues that `meter` gave it. The function was one of the
    // interpreter's, has no upvalues itself, and finds its arguments as if it had been called.
    unsafe {
        let (name, cost) = entry(state);
        let work = match cost {
            Work(measure) => measure(state),
            Small | Own(_) => 0,
        };
        admit(state, name, work);
        original(state)(state)
    }
}

/// The row of [`LIBRARY`] that the running function was made from.
///
/// # Safety
///
/// Only in a function made by [`meter`].
unsafe fn entry(state: *mut lua_State) -> (&'static CStr, Cost) {
    // SAFETY: the upvalue is an index into the table.
    let at = unsafe { ffi::lua_tonumber(state, ffi::lua_upvalueindex(2)) } as usize;
    LIBRARY[at]
}

/// The function that the running wrapper belongs to.
///
/// # Safety
///
/// Only in a function made by [`meter`].
unsafe fn original(state: *mut lua_State) -> lua_CFunction {
    // SAFETY: the upvalue is a function of this type, which lives as long as the program.
    unsafe {
        let pointer = ffi::lua_tolightuserdata(state, ffi::lua_upvalueindex(1));
        std::mem::transmute::<*mut c_void, lua_CFunction>(pointer)
    }
}

/// Raises an error if a call of this much work is too much for an event, or for what is left of it.
///
/// # Safety
///
/// Only in a C function that the interpreter has called, which owns nothing.
unsafe fn admit(state: *mut lua_State, name: &CStr, work: u64) {
    // SAFETY: as the caller promises.
    unsafe {
        if work > budget::most_work() {
            ffi::luaL_where(state, 1);
            ffi::lua_pushstring(state, name.as_ptr());
            let why = c": more than one call may do: it could take more than a fifth of the time";
            ffi::lua_pushstring(state, why.as_ptr());
            ffi::lua_concat(state, 3);
            ffi::lua_error(state);
        }
        if !budget::charge(work) {
            budget::raise(state);
        }
    }
}

/// Bytes of argument `n` as a text: of a number, more than it has digits.
///
/// # Safety
///
/// The same as for [`admit`], as for all measures.
unsafe fn text(state: *mut lua_State, n: c_int) -> u64 {
    // SAFETY: looks at an argument and converts nothing.
    unsafe {
        match ffi::lua_type(state, n) {
            ffi::LUA_TSTRING => ffi::lua_objlen(state, n) as u64,
            ffi::LUA_TNUMBER => 32,
            _ => 0,
        }
    }
}

/// Argument `n` as a number; none if it is not there or is none.
unsafe fn number(state: *mut lua_State, n: c_int) -> Option<f64> {
    let mut is_number = 0;
    // SAFETY: looks at an argument; a text is read, not changed.
    let number = unsafe { ffi::lua_tonumberx(state, n, &mut is_number) };
    (is_number != 0).then_some(number)
}

/// Elements of the list that is argument `n`.
unsafe fn elements(state: *mut lua_State, n: c_int) -> u64 {
    // SAFETY: looks at an argument.
    unsafe {
        match ffi::lua_type(state, n) {
            ffi::LUA_TTABLE => ffi::lua_objlen(state, n) as u64,
            _ => 0,
        }
    }
}

/// How many whole numbers there are from `first` to `last`. The library converts them to C's `int`; values that do not
/// fit become unpredictable numbers, so the result is the largest number then.
fn span(first: f64, last: f64) -> u64 {
    let is_int = |n: f64| (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&n);
    match is_int(first) && is_int(last) {
        true => (last.trunc() - first.trunc() + 1.0).max(0.0) as u64,
        false => u64::MAX,
    }
}

/// All texts among the arguments, read and written.
unsafe fn texts(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        let sum: u64 = (1..=ffi::lua_gettop(state)).map(|n| text(state, n)).sum();
        2 * sum + arguments(state)
    }
}

/// The number of arguments; each may become an item of 512 bytes.
unsafe fn arguments(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { 64 * ffi::lua_gettop(state) as u64 }
}

/// A walk over the largest table that there can be.
unsafe fn heap(state: *mut lua_State) -> u64 {
    // SAFETY: asks for a number.
    (unsafe { ffi::lua_totalbytes(state, -1) } / 16) as u64
}

unsafe fn bytes(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        match number(state, 3) {
            Some(_) => 16 * text(state, 1),
            None => 16,
        }
    }
}

unsafe fn searched(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises; a text stays where it is while it is an argument.
    unsafe {
        let is_plain = ffi::lua_toboolean(state, 4) != 0 || !has_magic(state, 2);
        match is_plain {
            // Comparing goes 32 bytes at a time, but begins at every place.
            true => {
                let (text, part) = (text(state, 1), text(state, 2));
                text.saturating_add(part)
                    .saturating_add(text.saturating_mul(part) / 16)
            }
            false => matched(state),
        }
    }
}

/// Whether the text that is argument `n` has one of the characters that make it a pattern.
unsafe fn has_magic(state: *mut lua_State, n: c_int) -> bool {
    // SAFETY: only a text is looked at, without converting anything; it stays where it is while it is an argument.
    unsafe {
        let mut text = string(state, n).iter();
        text.any(|byte| b"^$*+?.([%-".contains(byte))
    }
}

/// The bytes of argument `n`; none unless it is a string, which is not converted and stays where it is.
unsafe fn string<'a>(state: *mut lua_State, n: c_int) -> &'a [u8] {
    // SAFETY: as the caller promises.
    unsafe {
        if ffi::lua_type(state, n) != ffi::LUA_TSTRING {
            return &[];
        }
        let mut len = 0;
        let start = ffi::lua_tolstring(state, n, &mut len);
        std::slice::from_raw_parts(start.cast::<u8>(), len)
    }
}

/// A step of matching: the rest of the text, with each character compared with the whole pattern. How many steps there
/// are is counted while it runs.
unsafe fn matched(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        let work = text(state, 1).saturating_mul(text(state, 2) + 1);
        budget::long_steps(work);
        work
    }
}

unsafe fn substituted(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        // A match may put the whole text in for each two characters of the replacement.
        let captured = match has_magic(state, 3) {
            true => text(state, 1).saturating_mul(text(state, 3)),
            false => text(state, 3),
        };
        budget::long_steps(captured);
        matched(state).saturating_add(captured)
    }
}

unsafe fn repeated(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        let n = number(state, 2).unwrap_or_default().max(0.0) as u64;
        // The smallest text there is counts, too: what comes of very many is an error, not a loop.
        n.saturating_mul(text(state, 1).max(1)) / 2
    }
}

unsafe fn split(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { text(state, 1).saturating_mul(64 + text(state, 2) / 16) }
}

/// All numbers in the format may be lengths; each option may be a result.
unsafe fn packed(state: *mut lua_State) -> u64 {
    // SAFETY: as for `has_magic`.
    unsafe {
        let format = string(state, 1);
        let (mut lengths, mut run) = (0u64, 0u64);
        for byte in format {
            run = match byte.is_ascii_digit() {
                true => run
                    .saturating_mul(10)
                    .saturating_add(u64::from(byte - b'0')),
                false => 0,
            };
            lengths = lengths.saturating_add(run);
        }
        lengths
            .saturating_mul(2)
            .saturating_add(32 * format.len() as u64 + texts(state))
    }
}

unsafe fn unpacked(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        let first = number(state, 2).unwrap_or(1.0);
        let last = number(state, 3).unwrap_or(elements(state, 1) as f64);
        span(first, last).saturating_mul(16)
    }
}

unsafe fn created(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { number(state, 1).unwrap_or_default().max(0.0) as u64 }
}

/// The elements behind the place where one is inserted or removed.
unsafe fn shifted(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        let len = elements(state, 1);
        // At the end nothing moves; a third argument of `insert`, or a second of `remove`, names the place.
        match (number(state, 2), ffi::lua_gettop(state)) {
            (Some(place), 2..=3) => span(place, len as f64).min(len).saturating_mul(16),
            _ => 16,
        }
    }
}

unsafe fn moved(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        let (first, last) = (number(state, 2), number(state, 3));
        span(first.unwrap_or_default(), last.unwrap_or_default()).saturating_mul(16)
    }
}

unsafe fn concatenated(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises; there is room for a few more values on the stack of every C function.
    unsafe {
        if ffi::lua_type(state, 1) != ffi::LUA_TTABLE {
            return 0;
        }
        let first = number(state, 3).unwrap_or(1.0);
        let last = number(state, 4).unwrap_or(elements(state, 1) as f64);
        let n = span(first, last);
        let most = budget::most_work();
        let mut work = n.saturating_mul(32 + text(state, 2));
        if work > most {
            return work;
        }
        for i in first as i64..=last as i64 {
            ffi::lua_rawgeti_(state, 1, i as c_int);
            let len = text(state, -1);
            ffi::lua_settop(state, -2);
            work = work.saturating_add(2 * len);
            if work > most {
                break;
            }
        }
        work
    }
}

/// All of the buffers among the arguments.
unsafe fn buffers(state: *mut lua_State) -> u64 {
    // SAFETY: looks at arguments; anything but a buffer gives null and no length.
    unsafe {
        let size = |n| {
            let mut len = 0;
            let start = ffi::lua_tobuffer(state, n, &mut len);
            if start.is_null() { 0 } else { len as u64 }
        };
        (size(1) + size(3)) / 4
    }
}

unsafe fn buffer_created(state: *mut lua_State) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { created(state) / 4 }
}

/// `table.find`, with a look at the clock now and then.
unsafe extern "C-unwind" fn find(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter; owns nothing that an error would leak, and keeps one more value on the stack.
    unsafe {
        ffi::luaL_checktype(state, 1, ffi::LUA_TTABLE);
        ffi::luaL_checkany(state, 2);
        let init = ffi::luaL_optinteger_(state, 3, 1);
        if init < 1 {
            ffi::luaL_argerror(state, 3, c"index out of range".as_ptr());
        }
        for i in init..c_int::MAX {
            if i % 64 == 0 && !budget::charge(64 * 16) {
                budget::raise(state);
            }
            ffi::lua_rawgeti_(state, 1, i);
            if ffi::lua_type(state, -1) == ffi::LUA_TNIL {
                break;
            }
            if ffi::lua_equal(state, 2, -1) != 0 {
                ffi::lua_pushnumber(state, f64::from(i));
                return 1;
            }
            ffi::lua_settop(state, -2);
        }
        ffi::lua_pushnil(state);
        1
    }
}

/// `table.sort`. The comparison must be a function of the script, so that comparisons are steps.
unsafe extern "C-unwind" fn sort(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter, with the upvalues that `meter` gave it; as in `metered`.
    unsafe {
        let (name, _) = entry(state);
        admit(state, name, elements(state, 1).saturating_mul(16));
        match ffi::lua_type(state, 2) {
            ffi::LUA_TNONE | ffi::LUA_TNIL => {
                ffi::lua_settop(state, 1);
                ffi::lua_pushvalue(state, ffi::lua_upvalueindex(3));
            }
            _ if ffi::lua_iscfunction(state, 2) != 0 => {
                ffi::luaL_argerror(state, 2, c"a function of the script is expected".as_ptr());
            }
            _ => {}
        }
        original(state)(state)
    }
}

/// `string.gmatch`: what it returns is metered as well.
unsafe extern "C-unwind" fn gmatch(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter, with the upvalues that `meter` gave it; as in `metered`. The original leaves its
    // one result on top.
    unsafe {
        let (name, _) = entry(state);
        let work = matched(state);
        admit(state, name, work);
        original(state)(state);
        ffi::lua_pushnumber(state, work as f64);
        ffi::lua_pushcclosurek(state, next_match, name.as_ptr(), 2, None);
        1
    }
}

/// The next match of what `gmatch` has returned.
unsafe extern "C-unwind" fn next_match(state: *mut lua_State) -> c_int {
    // SAFETY: called by the interpreter, with the upvalues that `gmatch` gave it.
    unsafe {
        let work = ffi::lua_tonumber(state, ffi::lua_upvalueindex(2)) as u64;
        budget::long_steps(work);
        admit(state, c"string.gmatch", work);
        ffi::lua_settop(state, 0);
        ffi::lua_pushvalue(state, ffi::lua_upvalueindex(1));
        ffi::lua_call(state, 0, ffi::LUA_MULTRET);
        ffi::lua_gettop(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interpreter() -> Lua {
        Lua::new_with(crate::sandbox::libraries(), mlua::LuaOptions::default()).unwrap()
    }

    /// A later interpreter may have more functions. What a call of each may cost has to be found out before scripts get
    /// it: until then, [`withdraw_unknown`] takes it away, and this test fails.
    #[test]
    fn every_function_of_the_interpreter_is_listed_or_withdrawn_on_purpose() {
        let lua = interpreter();
        for (name, _) in LIBRARY {
            let (table, field) = place(&lua, name).unwrap();
            let value: Value = table.get(field).unwrap();
            assert!(value.is_function(), "{name:?} is {value:?}");
        }
        meter(&lua).unwrap();
        let mut withdrawn = withdraw_unknown(&lua).unwrap();
        withdrawn.sort();
        assert_eq!(
            withdrawn,
            [
                "collectgarbage",
                "gcinfo",
                "getfenv",
                "loadstring",
                "newproxy",
                "require",
                "setfenv"
            ]
        );
        assert!(withdraw_unknown(&lua).unwrap().is_empty());
        lua.globals()
            .set("later", lua.create_table().unwrap())
            .unwrap();
        lua.load("string.later = print").exec().unwrap();
        assert_eq!(withdraw_unknown(&lua).unwrap().len(), 2);
    }

    /// Functions of numbers are not listed one by one: they take nothing that could be large.
    #[test]
    fn functions_of_numbers_take_numbers() {
        let lua = interpreter();
        for library in ["math", "bit32"] {
            let library: Table = lua.globals().get(library).unwrap();
            for pair in library.pairs::<String, Value>() {
                let (name, value) = pair.unwrap();
                let Value::Function(function) = value else {
                    assert!(value.is_number(), "{name} is {value:?}");
                    continue;
                };
                let (list, text) = (lua.create_table().unwrap(), "x");
                assert!(
                    function.call::<Value>((list, 1, 1)).is_err() || name == "random",
                    "{name}"
                );
                assert!(
                    function.call::<Value>((text, 1, 1)).is_err() || name == "random",
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn metered_functions_do_what_they_did() {
        let lua = interpreter();
        meter(&lua).unwrap();
        lua.load(include_str!("library_test.luau"))
            .set_name("=library_test")
            .exec()
            .unwrap();
    }
}
