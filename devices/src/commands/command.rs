//! Decoding of commands: from 64 bytes that anything may be in to operations whose arguments are in
//! range. Pure, so that it can be fuzzed.

use hmm_backend::pages::PAGE_SIZE;
use hmmvisor_abi::accel::{self, Command};

use super::error::CommandError;
use super::guest_hint::GuestHint;
use super::managed::{Addresses, WORD, Words};
use crate::guest_bytes::GuestBytes;

/// The destination of a migration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Into this accelerator's memory.
    ToDevice,
    /// Into system memory.
    ToSystem,
}

/// A command whose arguments are valid: each run of words is aligned and within the address space. The
/// fields are the arguments of the `OP_*` of the same name, runs carrying their lengths.
#[derive(Clone, Copy, PartialEq, Debug)]
#[allow(missing_docs)]
pub enum Operation {
    Nop,
    Fill {
        dst: Words,
        start: u64,
        step: u64,
    },
    Copy {
        dst: Words,
        src: Words,
    },
    VectorAdd {
        c: Words,
        a: Words,
        b: Words,
    },
    Triad {
        a: Words,
        b: Words,
        c: Words,
        s: f64,
    },
    Reduce {
        src: Words,
    },
    Gather {
        dst: Words,
        src: Words,
        idx: Words,
    },
    Scatter {
        dst: Words,
        src: Words,
        idx: Words,
    },
    Matmul {
        c: Words,
        a: Words,
        b: Words,
        n: u64,
    },
    /// How many columns and values there are is only known from `row`: they are checked when the
    /// command runs.
    Spmv {
        y: Words,
        row: Words,
        col: u64,
        val: u64,
        x: Words,
    },
    /// How many columns there are is only known from `row`, as with `Spmv`: `col` is checked when the command runs.
    BfsStep {
        row: Words,
        col: u64,
        dist: Words,
        level: u64,
    },
    AtomicAdd {
        base: Words,
        idx: Words,
        value: u64,
    },
    ExclusiveAdd {
        addr: u64,
        n: u64,
        value: u64,
    },
    Chase {
        base: Words,
        start: u64,
        steps: u64,
    },
    Migrate {
        span: GuestBytes,
        direction: Direction,
    },
    /// The span is made of whole pages.
    Free {
        span: GuestBytes,
    },
    Hint {
        span: GuestBytes,
        hint: GuestHint,
    },
}

impl Operation {
    /// All words that the operation names. Of arrays whose length is only known when the command runs, the start: a
    /// run of no words.
    pub fn runs(&self) -> Vec<Words> {
        let start = |addr| Words { addr, len: 0 };
        match *self {
            Operation::Nop
            | Operation::Migrate { .. }
            | Operation::Free { .. }
            | Operation::Hint { .. } => vec![],
            Operation::Fill { dst, .. } => vec![dst],
            Operation::Copy { dst, src } => vec![dst, src],
            Operation::VectorAdd { c, a, b }
            | Operation::Triad { a, b, c, .. }
            | Operation::Matmul { c, a, b, .. } => vec![a, b, c],
            Operation::Reduce { src } => vec![src],
            Operation::Gather { dst, src, idx } | Operation::Scatter { dst, src, idx } => {
                vec![dst, src, idx]
            }
            Operation::Spmv {
                y,
                row,
                col,
                val,
                x,
            } => vec![y, row, start(col), start(val), x],
            Operation::BfsStep { row, col, dist, .. } => vec![row, start(col), dist],
            Operation::AtomicAdd { base, idx, .. } => vec![base, idx],
            Operation::Chase { base, .. } => vec![base],
            Operation::ExclusiveAdd { addr, .. } => vec![Words { addr, len: 1 }],
        }
    }

    /// The bytes that the operation does not compute with, but migrates, frees or gives a hint about.
    pub fn span(&self) -> Option<GuestBytes> {
        match *self {
            Operation::Migrate { span, .. }
            | Operation::Free { span }
            | Operation::Hint { span, .. } => Some(span),
            _ => None,
        }
    }
}

/// The address space in which a command's addresses are; [`PHYSICAL`](accel::PHYSICAL) if they are guest-physical.
pub fn space(command: &Command) -> Result<u16, CommandError> {
    let space = (command.flags >> accel::FLAG_SPACE_SHIFT) as u16;
    require(u64::from(space) <= accel::SPACES)?;
    Ok(space)
}

/// Decodes a command and checks everything that can be checked without reading memory.
pub fn decode(command: &Command, addresses: &Addresses) -> Result<Operation, CommandError> {
    let space = u32::from(u16::MAX) << accel::FLAG_SPACE_SHIFT;
    if command.flags & !(accel::FLAG_INTERRUPT | space) != 0 {
        return Err(CommandError::Argument);
    }
    let words = |addr, len| addresses.words(addr, len);
    let args = command.args;
    Ok(match command.opcode {
        accel::OP_NOP => Operation::Nop,
        accel::OP_FILL => {
            let [dst, n, start, step, ..] = args;
            Operation::Fill {
                dst: words(dst, n)?,
                start,
                step,
            }
        }
        accel::OP_COPY => {
            let [dst, src, bytes, ..] = args;
            require(bytes.is_multiple_of(WORD))?;
            let dst = words(dst, bytes / WORD)?;
            let src = words(src, bytes / WORD)?;
            require(!dst.overlaps(&src))?;
            Operation::Copy { dst, src }
        }
        accel::OP_VECTOR_ADD => {
            let [c, a, b, n, ..] = args;
            Operation::VectorAdd {
                c: words(c, n)?,
                a: words(a, n)?,
                b: words(b, n)?,
            }
        }
        accel::OP_TRIAD => {
            let [a, b, c, n, s, _] = args;
            Operation::Triad {
                a: words(a, n)?,
                b: words(b, n)?,
                c: words(c, n)?,
                s: f64::from_bits(s),
            }
        }
        accel::OP_REDUCE => {
            let [src, n, ..] = args;
            Operation::Reduce {
                src: words(src, n)?,
            }
        }
        accel::OP_GATHER => {
            let [dst, src, idx, n, len, _] = args;
            Operation::Gather {
                dst: words(dst, n)?,
                src: words(src, len)?,
                idx: words(idx, n)?,
            }
        }
        accel::OP_SCATTER => {
            let [dst, src, idx, n, len, _] = args;
            Operation::Scatter {
                dst: words(dst, len)?,
                src: words(src, n)?,
                idx: words(idx, n)?,
            }
        }
        accel::OP_MATMUL => {
            let [c, a, b, n, ..] = args;
            // A saturated area is larger than any memory.
            let area = n.saturating_mul(n);
            Operation::Matmul {
                c: words(c, area)?,
                a: words(a, area)?,
                b: words(b, area)?,
                n,
            }
        }
        accel::OP_SPMV => {
            let [y, row, col, val, x, n] = args;
            Operation::Spmv {
                y: words(y, n)?,
                row: words(row, n.saturating_add(1))?,
                col: words(col, 0)?.addr,
                val: words(val, 0)?.addr,
                x: words(x, n)?,
            }
        }
        accel::OP_BFS_STEP => {
            let [row, col, dist, n, level, _] = args;
            // All ones means unreached: neither this level nor the next may be that.
            require(level < u64::MAX - 1)?;
            Operation::BfsStep {
                row: words(row, n.saturating_add(1))?,
                col: words(col, 0)?.addr,
                dist: words(dist, n)?,
                level,
            }
        }
        accel::OP_ATOMIC_ADD => {
            let [base, idx, n, value, len, _] = args;
            Operation::AtomicAdd {
                base: words(base, len)?,
                idx: words(idx, n)?,
                value,
            }
        }
        accel::OP_EXCLUSIVE_ADD => {
            let [addr, n, value, ..] = args;
            require(n <= accel::MAX_EXCLUSIVE_ADDS)?;
            let Words { addr, .. } = words(addr, 1)?;
            Operation::ExclusiveAdd { addr, n, value }
        }
        accel::OP_CHASE => {
            let [base, start, steps, len, ..] = args;
            let base = words(base, len)?;
            require(start < len)?;
            Operation::Chase { base, start, steps }
        }
        accel::OP_MIGRATE => {
            let [addr, bytes, direction, ..] = args;
            require(addr.is_multiple_of(WORD))?;
            Operation::Migrate {
                direction: match direction {
                    accel::TO_DEVICE => Direction::ToDevice,
                    accel::TO_SYSTEM => Direction::ToSystem,
                    _ => return Err(CommandError::Argument),
                },
                span: addresses.span(addr, bytes)?,
            }
        }
        accel::OP_FREE => {
            let [addr, bytes, ..] = args;
            require(addr.is_multiple_of(PAGE_SIZE) && bytes.is_multiple_of(PAGE_SIZE))?;
            Operation::Free {
                span: addresses.span(addr, bytes)?,
            }
        }
        accel::OP_HINT => {
            let [addr, bytes, hint, ..] = args;
            require(addr.is_multiple_of(WORD))?;
            Operation::Hint {
                hint: GuestHint::decode(hint)?,
                span: addresses.span(addr, bytes)?,
            }
        }
        _ => return Err(CommandError::Opcode),
    })
}

fn require(condition: bool) -> Result<(), CommandError> {
    condition.then_some(()).ok_or(CommandError::Argument)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::memory::testing::Random;

    const MANAGED: Addresses = Addresses {
        base: 0x1_0000_0000,
        bytes: 1 << 20,
    };

    fn decode_args(opcode: u32, args: [u64; 6]) -> Result<Operation, CommandError> {
        let command = Command {
            opcode,
            args,
            ..Command::default()
        };
        decode(&command, &MANAGED)
    }

    #[test]
    fn refuses_what_the_data_sheet_forbids() {
        let base = MANAGED.base;
        let end = base + MANAGED.bytes;
        let refused = |opcode, args, error| assert_eq!(decode_args(opcode, args), Err(error));
        refused(17, [0; 6], CommandError::Opcode);
        refused(
            accel::OP_FILL,
            [base + 1, 1, 0, 0, 0, 0],
            CommandError::Argument,
        );
        refused(
            accel::OP_FILL,
            [end - 8, 2, 0, 0, 0, 0],
            CommandError::Address(end),
        );
        refused(
            accel::OP_COPY,
            [base, base + 4096, 12, 0, 0, 0],
            CommandError::Argument,
        );
        refused(
            accel::OP_COPY,
            [base, base + 8, 16, 0, 0, 0],
            CommandError::Argument,
        );
        refused(
            accel::OP_MATMUL,
            [base, base, base, 1 << 33, 0, 0],
            CommandError::Address(end),
        );
        refused(
            accel::OP_SPMV,
            [base, base, base, base, base, u64::MAX],
            CommandError::Address(end),
        );
        refused(
            accel::OP_CHASE,
            [base, 4, 1, 4, 0, 0],
            CommandError::Argument,
        );
        refused(
            accel::OP_BFS_STEP,
            [base, base, base, 1, u64::MAX - 1, 0],
            CommandError::Argument,
        );
        refused(
            accel::OP_MIGRATE,
            [base, 8, 2, 0, 0, 0],
            CommandError::Argument,
        );
        refused(
            accel::OP_FREE,
            [base, 8, 0, 0, 0, 0],
            CommandError::Argument,
        );
        refused(
            accel::OP_HINT,
            [base, 8, 7, 0, 0, 0],
            CommandError::Argument,
        );
        refused(
            accel::OP_HINT,
            [base + 4, 8, 0, 0, 0, 0],
            CommandError::Argument,
        );
        refused(
            accel::OP_HINT,
            [base, MANAGED.bytes + 1, 0, 0, 0, 0],
            CommandError::Address(end),
        );
        let flags = Command {
            flags: 2,
            ..Command::default()
        };
        assert_eq!(decode(&flags, &MANAGED), Err(CommandError::Argument));
        let in_space = |space: u64| Command {
            flags: (space as u32) << accel::FLAG_SPACE_SHIFT,
            ..Command::default()
        };
        assert_eq!(space(&in_space(accel::SPACES)), Ok(accel::SPACES as u16));
        assert_eq!(
            space(&in_space(accel::SPACES + 1)),
            Err(CommandError::Argument)
        );
    }

    #[test]
    fn random_commands_are_refused_or_in_range() {
        let mut random = Random::new(1);
        let mut accepted = [0u32; 18];
        for _ in 0..400_000 {
            let opcode = random.below(18) as u32;
            let args = std::array::from_fn(|_| match random.below(6) {
                0 => random.next(),
                1 => random.below(64),
                2 => MANAGED.base + random.below(MANAGED.bytes + 64),
                3 => MANAGED.base + random.below(MANAGED.bytes / 4096 + 2) * 4096,
                4 => u64::MAX - random.below(16),
                _ => MANAGED.base + random.below(MANAGED.bytes / 8 + 8) * 8,
            });
            let Ok(operation) = decode_args(opcode, args) else {
                continue;
            };
            accepted[opcode as usize] += 1;
            for run in operation.runs() {
                assert!(run.addr.is_multiple_of(8), "{operation:?}");
                assert!(
                    MANAGED.contains(run.addr, run.len.checked_mul(8).unwrap()),
                    "{operation:?}"
                );
            }
            if let Some(span) = operation.span() {
                assert!(MANAGED.contains(span.addr, span.len), "{operation:?}");
            }
        }
        assert!(accepted[..17].iter().all(|n| *n > 0), "{accepted:?}");
        assert_eq!(accepted[17], 0);
    }
}
