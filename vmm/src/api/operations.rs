//! Requests that take long, while they are carried out: they can be followed, and cancelled.

use std::collections::BTreeMap;
use std::sync::Arc;

use hmm_backend::{Error, Progress};
use hmmvisor_api::{Doing, Operation, Operations};
use parking_lot::Mutex;

use super::error::Refusal;

/// The operations in progress.
#[derive(Default)]
pub(crate) struct OperationBoard(Mutex<Begun>);

#[derive(Default)]
struct Begun {
    /// The run has ended, and no operation begins any more.
    closed: bool,
    next: u64,
    operations: BTreeMap<u64, What>,
}

/// An operation in progress.
#[derive(Clone)]
struct What {
    doing: Doing,
    device: Option<u8>,
    progress: Arc<Progress>,
}

impl What {
    fn told(&self, number: u64) -> Operation {
        Operation {
            operation: number,
            doing: self.doing,
            device: self.device,
            done_pages: self.progress.done(),
            total_pages: self.progress.total(),
            cancelled: self.progress.is_cancelled(),
        }
    }

    /// Whether both change what belongs to the accelerator as a whole.
    fn excludes(&self, other: &What) -> bool {
        let whole = |it: &What| it.doing != Doing::Migrate;
        whole(self) && whole(other) && self.device == other.device
    }
}

/// Takes an operation off the board when it ends, however it ends.
struct Listed<'b> {
    board: &'b OperationBoard,
    number: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.board.0.lock().operations.remove(&self.number);
    }
}

impl OperationBoard {
    /// Cancels all operations; from now on none begins. Called at the end of the run, which does not wait for them.
    pub(crate) fn close(&self) {
        let mut begun = self.0.lock();
        begun.closed = true;
        for what in begun.operations.values() {
            what.progress.cancel();
        }
    }

    fn list(&self, what: What) -> Result<Listed<'_>, Refusal> {
        let mut begun = self.0.lock();
        if begun.closed {
            return Err(Refusal::conflict("the run has ended"));
        }
        if let Some((number, _)) = begun.operations.iter().find(|(_, it)| it.excludes(&what)) {
            let detail = format!(
                "operation {number} detaches the accelerator or changes its memory; wait for it, or cancel it"
            );
            return Err(Refusal::conflict(detail));
        }
        let number = begun.next;
        begun.next += 1;
        begun.operations.insert(number, what);
        Ok(Listed {
            board: self,
            number,
        })
    }

    /// Does what takes long where other requests can follow it and cancel it. The outer error says why it has not begun.
    pub(super) fn follow<T>(
        &self,
        doing: Doing,
        device: Option<u8>,
        work: impl FnOnce(&Progress) -> Result<T, Error>,
    ) -> Result<Result<T, Error>, Refusal> {
        let progress = Arc::<Progress>::default();
        let _listed = self.list(What {
            doing,
            device,
            progress: progress.clone(),
        })?;
        Ok(work(&progress))
    }

    /// Returns those in progress.
    pub(super) fn all(&self) -> Operations {
        let begun = self.0.lock();
        let told = |(number, what): (&u64, &What)| what.told(*number);
        Operations {
            operations: begun.operations.iter().map(told).collect(),
        }
    }

    /// Has an operation end at its next step. The request that began it is answered then.
    pub(super) fn cancel(&self, number: u64) -> Result<Operation, Refusal> {
        let begun = self.0.lock();
        let Some(what) = begun.operations.get(&number) else {
            let detail = format!(
                "there is no operation {number}, or it has ended; GET /v1/operations lists those in progress"
            );
            return Err(Refusal::missing("no such operation", detail));
        };
        what.progress.cancel();
        Ok(what.told(number))
    }
}
