//! The interpreter a script runs in: no files, no processes, no other code, read-only globals, bounded memory.
//!
//! | module | what |
//! |---|---|
//! | `limits`, `budget` | the bounds of a script, and what one event has used of them |
//! | `library` | the functions of Luau's library, each with its cost |
//! | `page_sets`, `candidates` | values that scripts are given: sets of pages, folios to choose victims from |

pub(crate) mod budget;
pub(crate) mod candidates;
pub(crate) mod library;
pub(crate) mod limits;
pub(crate) mod page_sets;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use mlua::chunk::Compiler;
use mlua::{Buffer, Function, Lua, LuaOptions, LuaString, StdLib, Table, Value};

use self::limits::Limits;

/// The parts of a fault's surroundings that a script has asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs(u32);

impl Needs {
    /// Whether the script reads this buffer, one of those that [`Surroundings`] names.
    pub(crate) fn has(self, buffer: usize) -> bool {
        self.0 & 1 << buffer != 0
    }
}

/// The buffers that a fault's surroundings are written to.
pub(crate) struct Surroundings {
    /// The buffers, at the indices that the constants below name.
    pub(crate) buffers: Vec<Buffer>,
    /// Wraps a script's `victims` into a function that reads the candidates from their buffer.
    pub(crate) with_candidates: Function,
    /// Runs a script's top level.
    pub(crate) run: Function,
    /// Returns the value of the top level.
    pub(crate) result: Function,
    needs: Arc<AtomicU32>,
    closed: Arc<AtomicBool>,
}

/// Faults in `recent`, at most.
pub(crate) const RECENT: usize = 16;

/// Places that `links` tells of: system memory, and the first 16 devices.
pub(crate) const PLACES: usize = 17;

impl Surroundings {
    pub(crate) const RESIDENT: usize = 0;
    pub(crate) const TOUCHED: usize = 1;
    pub(crate) const UNTOUCHED: usize = 2;
    pub(crate) const RECENT: usize = 3;
    pub(crate) const NUMBERS: usize = 4;
    pub(crate) const CANDIDATES: usize = 5;
    pub(crate) const LINKS: usize = 6;
    /// How many there are, then page, device and time of each.
    pub(crate) const RECENT_BYTES: usize = 8 + 24 * RECENT;
    /// Latency and bandwidth from each place to each.
    pub(crate) const LINKS_BYTES: usize = 16 * PLACES * PLACES;
    /// The buffers' names in the prelude, and their sizes.
    const BUFFERS: [(&str, usize); 7] = [
        ("resident", page_sets::BYTES),
        ("touched", page_sets::BYTES),
        ("untouched", page_sets::BYTES),
        ("recent", Surroundings::RECENT_BYTES),
        ("numbers", 8 * 5),
        ("candidates", candidates::BYTES),
        ("links", Surroundings::LINKS_BYTES),
    ];

    /// Returns the bit of [`Needs`] for what a script has asked for by this name.
    fn bit(name: &str) -> u32 {
        let place = Self::BUFFERS.iter().position(|(it, _)| *it == name);
        1 << place.unwrap_or(Self::NUMBERS)
    }

    /// Ends the time in which a script can ask for parts of the surroundings; returns those that it has asked for.
    pub(crate) fn close(&self) -> Needs {
        self.closed.store(true, Ordering::Relaxed);
        Needs(self.needs.load(Ordering::Relaxed))
    }
}

/// The output of a script's `print`.
pub(crate) type Print = Arc<dyn Fn(&str) + Send + Sync>;

/// Libraries that scripts have; [`library`] says which of their functions.
pub(crate) fn libraries() -> StdLib {
    StdLib::MATH | StdLib::STRING | StdLib::TABLE | StdLib::BIT | StdLib::BUFFER
}

/// Makes an interpreter.
pub(crate) fn new(
    params: &[(String, String)],
    limits: &Limits,
    print: Print,
) -> mlua::Result<(Lua, Surroundings)> {
    let lua = Lua::new_with(libraries(), LuaOptions::default())?;
    lua.set_compiler(Compiler::new().set_optimization_level(2).set_debug_level(1));
    let (needs, closed) = <(Arc<AtomicU32>, Arc<AtomicBool>)>::default();
    let (asked, open) = (needs.clone(), closed.clone());
    let host = lua.create_table()?;
    let need = lua.create_function(move |_, what: String| {
        // Errors of Rust functions are no text; the prelude raises one.
        let open = !open.load(Ordering::Relaxed);
        if open {
            asked.fetch_or(Surroundings::bit(&what), Ordering::Relaxed);
        }
        Ok(open)
    })?;
    host.set("need", need)?;
    let print = move |_: &Lua, line: LuaString| {
        print(&line.to_string_lossy());
        Ok(())
    };
    host.set("print", lua.create_function(print)?)?;
    host.set("pages", page_sets::table(&lua)?)?;
    host.set("params", params_table(&lua, params)?)?;
    let mut buffers = Vec::new();
    for (name, bytes) in Surroundings::BUFFERS {
        buffers.push(lua.create_buffer(vec![0; bytes])?);
        host.set(name, buffers.last())?;
    }
    library::meter(&lua)?;
    let (with_candidates, run, result) = lua
        .load(include_str!("prelude.luau"))
        .set_name("=prelude")
        .call(host)?;
    for name in ["hmm", "pages"] {
        let table: Table = lua.globals().get(name)?;
        table.set_readonly(true);
    }
    library::withdraw_unknown(&lua)?;
    lua.sandbox(true)?;
    // The one table that is there to be changed.
    lua.globals().set("state", lua.create_table()?)?;
    // SAFETY: gives the interpreter callbacks that live for ever.
    unsafe {
        lua.exec_raw::<()>((), |state| {
            let callbacks = mlua::ffi::lua_callbacks(state);
            (*callbacks).interrupt = Some(budget::interrupt);
            (*callbacks).debugstep = Some(budget::instruction);
            (*callbacks).onallocate = Some(budget::allocated);
        })?;
    }
    lua.set_memory_limit(limits.memory)?;
    let surroundings = Surroundings {
        buffers,
        with_candidates,
        run,
        result,
        needs,
        closed,
    };
    Ok((lua, surroundings))
}

/// Parameters as a script finds them: numbers where they are ones.
fn params_table(lua: &Lua, params: &[(String, String)]) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    for (name, value) in params {
        let value = match value.parse::<f64>() {
            Ok(number) => Value::Number(number),
            Err(_) => Value::String(lua.create_string(value)?),
        };
        table.set(name.as_str(), value)?;
    }
    table.set_readonly(true);
    Ok(table)
}
