//! A script's file: reads, checks and reloads it, and counts the decisions of the script.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hmm_backend::pages::Fidelity;
use hmm_backend::policy::{
    Density, EvictionPolicy, FaultPolicy, PolicyFactory, PolicyFile, PolicySpec, policy_checksum,
};
use hmm_backend::text::printable;
use parking_lot::Mutex;

use crate::error::ScriptError;
use crate::eviction::ScriptEviction;
use crate::policy::ScriptPolicy;
use crate::sandbox::limits::Limits;
use crate::script::instance::{CurrentScript, Log, SharedInstance, Version};
use crate::script::text;
use crate::script::{Source, VICTIMS, names_of};
use crate::spec::ScriptSpec;

/// A script is no larger than this: compiling it cannot be interrupted, nor what it does between two loops or calls.
const FILE_LIMIT: u64 = 256 << 10;
/// How a script has been doing. The names are those in JSON reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct ScriptFigures {
    /// Events that it decided.
    pub decisions: u64,
    /// Events in which it failed, and density decided.
    pub failures: u64,
    /// How often its file was loaded again.
    pub reloads: u64,
    /// Instances, one for each backend, that are not asked any more because they failed too often in a row.
    #[serde(rename = "instances_off")]
    pub off: u32,
}

impl ScriptFigures {
    /// Whether density has decided in the script's place so often that the figures are not the script's: an
    /// instance was given up, or the script failed in more events than it decided.
    pub fn failed(&self) -> bool {
        self.off > 0 || self.failures > self.decisions
    }

    /// Returns why the figures of a replay or a run are not those of its script; none if they are.
    pub fn failure(&self) -> Option<String> {
        if !self.failed() {
            return None;
        }
        let given_up = match self.off {
            0 => "",
            _ => " and was given up",
        };
        let (failures, decisions) = (self.failures, self.decisions);
        Some(format!(
            "the policy script failed in {failures} of the {} events that it was asked about{given_up}; density decided in its place",
            failures.saturating_add(decisions)
        ))
    }
}

/// A script and its instances.
#[derive(Clone)]
pub struct Scripts {
    spec: ScriptSpec,
    /// What is beside the script: it decides about faults in its place.
    beside: PolicySpec,
    /// The functions that it has: a bit for each.
    functions: u32,
    accesses: Fidelity,
    shared: Arc<CurrentScript>,
}

impl Scripts {
    /// Reads and checks a script, with the default bounds; what there is to say goes to standard error.
    pub fn load(path: impl Into<PathBuf>) -> Result<Arc<Scripts>, ScriptError> {
        let spec = ScriptSpec::file(path.into());
        Scripts::with(spec, Limits::default(), to_stderr())
    }

    /// Reads and checks the script of a specification.
    pub fn with(spec: ScriptSpec, limits: Limits, log: Log) -> Result<Arc<Scripts>, ScriptError> {
        let version = read(&spec)?;
        Scripts::of(version, spec, limits, log)
    }

    /// Checks a script whose text is given; the specification's path is only its name. Reloading it fails unless there is
    /// such a file.
    pub(crate) fn of_text(
        spec: ScriptSpec,
        text: String,
        limits: Limits,
        log: Log,
    ) -> Result<Arc<Scripts>, ScriptError> {
        let file = PolicyFile::of_text(&spec.path, &text);
        let version = version(&spec, file, text.into_bytes())?;
        Scripts::of(version, spec, limits, log)
    }

    /// Reads and checks the script of a specification, if it is the one that was recorded.
    pub(crate) fn recorded(
        spec: ScriptSpec,
        file: &PolicyFile,
        limits: Limits,
        log: Log,
    ) -> Result<Arc<Scripts>, ScriptError> {
        let version = read(&spec)?;
        ScriptError::unless_same(&version.file, file)?;
        Scripts::of(version, spec, limits, log)
    }

    fn of(
        version: Version,
        spec: ScriptSpec,
        limits: Limits,
        log: Log,
    ) -> Result<Arc<Scripts>, ScriptError> {
        let version = Arc::new(version);
        let shared = Arc::new(CurrentScript {
            current: Mutex::new(version.clone()),
            version: AtomicU64::new(0),
            limits,
            log,
            lines: AtomicU32::new(0),
            decisions: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            reloads: AtomicU64::new(0),
            off: AtomicU32::new(0),
            called: AtomicU32::new(0),
        });
        let script = shared.check(&version).map_err(ScriptError::Script)?;
        let beside = spec.beside(script.eviction.as_deref())?;
        Ok(Arc::new(Scripts {
            spec,
            beside,
            functions: script.handlers(),
            accesses: script.accesses,
            shared,
        }))
    }

    /// The script's file.
    pub fn path(&self) -> &Path {
        &self.spec.path
    }

    /// How much devices must tell of their accesses for the script to be of use: it says so itself.
    pub fn accesses(&self) -> Fidelity {
        self.accesses
    }

    /// Whether the script decided about nothing but evictions when it was first loaded.
    pub(crate) fn decides_only_evictions(&self) -> bool {
        self.functions & !(1 << VICTIMS) == 0
    }

    /// Reads the file again. All instances use the new version from their next event on, each beginning with an empty
    /// state. On an error the old version stays.
    pub fn reload(&self) -> Result<(), ScriptError> {
        let version = Arc::new(read(&self.spec)?);
        self.shared.check(&version).map_err(ScriptError::Script)?;
        *self.shared.current.lock() = version;
        self.shared.version.fetch_add(1, Ordering::Release);
        self.shared.reloads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Reads the file again and says what came of it.
    pub fn reload_and_say(&self) {
        let name = self.path().display().to_string();
        let name = printable(&name);
        match self.reload() {
            Ok(()) => (self.shared.log)(&format!("{name}: reloaded")),
            Err(error) => {
                let error = error.to_string();
                // The log has the error already.
                let error = error.strip_prefix("reading ").unwrap_or(&error);
                let error = error.strip_prefix("policy script ").unwrap_or(error);
                (self.shared.log)(&format!("{error}; the version before stays in use"));
            }
        }
    }

    /// Returns the functions of the script that no instance has called which is gone.
    pub fn untried(&self) -> Vec<&'static str> {
        names_of(self.functions & !self.shared.called.load(Ordering::Relaxed))
    }

    /// How the script has been doing.
    pub fn figures(&self) -> ScriptFigures {
        ScriptFigures {
            decisions: self.shared.decisions.load(Ordering::Relaxed),
            failures: self.shared.failures.load(Ordering::Relaxed),
            reloads: self.shared.reloads.load(Ordering::Relaxed),
            off: self.shared.off.load(Ordering::Relaxed),
        }
    }
}

/// The script in one backend: one interpreter with one state, for all its functions.
struct InBackend {
    scripts: Scripts,
    instance: SharedInstance,
}

impl Scripts {
    fn in_backend(&self) -> InBackend {
        InBackend {
            scripts: self.clone(),
            instance: SharedInstance::new(&self.shared),
        }
    }
}

impl PolicyFactory for InBackend {
    fn fault_policy(&self) -> Box<dyn FaultPolicy> {
        Box::new(ScriptPolicy::new(
            self.instance.clone(),
            self.scripts.beside.fault_policy(),
            Box::new(Density::default()),
        ))
    }

    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy> {
        let inner = self.scripts.beside.eviction_policy(frames);
        match self.scripts.functions & 1 << VICTIMS != 0 {
            true => Box::new(ScriptEviction::new(self.instance.clone(), inner)),
            false => inner,
        }
    }

    fn name(&self) -> String {
        self.scripts.name()
    }

    fn files(&self) -> Vec<PolicyFile> {
        self.scripts.files()
    }

    fn exact(&self) -> String {
        self.scripts.exact()
    }
}

/// Each policy that is asked for by itself has an interpreter of its own.
impl PolicyFactory for Scripts {
    fn fault_policy(&self) -> Box<dyn FaultPolicy> {
        self.in_backend().fault_policy()
    }

    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy> {
        self.in_backend().eviction_policy(frames)
    }

    fn for_backend(&self) -> Option<Arc<dyn PolicyFactory>> {
        Some(Arc::new(self.in_backend()))
    }

    fn name(&self) -> String {
        self.spec.to_string()
    }

    fn files(&self) -> Vec<PolicyFile> {
        let mut files = self.beside.files();
        files.push(self.shared.current().file.clone());
        files
    }

    /// The script in its current version, and all that stands beside it.
    fn exact(&self) -> String {
        let script = self.spec.script();
        let sum = policy_checksum(&self.shared.current().source.text);
        let beside = self.beside.exact();
        // The script decides about faults.
        let beside = beside.strip_prefix("on-demand+").unwrap_or(&beside);
        format!("{script}#{sum}+{beside}")
    }
}

fn to_stderr() -> Log {
    Arc::new(|line| {
        let _ = writeln!(io::stderr(), "hmmvisor: policy script {line}");
    })
}

fn read(spec: &ScriptSpec) -> Result<Version, ScriptError> {
    let path = &spec.path;
    let error = |error| ScriptError::Read {
        path: path.clone(),
        error,
    };
    let (file, bytes) = PolicyFile::read(path, FILE_LIMIT).map_err(error)?;
    version(spec, file, bytes)
}

fn version(spec: &ScriptSpec, file: PolicyFile, bytes: Vec<u8>) -> Result<Version, ScriptError> {
    let path = &spec.path;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(ScriptError::TooLarge {
            path: path.clone(),
            size: bytes.len() as u64,
            limit: FILE_LIMIT,
        });
    }
    let text = text::of_script(bytes)
        .map_err(|(line, why)| ScriptError::Script(format!("{}:{line}: {why}", path.display())))?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    let source = Source {
        name: printable(&name.to_string_lossy()).into_owned(),
        text,
        params: spec.params.clone(),
    };
    Ok(Version::new(source, file))
}
