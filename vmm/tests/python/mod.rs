//! A Python with the packages of `tests/tools/requirements.txt`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Standard output of a command that must succeed.
pub fn output(command: &mut Command) -> Vec<u8> {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    output.stdout
}

/// A Python with the packages that the checks need, kept for the next time.
pub fn python() -> PathBuf {
    let requirements =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tools/requirements.txt");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trace-tools");
    let (python, done) = (folder.join("bin/python"), folder.join("requirements.txt"));
    let wanted = fs::read(&requirements).unwrap();
    // Written last: what is there without it is half an installation.
    if fs::read(&done).ok() != Some(wanted.clone()) {
        output(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&folder),
        );
        output(
            Command::new(&python)
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "-r",
                ])
                .arg(&requirements),
        );
        fs::write(&done, wanted).unwrap();
    }
    python
}
