//! Commands and tasks that have been begun, and waiting for them.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use hmm_backend::Backend;
use parking_lot::{Condvar, Mutex};

use crate::TestVm;
use crate::error::GuestError;
use crate::inject::left;
use crate::vcpu::Given;

/// A vCPU's answer to come. Dropping it forgets the answer; the vCPU still executes the command.
#[must_use = "the vCPU's answer is known only after `wait`"]
pub struct Pending<'vm, T> {
    vm: &'vm TestVm,
    vcpu: u32,
    given: Arc<Given>,
    convert: fn(u64) -> T,
    _answer: PhantomData<T>,
}

impl<'vm> Pending<'vm, u64> {
    pub(crate) fn new(vm: &'vm TestVm, vcpu: u32, given: Arc<Given>) -> Pending<'vm, u64> {
        Pending {
            vm,
            vcpu,
            given,
            convert: |value| value,
            _answer: PhantomData,
        }
    }

    /// The same without the value.
    pub(crate) fn unit(self) -> Pending<'vm, ()> {
        Pending {
            vm: self.vm,
            vcpu: self.vcpu,
            given: self.given,
            convert: |_| (),
            _answer: PhantomData,
        }
    }
}

impl<T> Pending<'_, T> {
    /// Whether the vCPU has done it. Its page may still be locked: the service wakes a CPU before it unlocks the folio.
    pub fn is_done(&self) -> bool {
        self.vm.look_for_answer(self.vcpu, &self.given)
    }

    /// Waits until the vCPU has done it, and then until the folios of the pages that it touched are unlocked, unless
    /// a gate holds the call that has locked them. Panics if that takes longer than the machine's patience: the message says what
    /// the vCPU is stuck on.
    pub fn wait(self) -> Result<T, GuestError> {
        let answer = self.vm.wait_for_answer(self.vcpu, &self.given);
        if let Some(range) = self.given.command.touches {
            self.vm.settle(range);
        }
        answer.map(self.convert)
    }

    /// What was begun.
    pub fn name(&self) -> &str {
        &self.given.command.name
    }
}

impl<T> fmt::Debug for Pending<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_done() { "done" } else { "not done" };
        write!(f, "{} by vCPU {}: {state}", self.name(), self.vcpu)
    }
}

impl TestVm {
    /// Waits for an answer; the end of the run is one, too.
    pub(crate) fn wait_for_answer(&self, vcpu: u32, given: &Given) -> Result<u64, GuestError> {
        let begin = Instant::now();
        loop {
            let done = || self.look_for_answer(vcpu, given);
            // The doorbell does not ring when the run ends, nor when the last page of a loop has been touched.
            let slice = left(begin, self.patience()).min(TestVm::LOOK_AGAIN);
            if self.doorbell().wait(slice, done) {
                let answer = given.answer().expect("it was just seen");
                return answer.clone();
            }
            if let Some(end) = self.ended() {
                return Err(GuestError::Ended(end));
            }
            if left(begin, self.patience()).is_zero() {
                self.give_up(&format!(
                    "vCPU {vcpu} has not done `{}`",
                    given.command.name
                ));
            }
        }
    }
}

/// Something that another thread does with the backend, see [`TestVm::background`]. Dropping it does not stop it.
#[must_use = "the result is known only after `wait`"]
pub struct Task<'vm, T> {
    vm: &'vm TestVm,
    what: String,
    result: Arc<(Mutex<Option<T>>, Condvar)>,
}

impl<T: Send + 'static> Task<'_, T> {
    pub(crate) fn start<'vm>(
        vm: &'vm TestVm,
        what: &str,
        work: impl FnOnce(&Arc<Backend>) -> T + Send + 'static,
    ) -> Task<'vm, T> {
        let result = Arc::new((Mutex::new(None), Condvar::new()));
        let (mine, backend) = (result.clone(), vm.backend().clone());
        let body = move || {
            let value = work(&backend);
            *mine.0.lock() = Some(value);
            mine.1.notify_all();
        };
        std::thread::Builder::new()
            .name("background".into())
            .spawn(body)
            .expect("a thread");
        Task {
            vm,
            what: what.to_owned(),
            result,
        }
    }

    /// Whether it is done.
    pub fn is_done(&self) -> bool {
        self.result.0.lock().is_some()
    }

    /// Waits for its result. Panics if that takes longer than the machine's patience.
    pub fn wait(self) -> T {
        let (result, changed) = &*self.result;
        let mut result = result.lock();
        let patience = self.vm.patience();
        changed.wait_while_for(&mut result, |it| it.is_none(), patience);
        match result.take() {
            Some(value) => value,
            None => self
                .vm
                .give_up(&format!("`{}` in the background is not done", self.what)),
        }
    }
}
