//! The library that makes calls fail, and what it is told.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Folder with the sources in C.
pub const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/failing_calls");

/// The library and the guest that uses virtio devices, built.
pub struct Library {
    folder: TempDir,
}

impl Library {
    /// Builds both with the C compiler, which the workspace's dependencies need as well.
    pub fn build() -> Library {
        let folder = tempfile::tempdir().unwrap();
        let compile = |source: &str, target: &str, options: &[&str]| {
            let output = Command::new(std::env::var_os("CC").unwrap_or("cc".into()))
                .args(["-O2", "-Wall", "-Wextra", "-Werror"])
                .args(options)
                .arg("-o")
                .arg(folder.path().join(target))
                .arg(Path::new(SOURCES).join(source))
                .output()
                .expect("the C compiler `cc`");
            let message = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{source}: {message}");
        };
        compile("preload.c", "preload.so", &["-shared", "-fPIC"]);
        compile(
            "guest.c",
            "guest",
            &[
                "-static",
                "-nostdlib",
                "-ffreestanding",
                "-fno-pic",
                "-no-pie",
                "-fno-stack-protector",
                "-mgeneral-regs-only",
                "-Wl,-Ttext-segment=0x200000",
                "-Wl,--build-id=none",
                "-Wl,-z,noexecstack",
            ],
        );
        Library { folder }
    }

    /// Of the guest.
    pub fn guest(&self) -> PathBuf {
        self.folder.path().join("guest")
    }

    /// Has a command's calls counted in `counts`, and listed in `log`.
    pub fn attach(&self, command: &mut Command, counts: &Counts) {
        command
            .env("LD_PRELOAD", self.folder.path().join("preload.so"))
            .env("FAILING_CALLS_COUNTS", &counts.path);
    }
}

/// Numbers that the library keeps while the command runs.
pub struct Counts {
    path: PathBuf,
    file: File,
}

impl Counts {
    pub fn new(folder: &Path) -> Counts {
        let path = folder.join("counts");
        fs::write(&path, [0; 4096]).unwrap();
        let file = File::open(&path).unwrap();
        Counts { path, file }
    }

    fn number(&self, index: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, index * 8).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Calls that the row is about.
    pub fn seen(&self) -> u64 {
        self.number(0)
    }

    /// Those that were made to fail.
    pub fn failed(&self) -> u64 {
        self.number(1)
    }
}
