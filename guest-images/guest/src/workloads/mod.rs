//! The programs. Each checks all it computed and returns only if everything was right.

mod agent;
mod bfs;
mod chase;
mod churn;
mod crash;
mod gather;
mod join;
mod matmul;
mod phases;
mod pingpong;
mod recover;
mod relay;
mod selftest;
mod sort;
mod spmv;
mod stencil;
mod stream;
mod torture;
mod tree;
mod vecadd;
mod zipf;

use crate::catalog::Kind;
use crate::console::{Count, Grouped};
use crate::cpu::Cpu;

/// Runs what the command line asks for; collective.
pub fn run(cpu: &Cpu) {
    let program = match cpu.params.workload.kind {
        Kind::VecAdd => vecadd::run,
        Kind::Stream => stream::run,
        Kind::PingPong => pingpong::run,
        Kind::Relay => relay::run,
        Kind::Gather => gather::run,
        Kind::Chase => chase::run,
        Kind::Bfs => bfs::run,
        Kind::MatMul => matmul::run,
        Kind::SpMv => spmv::run,
        Kind::Churn => churn::run,
        Kind::Stencil => stencil::run,
        Kind::Join => join::run,
        Kind::Sort => sort::run,
        Kind::Zipf => zipf::run,
        Kind::Tree => tree::run,
        Kind::Phases => phases::run,
        Kind::Torture => torture::run,
        Kind::Recover => recover::run,
        Kind::SelfTest => selftest::run,
        Kind::Agent => agent::run,
        Kind::Crash => crash::run,
    };
    program(cpu);
}

/// Prints the line that says what was found right; by the leader, when all vCPUs are done. Collective.
macro_rules! report {
    ($cpu:expr, $($text:tt)*) => {
        $cpu.barrier();
        if $cpu.is_leader() {
            $crate::console::say!("{}: {}", $cpu.params.workload.name, format_args!($($text)*));
        }
    };
}
use report;
