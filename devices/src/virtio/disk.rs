//! The file behind a disk: opened, locked, read and written at guest memory directly.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hmm_backend::pages::Permission;

use super::ram::PinnedRam;
use crate::guest_bytes::GuestBuffer;
use crate::retry;

/// Bytes of a sector: the unit of everything that a driver asks for.
pub const SECTOR: u64 = 512;
/// Zeros that are written at once where the file system cannot make them.
const ZEROS: usize = 64 << 10;

/// Returns what an image is opened for, in the words of messages.
fn purpose(permission: Permission) -> &'static str {
    match permission {
        Permission::ReadOnly => "for reading",
        Permission::Writable => "for writing",
    }
}

/// Returns which other disk keeps an image from being opened so, in the words of messages.
fn rival(permission: Permission) -> &'static str {
    match permission {
        Permission::ReadOnly => "another disk has it open for writing",
        Permission::Writable => "another disk has it open",
    }
}

/// What becomes of the space in the file whose bytes are made zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// The file keeps it.
    Keep,
    /// The file may give it back to the file system.
    Release,
}

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The system refused to open the image.
    #[error("opening disk {} {}: {error}{}", path.display(), purpose(*permission), hint(error, *permission))]
    Open {
        /// The file.
        path: PathBuf,
        /// How it was to be opened.
        permission: Permission,
        /// The system's answer.
        #[source]
        error: io::Error,
    },
    /// The path names a folder.
    #[error("opening disk {}: it is a folder; give an image file", .0.display())]
    Folder(PathBuf),
    /// The path names neither a regular file nor a folder, but a pipe or a device, for example.
    #[error("opening disk {}: it is not a regular file; only image files can be disks", .0.display())]
    NotRegular(PathBuf),
    /// The file is empty.
    #[error("opening disk {}: it is empty; make it as large as the disk is to be, for example with `truncate -s 1G`", .0.display())]
    Empty(PathBuf),
    /// The file's size is no multiple of a sector.
    #[error("opening disk {}: it has {bytes} bytes, but a raw image has a multiple of 512; is it another format, or was it cut off?", path.display())]
    Odd {
        /// The file.
        path: PathBuf,
        /// The file's size in bytes.
        bytes: u64,
    },
    /// Another disk, of this process or another one, has the image open.
    #[error("opening disk {} {}: {}; end the other one, give each its own copy, or open it read-only in both (`,ro`)", path.display(), purpose(*permission), rival(*permission))]
    InUse {
        /// The file.
        path: PathBuf,
        /// How it was to be opened.
        permission: Permission,
    },
    /// The file system cannot tell whether another disk has it open.
    #[error("locking disk {}: {error}; use a file system with file locks", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        error: io::Error,
    },
}

/// What a message advises when the system refused to open the image.
fn hint(error: &io::Error, permission: Permission) -> &'static str {
    let refused = matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    );
    match refused && permission == Permission::Writable {
        true => "; to open it read-only, append `,ro`",
        false => "",
    }
}

/// A raw image. While it is open, no other disk can open it, unless both only read.
#[derive(Debug)]
pub struct Disk {
    file: File,
    bytes: u64,
    permission: Permission,
}

impl Disk {
    /// Opens and locks an image.
    pub fn open(path: &Path, permission: Permission) -> Result<Disk, DiskError> {
        let open_error = |error| DiskError::Open {
            path: path.to_owned(),
            permission,
            error,
        };
        if path.metadata().map_err(open_error)?.is_dir() {
            return Err(DiskError::Folder(path.to_owned()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(permission == Permission::Writable)
            // Opening a pipe would wait for a writer. Regular files do not care.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(open_error)?;
        let metadata = file.metadata().map_err(open_error)?;
        if !metadata.is_file() {
            return Err(DiskError::NotRegular(path.to_owned()));
        }
        lock(&file, permission).map_err(|error| match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => DiskError::InUse {
                path: path.to_owned(),
                permission,
            },
            _ => DiskError::Lock {
                path: path.to_owned(),
                error,
            },
        })?;
        // After the lock, when no other disk changes it any more.
        let bytes = file.metadata().map_err(open_error)?.len();
        if bytes == 0 {
            return Err(DiskError::Empty(path.to_owned()));
        }
        if !bytes.is_multiple_of(SECTOR) {
            return Err(DiskError::Odd {
                path: path.to_owned(),
                bytes,
            });
        }
        Ok(Disk {
            file,
            bytes,
            permission,
        })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it must not be written.
    pub fn read_only(&self) -> bool {
        self.permission == Permission::ReadOnly
    }

    /// Reads `spans` of pinned guest memory from `offset` on.
    pub fn read(&self, ram: &PinnedRam, spans: &GuestBuffer, offset: u64) -> io::Result<()> {
        self.transfer(ram, spans, offset, libc::preadv)
    }

    /// Writes `spans` of pinned guest memory from `offset` on.
    pub fn write(&self, ram: &PinnedRam, spans: &GuestBuffer, offset: u64) -> io::Result<()> {
        self.transfer(ram, spans, offset, libc::pwritev)
    }

    fn transfer(
        &self,
        ram: &PinnedRam,
        spans: &GuestBuffer,
        mut offset: u64,
        call: unsafe extern "C" fn(i32, *const libc::iovec, i32, i64) -> isize,
    ) -> io::Result<()> {
        let slices = spans.0.iter().flat_map(|span| ram.slices(*span));
        let mut parts: Vec<libc::iovec> = slices
            .map(|slice| libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            })
            .collect();
        let mut left = &mut parts[..];
        while !left.is_empty() {
            // SAFETY: each part is guest memory that `ram` keeps in place, of the length that its slice has; the kernel
            // is one more of those who access it at any time. The descriptor is ours.
            let once = || unsafe {
                retry::result(call(
                    self.file.as_raw_fd(),
                    left.as_ptr(),
                    left.len() as i32,
                    offset as i64,
                ))
            };
            let done = retry::interrupted(once)?;
            if done == 0 {
                // Another process has truncated the file.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += done as u64;
            left = advance(left, done);
        }
        Ok(())
    }

    /// Syncs the written data to the disk, so that it survives a crash of the host.
    pub fn flush(&self) -> io::Result<()> {
        // SAFETY: the descriptor is ours; no memory is involved.
        let once = || retry::result(unsafe { libc::fdatasync(self.file.as_raw_fd()) } as isize);
        retry::interrupted(once).map(drop)
    }

    /// Gives up the contents of these bytes, which become zeros. Where the file system cannot make holes, they stay.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let punched = self.allocate(
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            offset,
            len,
        );
        punched.or_else(|error| match unsupported(&error) {
            true => Ok(()),
            false => Err(error),
        })
    }

    /// Makes these bytes zeros.
    pub fn zero(&self, offset: u64, len: u64, space: Space) -> io::Result<()> {
        let mode = match space {
            Space::Keep => libc::FALLOC_FL_ZERO_RANGE,
            Space::Release => libc::FALLOC_FL_PUNCH_HOLE,
        };
        match self.allocate(mode | libc::FALLOC_FL_KEEP_SIZE, offset, len) {
            Err(error) if unsupported(&error) => {}
            result => return result,
        }
        let zeros = [0; ZEROS];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(ZEROS as u64);
            let once = || {
                // SAFETY: so many readable bytes, as the length says; the descriptor is ours.
                retry::result(unsafe {
                    libc::pwrite(
                        self.file.as_raw_fd(),
                        zeros.as_ptr().cast(),
                        part as usize,
                        (offset + done) as i64,
                    )
                })
            };
            match retry::interrupted(once)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => done += written as u64,
            }
        }
        Ok(())
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let once = || {
            // SAFETY: the descriptor is ours; no memory is involved.
            let result =
                unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as i64, len as i64) };
            retry::result(result as isize)
        };
        retry::interrupted(once).map(drop)
    }
}

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

/// Locks the open file description. Such a lock ends when the file is closed, but not when another descriptor of the same
/// file is closed, and it keeps out other disks of this process, too.
fn lock(file: &File, permission: Permission) -> io::Result<()> {
    let kind = match permission {
        Permission::ReadOnly => libc::F_RDLCK,
        Permission::Writable => libc::F_WRLCK,
    };
    let whole = libc::flock {
        l_type: kind as _,
        l_whence: libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the kernel reads the structure, which is valid; the descriptor is open.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &whole) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns what is left of the parts after the first `done` bytes.
fn advance(mut parts: &mut [libc::iovec], mut done: usize) -> &mut [libc::iovec] {
    while let Some(first) = parts.first_mut() {
        if done < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(done);
            first.iov_len -= done;
            break;
        }
        done -= first.iov_len;
        parts = &mut parts[1..];
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use Permission::{ReadOnly, Writable};

    fn image(bytes: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, vec![1; bytes]).unwrap();
        file
    }

    fn refusal(path: &Path, permission: Permission) -> String {
        Disk::open(path, permission).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        assert!(refusal(&missing, Writable).contains("No such file"));
        assert!(refusal(folder.path(), Writable).contains("it is a folder"));
        assert!(refusal(Path::new("/dev/zero"), ReadOnly).contains("not a regular file"));
        assert!(refusal(image(0).path(), Writable).contains("it is empty"));
        assert!(refusal(image(1000).path(), ReadOnly).contains("1000 bytes"));
        let pipe = folder.path().join("pipe");
        let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
        // SAFETY: a valid string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(refusal(&pipe, ReadOnly).contains("not a regular file"));
    }

    #[test]
    fn an_image_has_one_writer_or_readers() {
        let file = image(1024);
        let writer = Disk::open(file.path(), Writable).unwrap();
        assert_eq!((writer.bytes(), writer.read_only()), (1024, false));
        for access in [Writable, ReadOnly] {
            assert!(refusal(file.path(), access).contains("another disk has it open"));
        }
        drop(writer);
        let readers = [(); 2].map(|()| Disk::open(file.path(), ReadOnly).unwrap());
        assert!(refusal(file.path(), Writable).contains("for writing"));
        drop(readers);
        Disk::open(file.path(), Writable).unwrap();
    }

    #[test]
    fn zeros_and_holes() {
        let file = image(4 << 20);
        let disk = Disk::open(file.path(), Writable).unwrap();
        disk.zero(512, 512, Space::Keep).unwrap();
        disk.zero(4096, 1 << 20, Space::Release).unwrap();
        disk.discard(2 << 20, 1 << 20).unwrap();
        disk.flush().unwrap();
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!(bytes.len(), 4 << 20);
        let zeros = |range: std::ops::Range<usize>| bytes[range].iter().all(|byte| *byte == 0);
        let ones = |range: std::ops::Range<usize>| bytes[range].iter().all(|byte| *byte == 1);
        assert!(ones(0..512) && zeros(512..1024) && ones(1024..4096));
        assert!(zeros(4096..4096 + (1 << 20)) && ones(4096 + (1 << 20)..2 << 20));
        assert!(ones(3 << 20..4 << 20));
    }
}
