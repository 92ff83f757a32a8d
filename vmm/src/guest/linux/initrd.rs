//! Files of initial ramdisks: their format, whether they are whole, their place in memory.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::host::file::FileError;
use hmmvisor_experiments::size::Size;

/// The largest file: a larger one does not fit below 4 GiB.
const FILE_LIMIT: u64 = 3 << 30;
const PAGE: u64 = 4096;

/// The first bytes of archives and compressed files that kernels understand.
const PACKED: [(&[u8], &str); 7] = [
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"BZh", "bzip2"),
    (b"\x5d\0\0", "lzma"),
    (b"\x89LZO", "lzo"),
];
const CPIO: [&[u8]; 2] = [b"070701", b"070702"];
/// Bytes of an entry's header in a cpio archive.
const CPIO_HEADER: u64 = 110;
/// The name of an archive's last entry.
const CPIO_TRAILER: &[u8] = b"TRAILER!!!\0";

/// Why a file cannot be an initial ramdisk.
#[derive(Debug, Error)]
pub enum InitrdError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is empty.
    #[error("it is empty")]
    Empty,
    /// It is neither an archive nor a compressed file.
    #[error(
        "it is no initial ramdisk: neither a cpio archive (newc) nor packed by {}",
        PACKED.map(|(_, name)| name).join(", ")
    )]
    NotAnInitrd,
    /// It ends in the middle of an archive.
    #[error("it ends in the middle of its archive, at byte {0}; was it truncated?")]
    Truncated(u64),
    /// It has no header where one must be.
    #[error("its archive is damaged at byte {0}")]
    Damaged(u64),
    /// There is no room for it.
    #[error(
        "its {size} do not fit behind the kernel, where {room} are free; use more memory with --memory"
    )]
    TooLarge {
        /// Its size.
        size: Size,
        /// The room that is left.
        room: Size,
    },
}

/// A ramdisk file that has been checked.
#[derive(Debug)]
pub struct Initrd {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Initrd {
    /// Opens the file and checks what it is.
    pub fn open(path: &Path) -> Result<Initrd, InitrdError> {
        let (mut file, len) = crate::host::file::open(path, FILE_LIMIT)?;
        check(&mut file, len)?;
        Ok(Initrd {
            path: path.to_owned(),
            file,
            len,
        })
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file, to be read from its beginning.
    pub fn contents(&mut self) -> io::Result<&mut File> {
        self.file.rewind()?;
        Ok(&mut self.file)
    }

    /// Finds its place: as far up in `low` as the kernel, which takes `kernel`, allows with `limit`, the last address.
    pub fn place(
        &self,
        low: &Range<u64>,
        kernel: &Range<u64>,
        limit: u64,
    ) -> Result<Range<u64>, InitrdError> {
        let end = low.end.min(limit.saturating_add(1)) / PAGE * PAGE;
        let room = end.saturating_sub(kernel.end.next_multiple_of(PAGE));
        if self.len > room {
            return Err(InitrdError::TooLarge {
                size: Size(self.len),
                room: Size(room),
            });
        }
        let start = (end - self.len) / PAGE * PAGE;
        Ok(start..start + self.len)
    }
}

fn check(file: &mut File, len: u64) -> Result<(), InitrdError> {
    let mut start = Vec::new();
    file.take(8)
        .read_to_end(&mut start)
        .map_err(FileError::from)?;
    if start.is_empty() {
        return Err(InitrdError::Empty);
    }
    if CPIO.iter().any(|magic| start.starts_with(magic)) {
        return check_archive(file, len);
    }
    match PACKED.iter().any(|(magic, _)| start.starts_with(magic)) {
        true => Ok(()),
        false => Err(InitrdError::NotAnInitrd),
    }
}

/// Goes from entry to entry up to the last. What follows that one - another archive, perhaps packed - is the kernel's business.
fn check_archive(file: &mut File, len: u64) -> Result<(), InitrdError> {
    let mut file = BufReader::new(file);
    let mut at = 0;
    loop {
        if at + CPIO_HEADER > len {
            return Err(InitrdError::Truncated(len));
        }
        let mut header = [0; CPIO_HEADER as usize];
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.read_exact(&mut header))
            .map_err(FileError::from)?;
        if !CPIO.iter().any(|magic| header.starts_with(magic)) {
            return Err(InitrdError::Damaged(at));
        }
        // Eight hexadecimal digits each: the seventh field and the twelfth.
        let field = |number: usize| {
            let digits = &header[6 + 8 * number..][..8];
            let digits = str::from_utf8(digits).ok();
            digits.and_then(|digits| u64::from_str_radix(digits, 16).ok())
        };
        let (Some(data), Some(name)) = (field(6), field(11)) else {
            return Err(InitrdError::Damaged(at));
        };
        let data_at = (at + CPIO_HEADER + name).next_multiple_of(4);
        let end = data_at + data;
        if end > len {
            return Err(InitrdError::Truncated(len));
        }
        if name == CPIO_TRAILER.len() as u64 {
            let mut trailer = [0; CPIO_TRAILER.len()];
            file.read_exact(&mut trailer).map_err(FileError::from)?;
            if trailer == *CPIO_TRAILER {
                return Ok(());
            }
        }
        at = end.next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, data: &[u8]) -> Vec<u8> {
        let mut entry = b"070701".to_vec();
        for number in 0..13 {
            let value = match number {
                6 => data.len(),
                11 => name.len() + 1,
                _ => 0,
            };
            entry.extend(format!("{value:08X}").as_bytes());
        }
        for part in [[name.as_bytes(), b"\0"].concat().as_slice(), data] {
            entry.extend(part);
            entry.resize(entry.len().next_multiple_of(4), 0);
        }
        entry
    }

    fn open(contents: &[u8]) -> Result<Initrd, InitrdError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("initrd");
        std::fs::write(&path, contents).unwrap();
        Initrd::open(&path)
    }

    #[test]
    fn archives_are_walked_to_their_end() {
        let archive = [entry("init", b"hello"), entry("TRAILER!!!", b"")].concat();
        open(&archive).unwrap();
        open(&[archive.as_slice(), b"anything"].concat()).unwrap();
        for len in [7, 60, 112, 118, 130, archive.len() - 20] {
            let error = open(&archive[..len]).unwrap_err();
            assert!(matches!(error, InitrdError::Truncated(_)), "{len}: {error}");
        }
        let mut damaged = archive.clone();
        damaged[54] = b'x';
        assert!(matches!(open(&damaged), Err(InitrdError::Damaged(0))));
        let no_header = [entry("init", b""), vec![0; 200]].concat();
        assert!(matches!(open(&no_header), Err(InitrdError::Damaged(_))));
    }

    #[test]
    fn other_things_are_refused() {
        assert!(matches!(open(b""), Err(InitrdError::Empty)));
        assert!(matches!(open(b"hello"), Err(InitrdError::NotAnInitrd)));
        assert!(matches!(
            open(b"\x7fELF\x02"),
            Err(InitrdError::NotAnInitrd)
        ));
        open(b"\x1f\x8b\x08 packed").unwrap();
        open(b"\x28\xb5\x2f\xfd packed").unwrap();
    }

    #[test]
    fn it_is_as_far_up_as_it_may_be() {
        let initrd = open(&[b"\x1f\x8b".as_slice(), &[0; 8190]].concat()).unwrap();
        let (low, kernel) = (0..64 << 20, 16 << 20..32 << 20);
        let place = |limit| initrd.place(&low, &kernel, limit);
        let top = 64 << 20;
        assert_eq!(place(u64::MAX).unwrap(), top - 8192..top);
        assert_eq!(place((48 << 20) - 1).unwrap().end, 48 << 20);
        assert_eq!(place((32 << 20) + 8191).unwrap().start, 32 << 20);
        for limit in [(32 << 20) + 8190, 20 << 20, 0] {
            assert!(matches!(place(limit), Err(InitrdError::TooLarge { .. })));
        }
    }
}
