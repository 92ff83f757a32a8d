//! The corpus, and as many random inputs, through the functions that the fuzzer calls: the checks that are possible
//! without a fuzzer.

use std::path::Path;

fn replay(target: &str, run: fn(&[u8]), random: u32) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let mut inputs = 0;
    for file in std::fs::read_dir(&folder).expect("there is a corpus") {
        let path = file.expect("it can be listed").path();
        eprintln!("{}", path.display());
        run(&std::fs::read(path).expect("it can be read"));
        inputs += 1;
    }
    assert!(
        inputs > 10 || target == "requests",
        "{target} has a corpus of {inputs}"
    );
    let mut state = 1u64;
    for round in 0..random {
        let mut next = || {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let len = next() % 500;
        let bytes: Vec<u8> = (0..len).map(|_| (next() >> 24) as u8).collect();
        eprintln!("{target}: random input {round}");
        run(&bytes);
    }
}

#[test]
fn residency() {
    replay("residency", hmmvisor_fuzz::residency::run, 3000);
}

#[test]
fn commands() {
    replay("commands", hmmvisor_fuzz::commands::run, 300);
}

#[test]
fn virtio() {
    replay("virtio", hmmvisor_fuzz::virtio::run, 300);
}

#[test]
fn configuration() {
    replay("configuration", hmmvisor_fuzz::configuration::run, 3000);
}

#[test]
fn traces() {
    replay("traces", hmmvisor_fuzz::traces::run, 300);
}

#[test]
fn requests() {
    replay("requests", hmmvisor_fuzz::requests::run, 100);
}

#[test]
fn scripts() {
    replay("scripts", hmmvisor_fuzz::scripts::run, 300);
}
