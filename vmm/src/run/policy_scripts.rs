//! The policies of a run: loaded, and their scripts reloaded when their files change or SIGHUP comes.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hmm_backend::pages::{Fidelity, PAGE_SIZE, Page, PageRange};
use hmm_backend::policy::PolicyFactory;
use hmmvisor_devices::thread;
use hmmvisor_policies::{FileWatch, Limits, Log, ScriptError, ScriptFigures, Scripts};
use parking_lot::Mutex;

use crate::config::PolicyConfig;
use crate::console::outlet::{MayClose, Outlet, OutletThread};
use crate::ending::Ending;

/// The policies of a run.
pub(crate) struct Policies {
    /// Decides about all memory without a policy of its own, and about evictions.
    pub(crate) factory: Arc<dyn PolicyFactory>,
    /// Parts of memory that have policies of their own.
    pub(crate) regions: Vec<(PageRange, Arc<dyn PolicyFactory>)>,
    pub(crate) scripts: Vec<Script>,
    messages: Arc<Messages>,
}

impl Drop for Policies {
    /// Writes the scripts' messages so far, which would be lost with the process: scripts may live on in threads that are not
    /// waited for.
    fn drop(&mut self) {
        self.messages.finish();
    }
}

/// Passes the messages of scripts to standard error. Scripts run in the service of faults, which must not wait for a reader: a message
/// that finds no room is dropped.
#[derive(Default)]
struct Messages(OnceLock<Option<Speaker>>);

struct Speaker {
    outlet: Outlet,
    thread: Mutex<OutletThread>,
}

/// How long writing the last messages may take.
const LAST_MESSAGES: Duration = Duration::from_millis(100);

impl Messages {
    fn say(&self, text: &str) {
        if let Some(speaker) = self.speaker() {
            speaker.outlet.offer(text.as_bytes());
        }
    }

    /// Returns the thread that writes, started if this is the first call; none if it cannot be started, and messages are dropped.
    fn speaker(&self) -> Option<&Speaker> {
        let start = || {
            let thread =
                Outlet::start("messages", Box::new(MayClose(io::stderr())), |_| {}).ok()?;
            Some(Speaker {
                outlet: thread.outlet().clone(),
                thread: Mutex::new(thread),
            })
        };
        self.0.get_or_init(start).as_ref()
    }

    /// Waits until the last messages are written. Later messages are dropped.
    fn finish(&self) {
        if let Some(Some(speaker)) = self.0.get() {
            speaker.thread.lock().finish(LAST_MESSAGES);
        }
    }
}

/// The thread that reloads scripts: reading a file may take long, and the run's end does not wait for it. Ends when it is dropped.
#[derive(Clone)]
pub(crate) struct Reloader(Sender<Option<usize>>);

impl Reloader {
    /// Starts the thread.
    pub(crate) fn start(scripts: &[Script], ending: &Arc<Ending>) -> io::Result<Reloader> {
        let (sender, asked) = mpsc::channel();
        let scripts: Vec<_> = scripts.iter().map(|it| it.scripts.clone()).collect();
        let body = move || {
            for index in asked {
                let which = match index {
                    Some(index) => &scripts[index..=index],
                    None => &scripts[..],
                };
                which.iter().for_each(|scripts| scripts.reload_and_say());
            }
        };
        thread::spawn("script-reload", ending.on_panic(), body)?;
        Ok(Reloader(sender))
    }

    /// Asks the thread to reload script number `index` reloaded.
    pub(crate) fn reload(&self, index: usize) {
        // The thread has ended only if it has panicked, which ends the run.
        let _ = self.0.send(Some(index));
    }

    /// Asks the thread to reload all scripts.
    pub(crate) fn reload_all(&self) {
        let _ = self.0.send(None);
    }
}

/// A script, and a watch on its file if that is possible.
pub(crate) struct Script {
    pub(crate) scripts: Arc<Scripts>,
    pub(crate) watch: Option<FileWatch>,
}

impl Policies {
    /// Loads the policies that the configuration names.
    pub(crate) fn load(config: &PolicyConfig, told: Fidelity) -> Result<Policies, ScriptError> {
        let messages = Arc::new(Messages::default());
        let log = log(&messages);
        let common = config.spec.load(Limits::default(), log.clone())?;
        common.check_told(told)?;
        let (factory, mut scripts) = (common.factory, common.scripts);
        let mut regions = Vec::new();
        for region in &config.region {
            let chosen = region.spec.load_of_region(Limits::default(), log.clone())?;
            scripts.extend(chosen.scripts);
            let page = |bytes: u64| Page((bytes / PAGE_SIZE) as u32);
            let pages = PageRange::new(
                page(region.start.0),
                page(region.start.0.saturating_add(region.size.0)),
            );
            regions.push((pages, chosen.factory));
        }
        if !scripts.is_empty() {
            // Threads that run scripts are confined, and can start no other thread.
            messages.speaker();
        }
        let watched = |scripts: Arc<Scripts>| Script {
            watch: FileWatch::new(scripts.path())
                .inspect_err(|error| {
                    let name = scripts.path().display();
                    log(&format!(
                        "{name}: changes will not be noticed, only SIGHUP: {error}"
                    ));
                })
                .ok(),
            scripts,
        };
        Ok(Policies {
            factory,
            regions,
            scripts: scripts.into_iter().map(watched).collect(),
            messages,
        })
    }

    /// Returns what takes the messages of scripts that come while the machine runs.
    pub(crate) fn log(&self) -> Log {
        // Before there is one, for the same reason.
        self.messages.speaker();
        log(&self.messages)
    }
}

fn log(messages: &Arc<Messages>) -> Log {
    let its = messages.clone();
    Arc::new(move |line| its.say(&format!("hmmvisor: policy script {line}\n")))
}

/// Returns the figures of several scripts together; none of no scripts.
pub(crate) fn sum(figures: impl Iterator<Item = ScriptFigures>) -> Option<ScriptFigures> {
    figures.reduce(|a, b| ScriptFigures {
        decisions: a.decisions + b.decisions,
        failures: a.failures + b.failures,
        reloads: a.reloads + b.reloads,
        off: a.off + b.off,
    })
}
