//! Landlock: the files that a confined thread may open by their paths.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr,
};

use super::error::SandboxError;
use super::privileges::{self, Capabilities};
use super::table::Files;

/// The paths that the configuration of a run names.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    /// Outputs that take their place at the end of the run, behind any links.
    pub outputs: Vec<PathBuf>,
    /// Policy scripts.
    pub scripts: Vec<PathBuf>,
    /// Folders for outputs that are asked for later.
    pub allow_write: Vec<PathBuf>,
    /// Whether devices come while the guest runs, which takes userfaultfds.
    pub userfaultfd: bool,
}

impl Paths {
    /// Whether threads with this entry in the table may open more than others.
    pub(super) fn has(&self, files: Files) -> bool {
        match files {
            Files::Nothing => false,
            Files::Outputs => !self.outputs.is_empty() || !self.allow_write.is_empty(),
            Files::Scripts => !self.scripts.is_empty(),
            Files::Later => !self.allow_write.is_empty(),
            Files::Userfaultfd => self.userfaultfd,
        }
    }
}

/// What the threads with one entry in the table's column `files` may open, and what they need for it.
pub(super) struct Opening {
    /// None if this kernel has no Landlock, or has it switched off.
    ruleset: Option<OwnedFd>,
    /// Capabilities without which the thread could not open what it may.
    pub(super) capabilities: Capabilities,
}

/// What tells the limits of the host, which error messages name: of this process, and of the whole host.
const LIMITS: &[&str] = &[
    "/proc/self",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/sys/fs",
    "/proc/sys/kernel",
    "/proc/sys/vm",
    "/sys/fs/cgroup",
];

impl Opening {
    /// Makes the rules. Paths that are not there, and folders of paths that are not there, are left out: opening them fails anyway.
    pub(super) fn new(files: Files, paths: &Paths) -> Result<Opening, SandboxError> {
        let rules = Rules::new()?;
        let later = |rules| each(&paths.allow_write, rules, Rules::folder);
        let rules = match files {
            Files::Nothing => rules,
            Files::Outputs => later(each(&paths.outputs, rules, Rules::output)?)?,
            Files::Scripts => each(&paths.scripts, rules, Rules::script)?,
            Files::Later => later(rules)?,
            Files::Userfaultfd => rules.userfaultfd()?,
        };
        Ok(Opening {
            ruleset: rules.ruleset.into(),
            capabilities: rules.capabilities,
        })
    }

    /// Whether the kernel enforces the rules.
    pub(super) fn is_enforced(&self) -> bool {
        self.ruleset.is_some()
    }

    /// Confines the calling thread, and those that it will start, to these rules.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn restrict_this_thread(&self) -> io::Result<()> {
        let ruleset = self.ruleset.as_ref().ok_or(ErrorKind::Unsupported)?;
        let ruleset = ruleset.as_raw_fd();
        // SAFETY: takes integers; the descriptor is open.
        match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Rules that are being made.
struct Rules {
    ruleset: RulesetCreated,
    capabilities: Capabilities,
}

impl Rules {
    /// Makes the rules that all threads have: what tells limits of the host may be read.
    fn new() -> Result<Rules, SandboxError> {
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .handle_access(AccessNet::from_all(ABI::V4))?
            .create()?;
        let rules = Rules {
            ruleset,
            capabilities: Capabilities::NONE,
        };
        LIMITS.iter().try_fold(rules, |rules, path| {
            rules.rule(Path::new(path), AccessFs::ReadFile.into())
        })
    }

    /// Devices that come while the guest runs.
    fn userfaultfd(self) -> Result<Rules, SandboxError> {
        let rights = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
        let mut rules = self.rule(Path::new("/dev/userfaultfd"), rights)?;
        rules.capabilities = Capabilities::USERFAULTFD;
        Ok(rules)
    }

    /// An output is a new file in its folder, or replaces the file that is there, or is written over it.
    fn output(self, path: &Path) -> Result<Rules, SandboxError> {
        let rules = match path.is_file() {
            true => self.rule(path, AccessFs::WriteFile | AccessFs::Truncate)?,
            false => self,
        };
        let folder = parent(path);
        let rules = rules.rule(folder, AccessFs::MakeReg | AccessFs::RemoveFile)?;
        Ok(rules.needs(folder, libc::W_OK | libc::X_OK))
    }

    /// Editors replace a script's file by another one, so the files of its folder may be read.
    fn script(self, path: &Path) -> Result<Rules, SandboxError> {
        let mut rules = self;
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        for folder in [parent(path), parent(&real)] {
            rules = rules.rule(folder, AccessFs::ReadFile.into())?;
            rules = rules.needs(folder, libc::R_OK | libc::X_OK);
        }
        Ok(rules.needs(&real, libc::R_OK))
    }

    fn folder(self, folder: &Path) -> Result<Rules, SandboxError> {
        let rights = AccessFs::MakeReg
            | AccessFs::RemoveFile
            | AccessFs::ReadFile
            | AccessFs::WriteFile
            | AccessFs::Truncate;
        let rules = self.rule(folder, rights)?;
        Ok(rules.needs(folder, libc::W_OK | libc::X_OK))
    }

    fn rule(mut self, path: &Path, rights: BitFlags<AccessFs>) -> Result<Rules, SandboxError> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path);
        match opened {
            Ok(opened) => {
                self.ruleset = self.ruleset.add_rule(PathBeneath::new(opened, rights))?;
                Ok(self)
            }
            // Opening it later fails in the same way, with a message that says what for.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied
                ) =>
            {
                Ok(self)
            }
            Err(error) => Err(SandboxError::Open {
                path: path.to_owned(),
                error,
            }),
        }
    }

    /// Keeps the capability to open any file if the user is root and the path is another user's, as under `sudo`: Landlock limits it
    /// to the paths above.
    fn needs(mut self, path: &Path, mode: libc::c_int) -> Rules {
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
            return self;
        };
        // SAFETY: the kernel reads a string that ends with a zero.
        let look = || unsafe {
            libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) == 0
        };
        if look() && !privileges::without(look).unwrap_or(true) {
            self.capabilities = Capabilities::ANY_FILE;
        }
        self
    }
}

/// Adds the rules for each of these paths.
fn each(
    paths: &[PathBuf],
    rules: Rules,
    add: impl Fn(Rules, &Path) -> Result<Rules, SandboxError>,
) -> Result<Rules, SandboxError> {
    paths.iter().try_fold(rules, |rules, path| add(rules, path))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}
