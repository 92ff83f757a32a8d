//! Broken and hostile scripts: errors name file and line, runaways are stopped, density decides instead.

mod events;
mod library;
mod parameters;
mod rig;
#[path = "../views/mod.rs"]
mod views;

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use hmm_backend::pages::MAX_HOLD;
use hmm_backend::policy::{Advice, PolicyFactory};
use hmmvisor_policies::{FileWatch, Limits, ScriptFigures, ScriptSpec, Scripts};

use rig::{Lines, PATIENT, ask, error, load, load_at, load_within, on_fault};
use views::each_view;

#[test]
fn a_script_that_cannot_be_used_is_refused_with_file_and_line() {
    for (text, expected) in [
        ("local x = = 1", "bad.luau:1: "),
        ("\n\nreturn {", "bad.luau:3: "),
        ("error('no')", "bad.luau:1: no"),
        ("local t = nil\nt.x = 1", "bad.luau:2: attempt to index nil"),
        ("return 5", "bad.luau:1: the script returns the number 5"),
        ("", "bad.luau:1: the script returns nothing"),
        ("return {}", "bad.luau:1: the script decides nothing"),
        (
            "return { on_fualt = function() end }",
            "called `on_fualt`; it may return: on_fault",
        ),
        (
            "return { on_fault = 5 }",
            "`on_fault` is the number 5; it must be a function",
        ),
        (
            "return { accesses = 'some', eviction = 'lru' }",
            "`accesses` is a string; it must be faults, bits or all",
        ),
        (
            "return { eviction = 'mru' }",
            "'mru', which is no eviction policy",
        ),
        (
            "return { eviction = 'density' }",
            "which is no eviction policy",
        ),
        (
            "return { tick_interval = 0, on_tick = print }",
            "`tick_interval` is the number 0; it must be a time",
        ),
        (
            "return { tick_interval = 1e300, on_tick = print }",
            "`tick_interval` is the number 1e300; it must be a time",
        ),
        (
            "\nwhile true do end",
            "bad.luau:2: stopped: more than 5000000 loops and calls",
        ),
        (
            "string.rep = nil",
            "bad.luau:1: attempt to modify a readonly table",
        ),
        (
            "hmm.params.x = 1",
            "bad.luau:1: attempt to modify a readonly table",
        ),
        ("require('x')", "bad.luau:1: attempt to call a nil value"),
    ] {
        let error = error(text);
        assert!(error.starts_with("policy script "), "{error}");
        assert!(error.contains("bad.luau:"), "{error}");
        assert!(error.contains(expected), "{text}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let missing = Scripts::load(folder.path().join("none.luau"))
        .err()
        .unwrap();
    assert!(
        missing.to_string().contains("none.luau: No such file"),
        "{missing}"
    );
    let binary = folder.path().join("binary.luau");
    std::fs::write(&binary, b"return\n\xff").unwrap();
    let binary = Scripts::load(&binary).err().unwrap().to_string();
    assert!(binary.contains("binary.luau:2: is not text"), "{binary}");
    let endless = Scripts::load("/dev/zero").err().unwrap().to_string();
    assert!(endless.contains("not a regular file"), "{endless}");
    let long = folder.path().join("long.luau");
    std::fs::write(&long, "-".repeat(1 << 20)).unwrap();
    let long = Scripts::load(&long).err().unwrap().to_string();
    assert!(long.contains("a script has at most"), "{long}");
}

/// No files, no processes, no other code: nothing of the kind has a name.
#[test]
fn there_is_no_way_out() {
    for name in [
        "io",
        "os",
        "debug",
        "package",
        "require",
        "dofile",
        "loadfile",
        "loadstring",
        "load",
        "getfenv",
        "setfenv",
        "collectgarbage",
        "gcinfo",
        "newproxy",
        "coroutine",
    ] {
        let text = format!(
            "if {name} ~= nil then error('there is {name}') end\nreturn {{ on_fault = print }}"
        );
        assert!(load(&text, &Lines::default()).is_ok(), "{name}");
    }
}

/// Each of these fails in an event, and density decides in its place; the time is bounded.
#[test]
fn failures_fall_back_to_the_default_policy() {
    for (body, expected) in [
        (
            "while true do end",
            "bad.luau:2: stopped: more than 50000 loops and calls",
        ),
        (
            "while true do pcall(function() while true do end end) end",
            "stopped: more than",
        ),
        (
            "pcall(function() while true do end end)",
            "stopped: more than",
        ),
        (
            "xpcall(function() while true do end end, function() while true do end end)",
            "bad.luau:",
        ),
        (
            "local s = string.rep('a', 200000) return string.find(s, string.rep('a-', 200) .. 'b')",
            "bad.luau:",
        ),
        ("local t = {} for i = 1, 1e9 do t[i] = {} end", "bad.luau:"),
        ("return string.rep('x', 2^27)", "bad.luau:"),
        (
            "return buffer.create(2^30)",
            "bad.luau:2: buffer.create: more than",
        ),
        ("return buffer.create(2^25)", "not enough memory"),
        ("return table.create(1e9)", "bad.luau:"),
        (
            "state.big = (state.big or '') .. string.rep('x', 2^24)",
            "not enough memory",
        ),
        (
            "local function f(n) return 1 + f(n + 1) end return f(0)",
            "bad.luau:2: stack overflow",
        ),
        (
            "local t = setmetatable({}, {}) getmetatable(t).__index = function(t, k) return t[k + 1] end return t[1]",
            "bad.luau:",
        ),
        (
            "table.move({}, 1, 2e9, 2)",
            "bad.luau:2: table.move: more than one call may do",
        ),
        (
            "string.rep('', 2^31 - 1)",
            "bad.luau:2: string.rep: more than",
        ),
        ("error({})", "bad.luau:"),
        (
            "return string.find(string.rep('x', 1e5), string.rep('.-', 20) .. 'y')",
            "bad.luau:2: stopped: more than",
        ),
        (
            "local s = string.rep('x', 1e6) while true do s = string.gsub(s, 'x', 'x') end",
            "bad.luau:2: stopped: more than",
        ),
        (
            "local t = table.create(5e5, 1) while true do table.insert(t, 1, 1) table.remove(t, 1) end",
            "bad.luau:2: stopped: more than",
        ),
        ("error('my own words')", "bad.luau:2: my own words"),
        (
            "return nil + 1",
            "bad.luau:2: attempt to perform arithmetic",
        ),
        (
            "return 'page'",
            "bad.luau:1: on_fault returned a string where a page",
        ),
        (
            "return 0 / 0",
            "bad.luau:1: on_fault returned the number NaN",
        ),
        ("return page, 'many'", "a string as the number of pages"),
        ("return page, 1, {}", "a table as the time to hold"),
        (
            "return page, 1, 0, true",
            "a boolean as the time to throttle",
        ),
        ("return page, 1, 0, 0, 1", "the number 1 for `stay`"),
        (
            "return page, 1, 0, 0, true, 7",
            "bad.luau:1: on_fault returned the number 7 as a sixth value; there are five: pages, count",
        ),
        (
            "return { prefetch = page }, 7, 8",
            "on_fault returned the number 7 after a table, which has to be the whole advice",
        ),
        (
            "return {}, nil, nil, nil, nil, 'x'",
            "a string after a table",
        ),
        (
            "return nil, 3",
            "on_fault returned the number 3 as the number of pages, but no page",
        ),
        ("return false, 3", "as the number of pages, but no page"),
        (
            "return { count = 3 }",
            "on_fault returned the number 3 as the number of pages, but no page",
        ),
        (
            "return buffer.create(8)",
            "a buffer where a page, a page set",
        ),
        (
            "return { prefech = page + 1, count = 4 }",
            "bad.luau:1: on_fault returned a table with the key `prefech`; its keys may be: prefetch, count, hold, throttle, stay, migrate, duplicate",
        ),
        (
            "return { prefetch = page + 1, cuont = 4 }",
            "the key `cuont`",
        ),
        (
            "return { page + 1, 4 }",
            "a table with the key [1]; its keys",
        ),
        ("return { [true] = 1 }", "a table with a boolean as a key"),
        (
            "return { migrate = { first = page, count = 4 } }",
            "` where a list of {first, count, device} is expected",
        ),
        (
            "return { migrate = { { page, 4, dev = 0 } } }",
            "the key `dev` where {first, count, device} is expected",
        ),
        ("return { migrate = 5 }", "the number 5 where a list"),
        ("return { duplicate = page }", "for `duplicate`"),
        ("return { duplicate = {} }", "a table for `duplicate`"),
        ("return { migrate = { 5 } }", "the number 5 in a list"),
        (
            "return { migrate = { { 1, 1, 'gpu' } } }",
            "a string as the device of a wish",
        ),
        ("return pages.count({}, 0, 1)", "bad.luau:"),
        (
            "return hmm.resident()",
            "hmm.resident() has to be called while the script is loaded",
        ),
        ("pages.fill = nil", "attempt to modify a readonly table"),
    ] {
        let lines = Lines::default();
        let scripts = load_within(PATIENT, &on_fault(body), &lines).unwrap();
        let (advice, default) = ask(&scripts, 3);
        assert_eq!(advice, vec![default; 3], "{body}");
        let figures = scripts.figures();
        assert_eq!((figures.decisions, figures.failures), (0, 3), "{body}");
        // Said once, in one line.
        let said = lines.take();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains(expected), "{body}: {said:?}");
        assert!(said[0].contains("density decides instead"), "{said:?}");
        assert_eq!(said[0].lines().count(), 1, "{said:?}");
    }
}

/// Time is a bound of its own; steps are above.
#[test]
fn a_script_is_stopped_when_its_time_is_over() {
    let limits = Limits {
        steps: u32::MAX,
        ..Limits::default()
    };
    let lines = Lines::default();
    let scripts = load_within(limits, &on_fault("while true do end"), &lines).unwrap();
    let (advice, default) = ask(&scripts, 1);
    assert_eq!(advice, [default]);
    let said = lines.take();
    assert!(
        said[0].contains("bad.luau:2: stopped: more than 5 ms"),
        "{said:?}"
    );
}

/// An overrun that the script hides is one all the same, and afterwards the script is well again.
#[test]
fn a_script_recovers_from_what_made_it_fail() {
    let text = "local n = 0
        return { on_fault = function(page)
            n += 1
            if n == 1 then while true do end end
            if n == 2 then pcall(function() while true do end end) return page + 1, 2 end
            if n == 3 then local t = {} for i = 1, 1e9 do t[i] = {} end end
            return page + 1, 2
        end }";
    let lines = Lines::default();
    let scripts = load(text, &lines).unwrap();
    let (advice, default) = ask(&scripts, 5);
    assert_eq!(advice[..3], vec![default.clone(); 3]);
    assert_ne!(advice[3], default);
    assert_eq!(advice[3].prefetch.count(), 2);
    assert_eq!(advice[3], advice[4]);
    assert_eq!(
        (scripts.figures().decisions, scripts.figures().failures),
        (2, 3)
    );
}

#[test]
fn what_is_no_file_in_the_place_of_a_script_is_noticed_once_and_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.luau");
    let text = on_fault("return page + 1, 3");
    let lines = Lines::default();
    let scripts = load_at(&path, &text, &lines).unwrap();
    let watch = FileWatch::new(&path).unwrap();
    let reloads = || {
        let mut number = 0;
        while watch.changed() {
            scripts.reload_and_say();
            number += 1;
        }
        (number, lines.take())
    };
    let pipe = |path: &Path| {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the kernel reads a string that ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    };
    type Make<'a> = &'a dyn Fn(&Path);
    let others: [Make; 4] = [
        &|path| fs::create_dir(path).unwrap(),
        &pipe,
        &|path| symlink("/dev/zero", path).unwrap(),
        &|path| symlink(".", path).unwrap(),
    ];
    for (n, make) in others.into_iter().enumerate() {
        fs::remove_file(&path).unwrap();
        assert_eq!(reloads(), (0, Vec::new()), "{n}");
        make(&path);
        let (number, said) = reloads();
        assert_eq!((number, said.len()), (1, 1), "{n}: {said:?}");
        let why = said[0].contains("bad.luau: it is not a regular file")
            && !said[0].contains("reading policy script");
        assert!(
            why && said[0].contains("the version before stays"),
            "{said:?}"
        );
        match fs::symlink_metadata(&path).unwrap().is_dir() {
            true => fs::remove_dir(&path).unwrap(),
            false => fs::remove_file(&path).unwrap(),
        }
        // A file is loaded when it has been written, not when it appears.
        let mut file = fs::File::create(&path).unwrap();
        assert_eq!(reloads(), (0, Vec::new()), "{n}");
        file.write_all(text.as_bytes()).unwrap();
        drop(file);
        let (number, said) = reloads();
        assert!(number == 1 && said[0].contains("reloaded"), "{n}: {said:?}");
    }
    // A link to a file is there at once.
    fs::write(folder.path().join("other.luau"), &text).unwrap();
    fs::remove_file(&path).unwrap();
    symlink("other.luau", &path).unwrap();
    let (number, said) = reloads();
    assert!(number == 1 && said[0].contains("reloaded"), "{said:?}");
}

#[test]
fn after_failures_in_a_row_the_script_is_left_alone_until_it_is_reloaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.luau");
    let lines = Lines::default();
    let scripts = load_at(&path, &on_fault("error('broken')"), &lines).unwrap();
    let watch = FileWatch::new(&path).unwrap();
    assert!(!watch.changed());
    let mut policy = scripts.fault_policy();
    let (asked, reloading, said) = (scripts.clone(), path.clone(), lines.clone());
    each_view(1, 5, move |fault, view| {
        for _ in 0..40 {
            policy.advise(fault, view);
        }
        assert_eq!(
            asked.figures(),
            ScriptFigures {
                decisions: 0,
                failures: 16,
                reloads: 0,
                off: 1
            }
        );
        let lines = said.take();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[1].contains("failed 16 times in a row"), "{lines:?}");

        // A broken new version: the old one stays.
        std::fs::write(&reloading, "return {").unwrap();
        assert!(watch.changed());
        asked.reload_and_say();
        let lines = said.take();
        assert!(
            lines[0].contains("bad.luau:1: ") && lines[0].contains("the version before stays"),
            "{lines:?}"
        );
        assert_eq!(asked.figures().reloads, 0);

        // A good one, put in the old one's place as editors do.
        let new = reloading.with_extension("new");
        std::fs::write(&new, on_fault("return page + 1, 3")).unwrap();
        watch.changed();
        std::fs::rename(&new, &reloading).unwrap();
        assert!(watch.changed());
        asked.reload_and_say();
        assert!(said.take()[0].contains("reloaded"));
        let advice = policy.advise(fault, view);
        assert_eq!(advice.prefetch.count(), 3);
        assert_eq!(
            asked.figures(),
            ScriptFigures {
                decisions: 1,
                failures: 16,
                reloads: 1,
                off: 0
            }
        );
    });
}

/// A failure now and then does not turn the script off.
#[test]
fn failures_count_in_a_row_only() {
    let text = "local n = 0 return { on_fault = function() n += 1 if n % 2 == 0 then error('even') end end }";
    let scripts = load(text, &Lines::default()).unwrap();
    ask(&scripts, 100);
    assert_eq!(
        scripts.figures(),
        ScriptFigures {
            decisions: 50,
            failures: 50,
            reloads: 0,
            off: 0
        }
    );
}

#[test]
fn advice_out_of_range_is_cut() {
    type Check = fn(&Advice);
    let cases: [(&str, Check); 9] = [
        ("return -10, 12", |it| assert_eq!(it.prefetch.count(), 1)),
        ("return 0, 1e300", |it| {
            assert!(it.migrate.len() == 1 && it.prefetch.count() > 300)
        }),
        ("return page, -5", |it| {
            assert_eq!(
                *it,
                Advice {
                    hold: it.hold,
                    ..Advice::default()
                }
            )
        }),
        ("return nil, nil, 1e300, 1e18", |it| {
            assert_eq!((it.hold, it.throttle), (MAX_HOLD, MAX_HOLD))
        }),
        ("return nil, nil, -1, -1, true", |it| {
            assert_eq!(
                (it.hold, it.throttle, it.stay),
                (Duration::from_micros(100), Duration::ZERO, false)
            );
        }),
        ("return { duplicate = true }", |it| {
            assert!(it.duplicate.count() > 300);
        }),
        (
            "local s = pages.new() pages.fill(s, 7, 3) return { duplicate = s }",
            |it| assert_eq!(it.duplicate.iter().collect::<Vec<_>>(), [7, 8, 9]),
        ),
        ("return { duplicate = false }", |it| {
            assert!(it.duplicate.is_empty());
        }),
        (
            "local m = {} for i = 1, 500 do m[i] = { i * 1e6, 1e9, 200 } end return { migrate = m }",
            |it| {
                assert_eq!(it.migrate.len(), 8);
            },
        ),
    ];
    for (body, check) in cases {
        let scripts = load(&on_fault(body), &Lines::default()).unwrap();
        let mut policy = scripts.fault_policy();
        let (said, heard) = mpsc::channel();
        each_view(1, 5, move |fault, view| {
            said.send(policy.advise(fault, view).validated(fault, view))
                .unwrap();
        });
        let (advice, _) = heard.recv().unwrap();
        check(&advice);
        assert_eq!(scripts.figures().failures, 0, "{body}");
    }
}

/// A script that prints in every event does not fill the disk.
#[test]
fn printing_is_bounded() {
    let lines = Lines::default();
    let scripts = load(&on_fault("print(page)"), &lines).unwrap();
    ask(&scripts, 1000);
    let said = lines.take();
    assert_eq!(said.len(), 201);
    assert!(said[200].ends_with("no more than 200 lines"));
    let scripts = load(&on_fault("print(string.rep('ä', 20000))"), &lines).unwrap();
    ask(&scripts, 1);
    let said = lines.take();
    assert_eq!(said, [format!("bad.luau: {}…", "ä".repeat(200))]);
}

/// Compiled code is not checked by anything; a few bytes of it are enough to end the process.
#[test]
fn compiled_scripts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.luau");
    let lines = Lines::default();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let spec = ScriptSpec::file(path.clone());
        let error = Scripts::with(spec, Limits::default(), Lines::default().log());
        error.err().unwrap().to_string()
    };
    for version in 0..=12_u8 {
        let error = refused(&[version, 3, 0, 0, 0]);
        assert!(error.contains("bad.luau:"), "{error}");
        assert!(error.contains("compiled bytecode"), "{error}");
    }
    let compiled = mlua::chunk::Compiler::new().compile("return { on_fault = print }");
    let compiled = compiled.unwrap();
    assert!(refused(&compiled).contains("compiled bytecode"));
    assert!(refused(b"return {\0}").contains("it has byte 0x00"));

    // The same while it is in use.
    let scripts = load_at(&path, &on_fault("return page + 1, 3"), &lines).unwrap();
    std::fs::write(&path, &compiled).unwrap();
    scripts.reload_and_say();
    let said = lines.take();
    assert!(
        said[0].contains("compiled bytecode") && said[0].contains("the version before stays"),
        "{said:?}"
    );
    assert_eq!(scripts.figures().reloads, 0);
}

/// What a script says is one line, whatever is in it, and not long.
#[test]
fn a_script_cannot_forge_messages() {
    let forged = r#""x\nhmmvisor: error: no\r\27[2J\u{9b}2J\u{202e}""#;
    for body in [
        format!("print({forged}) print(string.rep({forged}, 1000))"),
        format!("error({forged})"),
        format!("error(string.rep({forged}, 1000))"),
        format!("error(setmetatable({{}}, {{ __tostring = function() return {forged} end }}))"),
        format!("string.gsub('x', 'x', '%9' .. {forged})"),
        format!("hmm[{forged}]()"),
    ] {
        let lines = Lines::default();
        let scripts = load_within(PATIENT, &on_fault(&body), &lines).unwrap();
        ask(&scripts, 2);
        let said = lines.take();
        assert!(!said.is_empty(), "{body}");
        for line in said {
            assert!(
                !line.contains(|c: char| c.is_control() || c == '\u{202e}'),
                "{line:?}"
            );
            assert!(line.len() < 1100, "{} bytes", line.len());
        }
    }
    for text in [
        format!("error({forged})"),
        format!("return {{ [{forged}] = 1 }}"),
        format!("return {{ [string.rep({forged}, 100000)] = 1 }}"),
        format!("return {{ eviction = {forged} }}"),
        format!("return {{ eviction = string.rep({forged}, 1000) }}"),
        "return \u{202e}".to_owned(),
        format!("local x = {}", "x".repeat(100_000)),
    ] {
        let error = error(&text);
        assert!(
            !error.contains(|c: char| c.is_control() || c == '\u{202e}'),
            "{error:?}"
        );
        assert!(error.len() < 1300, "{} bytes", error.len());
    }
}
