//! The block device: requests of a driver, carried out on a [`Disk`] one after the other.
//!
//! The kernel reads and writes the guest's pages themselves. They are pinned meanwhile, at most [`PINNED_PAGES`] at a time.

use std::io;

use hmm_backend::pages::Access;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::device::{Model, Parts, Port, Reply};
use super::disk::{Disk, SECTOR, Space};
use super::queue::{Chain, Malformed};
use super::ram::RamError;
use super::registers::{Profile, feature_bits};

/// Slots of the queue.
const SLOTS: u16 = 256;
/// Segments of data in one request, at most: the rest of a full chain is for header and status.
const MOST_SEGMENTS: u32 = SLOTS as u32 - 2;
/// Bytes of a segment, at most.
const SEGMENT_BYTES: u32 = 256 << 10;
/// Bytes of a request, at most: a reset waits for the current request.
const MOST_BYTES: u64 = MOST_SEGMENTS as u64 * SEGMENT_BYTES as u64;
/// Pages of data that are pinned at a time.
const PINNED_PAGES: u64 = 256;
/// Ranges in a request to discard.
const DISCARD_RANGES: u32 = 16;
/// Sectors of a range to discard.
const DISCARD_SECTORS: u32 = 1 << 22;
/// Sectors that a request makes zeros: where the file system cannot, they are written.
const ZERO_SECTORS: u32 = (32 << 20) / SECTOR as u32;
/// Bytes of a request's header, and of a range to discard or to make zeros.
const RECORD: usize = 16;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IO_ERROR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// A block device over an image; `number` tells it from others, in its name and its identity.
pub fn block(number: usize, disk: Disk) -> Parts {
    let features = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
    ];
    let more: &[u32] = match disk.read_only() {
        true => &[VIRTIO_BLK_F_RO],
        false => &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES],
    };
    Parts {
        name: format!("virtio-blk{number}"),
        profile: Profile {
            id: VIRTIO_ID_BLOCK,
            features: feature_bits(&features) | feature_bits(more),
            queues: vec![SLOTS],
            config: config(&disk),
            writable: Vec::new(),
        },
        model: Box::new(Block {
            disk,
            identity: format!("hmmvisor-disk-{number}"),
            features: 0,
        }),
        immediate: None,
    }
}

fn config(disk: &Disk) -> Vec<u8> {
    let mut config = vec![0; 60];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(disk.bytes() / SECTOR).to_le_bytes());
    put(8, &SEGMENT_BYTES.to_le_bytes());
    put(12, &MOST_SEGMENTS.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    // One queue.
    put(34, &1u16.to_le_bytes());
    if !disk.read_only() {
        put(36, &DISCARD_SECTORS.to_le_bytes());
        put(40, &DISCARD_RANGES.to_le_bytes());
        // Alignment of discards: none.
        put(44, &1u32.to_le_bytes());
        put(48, &ZERO_SECTORS.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        // Zeros may be holes, if the request permits that.
        put(56, &[1]);
    }
    config
}

struct Block {
    disk: Disk,
    identity: String,
    /// The features that the driver has accepted.
    features: u64,
}

/// Why a well-formed request failed.
enum Failure {
    Io,
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Failure::Unsupported,
            _ => Failure::Io,
        }
    }
}

impl From<RamError> for Failure {
    fn from(_: RamError) -> Failure {
        Failure::Io
    }
}

impl Model for Block {
    fn start(&mut self, features: u64) {
        self.features = features;
    }

    fn request(&mut self, port: &Port, _: usize, chain: &Chain) -> Result<Reply, Malformed> {
        if chain.readable.bytes() < RECORD as u64 {
            return Err(Malformed::Request("a block request without a header"));
        }
        // The status is the last writable byte, wherever descriptors end.
        let Some(status_at) = chain.writable.bytes().checked_sub(1) else {
            return Err(Malformed::Request("a block request without a status"));
        };
        let (status, written) = match self.execute(port, chain, status_at) {
            Ok(written) => (OK, written),
            Err(Failure::Io) => (IO_ERROR, 0),
            Err(Failure::Unsupported) => (UNSUPPORTED, 0),
        };
        if port
            .ram()
            .write(&chain.writable, status_at, &[status])
            .is_err()
        {
            // The memory for the status is gone, so the driver cannot be told.
            return Ok(Reply::Used(0));
        }
        // Everything up to the status, or, after an error, nothing to rely on but the status.
        let whole = written == status_at;
        Ok(Reply::Used(match whole {
            true => (written + 1) as u32,
            false => 1,
        }))
    }
}

impl Block {
    /// Carries out a request with so many writable bytes before its status. Returns how many of them were written.
    fn execute(&self, port: &Port, chain: &Chain, room: u64) -> Result<u64, Failure> {
        let mut header = [0; RECORD];
        port.ram().read(&chain.readable, 0, &mut header)?;
        let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let data = chain.readable.bytes() - RECORD as u64;
        match kind {
            VIRTIO_BLK_T_IN => {
                let offset = self.range(sector, room)?;
                self.transfer(port, chain, offset, Access::Write, room)?;
                return Ok(room);
            }
            VIRTIO_BLK_T_OUT => {
                self.check_writable()?;
                let offset = self.range(sector, data)?;
                self.transfer(port, chain, offset, Access::Read, data)?;
                self.written()?;
            }
            VIRTIO_BLK_T_FLUSH => self.disk.flush()?,
            VIRTIO_BLK_T_GET_ID => {
                let mut identity = [0; VIRTIO_BLK_ID_BYTES as usize];
                let len = self.identity.len().min(identity.len());
                identity[..len].copy_from_slice(&self.identity.as_bytes()[..len]);
                let len = room.min(identity.len() as u64);
                port.ram()
                    .write(&chain.writable, 0, &identity[..len as usize])?;
                return Ok(len);
            }
            VIRTIO_BLK_T_DISCARD if self.has(VIRTIO_BLK_F_DISCARD) => {
                self.discard(port, chain, data)?;
            }
            VIRTIO_BLK_T_WRITE_ZEROES if self.has(VIRTIO_BLK_F_WRITE_ZEROES) => {
                self.write_zeroes(port, chain, data)?;
            }
            _ => return Err(Failure::Unsupported),
        }
        Ok(0)
    }

    fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    fn check_writable(&self) -> Result<(), Failure> {
        match self.disk.read_only() {
            true => Err(Failure::Io),
            false => Ok(()),
        }
    }

    /// Returns the byte of the disk at which a transfer of whole sectors begins.
    fn range(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        match bytes.is_multiple_of(SECTOR) && bytes <= MOST_BYTES {
            true => self.offset(sector, bytes),
            false => Err(Failure::Io),
        }
    }

    /// Returns the byte of the disk at which a range begins that is all on it.
    fn offset(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let offset = sector.checked_mul(SECTOR).ok_or(Failure::Io)?;
        let end = offset.checked_add(bytes).ok_or(Failure::Io)?;
        match end <= self.disk.bytes() {
            true => Ok(offset),
            false => Err(Failure::Io),
        }
    }

    /// Moves data between the disk and the chain, as much as can be pinned at a time.
    fn transfer(
        &self,
        port: &Port,
        chain: &Chain,
        offset: u64,
        to: Access,
        bytes: u64,
    ) -> Result<(), Failure> {
        let (spans, skip) = match to {
            Access::Write => (&chain.writable, 0),
            Access::Read => (&chain.readable, RECORD as u64),
        };
        let data = spans.part(skip, bytes);
        let mut done = 0;
        while done < bytes {
            let portion = data.portion(done, PINNED_PAGES, PINNED_PAGES as usize);
            let pinned = port.ram().pin(portion.0.iter().copied(), to)?;
            match to {
                Access::Write => self.disk.read(&pinned, &portion, offset + done)?,
                Access::Read => self.disk.write(&pinned, &portion, offset + done)?,
            }
            done += portion.bytes();
        }
        Ok(())
    }

    /// Flushes the disk if the driver cannot ask for that: such a driver relies on every write.
    fn written(&self) -> Result<(), Failure> {
        if !self.has(VIRTIO_BLK_F_FLUSH) {
            self.disk.flush()?;
        }
        Ok(())
    }

    fn discard(&self, port: &Port, chain: &Chain, bytes: u64) -> Result<(), Failure> {
        let ranges = self.ranges(port, chain, bytes, DISCARD_RANGES, DISCARD_SECTORS)?;
        // Only requests to write zeros have flags.
        if ranges.iter().any(|range| range.flags != 0) {
            return Err(Failure::Unsupported);
        }
        for Range { offset, len, .. } in ranges {
            self.disk.discard(offset, len)?;
        }
        self.written()
    }

    fn write_zeroes(&self, port: &Port, chain: &Chain, bytes: u64) -> Result<(), Failure> {
        let ranges = self.ranges(port, chain, bytes, 1, ZERO_SECTORS)?;
        const UNMAP: u32 = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
        if ranges.iter().any(|range| range.flags & !UNMAP != 0) {
            return Err(Failure::Unsupported);
        }
        for Range { offset, len, flags } in ranges {
            let space = match flags & UNMAP {
                0 => Space::Keep,
                _ => Space::Release,
            };
            self.disk.zero(offset, len, space)?;
        }
        self.written()
    }

    /// Returns the ranges that a request names. All of them are checked first, so that a wrong request touches none.
    fn ranges(
        &self,
        port: &Port,
        chain: &Chain,
        bytes: u64,
        most: u32,
        most_sectors: u32,
    ) -> Result<Vec<Range>, Failure> {
        self.check_writable()?;
        let count = bytes / RECORD as u64;
        if bytes == 0 || !bytes.is_multiple_of(RECORD as u64) || count > most.into() {
            return Err(Failure::Io);
        }
        let mut records = vec![0; bytes as usize];
        port.ram()
            .read(&chain.readable, RECORD as u64, &mut records)?;
        let range = |record: &[u8]| {
            let word =
                |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("four bytes"));
            let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
            let (sectors, flags) = (word(8), word(12));
            if sectors == 0 || sectors > most_sectors {
                return Err(Failure::Io);
            }
            let len = u64::from(sectors) * SECTOR;
            let offset = self.offset(sector, len)?;
            Ok(Range { offset, len, flags })
        };
        records.chunks_exact(RECORD).map(range).collect()
    }
}

struct Range {
    offset: u64,
    len: u64,
    flags: u32,
}
