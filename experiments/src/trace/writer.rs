//! Writing a trace.

use std::collections::BTreeMap;
#[cfg(test)]
use std::fs::File;
use std::io;
use std::path::Path;

use hmm_backend::observe::{Event, EventKind};
use serde::Serialize;

use super::columns;
use super::error::TraceError;
use super::format::{
    BLOCK_EVENTS, BlockHeader, BlockKind, MAGIC, META_LIMIT, PAYLOAD_LIMIT, VERSION,
};
use super::meta::{Machine, TraceMeta, TraceTotals};
use crate::output::{Files, Output};
use crate::steady::write_all;

/// Fast, and the columns are already small.
const LEVEL: i32 = 1;

/// Writes a trace file. Flushed blocks stay in the file: if the process dies, a reader gets all
/// of it. What was not ended by [`TraceWriter::finish`] is recognized as unfinished; it does not replace a file that was
/// there, see [`Files::growing`].
pub struct TraceWriter {
    output: Output,
    /// The file is good up to here.
    length: u64,
    compressor: zstd::bulk::Compressor<'static>,
    /// Events of the next block.
    pending: Vec<Event>,
    /// Whether the totals say more than the last note.
    noteworthy: bool,
    raw: Vec<u8>,
    block: Vec<u8>,
    totals: TraceTotals,
}

impl TraceWriter {
    /// Opens the file and writes its header.
    pub fn create(path: &Path, meta: &TraceMeta) -> Result<TraceWriter, TraceError> {
        let output = Files::default().growing("the trace", path)?;
        TraceWriter::new(output, meta)
    }

    /// Writes the header of a trace.
    pub fn new(mut output: Output, meta: &TraceMeta) -> Result<TraceWriter, TraceError> {
        let path = output.path().to_owned();
        let failed = |error| TraceError::io("creating", &path)(error);
        let json = json(meta);
        if json.len() > META_LIMIT as usize {
            return Err(failed(io::Error::other(
                "its description is longer than 1 MiB",
            )));
        }
        let mut header = Vec::from(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((json.len() as u32).to_le_bytes());
        header.extend(crc32fast::hash(&json).to_le_bytes());
        header.extend(&json);
        let compressor = zstd::bulk::Compressor::new(LEVEL).map_err(failed)?;
        if let Err(error) = write_all(&mut output, &header) {
            // Half a header is of no use. If this fails, too, readers say what it is.
            let _ = output.discard();
            return Err(failed(error));
        }
        Ok(TraceWriter {
            output,
            length: header.len() as u64,
            compressor,
            pending: Vec::new(),
            noteworthy: false,
            raw: Vec::new(),
            block: Vec::new(),
            totals: TraceTotals::default(),
        })
    }

    /// Adds events. They are in the file after [`TraceWriter::flush`], or when there are enough for a block. After an
    /// error each of them is written, waits or counts as lost, and the caller may continue.
    pub fn write(&mut self, events: &[Event]) -> Result<(), TraceError> {
        let mut rest = events;
        let mut result = Ok(());
        while !rest.is_empty() {
            let room = BLOCK_EVENTS - self.pending.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.pending.extend_from_slice(now);
            rest = later;
            if self.pending.len() == BLOCK_EVENTS {
                let flushed = self.flush();
                result = result.and(flushed);
            }
        }
        result
    }

    /// Counts events that were lost; in the file with the next flush.
    pub fn dropped(&mut self, kind: EventKind, count: u64) {
        if count > 0 {
            let name = kind.name().to_owned();
            *self.totals.dropped.entry(name).or_default() += count;
            self.noteworthy = true;
        }
    }

    /// Says which vCPUs the threads ran that events name; in the file with the next flush.
    pub fn threads(&mut self, threads: BTreeMap<u32, u32>) {
        self.noteworthy |= self.totals.threads != threads;
        self.totals.threads = threads;
    }

    /// Says what of an imported trace the header could not say; written with the next flush.
    pub fn machine(&mut self, machine: Machine) {
        self.noteworthy = true;
        self.totals.machine = Some(machine);
    }

    /// Says that events have times of their own; written with the next flush.
    pub fn own_times(&mut self) {
        self.noteworthy |= !self.totals.own_times;
        self.totals.own_times = true;
    }

    /// Says which addresses an imported trace's pages had; written at the end. See [`TraceTotals::mapping`].
    pub fn mapping(&mut self, mapping: Vec<(u32, u32, u64)>) {
        self.totals.mapping = mapping;
    }

    /// Writes what has been added so far. After an error the events that waited count as lost, and the caller may continue.
    pub fn flush(&mut self) -> Result<(), TraceError> {
        let noted = self.flush_note();
        // Events are flushed also after a failure to write the note: they must not wait without end when the disk is full.
        noted.and(self.flush_events())
    }

    fn flush_note(&mut self) -> Result<(), TraceError> {
        if self.noteworthy {
            let note = json(&self.totals);
            self.put(BlockKind::Note, 0, &note)?;
            self.noteworthy = false;
        }
        Ok(())
    }

    fn flush_events(&mut self) -> Result<(), TraceError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut raw = std::mem::take(&mut self.raw);
        raw.clear();
        columns::encode(&self.pending, &mut raw);
        let result = self.put(BlockKind::Events, self.pending.len() as u32, &raw);
        self.raw = raw;
        let events = std::mem::take(&mut self.pending);
        match &result {
            Ok(()) => self.totals.events += events.len() as u64,
            Err(_) => events.iter().for_each(|event| self.dropped(event.kind, 1)),
        }
        // Keeps its memory.
        self.pending = events;
        self.pending.clear();
        result
    }

    /// Events written and lost so far, without those that wait to be flushed.
    pub fn totals(&self) -> &TraceTotals {
        &self.totals
    }

    #[cfg(test)]
    pub(super) fn file(&mut self) -> &mut File {
        self.output.file()
    }

    /// Whether a file that was there stays as it is unless the trace is finished.
    pub fn replaces(&self) -> bool {
        self.output.replaces()
    }

    /// Returns the file's length so far, in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Writes the rest and the end, and puts the trace in its place. Returns what it holds.
    pub fn finish(mut self) -> Result<TraceTotals, TraceError> {
        self.end()?;
        let totals = self.totals.clone();
        self.commit()?;
        Ok(totals)
    }

    /// Ends a trace that nothing is to become of, see [`Output::discard`].
    pub fn discard(self) -> Result<(), TraceError> {
        let path = self.output.path().to_owned();
        let discarded = self.output.discard();
        discarded.map_err(TraceError::io("removing", &path))
    }

    /// Writes the rest and the end. After an error the file may have an end all the same, which says what was lost.
    pub fn end(&mut self) -> Result<(), TraceError> {
        let flushed = self.flush();
        let end = json(&self.totals);
        let ended = self.put(BlockKind::End, 0, &end);
        flushed.and(ended)
    }

    /// Puts the trace in its place, if it is not there already.
    pub fn commit(self) -> Result<(), TraceError> {
        let path = self.output.path().to_owned();
        let committed = self.output.commit();
        committed.map_err(TraceError::io("writing", &path))
    }

    fn put(&mut self, kind: BlockKind, events: u32, raw: &[u8]) -> Result<(), TraceError> {
        let payload = self
            .compressor
            .compress(raw)
            .map_err(TraceError::io("compressing", self.output.path()))?;
        // No reader would take it.
        if raw.len().max(payload.len()) > PAYLOAD_LIMIT as usize {
            return Err(TraceError::TooLarge {
                path: self.output.path().to_owned(),
                bytes: raw.len(),
            });
        }
        let header = BlockHeader::new(kind, events, raw.len() as u32, &payload);
        self.block.clear();
        self.block.extend(header.encode());
        self.block.extend(&payload);
        match write_all(&mut self.output, &self.block) {
            Ok(()) => {
                self.length += self.block.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a block would only be in the way of a later one. If this fails, too, readers find a
                // truncated file, which is what it is.
                let _ = self.output.cut(self.length);
                Err(TraceError::io("writing", self.output.path())(error))
            }
        }
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("numbers, strings and maps with keys that are")
}
