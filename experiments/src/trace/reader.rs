//! Reading a trace.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::vec;

use hmm_backend::observe::{Event, EventKind};

use super::columns;
use super::error::TraceError;
use super::format::{
    BLOCK_HEADER, BlockHeader, BlockKind, HEADER, MAGIC, META_LIMIT, VERSION, u32_at,
};
use super::limits;
use super::meta::{TraceKind, TraceMeta, TraceTotals};

/// How a trace file ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    /// It has the end that its writer has written.
    Complete,
    /// It has no end, because its writer was stopped. All blocks are complete; what came after the last one is unknown.
    Unfinished,
    /// It ends in the middle of a block.
    Truncated {
        /// The offset of that block, in bytes.
        offset: u64,
        /// The number of its bytes that are there.
        present: u64,
        /// The least number of bytes that are missing; all of them if the header of the block is there.
        missing: u64,
    },
    /// There are bytes that are no block; reading gives what comes before, and then an error.
    Corrupt {
        /// The offset of the damage, in bytes.
        offset: u64,
        /// The damage.
        why: &'static str,
    },
}

/// Reads a trace: an iterator over its events that holds one block at a time. After an error there is nothing more.
pub struct TraceReader {
    file: Positioned,
    path: PathBuf,
    meta: TraceMeta,
    totals: TraceTotals,
    tail: Tail,
    /// The offset of the next block.
    offset: u64,
    /// The offset from which no more blocks are to be read.
    end: u64,
    /// Bytes of the file.
    length: u64,
    block: vec::IntoIter<Event>,
    ended: bool,
    version: u32,
    /// An access whose repeats the next event's time will tell, see [`TraceReader::counted`].
    held: Option<Event>,
    /// Comes after it.
    failed: Option<TraceError>,
}

impl TraceReader {
    /// Opens a trace, reads what it says about itself and looks from block to block for its end.
    pub fn open(path: &Path) -> Result<TraceReader, TraceError> {
        let failed = |error| TraceError::io("reading", path)(error);
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut file = BufReader::new(file);
        let (version, meta) = read_header(&mut file, path, length)?;
        let begin = file.stream_position().map_err(failed)?;
        let file = Positioned { file, at: begin };
        let mut reader = TraceReader {
            file,
            path: path.to_owned(),
            meta,
            totals: TraceTotals::default(),
            tail: Tail::Unfinished,
            offset: begin,
            end: length,
            length,
            block: Vec::new().into_iter(),
            ended: false,
            version,
            held: None,
            failed: None,
        };
        reader.survey(length)?;
        reader.offset = begin;
        reader.seek(begin)?;
        Ok(reader)
    }

    /// Returns the description in the trace.
    pub fn meta(&self) -> &TraceMeta {
        &self.meta
    }

    /// Returns events, drops and threads. Of an unfinished trace they are what its blocks say.
    pub fn totals(&self) -> &TraceTotals {
        &self.totals
    }

    /// Returns how the file ends.
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file's length when it was opened, in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Goes over the blocks' headers.
    fn survey(&mut self, length: u64) -> Result<(), TraceError> {
        let mut events = 0;
        while self.offset < length {
            let (offset, rest) = (self.offset, length - self.offset);
            let header = match self.block_header(rest)? {
                Ok(header) => header,
                Err(tail) => {
                    self.tail = tail;
                    break;
                }
            };
            self.offset += header.size();
            match header.kind {
                BlockKind::Events => {
                    events += u64::from(header.events);
                    self.seek(self.offset)?;
                }
                BlockKind::Note | BlockKind::End => match self.note(&header)? {
                    Ok(totals) => self.totals = totals,
                    Err(why) => {
                        self.tail = Tail::Corrupt { offset, why };
                        self.offset = offset;
                        break;
                    }
                },
            }
            if header.kind == BlockKind::End {
                self.tail = match self.offset == length {
                    true => Tail::Complete,
                    false => Tail::Corrupt {
                        offset: self.offset,
                        why: "something follows the end",
                    },
                };
                break;
            }
        }
        self.totals.events = events;
        if let Some(machine) = self.totals.machine {
            self.meta.memory = machine.memory;
            self.meta.vcpus = machine.vcpus;
            self.meta.devices = machine.devices;
        }
        self.end = self.offset;
        Ok(())
    }

    /// Returns the header of the block here, with `rest` bytes until the file's end, all of the block among them; otherwise
    /// what that makes of the file.
    fn block_header(&mut self, rest: u64) -> Result<Result<BlockHeader, Tail>, TraceError> {
        let offset = self.offset;
        let truncated = |size| {
            Err(Tail::Truncated {
                offset,
                present: rest,
                missing: size - rest,
            })
        };
        if rest < BLOCK_HEADER as u64 {
            return Ok(truncated(BLOCK_HEADER as u64));
        }
        let mut bytes = [0; BLOCK_HEADER];
        self.read_exact(&mut bytes)?;
        Ok(match BlockHeader::decode(&bytes) {
            Err(why) => Err(Tail::Corrupt { offset, why }),
            Ok(header) if rest < header.size() => truncated(header.size()),
            Ok(header) => Ok(header),
        })
    }

    /// Returns the payload behind a header, checked and decompressed; or what is wrong with it.
    fn payload(
        &mut self,
        header: &BlockHeader,
    ) -> Result<Result<Vec<u8>, &'static str>, TraceError> {
        let mut stored = vec![0; header.stored as usize];
        self.read_exact(&mut stored)?;
        if header.checksum(&stored) != header.crc {
            return Ok(Err("a block's checksum is wrong"));
        }
        Ok(match zstd::bulk::decompress(&stored, header.raw as usize) {
            Ok(raw) if raw.len() == header.raw as usize => Ok(raw),
            _ => Err("a block cannot be decompressed"),
        })
    }

    fn note(
        &mut self,
        header: &BlockHeader,
    ) -> Result<Result<TraceTotals, &'static str>, TraceError> {
        let parse = |raw: Vec<u8>| {
            let totals: TraceTotals =
                serde_json::from_slice(&raw).map_err(|_| "a note cannot be read")?;
            match totals.possible() {
                true => Ok(totals),
                false => Err("a note names more threads, vCPUs or pages than a trace can have"),
            }
        };
        Ok(self.payload(header)?.and_then(parse))
    }

    /// Loads the next block of events. False at the end.
    fn next_block(&mut self) -> Result<bool, TraceError> {
        while self.offset < self.end {
            let offset = self.offset;
            let header = match self.block_header(self.end - offset)? {
                Ok(header) => header,
                Err(_) => return Err(self.corrupt(offset, "the file changes while it is read")),
            };
            self.offset += header.size();
            if header.kind != BlockKind::Events {
                self.seek(self.offset)?;
                continue;
            }
            let pages = self.meta.pages();
            let events = self.payload(&header)?.and_then(|raw| {
                let events = columns::decode(&raw, header.events)
                    .ok_or("a block's events cannot be read")?;
                let mut all = events.iter();
                all.try_for_each(|event| limits::check(event, pages))?;
                Ok(events)
            });
            match events {
                Ok(events) => self.block = events.into_iter(),
                Err(why) => return Err(self.corrupt(offset, why)),
            }
            if self.block.len() > 0 {
                return Ok(true);
            }
        }
        match self.tail {
            Tail::Corrupt { offset, why } => Err(self.corrupt(offset, why)),
            _ => Ok(false),
        }
    }

    /// Before version 3 an access trace did not say how often an access was repeated: only the time of the next event
    /// tells, which counts accesses.
    fn counted(&mut self, next: Option<Event>) -> Option<Event> {
        let mut event = std::mem::replace(&mut self.held, next)?;
        if let (EventKind::Access, Some(next)) = (event.kind, next) {
            let accesses = next.time.saturating_sub(event.time).as_nanos();
            event.repeats = u32::try_from(accesses).unwrap_or(u32::MAX).max(1);
        }
        Some(event)
    }

    fn times_tell(&self) -> bool {
        self.version < 3 && self.meta.kind == TraceKind::Access && !self.totals.own_times
    }

    fn corrupt(&self, offset: u64, why: &'static str) -> TraceError {
        TraceError::Corrupt {
            path: self.path.clone(),
            offset,
            why,
        }
    }

    fn seek(&mut self, offset: u64) -> Result<(), TraceError> {
        self.file
            .seek_to(offset)
            .map_err(TraceError::io("reading", &self.path))
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), TraceError> {
        self.file
            .file
            .read_exact(bytes)
            .map_err(TraceError::io("reading", &self.path))?;
        self.file.at += bytes.len() as u64;
        Ok(())
    }
}

impl Iterator for TraceReader {
    type Item = Result<Event, TraceError>;

    fn next(&mut self) -> Option<Result<Event, TraceError>> {
        loop {
            if let Some(event) = self.block.next() {
                if !self.times_tell() {
                    return Some(Ok(event));
                }
                match self.counted(Some(event)) {
                    Some(event) => return Some(Ok(event)),
                    None => continue,
                }
            }
            if self.ended {
                let last = self.counted(None).map(Ok);
                return last.or_else(|| self.failed.take().map(Err));
            }
            match self.next_block() {
                Ok(true) => {}
                Ok(false) => self.ended = true,
                // What comes before the error goes first.
                Err(error) if self.held.is_some() => {
                    self.failed = Some(error);
                    self.ended = true;
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// A file that knows where it is, so that skipping a block costs no system call when it is in the buffer.
struct Positioned {
    file: BufReader<File>,
    at: u64,
}

impl Positioned {
    fn seek_to(&mut self, offset: u64) -> io::Result<()> {
        self.file
            .seek_relative(offset.wrapping_sub(self.at) as i64)?;
        self.at = offset;
        Ok(())
    }
}

fn read_header(
    file: &mut impl Read,
    path: &Path,
    length: u64,
) -> Result<(u32, TraceMeta), TraceError> {
    let failed = |error| TraceError::io("reading", path)(error);
    let corrupt = |why| TraceError::Corrupt {
        path: path.to_owned(),
        offset: 0,
        why,
    };
    let no_header = || TraceError::NoHeader {
        path: path.to_owned(),
        length,
    };
    let mut bytes = Vec::new();
    file.take(HEADER as u64)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let magic = bytes.len().min(MAGIC.len());
    if bytes[..magic] != MAGIC[..magic] {
        return Err(TraceError::Foreign {
            path: path.to_owned(),
        });
    }
    if bytes.len() < HEADER {
        return Err(no_header());
    }
    let [version, size, crc] = [8, 12, 16].map(|at| u32_at(&bytes, at));
    if version > VERSION {
        return Err(TraceError::Future {
            path: path.to_owned(),
            version,
        });
    }
    if version == 0 || size > META_LIMIT {
        return Err(corrupt("the file's header is none that a writer writes"));
    }
    let mut json = Vec::new();
    file.take(size.into())
        .read_to_end(&mut json)
        .map_err(failed)?;
    if json.len() < size as usize {
        return Err(no_header());
    }
    if crc32fast::hash(&json) != crc {
        return Err(corrupt("the checksum of the file's header is wrong"));
    }
    let meta = serde_json::from_slice(&json);
    let meta = meta.map_err(|_| corrupt("the file's description cannot be read"))?;
    Ok((version, meta))
}
