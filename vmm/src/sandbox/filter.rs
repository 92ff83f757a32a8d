//! Seccomp filters: the rows of the table, compiled for the kernel.
//!
//! A program checks the architecture, then finds the call by its number: a tree of comparisons leads to a *leaf* of some calls, which are
//! compared one after the other. Programs are short because each thread waits, when it begins, until the kernel has translated its program
//! to machine code, and has run it once for each call's number to learn which calls are always allowed.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use libc::sock_filter;

use super::table::{Allowed, Kind, When};

/// A program for the kernel's filters.
pub(super) type Program = Vec<sock_filter>;

/// What becomes of a call that is not allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OnViolation {
    /// The kernel does not execute it, and sends SIGSYS to the thread that has made it.
    Trap,
    /// The thread waits until the filter's listener has said what to do.
    Notify,
}

impl OnViolation {
    fn verdict(self) -> u32 {
        match self {
            OnViolation::Trap => libc::SECCOMP_RET_TRAP,
            OnViolation::Notify => libc::SECCOMP_RET_USER_NOTIF,
        }
    }
}

// Instructions of classic BPF (`linux/bpf_common.h`).
/// Loads a word of `struct seccomp_data`.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `AUDIT_ARCH_X86_64`. Numbers of the x32 interface, which have a bit more, are in no row.
const X86_64: u32 = 0xc000_003e;

/// The most calls in a leaf.
const LEAF: usize = 8;

fn instruction(code: u16, value: u32) -> sock_filter {
    branch(code, value, 0, 0)
}

/// Makes a comparison that skips so many instructions if it holds, and if it does not.
fn branch(code: u16, value: u32, if_so: u8, if_not: u8) -> sock_filter {
    sock_filter {
        code,
        jt: if_so,
        jf: if_not,
        k: value,
    }
}

/// Compiles a kind's row. `landlock` says whether threads are confined by Landlock, too.
pub(super) fn compile(kind: Kind, on_violation: OnViolation, landlock: bool) -> Program {
    let mut calls: BTreeMap<u32, Vec<&When>> = BTreeMap::new();
    for Allowed { call, when } in kind.row().calls.iter().copied().flatten() {
        let is_void = matches!(when, When::LacksUnderLandlock(..)) && !landlock;
        if !is_void {
            calls.entry(*call as u32).or_default().push(when);
        }
    }
    let calls: Vec<_> = calls.into_iter().collect();
    let mut program = vec![
        instruction(LOAD, ARCHITECTURE),
        branch(IF_EQUAL, X86_64, 1, 0),
        instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(LOAD, NUMBER),
    ];
    program.extend(tree(&calls, on_violation.verdict()));
    program
}

/// Returns the program that looks for the loaded number among these calls, which are in ascending order. It ends with a verdict on each
/// of its ways.
fn tree(calls: &[(u32, Vec<&When>)], otherwise: u32) -> Program {
    if calls.len() <= LEAF {
        return leaf(calls, otherwise);
    }
    let (low, high) = calls.split_at(calls.len() / 2);
    let (first_high, low, high) = (high[0].0, tree(low, otherwise), tree(high, otherwise));
    // A comparison skips 255 instructions at most, a jump any number.
    let mut program = vec![
        branch(IF_AT_LEAST, first_high, 0, 1),
        instruction(JUMP, low.len() as u32),
    ];
    program.extend(low);
    program.extend(high);
    program
}

/// Like [`tree`], for few calls.
fn leaf(calls: &[(u32, Vec<&When>)], otherwise: u32) -> Program {
    let mut leaf = Leaf(VecDeque::from([
        instruction(RETURN, otherwise),
        instruction(RETURN, libc::SECCOMP_RET_ALLOW),
    ]));
    for (number, conditions) in calls.iter().rev() {
        if conditions.iter().any(|when| matches!(when, When::Always)) {
            leaf.allow_if(IF_EQUAL, *number);
            continue;
        }
        let others = leaf.0.len();
        leaf.refuse();
        conditions.iter().rev().for_each(|when| leaf.check(when));
        let skipped = leaf.0.len() - others;
        leaf.0
            .push_front(branch(IF_EQUAL, *number, 0, near(skipped)));
    }
    leaf.0.into()
}

/// A leaf of the tree, made from its end to its beginning, so that it is known how far away its two verdicts are: to refuse and, last, to
/// allow.
struct Leaf(VecDeque<sock_filter>);

impl Leaf {
    /// Puts a comparison in front that allows the call if it holds.
    fn allow_if(&mut self, code: u16, value: u32) {
        let to_allow = near(self.0.len() - 1);
        self.0.push_front(branch(code, value, to_allow, 0));
    }

    /// Puts a jump in front that refuses the call.
    fn refuse(&mut self) {
        let to_refuse = self.0.len() as u32 - 2;
        self.0.push_front(instruction(JUMP, to_refuse));
    }

    /// Puts the check of a condition in front that allows the call if it is met, and otherwise goes on behind it.
    fn check(&mut self, when: &When) {
        let low = |argument: u8| ARGUMENTS + 8 * u32::from(argument);
        let load = |offset| instruction(LOAD, offset);
        match *when {
            When::Always => {}
            When::Is(argument, values) => {
                for value in values {
                    self.allow_if(IF_EQUAL, *value as u32);
                }
                self.0.push_front(load(low(argument)));
            }
            When::Lacks(argument, bits) | When::LacksUnderLandlock(argument, bits) => {
                let to_allow = near(self.0.len() - 1);
                let lacks = branch(IF_ANY_BIT, bits as u32, 0, to_allow);
                self.0.push_front(lacks);
                self.0.push_front(load(low(argument)));
            }
            When::Null(argument) => {
                self.allow_if(IF_EQUAL, 0);
                self.0.push_front(load(low(argument) + 4));
                // Past the second half.
                self.0.push_front(branch(IF_EQUAL, 0, 0, 2));
                self.0.push_front(load(low(argument)));
            }
            When::OwnProcess => {
                self.allow_if(IF_EQUAL, std::process::id());
                self.0.push_front(load(low(0)));
            }
        }
    }
}

/// Returns a distance within a leaf. The tests compile the whole table.
fn near(distance: usize) -> u8 {
    u8::try_from(distance).expect("a leaf has less than 256 instructions")
}

/// Installs a filter for the calling thread and those that it will start.
///
/// # Errors
/// The kernel's: it knows no filters, or has no memory for one.
pub(super) fn install(program: &Program) -> io::Result<()> {
    set_filter(program, 0).map(drop)
}

/// Like [`install`]. Returns the descriptor that is readable when a thread waits for a verdict.
///
/// # Errors
/// The same as of [`install`]; the thread has inherited a filter with a listener.
pub(super) fn install_with_listener(program: &Program) -> io::Result<OwnedFd> {
    let listener = set_filter(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    // SAFETY: with this flag the call returns a new descriptor that this function owns.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

/// Whether the kernel takes filters that trap.
pub(super) fn are_available() -> io::Result<()> {
    let action: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: the kernel reads an integer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_filter(program: &Program, flags: libc::c_ulong) -> io::Result<RawFd> {
    let header = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads the program; the header says how long it is.
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

    /// Runs a program as the kernel does, and returns its verdict and how many instructions that took.
    fn run(program: &Program, architecture: u32, number: u32, arguments: [u64; 6]) -> (u32, u32) {
        let word = |offset| match offset {
            NUMBER => number,
            ARCHITECTURE => architecture,
            _ => {
                let at = offset - ARGUMENTS;
                (arguments[at as usize / 8] >> (at % 8 * 8)) as u32
            }
        };
        let (mut at, mut loaded, mut steps) = (0, 0, 0);
        loop {
            let it = &program[at];
            steps += 1;
            let holds = match it.code {
                RETURN => return (it.k, steps),
                LOAD => {
                    loaded = word(it.k);
                    at += 1;
                    continue;
                }
                JUMP => {
                    at += 1 + it.k as usize;
                    continue;
                }
                IF_EQUAL => loaded == it.k,
                IF_AT_LEAST => loaded >= it.k,
                IF_ANY_BIT => loaded & it.k != 0,
                code => panic!("{code}"),
            };
            at += 1 + usize::from(if holds { it.jt } else { it.jf });
        }
    }

    /// Whether the table allows a call: what the programs are compared with.
    fn is_allowed(kind: Kind, number: u32, arguments: [u64; 6], landlock: bool) -> bool {
        let low = |argument: u8| arguments[usize::from(argument)] & 0xffff_ffff;
        let calls = kind.row().calls.iter().copied().flatten();
        calls
            .filter(|it| it.call == i64::from(number))
            .any(|it| match it.when {
                When::Always => true,
                When::Is(argument, values) => values.contains(&low(argument)),
                When::Lacks(argument, bits) => low(argument) & bits == 0,
                When::LacksUnderLandlock(argument, bits) => landlock && low(argument) & bits == 0,
                When::Null(argument) => arguments[usize::from(argument)] == 0,
                When::OwnProcess => low(0) == u64::from(std::process::id()),
            })
    }

    #[test]
    fn programs_allow_what_the_table_allows() {
        // What conditions are about, and values that differ from it in a bit.
        let mut values = vec![0, 1, 2, 4, 7, 1 << 32, u64::from(std::process::id())];
        for kind in Kind::ALL {
            for Allowed { when, .. } in kind.row().calls.iter().copied().flatten() {
                match when {
                    When::Is(_, some) => values.extend(*some),
                    When::Lacks(_, bits) | When::LacksUnderLandlock(_, bits) => values.push(*bits),
                    _ => {}
                }
            }
        }
        values.sort_unstable();
        values.dedup();
        for kind in Kind::ALL {
            for landlock in [false, true] {
                let program = compile(kind, OnViolation::Trap, landlock);
                for number in (0..500).chain([u32::MAX, 0x4000_0000]) {
                    for value in values
                        .iter()
                        .flat_map(|it| [*it, it ^ 0x10, it ^ (1 << 40)])
                    {
                        let arguments = [value; 6];
                        let (verdict, _) = run(&program, X86_64, number, arguments);
                        let expected = match is_allowed(kind, number, arguments, landlock) {
                            true => libc::SECCOMP_RET_ALLOW,
                            false => libc::SECCOMP_RET_TRAP,
                        };
                        assert_eq!(verdict, expected, "{kind:?}: {number}, {value:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn verdicts_are_those_of_the_mode_and_the_architecture() {
        let program = compile(Kind::Vcpu, OnViolation::Notify, true);
        let verdict = |architecture, call| run(&program, architecture, call as u32, [0; 6]).0;
        let notify = libc::SECCOMP_RET_USER_NOTIF;
        assert_eq!(verdict(X86_64, libc::SYS_execve), notify);
        assert_eq!(verdict(X86_64, libc::SYS_read), libc::SECCOMP_RET_ALLOW);
        // 3 is `read` of 32-bit programs.
        assert_eq!(verdict(0x4000_0003, 3), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn a_number_is_found_in_few_steps() {
        for kind in Kind::ALL {
            let program = compile(kind, OnViolation::Trap, true);
            let steps = |number| run(&program, X86_64, number, [1 << 63; 6]).1;
            let most = (0..500).map(steps).max();
            assert!(most < Some(60), "{kind:?}: {most:?}");
        }
    }
}
