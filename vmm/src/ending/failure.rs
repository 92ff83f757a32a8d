//! The ways in which a running guest can fail.

use thiserror::Error;

/// Whose code a vCPU executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The guest's, in ring 3.
    Guest,
    /// The firmware's, in ring 0.
    Firmware,
}

/// Why a run failed, for a reason other than the guest's own verdict.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Failure {
    /// A CPU exception; guests have no handlers for them.
    #[error("vCPU {vcpu} took {} at rip {rip:#x}{}{}", exception_name(*vector), exception_detail(*vector, *error_code, *cr2), exception_cause(*vector, *rip, *code))]
    Exception {
        /// The vCPU.
        vcpu: u32,
        /// The exception's number.
        vector: u64,
        /// The processor's error code.
        error_code: u64,
        /// The instruction that caused it.
        rip: u64,
        /// For page faults: the address that was accessed.
        cr2: u64,
        /// Whose code that instruction is.
        code: Code,
    },
    /// The vCPU could not even start the exception handler.
    #[error(
        "vCPU {vcpu} triple-faulted at rip {rip:#x}: an exception whose handler could not be started"
    )]
    TripleFault {
        /// The vCPU.
        vcpu: u32,
        /// The guest's instruction pointer.
        rip: u64,
    },
    /// KVM gave up, usually on an instruction it cannot emulate.
    #[error("vCPU {vcpu} stopped at rip {rip:#x} with a KVM internal error ({}); the host's `dmesg` may say more", internal_error(*suberror))]
    Internal {
        /// The vCPU.
        vcpu: u32,
        /// The guest's instruction pointer.
        rip: u64,
        /// KVM's reason.
        suberror: u32,
    },
    /// The processor refused the vCPU's state.
    #[error(
        "vCPU {vcpu} could not be entered at rip {rip:#x}: hardware reason {reason:#x}; this is a bug in Hmmvisor or in the host's KVM"
    )]
    Entry {
        /// The vCPU.
        vcpu: u32,
        /// The guest's instruction pointer.
        rip: u64,
        /// The processor's reason.
        reason: u64,
    },
    /// The host could not provide memory behind a guest address.
    #[error("vCPU {vcpu} accessed guest memory{} at rip {rip:#x} that the host could not provide (EFAULT): out of memory, or the page was lost", address.map_or(String::new(), |a| format!(" at {a:#x}")))]
    Memory {
        /// The vCPU.
        vcpu: u32,
        /// The guest's instruction pointer.
        rip: u64,
        /// Guest-physical address, if KVM names it.
        address: Option<u64>,
    },
    /// `KVM_RUN` failed.
    #[error("running vCPU {vcpu} at rip {rip:#x}: KVM_RUN failed: {error}")]
    Run {
        /// The vCPU.
        vcpu: u32,
        /// The guest's instruction pointer.
        rip: u64,
        /// The kernel's answer.
        #[source]
        error: kvm_ioctls::Error,
    },
    /// An exit that no guest should cause.
    #[error("vCPU {vcpu} stopped at rip {rip:#x} for a reason Hmmvisor does not handle: {exit}")]
    UnknownExit {
        /// The vCPU.
        vcpu: u32,
        /// The guest's instruction pointer.
        rip: u64,
        /// KVM's name of it.
        exit: String,
    },
    /// The backend could not supply a page.
    #[error("page {page:#x} of managed memory (guest-physical {address:#x}), accessed by {}, could not be supplied: {cause}", vcpu.map_or("the VMM".to_owned(), |v| format!("vCPU {v}")))]
    Page {
        /// Its number in managed memory.
        page: u32,
        /// Its guest-physical address.
        address: u64,
        /// The vCPU that accessed it; none if it was the VMM itself.
        vcpu: Option<u32>,
        /// Why it could not be supplied.
        cause: String,
    },
    /// The fault service cannot go on.
    #[error("managed memory can be served no longer: {0}")]
    Service(String),
    /// The guest's kernel panicked, and then reset the machine.
    #[error("the guest's kernel panicked: {0}")]
    KernelPanic(String),
    /// Nothing has been heard of the guest.
    #[error(
        "the guest has shown no sign of life for {0} s: no access to a device, no output; it hangs or has nothing to do (`--watchdog` sets the time)"
    )]
    Hang(u64),
    /// No vCPU is left that could end the run.
    #[error(
        "every vCPU has parked, so the guest can never exit; one of them must write the control device's exit register"
    )]
    AllParked,
    /// A thread of the VMM panicked: a bug.
    #[error("thread {thread} panicked; this is a bug in Hmmvisor or in a device of others")]
    Panicked {
        /// The thread's name.
        thread: String,
    },
    /// The system refuses a call that it has no reason to refuse, at every try.
    #[error("{what} failed: {cause}")]
    Event {
        /// The call.
        what: String,
        /// The system's answer.
        cause: String,
    },
    /// KVM refuses to run a vCPU for now, at every try.
    #[error(
        "running vCPU {vcpu}: KVM_RUN fails with EAGAIN again and again ({tries} times in {seconds} s): the host refuses KVM a helper thread (kvm-nx-lpage-recovery) for this process; {advice}"
    )]
    PutOff {
        /// The vCPU.
        vcpu: u32,
        /// The number of tries.
        tries: u32,
        /// The seconds since the first try.
        seconds: u64,
        /// What to do about it.
        advice: String,
    },
    /// Stopping the machine takes too long.
    #[error(
        "the machine did not stop within {0} s: one of its threads waits for something that does not come"
    )]
    NotStopped(u64),
    /// The host found wrong data or wrong books while or after it tortured the guest.
    #[error("torture: {0}")]
    Torture(String),
    /// The event loop failed.
    #[error("waiting for the guest: {0}")]
    EventLoop(String),
}

impl Failure {
    /// See [`Failure::Event`].
    pub(crate) fn event(what: &str, error: &std::io::Error) -> Failure {
        Failure::Event {
            what: what.to_owned(),
            cause: error.to_string(),
        }
    }
}

fn exception_name(vector: u64) -> String {
    let (short, long) = match vector {
        0 => ("#DE", "division error"),
        1 => ("#DB", "debug exception"),
        2 => ("NMI", "non-maskable interrupt"),
        3 => ("#BP", "breakpoint"),
        4 => ("#OF", "overflow"),
        5 => ("#BR", "bound range exceeded"),
        6 => ("#UD", "invalid opcode"),
        7 => ("#NM", "device not available"),
        8 => ("#DF", "double fault"),
        10 => ("#TS", "invalid task state segment"),
        11 => ("#NP", "segment not present"),
        12 => ("#SS", "stack-segment fault"),
        13 => ("#GP", "general protection fault"),
        14 => ("#PF", "page fault"),
        16 => ("#MF", "x87 floating-point exception"),
        17 => ("#AC", "alignment check"),
        18 => ("#MC", "machine check"),
        19 => ("#XM", "SIMD floating-point exception"),
        21 => ("#CP", "control protection exception"),
        _ => return format!("CPU exception {vector}"),
    };
    format!("{short} ({long})")
}

fn exception_detail(vector: u64, error_code: u64, cr2: u64) -> String {
    const PRESENT: u64 = 1;
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 4;
    match vector {
        14 => {
            let access = match error_code {
                e if e & FETCH != 0 => "executing",
                e if e & WRITE != 0 => "writing",
                _ => "reading",
            };
            let state = if error_code & PRESENT != 0 {
                "is not the guest's to use"
            } else {
                "is not mapped"
            };
            format!(", {access} address {cr2:#x}, which {state}")
        }
        8 | 10..=13 | 17 | 21 => format!(", error code {error_code:#x}"),
        _ => String::new(),
    }
}

/// Returns the likely cause of an exception, and what to do about it; nothing if none is known.
fn exception_cause(vector: u64, rip: u64, code: Code) -> &'static str {
    match (vector, rip, code) {
        (_, _, Code::Firmware) => {
            "; it happened in the firmware: a bug in Hmmvisor, or the guest damaged its vCPU's state"
        }
        (14, 0, Code::Guest) => {
            "; the guest called a null pointer. A program that is linked with a C library does this, because there is no operating system below a guest: build it with `-ffreestanding -nostdlib`, as docs/guest-abi.md says"
        }
        _ => "",
    }
}

fn internal_error(suberror: u32) -> String {
    match suberror {
        1 => "emulation failure: an instruction KVM cannot emulate".to_owned(),
        2 => "exceptions while delivering an exception".to_owned(),
        3 => "an interrupt while delivering an exception".to_owned(),
        4 => "an unexpected exit reason".to_owned(),
        other => format!("suberror {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_what_where_and_why() {
        let page_fault = Failure::Exception {
            vcpu: 3,
            vector: 14,
            error_code: 6,
            rip: 0x20_1234,
            cr2: 8,
            code: Code::Guest,
        };
        assert_eq!(
            page_fault.to_string(),
            "vCPU 3 took #PF (page fault) at rip 0x201234, writing address 0x8, which is not mapped"
        );
        let null = Failure::Exception {
            vcpu: 0,
            vector: 14,
            error_code: 0x14,
            rip: 0,
            cr2: 0,
            code: Code::Guest,
        };
        let text = null.to_string();
        assert!(text.contains("at rip 0x0, executing address 0x0"), "{text}");
        assert!(text.contains("a null pointer") && text.contains("-nostdlib"));
        let page = Failure::Page {
            page: 0x10,
            address: 0x1_0001_0000,
            vcpu: Some(1),
            cause: "no memory".into(),
        };
        assert_eq!(
            page.to_string(),
            "page 0x10 of managed memory (guest-physical 0x100010000), accessed by vCPU 1, could not be supplied: no memory"
        );
    }
}
