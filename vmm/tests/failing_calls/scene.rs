//! What runs while calls fail.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::kernel::Code;
use crate::library::Library;
use crate::signals::heed_signals;

/// How pages migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    Remap,
    Copy,
    /// `copy` on a kernel that cannot move pages (before Linux 6.8): pages are copied under write protection.
    CopyInPlace,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Engine::Remap => "remap",
            Engine::Copy => "copy",
            Engine::CopyInPlace => "copy-in-place",
        })
    }
}

/// A run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scene {
    /// Two vCPUs and two accelerators share pages; there is hardly any device memory.
    Torture,
    /// The same, amid the host's migrations, pins and failing drivers; its outputs replace files.
    Chaos,
    /// Torture where the kernel moves pages now and then and reports that it did not, so that it is asked where they are.
    Doubt,
    /// Torture without end: only a signal ends it.
    Endless,
    /// A guest that uses a disk, a balloon, entropy, and memory that is shared.
    Virtio,
    /// A kernel that reads the console and switches the machine off.
    Console,
}

pub const ALL: [Scene; 6] = [
    Scene::Torture,
    Scene::Chaos,
    Scene::Doubt,
    Scene::Endless,
    Scene::Virtio,
    Scene::Console,
];

impl Scene {
    /// With which engines it is worth running.
    pub fn engines(self) -> &'static [Engine] {
        match self {
            Scene::Torture | Scene::Chaos | Scene::Endless => {
                &[Engine::Remap, Engine::Copy, Engine::CopyInPlace]
            }
            Scene::Doubt | Scene::Virtio => &[Engine::Remap, Engine::Copy],
            Scene::Console => &[Engine::Remap],
        }
    }

    /// What the output of a good run has in it.
    pub fn good(self) -> &'static str {
        match self {
            Scene::Console => "abcq",
            _ => ": verified",
        }
    }

    /// The command, with its files in `folder`.
    pub fn command(self, library: &Library, engine: Engine, folder: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hmmvisor"));
        heed_signals(&mut command);
        command.current_dir(folder).env("RUST_BACKTRACE", "0");
        command.args(["run", "--device-memory", "64K", "--memory"]);
        command.arg(match self {
            Scene::Console => "64M",
            _ => "16M",
        });
        command.stdin(Stdio::null());
        let torture = |command: &mut Command, params: &[&str]| {
            command.args(["--workload", "torture", "--vcpus", "2", "--devices", "2"]);
            command.args(["--record", "t.trace", "--json", "o.json"]);
            for param in params {
                command.args(["--param", param]);
            }
        };
        match self {
            Scene::Torture => torture(&mut command, &["ops=600"]),
            Scene::Chaos => {
                for output in ["t.trace", "o.json"] {
                    fs::write(folder.join(output), "from before").unwrap();
                }
                torture(
                    &mut command,
                    &["seconds=1", "pages=48", "chaos=on", "policy=random"],
                );
            }
            Scene::Doubt => {
                torture(&mut command, &["ops=600"]);
                command.env("FAILING_CALLS_DOUBT", "1");
            }
            Scene::Endless => torture(&mut command, &["seconds=1000", "pages=48"]),
            Scene::Virtio => {
                fs::write(folder.join("disk.img"), vec![0; 1 << 20]).unwrap();
                command.arg("--guest").arg(library.guest());
                command.args(["--disk", "disk.img", "--balloon", "1M", "--rng"]);
                command.args(["--shared", "2M"]);
            }
            Scene::Console => {
                let kernel = Code::default().echo_until(b'q').power_off().bzimage();
                fs::write(folder.join("kernel"), kernel).unwrap();
                fs::write(folder.join("keys"), format!("{}abcq", "x".repeat(60))).unwrap();
                command.args(["--kernel", "kernel", "--console", "stdio"]);
                command.stdin(fs::File::open(folder.join("keys")).unwrap());
            }
        }
        match engine {
            Engine::Remap => command.args(["--engine", "remap"]),
            Engine::Copy => command.args(["--engine", "copy"]),
            Engine::CopyInPlace => command
                .args(["--engine", "copy"])
                .env("FAILING_CALLS_NO_MOVE", "1"),
        };
        command
    }
}
