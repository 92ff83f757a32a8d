//! Virtual machines whose backend is at hand while they run.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::pages::{DeviceId, PAGE_SIZE, Page};
use hmm_backend::policy::PolicySpec;
use hmm_backend::residency::{Placed, Residency};
use hmm_backend::{Backend, BackendConfig};
use hmmvisor::guest::program::Program;
use hmmvisor::vm::{DeviceConfig, Hooks, Managed, Vm, VmConfig};
use hmmvisor::{End, OnMemoryError};

use hmmvisor_abi::map;
use parking_lot::Mutex;

pub use crate::place::address;
use crate::{Asm, CheckedDriver, ENGINES, Random, Segment, Watchdog, elf, pages};

/// Pages that `torture` with its default of 256 shared ones uses, and a few more.
pub const TORTURE_PAGES: u32 = 320;

/// Runs a test with both engines (see [`ENGINES`]), each for at most a minute.
pub fn both_engines(what: &str, test: impl Fn(Engine)) {
    for engine in ENGINES {
        let _watchdog = Watchdog::new(&format!("{what} ({engine})"), 60);
        test(engine);
    }
}

/// Runs a test with both engines (see [`ENGINES`]), each for at most two minutes. An error is the test's result.
pub fn each_engine<E>(test: impl Fn(Engine) -> Result<(), E>) -> Result<(), E> {
    for engine in ENGINES {
        let thread = std::thread::current();
        let what = thread.name().unwrap_or("a test");
        let _watchdog = Watchdog::new(&format!("{what} ({engine})"), 120);
        test(engine)?;
    }
    Ok(())
}

/// A guest file with this code in the image area, and a megabyte to use.
pub fn guest(code: Asm) -> Option<Vec<u8>> {
    let image = Segment {
        size: 1 << 20,
        ..Segment::new(map::IMAGE_BASE, code.bytes())
    };
    Some(elf(map::IMAGE_BASE, &[image]))
}

/// The output of a guest on its serial port.
#[derive(Clone, Default, Debug)]
pub struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    /// All of it so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The configuration of a [`Machine`]; the default is the embedded guest on a small machine.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How pages migrate.
    pub engine: Engine,
    /// The policy.
    pub policy: &'static str,
    /// Pages of managed memory.
    pub pages: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Number of accelerators.
    pub devices: u32,
    /// Pages of each accelerator's memory.
    pub device_pages: u32,
    /// Number of fault service threads.
    pub service_threads: usize,
    /// The effect of a vCPU's access to a page that cannot be supplied.
    pub on_memory_error: OnMemoryError,
    /// The guest's ELF file; none for the embedded guest.
    pub guest: Option<Vec<u8>>,
    /// Workload and parameters of the embedded guest, such as `torture ops=100`.
    pub workload: String,
    /// The run's seed.
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            engine: ENGINES[0],
            policy: "density+timeslice:min=0us",
            pages: 4096,
            vcpus: 2,
            devices: 1,
            device_pages: 128,
            service_threads: 2,
            on_memory_error: OnMemoryError::default(),
            guest: None,
            workload: "torture".into(),
            seed: 1,
        }
    }
}

impl Setup {
    fn cmdline(&self) -> String {
        if self.guest.is_some() {
            return String::new();
        }
        let mut words = self.workload.split(' ');
        let workload = hmmvisor_guest_images::find(words.next().unwrap_or_default());
        let params: Vec<_> = words
            .map(|word| word.split_once('=').expect("parameters are name=value"))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let line = workload.and_then(|workload| workload.cmdline(&params));
        line.expect("the test names a workload that there is")
    }

    /// Makes the machine; its vCPUs do not run yet.
    pub fn build(&self) -> Machine {
        let mut config = BackendConfig::new(u64::from(self.pages) * PAGE_SIZE);
        config.engine = EngineChoice::Only(self.engine);
        config.policy = Arc::new(self.policy.parse::<PolicySpec>().expect("a known policy"));
        let backend = Backend::new(config).expect("managed memory");
        let device = DeviceConfig {
            fidelity: hmm_backend::pages::Fidelity::default(),
            coherent: false,
            memory: u64::from(self.device_pages) * PAGE_SIZE,
            memory_max: u64::from(self.device_pages) * PAGE_SIZE,
            cpu: None,
        };
        let output = Output::default();
        let image = self.guest.as_deref();
        let vm = Vm::new(VmConfig {
            vcpus: self.vcpus,
            vcpu_cpus: Vec::new(),
            managed: Some(Managed {
                backend: backend.clone(),
                service: vec![None; self.service_threads],
                devices: vec![device; self.devices as usize],
                on_memory_error: self.on_memory_error,
                foreign: Vec::new(),
            }),
            guest: Box::new(Program::new(
                image.unwrap_or(hmmvisor_guest_images::IMAGE),
                self.cmdline(),
                self.seed,
            )),
            console: Box::new(output.clone()),
            hooks: Hooks::default(),
        });
        Machine {
            vm: vm.expect("a virtual machine"),
            backend,
            output,
        }
    }

    /// Makes the machine and starts it.
    pub fn start(&self) -> Machine {
        let mut machine = self.build();
        machine.vm.start().expect("vCPU threads");
        machine
    }
}

/// A machine under test. Dropping it stops it.
pub struct Machine {
    /// The machine.
    pub vm: Vm,
    /// Its memory.
    pub backend: Arc<Backend>,
    /// The guest's output so far.
    pub output: Output,
}

impl Machine {
    /// Whether the guest has not ended yet.
    pub fn runs(&self) -> bool {
        self.vm.ending().get().is_none()
    }

    /// Waits for the run's end and stops everything. Panics after a minute.
    pub fn finish(&mut self) -> End {
        let mut event = libc::pollfd {
            fd: self.vm.ending().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid structure, as the count says.
        while unsafe { libc::poll(&mut event, 1, 60_000) } < 0 {}
        let end = self.vm.ending().get().cloned();
        self.vm.stop();
        end.unwrap_or_else(|| panic!("the guest does not end; it says: {}", self.output.text()))
    }

    /// Waits for the run's end; it must be a verified one.
    pub fn expect_verified(&mut self) {
        let end = self.finish();
        assert_eq!(end, End::Exit(0), "the guest says: {}", self.output.text());
    }

    /// Adds a device that the guest does not use.
    pub fn attach(&self, device_pages: u32) -> (DeviceId, Arc<CheckedDriver>) {
        let driver = Arc::new(CheckedDriver::default());
        let memory = u64::from(device_pages) * PAGE_SIZE;
        let id = self
            .backend
            .attach(memory, driver.clone())
            .expect("a device");
        (id, driver)
    }

    /// A word of managed memory, as the VMM reaches it; not on a stopped machine, where faults are not served.
    pub fn word(&self, page: u32, index: usize) -> &AtomicU64 {
        word(&self.backend, page, index)
    }

    /// Moves random pieces of the first `within` pages to this device until the guest ends. Returns how many pages
    /// moved.
    pub fn disturb(&self, device: DeviceId, within: u32, random: &mut Random) -> u64 {
        let mut moved = 0;
        while self.runs() {
            let start = random.below(within.into()) as u32;
            let end = within.min(start + 1 + random.below(64) as u32);
            let range = pages(start..end);
            let there = self.backend.migrate_to_device(device, range);
            moved += there.expect("the device is attached");
            if random.below(8) == 0 {
                let back = self.backend.migrate_to_system(range);
                back.expect("the range is in managed memory");
            }
        }
        moved
    }

    /// Pages that are in this device's memory at the moment.
    pub fn on_device(&self, id: DeviceId) -> u32 {
        let is_there = |page: &u32| {
            let word = self.backend.word(Page(*page)).expect("a managed page");
            matches!(word.residency(), Residency::Device(Placed { device, .. }) if device == id)
        };
        (0..self.backend.pages()).filter(is_there).count() as u32
    }
}

/// A word of managed memory by plain host address: accesses fault like a vCPU's.
pub fn word(backend: &Backend, page: u32, index: usize) -> &AtomicU64 {
    assert!(page < backend.pages() && index < 512);
    let offset = u64::from(page) * PAGE_SIZE + index as u64 * 8;
    let (base, _) = backend.host_memory();
    // SAFETY: inside managed memory, which is mapped as long as the backend that is borrowed here, and aligned; all
    // that guests, devices and tests do to it is beyond the compiler's sight or atomic.
    unsafe { AtomicU64::from_ptr(base.add(offset as usize).cast()) }
}
