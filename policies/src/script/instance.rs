//! An interpreter that runs a script's current version for one backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use hmm_backend::policy::PolicyFile;
use parking_lot::{Mutex, MutexGuard};

use super::text;
use super::{Failure, Script, Source};
use crate::sandbox::Print;
use crate::sandbox::limits::Limits;

/// Lines that a script may print.
const MOST_LINES: u32 = 200;

/// Who hears what there is to say about scripts: one line at a time.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// A version of the script.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) source: Source,
    pub(crate) file: PolicyFile,
    /// Whether a failure has been reported.
    said: AtomicBool,
}

impl Version {
    pub(crate) fn new(source: Source, file: PolicyFile) -> Version {
        Version {
            source,
            file,
            said: AtomicBool::new(false),
        }
    }
}

/// What all instances of a script share.
pub(crate) struct CurrentScript {
    pub(crate) current: Mutex<Arc<Version>>,
    /// The number of `current`, which costs less to look at than `current` itself.
    pub(crate) version: AtomicU64,
    pub(crate) limits: Limits,
    pub(crate) log: Log,
    pub(crate) lines: AtomicU32,
    pub(crate) decisions: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) reloads: AtomicU64,
    pub(crate) off: AtomicU32,
    /// The handlers that instances called which are gone: a bit for each.
    pub(crate) called: AtomicU32,
}

impl CurrentScript {
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn current(&self) -> Arc<Version> {
        self.current.lock().clone()
    }

    /// Loads a version that has not been in use, with the parameters that the user gives it.
    pub(crate) fn check(self: &Arc<Self>, version: &Version) -> Result<Script, Failure> {
        version.source.check_params()?;
        self.load(version)
    }

    pub(crate) fn load(self: &Arc<Self>, version: &Version) -> Result<Script, Failure> {
        let shared = self.clone();
        let name = version.source.name.clone();
        let print: Print =
            Arc::new(
                move |line| match shared.lines.fetch_add(1, Ordering::Relaxed) {
                    0..MOST_LINES => (shared.log)(&format!("{name}: {}", text::shown(line))),
                    MOST_LINES => (shared.log)(&format!("{name}: no more than {MOST_LINES} lines")),
                    _ => {
                        shared.lines.store(MOST_LINES + 1, Ordering::Relaxed);
                    }
                },
            );
        Script::load(&version.source, &self.limits, print).map_err(|failure| text::shown(&failure))
    }
}

/// One interpreter with the current version of the script, unless that is broken.
pub(crate) struct Instance {
    shared: Arc<CurrentScript>,
    version: u64,
    current: Arc<Version>,
    script: Option<Script>,
    in_a_row: u32,
    off: bool,
    next_tick: Duration,
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(script) = &self.script {
            self.shared
                .called
                .fetch_or(script.called(), Ordering::Relaxed);
        }
    }
}

/// An instance that several policies of one backend ask in turns: what one of them taught it, the others know. Asked with
/// no other lock wanted meanwhile.
#[derive(Clone)]
pub(crate) struct SharedInstance(Arc<Mutex<Instance>>);

impl SharedInstance {
    pub(crate) fn new(shared: &Arc<CurrentScript>) -> SharedInstance {
        SharedInstance(Arc::new(Mutex::new(Instance::new(shared))))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Instance> {
        self.0.lock()
    }

    /// Asks the script. Returns none if it does not decide this, or fails.
    pub(crate) fn ask<T>(
        &self,
        question: impl FnOnce(&Script) -> Result<Option<T>, Failure>,
    ) -> Option<T> {
        self.lock().ask(question)
    }
}

impl Instance {
    pub(crate) fn new(shared: &Arc<CurrentScript>) -> Instance {
        let mut instance = Instance {
            shared: shared.clone(),
            version: shared.version(),
            current: shared.current(),
            script: None,
            in_a_row: 0,
            off: false,
            next_tick: Duration::ZERO,
        };
        instance.load();
        instance
    }

    fn load(&mut self) {
        self.in_a_row = 0;
        match self.shared.load(&self.current) {
            Ok(script) => self.script = Some(script),
            Err(failure) => {
                self.script = None;
                self.failed(&failure);
                self.turn_off();
            }
        }
    }

    fn turn_off(&mut self) {
        self.off = true;
        self.shared.off.fetch_add(1, Ordering::Relaxed);
    }

    /// The script, in its newest version; none after too many failures.
    pub(crate) fn script(&mut self) -> Option<&Script> {
        let version = self.shared.version();
        if version != self.version {
            (self.version, self.current) = (version, self.shared.current());
            if std::mem::take(&mut self.off) {
                self.shared.off.fetch_sub(1, Ordering::Relaxed);
            }
            self.load();
        }
        if self.off { None } else { self.script.as_ref() }
    }

    /// How many accesses in place the script wants to hear of.
    pub(crate) fn remote_access_threshold(&self) -> Option<u32> {
        self.script.as_ref()?.remote_access_threshold()
    }

    /// How often the script wants to hear of the time.
    pub(crate) fn tick_interval(&self) -> Option<Duration> {
        self.script.as_ref()?.tick_interval
    }

    /// Whether it is to hear of the time now. Others may want ticks more often, and there may be several who ask.
    pub(crate) fn tick_is_due(&mut self, now: Duration) -> bool {
        let Some(interval) = self.tick_interval().filter(|_| self.next_tick <= now) else {
            return false;
        };
        self.next_tick = now + interval;
        true
    }

    fn ask<T>(
        &mut self,
        question: impl FnOnce(&Script) -> Result<Option<T>, Failure>,
    ) -> Option<T> {
        match question(self.script()?) {
            Ok(answer) => {
                if answer.is_some() {
                    self.in_a_row = 0;
                    self.shared.decisions.fetch_add(1, Ordering::Relaxed);
                }
                answer
            }
            Err(failure) => {
                self.failed(&failure);
                self.in_a_row += 1;
                if self.in_a_row >= self.shared.limits.failures {
                    self.turn_off();
                    (self.shared.log)(&format!(
                        "{}: failed {} times in a row: not asked again until it is reloaded",
                        self.current.source.name, self.in_a_row
                    ));
                }
                None
            }
        }
    }

    fn failed(&self, failure: &str) {
        self.shared.failures.fetch_add(1, Ordering::Relaxed);
        if !self.current.said.swap(true, Ordering::Relaxed) {
            let failure = text::shown(failure);
            (self.shared.log)(&format!(
                "{failure}; density decides instead (further failures are only counted)"
            ));
        }
    }
}
