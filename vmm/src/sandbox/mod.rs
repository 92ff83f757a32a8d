//! Confinement: what the threads of a running machine may still ask of the kernel.
//!
//! Each thread confines itself when it begins, before it sees anything of the guest; the main thread does so when the vCPUs have been
//! started. A confined thread can gain no privileges, has no capabilities, opens only files that the configuration names, and makes only
//! the system calls of its kind. A thread that makes another one ends the process.
//!
//! | file | what |
//! |---|---|
//! | `table` | what each kind of thread may do |
//! | `filter` | the table's rows as seccomp filters |
//! | `files` | Landlock: the files that may be opened |
//! | `privileges` | privileges that are given up |
//! | `violation`, `names` | the message and the end when a thread makes a call that it may not make |
//! | `listener` | `--sandbox log` |
//! | `mode`, `error` | `on`, `log`, `off`; why a process cannot be confined |

mod error;
mod files;
mod filter;
mod listener;
mod mode;
mod names;
mod privileges;
mod table;
mod violation;

use std::io;
use std::sync::{Arc, OnceLock};

use hmmvisor_devices::thread;

use files::Opening;
use filter::{OnViolation, Program};
use listener::Listener;
use table::Files;

pub use error::SandboxError;
pub use files::Paths;
pub use mode::Mode;
pub use table::Kind;
pub use violation::EXIT_CODE;

/// The confinement of a process: on or logging.
pub struct Sandbox {
    /// The kinds' filters; each is compiled when its first thread begins.
    filters: [OnceLock<Program>; Kind::ALL.len()],
    /// The files that threads may open, and the capabilities that they need for it.
    files: Vec<(Files, Opening)>,
    /// The same for threads whose entry is not in `files`.
    no_files: Opening,
    /// Whether the kernel enforces the rules for files.
    landlock: bool,
    /// Set if calls that are not allowed are told only.
    log: Option<Listener>,
}

impl Sandbox {
    /// Makes a sandbox; none with [`Mode::Off`]. Call it when `paths` are known and before any thread begins that is to be confined.
    /// `before_the_end` is called by a thread that ends the process because of a violation: it may do only what is allowed in a
    /// signal handler.
    ///
    /// # Errors
    /// A folder of `paths` is none, or the kernel refuses.
    pub fn new(
        mode: Mode,
        paths: &Paths,
        before_the_end: fn(),
    ) -> Result<Option<Arc<Sandbox>>, SandboxError> {
        for path in &paths.allow_write {
            let why = match path.metadata() {
                Ok(metadata) if metadata.is_dir() => continue,
                Ok(_) => "it is not a folder".to_owned(),
                Err(error) => error.to_string(),
            };
            let path = path.clone();
            return Err(SandboxError::Folder { path, why });
        }
        let failed = |what| move |error| SandboxError::System { what, error };
        let log = match mode {
            Mode::Off => return Ok(None),
            Mode::Log => Some(Listener::start().map_err(failed("starting its thread"))?),
            Mode::On => {
                violation::end_the_process(before_the_end).map_err(failed("taking SIGSYS"))?;
                None
            }
        };
        let opening = |files| Ok((files, Opening::new(files, paths)?));
        let files: Vec<_> = Files::ALL
            .into_iter()
            .filter(|files| paths.has(*files))
            .map(opening)
            .collect::<Result<_, SandboxError>>()?;
        let no_files = Opening::new(Files::Nothing, paths)?;
        let all = files.iter().map(|(_, opening)| opening);
        let is_enforced = all.chain([&no_files]).all(Opening::is_enforced);
        Ok(Some(Arc::new(Sandbox {
            filters: [const { OnceLock::new() }; _],
            files,
            no_files,
            // A file that is not allowed cannot be told and then opened, so files are not confined where calls are told only.
            landlock: log.is_none() && is_enforced,
            log,
        })))
    }

    /// Whether files are confined: not if the kernel has no Landlock, and not with [`Mode::Log`].
    pub fn confines_files(&self) -> bool {
        self.landlock
    }

    /// Has every thread that begins from now on confine itself, by its name.
    ///
    /// # Errors
    /// The process has a sandbox already.
    pub fn confine_new_threads(self: &Arc<Self>) -> Result<(), SandboxError> {
        let sandbox = self.clone();
        let hook = move |name: &str| match (Kind::of_thread(name), Kind::is_inherited(name)) {
            (_, true) => {}
            (None, _) if name == listener::THREAD => {}
            (Some(kind), _) => sandbox.confine_this_thread(kind, name),
            (None, _) => violation::refuse(
                name,
                &"it is in no row of the sandbox's table; this is a bug in Hmmvisor",
            ),
        };
        match thread::on_begin(hook) {
            true => Ok(()),
            false => Err(SandboxError::Twice),
        }
    }

    /// Confines the calling thread, and those that it will start, for good. Ends the process if the kernel refuses.
    pub fn confine_this_thread(&self, kind: Kind, name: &str) {
        if let Err(why) = self.try_confine(kind) {
            violation::refuse(name, &why);
        }
        // Threads that it starts have its filter, under which they could not install another one.
        thread::passes_on();
    }

    fn try_confine(&self, kind: Kind) -> Result<(), String> {
        let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        privileges::gain_no_more().map_err(failed("giving up new privileges"))?;
        let on_violation = match self.log {
            Some(_) => OnViolation::Notify,
            None => OnViolation::Trap,
        };
        let compile = || filter::compile(kind, on_violation, self.landlock);
        let filter = self.filters[kind as usize].get_or_init(compile);
        if let Some(listener) = &self.log {
            let notifier = filter::install_with_listener(filter);
            let notifier = notifier.map_err(failed("installing its filter"))?;
            return listener.add(notifier).map_err(failed("the listener"));
        }
        let of_kind = |(files, _): &&(Files, Opening)| *files == kind.row().files;
        let opening = self.files.iter().find(of_kind);
        let opening = opening.map_or(&self.no_files, |(_, opening)| opening);
        if self.landlock {
            let restricted = opening.restrict_this_thread();
            restricted.map_err(failed("restricting its files by Landlock"))?;
        }
        let given_up = privileges::give_up(opening.capabilities);
        given_up.map_err(failed("giving up capabilities"))?;
        filter::install(filter).map_err(failed("installing its filter"))
    }
}

/// What this kernel offers to the sandbox.
#[derive(Debug)]
pub struct Support {
    /// Whether threads can be given filters of system calls. Without them no run begins under [`Mode::On`].
    pub filters: io::Result<()>,
    /// Whether threads can be confined to files by their paths (Landlock).
    pub files: Result<bool, SandboxError>,
}

impl Support {
    /// Asks the kernel. Changes nothing.
    pub fn here() -> Support {
        Support {
            filters: filter::are_available(),
            files: Opening::new(Files::Nothing, &Paths::default()).map(|it| it.is_enforced()),
        }
    }
}
