//! What can be wrong with a configuration.

use std::path::PathBuf;

use hmm_backend::pages::Hint;
use thiserror::Error;

use crate::host::file::FileError;
use hmmvisor_experiments::size::Size;
use hmmvisor_experiments::toml_files;

/// What is wrong with a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading configuration file {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: FileError,
    },
    /// The file is no text.
    #[error("reading configuration file {}: it is not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The file is not TOML or has something unknown in it; the error shows where.
    #[error("in configuration file {}: {}", path.display(), toml_files::wrong(error))]
    Toml {
        /// The file.
        path: PathBuf,
        /// The parser's error, with its place in the file. No source of this error, because the message has its text.
        error: toml::de::Error,
    },
    /// A number out of its range.
    #[error("{what} is {given}, but must be from {min} to {max}")]
    Range {
        /// What has the number.
        what: &'static str,
        /// The number.
        given: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// A size that is 0, or no multiple of what it must be.
    #[error("{what} of {given}: must be a positive multiple of {unit}")]
    Multiple {
        /// What has the size.
        what: &'static str,
        /// The size.
        given: Size,
        /// What it must be a multiple of.
        unit: Size,
    },
    /// A size larger than what there is.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// A host CPU that this process may not use.
    #[error("{what} names host CPU {cpu}, but this process may use only {allowed:?}")]
    Cpu {
        /// The key.
        what: &'static str,
        /// The CPU.
        cpu: usize,
        /// The CPUs that it may use.
        allowed: Vec<usize>,
    },
    /// A list of CPUs without any.
    #[error("{what} is empty; leave it out for the default")]
    NoCpus {
        /// The key.
        what: &'static str,
    },
    /// A list with more entries than make sense.
    #[error("{what} has {given} entries, but must have no more than {max}")]
    TooMany {
        /// The key.
        what: &'static str,
        /// How many there are.
        given: usize,
        /// The most there may be.
        max: usize,
    },
    /// More memory than the control group has left: the kernel would kill the run.
    #[error("guest and accelerators may need {} MiB, but control group {group} has {} MiB left of its {} MiB: use less with --memory or --device-memory, or raise its {file}", needed.div_ceil(1 << 20), room >> 20, limit >> 20)]
    Group {
        /// Bytes that the run may need.
        needed: u64,
        /// The group's folder.
        group: String,
        /// What is left.
        room: u64,
        /// The group's limit.
        limit: u64,
        /// The file that it is in.
        file: &'static str,
    },
    /// More address space than this process may map.
    #[error("guest and accelerators need {} KiB of address space, but this process has {} KiB left of its {} KiB: use less with --memory or --device-memory, or raise `ulimit -v`", needed >> 10, room >> 10, limit >> 10)]
    AddressSpace {
        /// Bytes that the run needs.
        needed: u64,
        /// What is left.
        room: u64,
        /// The limit.
        limit: u64,
    },
    /// An option for another kind of guest.
    #[error("{what} {kernel}")]
    Boot {
        /// The option.
        what: &'static str,
        /// Whether there is a kernel.
        kernel: &'static str,
    },
    /// A parameter that would break the guest's command line.
    #[error(
        "parameter `{0}`: names and values must not be empty or contain spaces, and names no `=`"
    )]
    Param(String),
    /// A parameter that is there more than once.
    #[error("parameter `{0}` is given twice; give it once")]
    RepeatedParam(String),
    /// Two regions that share memory.
    #[error(
        "[[policy.region]] number {first} and number {second} overlap from {start} on; give each part of memory one policy"
    )]
    Overlap {
        /// The number of one region, from 1.
        first: usize,
        /// The number of the other region, from 1.
        second: usize,
        /// Where what they share begins.
        start: Size,
    },
    /// Two hints that cannot both be followed.
    #[error(
        "[[hint]] number {first}, `{one}`, and number {second}, `{other}`, contradict each other from {start} on; give one of them"
    )]
    Contradiction {
        /// The number of one hint, from 1.
        first: usize,
        /// That hint.
        one: Hint,
        /// The number of the other hint, from 1.
        second: usize,
        /// The other hint.
        other: Hint,
        /// The begin of the memory that both are about.
        start: Size,
    },
    /// A link of an accelerator that the machine does not have.
    #[error(
        "[links] device{device}: there is no such accelerator; the machine has {count}, from device0"
    )]
    LinkOfNone {
        /// The accelerator's number.
        device: u8,
        /// How many there are.
        count: u32,
    },
    /// A pair of accelerators without a link, though other pairs have one.
    #[error(
        "[links] device{first}-device{second} is missing: give all pairs of accelerators, or peer for those that are not given, like peer = \"host\""
    )]
    NoLink {
        /// The lower number.
        first: u8,
        /// The higher number.
        second: u8,
    },
    /// A hint that cannot be followed.
    #[error("[[hint]] number {number}, `{hint}`: {why}")]
    Hint {
        /// The hint's number, from 1.
        number: usize,
        /// The hint.
        hint: Hint,
        /// The cause.
        why: String,
    },
}

/// A size larger than what there is.
#[derive(Debug, Error)]
#[error("{what} of {given} is more than {limit_of} ({limit}); {remedy}")]
pub struct TooLarge {
    /// What has the size.
    pub what: &'static str,
    /// The size.
    pub given: Size,
    /// What has the size `limit`.
    pub limit_of: &'static str,
    /// The most that it may be.
    pub limit: Size,
    /// What to do about a size that is larger.
    pub remedy: &'static str,
}
