//! The file or stream that a path leads to, and the comparison of two paths.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_getfl, major, minor};

/// The number of standard output.
pub(super) const STDOUT: i32 = 1;
/// The number of standard error.
const STDERR: i32 = 2;
/// Links that lead to links, as many as the kernel follows.
const MOST_LINKS: usize = 40;

/// The identity of a file: two outputs, or an output and an input, with equal keys are the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Key {
    /// Device and inode.
    Inode(u64, u64),
    /// The device and inode of a folder, and a name in it that does not exist yet.
    Name(u64, u64, OsString),
    /// A descriptor of this process.
    Descriptor(i32),
}

impl Key {
    /// Returns the keys of an open file. Several may write to a character device, and a socket has two directions: nothing is
    /// lost there.
    pub(super) fn of_open(file: impl AsFd) -> Vec<Key> {
        let open = file.as_fd().try_clone_to_owned().map(File::from);
        match open.and_then(|file| file.metadata()) {
            Ok(metadata) => Key::of(&metadata).into_iter().collect(),
            Err(_) => Vec::new(),
        }
    }

    fn of(metadata: &Metadata) -> Option<Key> {
        let kind = metadata.file_type();
        match kind.is_char_device() || kind.is_socket() {
            true => None,
            false => Some(Key::Inode(metadata.dev(), metadata.ino())),
        }
    }
}

/// The destination of a path, all links followed.
#[derive(Debug)]
pub(super) enum OutputPlace {
    /// Nothing is there.
    Absent { folder: PathBuf, name: OsString },
    /// A regular file.
    Regular { real: PathBuf, bytes: u64 },
    /// A pipe, a socket or a character device.
    Stream { path: PathBuf },
    /// An open file of this process.
    Descriptor(i32),
}

/// Why a path is no place for an output.
#[derive(Debug)]
pub(super) enum Problem {
    /// The reason, and what to do.
    Unfit(&'static str),
    /// The system refused.
    System(io::Error),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Problem {
        Problem::System(error)
    }
}

impl OutputPlace {
    /// Looks, and opens nothing.
    pub(super) fn of(path: &Path) -> Result<OutputPlace, Problem> {
        if path.as_os_str() == "-" {
            return Ok(OutputPlace::Descriptor(STDOUT));
        }
        if let Some(descriptor) = descriptor(path) {
            return Ok(OutputPlace::Descriptor(descriptor));
        }
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return absent(path),
            metadata => metadata?,
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(Problem::Unfit("it is a folder; name a file in it"));
        }
        if kind.is_block_device() {
            return Err(Problem::Unfit(
                "it is a block device, whose contents would be lost; name a file",
            ));
        }
        // Opened again, a file that standard output leads to would be written over from its beginning.
        if let Some(descriptor) = [STDOUT, STDERR]
            .into_iter()
            .find(|it| leads(*it, &metadata))
        {
            return Ok(OutputPlace::Descriptor(descriptor));
        }
        if !kind.is_file() {
            let path = path.to_owned();
            return Ok(OutputPlace::Stream { path });
        }
        let real = path.canonicalize()?;
        Ok(OutputPlace::Regular {
            real,
            bytes: metadata.len(),
        })
    }

    /// Returns the keys that all paths to the same file share.
    pub(super) fn keys(&self) -> Vec<Key> {
        let of = |path: &Path| fs::metadata(path).ok().and_then(|it| Key::of(&it));
        match self {
            OutputPlace::Absent { folder, name } => match fs::metadata(folder) {
                Ok(folder) => vec![Key::Name(folder.dev(), folder.ino(), name.clone())],
                Err(_) => Vec::new(),
            },
            OutputPlace::Regular { real, .. } => of(real).into_iter().collect(),
            OutputPlace::Stream { path } => of(path).into_iter().collect(),
            OutputPlace::Descriptor(number) => {
                let mut keys = vec![Key::Descriptor(*number)];
                keys.extend(duplicate(*number).into_iter().flat_map(Key::of_open));
                keys
            }
        }
    }
}

/// Returns the place of a file that does not exist, at the end of links that may lead to it.
fn absent(path: &Path) -> Result<OutputPlace, Problem> {
    if path.as_os_str().as_bytes().ends_with(b"/") {
        return Err(Problem::Unfit("it would be a folder; name a file in it"));
    }
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folder = parent.canonicalize().map_err(|error| match error.kind() {
            ErrorKind::NotFound => Problem::Unfit("its folder does not exist; make it first"),
            _ => Problem::System(error),
        })?;
        let Some(name) = path.file_name() else {
            return Err(Problem::Unfit("that names no file"));
        };
        let real = folder.join(name);
        match fs::read_link(&real) {
            Ok(target) => path = folder.join(target),
            Err(_) => {
                let name = name.to_owned();
                return Ok(OutputPlace::Absent { folder, name });
            }
        }
    }
    Err(Problem::Unfit("too many links lead to one another"))
}

/// Returns the descriptor of this process that a path is another name for, like `/dev/stdout`.
fn descriptor(path: &Path) -> Option<i32> {
    let process = Path::new("/proc/self").canonicalize().ok()?;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let parent = match path.parent()? {
            parent if parent.as_os_str().is_empty() => Path::new("."),
            parent => parent,
        };
        let folder = parent.canonicalize().ok()?;
        let name = path.file_name()?;
        if folder.starts_with(&process) && folder.ends_with("fd") {
            return name.to_str()?.parse().ok();
        }
        path = folder.join(fs::read_link(folder.join(name)).ok()?);
    }
    None
}

/// Whether a descriptor leads to this file, so that what is written there appears in it. What `/dev/null` takes is nowhere.
fn leads(descriptor: i32, to: &Metadata) -> bool {
    let device = to.rdev();
    let is_null = to.file_type().is_char_device() && (major(device), minor(device)) == (1, 3);
    let open = duplicate(descriptor).and_then(|file| file.metadata());
    !is_null && open.is_ok_and(|open| (open.dev(), open.ino()) == (to.dev(), to.ino()))
}

/// Another descriptor for what this one writes to: it shares the place in the file.
pub(super) fn duplicate(descriptor: i32) -> io::Result<File> {
    if descriptor < 0 {
        return Err(io::Error::from_raw_os_error(
            rustix::io::Errno::BADF.raw_os_error(),
        ));
    }
    // SAFETY: it is only duplicated, which fails if it is not open; that it is -1 is excluded above.
    let open = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned()?;
    match fcntl_getfl(&open)? & OFlags::ACCMODE {
        OFlags::RDONLY => Err(io::Error::other("it is open for reading only")),
        _ => Ok(open.into()),
    }
}
