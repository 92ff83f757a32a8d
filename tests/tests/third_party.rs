//! Devices of others: the example does what it says and keeps the contract; windows, errors, and the end.

#[path = "../examples/third_party/main.rs"]
#[allow(dead_code, reason = "its main function")]
mod example;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use hmm_backend::{Backend, BackendConfig};
use hmmvisor::End;
use hmmvisor::vm::{DeviceConfig, Managed, Vm, VmConfig, VmError};
use hmmvisor_abi::map;
use hmmvisor_devices::{MmioDevice, NewDevice};
use hmmvisor_testkit::conformance::{self, Subject};
use hmmvisor_testkit::machine::guest;
use hmmvisor_testkit::{Asm, Reg};

#[test]
fn a_third_party_accelerator_sums_in_a_virtual_machine() {
    let _watchdog = hmmvisor_testkit::Watchdog::new("the example", 60);
    let mut out = Vec::new();
    example::run(&mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("the device's sum is right"), "{text}");
    assert!(text.contains("of 16 pages"), "{text}");
    assert!(!text.contains("to the device: 0,"), "{text}");
}

struct Books(Arc<example::SumDriver>);

impl Subject for Books {
    fn driver(&self) -> Arc<dyn hmm_backend::driver::Driver> {
        self.0.clone()
    }
    fn live(&self) -> Option<usize> {
        Some(self.0.live.load(SeqCst) as usize)
    }
}

#[test]
fn its_driver_keeps_the_contract() {
    conformance::run_subject(|| Books(Arc::default())).assert_passed();
}

/// Registers that read as their offset, and a note of being stopped.
#[derive(Default)]
struct Echo(AtomicBool);

impl MmioDevice for Echo {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data[0] = offset as u8;
    }
    fn write(&self, _: u64, _: &[u8]) {}
    fn stop(&self) {
        self.0.store(true, SeqCst);
    }
}

fn echo(device: &Arc<Echo>) -> NewDevice {
    let device = device.clone();
    Box::new(move |_| Ok(device))
}

/// A machine with one accelerator and these devices behind it, whose guest exits with what the word in window 1 at
/// offset 0x28 says.
fn machine(foreign: Vec<NewDevice>) -> Result<Vm, VmError> {
    let code = Asm::new()
        .set(Reg::Rbx, map::ACCEL + map::ACCEL_STRIDE + 0x28)
        .load(Reg::Rdx, Reg::Rbx)
        .exit(Reg::Rdx);
    let backend = Backend::new(BackendConfig::new(2 << 20)).unwrap();
    Vm::new(VmConfig {
        managed: Some(Managed {
            devices: vec![DeviceConfig {
                fidelity: hmm_backend::pages::Fidelity::default(),
                coherent: false,
                memory: 1 << 20,
                memory_max: 1 << 20,
                cpu: None,
            }],
            foreign,
            ..Managed::new(backend)
        }),
        ..VmConfig::new(&guest(code).unwrap())
    })
}

#[test]
fn foreign_devices_are_behind_the_accelerators() {
    let device = Arc::new(Echo::default());
    let mut vm = machine(vec![echo(&device)]).unwrap();
    vm.start().unwrap();
    let end = vm.ending().wait(Duration::from_secs(60)).cloned();
    assert_eq!(end, Some(End::Exit(0x28)));
    assert!(!device.0.load(SeqCst));
    drop(vm);
    assert!(device.0.load(SeqCst), "the device was not stopped");
}

#[test]
fn a_device_that_cannot_be_made_is_an_error_and_stops_the_others() {
    let device = Arc::new(Echo::default());
    let broken: NewDevice = Box::new(|_| Err("no such hardware".into()));
    let error = machine(vec![echo(&device), broken]).err().unwrap();
    assert_eq!(
        error.to_string(),
        "making the device in window 2: no such hardware"
    );
    assert!(device.0.load(SeqCst), "the other device was not stopped");
}

#[test]
fn more_devices_than_windows_are_refused() {
    let device = Arc::new(Echo::default());
    let error = machine((0..16).map(|_| echo(&device)).collect())
        .err()
        .unwrap();
    assert_eq!(error.to_string(), "17 devices: there are windows for 16");
}
