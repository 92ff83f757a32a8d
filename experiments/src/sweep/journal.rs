//! The journal: finished runs, one JSON object a line, each synced to the disk before the next is written.
//!
//! The first line says which sweep and shard the journal is of. A kill can leave half a line at the end, which is cut off when the
//! journal is opened again; damage elsewhere is an error. A run that failed is written down, too, and done again after
//! `--resume`; its last line counts.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::JOURNAL;
use super::error::SweepError;
use super::row::Row;
use super::shard::Shard;

/// What a journal is of: the sweep, and the part of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The number of the file format.
    pub format: u32,
    /// A hash of everything that the results depend on.
    pub sweep: String,
    /// The sweep's title.
    pub title: String,
    /// The question that it is to answer.
    pub question: String,
    /// The version of Hmmvisor that began the sweep.
    pub version: String,
    /// Runs of the whole sweep.
    pub runs: usize,
    /// The part that the journal is of.
    pub shard: Shard,
}

/// The number of this file format.
pub const FORMAT: u32 = 1;
/// Bytes of a line, its end among them: more than any row or title has.
const LONGEST: u64 = 16 << 20;

/// A journal as it was read.
#[derive(Clone, Debug)]
pub struct Journal {
    /// The sweep and shard that it is of.
    pub header: Header,
    /// The runs, by their number in the sweep.
    pub rows: BTreeMap<usize, Row>,
}

impl Journal {
    /// Reads the journal in a sweep's folder, or this one.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn find(path: &Path) -> Result<Journal, SweepError> {
        match path.is_dir() {
            true => Journal::read(&path.join(JOURNAL)),
            false => Journal::read(path),
        }
    }

    /// Reads a journal.
    ///
    /// # Errors
    /// It cannot be read, is none, or is damaged elsewhere than in its last line.
    pub fn read(path: &Path) -> Result<Journal, SweepError> {
        // There may be a pipe; opening it would wait for its other end.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path);
        let mut file = opened.map_err(|error| SweepError::File {
            doing: "opening journal",
            path: path.to_owned(),
            error,
        })?;
        let (journal, _) = read(path, &mut file)?;
        journal.ok_or_else(|| wrong(path, 1, "the file is empty; it is no journal of a sweep"))
    }

    /// Returns the rows in order.
    pub fn into_rows(self) -> Vec<Row> {
        self.rows.into_values().collect()
    }
}

fn wrong(path: &Path, line: usize, what: impl Into<String>) -> SweepError {
    SweepError::Journal {
        path: path.to_owned(),
        line,
        what: what.into(),
    }
}

/// Reads a journal, if there is a whole first line, and how many bytes of the file are whole lines.
fn read(path: &Path, file: &mut File) -> Result<(Option<Journal>, u64), SweepError> {
    let failed = |error| SweepError::File {
        doing: "reading journal",
        path: path.to_owned(),
        error,
    };
    if !file.metadata().map_err(failed)?.is_file() {
        let error = std::io::Error::other(
            "it is not a regular file, as journals are; name the folder that a sweep has written",
        );
        return Err(failed(error));
    }
    let mut input = BufReader::new(file);
    let (mut journal, mut whole): (Option<Journal>, u64) = (None, 0);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let mut bounded = input.by_ref().take(LONGEST);
        let length = bounded.read_until(b'\n', &mut line).map_err(failed)?;
        if line.pop_if(|byte| *byte == b'\n').is_none() {
            if length as u64 == LONGEST {
                let what = format!("longer than {LONGEST} bytes, which no line of a journal is");
                return Err(wrong(path, number, what));
            }
            // What comes after the last line feed was cut off by a kill.
            break;
        }
        whole += length as u64;
        match &mut journal {
            None => {
                let header = header(path, &line)?;
                let rows = BTreeMap::new();
                journal = Some(Journal { header, rows });
            }
            Some(_) if line.is_empty() => {}
            Some(Journal { header, rows }) => {
                let (index, row) = run(header, &line).map_err(|what| wrong(path, number, what))?;
                rows.insert(index, row);
            }
        }
    }
    Ok((journal, whole))
}

/// Returns a run and its number in the sweep.
fn run(header: &Header, line: &[u8]) -> Result<(usize, Row), String> {
    let row: Row = serde_json::from_slice(line).map_err(|error| {
        let error = shown(&error.to_string());
        format!("damaged: {error}; delete this line to repeat its run")
    })?;
    let index = row.run.and_then(|run| usize::try_from(run).ok());
    let index = index.filter(|index| *index < header.runs && header.shard.has(*index));
    let index = index.ok_or("a run that is not in this shard")?;
    Ok((index, row))
}

fn header(path: &Path, line: &[u8]) -> Result<Header, SweepError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let none = |error: serde_json::Error| {
        let error = shown(&error.to_string());
        wrong(path, 1, format!("this is no journal of a sweep: {error}"))
    };
    let Format { format } = serde_json::from_slice(line).map_err(none)?;
    if format != FORMAT {
        let what =
            format!("a journal of format {format}; this version of Hmmvisor knows format {FORMAT}");
        return Err(wrong(path, 1, what));
    }
    let header: Header = serde_json::from_slice(line).map_err(none)?;
    match (1..=header.shard.of).contains(&header.shard.number) {
        true => Ok(header),
        false => Err(wrong(
            path,
            1,
            format!("there is no shard {}", header.shard),
        )),
    }
}

/// Shortens a text of a file, or a name in it, for an error message: keeps the beginning, with the mistake, and the end, with
/// its place.
fn shown(text: &str) -> String {
    const SHOWN: usize = 100;
    if text.len() <= 2 * SHOWN {
        return text.to_owned();
    }
    let start = &text[..text.floor_char_boundary(SHOWN)];
    let end = &text[text.ceil_char_boundary(text.len() - SHOWN)..];
    format!("{start}…{end}")
}

/// What becomes of results that a journal has already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// They are kept, and the others are added.
    Resume,
    /// They are an error.
    Refuse,
}

/// Opens the journal's file, or makes it, and locks it; returns whether it was made.
fn open_locked(path: &Path) -> Result<(File, bool), SweepError> {
    let failed = |doing: &'static str| {
        move |error| SweepError::File {
            doing,
            path: path.to_owned(),
            error,
        }
    };
    // A journal is read and added to; all other outputs are made by `crate::output`.
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(false);
    let (file, made) = match options.create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            // At the end of a link there may be none yet.
            options.create_new(false).create(true);
            options.open(path).map(|file| (file, false))
        }
        opened => opened.map(|file| (file, true)),
    }
    .map_err(failed("opening journal"))?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => SweepError::Busy {
            path: path.to_owned(),
        },
        TryLockError::Error(error) => failed("locking journal")(error),
    })?;
    Ok((file, made))
}

/// An error if a journal is of another sweep than this one, or has results that are not to be kept.
fn check_resumable(
    path: &Path,
    header: &Header,
    old: &Journal,
    existing: Existing,
) -> Result<(), SweepError> {
    let name = |header: &Header| format!("sweep {}, shard {}", shown(&header.sweep), header.shard);
    if old.header != *header {
        return Err(SweepError::Other {
            path: path.to_owned(),
            theirs: name(&old.header),
            ours: name(header),
        });
    }
    if existing == Existing::Refuse && !old.rows.is_empty() {
        let done = old.rows.values().filter(|row| row.error.is_none()).count();
        return Err(SweepError::Exists {
            path: path.parent().unwrap_or(path).to_owned(),
            finished: old.rows.len(),
            left: header.shard.share(header.runs).saturating_sub(done),
        });
    }
    Ok(())
}

/// A journal that is being written. No two processes write one.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    /// Bytes that are whole lines.
    whole: u64,
    /// How many were there when it was opened; none if there was no file.
    before: Option<u64>,
    finished: usize,
}

impl Writer {
    /// Opens the journal of exactly this sweep and shard, or makes it, and returns what it has already.
    ///
    /// # Errors
    /// There are results and `existing` refuses them; the journal is of another sweep or shard; it is damaged; another process
    /// uses it.
    pub fn open(
        path: &Path,
        header: &Header,
        existing: Existing,
    ) -> Result<(Writer, BTreeMap<usize, Row>), SweepError> {
        let (mut file, made) = open_locked(path)?;
        let (old, whole) = read(path, &mut file)?;
        let mut writer = Writer {
            path: path.to_owned(),
            file,
            whole,
            before: match made {
                true => None,
                false => Some(whole),
            },
            finished: 0,
        };
        let rows = match old {
            None => {
                writer.begin(header)?;
                BTreeMap::new()
            }
            Some(old) => {
                check_resumable(path, header, &old, existing)?;
                writer.cut_off()?;
                writer.finished = old.rows.len();
                old.rows
            }
        };
        Ok((writer, rows))
    }

    /// Writes the first line of a new journal.
    fn begin(&mut self, header: &Header) -> Result<(), SweepError> {
        self.append_lines([header])?;
        // The file's name must survive, too.
        if let Some(folder) = self.path.parent() {
            let folder = if folder.as_os_str().is_empty() {
                Path::new(".")
            } else {
                folder
            };
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(())
    }

    /// Adds a finished run. When this returns, it is on the disk.
    ///
    /// # Errors
    /// It could not be written, for example because the disk is full. What was written before stays readable.
    pub fn append(&mut self, row: &Row) -> Result<(), SweepError> {
        self.append_all([row])
    }

    /// Adds finished runs, all or none of them.
    ///
    /// # Errors
    /// The same as of [`Self::append`].
    pub fn append_all<'a>(
        &mut self,
        rows: impl IntoIterator<Item = &'a Row>,
    ) -> Result<(), SweepError> {
        self.finished += self.append_lines(rows)?;
        Ok(())
    }

    /// Adds lines and returns how many.
    fn append_lines<T: Serialize>(
        &mut self,
        values: impl IntoIterator<Item = T>,
    ) -> Result<usize, SweepError> {
        let mut lines = Vec::new();
        let mut number = 0;
        for value in values {
            serde_json::to_writer(&mut lines, &value).expect("numbers and strings");
            lines.push(b'\n');
            number += 1;
        }
        let written = self
            .file
            .seek(SeekFrom::Start(self.whole))
            .and_then(|_| self.file.write_all(&lines))
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.whole += lines.len() as u64;
                Ok(number)
            }
            Err(error) => {
                // If this fails, too, the next reader cuts it off.
                let _ = self.file.set_len(self.whole);
                Err(SweepError::Write {
                    path: self.path.clone(),
                    error,
                    finished: self.finished,
                })
            }
        }
    }

    /// Removes everything that was added.
    pub(super) fn discard(self) {
        // If this fails, the journal says what it is.
        let _ = match self.before {
            Some(length) => self.file.set_len(length),
            None => fs::remove_file(&self.path),
        };
    }

    /// Removes the half line that a kill may have left.
    fn cut_off(&mut self) -> Result<(), SweepError> {
        self.file
            .set_len(self.whole)
            .map_err(|error| SweepError::File {
                doing: "cutting the unfinished end off journal",
                path: self.path.clone(),
                error,
            })
    }
}
