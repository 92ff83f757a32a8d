//! Runs random sequences of the backend's calls, CPU accesses and device accesses on real userfaultfd, and
//! compares with a model of the contents and permissions of every page. `PROPTEST_CASES` sets the number of
//! sequences.

mod check;
#[path = "../common/mod.rs"]
mod common;
mod cpu;
mod op;
mod world;

use hmm_backend::engine::Engine;
use hmm_backend::snapshot;
use op::case;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use world::run;

fn config() -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/proptest-regressions/backend.txt"
        )))),
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 100;
    }
    config
}

#[test]
fn the_model_agrees_under_remap() {
    proptest!(config(), |((sizes, policy, ops) in case(), blocks: bool)| run(Engine::Remap, sizes, policy, blocks, &ops));
}

#[test]
fn the_model_agrees_under_copy() {
    proptest!(config(), |((sizes, policy, ops) in case(), blocks: bool)| run(Engine::Copy, sizes, policy, blocks, &ops));
}

/// As on a kernel without `UFFDIO_MOVE`.
#[test]
fn the_model_agrees_under_copy_in_place() {
    common::without_moves(|| {
        proptest!(config(), |((sizes, policy, ops) in case(), blocks: bool)| run(Engine::Copy, sizes, policy, blocks, &ops));
    });
}

#[test]
fn the_snapshot_bytes_are_what_they_are_documented_to_be() {
    use snapshot::*;
    let bytes = [NONE, READ, WRITE, LARGE, DEVICE_LOCAL, DEVICE_REMOTE, ERROR];
    assert_eq!(bytes, [0, 1, 2, 4, 0x20, 0x30, 0xff]);
    let bytes = [
        COHERENT_LOCAL,
        COHERENT_REMOTE,
        EXCLUSIVE_LOCAL,
        EXCLUSIVE_REMOTE,
    ];
    assert_eq!(bytes, [0x40, 0x50, 0x60, 0x70]);
}
