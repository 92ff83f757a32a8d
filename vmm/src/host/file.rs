//! Opening and reading files that users name.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use thiserror::Error;

use hmmvisor_experiments::size::Size;

/// Why a file was not read.
#[derive(Debug, Error)]
pub enum FileError {
    /// The system refused.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// It is a folder.
    #[error("it is a folder; give the file itself")]
    Folder,
    /// It is a pipe, a device or the like.
    #[error("it is not a regular file")]
    NotRegular,
    /// It is larger than makes sense.
    #[error("it has {given}, but must have no more than {limit}")]
    TooLarge {
        /// Its size.
        given: Size,
        /// The most that makes sense.
        limit: Size,
    },
}

/// Opens a regular file of at most `limit` bytes, and says how many it has.
pub fn open(path: &Path, limit: u64) -> Result<(File, u64), FileError> {
    // Before opening it: opening a pipe would wait for a writer.
    let metadata = path.metadata()?;
    if metadata.is_dir() {
        return Err(FileError::Folder);
    }
    if !metadata.is_file() {
        return Err(FileError::NotRegular);
    }
    if metadata.len() > limit {
        return Err(FileError::TooLarge {
            given: Size(metadata.len()),
            limit: Size(limit),
        });
    }
    Ok((File::open(path)?, metadata.len()))
}

/// Reads a regular file of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let (file, _) = open(path, limit)?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"12345").unwrap();
        assert_eq!(read(&file, 5).unwrap(), b"12345");
        assert!(matches!(read(&file, 4), Err(FileError::TooLarge { .. })));
        assert!(matches!(read(folder.path(), 5), Err(FileError::Folder)));
        assert!(matches!(
            read(Path::new("/dev/zero"), 5),
            Err(FileError::NotRegular)
        ));
        assert!(matches!(
            read(&folder.path().join("none"), 5),
            Err(FileError::Read(_))
        ));
    }
}
