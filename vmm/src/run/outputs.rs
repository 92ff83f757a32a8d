//! The files of a run: its inputs and its outputs.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use hmmvisor_experiments::output::{Files, Output, OutputError, real_path};
use parking_lot::{Mutex, MutexGuard};

use crate::config::Config;
use crate::config::console_choice::ConsoleChoice;
use crate::run::torture::Torture;
use crate::sandbox::Paths;

/// The outputs of a run, opened before it begins.
#[derive(Debug)]
pub struct Outputs {
    /// The console's, if that is a file.
    pub console: Option<ConsoleFile>,
    /// The JSON report's.
    pub json: Option<Output>,
    /// The trace's.
    pub trace: Option<Output>,
}

impl Outputs {
    /// Opens the outputs that a configuration names.
    ///
    /// # Errors
    /// An output cannot be written, or is an input of the run, or another output.
    pub fn open(config: &Config, files: &mut Files) -> Result<Outputs, OutputError> {
        let console = match &config.console {
            ConsoleChoice::File(path) => Some(files.live("the console", path)?),
            ConsoleChoice::Auto | ConsoleChoice::Stdio => None,
        };
        let open = |files: &mut Files, path| files.whole("the JSON report", path);
        let json = config.json.as_deref().map(|path| open(files, path));
        let trace = |path: &Path| trace(files, path);
        Ok(Outputs {
            console: console.map(ConsoleFile::new),
            json: json.transpose()?,
            trace: config.record.as_deref().map(trace).transpose()?,
        })
    }
}

/// Opens a run's trace.
pub(crate) fn trace(files: &mut Files, path: &Path) -> Result<Output, OutputError> {
    files.growing("the trace", path)
}

/// Registers the inputs of a run with `files`.
pub fn inputs(config: &Config, files: &mut Files) {
    let mut reads =
        |what, path: Option<&Path>| path.into_iter().for_each(|it| files.reads(what, it));
    reads("the guest", config.guest.as_deref());
    reads("the kernel", config.boot.kernel.as_deref());
    reads("the initial ramdisk", config.boot.initrd.as_deref());
    for disk in &config.disk {
        reads("the disk", Some(&disk.file));
    }
    let regions = config.policy.region.iter().map(|region| &region.spec);
    for policy in regions.chain([&config.policy.spec]) {
        for file in policy.files() {
            reads(file.what, Some(&file.path));
        }
    }
}

/// Returns the paths that a run opens while its guest runs, or at its end.
pub fn paths(config: &Config) -> Paths {
    let written = [&config.json, &config.record].into_iter().flatten();
    let console = match &config.console {
        ConsoleChoice::File(path) => Some(path),
        ConsoleChoice::Auto | ConsoleChoice::Stdio => None,
    };
    // It is removed at the end.
    let socket = config.api.socket.iter();
    let regions = config.policy.region.iter().map(|region| &region.spec);
    let policies = regions.chain([&config.policy.spec]);
    let read = policies.flat_map(|policy| policy.files());
    Paths {
        outputs: written
            .chain(console)
            .filter_map(|path| real_path(path))
            .chain(socket.cloned())
            .collect(),
        scripts: read.map(|file| file.path.to_owned()).collect(),
        allow_write: config.sandbox.allow_write.clone(),
        userfaultfd: Torture::of(config).attaches_devices(),
    }
}

/// The file of the console's output. Clones write to the same file.
#[derive(Clone, Debug)]
pub struct ConsoleFile(Arc<Mutex<Output>>);

impl ConsoleFile {
    fn new(output: Output) -> ConsoleFile {
        ConsoleFile(Arc::new(Mutex::new(output)))
    }

    /// Empties the file if the guest has written nothing. Call it when the guest has run.
    ///
    /// # Errors
    /// The file cannot be emptied.
    pub fn end(&self) -> io::Result<()> {
        match self.0.try_lock() {
            Some(mut output) => output.begin(),
            // The output's thread is writing just now, so the file has been emptied.
            None => Ok(()),
        }
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.0.lock()
    }
}

impl Write for ConsoleFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_run_is_made_of_is_spared() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let names = [
            "guest", "kernel", "initrd", "disk", "p.luau", "r.luau", "place",
        ];
        let script = |name| format!("{}+lru", path(name).display()).parse().unwrap();
        let mut config = Config {
            guest: Some(path("guest")),
            ..Config::default()
        };
        config.boot.kernel = Some(path("kernel"));
        config.boot.initrd = Some(path("initrd"));
        config.disk = vec![path("disk").display().to_string().parse().unwrap()];
        config.policy.spec = script("p.luau");
        for name in names {
            std::fs::write(path(name), "0 64 system\n").unwrap();
            std::fs::hard_link(path(name), path(&format!("{name}.link"))).unwrap();
        }
        let placement = format!("static:file={}", path("place").display());
        let region = |spec| crate::config::RegionConfig {
            start: hmmvisor_experiments::size::Size(0),
            size: hmmvisor_experiments::size::Size(2 << 20),
            spec,
        };
        config.policy.region = vec![region(script("r.luau")), region(placement.parse().unwrap())];
        for name in names.map(|name| path(&format!("{name}.link"))) {
            let outputs: [fn(&mut Config) -> &mut Option<std::path::PathBuf>; 2] =
                [|config| &mut config.json, |config| &mut config.record];
            for output in outputs {
                let mut config = config.clone();
                *output(&mut config) = Some(name.clone());
                refused(&config);
            }
            let mut config = config.clone();
            config.console = ConsoleChoice::File(name);
            refused(&config);
        }
    }

    fn refused(config: &Config) {
        let mut files = Files::default();
        inputs(config, &mut files);
        let error = Outputs::open(config, &mut files).unwrap_err();
        assert!(matches!(error, OutputError::Taken { .. }), "{error}");
    }
}
