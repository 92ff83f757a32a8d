//! Scripts written to files, and what their log was told.

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use hmm_backend::policy::{Advice, BlockFault, BlockView, PolicyFactory, PolicySpec};
use hmmvisor_policies::{Limits, Log, ScriptError, ScriptSpec, Scripts};

use crate::views::each_view;

/// On a slow or busy machine time would be over before the bound that a test is about is met.
pub const PATIENT: Limits = Limits {
    time: Duration::from_secs(1),
    loading: Duration::from_secs(60),
    ..Limits::DEFAULT
};

/// What the scripts' log was told.
#[derive(Clone, Default)]
pub struct Lines(pub Arc<Mutex<Vec<String>>>);

impl Lines {
    pub fn log(&self) -> Log {
        let lines = self.0.clone();
        Arc::new(move |line| lines.lock().unwrap().push(line.to_owned()))
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn load_file(
    path: &Path,
    limits: Limits,
    text: &str,
    lines: &Lines,
) -> Result<Arc<Scripts>, ScriptError> {
    std::fs::write(path, text).unwrap();
    Scripts::with(ScriptSpec::file(path.to_owned()), limits, lines.log())
}

pub fn load_at(path: &Path, text: &str, lines: &Lines) -> Result<Arc<Scripts>, ScriptError> {
    load_file(path, Limits::default(), text, lines)
}

pub fn load_within(limits: Limits, text: &str, lines: &Lines) -> Result<Arc<Scripts>, ScriptError> {
    let folder = tempfile::tempdir().unwrap();
    load_file(&folder.path().join("bad.luau"), limits, text, lines)
}

pub fn load(text: &str, lines: &Lines) -> Result<Arc<Scripts>, ScriptError> {
    load_within(Limits::default(), text, lines)
}

pub fn error(text: &str) -> String {
    load_within(PATIENT, text, &Lines::default())
        .err()
        .unwrap()
        .to_string()
}

/// Asks `n` times about one real fault. Also returns what density says.
pub fn ask(scripts: &Arc<Scripts>, n: usize) -> (Vec<Advice>, Advice) {
    let mut policy = scripts.fault_policy();
    let mut default = "density".parse::<PolicySpec>().unwrap().fault_policy();
    let (said, heard) = mpsc::channel();
    each_view(1, 5, move |fault: &BlockFault, view: &BlockView<'_>| {
        let advice: Vec<_> = (0..n).map(|_| policy.advise(fault, view)).collect();
        said.send((advice, default.advise(fault, view))).unwrap();
    });
    heard.recv().unwrap()
}

/// The function `on_fault` with this body.
pub fn on_fault(body: &str) -> String {
    format!("return {{ on_fault = function(page)\n{body}\nend }}")
}
