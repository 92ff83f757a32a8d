//! One instance of a script: its interpreter, its functions, and how they are called.
//!
//! | module | what |
//! |---|---|
//! | `instance` | the script's current version, in an interpreter for one backend |
//! | `text` | the script's text; what is shown of what it says |
//! | `params` | the parameters that it reads, by its text |
//! | `calls`, `results`, `answer` | a call, the values it left behind, the advice they make |

pub(crate) mod answer;
pub(crate) mod calls;
pub(crate) mod instance;
mod params;
pub(crate) mod results;
pub(crate) mod text;

use std::cell::Cell;
use std::time::{Duration, Instant};

use hmm_backend::pages::{DeviceId, Fidelity, Hint, PageRange, PageSet, Place};
use hmm_backend::policy::{Advice, BlockFault, BlockView, Seen, Wish};
use mlua::chunk::ChunkMode;
use mlua::{Function, Lua, Table, Value, ffi};

use self::calls::{Arg, Calls};
use self::results::Results;
use crate::sandbox::budget::{self, Attention, Budget, Outcome, Overrun};
use crate::sandbox::candidates::{self, Candidate};
use crate::sandbox::limits::Limits;
use crate::sandbox::page_sets;
use crate::sandbox::{self, Needs, PLACES, Print, RECENT, Surroundings};

/// The source of a script.
#[derive(Debug)]
pub(crate) struct Source {
    /// The file's name, as errors give it.
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) params: Vec<(String, String)>,
}

/// A function of the script.
#[derive(Debug)]
struct Handler {
    name: &'static str,
    function: Function,
    /// How many arguments it takes: more need not be made.
    params: usize,
    /// The place of its definition.
    line: usize,
}

/// Names of the functions a script may have.
const HANDLERS: [&str; 6] = [
    "on_fault",
    "on_remote_accesses",
    "on_hint",
    "on_free",
    "on_tick",
    "victims",
];
/// The names of hints for `on_hint`, as in configuration files.
const HINTS: [&str; 3] = ["preferred", "accessed-by", "read-mostly"];
const PREFERRED_LOCATION: usize = 0;
const ACCESSED_BY: usize = 1;
const READ_MOSTLY: usize = 2;
const ON_FAULT: usize = 0;
const ON_REMOTE_ACCESSES: usize = 1;
const ON_HINT: usize = 2;
const ON_FREE: usize = 3;
const ON_TICK: usize = 4;
pub(crate) const VICTIMS: usize = 5;
/// The default of `remote_access_threshold`, accesses in place to 64 KiB: the same as that of `access-counter`.
const REMOTE_ACCESSES: u32 = 256;
/// Bytes of the name of an eviction policy with its parameters, at most.
const EVICTION: usize = 200;
/// How long the collector works for a script that had no memory left.
const COLLECTING: Duration = Duration::from_millis(1);
/// The places in [`Calls`] of the first key of advice, and of the first buffer of [`Surroundings`].
const KEYS: usize = HANDLERS.len() + HINTS.len();
const BUFFERS: usize = KEYS + answer::KEYS.len();

/// Returns the names of handlers, of which each has a bit.
pub(crate) fn names_of(handlers: u32) -> Vec<&'static str> {
    let names = HANDLERS.iter().enumerate();
    names
        .filter(|(i, _)| handlers & (1 << i) != 0)
        .map(|(_, name)| *name)
        .collect()
}

/// A loaded script.
pub(crate) struct Script {
    lua: Lua,
    file: String,
    limits: Limits,
    handlers: [Option<Handler>; HANDLERS.len()],
    /// The handlers that have been called: a bit for each.
    called: Cell<u32>,
    /// Has the handlers in their order, the names of hints, the keys of advice, then the buffers.
    calls: Calls,
    attention: Cell<Attention>,
    needs: Needs,
    /// Whether the buffer of links is filled.
    has_links: Cell<bool>,
    remote_access_threshold: u32,
    pub(crate) tick_interval: Option<Duration>,
    pub(crate) eviction: Option<String>,
    /// How much devices must tell of their accesses for the script to be of use.
    pub(crate) accesses: Fidelity,
}

/// Why an event failed: file, line and what is wrong. Parts of it may be the script's words, so it is shown by
/// [`crate::script::text::shown`] only.
pub(crate) type Failure = String;

/// The result of a call of a function that returned, according to the interpreter.
enum Returned<T> {
    /// The function returned an answer.
    Answer(T),
    /// The function returned something that means nothing.
    Nonsense(String),
    /// The function returned, but it had exceeded a limit by then.
    Late(Overrun),
}

impl Script {
    /// Compiles the script and runs its top level, which must return a table of functions.
    pub(crate) fn load(source: &Source, limits: &Limits, print: Print) -> Result<Script, Failure> {
        let file = &source.name;
        let whole = |error: mlua::Error| describe(file, 1, &error);
        let (lua, surroundings) = sandbox::new(&source.params, limits, print).map_err(whole)?;
        let budget = Budget {
            steps: limits.steps.saturating_mul(Limits::LOADING_STEPS),
            time: limits.loading,
            text: usize::MAX,
        };
        let outcome = budget::within(&lua, budget, Attention::Instructions, || {
            // Only text is accepted, because compiled code would run unchecked.
            let chunk = lua.load(&source.text).set_mode(ChunkMode::Text);
            let chunk = chunk.set_name(format!("={file}")).into_function()?;
            let run = surroundings.run.clone();
            let calls = Calls::new(&lua, vec![Value::Function(run), Value::Function(chunk)])?;
            calls.watch_instructions();
            calls.call(0, &[Arg::Kept(1)], |_| budget::finish())
        });
        match (outcome.result, outcome.overrun) {
            (Ok(None), _) => {}
            (Ok(Some(overrun)), _) => {
                return Err(format!("{file}:1: loading it took {}", reason(overrun)));
            }
            (Err(error), overrun) => return Err(explain(file, 1, &error, overrun)),
        }
        let table = match surroundings.result.call::<Value>(()).map_err(whole)? {
            Value::Table(table) => table,
            other => {
                return Err(format!(
                    "{file}:1: the script returns {}; it must return a table of functions such as on_fault",
                    kind(&other)
                ));
            }
        };
        let needs = surroundings.close();
        let mut script = Script {
            calls: Calls::new(&lua, Vec::new()).map_err(whole)?,
            lua,
            file: file.clone(),
            limits: *limits,
            attention: Cell::new(Attention::Steps),
            handlers: [const { None }; HANDLERS.len()],
            called: Cell::new(0),
            needs,
            has_links: Cell::new(false),
            remote_access_threshold: REMOTE_ACCESSES,
            tick_interval: None,
            eviction: None,
            accesses: Fidelity::default(),
        };
        script.read(&table)?;
        if let Some(victims) = &mut script.handlers[VICTIMS] {
            let wrap = surroundings.with_candidates;
            victims.function = wrap.call(&victims.function).map_err(whole)?;
            victims.params = 2;
        }
        let function = |handler: &Option<Handler>| match handler {
            Some(handler) => Value::Function(handler.function.clone()),
            None => Value::Nil,
        };
        let mut kept: Vec<Value> = script.handlers.iter().map(function).collect();
        for name in HINTS.into_iter().chain(answer::KEYS) {
            kept.push(Value::String(
                script.lua.create_string(name).map_err(whole)?,
            ));
        }
        kept.extend(surroundings.buffers.into_iter().map(Value::Buffer));
        script.calls = Calls::new(&script.lua, kept).map_err(whole)?;
        if outcome.large_text {
            script.watch_instructions();
        }
        Ok(script)
    }

    fn watch_instructions(&self) {
        if self.attention.replace(Attention::Instructions) == Attention::Steps {
            self.calls.watch_instructions();
        }
    }

    fn read(&mut self, table: &Table) -> Result<(), Failure> {
        let file = &self.file;
        for pair in table.pairs::<Value, Value>() {
            let (key, value) = pair.map_err(|error| describe(file, 1, &error))?;
            let name = match &key {
                Value::String(name) => name.to_string_lossy(),
                other => format!("({})", other.type_name()),
            };
            let wrong = |expected: &str| {
                Err(format!(
                    "{file}:1: `{name}` is {}; {expected}",
                    kind(&value)
                ))
            };
            match (name.as_str(), &value) {
                ("tick_interval", Value::Number(us)) if *us >= 1.0 && *us <= 1e12 => {
                    self.tick_interval = Some(Duration::from_secs_f64(us / 1e6));
                }
                ("tick_interval", Value::Integer(us)) if *us >= 1 => {
                    self.tick_interval = Some(Duration::from_micros(*us as u64));
                }
                ("tick_interval", _) => return wrong("it must be a time in microseconds, from 1"),
                ("remote_access_threshold", value) => match count(value) {
                    Some(n) => self.remote_access_threshold = n,
                    None => return wrong("it must be a number of accesses, from 1"),
                },
                ("eviction", Value::String(spec)) if spec.as_bytes().len() <= EVICTION => {
                    self.eviction = Some(spec.to_string_lossy());
                }
                ("eviction", _) => return wrong("it must be the name of an eviction policy"),
                ("accesses", Value::String(told)) => match told.to_string_lossy().parse() {
                    Ok(accesses) => self.accesses = accesses,
                    Err(_) => return wrong("it must be faults, bits or all"),
                },
                ("accesses", _) => return wrong("it must be faults, bits or all"),
                (_, Value::Function(function)) => {
                    let Some(i) = HANDLERS.iter().position(|known| *known == name) else {
                        return Err(self.unknown(&name));
                    };
                    let info = function.info();
                    self.handlers[i] = Some(Handler {
                        name: HANDLERS[i],
                        params: match info.is_vararg {
                            true => usize::MAX,
                            false => info.num_params.into(),
                        },
                        line: info.line_defined.unwrap_or(1),
                        function: function.clone(),
                    });
                }
                _ if HANDLERS.contains(&name.as_str()) => return wrong("it must be a function"),
                _ => return Err(self.unknown(&name)),
            }
        }
        if self.handlers.iter().all(Option::is_none) && self.eviction.is_none() {
            return Err(format!(
                "{file}:1: the script decides nothing; it may return: {}",
                known()
            ));
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> Failure {
        format!(
            "{}:1: the script returns something called `{name}`; it may return: {}",
            self.file,
            known()
        )
    }

    pub(crate) fn decides_faults(&self) -> bool {
        self.handlers[ON_FAULT].is_some()
    }

    /// How many accesses in place `on_remote_accesses` is called for, if the script has it.
    pub(crate) fn remote_access_threshold(&self) -> Option<u32> {
        let heard = self.handlers[ON_REMOTE_ACCESSES].is_some();
        heard.then_some(self.remote_access_threshold)
    }

    /// Calls a function within its bounds, if the script has it, and converts what it returns.
    fn call<T>(
        &self,
        which: usize,
        args: &[Arg],
        read: impl FnOnce(&Results<'_>) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        let Some(handler) = &self.handlers[which] else {
            return Ok(None);
        };
        self.called.set(self.called.get() | 1 << which);
        let budget = Budget {
            steps: self.limits.steps,
            time: self.limits.time,
            text: Limits::TEXT,
        };
        let args = &args[..args.len().min(handler.params)];
        let attention = self.attention.get();
        let Outcome {
            result,
            overrun,
            large_text,
        } = budget::within(&self.lua, budget, attention, || {
            // An answer counts only if it came in time.
            self.calls
                .call(which, args, |results| match budget::finish() {
                    Some(overrun) => Returned::Late(overrun),
                    None => match read(results) {
                        Ok(answer) => Returned::Answer(answer),
                        Err(what) => Returned::Nonsense(what),
                    },
                })
        });
        if large_text {
            self.watch_instructions();
        }
        let (file, line, name) = (&self.file, handler.line, handler.name);
        match result {
            Ok(Returned::Answer(answer)) => Ok(Some(answer)),
            Ok(Returned::Nonsense(what)) => Err(format!("{file}:{line}: {name} returned {what}")),
            Ok(Returned::Late(overrun)) => {
                Err(format!("{file}:{line}: {name} took {}", reason(overrun)))
            }
            Err(error) => {
                if overrun.is_none() {
                    // The script may have failed for want of memory, of which the next event shall have some.
                    self.collect();
                }
                let message = explain(file, line, &error, overrun);
                Err(format!("{message} (in {name})"))
            }
        }
    }

    /// The handlers that the script has: a bit for each.
    pub(crate) fn handlers(&self) -> u32 {
        let bit = |(i, handler): (usize, &Option<Handler>)| u32::from(handler.is_some()) << i;
        self.handlers.iter().enumerate().map(bit).sum()
    }

    /// The handlers that have been called: a bit for each.
    pub(crate) fn called(&self) -> u32 {
        self.called.get()
    }

    /// Lets the collector work for a while, not until it is done: there may be a lot to look at.
    fn collect(&self) {
        let began = Instant::now();
        let mut is_done = false;
        while !is_done && began.elapsed() < COLLECTING {
            // SAFETY: runs protected, and uses no stack.
            let step = unsafe {
                self.lua.exec_raw::<()>((), |state| {
                    is_done = ffi::lua_gc(state, ffi::LUA_GCSTEP, 64) != 0;
                })
            };
            is_done |= step.is_err();
        }
    }

    /// Writes what the script needs of a fault's surroundings to its buffers.
    fn look(&self, fault: &BlockFault, view: &BlockView<'_>) {
        let needs = self.needs;
        if needs.has(Surroundings::RESIDENT) {
            let set = view.resident(fault.to);
            self.write(Surroundings::RESIDENT, &page_sets::to_bytes(&set));
        }
        if needs.has(Surroundings::TOUCHED) {
            let set = page_sets::to_bytes(&fault.pages);
            self.write(Surroundings::TOUCHED, &set);
        }
        if needs.has(Surroundings::UNTOUCHED) {
            let set = page_sets::to_bytes(&view.untouched());
            self.write(Surroundings::UNTOUCHED, &set);
        }
        if needs.has(Surroundings::RECENT) {
            let last = view.recent.iter().rev().take(RECENT);
            let mut values = [0.0; 1 + 3 * RECENT];
            values[0] = last.len() as f64;
            for (values, recent) in values[1..].chunks_exact_mut(3).zip(last) {
                values[0] = f64::from(recent.page.0);
                values[1] = device_number(recent.to).map_or(-1.0, f64::from);
                values[2] = micros(recent.time);
            }
            let bytes = floats::<{ 1 + 3 * RECENT }, { Surroundings::RECENT_BYTES }>(values);
            self.write(Surroundings::RECENT, &bytes);
        }
        // A backend's links stay the same, and so does the backend of an instance.
        if needs.has(Surroundings::LINKS) && !self.has_links.replace(true) {
            let place = |n: usize| match n.checked_sub(1) {
                None => Place::System,
                Some(device) => Place::Device(DeviceId(device as u8)),
            };
            let pairs = (0..PLACES).flat_map(|a| (0..PLACES).map(move |b| (place(a), place(b))));
            let link = |(from, to)| view.links.between(from, to);
            let numbers = pairs.map(link).flat_map(|link| {
                [micros(link.latency), link.bandwidth as f64 / 1e6].map(f64::to_le_bytes)
            });
            let bytes: Vec<u8> = numbers.flatten().collect();
            self.write(Surroundings::LINKS, &bytes);
        }
        if needs.has(Surroundings::NUMBERS) {
            let (link, seen) = (view.link, view.seen);
            let values = [
                micros(link.latency),
                link.bandwidth as f64 / 1e6,
                seen.cpu_faults as f64,
                seen.device_faults as f64,
                seen.prefetched as f64,
            ];
            self.write(Surroundings::NUMBERS, &floats::<5, 40>(values));
        }
    }

    fn write(&self, buffer: usize, bytes: &[u8]) {
        self.calls.write(BUFFERS + buffer, bytes);
    }

    /// Asks what to do about a fault, and joins that with the advice there is. Returns whether density shall say what to
    /// bring along; nothing if the script does not decide about faults.
    pub(crate) fn on_fault(
        &self,
        fault: &BlockFault,
        view: &BlockView<'_>,
        advice: &mut Advice,
    ) -> Result<Option<bool>, Failure> {
        self.look(fault, view);
        let args = [
            Arg::from(first_page(fault)),
            Arg::from(fault.access == hmm_backend::pages::Access::Write),
            Arg::from(device_number(fault.to)),
            Arg::from(micros(fault.now)),
            Arg::from(fault.pages.count() as f64),
            Arg::from(frames(view.free_frames)),
            Arg::from(view.len() as f64),
            Arg::from(frames(view.capacity)),
        ];
        self.call(ON_FAULT, &args, |results| {
            answer::advice(results, KEYS, fault, advice)
        })
    }

    /// Asks which pages should migrate to a device, among those it has used in place.
    pub(crate) fn on_remote_accesses(
        &self,
        seen: &BlockFault,
        count: u32,
        view: &BlockView<'_>,
    ) -> Result<Option<PageSet>, Failure> {
        if self.handlers[ON_REMOTE_ACCESSES].is_none() {
            return Ok(None);
        }
        self.look(seen, view);
        let args = [
            Arg::from(first_page(seen)),
            Arg::from(device_number(seen.to)),
            Arg::from(f64::from(count)),
            Arg::from(micros(seen.now)),
            Arg::from(seen.pages.count() as f64),
            Arg::from(frames(view.free_frames)),
            Arg::from(view.len() as f64),
        ];
        self.call(ON_REMOTE_ACCESSES, &args, |results| {
            answer::remote(results, seen)
        })
    }

    /// Tells the script of a hint about pages.
    pub(crate) fn on_hint(&self, pages: PageRange, hint: Hint) -> Result<Option<()>, Failure> {
        let (name, value, on) = match hint {
            Hint::PreferredLocation(place) => (
                PREFERRED_LOCATION,
                place.and_then(device_number).map(f64::from),
                place.is_some(),
            ),
            Hint::AccessedBy(device, on) => (ACCESSED_BY, Some(f64::from(device.0)), on),
            Hint::ReadMostly(on) => (READ_MOSTLY, None, on),
        };
        let args = [
            Arg::from(f64::from(pages.start.0)),
            Arg::from(f64::from(pages.len())),
            Arg::Kept(HANDLERS.len() + name),
            Arg::from(value),
            Arg::from(on),
        ];
        self.call(ON_HINT, &args, |_| Ok(()))
    }

    pub(crate) fn on_free(&self, pages: PageRange) -> Result<Option<()>, Failure> {
        let args = [
            Arg::from(f64::from(pages.start.0)),
            Arg::from(f64::from(pages.len())),
        ];
        self.call(ON_FREE, &args, |_| Ok(()))
    }

    pub(crate) fn on_tick(&self, now: Duration, seen: Seen) -> Result<Option<Vec<Wish>>, Failure> {
        let args = [
            Arg::from(micros(now)),
            Arg::from(seen.cpu_faults as f64),
            Arg::from(seen.device_faults as f64),
            Arg::from(seen.prefetched as f64),
        ];
        self.call(ON_TICK, &args, answer::wishes)
    }

    /// Asks which candidates to evict. Returns their indices, the first to evict first.
    pub(crate) fn victims(
        &self,
        want: u32,
        candidates: &[Candidate],
    ) -> Result<Option<Vec<usize>>, Failure> {
        self.write(Surroundings::CANDIDATES, &candidates::to_bytes(candidates));
        let args = [
            Arg::from(f64::from(want)),
            Arg::from(candidates.len() as f64),
        ];
        self.call(VICTIMS, &args, |results| {
            answer::indices(results, candidates.len())
        })
    }
}

/// The description of a value, in words.
fn kind(value: &Value) -> String {
    match value {
        Value::Number(n) => text::number(*n),
        Value::Integer(n) => format!("the number {n}"),
        Value::Nil => "nothing".into(),
        other => format!("a {}", other.type_name()),
    }
}

/// A whole number from 1.
fn count(value: &Value) -> Option<u32> {
    match value {
        Value::Number(n) if *n >= 1.0 && n.fract() == 0.0 && *n <= f64::from(u32::MAX) => {
            Some(*n as u32)
        }
        Value::Integer(n) => u32::try_from(*n).ok().filter(|n| *n > 0),
        _ => None,
    }
}

fn known() -> String {
    format!(
        "{}, remote_access_threshold, tick_interval, eviction, accesses",
        HANDLERS.join(", ")
    )
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn frames(n: u32) -> f64 {
    match n {
        u32::MAX => f64::INFINITY,
        n => n.into(),
    }
}

fn first_page(fault: &BlockFault) -> f64 {
    let first = fault.pages.first().unwrap_or_default();
    f64::from(fault.block.page(first).0)
}

fn device_number(place: Place) -> Option<u8> {
    match place {
        Place::System => None,
        Place::Device(device) => Some(device.0),
    }
}

fn floats<const N: usize, const BYTES: usize>(values: [f64; N]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (chunk, value) in bytes.chunks_exact_mut(8).zip(values) {
        chunk.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn reason(overrun: Overrun) -> String {
    match overrun {
        Overrun::Time(time) => format!("more than {} ms", time.as_millis()),
        Overrun::Steps(steps) => format!("more than {steps} loops and calls"),
        Overrun::Text(bytes) => format!("more than {} KiB for one text", bytes >> 10),
    }
}

/// One line about an error; what the script ran out of instead of the interpreter's words for it.
fn explain(file: &str, line: usize, error: &mlua::Error, overrun: Option<Overrun>) -> String {
    let text = describe(file, line, error);
    let Some(overrun) = overrun else {
        return text;
    };
    // Whichever way the interpreter noticed; where is what it knows.
    let place = text.get(file.len() + 1..).and_then(|rest| {
        let number = rest.split(':').next()?;
        number.parse::<usize>().ok()
    });
    let line = place.unwrap_or(line);
    format!("{file}:{line}: stopped: {}", reason(overrun))
}

/// One line about an error, beginning with file and line: the error's own, or where the function is.
fn describe(file: &str, line: usize, error: &mlua::Error) -> String {
    let text = match error {
        mlua::Error::SyntaxError { message, .. } => message.clone(),
        mlua::Error::RuntimeError(message) | mlua::Error::MemoryError(message) => message.clone(),
        // An error raised by a function of ours: its own words come first, where it was called after them.
        mlua::Error::CallbackError { traceback, cause } => {
            let place = traceback.lines().map(str::trim).find_map(|l| {
                let number = l.strip_prefix(file)?.strip_prefix(':')?;
                number
                    .split(|c: char| !c.is_ascii_digit())
                    .next()?
                    .parse()
                    .ok()
            });
            return describe(file, place.unwrap_or(line), cause);
        }
        other => other.to_string(),
    };
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("runtime error: ").unwrap_or(first);
    match first.starts_with(&format!("{file}:")) {
        true => first.to_owned(),
        false => format!("{file}:{line}: {first}"),
    }
}
