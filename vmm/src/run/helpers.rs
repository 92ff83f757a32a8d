//! The threads that accompany a running machine.

use std::sync::Arc;

use super::policy_scripts::{Policies, Reloader};
use super::progress::{Progress, ProgressThread};
use super::signals::{Signals, Taken};
use crate::config::Config;
use crate::console::thread::{ConsoleThread, Input};
use crate::ending::{End, Ending};
use crate::vm::{Vm, VmError};

/// The threads, as far as this run has them. Dropping each ends it.
pub(super) struct Helpers {
    /// Brings an operating system's input. Small programs read none, and write whole lines.
    pub(super) console: Option<ConsoleThread>,
    /// Reloads policy scripts.
    pub(super) reloader: Option<Reloader>,
    /// Shows the progress.
    pub(super) progress: Option<ProgressThread>,
}

impl Helpers {
    pub(super) fn start(
        config: &Config,
        vm: &Vm,
        policies: &Policies,
        input: Option<Input>,
        progress: Option<&Progress>,
    ) -> Result<Helpers, VmError> {
        let console = config.boot.kernel.as_ref();
        let console =
            console.map(|_| ConsoleThread::start(vm.console().clone(), input, vm.ending().clone()));
        let reloader =
            (!policies.scripts.is_empty()).then(|| Reloader::start(&policies.scripts, vm.ending()));
        let progress = progress.map(|progress| progress.start(vm.control(), vm.ending()));
        let system = VmError::system;
        Ok(Helpers {
            console: console
                .transpose()
                .map_err(system("the console's thread"))?,
            reloader: reloader
                .transpose()
                .map_err(system("the thread that reloads scripts"))?,
            progress: progress
                .transpose()
                .map_err(system("the thread that shows progress"))?,
        })
    }
}

/// From now on signals end the run; SIGHUP reloads policy scripts where there are some.
pub(super) fn take_signals(signals: &Signals, ending: &Arc<Ending>, reloader: Option<&Reloader>) {
    let (ending, reloader) = (ending.clone(), reloader.cloned());
    signals.on_signal(move |signal| match (signal, &reloader) {
        (libc::SIGHUP, Some(reloader)) => {
            reloader.reload_all();
            Taken::GoesOn
        }
        _ => {
            ending.set(End::Signal(signal));
            Taken::Ends
        }
    });
}
