//! The bytes around the events: the file's header and the blocks' headers. All numbers are little-endian.
//!
//! | file header | | block header | |
//! |---|---|---|---|
//! | 0 | magic `HMMTRACE` | 0 | magic: `HBLK` events, `HNOT` note, `HEND` end |
//! | 8 | version, u32 | 4 | events, u32 |
//! | 12 | length of the metadata, u32 | 8 | stored length of the payload, u32 |
//! | 16 | CRC32 of the metadata, u32 | 12 | length when decompressed, u32 |
//! | 20 | metadata, JSON | 16 | CRC32 of bytes 0 to 15 and of the stored payload, u32 |
//! | | | 20 | payload, zstd |

/// The first bytes of every trace.
pub const MAGIC: &[u8; 8] = b"HMMTRACE";
/// The version of the format. Since 2 there are events of duplicates and of hints, since 3 accesses say how often they
/// were repeated, since 5 a trace may say where pages are when it begins.
pub const VERSION: u32 = 5;
/// Bytes before the metadata.
pub const HEADER: usize = 20;
/// Bytes before a block's payload.
pub const BLOCK_HEADER: usize = 20;
/// The most events in a block: bounds what a reader holds.
pub const BLOCK_EVENTS: usize = 1 << 16;
/// The longest payload, stored or not. Notes and ends hold tables of threads and addresses.
pub const PAYLOAD_LIMIT: u32 = 16 << 20;
/// The longest metadata.
pub const META_LIMIT: u32 = 1 << 20;

/// The kind of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockKind {
    /// Events, as `columns` puts them.
    Events,
    /// A note about the trace so far, JSON: drops, threads. The last one counts.
    Note,
    /// The same at the end; nothing follows.
    End,
}

impl BlockKind {
    fn magic(self) -> [u8; 4] {
        match self {
            BlockKind::Events => *b"HBLK",
            BlockKind::Note => *b"HNOT",
            BlockKind::End => *b"HEND",
        }
    }
}

/// A block's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHeader {
    /// What the payload is.
    pub kind: BlockKind,
    /// Number of events.
    pub events: u32,
    /// Bytes of the payload in the file.
    pub stored: u32,
    /// Bytes of the payload when decompressed.
    pub raw: u32,
    /// Checksum of all this and of the payload.
    pub crc: u32,
}

impl BlockHeader {
    /// Makes the header for this payload.
    pub fn new(kind: BlockKind, events: u32, raw: u32, payload: &[u8]) -> BlockHeader {
        let mut header = BlockHeader {
            kind,
            events,
            stored: payload.len() as u32,
            raw,
            crc: 0,
        };
        header.crc = header.checksum(payload);
        header
    }

    /// Returns the length of the whole block.
    pub fn size(&self) -> u64 {
        BLOCK_HEADER as u64 + u64::from(self.stored)
    }

    /// Computes the checksum of the header and this payload.
    pub fn checksum(&self, payload: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.encode()[..16]);
        hasher.update(payload);
        hasher.finalize()
    }

    /// Returns the bytes of the header, as they are in the file.
    pub fn encode(&self) -> [u8; BLOCK_HEADER] {
        let mut bytes = [0; BLOCK_HEADER];
        bytes[..4].copy_from_slice(&self.kind.magic());
        for (place, number) in
            bytes[4..]
                .chunks_exact_mut(4)
                .zip([self.events, self.stored, self.raw, self.crc])
        {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Reads a header from the bytes in a file. An error says what is in them that no writer writes.
    pub fn decode(bytes: &[u8; BLOCK_HEADER]) -> Result<BlockHeader, &'static str> {
        let kind = [BlockKind::Events, BlockKind::Note, BlockKind::End]
            .into_iter()
            .find(|kind| bytes[..4] == kind.magic())
            .ok_or("no block begins here")?;
        let [events, stored, raw, crc] = [4, 8, 12, 16].map(|at| u32_at(bytes, at));
        if events as usize > BLOCK_EVENTS || stored > PAYLOAD_LIMIT || raw > PAYLOAD_LIMIT {
            return Err("a block says that it is larger than blocks are");
        }
        Ok(BlockHeader {
            kind,
            events,
            stored,
            raw,
            crc,
        })
    }
}

/// Returns the number at an offset, which must be inside.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}
