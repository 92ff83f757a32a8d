//! Parameters that a script does not read are mistakes of the user; a value that it cannot use is the script's to refuse.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use hmmvisor_policies::{EXAMPLES, Limits, PolicyChoice, ScriptError, Scripts};

use crate::rig::Lines;

fn load(spec: &str, lines: &Lines) -> Result<Arc<Scripts>, ScriptError> {
    let choice: PolicyChoice = spec.parse().unwrap();
    let chosen = choice.load(Limits::default(), lines.log())?;
    Ok(chosen.scripts[0].clone())
}

fn refused(spec: &str) -> String {
    load(spec, &Lines::default()).err().expect(spec).to_string()
}

fn example(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_parameter_that_a_script_does_not_read_is_refused() {
    assert_eq!(
        refused(&example("stride.luau:widnow=16")),
        "policy script stride.luau has no parameter `widnow`; it reads confirm, window, most"
    );
    assert_eq!(
        refused(&example("on_demand.luau:window=16,most=2+lru")),
        "policy script on_demand.luau has no parameter `window`; it reads none"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.luau");
    let named = path.display().to_string();
    let decides = "return { on_fault = function(page) return page, 1 end }";
    for (text, is_read) in [
        ("local w = hmm.params.widnow", true),
        ("local w = hmm.params['widnow']", true),
        ("-- hmm.params.widnow", false),
        (
            "--[[\nhmm.params.widnow ]] local w = hmm.params.window",
            false,
        ),
        ("local widnow = hmm.params.window", false),
        ("print('--', hmm.params.widnow)", true),
        // Which names these read cannot be known.
        ("for name, value in hmm.params do print(name) end", true),
        ("local p = hmm.params print(p.window)", true),
        ("local name = 'window' print(hmm.params[name])", true),
    ] {
        fs::write(&path, format!("{text}\n{decides}")).unwrap();
        let loaded = load(&format!("{named}:widnow=16"), &Lines::default());
        assert_eq!(loaded.is_ok(), is_read, "{text}");
    }
    // The mistake of the user comes before what it makes the script do.
    let text = format!("assert(hmm.params.window, 'no window')\n{decides}");
    fs::write(&path, text).unwrap();
    assert!(refused(&format!("{named}:widnow=16")).ends_with("`widnow`; it reads window"));
    assert!(refused(&named).ends_with("p.luau:1: no window"));
    // It may be long, and a name may hold anything.
    let long = refused(&format!("{named}:\u{1b}[2J{}=1", "x".repeat(10_000)));
    assert!(long.len() < 1000 && !long.contains('\u{1b}'), "{long:?}");
}

#[test]
fn a_new_version_that_does_not_read_a_parameter_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.luau");
    let write = |name: &str| {
        let text = format!("local n = hmm.params.{name} return {{ on_fault = print }}");
        fs::write(&path, text).unwrap();
    };
    write("window");
    let lines = Lines::default();
    let scripts = load(&format!("{}:window=4", path.display()), &lines).unwrap();
    write("size");
    scripts.reload_and_say();
    assert_eq!(
        lines.take(),
        ["p.luau has no parameter `window`; it reads size; the version before stays in use"]
    );
    assert_eq!(scripts.figures().reloads, 0);
    write("window");
    scripts.reload_and_say();
    assert!(lines.take()[0].ends_with("reloaded"));
    assert_eq!(scripts.figures().reloads, 1);
}

/// Otherwise they would take their default, under the name of another value.
#[test]
fn the_examples_refuse_what_is_no_number() {
    let mut refusals = 0;
    for example in EXAMPLES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(example.name);
        let text = fs::read_to_string(&path).unwrap();
        let params = text.split("hmm.params.").skip(1);
        for param in params.filter_map(|rest| rest.split(' ').next()) {
            let spec = |value: &str| format!("{}:{param}={value}", path.display());
            load(&spec("0.5"), &Lines::default()).unwrap();
            for value in ["abc", ""] {
                let error = refused(&spec(value));
                let expected = format!(": {param} must be a number");
                assert!(error.contains(&format!("{}:", example.name)), "{error}");
                assert!(error.ends_with(&expected), "{error}");
                refusals += 1;
            }
        }
    }
    assert!(refusals >= 20, "{refusals}");
}
