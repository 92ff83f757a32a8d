//! Opening `/dev/kvm`, and what Hmmvisor needs from it.

use std::io;

use hmm_backend::limits::{self, Refusal, Resource};
use hmmvisor_devices::retry;
use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

/// The version of KVM's interface that all kernels since 2007 have.
pub const API_VERSION: i32 = 12;

/// Capabilities without which no guest can run, and what they are for.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::Irqchip, "an interrupt controller in the kernel"),
    (Cap::UserMemory, "guest memory provided by user space"),
    (Cap::SetTssAddr, "the place of KVM's own task state segment"),
    (Cap::MpState, "starting all vCPUs at once"),
    (Cap::Mce, "telling guests of lost memory"),
    (Cap::Ioeventfd, "doorbells that do not leave the kernel"),
    (Cap::IoeventfdNoLength, "doorbells of any access size"),
    (Cap::Irqfd, "device interrupts from any thread"),
    (Cap::IrqRouting, "routing of device interrupts to vCPUs"),
];

/// Why KVM cannot be used.
#[derive(Debug, Error)]
pub enum KvmError {
    /// `/dev/kvm` does not exist.
    #[error(
        "opening /dev/kvm: it does not exist; enable virtualization in the firmware set-up, or nested virtualization if this is a virtual machine, and load the kvm_intel or kvm_amd module"
    )]
    Missing,
    /// No permission.
    #[error("opening /dev/kvm: permission denied; {}", if limits::is_root() { "root is not enough here: have the container or sandbox permit this device" } else { "run as root or join the group that owns it (`sudo usermod -aG kvm $USER`, then log in again)" })]
    Permission,
    /// Some other error.
    #[error("opening /dev/kvm: {}{}", .0, if .0.has_advice() { "" } else { "; see `dmesg | grep -i kvm`" })]
    Open(#[source] Refusal),
    /// KVM refuses to describe itself.
    #[error("using /dev/kvm: asking KVM for {what}: {source}")]
    Query {
        /// What was asked for.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The interface has another version; since 2007 all kernels have had this one.
    #[error(
        "using /dev/kvm: its interface has version {0}, but version 12 is needed; use Linux 5.10 or later"
    )]
    Version(i32),
    /// KVM lacks a capability.
    #[error(
        "using /dev/kvm: this kernel's KVM lacks {name} ({purpose}); use a newer kernel with it configured in"
    )]
    Capability {
        /// The capability's name.
        name: String,
        /// What it is needed for.
        purpose: &'static str,
    },
}

impl From<kvm_ioctls::Error> for KvmError {
    /// Returns why opening the device failed.
    fn from(error: kvm_ioctls::Error) -> KvmError {
        match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
            libc::EACCES | libc::EPERM => KvmError::Permission,
            errno => KvmError::Open(Refusal::new(
                Resource::Kvm,
                io::Error::from_raw_os_error(errno),
            )),
        }
    }
}

/// Opens `/dev/kvm` as it is. If a signal interrupts that, tries again, a bounded number of times.
pub fn device() -> Result<Kvm, kvm_ioctls::Error> {
    let opened = retry::interrupted(|| Kvm::new().map_err(io::Error::from));
    opened.map_err(|error| kvm_ioctls::Error::new(error.raw_os_error().unwrap_or_default()))
}

/// Opens `/dev/kvm`; an error if it lacks a capability that Hmmvisor needs.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = device()?;
    check_version(&kvm)?;
    for Capability {
        name,
        purpose,
        present,
    } in capabilities(&kvm)
    {
        if !present? {
            return Err(KvmError::Capability { name, purpose });
        }
    }
    Ok(kvm)
}

/// Returns an error unless the interface has version [`API_VERSION`].
pub fn check_version(kvm: &Kvm) -> Result<(), KvmError> {
    match answer(kvm.get_api_version(), "its version")? {
        API_VERSION => Ok(()),
        version => Err(KvmError::Version(version)),
    }
}

/// Returns an answer of KVM, or the error that it stands for. Call it right after KVM: a negative answer leaves its reason in `errno`.
fn answer(value: i32, what: &str) -> Result<i32, KvmError> {
    if value < 0 {
        let source = io::Error::last_os_error();
        let what = what.to_owned();
        return Err(KvmError::Query { what, source });
    }
    Ok(value)
}

/// A capability of KVM.
pub struct Capability {
    /// Its name.
    pub name: String,
    /// What Hmmvisor needs it for.
    pub purpose: &'static str,
    /// Whether this KVM has it.
    pub present: Result<bool, KvmError>,
}

/// Lists the capabilities that Hmmvisor needs, and whether this KVM has them.
pub fn capabilities(kvm: &Kvm) -> impl Iterator<Item = Capability> + '_ {
    NEEDED.iter().map(|&(cap, purpose)| {
        let name = format!("{cap:?}");
        // `Kvm::check_extension` takes a refusal for a no.
        let extent = answer(kvm.check_extension_int(cap), &name);
        Capability {
            present: extent.map(|extent| extent > 0),
            name,
            purpose,
        }
    })
}
