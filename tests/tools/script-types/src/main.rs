//! Checks `policies/hmmvisor.d.luau`, and with it every example script, with Luau's own type checker in strict mode. Also
//! scripts with mistakes, which must be noticed: definitions that say `any` everywhere would find no fault.
//!
//!     cargo run --manifest-path tests/tools/script-types/Cargo.toml [FOLDER]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use luau_analyze::{Checker, Diagnostic, Severity};

/// Each has one mistake.
const MISTAKES: [&str; 15] = [
    "local n: string = hmm.BLOCK\nreturn {}",
    "hmm.nothing()\nreturn {}",
    "local set = hmm.resident() pages.fill(set, 0)\nreturn {}",
    "pages.count({}, 0, 1)\nreturn {}",
    "pages.nothing()\nreturn {}",
    "local first, n = pages.densest(pages.new(), 0, 'many')\nreturn {}",
    "local latency: string = hmm.link()()\nreturn {}",
    "hmm.recent()('last')\nreturn {}",
    "local f = io.open('x')\nreturn {}",
    "return { on_fault = function(page) return page.first end }",
    "return { on_fault = function(page: string) return nil end }",
    "return { on_free = 5 }",
    "return { tick_interval = 'often' }",
    "return { victims = function(want, candidates) return { candidates[1].address } end }",
    "return { victims = function(want, candidates) return 'all' end }",
];

/// The script, its result declared to be a policy. Lines keep their numbers.
fn as_policy(text: &str) -> Option<String> {
    let at = match text.starts_with("return {") {
        true => 0,
        false => text.rfind("\nreturn {")? + 1,
    };
    let (before, table) = (&text[..at], &text[at + "return ".len()..]);
    Some(format!(
        "{before}local policy: Policy = {table}\nreturn policy\n"
    ))
}

fn check(checker: &mut Checker, text: &str) -> Result<Vec<Diagnostic>, String> {
    let text = as_policy(text).ok_or("it does not end with a table")?;
    let result = checker.check(&text).map_err(|error| error.to_string())?;
    match result.timed_out {
        true => Err("the check takes too long".into()),
        false => Ok(result.diagnostics),
    }
}

fn scripts(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_script = |path: &PathBuf| {
        let name = path.to_string_lossy();
        name.ends_with(".luau") && !name.ends_with(".d.luau")
    };
    let mut scripts: Vec<PathBuf> = paths.filter(is_script).collect();
    scripts.sort();
    Ok(scripts)
}

fn run() -> Result<usize, String> {
    let folder = env::args().nth(1).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../policies"),
        PathBuf::from,
    );
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let mut checker = Checker::new().map_err(|error| error.to_string())?;
    let definitions = folder.join("hmmvisor.d.luau");
    checker
        .add_definitions(&read(&definitions)?)
        .map_err(|error| format!("{}: {error}", definitions.display()))?;
    let mut unnoticed = Vec::new();
    for mistake in MISTAKES {
        // Warnings, such as of unused variables, do not count.
        let found = check(&mut checker, mistake)?;
        if !found.iter().any(|it| it.severity == Severity::Error) {
            unnoticed.push(format!("this went unnoticed: {mistake}"));
        }
    }
    if !unnoticed.is_empty() {
        return Err(unnoticed.join("\n"));
    }
    let scripts = scripts(&folder)?;
    if scripts.is_empty() {
        return Err(format!("{}: there are no scripts", folder.display()));
    }
    let mut wrong = 0;
    for path in &scripts {
        let found = check(&mut checker, &read(path)?)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        for it in &found {
            eprintln!(
                "{}:{}:{}: {}",
                path.display(),
                it.line + 1,
                it.col + 1,
                it.message
            );
        }
        wrong += found.len();
    }
    match wrong {
        0 => Ok(scripts.len()),
        _ => Err(format!("{wrong} mistakes")),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(scripts) => {
            println!(
                "{scripts} scripts fit the definitions; {} mistakes were noticed",
                MISTAKES.len()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("script-types: {error}");
            ExitCode::FAILURE
        }
    }
}
