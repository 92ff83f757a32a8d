//! Builds the guest in `guest/` and tells the crate where its image is.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The guest is always built for this, whatever the host crate is built for or instrumented with.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Variables by which an outer cargo run (clippy, documentation, coverage, sanitizers, another
/// target) would leak its settings into the guest's build.
const LEAKS: [&str; 5] = [
    "RUSTFLAGS",
    "RUSTDOCFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "LLVM_PROFILE_FILE",
];
/// The same, by prefix.
const LEAK_PREFIXES: [&str; 4] = [
    "CARGO_BUILD_",
    "CARGO_ENCODED_",
    "CARGO_PROFILE_",
    "CARGO_TARGET_",
];

fn main() {
    for path in [
        "build.rs",
        "guest/Cargo.toml",
        "guest/Cargo.lock",
        "guest/build.rs",
        "guest/src",
        "src/catalog.rs",
        "abi",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    let target_dir = PathBuf::from(variable("OUT_DIR")).join("guest");
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args([
        "build",
        "--release",
        "--locked",
        "--offline",
        "--target",
        TARGET,
    ]);
    cargo
        .arg("--manifest-path")
        .arg(PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("guest/Cargo.toml"));
    cargo.arg("--target-dir").arg(&target_dir);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if LEAKS.contains(&&*text) || LEAK_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    // Set, it also outranks flags in configuration files, such as `target-cpu=native`: guests have
    // SSE2 and nothing beyond.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-cpu=x86-64");

    let status = cargo
        .status()
        .unwrap_or_else(|error| panic!("cannot start {cargo:?}: {error}"));
    assert!(status.success(), "building the guest failed: {status}");
    let image = target_dir.join(TARGET).join("release/hmmvisor-guest");
    println!("cargo::rustc-env=HMMVISOR_GUEST_IMAGE={}", image.display());
}

fn variable(name: &str) -> std::ffi::OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo did not set {name}"))
}
