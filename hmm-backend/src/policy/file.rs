//! Files that policies are read from.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// A file that a policy was read from, with the digest of its contents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyFile {
    /// The path as the user gave it.
    pub path: PathBuf,
    /// The SHA-256 of its contents, in hexadecimal digits.
    pub sha256: String,
}

impl PolicyFile {
    /// Reads at most `limit + 1` bytes of a file, so that the caller sees whether it is too large. Returns the file's
    /// name and digest, and the bytes. The file must be a regular one: opening or reading pipes and devices can wait
    /// for ever or have side effects.
    pub fn read(path: &Path, limit: u64) -> io::Result<(PolicyFile, Vec<u8>)> {
        // Non-blocking, because opening a pipe would wait for a writer. Nothing is read before the kind of file is
        // known.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(
                "it is not a regular file; copy its contents into one",
            ));
        }
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        let named = PolicyFile {
            path: path.to_owned(),
            sha256: PolicyFile::sha256(&bytes),
        };
        Ok((named, bytes))
    }

    /// Returns the name and the digest of a text that comes from no file.
    pub fn of_text(name: &Path, text: &str) -> PolicyFile {
        PolicyFile {
            path: name.to_owned(),
            sha256: PolicyFile::sha256(text.as_bytes()),
        }
    }

    fn sha256(bytes: &[u8]) -> String {
        let digest = Sha256::digest(bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Returns a checksum of a policy file's text: eight hexadecimal digits (FNV-1a), the same on every host and in every
/// version.
pub fn policy_checksum(text: &str) -> String {
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_sha_256() {
        assert_eq!(
            PolicyFile::sha256(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn only_regular_files_are_read() {
        for path in ["/dev/zero", "/"] {
            let error = PolicyFile::read(path.as_ref(), 9).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{path}: {error}");
        }
        let (_, bytes) = PolicyFile::read("/proc/self/maps".as_ref(), 9).unwrap();
        assert_eq!(bytes.len(), 10);
    }
}
