//! Notices that a file has changed, also when an editor puts a new one in its place.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A watch on one file's folder.
pub struct FileWatch {
    events: File,
    path: PathBuf,
    name: OsString,
}

/// Bytes of an event before its name: watch, mask, cookie, length.
const HEADER: usize = 16;

impl FileWatch {
    /// Watches a file, which need not be there.
    pub fn new(path: &Path) -> io::Result<FileWatch> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::other("not the name of a file"))?;
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let folder = CString::new(folder.as_os_str().as_bytes())?;
        // SAFETY: makes a new descriptor.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and open, and no other value owns it.
        let events = unsafe { File::from_raw_fd(fd) };
        let mask = libc::IN_CLOSE_WRITE | libc::IN_MOVED_TO | libc::IN_CREATE;
        // SAFETY: the kernel reads a string that ends with a zero.
        if unsafe { libc::inotify_add_watch(fd, folder.as_ptr(), mask) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(FileWatch {
            events,
            path: path.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Returns whether the file has changed since the last call, or something else has taken its place.
    pub fn changed(&self) -> bool {
        let mut changed = false;
        let mut buffer = [0; 4096];
        while let Ok(n) = (&self.events).read(&mut buffer) {
            if n == 0 {
                break;
            }
            let of_this = happened(&buffer[..n]).filter(|(_, name)| *name == self.name);
            for (mask, _) in of_this {
                changed |= mask & libc::IN_CREATE == 0 || self.is_complete();
            }
        }
        changed
    }

    /// Whether what was just created is all that there will be. A regular file is still to be written and closed; but a link, a folder
    /// or a pipe is there at once.
    fn is_complete(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|created| !created.is_file())
    }
}

/// The names in a buffer of events, each with its event.
fn happened(mut events: &[u8]) -> impl Iterator<Item = (u32, &OsStr)> {
    let word = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
    std::iter::from_fn(move || {
        let mask = word(events.get(4..8)?)?;
        let length = word(events.get(12..HEADER)?)?;
        let end = HEADER + length as usize;
        let name = events.get(HEADER..end)?;
        events = &events[end..];
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Some((mask, OsStr::from_bytes(name)))
    })
}

impl AsRawFd for FileWatch {
    /// Readable when something in the file's folder has changed.
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}
