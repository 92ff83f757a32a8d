//! Guests of a few bytes of machine code, and what became of them.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hmmvisor::End;
use hmmvisor::guest::program::Program;
use hmmvisor::vm::{Hooks, Vm, VmConfig};
use hmmvisor_abi::map;

/// Longer than any of these guests takes, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);

/// An ELF file with this code at the image base, followed by zeros.
pub fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    // Identification, then type, machine, version.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    // Entry, program headers' and section headers' offsets.
    file.extend(
        [map::IMAGE_BASE, 64, 0]
            .iter()
            .flat_map(|n: &u64| n.to_le_bytes()),
    );
    // Flags; sizes and numbers of headers.
    file.extend([0u8; 4]);
    file.extend([64u16, 56, 1, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
    // Type, flags; offset, addresses, sizes, alignment.
    file.extend([1u32, 7].iter().flat_map(|n| n.to_le_bytes()));
    let (start, size) = (map::IMAGE_BASE, code.len() as u64);
    file.extend(
        [120, start, start, size, 1 << 20, 4096]
            .iter()
            .flat_map(|n: &u64| n.to_le_bytes()),
    );
    file.extend(code);
    file
}

/// Serial output, to be looked at later.
#[derive(Clone, Default)]
pub struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    /// All of it so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A machine without managed memory that has this code as its guest, not yet started.
pub fn machine(code: &[u8], vcpus: u32, output: &Output) -> Vm {
    Vm::new(VmConfig {
        vcpus,
        vcpu_cpus: Vec::new(),
        managed: None,
        guest: Box::new(Program::new(elf(code), "answer=42", 0x5eed)),
        console: Box::new(output.clone()),
        hooks: Hooks::default(),
    })
    .unwrap()
}

/// Waits for a machine's end.
pub fn wait(vm: &Vm) -> End {
    let end = vm.ending().wait(PATIENCE);
    end.expect("the guest does not end").clone()
}

/// Waits for something that nothing but a look can tell.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "never came: {what}");
        std::thread::yield_now();
    }
}

/// Runs this code to its end.
pub fn run(code: &[u8], vcpus: u32) -> (End, String) {
    let output = Output::default();
    let mut vm = machine(code, vcpus, &output);
    vm.start().unwrap();
    let end = wait(&vm);
    vm.stop();
    (end, output.text())
}

/// `mov eax, CONTROL`, with which most guests begin.
pub const MOV_EAX_CONTROL: [u8; 5] = [0xb8, 0x00, 0x00, 0x00, 0xd0];

/// Machine code from parts.
pub fn code(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}
