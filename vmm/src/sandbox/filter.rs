//! Seccomp filters: the rows of the table, compiled for the kernel.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::table::{Allowed, Kind, When};

/// What becomes of a call that is not allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OnViolation {
    /// The kernel does not execute it, and sends SIGSYS to the thread that has made it.
    Trap,
    /// The thread waits until the filter's listener has said what to do.
    Notify,
}

/// `BPF_RET | BPF_K`: an instruction that ends a filter, with its verdict.
const RETURN: u16 = 0x06;

/// Compiles a kind's row. `landlock` says whether threads are confined by Landlock, too.
pub(super) fn compile(kind: Kind, on_violation: OnViolation, landlock: bool) -> Option<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    // A call without a condition has an empty list of rules, also if another group allows it under one.
    let mut unconditional = Vec::new();
    for allowed in kind.row().calls.iter().copied().flatten() {
        let conditions = conditions(allowed, landlock)?;
        match &allowed.when {
            When::Always => unconditional.push(allowed.call),
            _ => rules.entry(allowed.call).or_default().extend(conditions),
        }
    }
    // Calls whose conditions cannot be met: without a rule they would be allowed.
    rules.retain(|_, of_call| !of_call.is_empty());
    rules.extend(unconditional.into_iter().map(|call| (call, Vec::new())));
    let (otherwise, allow) = (SeccompAction::Trap, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, otherwise, allow, TargetArch::x86_64).ok()?;
    let mut program = BpfProgram::try_from(filter).ok()?;
    if on_violation == OnViolation::Notify {
        // The compiler does not know this verdict.
        let traps = |it: &&mut seccompiler::sock_filter| {
            it.code == RETURN && it.k == libc::SECCOMP_RET_TRAP
        };
        let verdicts = program.iter_mut().filter(traps);
        verdicts.for_each(|it| it.k = libc::SECCOMP_RET_USER_NOTIF);
    }
    Some(program)
}

/// Returns one rule for each way to meet the condition; none if there is no condition, or no way.
fn conditions(allowed: &Allowed, landlock: bool) -> Option<Vec<SeccompRule>> {
    use SeccompCmpArgLen::{Dword, Qword};
    let sized = |argument, size, operator, value| {
        let condition = SeccompCondition::new(argument, size, operator, value).ok()?;
        SeccompRule::new(vec![condition]).ok()
    };
    let rule = |argument, operator, value| sized(argument, Dword, operator, value);
    match allowed.when {
        When::Always => Some(Vec::new()),
        When::Is(argument, values) => values
            .iter()
            .map(|value| rule(argument, SeccompCmpOp::Eq, *value))
            .collect(),
        When::LacksUnderLandlock(..) if !landlock => Some(Vec::new()),
        When::Lacks(argument, bits) | When::LacksUnderLandlock(argument, bits) => {
            rule(argument, SeccompCmpOp::MaskedEq(bits), 0).map(|it| vec![it])
        }
        When::Null(argument) => sized(argument, Qword, SeccompCmpOp::Eq, 0).map(|it| vec![it]),
        When::OwnProcess => {
            let process = std::process::id();
            rule(0, SeccompCmpOp::Eq, process.into()).map(|it| vec![it])
        }
    }
}

/// Installs a filter for the calling thread and those that it will start.
///
/// # Errors
/// The kernel's: it knows no filters, or has no memory for one.
pub(super) fn install(program: &BpfProgram) -> io::Result<()> {
    set_filter(program, 0).map(drop)
}

/// Like [`install`]. Returns the descriptor that is readable when a thread waits for a verdict.
///
/// # Errors
/// The same as of [`install`]; the thread has inherited a filter with a listener.
pub(super) fn install_with_listener(program: &BpfProgram) -> io::Result<OwnedFd> {
    let listener = set_filter(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    // SAFETY: with this flag the call returns a new descriptor that this function owns.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

fn set_filter(program: &BpfProgram, flags: libc::c_ulong) -> io::Result<RawFd> {
    let header = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the kernel reads the program, whose instructions have the layout that it expects; the header says their number.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &header,
        )
    };
    match result {
        0.. => Ok(result as RawFd),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_compiles_to_a_filter_that_the_kernel_takes() {
        // `BPF_MAXINSNS`.
        const MOST: usize = 4096;
        for kind in Kind::ALL {
            for landlock in [false, true] {
                for on_violation in [OnViolation::Trap, OnViolation::Notify] {
                    let program = compile(kind, on_violation, landlock).unwrap();
                    assert!((10..MOST).contains(&program.len()), "{kind:?}");
                }
            }
        }
    }
}
