//! The policy that a user names: built-in components, or a script with built-in components beside it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use hmm_backend::pages::Fidelity;
use hmm_backend::policy::{PolicyFactory, PolicyFile, PolicySpec};

use crate::error::ScriptError;
use crate::sandbox::limits::Limits;
use crate::script::instance::Log;
use crate::scripts::Scripts;
use crate::spec::{ScriptSpec, kind, name};

/// `density+lru`, or `file.luau:param=value+lru+timeslice:min=1ms`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyChoice {
    /// Built-in policies.
    BuiltIn(PolicySpec),
    /// A script decides about faults.
    Script(ScriptSpec),
}

/// A file that a policy's specification names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedFile {
    /// The file's role in the policy, in the words of messages.
    pub what: &'static str,
    /// The path, as the specification gives it.
    pub path: PathBuf,
}

/// A policy ready to be used.
pub struct Chosen {
    /// Makes the policies of the backend.
    pub factory: Arc<dyn PolicyFactory>,
    /// The scripts in it, to be reloaded and asked how they are doing.
    pub scripts: Vec<Arc<Scripts>>,
}

impl Chosen {
    fn script(scripts: Arc<Scripts>) -> Chosen {
        Chosen {
            factory: scripts.clone(),
            scripts: vec![scripts],
        }
    }

    /// Returns this policy if it can be that of a region: a script must decide about something else than evictions.
    ///
    /// # Errors
    /// A script decides about nothing else.
    pub fn for_region(self) -> Result<Chosen, ScriptError> {
        match self.scripts.iter().find(|it| it.decides_only_evictions()) {
            Some(it) => {
                let path = it.path().display();
                let who = format!("policy script {path} decides only");
                Err(ScriptError::Eviction(who))
            }
            None => Ok(self),
        }
    }

    /// Checks that devices that tell this much of their accesses tell enough for the scripts.
    ///
    /// # Errors
    /// A script needs more.
    pub fn check_told(&self, told: Fidelity) -> Result<(), ScriptError> {
        let in_want = self.scripts.iter().find(|it| it.accesses() > told);
        in_want.map_or(Ok(()), |script| {
            Err(ScriptError::Told {
                path: script.path().to_owned(),
                needed: script.accesses(),
                told,
            })
        })
    }
}

/// No file that a policy is read from is larger than this.
const RECORDED_LIMIT: u64 = 16 << 20;

/// Whether a component names a script.
fn is_script(component: &str) -> bool {
    let name = name(component);
    name.ends_with(".luau") || name.contains('/')
}

impl PolicyChoice {
    /// Loads the script, if it is one.
    pub fn load(&self, limits: Limits, log: Log) -> Result<Chosen, ScriptError> {
        Ok(match self {
            PolicyChoice::BuiltIn(spec) => Chosen {
                factory: Arc::new(spec.clone()),
                scripts: Vec::new(),
            },
            PolicyChoice::Script(spec) => Chosen::script(Scripts::with(spec.clone(), limits, log)?),
        })
    }

    /// Makes the policy with this text as its script: the specification gives the script a name and parameters, and
    /// nothing is read. An error if it names no script.
    pub fn with_text(&self, text: String, limits: Limits, log: Log) -> Result<Chosen, ScriptError> {
        match self {
            PolicyChoice::Script(spec) => {
                Scripts::of_text(spec.clone(), text, limits, log).map(Chosen::script)
            }
            PolicyChoice::BuiltIn(spec) => Err(ScriptError::Spec {
                spec: spec.to_string(),
                why: "it names no script, but there is the text of one; write name.luau, with parameters as name.luau:window=32"
                    .to_owned(),
            }),
        }
    }

    /// Parses the policy of a region. Devices belong to no region, so it must not decide about evictions.
    pub fn of_region(text: &str) -> Result<PolicyChoice, ScriptError> {
        let components = text.split('+');
        match components.map(name).find(|it| kind(it) == Some("eviction")) {
            Some(name) => Err(ScriptError::Eviction(format!("`{name}` decides"))),
            None => text.parse(),
        }
    }

    /// Loads the policy of a region. A script must decide about something else than evictions.
    pub fn load_of_region(&self, limits: Limits, log: Log) -> Result<Chosen, ScriptError> {
        self.load(limits, log)?.for_region()
    }

    /// Whether the specification has a built-in component of this name.
    pub fn has(&self, name: &str) -> bool {
        match self {
            PolicyChoice::BuiltIn(spec) => spec.has(name),
            PolicyChoice::Script(spec) => spec.components().any(|part| self::name(part) == name),
        }
    }

    /// Whether the policy listens to hints. A script may, whatever is beside it.
    pub fn listens_to_hints(&self) -> bool {
        let is_script = matches!(self, PolicyChoice::Script(_));
        is_script || self.has("hints") || self.has("thrash")
    }

    /// The files that this is read from, none of which an output may overwrite.
    pub fn files(&self) -> Vec<NamedFile> {
        PolicyChoice::named_files(&self.to_string())
    }

    /// The files that a specification names. Opens none of them, and leaves mistakes to parsing.
    pub fn named_files(spec: &str) -> Vec<NamedFile> {
        let (scripts, others): (Vec<_>, Vec<_>) = spec.split('+').partition(|part| is_script(part));
        let named = |what| move |path| NamedFile { what, path };
        let scripts = scripts.into_iter().map(name).map(PathBuf::from);
        let placements = PolicySpec::named_files(&others.join("+")).into_iter();
        scripts
            .map(named("the policy script"))
            .chain(placements.map(named("the policy's placement file")))
            .collect()
    }

    /// Loads a policy that a file such as a trace has named, not the user. `files` says what was in the policy's files then:
    /// unless the same is in them now, no script is run and no other file is opened.
    pub fn load_recorded(
        spec: &str,
        files: &[PolicyFile],
        limits: Limits,
        log: Log,
    ) -> Result<Chosen, ScriptError> {
        let expected = |path: &Path| {
            files
                .iter()
                .find(|file| file.path == path)
                .ok_or_else(|| ScriptError::NotRecorded {
                    path: path.to_owned(),
                })
        };
        let named = PolicyChoice::named_files(spec);
        // All files are looked up before the specification is parsed, because parsing opens some of them.
        let named: Vec<&PolicyFile> = named
            .iter()
            .map(|file| expected(&file.path))
            .collect::<Result<_, _>>()?;
        for file in named {
            let (found, _) = PolicyFile::read(&file.path, RECORDED_LIMIT).map_err(|error| {
                ScriptError::Read {
                    path: file.path.clone(),
                    error,
                }
            })?;
            ScriptError::unless_same(&found, file)?;
        }
        let chosen = match spec.parse()? {
            PolicyChoice::Script(spec) => {
                let file = expected(&spec.path)?;
                Chosen::script(Scripts::recorded(spec.clone(), file, limits, log)?)
            }
            built_in => built_in.load(limits, log)?,
        };
        // A file may have changed between the look at it above and its use.
        for file in chosen.factory.files() {
            ScriptError::unless_same(&file, expected(&file.path)?)?;
        }
        Ok(chosen)
    }
}

impl Default for PolicyChoice {
    fn default() -> PolicyChoice {
        PolicyChoice::BuiltIn(PolicySpec::default())
    }
}

impl FromStr for PolicyChoice {
    type Err = ScriptError;

    fn from_str(text: &str) -> Result<PolicyChoice, ScriptError> {
        let (scripts, others): (Vec<_>, Vec<_>) = text.split('+').partition(|part| is_script(part));
        let wrong = |why: String| ScriptError::Spec {
            spec: text.to_owned(),
            why,
        };
        let script = match scripts[..] {
            [] => return Ok(PolicyChoice::BuiltIn(text.parse()?)),
            [script] => script,
            _ => return Err(wrong("it names two scripts; name one of them".to_owned())),
        };
        if let Some(other) = others.iter().find(|part| kind(part) == Some("faults")) {
            return Err(wrong(format!(
                "the script and '{other}' both decide about faults; name one of them"
            )));
        }
        let (path, params) = script.split_once(':').unwrap_or((script, ""));
        let params = params.split(',').filter(|pair| !pair.trim().is_empty());
        let params = params.map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
            None => Err(wrong(format!(
                "'{pair}' is no parameter of a script; write it as name=value"
            ))),
        });
        let params: Vec<(String, String)> = params.collect::<Result<_, _>>()?;
        for (i, (name, _)) in params.iter().enumerate() {
            if params[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(wrong(format!(
                    "parameter '{name}' of the script is given twice; give it once"
                )));
            }
        }
        let spec = ScriptSpec {
            path: path.trim().into(),
            params,
            rest: others.join("+"),
        };
        // Mistakes in the rest are to be found before there is a script.
        spec.beside(None)?;
        Ok(PolicyChoice::Script(spec))
    }
}

impl fmt::Display for PolicyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicyChoice::BuiltIn(spec) => spec.fmt(f),
            PolicyChoice::Script(spec) => spec.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_told_from_built_in_policies() {
        for text in [
            "density+lru+timeslice",
            "stride.luau",
            "./noext",
            "a/b.luau:window=4,x=y+lru+timeslice:min=1ms",
        ] {
            let choice: PolicyChoice = text.parse().unwrap();
            assert_eq!(choice.to_string(), text);
            let script = matches!(choice, PolicyChoice::Script(_));
            assert_eq!(script, text != "density+lru+timeslice", "{text}");
        }
    }

    #[test]
    fn components_are_found_by_name() {
        let choice = |text: &str| text.parse::<PolicyChoice>().unwrap();
        for text in ["density + hints", "a.luau:hints=1+lru + hints"] {
            assert!(choice(text).has("hints") && choice(text).listens_to_hints());
        }
        assert!(!choice("a.luau:x=hints+lru").has("hints"));
        assert!(choice("a.luau").listens_to_hints() && choice("thrash").listens_to_hints());
        assert!(!choice("density+lru").listens_to_hints());
    }

    #[test]
    fn all_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("place.txt").display().to_string();
        std::fs::write(&place, "0 64 system\n").unwrap();
        let script = ("the policy script", "a/b.luau");
        let placement = ("the policy's placement file", place.as_str());
        for (spec, expected) in [
            ("density+lru".to_owned(), &[][..]),
            (format!("lru + static:file={place},hold=2ms"), &[placement]),
            ("lru+a/b.luau:x=1".to_owned(), &[script]),
        ] {
            let choice: PolicyChoice = spec.parse().unwrap();
            let files = choice.files();
            assert_eq!(files, PolicyChoice::named_files(&spec));
            let named = |file: &NamedFile| (file.what, file.path.display().to_string());
            let expected = expected
                .iter()
                .map(|(what, path)| (*what, path.to_string()));
            assert!(files.iter().map(named).eq(expected), "{spec}: {files:?}");
        }
        // Also those of a specification that is a mistake.
        let both = PolicyChoice::named_files(&format!("static:file={place}+x.luau"));
        assert_eq!(both.len(), 2, "{both:?}");
    }

    #[test]
    fn mistakes_are_named() {
        let message = |text: &str| text.parse::<PolicyChoice>().unwrap_err().to_string();
        assert_eq!(
            message("a.luau+density"),
            "policy 'a.luau+density': the script and 'density' both decide about faults; name one of them"
        );
        assert!(message("a.luau+b.luau").contains("names two scripts"));
        assert!(message("a.luau:x").contains("'x' is no parameter of a script"));
        assert!(message("a.luau:x=1,x=2").contains("parameter 'x' of the script is given twice"));
        assert!(message("a.luau+lru:x=1").contains("no parameter 'x'"));
        assert!(message("a.luau+nothing").contains("unknown policy 'nothing'"));
        for text in ["denisty", "next.lua+lru", "a.luau+nothing"] {
            let message = message(text);
            assert!(message.starts_with("unknown policy '"), "{message}");
            assert!(
                message.ends_with("; or a script: a file whose name ends in .luau"),
                "{message}"
            );
        }
        assert!(!message("lru:x=1").contains("script"));
    }
}
