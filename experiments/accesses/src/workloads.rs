//! The guest's programs, without those that need a virtual machine to make sense.

#[path = "../../../guest-images/guest/src/workloads/bfs.rs"]
mod bfs;
#[path = "../../../guest-images/guest/src/workloads/chase.rs"]
mod chase;
#[path = "../../../guest-images/guest/src/workloads/churn.rs"]
mod churn;
#[path = "../../../guest-images/guest/src/workloads/gather.rs"]
mod gather;
#[path = "../../../guest-images/guest/src/workloads/join.rs"]
mod join;
#[path = "../../../guest-images/guest/src/workloads/matmul.rs"]
mod matmul;
#[path = "../../../guest-images/guest/src/workloads/phases.rs"]
mod phases;
#[path = "../../../guest-images/guest/src/workloads/pingpong.rs"]
mod pingpong;
#[path = "../../../guest-images/guest/src/workloads/relay.rs"]
mod relay;
#[path = "../../../guest-images/guest/src/workloads/sort.rs"]
mod sort;
#[path = "../../../guest-images/guest/src/workloads/spmv.rs"]
mod spmv;
#[path = "../../../guest-images/guest/src/workloads/stencil.rs"]
mod stencil;
#[path = "../../../guest-images/guest/src/workloads/stream.rs"]
mod stream;
#[path = "../../../guest-images/guest/src/workloads/torture.rs"]
mod torture;
#[path = "../../../guest-images/guest/src/workloads/tree.rs"]
mod tree;
#[path = "../../../guest-images/guest/src/workloads/vecadd.rs"]
mod vecadd;
#[path = "../../../guest-images/guest/src/workloads/zipf.rs"]
mod zipf;

use crate::catalog::Kind;
use crate::console::{Count, Grouped};
use crate::cpu::Cpu;

/// The program, or why there is none here.
pub fn program(kind: Kind) -> Result<fn(&Cpu), &'static str> {
    Ok(match kind {
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
        Kind::Recover => return Err("it is about pages that a real machine loses"),
        Kind::SelfTest => return Err("it is about commands that a real accelerator refuses"),
        Kind::Agent => return Err("it does what a test tells it"),
        Kind::Crash => return Err("it crashes"),
    })
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
