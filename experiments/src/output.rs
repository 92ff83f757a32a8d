//! Files that are written: never onto what they are made of, never half of one.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Whether an output would replace what it is made of.
pub fn is_input(input: &Path, output: &Path) -> bool {
    match (input.canonicalize(), output.canonicalize()) {
        (Ok(input), Ok(output)) => input == output,
        _ => false,
    }
}

/// Writes a file beside its place and then puts it there: a full disk or a kill leaves no half of one, and the one
/// before stays. A pipe or a device is written to.
///
/// # Errors
/// It cannot be written; nothing is left of it then.
pub fn put<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    if path.exists() && !path.is_file() {
        let mut file = BufWriter::new(File::create(path)?);
        write(&mut file)?;
        return Ok(file.flush()?);
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    let written = (|| {
        let mut file = BufWriter::new(File::create(&beside)?);
        write(&mut file)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        Ok(fs::rename(&beside, path)?)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_stays_until_all_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        put::<io::Error>(&path, |file| file.write_all(b"one")).unwrap();
        let failed = put(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("no room"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no room");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        put::<io::Error>(&path, |file| file.write_all(b"two")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        put::<io::Error>(Path::new("/dev/null"), |file| file.write_all(b"x")).unwrap();
    }

    #[test]
    fn an_output_is_its_input_under_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let link = folder.path().join("link");
        assert!(!is_input(&path, &path), "nothing is there");
        fs::write(&path, "").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(is_input(&path, &link) && is_input(&folder.path().join("./trace"), &path));
        assert!(!is_input(&path, &folder.path().join("other")));
    }
}
