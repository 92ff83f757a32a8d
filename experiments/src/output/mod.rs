//! The outputs of a command: all files and streams that it writes to paths that the user names.
//!
//! A command tells [`Files`] what it reads, and then opens all of its outputs through it, before it begins its work:
//! an output that cannot be written, or that is one of the inputs or another output, is refused while nothing has been
//! lost. Files are compared by device and inode, and by folder and name where there is none yet, never by spelling.
//!
//! What happens to the path:
//!
//! - **Nothing there.** The file appears with [`Output::commit`] if it is a [`Files::whole`] one: until then its data
//!   has no name, and a killed process leaves nothing. A [`Files::growing`] or [`Files::live`] one is there at once, so
//!   that others can read it while it grows; it is removed again if nothing was written.
//! - **A file with something in it.** It stays as it is until [`Output::commit`]. Then the new file takes its place in
//!   one step, under the real name behind any links, with the old one's mode and owner. Where that is not possible (it
//!   has several names, attributes or another owner that a new file cannot have, or its folder cannot be written), room
//!   is reserved and the file is written over. Only a live output, such as a console, is cut off at its first byte.
//! - **A pipe, a terminal or another character device** is written to as it is. So is an open descriptor: `-`,
//!   `/dev/stdout`, `/proc/self/fd/N`, links to these, and any name of the file that standard output leads to.
//! - **A folder or a block device** is refused.
//! - **A file that users write by hand**, by its name or the name of the file that a link leads to, is refused: a
//!   configuration, a sweep's file, a policy script. A name that is not there yet is free.
//!
//! A file that another process is writing is refused: a file that is there, or grows, is locked while it is an output.
//!
//! Standard output is refused, too, if it is a file that the command reads: see [`Files::prints`].

mod aside;
mod place;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use thiserror::Error;

use self::aside::{Aside, Spool};
use self::place::{Key, OutputPlace, STDOUT};
use crate::steady::wait_for_room;

/// Why an output was refused. Nothing has been changed then.
#[derive(Debug, Error)]
pub enum OutputError {
    /// The same file is read by the command, or is another of its outputs.
    #[error(
        "writing {what} to {}: that is {other}; name another file",
        shown(path)
    )]
    Taken {
        /// What would be written.
        what: &'static str,
        /// The path that was given.
        path: PathBuf,
        /// The role that the file has already.
        other: String,
    },
    /// Nothing can be written to such a place.
    #[error("writing {what} to {}: {why}", shown(path))]
    Unfit {
        /// What would be written.
        what: &'static str,
        /// The path that was given.
        path: PathBuf,
        /// What is wrong with the path, and what to do.
        why: &'static str,
    },
    /// A file is there that users write by hand, and no command does.
    #[error(
        "writing {what} to {}: {}an output does not replace a {kind}; give another name",
        shown(path),
        leading(path, real)
    )]
    WrittenByHand {
        /// What would be written.
        what: &'static str,
        /// The path that was given.
        path: PathBuf,
        /// The file at the end of links that the path may be.
        real: PathBuf,
        /// The kind of file that it is by its name.
        kind: &'static str,
    },
    /// The system refused.
    #[error("writing {what} to {}: {error}", shown(path))]
    System {
        /// What would be written.
        what: &'static str,
        /// The path that was given.
        path: PathBuf,
        /// The cause.
        #[source]
        error: io::Error,
    },
}

/// Returns a path as messages show it.
pub fn shown(path: &Path) -> String {
    match path.as_os_str() == "-" {
        true => "standard output".to_owned(),
        false => path.display().to_string(),
    }
}

/// Returns the path of the regular file that an output is or will be, behind any links; none for streams, and for paths that cannot be
/// an output.
pub fn real_path(path: &Path) -> Option<PathBuf> {
    match OutputPlace::of(path).ok()? {
        OutputPlace::Absent { folder, name } => Some(folder.join(name)),
        OutputPlace::Regular { real, .. } => Some(real),
        OutputPlace::Stream { .. } | OutputPlace::Descriptor(_) => None,
    }
}

/// Returns where a link leads, for a message, if the file has another name than the link.
fn leading(path: &Path, real: &Path) -> String {
    match path.file_name() == real.file_name() {
        true => String::new(),
        false => format!("it leads to {}; ", real.display()),
    }
}

/// Returns the kind of a file that by its name is written by users, and by no command.
fn written_by_hand(path: &Path) -> Option<&'static str> {
    match path.extension()?.to_ascii_lowercase().to_str()? {
        "toml" => Some("configuration or sweep file"),
        "luau" => Some("policy script"),
        _ => None,
    }
}

/// The files of one command: what it reads, and what it writes.
#[derive(Debug, Default)]
pub struct Files {
    known: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    what: &'static str,
    path: PathBuf,
    keys: Vec<Key>,
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Input,
    Output,
}

impl Files {
    /// Registers a file that the command reads, or will read: no output may be the same. It need not exist.
    pub fn reads(&mut self, what: &'static str, path: &Path) {
        // A file that `stat` refuses is refused again, with a message, when it is opened.
        if let Ok(place) = OutputPlace::of(path) {
            self.learn(what, path, place.keys(), Role::Input);
        }
    }

    /// Registers a file that is open, like [`Self::reads`].
    pub fn reads_open(&mut self, what: &'static str, file: impl AsFd) {
        self.learn(what, Path::new(""), Key::of_open(file), Role::Input);
    }

    /// Opens an output that is there as a whole, or not at all.
    ///
    /// # Errors
    /// It cannot be written, or is one of the command's other files.
    pub fn whole(&mut self, what: &'static str, path: &Path) -> Result<Output, OutputError> {
        let absent = |real: &Path| Aside::new(real).map(Sink::Aside);
        self.open(what, path, absent, |real, _| {
            Aside::over(real, Spool::unnamed).map(Sink::Aside)
        })
    }

    /// Opens an output that is useful before it is finished, and in part: a trace. Where there is no file, or an empty
    /// one, its part stays if the process dies or [`Output::commit`] is never called.
    ///
    /// # Errors
    /// The same as of [`Self::whole`].
    pub fn growing(&mut self, what: &'static str, path: &Path) -> Result<Output, OutputError> {
        self.open(what, path, Made::make, |real, bytes| match bytes {
            0 => Live::open(real),
            _ => Aside::over(real, Spool::named).map(Sink::Aside),
        })
    }

    /// Opens an output that others follow while it is written: a console. A file that is there is emptied with the
    /// first byte, or when the output is committed.
    ///
    /// # Errors
    /// The same as of [`Self::whole`].
    pub fn live(&mut self, what: &'static str, path: &Path) -> Result<Output, OutputError> {
        self.open(what, path, Made::make, |real, _| Live::open(real))
    }

    /// Claims a regular file that the caller opens by itself, to read it and add to it: a journal.
    ///
    /// # Errors
    /// It is something else than a regular file, or is one of the command's other files.
    pub fn appended(&mut self, what: &'static str, path: &Path) -> Result<(), OutputError> {
        let place = self.claim(what, path)?;
        match place {
            OutputPlace::Absent { .. } | OutputPlace::Regular { .. } => {
                self.learn(what, path, place.keys(), Role::Output);
                Ok(())
            }
            OutputPlace::Stream { .. } | OutputPlace::Descriptor(_) => Err(OutputError::Unfit {
                what,
                path: path.to_owned(),
                why: "it is not a regular file",
            }),
        }
    }

    /// Registers that the command prints to standard output: that must not be a file that it reads.
    ///
    /// # Errors
    /// Standard output is a file that the command reads.
    pub fn prints(&self, what: &'static str) -> Result<(), OutputError> {
        let stdout = Key::of_open(io::stdout());
        let input =
            |it: &&Known| it.role == Role::Input && it.keys.iter().any(|key| stdout.contains(key));
        match self.known.iter().find(input) {
            None => Ok(()),
            Some(known) => Err(OutputError::Taken {
                what,
                path: Path::new("-").to_owned(),
                other: known.described(Path::new("-")),
            }),
        }
    }

    /// Whether an output goes to standard output, which then is for data alone: what else there is to say goes to
    /// standard error.
    pub fn use_stdout(&self) -> bool {
        let stdout = Key::of_open(io::stdout());
        let is_stdout = |key: &Key| *key == Key::Descriptor(STDOUT) || stdout.contains(key);
        let outputs = self.known.iter().filter(|it| it.role == Role::Output);
        outputs.flat_map(|it| &it.keys).any(is_stdout)
    }

    fn open(
        &mut self,
        what: &'static str,
        path: &Path,
        absent: impl FnOnce(&Path) -> io::Result<Sink>,
        regular: impl FnOnce(&Path, u64) -> io::Result<Sink>,
    ) -> Result<Output, OutputError> {
        let place = self.claim(what, path)?;
        let sink = match &place {
            OutputPlace::Absent { folder, name } => absent(&folder.join(name)),
            OutputPlace::Regular { real, bytes } => regular(real, *bytes),
            OutputPlace::Stream { path } => stream(path).map(Sink::Stream),
            OutputPlace::Descriptor(number) => place::duplicate(*number).map(Sink::Stream),
        };
        let sink = sink.map_err(|error| OutputError::System {
            what,
            path: path.to_owned(),
            error,
        })?;
        let mut keys = place.keys();
        // What was made just now has an inode, too.
        if let Sink::Made(made) = &sink {
            keys.extend(Key::of_open(&made.file));
        }
        self.learn(what, path, keys, Role::Output);
        Ok(Output {
            path: path.to_owned(),
            sink,
        })
    }

    /// Returns the place of an output, if it is free.
    fn claim(&self, what: &'static str, path: &Path) -> Result<OutputPlace, OutputError> {
        let owned = || path.to_owned();
        let place = OutputPlace::of(path).map_err(|problem| match problem {
            place::Problem::Unfit(why) => OutputError::Unfit {
                what,
                path: owned(),
                why,
            },
            place::Problem::System(error) => OutputError::System {
                what,
                path: owned(),
                error,
            },
        })?;
        let keys = place.keys();
        let same = |it: &&Known| it.keys.iter().any(|key| keys.contains(key));
        if let Some(known) = self.known.iter().find(same) {
            return Err(OutputError::Taken {
                what,
                path: owned(),
                other: known.described(path),
            });
        }
        if let OutputPlace::Regular { real, .. } = &place
            && let Some(kind) = written_by_hand(path).or(written_by_hand(real))
        {
            return Err(OutputError::WrittenByHand {
                what,
                path: owned(),
                real: real.clone(),
                kind,
            });
        }
        Ok(place)
    }

    fn learn(&mut self, what: &'static str, path: &Path, keys: Vec<Key>, role: Role) {
        self.known.push(Known {
            what,
            path: path.to_owned(),
            keys,
            role,
        });
    }
}

impl Known {
    /// Returns what the file is, for a message to the user who named it `path`.
    fn described(&self, path: &Path) -> String {
        let what = self.what;
        let named = match self.path == path || self.path.as_os_str().is_empty() {
            true => String::new(),
            false => format!(" ({})", shown(&self.path)),
        };
        match self.role {
            Role::Input => format!("{what} itself{named}"),
            Role::Output => format!("where {what} goes{named}"),
        }
    }
}

/// An open output. Dropped without [`Self::commit`], it leaves the earlier contents.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    /// A stream, which is written to as it is.
    Stream(File),
    /// A new file under its own name.
    Made(Made),
    /// An existing file, written in place.
    Live(Live),
    /// Data that takes its place later.
    Aside(Aside),
}

impl Output {
    /// Returns the output's path as the user gave it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Empties the file of a live output, also if nothing has been written.
    ///
    /// # Errors
    /// The existing file cannot be emptied.
    pub fn begin(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Stream(_) | Sink::Aside(_) => Ok(()),
            Sink::Made(made) => {
                made.kept = true;
                Ok(())
            }
            Sink::Live(live) => live.empty(),
        }
    }

    /// Puts a regular file in its place, or ends a stream.
    ///
    /// # Errors
    /// It cannot be put in its place, for example because the disk is full. The earlier contents are unchanged.
    pub fn commit(mut self) -> io::Result<()> {
        self.begin()?;
        match self.sink {
            Sink::Aside(aside) => aside.put()?,
            Sink::Stream(_) => {}
            Sink::Made(made) => unlock(&made.file),
            Sink::Live(live) => unlock(&live.file),
        }
        Ok(())
    }

    /// Ends an output that could not be finished: what it has is kept where nothing would be lost for it.
    ///
    /// # Errors
    /// The same as of [`Self::commit`].
    pub fn keep_part(self) -> io::Result<()> {
        match &self.sink {
            Sink::Aside(aside) if aside.replaces() => Ok(()),
            _ => self.commit(),
        }
    }

    /// Ends an output of whose contents nothing is of use: what was there before, or nothing, is there again. What a stream
    /// was given is gone.
    ///
    /// # Errors
    /// The system refused.
    pub fn discard(mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Stream(_) | Sink::Aside(_) => Ok(()),
            Sink::Made(made) => {
                made.kept = false;
                Ok(())
            }
            // What was in it is gone since its first byte.
            Sink::Live(live) => live.file.set_len(0),
        }
    }

    /// Whether it is a pipe or a device, which may wait for a reader.
    pub fn is_stream(&self) -> bool {
        matches!(self.sink, Sink::Stream(_))
    }

    /// Whether there is a file that stays as it is if the output is not committed.
    pub fn replaces(&self) -> bool {
        matches!(&self.sink, Sink::Aside(aside) if aside.replaces())
    }

    /// Takes back what was written beyond `length` bytes. A stream cannot.
    ///
    /// # Errors
    /// The system refused.
    pub fn cut(&mut self, length: u64) -> io::Result<()> {
        let file = match &mut self.sink {
            Sink::Stream(_) => return Ok(()),
            Sink::Made(made) => &mut made.file,
            Sink::Live(live) => &mut live.file,
            Sink::Aside(aside) => aside.file(),
        };
        file.set_len(length)?;
        file.seek(SeekFrom::Start(length)).map(drop)
    }

    #[cfg(test)]
    pub(crate) fn file(&mut self) -> &mut File {
        match &mut self.sink {
            Sink::Stream(file) => file,
            Sink::Made(made) => &mut made.file,
            Sink::Live(live) => &mut live.file,
            Sink::Aside(aside) => aside.file(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.sink {
            Sink::Stream(file) => loop {
                match file.write(bytes) {
                    // Standard output may have been made so by another process.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        wait_for_room(file)?;
                    }
                    result => return result,
                }
            },
            Sink::Made(made) => {
                let written = made.file.write(bytes)?;
                made.kept |= written > 0;
                Ok(written)
            }
            Sink::Live(live) => {
                live.empty()?;
                live.file.write(bytes)
            }
            Sink::Aside(aside) => aside.file().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // There is no buffer.
        Ok(())
    }
}

/// Opens a pipe, a terminal or another device. Of a pipe, this waits for the one who reads.
fn stream(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(path)
}

/// Keeps other processes from opening the same file as an output, until this descriptor is closed. A file system without
/// locks does without.
fn lock(file: &File) -> io::Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(io::Error::other(
            "another process is writing it; name another file, or wait for that process to end",
        )),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// Lets other processes open the file as an output. To close it is not enough: a process that another thread is just starting has the
/// descriptor, too, until it executes its program.
fn unlock(file: &File) {
    // It fails where there are no locks.
    let _ = file.unlock();
}

/// A file that did not exist before.
#[derive(Debug)]
struct Made {
    file: File,
    real: PathBuf,
    /// Whether it stays when it is dropped.
    kept: bool,
}

impl Made {
    fn make(real: &Path) -> io::Result<Sink> {
        let made = Made {
            file: OpenOptions::new().write(true).create_new(true).open(real)?,
            real: real.to_owned(),
            kept: false,
        };
        lock(&made.file)?;
        Ok(Sink::Made(made))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let ours = || {
            let (there, made) = (fs::symlink_metadata(&self.real)?, self.file.metadata()?);
            io::Result::Ok((there.dev(), there.ino()) == (made.dev(), made.ino()))
        };
        if !self.kept && ours().unwrap_or(false) {
            // If it stays, it is empty.
            let _ = fs::remove_file(&self.real);
        }
    }
}

/// An existing file that is written in place.
#[derive(Debug)]
struct Live {
    file: File,
    /// Whether its earlier contents are gone.
    emptied: bool,
}

impl Live {
    fn open(real: &Path) -> io::Result<Sink> {
        let file = OpenOptions::new().write(true).open(real)?;
        lock(&file)?;
        let emptied = false;
        Ok(Sink::Live(Live { file, emptied }))
    }

    fn empty(&mut self) -> io::Result<()> {
        if !self.emptied {
            self.file.set_len(0)?;
            self.emptied = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
