//! The compute kernels of the commands. Kernels move words in chunks through local buffers, one page at a time,
//! and know nothing of faults or migration; only an access can fail or be aborted.

mod dense;
mod indexed;
mod sparse;
mod stream;

use crate::commands::command::Operation;
use crate::commands::error::CommandError;
use crate::commands::memory::Memory;

/// Executes an operation. Returns its result, 0 if it has none.
pub fn execute(operation: Operation, memory: &mut impl Memory) -> Result<u64, CommandError> {
    let no_result = |()| 0;
    match operation {
        Operation::Nop => Ok(0),
        Operation::Fill { dst, start, step } => {
            stream::fill(memory, dst, start, step).map(no_result)
        }
        Operation::Copy { dst, src } => stream::copy(memory, dst, src).map(no_result),
        Operation::VectorAdd { c, a, b } => {
            stream::combine(memory, c, a, b, u64::wrapping_add).map(no_result)
        }
        Operation::Triad { a, b, c, s } => {
            stream::combine(memory, a, b, c, |b: f64, c| b + s * c).map(no_result)
        }
        Operation::Reduce { src } => stream::reduce(memory, src),
        Operation::Gather { dst, src, idx } => {
            indexed::gather(memory, dst, src, idx).map(no_result)
        }
        Operation::Scatter { dst, src, idx } => {
            indexed::scatter(memory, dst, src, idx).map(no_result)
        }
        Operation::AtomicAdd { base, idx, value } => {
            indexed::atomic_add(memory, base, idx, value).map(no_result)
        }
        Operation::ExclusiveAdd { addr, n, value } => memory.add_exclusively(addr, n, value),
        Operation::Chase { base, start, steps } => indexed::chase(memory, base, start, steps),
        Operation::Matmul { c, a, b, n } => dense::matmul(memory, c, a, b, n).map(no_result),
        Operation::Spmv {
            y,
            row,
            col,
            val,
            x,
        } => sparse::spmv(memory, y, row, col, val, x).map(no_result),
        Operation::BfsStep {
            row,
            col,
            dist,
            level,
        } => sparse::bfs_step(memory, row, col, dist, level),
        Operation::Migrate { span, direction } => memory.migrate(span, direction),
        Operation::Free { span } => memory.free(span),
        Operation::Hint { span, hint } => memory.hint(span, hint).map(no_result),
    }
}
