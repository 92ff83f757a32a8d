//! An accelerator of your own (all of it is in `summer.rs`), in a virtual machine, with a guest of a
//! few instructions: fill 32 pages, let the device sum them, wait for its interrupt, check the sum and the pages.
//!
//!     cargo run -p hmmvisor-testkit --example third_party

mod summer;

use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use hmm_backend::pages::PAGE_SIZE;
use hmm_backend::{Backend, BackendConfig};
use hmmvisor::End;
use hmmvisor::vm::{Managed, Vm, VmConfig};
use hmmvisor_abi::map;
use hmmvisor_devices::{NewDevice, Slot};
use hmmvisor_testkit::{Asm, Reg::*, machine::guest};

pub use summer::{SumDriver, Summer};

/// Words the guest has summed: the numbers from this one down to 1.
const WORDS: u64 = 32 * PAGE_SIZE / 8;
/// Pages of device memory: not enough for all of them at once.
const DEVICE_PAGES: u64 = 16;

/// The guest. It exits with 0 if all is right.
fn code() -> Asm {
    // The device has window 0 and interrupt line 0: it is the only one.
    let counter = map::irq_counter(0, 0);
    let filling = Asm::new().set(Rdi, map::MANAGED).set(Rcx, WORDS);
    let next = filling.here();
    let started = filling
        .store(Rdi, Rcx)
        .add_value(Rdi, 8)
        .repeat(Rcx, next)
        // The registers, one after the other: ADDRESS, COUNT, START with the vCPU to interrupt.
        .set(Rbx, map::ACCEL)
        .set(Rdx, map::MANAGED)
        .store(Rbx, Rdx)
        .add_value(Rbx, 8)
        .set(Rdx, WORDS)
        .store(Rbx, Rdx)
        .add_value(Rbx, 8)
        .set(Rdx, 0)
        .store(Rbx, Rdx)
        .set(Rcx, counter);
    let wait = started.here();
    let sum = (WORDS * (WORDS + 1) / 2) as i32;
    started
        .load(Rdx, Rcx)
        .compare(Rdx, 1)
        .jump_unless_equal(wait)
        // SUM, less what it should be; FAILED; and the first word, less what it should be.
        .add_value(Rbx, 8)
        .load(Rdx, Rbx)
        .add_value(Rdx, -sum)
        .add_value(Rbx, 8)
        .or_load(Rdx, Rbx)
        .set(Rdi, map::MANAGED)
        .load(Rcx, Rdi)
        .add_value(Rcx, -(WORDS as i32))
        .add(Rdx, Rcx)
        .exit(Rdx)
}

/// The example; what happens is written to `out`.
pub fn run(out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let backend = Backend::new(BackendConfig::new(2 << 20))?;
    let driver = Arc::new(SumDriver::default());
    let its = driver.clone();
    let new: NewDevice = Box::new(move |slot: Slot<'_>| {
        let device = Summer::new(slot, DEVICE_PAGES * PAGE_SIZE, its)?;
        Ok(Arc::new(device))
    });
    let image = guest(code()).expect("an image");
    let mut vm = Vm::new(VmConfig {
        managed: Some(Managed {
            foreign: vec![new],
            ..Managed::new(backend.clone())
        }),
        ..VmConfig::new(&image)
    })?;
    vm.start()?;
    let end = vm.ending().wait(Duration::from_secs(60)).cloned();
    vm.stop();
    match end {
        Some(End::Exit(0)) => writeln!(out, "the guest says: the device's sum is right")?,
        other => return Err(format!("the guest ended with {other:?}").into()),
    }
    let stats = backend.stats();
    writeln!(
        out,
        "device faults: {}; pages to the device: {}, back: {}; peak of device memory: {} of {} pages",
        stats.device_faults,
        stats.pages_to_device(),
        stats.pages_to_system(),
        stats.device_pages_peak,
        DEVICE_PAGES,
    )?;
    writeln!(
        out,
        "page_free calls: {}; folios still on the device: {}",
        stats.page_free_calls,
        driver.live.load(SeqCst)
    )?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout())
}
