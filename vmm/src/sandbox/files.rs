//! Landlock: the files that a confined thread may open by their paths.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus,
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
}

/// What the threads with one entry in the table's column `files` may open, and what they need for it.
pub(super) struct Opening {
    ruleset: RulesetCreated,
    /// Capabilities without which the thread could not open what it may.
    pub(super) capabilities: Capabilities,
}

/// Returns whether this kernel has Landlock, and has it switched on.
pub(super) fn is_available() -> bool {
    /// `LANDLOCK_CREATE_RULESET_VERSION`: nothing is made; the version of the interface is returned.
    const VERSION: libc::c_uint = 1;
    let nothing = ptr::null::<libc::c_void>();
    // SAFETY: with this flag the kernel reads nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, VERSION) };
    version >= 1
}

impl Opening {
    /// Makes the rules. Paths that are not there, and folders of paths that are not there, are left out: opening them fails anyway.
    pub(super) fn new(files: Files, paths: &Paths) -> Result<Opening, SandboxError> {
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .handle_access(AccessNet::from_all(ABI::V4))?
            .create()?;
        let mut opening = Opening {
            ruleset,
            capabilities: Capabilities::NONE,
        };
        match files {
            Files::Nothing => {}
            Files::Outputs => {
                for path in &paths.outputs {
                    opening = opening.output(path)?;
                }
                for folder in &paths.allow_write {
                    opening = opening.folder(folder)?;
                }
            }
            Files::Scripts => {
                for path in &paths.scripts {
                    opening = opening.script(path)?;
                }
            }
            Files::Later => {
                for folder in &paths.allow_write {
                    opening = opening.folder(folder)?;
                }
            }
            Files::Userfaultfd => {
                let device = Path::new("/dev/userfaultfd");
                opening = opening.rule(
                    device,
                    AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
                )?;
                opening.capabilities = Capabilities::USERFAULTFD;
            }
        }
        Ok(opening)
    }

    /// An output is a new file in its folder, or replaces the file that is there, or is written over it.
    fn output(self, path: &Path) -> Result<Opening, SandboxError> {
        let opening = match path.is_file() {
            true => self.rule(path, AccessFs::WriteFile | AccessFs::Truncate)?,
            false => self,
        };
        let folder = parent(path);
        let opening = opening.rule(folder, AccessFs::MakeReg | AccessFs::RemoveFile)?;
        Ok(opening.needs(folder, libc::W_OK | libc::X_OK))
    }

    /// Editors replace a script's file by another one, so the files of its folder may be read.
    fn script(self, path: &Path) -> Result<Opening, SandboxError> {
        let mut opening = self;
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        for folder in [parent(path), parent(&real)] {
            opening = opening.rule(folder, AccessFs::ReadFile.into())?;
            opening = opening.needs(folder, libc::R_OK | libc::X_OK);
        }
        Ok(opening.needs(&real, libc::R_OK))
    }

    fn folder(self, folder: &Path) -> Result<Opening, SandboxError> {
        let rights = AccessFs::MakeReg
            | AccessFs::RemoveFile
            | AccessFs::ReadFile
            | AccessFs::WriteFile
            | AccessFs::Truncate;
        let opening = self.rule(folder, rights)?;
        Ok(opening.needs(folder, libc::W_OK | libc::X_OK))
    }

    fn rule(mut self, path: &Path, rights: BitFlags<AccessFs>) -> Result<Opening, SandboxError> {
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
    fn needs(mut self, path: &Path, mode: libc::c_int) -> Opening {
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

    /// Confines the calling thread, and those that it will start, to these rules.
    ///
    /// # Errors
    /// The kernel's; also if it does not enforce them.
    pub(super) fn restrict_this_thread(&self) -> Result<(), String> {
        let ruleset = self
            .ruleset
            .try_clone()
            .map_err(|error| error.to_string())?;
        let status = ruleset.restrict_self().map_err(|error| error.to_string())?;
        match status.ruleset {
            RulesetStatus::NotEnforced => Err("the kernel does not enforce it".to_owned()),
            _ => Ok(()),
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}
