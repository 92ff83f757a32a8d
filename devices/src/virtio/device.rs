//! A virtio device put together: registers for vCPUs, a thread that does the device's work, and what the two share.
//!
//! The thread works in *passes*: it takes notice of what the driver has set up, then looks through all queues. A vCPU that
//! resets the device or stops a queue sleeps until a pass has begun and ended after its write, so that when the write is
//! over, the device no longer touches the queue's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hmm_backend::limits::{Refusal, Resource};
use parking_lot::{Condvar, Mutex, MutexGuard};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Chain, Malformed};
use super::ram::GuestRam;
use super::registers::{Active, Profile, Registers, TransportEffect};
use super::worker::Worker;
use crate::bell::Bell;
use crate::thread::{self, STOP_WITHIN, Thread};
use crate::{Interrupt, MmioDevice, SlotKind};

/// The result of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// The request is done, and the device has written this many bytes to it.
    Used(u32),
    /// The device keeps the request for now; [`Model::finished`] gives it back.
    Keep,
}

/// The model of a device: its reactions to requests. Called by the device's thread only.
pub trait Model: Send {
    /// Begins to serve a driver that is ready, with the features that it has negotiated.
    fn start(&mut self, _features: u64) {}

    /// Serves a request on a queue. Returns an error if no driver may send it, after which the device does nothing before a
    /// reset; the failure of a proper request is written into the request. Returns after bounded work.
    fn request(&mut self, port: &Port, queue: usize, chain: &Chain) -> Result<Reply, Malformed>;

    /// Returns a request of this queue that was kept and is done now: its head, and the number of bytes written to it.
    fn finished(&mut self, _port: &Port, _queue: usize) -> Option<(u16, u32)> {
        None
    }

    /// Forgets the requests that were kept, because the driver has reset the device.
    fn reset(&mut self, _port: &Port) {}
}

/// The parts of a device.
pub struct Parts {
    /// The name of the device's thread, of at most 15 bytes.
    pub name: String,
    /// The device's description for the driver.
    pub profile: Profile,
    /// The device's reactions to requests.
    pub model: Box<dyn Model>,
    /// The queue whose requests are done when the driver's write to the doorbell register is over, if there is one. Every
    /// doorbell of such a device costs an exit to user space.
    pub immediate: Option<u32>,
}

/// A virtio device could not be made.
#[derive(Debug, thiserror::Error)]
#[error("starting the virtio device {name}: {error}")]
pub struct DeviceError {
    /// The device's name.
    pub name: String,
    /// The system's answer.
    #[source]
    pub error: Refusal,
}

/// A virtio device behind the registers of virtio-mmio.
pub struct VirtioDevice {
    port: Port,
    immediate: Option<u32>,
    thread: Mutex<Option<Thread<()>>>,
}

impl VirtioDevice {
    /// Starts the device's thread.
    pub fn new(
        parts: Parts,
        ram: GuestRam,
        irq: Box<dyn Interrupt>,
    ) -> Result<VirtioDevice, DeviceError> {
        let Parts {
            name,
            profile,
            model,
            immediate,
        } = parts;
        let failed = |resource, error| DeviceError {
            name: name.clone(),
            error: Refusal::new(resource, error),
        };
        let shared = Arc::new(Transport {
            state: Mutex::new(State {
                registers: Registers::new(profile),
                wanted: 0,
                done: 0,
                problem: None,
            }),
            passed: Condvar::new(),
            doorbell: Bell::new().map_err(|error| failed(Resource::Other, error))?,
            attention: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            irq: irq.into(),
        });
        let port = Port {
            shared,
            ram: Arc::new(ram),
        };
        let worker = Worker::new(port.clone(), model, immediate);
        let on_panic = port.shared.irq.on_panic();
        let thread = thread::spawn(&name, on_panic, move || worker.run())
            .map_err(|error| failed(Resource::Thread, error))?;
        Ok(VirtioDevice {
            port,
            immediate,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The state that the device shares with its owner.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Sleeps until the device has looked at its queues once more, or has stopped.
    pub fn settle(&self) {
        let shared = &*self.port.shared;
        shared.wait_for_pass(shared.state.lock());
    }

    /// The driver's mistake, if the device needs a reset because of it.
    pub fn problem(&self) -> Option<String> {
        self.port.shared.state.lock().problem.clone()
    }
}

impl MmioDevice for VirtioDevice {
    fn kind(&self) -> SlotKind {
        SlotKind::Virtio
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.port.shared.state.lock().registers.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let shared = &*self.port.shared;
        let mut state = shared.state.lock();
        let resets = state.registers.resets();
        match state.registers.write(offset, data) {
            TransportEffect::None => {}
            TransportEffect::Notify(queue) if self.immediate == Some(queue) => {
                shared.wait_for_pass(state)
            }
            TransportEffect::Notify(_) => shared.ring(),
            TransportEffect::Start => {
                shared.attention.store(true, Ordering::Release);
                shared.ring();
            }
            TransportEffect::LetGo => {
                if state.registers.resets() != resets {
                    state.problem = None;
                }
                shared.attention.store(true, Ordering::Release);
                shared.wait_for_pass(state);
            }
        }
    }

    fn doorbell(&self) -> Option<(u64, &EventFd)> {
        let ring = (
            u64::from(VIRTIO_MMIO_QUEUE_NOTIFY),
            self.port.shared.doorbell.event(),
        );
        self.immediate.is_none().then_some(ring)
    }

    fn stop(&self) {
        let shared = &*self.port.shared;
        // The lock is held until the thread has ended, so that a second caller returns no earlier.
        let mut thread = self.thread.lock();
        {
            // The lock is held, so that no vCPU goes to sleep after it has seen that the flag is not set.
            let _state = shared.state.lock();
            shared.stop.store(true, Ordering::Release);
            shared.attention.store(true, Ordering::Release);
            shared.passed.notify_all();
        }
        shared.ring();
        if let Some(thread) = thread.take() {
            // A thread that panicked has reported that; there is nothing left to stop.
            let _ = thread.join_within(STOP_WITHIN);
        }
    }
}

impl Drop for VirtioDevice {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the vCPUs' side of a device and its thread share.
struct Transport {
    state: Mutex<State>,
    /// Notified when a pass has ended, and when the device is to stop.
    passed: Condvar,
    doorbell: Bell,
    /// Whether the thread is to leave the queues as they are and begin a new pass.
    attention: AtomicBool,
    stop: AtomicBool,
    irq: Arc<dyn Interrupt>,
}

/// The part under the lock, which is never held while the device works.
struct State {
    registers: Registers,
    /// The number of the last pass that a vCPU waits for.
    wanted: u64,
    /// The number of the last pass that is over.
    done: u64,
    /// The driver's mistake, until it resets the device.
    problem: Option<String>,
}

impl Transport {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn ring(&self) {
        let what = "ringing a virtio device's doorbell (writing an eventfd)";
        self.irq.report_failure(what, self.doorbell.ring());
    }

    /// Sleeps until a pass that begins from now on is over, or the device stops.
    fn wait_for_pass(&self, mut state: MutexGuard<'_, State>) {
        state.wanted += 1;
        let wanted = state.wanted;
        self.ring();
        let waiting = |state: &mut State| state.done < wanted && !self.stopping();
        self.passed.wait_while(&mut state, waiting);
    }
}

/// What the driver has set up when a pass over the queues begins.
pub struct Pass {
    /// The pass's number, for [`Port::end_pass`].
    pub number: u64,
    /// How often the driver has reset the device.
    pub resets: u64,
    /// The driver's set-up; none while the driver is not ready or the device needs a reset.
    pub active: Option<Active>,
}

/// What a device's thread does after a pass.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Begins another pass at once, because there may be more to do.
    Pass,
    /// Waits for the doorbell.
    Doorbell,
}

/// A device's access to the rest of the machine.
#[derive(Clone)]
pub struct Port {
    shared: Arc<Transport>,
    ram: Arc<GuestRam>,
}

impl Port {
    /// The guest's memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Looks at the configuration space.
    pub fn config<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(self.shared.state.lock().registers.config())
    }

    /// Changes the configuration space, and tells the driver if there is one.
    pub fn change_config(&self, change: impl FnOnce(&mut [u8])) {
        let interrupt = self.shared.state.lock().registers.change_config(change);
        if interrupt {
            self.shared.irq.trigger();
        }
    }

    /// Wakes the device's thread, which then asks [`Model::finished`] for requests that are done.
    pub fn wake(&self) {
        self.shared.ring();
    }

    /// Whether the device is to drop what it is doing: it is being reset or stopped.
    pub fn interrupted(&self) -> bool {
        self.shared.attention.load(Ordering::Acquire)
    }

    /// Begins a pass over the queues; none if the device is to stop.
    pub(super) fn begin_pass(&self) -> Option<Pass> {
        let state = self.shared.state.lock();
        if self.shared.stopping() {
            return None;
        }
        // Whatever changes from here on sets it again.
        self.shared.attention.store(false, Ordering::Release);
        Some(Pass {
            number: state.wanted,
            resets: state.registers.resets(),
            active: state.registers.active(),
        })
    }

    /// Wakes the vCPUs that wait for the pass. Then, if the doorbell is next, sleeps until it rings.
    pub(super) fn end_pass(&self, number: u64, next: Next) {
        let shared = &self.shared;
        shared.state.lock().done = number;
        shared.passed.notify_all();
        if next == Next::Doorbell && !self.interrupted() {
            let what = "waiting for a virtio device's doorbell (reading an eventfd)";
            shared.irq.report_failure(what, shared.doorbell.wait());
        }
    }

    /// Interrupts the driver because a request is done, unless it has reset the device since.
    pub(super) fn used(&self, resets: u64) {
        let mut state = self.shared.state.lock();
        if state.registers.resets() == resets {
            state.registers.used();
            drop(state);
            // The interrupt is triggered even if the driver has not acknowledged the last one: the line has edges only.
            self.shared.irq.trigger();
        }
    }

    /// Stops work until the driver resets the device, unless it has done so since it made this mistake.
    pub(super) fn fail(&self, resets: u64, problem: &Malformed) {
        let mut state = self.shared.state.lock();
        if state.registers.resets() == resets {
            state.problem = Some(problem.to_string());
            if state.registers.needs_reset() {
                drop(state);
                self.shared.irq.trigger();
            }
        }
    }
}
