//! Measures whether this host runs a guest's kernel mode natively or emulates every instruction, with a guest of four instructions
//! in ring 0.
//!
//! Some hosts, for example virtual machines without nested hardware virtualization, have a KVM that runs ring 3 natively and
//! emulates ring 0. Small guests work in ring 3 and run there all the same; operating systems do not boot.

use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VcpuFd};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::guest::linux::{Loaded, Protocol, entry};
use crate::machine::kvm::{self, KvmError};

/// Instructions per second above which ring 0 runs natively. Emulation does about a million instructions a second, processors
/// several hundred million, and processors that are emulated themselves (as in the project's own tests) some ten million.
pub const NATIVE: f64 = 10e6;

/// Memory for the guest and its page tables.
const MEMORY: usize = 1 << 20;
const CODE: u64 = 0x2_0000;
/// `dec ecx; jnz -4; out 0x80, al; hlt`
const LOOP: [u8; 7] = [0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x80, 0xf4];
/// Instructions in each turn of the loop.
const PER_TURN: f64 = 2.0;
/// Turns of the first try.
const FIRST_TURNS: u32 = 1000;
/// A try that takes this long is long enough: an interruption of some milliseconds does not matter.
const LONG_ENOUGH: Duration = Duration::from_millis(50);
/// Far longer than a try takes: interruptions that go on this long are not caused by signals.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the measurement failed.
#[derive(Debug, Error)]
pub enum MeasureError {
    /// There is no usable KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM refused a step of the set-up.
    #[error("KVM refused {what}: {error}")]
    Refused {
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        error: kvm_ioctls::Error,
    },
    /// There is no memory for the guest.
    #[error("reserving memory: {0}")]
    Memory(String),
    /// The guest stopped at something else than the end of its loop.
    #[error("the guest stopped: {0}")]
    Stopped(String),
}

/// Measures how many instructions per second a guest executes in ring 0.
pub fn instructions_per_second() -> Result<f64, MeasureError> {
    let refused = |what| move |error| MeasureError::Refused { what, error };
    let memory = |error: &dyn ToString| MeasureError::Memory(error.to_string());

    let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|error| memory(&error))?;
    entry::install(&ram).map_err(|error| memory(&error))?;
    ram.write_slice(&LOOP, GuestAddress(CODE))
        .map_err(|error| memory(&error))?;
    let host = ram.get_host_address(GuestAddress(0));
    let host = host.map_err(|error| memory(&error))?;

    let kvm = kvm::open()?;
    let vm = kvm.create_vm().map_err(refused("a virtual machine"))?;
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: host as u64,
        ..Default::default()
    };
    // SAFETY: the range is a whole mapping of this process, dropped after the machine, to which there are no references.
    unsafe { vm.set_user_memory_region(region) }.map_err(refused("memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(refused("a vCPU"))?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let cpuid = cpuid.map_err(refused("to describe the processor"))?;
    vcpu.set_cpuid2(&cpuid).map_err(refused("the processor"))?;
    let reset = vcpu.get_sregs().map_err(refused("to read registers"))?;
    let start = Loaded {
        entry: CODE,
        protocol: Protocol::Linux(Box::default()),
    };
    vcpu.set_sregs(&entry::system(&start, reset))
        .map_err(refused("system registers"))?;

    let mut turns = FIRST_TURNS;
    loop {
        let took = run(&mut vcpu, &start, turns)?;
        if took >= LONG_ENOUGH || turns > u32::MAX / 2 {
            return Ok(f64::from(turns) * PER_TURN / took.as_secs_f64());
        }
        turns *= 2;
    }
}

/// Has the guest turn its loop this often; returns how long that took.
fn run(vcpu: &mut VcpuFd, start: &Loaded, turns: u32) -> Result<Duration, MeasureError> {
    let registers = kvm_regs {
        rcx: turns.into(),
        ..entry::general(start)
    };
    let set = vcpu.set_regs(&registers);
    set.map_err(|error| MeasureError::Refused {
        what: "registers",
        error,
    })?;
    let begin = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(..)) => return Ok(begin.elapsed()),
            Ok(VcpuExit::Intr) if begin.elapsed() < PATIENCE => {}
            Ok(other) => return Err(MeasureError::Stopped(format!("{other:?}"))),
            // Repeated, but not without end: where KVM gets no helper thread, each try fails.
            Err(error)
                if matches!(error.errno(), libc::EINTR | libc::EAGAIN)
                    && begin.elapsed() < PATIENCE => {}
            Err(error) => return Err(MeasureError::Stopped(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_in_ring_0_makes_progress() {
        // Between an emulator on a crowded machine and a processor of the future.
        let speed = instructions_per_second().unwrap();
        assert!((1e3..1e12).contains(&speed), "{speed}");
    }
}
