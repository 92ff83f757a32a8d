//! The device between a test and the guest's agents: where idle vCPUs sleep and tests wait for answers.

use std::mem::offset_of;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hmm_backend::Backend;
use hmm_backend::pages::{PageRange, Permission};
use hmmvisor::machine::bus::{Device, Next};
use hmmvisor_abi::agent::{self, Mailbox};
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::Pages;
use crate::place::place_of;

/// How long a vCPU sleeps at most without a look at whether the machine stops.
const NAP: Duration = Duration::from_millis(50);

/// The mailboxes of all vCPUs, in boot RAM.
pub(crate) struct Mailboxes {
    // Keeps the memory mapped.
    _ram: GuestMemoryMmap,
    first: *const Mailbox,
    vcpus: u32,
}

// SAFETY: the pointer is to memory that lives as long as `_ram` and is accessed atomically only.
unsafe impl Send for Mailboxes {}
// SAFETY: as above.
unsafe impl Sync for Mailboxes {}

impl Mailboxes {
    pub(crate) fn new(ram: &GuestMemoryMmap, vcpus: u32) -> Mailboxes {
        let first = ram
            .get_host_address(GuestAddress(agent::mailbox(0)))
            .expect("the memory map has mailboxes");
        Mailboxes {
            _ram: ram.clone(),
            first: first.cast_const().cast(),
            vcpus,
        }
    }

    pub(crate) fn of(&self, vcpu: u32) -> &Mailbox {
        assert!(vcpu < self.vcpus, "there is no vCPU {vcpu}");
        const { assert!(offset_of!(Mailbox, submitted) == 0) };
        let offset = u64::from(vcpu) * agent::MAILBOX_STRIDE;
        // SAFETY: the interface crate asserts that all mailboxes are in one piece of boot RAM, which is one mapping
        // that lives as long as `self`; the stride is a multiple of the alignment; and all fields are atomic, so the guest
        // may change them at any time.
        unsafe { &*self.first.byte_add(offset as usize) }
    }
}

#[derive(Default)]
struct State {
    /// vCPUs that have asked for a command.
    ready: u64,
    stop: bool,
}

/// The device. One condition variable for everything: what is waited for is in the mailboxes.
pub(crate) struct Doorbell {
    backend: Arc<Backend>,
    mailboxes: OnceLock<Mailboxes>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Doorbell {
    pub(crate) fn new(backend: Arc<Backend>) -> Doorbell {
        Doorbell {
            backend,
            mailboxes: OnceLock::new(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Before the vCPUs start.
    pub(crate) fn set_mailboxes(&self, mailboxes: Mailboxes) {
        assert!(self.mailboxes.set(mailboxes).is_ok(), "set once");
    }

    pub(crate) fn mailbox(&self, vcpu: u32) -> &Mailbox {
        let mailboxes = self.mailboxes.get();
        mailboxes.expect("set before the vCPUs start").of(vcpu)
    }

    /// Changes something that a vCPU may wait for.
    pub(crate) fn ring(&self, change: impl FnOnce()) {
        let state = self.state.lock();
        change();
        drop(state);
        self.changed.notify_all();
    }

    /// Wakes the vCPUs that sleep in this device, and lets none sleep any more.
    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// Sleeps until the condition holds, which a vCPU changes, or the time is over.
    pub(crate) fn wait(&self, timeout: Duration, condition: impl Fn() -> bool) -> bool {
        let unmet = |_: &mut State| !condition();
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, unmet, timeout);
        drop(state);
        condition()
    }

    /// Whether so many vCPUs have reached their first command; waits at most this long.
    pub(crate) fn all_ready(&self, vcpus: u32, timeout: Duration) -> bool {
        let unmet = |state: &mut State| state.ready.count_ones() < vcpus;
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, unmet, timeout);
        state.ready.count_ones() >= vcpus
    }

    /// A vCPU is idle.
    fn next(&self, vcpu: u32) {
        let mailbox = self.mailbox(vcpu);
        let idle = |state: &mut State| {
            !state.stop && mailbox.submitted.load(Acquire) == mailbox.completed.load(Relaxed)
        };
        let mut state = self.state.lock();
        state.ready |= 1 << vcpu;
        self.changed.notify_all();
        self.changed.wait_while_for(&mut state, idle, NAP);
    }

    /// A vCPU lets the host answer.
    fn call(&self, vcpu: u32) {
        let mailbox = self.mailbox(vcpu);
        let arg = |index: usize| mailbox.args[index].load(Relaxed);
        let (page, _) = place_of(arg(0));
        let range: PageRange = (page..page.saturating_add(arg(1) as u32)).range();
        let answer = match mailbox.opcode.load(Relaxed) {
            agent::OP_FREE => self.backend.guest_freed(range),
            agent::OP_READ_ONLY => {
                let permission = match arg(2) {
                    0 => Permission::Writable,
                    _ => Permission::ReadOnly,
                };
                self.backend.set_permission(range, permission).map(|()| 0)
            }
            other => panic!("the agent calls the host for command {other}"),
        };
        let status = match answer {
            Ok(_) => agent::STATUS_OK,
            Err(_) => agent::STATUS_REFUSED,
        };
        mailbox.status.store(status, Relaxed);
        mailbox.result.store(answer.unwrap_or(0), Relaxed);
        mailbox.address.store(arg(0), Relaxed);
    }
}

impl Device for Doorbell {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (agent::REG_ID, 8) = (offset, data.len()) {
            data.copy_from_slice(&agent::ID_VALUE.to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Next {
        let Ok(bytes) = data.try_into() else {
            return Next::Continue;
        };
        let vcpu = u64::from_le_bytes(bytes) as u32;
        match offset {
            agent::REG_NEXT => self.next(vcpu),
            agent::REG_CALL => self.call(vcpu),
            _ => {}
        }
        Next::Continue
    }
}
