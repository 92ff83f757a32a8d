//! Builds a [`TestVm`].

use std::sync::Arc;
use std::time::Duration;

use hmm_backend::driver::Driver;
use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::pages::{BLOCK_PAGES, PAGE_SIZE};
use hmm_backend::testing::KernelAnswers;
use hmm_backend::{Backend, BackendConfig};
use hmmvisor::OnMemoryError;
use hmmvisor::guest::program::Program;
use hmmvisor::vm::{DeviceConfig, Hooks, Managed, Vm, VmConfig};
use hmmvisor_abi::agent;
use hmmvisor_policies::{Limits, PolicyChoice};
use parking_lot::Mutex;

use crate::device::{Kind, Slot};
use crate::doorbell::{Doorbell, Mailboxes};
use crate::inject::{Injected, Injector};
use crate::vcpu::Desk;
use crate::{CheckedDriver, Output, TestVm};

/// Events kept for each thread until the test drains them.
const EVENTS: usize = 4096;

enum DeviceKind {
    Accelerator,
    Scripted,
    Coherent,
    Driver(Arc<dyn Driver>),
}

/// The configuration of a [`TestVm`].
pub struct Builder {
    engine: Engine,
    policy: String,
    vcpus: u32,
    pages: u32,
    shared: u32,
    kernel: Option<Arc<dyn KernelAnswers>>,
    devices: Vec<(DeviceKind, u32)>,
    patience: Duration,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            engine: crate::ENGINES[0],
            policy: "on-demand+timeslice:min=0".into(),
            vcpus: 2,
            pages: BLOCK_PAGES as u32,
            shared: 0,
            kernel: None,
            devices: Vec::new(),
            patience: crate::patient(Duration::from_secs(30)),
        }
    }
}

impl Builder {
    /// How pages migrate; *remap* if not said.
    pub fn engine(mut self, engine: Engine) -> Builder {
        self.engine = engine;
        self
    }

    /// What migrates when, as on the command line of `hmmvisor`: built-in policies, or a script's file. If not said, only
    /// what is touched, so that a test knows where each page is: `on-demand+timeslice:min=0`.
    pub fn policy(mut self, policy: &str) -> Builder {
        self.policy = policy.into();
        self
    }

    /// Number of vCPUs, at most 64; 2 if not said.
    pub fn vcpus(mut self, vcpus: u32) -> Builder {
        self.vcpus = vcpus;
        self
    }

    /// Pages of managed memory, rounded up to a multiple of 512, which it is if not said.
    pub fn pages(mut self, pages: u32) -> Builder {
        self.pages = pages;
        self
    }

    /// Shared memory behind the others ([`BackendConfig::shared`]), which devices reach in place and which never moves: so
    /// many pages, rounded up to a multiple of 512; none if not said. [`TestVm::shared`] are its pages.
    pub fn shared(mut self, pages: u32) -> Builder {
        self.shared = pages;
        self
    }

    /// What the kernel is made to answer when pages are filled and moved; only the truth if not said.
    pub fn kernel(mut self, answers: Arc<dyn KernelAnswers>) -> Builder {
        self.kernel = Some(answers);
        self
    }

    /// One more device: a real accelerator with this many pages of memory.
    pub fn accelerator(self, pages: u32) -> Builder {
        self.device(DeviceKind::Accelerator, pages)
    }

    /// One more device, with this many pages of memory: a [`CheckedDriver`], which only migrates and checks that the
    /// backend keeps to the contract.
    pub fn scripted(self, pages: u32) -> Builder {
        self.device(DeviceKind::Scripted, pages)
    }

    /// One more device, with this many pages of coherent memory ([`Backend::attach_coherent`]): otherwise like
    /// [`Self::scripted`].
    pub fn coherent(self, pages: u32) -> Builder {
        self.device(DeviceKind::Coherent, pages)
    }

    /// One more device, with this many pages of memory: a driver of your own.
    pub fn driver(self, pages: u32, driver: Arc<dyn Driver>) -> Builder {
        self.device(DeviceKind::Driver(driver), pages)
    }

    fn device(mut self, kind: DeviceKind, pages: u32) -> Builder {
        self.devices.push((kind, pages));
        self
    }

    /// How long anything that the test waits for may take, a decision of a policy's script too; 30 s if not said. Only
    /// tests that fail wait so long.
    pub fn patience(mut self, patience: Duration) -> Builder {
        self.patience = patience;
        self
    }

    /// Makes the machine and starts it. Panics if it cannot, saying why.
    pub fn start(self) -> TestVm {
        let injectors: Vec<Arc<Injector>> = self.devices.iter().map(|_| Arc::default()).collect();
        let is_accelerator = |kind: &DeviceKind| matches!(kind, DeviceKind::Accelerator);
        let accelerators = |(index, (kind, pages)): (usize, &(DeviceKind, u32))| {
            is_accelerator(kind).then_some((index, *pages))
        };
        let accelerators: Vec<(usize, u32)> = self
            .devices
            .iter()
            .enumerate()
            .filter_map(accelerators)
            .collect();

        let blocks = u64::from(self.pages.max(1)).div_ceil(BLOCK_PAGES);
        let shared = u64::from(self.shared).next_multiple_of(BLOCK_PAGES);
        let bytes = (blocks * BLOCK_PAGES + shared) * PAGE_SIZE;
        let reserved = if accelerators.is_empty() {
            0
        } else {
            agent::RESERVED
        };
        let mut config = BackendConfig::new(bytes + reserved);
        config.engine = EngineChoice::Only(self.engine);
        let policy: PolicyChoice = self.policy.parse().expect("a known policy");
        let log = Arc::new(|line: &str| eprintln!("policy script {line}"));
        // How fast the machine is must not decide what a script decides; its steps are bounded as everywhere.
        let limits = Limits {
            time: self.patience,
            loading: self.patience,
            ..Limits::DEFAULT
        };
        let policy = policy.load(limits, log).expect("a good script");
        config.policy = policy.factory;
        config.events = EVENTS;
        config.kernel = self.kernel;
        if shared > 0 {
            // The queues are at the end in any case.
            config.shared = shared * PAGE_SIZE + reserved;
        }
        let backend = Backend::new(config).expect("managed memory");

        let doorbell = Arc::new(Doorbell::new(backend.clone()));
        let wrapped: Vec<Arc<Injector>> = accelerators
            .iter()
            .map(|(index, _)| injectors[*index].clone())
            .collect();
        let wrap = move |index: u32, own| -> Arc<dyn Driver> {
            Arc::new(Injected::new(own, wrapped[index as usize].clone()))
        };
        let output = Output::default();
        let device = |(_, pages): &(usize, u32)| DeviceConfig {
            fidelity: hmm_backend::pages::Fidelity::default(),
            coherent: false,
            memory: u64::from(*pages) * PAGE_SIZE,
            memory_max: u64::from(*pages) * PAGE_SIZE,
            cpu: None,
        };
        let config = VmConfig {
            vcpus: self.vcpus,
            vcpu_cpus: Vec::new(),
            managed: Some(Managed {
                backend: backend.clone(),
                // A driver that waits at a gate keeps the thread that called it.
                service: vec![None; self.vcpus as usize + 2],
                devices: accelerators.iter().map(device).collect(),
                foreign: Vec::new(),
                on_memory_error: OnMemoryError::MachineCheck,
            }),
            guest: Box::new(Program::new(
                hmmvisor_guest_images::IMAGE,
                "workload=agent",
                1,
            )),
            console: Box::new(output.clone()),
            hooks: Hooks {
                devices: vec![(
                    agent::WINDOW..agent::WINDOW + agent::WINDOW_SIZE,
                    doorbell.clone(),
                )],
                driver: Some(Box::new(wrap)),
            },
        };
        let mut vm = Vm::new(config).expect("a virtual machine");
        doorbell.set_mailboxes(Mailboxes::new(vm.machine().ram(), self.vcpus));

        let mut real = (0..).zip(vm.accelerators());
        let mut devices = Vec::new();
        for ((kind, pages), injector) in self.devices.into_iter().zip(injectors) {
            let coherent = matches!(kind, DeviceKind::Coherent);
            let attach = |inner: Arc<dyn Driver>| {
                let driver = Arc::new(Injected::new(inner, injector.clone()));
                let memory = u64::from(pages) * PAGE_SIZE;
                let attached = match coherent {
                    true => backend.attach_coherent(memory, driver),
                    false => backend.attach(memory, driver),
                };
                attached.expect("a device")
            };
            let (id, kind) = match kind {
                DeviceKind::Accelerator => {
                    let (index, accelerator) = real.next().expect("one for each");
                    let kind = Kind::Accelerator(index, accelerator.clone());
                    (accelerator.device_id(), kind)
                }
                DeviceKind::Scripted | DeviceKind::Coherent => {
                    let driver = Arc::new(CheckedDriver::default());
                    (attach(driver.clone()), Kind::Scripted(driver))
                }
                DeviceKind::Driver(driver) => (attach(driver), Kind::Driver),
            };
            devices.push(Slot {
                id,
                injector,
                kind,
                mirror: Arc::default(),
            });
        }
        vm.start().expect("vCPU threads");
        let vm = TestVm {
            ending: vm.ending().clone(),
            vm: Mutex::new(vm),
            backend,
            scripts: policy.scripts,
            doorbell,
            desks: (0..self.vcpus).map(|_| Desk::default()).collect(),
            devices,
            pages: (blocks * BLOCK_PAGES + shared) as u32,
            shared: shared as u32,
            output,
            events: Mutex::default(),
            patience: Mutex::new(self.patience),
        };
        let ready = || vm.doorbell.all_ready(self.vcpus, TestVm::LOOK_AGAIN);
        vm.wait_until("the guest's first sign of life", || {
            ready() || vm.ended().is_some()
        });
        assert!(vm.ended().is_none(), "the guest does not start\n{vm:?}");
        vm
    }
}
