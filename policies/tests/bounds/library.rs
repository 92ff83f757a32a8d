//! Library calls do not escape the bounds: whatever a function is given, an event ends soon, and what was too long is a
//! failure.

use std::sync::mpsc;
use std::time::Duration;

use hmm_backend::policy::PolicyFactory;
use hmmvisor_policies::{Limits, ScriptFigures};

use crate::rig::{Lines, load_within};
use crate::views::each_view;

/// CPU time that an event of these may take, in times of an endless loop's, which is stopped when its 5 ms are over.
/// Without bounds they take from 30 ms, most of them seconds or hours.
const LONG: u32 = 12;

/// The CPU time that an endless loop is given on this machine, now.
fn endless_loop() -> Duration {
    asked("return { on_fault = function(page) while true do end end }").1
}

/// The CPU time that the calling thread has used.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one structure.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The script's figures after three events, the CPU time of the longest, and what it said.
fn asked(text: &str) -> (ScriptFigures, Duration, Vec<String>) {
    let lines = Lines::default();
    let limits = Limits {
        // Nothing of this is about steps.
        steps: u32::MAX,
        loading: Duration::from_secs(60),
        ..Limits::default()
    };
    let scripts = load_within(limits, text, &lines).unwrap_or_else(|error| {
        let start = &text[..text.floor_char_boundary(300)];
        panic!("{start}: {error}")
    });
    let mut policy = scripts.fault_policy();
    let (said, heard) = mpsc::channel();
    each_view(1, 5, move |fault, view| {
        for _ in 0..3 {
            let before = cpu_time();
            policy.advise(fault, view);
            said.send(cpu_time() - before).unwrap();
        }
    });
    let longest = heard.iter().max().unwrap();
    (scripts.figures(), longest, lines.take())
}

/// What takes long, and what makes it so at the script's beginning.
#[test]
fn no_call_and_no_number_of_calls_takes_longer_than_an_event_may() {
    let text = "local text = string.rep('a', 6000000)";
    let list = "local list = table.create(900000, 1)";
    let bytes = "local bytes = buffer.create(8000000)";
    let long = LONG * endless_loop();
    for (before, body) in [
        // Searching for a text that begins everywhere and is nowhere.
        (
            "local text, part = string.rep('a', 6000000), string.rep('a', 3000000) .. 'b'",
            "return string.find(text, part, 1, true)",
        ),
        (
            text,
            "return string.find(text, string.rep('a', 60000) .. 'b')",
        ),
        (text, "return text:find(string.rep('a', 60000) .. 'b')"),
        (
            text,
            "for i = 1, 1e6 do string.find(text, 'b', 1, true) end",
        ),
        // Patterns.
        (text, "return string.match(text, '.-.-.-b')"),
        (text, "return string.match(text, '.*%b()b')"),
        (text, "for i = 1, 1e6 do string.match(text, '^a*b') end"),
        (text, "return string.gsub(text, 'a', 'b')"),
        (
            text,
            "return string.gsub(text, '.*', string.rep('%0', 30000))",
        ),
        (text, "for word in string.gmatch(text, 'a*b') do end"),
        (
            "local matches = string.gmatch(string.rep('a', 6000000), 'a*b')",
            "for i = 1, 1e6 do matches() end",
        ),
        (
            "local part = string.rep('a', 20000)",
            "return string.match(part, string.rep('a?', 10000) .. part)",
        ),
        (
            "",
            "return string.match(string.rep('a', 50000), '[' .. string.rep('b', 50000) .. ']')",
        ),
        // Texts.
        (text, "for i = 1, 1e6 do string.upper(text) end"),
        (text, "for i = 1, 1e6 do string.reverse(text) end"),
        (text, "for i = 1, 1e6 do string.format('%s', text) end"),
        (text, "for i = 1, 1e6 do string.format('%q', text) end"),
        (text, "for i = 1, 1e6 do local x = `{text}{i}` end"),
        (text, "for i = 1, 1e6 do local x = text .. i end"),
        (text, "for i = 1, 1e6 do string.sub(text, 2) end"),
        (text, "for i = 1, 1e6 do string.byte(text, 1, 200000) end"),
        (text, "string.split(text, '')"),
        (
            text,
            "for i = 1, 1e6 do string.split(text, string.rep('a', 1000) .. 'b') end",
        ),
        (text, "for i = 1, 1e6 do tonumber(text, 36) end"),
        (text, "for i = 1, 1e6 do tonumber(text) end"),
        (text, "for i = 1, 1e6 do pcall(error, text) end"),
        (text, "for i = 1, 1e6 do pcall(assert, false, text) end"),
        (text, "for i = 1, 1e6 do pcall(string.pack, 's', text) end"),
        ("", "for i = 1, 1e6 do string.rep('ab', 8000000) end"),
        (
            "",
            "for i = 1, 1e6 do pcall(string.pack, 'c9000000', '') end",
        ),
        // Tables.
        (list, "for i = 1, 7 do table.find(list, 2) end"),
        (list, "for i = 1, 1e6 do table.find(list, 2, 2) end"),
        (list, "table.sort(list)"),
        (list, "table.sort(list, function(a, b) return a < b end)"),
        (
            list,
            "for i = 1, 1e6 do table.insert(list, 1, 1) table.remove(list, 1) end",
        ),
        (list, "for i = 1, 1e6 do table.move(list, 1, 800000, 2) end"),
        (list, "for i = 1, 1e6 do table.concat(list, '') end"),
        (list, "for i = 1, 1e6 do table.foreachi(list, type) end"),
        (list, "for i = 1, 1e6 do table.foreach(list, type) end"),
        (list, "for i = 1, 1e6 do table.maxn(list) end"),
        (
            list,
            "for i = 1, 1e6 do select('#', table.unpack(list)) end",
        ),
        (
            list,
            "for i = 1, 1e6 do select('#', unpack(list, 1, 500000)) end",
        ),
        // Numbers that are no `int`: C counts from wherever the processor puts them.
        ("", "table.move({}, 1e10, -2, 0)"),
        ("", "table.move({}, 0/0, -2, 0)"),
        ("", "table.move({}, -2^40, 5, 0)"),
        ("", "table.concat({}, '', 0/0, 1e15)"),
        ("", "table.concat({}, '', -1e15, 0/0)"),
        ("", "table.unpack({}, 0/0, 1e12)"),
        ("", "for i = 1, 1e6 do table.create(900000, i) end"),
        (
            "local list = {} for i = 1, 200000 do list[i + 0.5] = true end
             for key in list do list[key] = nil end",
            "for i = 1, 1e6 do next(list) end",
        ),
        (
            "local list = {} for i = 1, 200000 do list[i + 0.5] = true end
             for key in list do list[key] = nil end",
            "for i = 1, 1e6 do for _ in list do end end",
        ),
        (
            "local list = {} for i = 1, 100000 do list[i + 0.5] = true end",
            "for i = 1, 1e6 do table.clone(list) end",
        ),
        (
            "local piece = string.rep('a', 60000)",
            "for i = 1, 1e6 do table.concat(table.create(200, piece)) end",
        ),
        // Two texts that differ at the end: comparing them is no call, and there may be a file full of it.
        (
            "local one = string.rep('a', 6000000) local other = one .. 'b'",
            "while one < other do end",
        ),
        // Buffers.
        (
            bytes,
            "for i = 1, 1e6 do buffer.fill(bytes, 0, i % 256) end",
        ),
        (
            bytes,
            "for i = 1, 1e6 do buffer.copy(bytes, 0, bytes, 1, 7000000) end",
        ),
        (bytes, "for i = 1, 1e6 do buffer.tostring(bytes) end"),
        ("", "for i = 1, 1e6 do buffer.create(12000000) end"),
        // What an event leaves behind, and what an error is made of.
        ("", "for i = 1, 1e9 do state[i] = { i } end"),
        (
            "local slow = setmetatable({}, { __tostring = function() while true do end end })",
            "error(slow)",
        ),
        (
            "local slow = setmetatable({}, { __tostring = function() while true do end end })",
            "print(slow)",
        ),
        ("", "while true do print('x') end"),
        (
            "",
            "local function f(...) return f(1, 2, 3, 4, 5, 6, 7, 8, 9, ...) end return f()",
        ),
        (
            "",
            "while true do pcall(function() while true do end end) end",
        ),
    ] {
        let text = format!(
            "{before}\nreturn {{ on_fault = function(page) do {body} end return page end }}"
        );
        let (figures, longest, said) = asked(&text);
        assert!(
            longest < long || longest < LONG * endless_loop(),
            "{body}: {longest:?}, {said:?}"
        );
        assert_eq!(
            (figures.decisions, figures.failures),
            (0, 3),
            "{body}: {said:?}"
        );
        assert!(said[0].len() < 1100, "{body}: {} bytes", said[0].len());
    }
}

/// Code without loops or calls: there is nothing between two of its instructions where it could be stopped.
#[test]
fn a_file_full_of_operations_is_bounded() {
    for (before, operation, many) in [
        (
            "local one = string.rep('a', 6000000) local other = one .. 'b' local x",
            "x=one<other ",
            20_000,
        ),
        (
            "local one = string.rep('a', 60000) local x",
            "x=one..#one ",
            20_000,
        ),
        (
            "local one = string.rep('a', 4000) local x",
            "x=one..one..one..one ",
            12_000,
        ),
        (
            "local one = string.rep('1', 3000000) local x",
            "x=tonumber(one) ",
            15_000,
        ),
        ("local x", "x={{},{},{}} ", 15_000),
    ] {
        let text = format!(
            "{before}\nreturn {{ on_fault = function(page)
                if state.ended then print('ran to its end') end
                {} state.ended = true return page
            end }}",
            operation.repeat(many)
        );
        let (figures, longest, said) = asked(&text);
        match operation {
            // Small tables are made so fast that all of them may be in time.
            "x={{},{},{}} " => assert_eq!(figures.decisions + figures.failures, 3, "{said:?}"),
            // Also the first time, before the budget knows of large texts: making them counts, too.
            _ => {
                assert_eq!(figures.failures, 3, "{operation}: {said:?}");
                assert!(
                    !said.iter().any(|line| line.contains("ran to its end")),
                    "{operation}: {longest:?}, {said:?}"
                );
            }
        }
    }
}

/// The collector can free texts as fast as a script makes them: what is in use does not grow, and the script is stopped
/// all the same. Whether it does depends on where the collector is when the time is over, so there are many sizes.
#[test]
fn a_script_that_makes_only_garbage_is_stopped() {
    for size in [2000, 3000, 3500] {
        for parts in [2, 4, 8] {
            for kept in [0, 50, 200, 1000] {
                let operation = format!("x={} ", vec!["one"; parts].join(".."));
                let text = format!(
                    "local one = string.rep('a', {size}) local x, kept = nil, {{}}
                    for i = 1, {kept} do kept[i] = i .. one end
                    return {{ on_fault = function(page)
                        if state.ended then print('ran to its end') end
                        {} state.ended = true return page
                    end }}",
                    operation.repeat(40_000 / parts)
                );
                let (_, longest, said) = asked(&text);
                assert!(
                    !said.iter().any(|line| line.contains("ran to its end")),
                    "{size} {parts} {kept}: {longest:?}, {said:?}"
                );
            }
        }
    }
}

/// Small things, as scripts do them, are no trouble.
#[test]
fn ordinary_use_of_the_library_is_free() {
    let text = "local parts = string.split('1,2,3', ',')
        return { on_fault = function(page)
            local words = {}
            for word in string.gmatch('a b c', '%a') do table.insert(words, 1, word) end
            table.sort(words)
            assert(table.concat(words) == 'abc' and table.find(words, 'c') == 3)
            assert(string.format('%d-%s', page, 'x'):find('-', 1, true))
            local big = string.rep('x', 30000)
            assert(#big:upper() == 30000 and big:find('y', 1, true) == nil)
            return page + tonumber(parts[2]), 2
        end }";
    let (figures, _, said) = asked(text);
    assert_eq!((figures.decisions, figures.failures), (3, 0), "{said:?}");
}
