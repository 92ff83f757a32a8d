//! Data that is written to a file without a name, or beside its place, and put in its place when it is complete.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FallocateFlags, OFlags, fallocate, flistxattr, linkat};
use tempfile::{Builder, NamedTempFile, TempPath};

use super::{lock, unlock};

/// Random letters in a name beside the output: enough that no user's file has it. It is made as a new file in any case.
const RANDOM: usize = 12;
/// The mode with which programs usually make new files; the process's mask applies.
const NEW: u32 = 0o666;

/// Data and where it is to go.
#[derive(Debug)]
pub(super) struct Aside {
    spool: Spool,
    real: PathBuf,
    end: End,
    /// The file that is there, locked.
    old: Option<File>,
}

/// How the data gets to its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// It becomes a new file.
    Appear,
    /// It becomes a new file that replaces the existing one.
    Replace,
    /// It is copied into the existing file.
    Rewrite,
}

/// The file that has the data until then.
#[derive(Debug)]
pub(super) enum Spool {
    /// One without a name: if the process dies it is gone.
    Unnamed(File),
    /// One with a name of its own: if the process dies it can be found.
    Named(NamedTempFile),
}

impl Spool {
    /// Makes a file beside `real`, if possible without a name.
    pub(super) fn unnamed(real: &Path) -> io::Result<Spool> {
        let unnamed = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(NEW)
            .custom_flags(OFlags::TMPFILE.bits().cast_signed())
            .open(parent(real));
        match unnamed {
            Ok(file) => Ok(Spool::Unnamed(file)),
            // Not every file system has files without a name, and their errors differ: any error but a refusal means that.
            Err(error) if is_refusal(&error) => Err(error),
            Err(_) => Spool::named(real),
        }
    }

    /// Makes a file beside `real`, whose name says what it is a part of.
    pub(super) fn named(real: &Path) -> io::Result<Spool> {
        let mut prefix = real.file_name().unwrap_or(OsStr::new("output")).to_owned();
        if prefix.len() > 200 {
            prefix = "output".into();
        }
        prefix.push(".");
        let file = Builder::new()
            .prefix(&prefix)
            .suffix(".part")
            .rand_bytes(RANDOM)
            // The system's own answer: who reads the error knows another name, and its number says which limit is reached.
            .make_in(parent(real), |path| {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .mode(NEW)
                    .open(path)
            })?;
        Ok(Spool::Named(file))
    }

    fn file(&mut self) -> &mut File {
        match self {
            Spool::Unnamed(file) => file,
            Spool::Named(named) => named.as_file_mut(),
        }
    }

    /// Gives the data a name of its own beside `real`.
    fn name(self, real: &Path) -> io::Result<TempPath> {
        match self {
            Spool::Named(named) => Ok(named.into_temp_path()),
            Spool::Unnamed(file) => {
                let named = Builder::new()
                    .prefix(".hmmvisor-")
                    .rand_bytes(RANDOM)
                    .make_in(parent(real), |path| link(&file, path))?;
                Ok(named.into_temp_path())
            }
        }
    }
}

/// Whether another way of making a file in the same folder would be refused, too.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
    )
}

/// Gives a file without a name its first one; never one that is taken.
fn link(file: &File, path: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

fn parent(real: &Path) -> &Path {
    real.parent().unwrap_or(Path::new("/"))
}

impl Aside {
    /// Makes data for a file that does not exist yet.
    pub(super) fn new(real: &Path) -> io::Result<Aside> {
        Ok(Aside {
            spool: Spool::unnamed(real)?,
            real: real.to_owned(),
            end: End::Appear,
            old: None,
        })
    }

    /// Makes data for an existing file; `spool` makes the file that has the data until then.
    pub(super) fn over(
        real: &Path,
        spool: impl FnOnce(&Path) -> io::Result<Spool>,
    ) -> io::Result<Aside> {
        // Opening the file checks that it may be written at all; putting a new file in its place would not check that.
        let old = OpenOptions::new().write(true).open(real)?;
        lock(&old)?;
        let (spool, end) = match spool(real) {
            Ok(mut spool) => {
                // Until it has the old one's mode and owner, no other user may read its contents.
                let private = Permissions::from_mode(0o600);
                spool.file().set_permissions(private)?;
                let end = match like(spool.file(), &old) {
                    Ok(true) => End::Replace,
                    _ => End::Rewrite,
                };
                (spool, end)
            }
            // No file can be made beside it, for example because its folder cannot be written. The file itself can.
            Err(_) => (Spool::Unnamed(tempfile::tempfile()?), End::Rewrite),
        };
        Ok(Aside {
            spool,
            real: real.to_owned(),
            end,
            old: Some(old),
        })
    }

    pub(super) fn file(&mut self) -> &mut File {
        self.spool.file()
    }

    /// Whether the place has contents that would be lost.
    pub(super) fn replaces(&self) -> bool {
        self.end != End::Appear
    }

    /// Puts the data in its place.
    pub(super) fn put(mut self) -> io::Result<()> {
        let old = self.old.take();
        let put = self.put_locked();
        old.iter().for_each(unlock);
        put
    }

    fn put_locked(mut self) -> io::Result<()> {
        match self.end {
            End::Appear => self.appear(),
            End::Replace => {
                // What is replaced must outlive a crash of the host, as itself or as the new one.
                self.spool.file().sync_all()?;
                self.regular()?;
                let mut data = self.spool.file().try_clone()?;
                let replaced = self
                    .spool
                    .name(&self.real)
                    .and_then(|named| named.persist(&self.real).map_err(|error| error.error));
                // A file that something is mounted on, for example, keeps its place.
                replaced.or_else(|_| rewrite(&mut data, &self.real))
            }
            End::Rewrite => rewrite(self.spool.file(), &self.real),
        }
    }

    fn appear(self) -> io::Result<()> {
        match &self.spool {
            Spool::Unnamed(file) => match link(file, &self.real) {
                // Another process has made a file of that name in the meantime.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => self.regular()?,
                linked => return linked,
            },
            Spool::Named(_) => {}
        }
        let named = self.spool.name(&self.real)?;
        named.persist(&self.real).map_err(|error| error.error)
    }

    /// Checks that what is in the output's place is a regular file or nothing. Something else may have been put there
    /// since the output was opened, and must not be replaced.
    fn regular(&self) -> io::Result<()> {
        match fs::symlink_metadata(&self.real) {
            Ok(there) if !there.is_file() => Err(io::Error::other(
                "something that is not a regular file has been put there meanwhile",
            )),
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Gives a new file the mode and owner of the old one. False if the old one has attributes that a new one cannot have.
fn like(new: &File, old: &File) -> io::Result<bool> {
    let (is, was) = (new.metadata()?, old.metadata()?);
    if was.nlink() != 1 {
        return Ok(false);
    }
    if (is.uid(), is.gid()) != (was.uid(), was.gid()) {
        fchown(new, Some(was.uid()), Some(was.gid()))?;
    }
    // The mode is set after the owner, because a change of the owner takes some bits of the mode away.
    new.set_permissions(was.permissions())?;
    Ok(attributes(new)?.is_empty() && attributes(old)?.is_empty())
}

/// Returns the names of a file's extended attributes, such as access control lists.
fn attributes(file: &File) -> io::Result<Vec<u8>> {
    let mut names = Vec::with_capacity(1 << 16);
    match flistxattr(file, rustix::buffer::spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    // SELinux's attribute is left out: the system gives it to each file by the folder that the file is in.
    let names = names.split(|byte| *byte == 0);
    let kept = names.filter(|name| !name.is_empty() && !name.starts_with(b"security.selinux"));
    Ok(kept.collect::<Vec<_>>().concat())
}

/// Writes a file over. Room for all of it is reserved first, so that a full disk does not destroy the old contents.
fn rewrite(data: &mut File, real: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(real)?;
    let (old, new) = (file.metadata()?, data.metadata()?);
    if !old.is_file() {
        return Err(io::Error::other(
            "something that is not a regular file has been put there meanwhile",
        ));
    }
    if new.len() > 0 {
        match fallocate(&file, FallocateFlags::KEEP_SIZE, 0, new.len()) {
            // Not every file system can reserve room.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => {
                // Gives back what was reserved behind the end.
                let _ = file.set_len(old.len());
                return Err(error.into());
            }
        }
    }
    data.rewind()?;
    io::copy(data, &mut file)?;
    file.set_len(new.len())?;
    file.sync_all()
}
