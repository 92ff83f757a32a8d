//! A thread that panics ends the run, with an error that names it: no guest waits for it for ever. And what is left can be
//! stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hmm_backend::driver::{
    DeviceFolio, Driver, FaultError, Finalized, MigrateError, ToDevice, ToSystem,
};
use hmm_backend::{Backend, BackendConfig};
use hmmvisor::End;
use hmmvisor::guest::program::Program;
use hmmvisor::vm::{DeviceConfig, Hooks, Managed, Vm, VmConfig};
use hmmvisor_abi::map;
use hmmvisor_devices::virtio::{
    Chain, GuestRam, Malformed, Model, Parts, Port, Profile, Reply, VirtioDevice,
};
use hmmvisor_devices::{NewDevice, Slot};
use hmmvisor_testkit::machine::guest;
use hmmvisor_testkit::{Asm, Reg, Watchdog};

/// Longer than any of this takes, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);
/// Stopping a machine with a thread missing takes milliseconds; this is less than any of its bounds added up.
const SOON: Duration = Duration::from_secs(20);

/// Waits for the end, which must name a thread, and stops the machine.
fn expect_panic_of(mut vm: Vm, thread: &str) {
    let _watchdog = Watchdog::new(thread, 100);
    vm.start().unwrap();
    let end = vm.ending().wait(PATIENCE).cloned();
    let Some(End::Failed(failure)) = end else {
        panic!("{thread} panicked, and the run ended so: {end:?}");
    };
    let said = failure.to_string();
    assert!(said.contains(thread) && said.contains("panicked"), "{said}");
    let begin = Instant::now();
    vm.stop();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
}

/// The call in which a driver panics.
#[derive(Clone, Copy, PartialEq)]
enum At {
    ToDevice,
    ToRam,
}

struct Panics {
    inner: Arc<dyn Driver>,
    at: At,
}

impl Panics {
    fn reached(&self, at: At) {
        assert!(self.at != at, "on purpose");
    }
}

impl Driver for Panics {
    fn migrate_to_device(&self, migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        self.reached(At::ToDevice);
        self.inner.migrate_to_device(migration)
    }
    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        self.reached(At::ToRam);
        self.inner.migrate_to_ram(migration)
    }
    fn page_free(&self, folio: DeviceFolio) {
        self.inner.page_free(folio);
    }
    fn folio_split(&self, folio: DeviceFolio) -> u64 {
        self.inner.folio_split(folio)
    }
}

/// A machine whose accelerator has a driver that panics.
fn with_driver(at: At) -> Vm {
    let backend = Backend::new(BackendConfig::new(64 << 20)).unwrap();
    let cmdline = hmmvisor_guest_images::find("pingpong").unwrap();
    let cmdline = cmdline.cmdline(&[]).unwrap();
    Vm::new(VmConfig {
        managed: Some(Managed {
            devices: vec![DeviceConfig {
                fidelity: hmm_backend::pages::Fidelity::default(),
                coherent: false,
                memory: 1 << 20,
                memory_max: 1 << 20,
                cpu: None,
            }],
            ..Managed::new(backend)
        }),
        guest: Box::new(Program::new(hmmvisor_guest_images::IMAGE, &cmdline, 1)),
        hooks: Hooks {
            driver: Some(Box::new(move |_, inner| Arc::new(Panics { inner, at }))),
            ..Hooks::default()
        },
        ..VmConfig::new(&[])
    })
    .unwrap()
}

#[test]
fn an_accelerator_s_thread() {
    expect_panic_of(with_driver(At::ToDevice), "accelerator0");
}

#[test]
fn a_fault_service_thread() {
    expect_panic_of(with_driver(At::ToRam), "service");
}

/// Panics when it is reset.
struct Fragile;

impl Model for Fragile {
    fn request(&mut self, _: &Port, _: usize, _: &Chain) -> Result<Reply, Malformed> {
        Ok(Reply::Used(0))
    }
    fn reset(&mut self, _: &Port) {
        panic!("on purpose");
    }
}

#[test]
fn a_virtio_device_s_thread() {
    let fragile: NewDevice = Box::new(|slot: Slot<'_>| {
        let parts = Parts {
            name: "fragile".to_owned(),
            profile: Profile {
                id: 4,
                features: 0,
                queues: vec![16],
                config: Vec::new(),
                writable: Vec::new(),
            },
            model: Box::new(Fragile),
            immediate: None,
        };
        let ram = GuestRam::managed(slot.backend, slot.managed_base);
        Ok(Arc::new(VirtioDevice::new(parts, ram, slot.irq)?))
    });
    // The status register of virtio-mmio: a reset, in whose write the vCPU waits for the device.
    const STATUS: u64 = map::ACCEL + 0x70;
    let code = Asm::new()
        .set(Reg::Rbx, STATUS)
        .set(Reg::Rdx, 0)
        // mov [rbx], edx
        .raw(&[0x89, 0x13]);
    let code = guest(code.exit(Reg::Rdx)).unwrap();
    let backend = Backend::new(BackendConfig::new(2 << 20)).unwrap();
    let vm = Vm::new(VmConfig {
        managed: Some(Managed {
            foreign: vec![fragile],
            ..Managed::new(backend)
        }),
        ..VmConfig::new(&code)
    });
    expect_panic_of(vm.unwrap(), "fragile");
}

/// A device in which a vCPU's thread panics.
struct Trap;

impl hmmvisor::machine::bus::Device for Trap {
    fn read(&self, _: u64, _: &mut [u8]) {
        panic!("on purpose");
    }
    fn write(&self, _: u64, _: &[u8]) -> hmmvisor::machine::bus::Next {
        hmmvisor::machine::bus::Next::Continue
    }
}

#[test]
fn a_vcpu_s_thread() {
    const TRAP: u64 = map::ACCEL + 0x10_0000;
    let code = Asm::new().set(Reg::Rbx, TRAP).load(Reg::Rdx, Reg::Rbx);
    let code = guest(code.exit(Reg::Rdx)).unwrap();
    let vm = Vm::new(VmConfig {
        hooks: Hooks {
            devices: vec![(TRAP..TRAP + 0x1000, Arc::new(Trap))],
            ..Hooks::default()
        },
        ..VmConfig::new(&code)
    });
    expect_panic_of(vm.unwrap(), "vcpu0");
}

/// Output that panics.
struct Broken;

impl std::io::Write for Broken {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        panic!("on purpose");
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_output_s_thread() {
    // Writes a line, then waits for ever.
    let code = Asm::new()
        .set(Reg::Rbx, map::SERIAL)
        // mov byte [rbx], '\n'
        .raw(&[0xc6, 0x03, b'\n']);
    let here = code.here();
    let code = guest(code.jump_to(here)).unwrap();
    let vm = Vm::new(VmConfig {
        console: Box::new(Broken),
        ..VmConfig::new(&code)
    });
    expect_panic_of(vm.unwrap(), "output");
}
