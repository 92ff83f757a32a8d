//! The block device: data, refusals, pins.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use hmm_backend::pages::Permission::{self, ReadOnly, Writable};
use hmmvisor_devices::MmioDevice;
use hmmvisor_devices::virtio::{Disk, VirtioDevice, block};
use hmmvisor_testkit::machine::both_engines;
use hmmvisor_testkit::virtio::*;
use hmmvisor_testkit::{Engine, Page, Residency, pages};
use tempfile::NamedTempFile;

const SECTORS: u64 = 16384;
pub const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;
pub const ALL: u64 = VERSION_1 | FLUSH | DISCARD | WRITE_ZEROES;

// Requests.
pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const DO_FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DO_DISCARD: u32 = 11;
const DO_WRITE_ZEROES: u32 = 13;

// Answers.
pub const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// The address of headers and statuses.
const HEADER: u64 = FIRST;
pub const STATUS_AT: u64 = 0x1_0000_0000 + FIRST * 4096 + 64;
/// The address of data.
pub const DATA: u64 = FIRST + 16;

/// A byte of the disk that tells where it is.
pub fn pattern(offset: u64) -> u8 {
    (offset / 512 * 7 + offset % 251) as u8
}

pub fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..SECTORS * 512).map(pattern).collect();
    fs::write(&file, bytes).unwrap();
    file
}

pub fn rig(engine: Engine, path: &Path, access: Permission, features: u64) -> Rig {
    let disk = Disk::open(path, access).unwrap();
    let mut rig = Rig::new(engine, |ram, irq| {
        Arc::new(VirtioDevice::new(block(3, disk), ram, irq).expect("a device"))
    });
    rig.start(features, &[256]);
    rig
}

pub fn header(rig: &Rig, kind: u32, sector: u64) -> Descriptor {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    rig.put(at(HEADER), &bytes);
    rig.put(STATUS_AT, &[0xff]);
    (at(HEADER), 16, 0)
}

/// A request with this data; the status and the bytes written.
pub fn request(rig: &mut Rig, kind: u32, sector: u64, data: &[Descriptor]) -> (u8, u32) {
    let mut chain = vec![header(rig, kind, sector)];
    chain.extend(data);
    chain.push((STATUS_AT, 1, WRITE));
    let written = rig.run(0, &chain);
    (rig.get(STATUS_AT, 1)[0], written)
}

fn records(rig: &Rig, ranges: &[(u64, u32, u32)]) -> Descriptor {
    let mut bytes = Vec::new();
    for (sector, count, flags) in ranges {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    rig.put(at(DATA), &bytes);
    (at(DATA), bytes.len() as u32, 0)
}

#[test]
fn the_disk_describes_itself() {
    let file = image();
    let mut rig = rig(Engine::Remap, file.path(), Writable, ALL);
    let mut capacity = [0; 8];
    rig.device.read(CONFIG, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
    assert_eq!(rig.read(CONFIG + 12), 254);
    assert_eq!(rig.offered() & (1 << 5 | ALL), ALL);
    let (status, written) = request(&mut rig, GET_ID, 0, &[(at(DATA), 20, WRITE)]);
    assert_eq!((status, written), (OK, 21));
    assert_eq!(rig.get(at(DATA), 20), *b"hmmvisor-disk-3\0\0\0\0\0");
    rig.finish();
}

#[test]
fn what_is_read_is_what_the_disk_has() {
    let file = image();
    both_engines("block", |engine| {
        let mut rig = rig(engine, file.path(), Writable, ALL);
        // Over pages on a device, and with ends amid them.
        rig.to_device(DATA..DATA + 8);
        let data = [
            (at(DATA) + 512, 5 * 512, WRITE),
            (at(DATA + 4) - 100, 512, WRITE),
            (at(DATA + 6), 4096, WRITE),
        ];
        assert_eq!(request(&mut rig, IN, 100, &data), (OK, 7 * 1024 + 1));
        let mut offset = 100 * 512;
        for (addr, len, _) in data {
            let expected: Vec<u8> = (offset..offset + u64::from(len)).map(pattern).collect();
            assert_eq!(rig.get(addr, len.into()), expected);
            offset += u64::from(len);
        }
        rig.finish();
    });
}

#[test]
fn what_a_device_holds_is_written() {
    both_engines("block", |engine| {
        let file = image();
        let mut rig = rig(engine, file.path(), Writable, ALL);
        let bytes: Vec<u8> = (0..64 * 4096u32)
            .map(|i| (i.wrapping_mul(i) >> 8) as u8)
            .collect();
        rig.put(at(DATA), &bytes);
        rig.to_device(DATA..DATA + 64);
        assert!(rig.driver.live() > 0);
        assert_eq!(
            request(&mut rig, OUT, 8, &[(at(DATA), bytes.len() as u32, 0)]),
            (OK, 1)
        );
        assert_eq!(request(&mut rig, DO_FLUSH, 0, &[]), (OK, 1));
        // They have come back as by a CPU's access, and can go again.
        assert_eq!(rig.driver.live(), 0);
        let residency = |page| rig.backend.word(Page(page as u32)).unwrap().residency();
        assert_eq!(residency(DATA), Residency::System);
        assert_eq!(rig.pinned(), [0, 1, 2], "the rings");
        rig.to_device(DATA..DATA + 64);
        let disk = fs::read(&file).unwrap();
        assert_eq!(disk.len() as u64, SECTORS * 512);
        assert!(disk[8 * 512..].starts_with(&bytes));
        assert_eq!(disk[8 * 512 - 1], pattern(8 * 512 - 1));
        rig.finish();
    });
}

/// More pages than are pinned at a time, in one buffer and in many, and through an indirect table.
#[test]
fn large_requests_go_in_portions() {
    let file = image();
    both_engines("block", |engine| {
        let mut rig = rig(engine, file.path(), ReadOnly, VERSION_1 | FLUSH | 1 << 5);
        let bytes = 5u64 << 20;
        rig.to_device(DATA..DATA + 1024);
        assert_eq!(
            request(&mut rig, IN, 1, &[(at(DATA) + 24, bytes as u32, WRITE)]),
            (OK, bytes as u32 + 1)
        );
        let all: Vec<u8> = (512..512 + bytes).map(pattern).collect();
        assert!(rig.get(at(DATA) + 24, bytes) == all);

        let pieces: Vec<Descriptor> = (0..200)
            .map(|i| (at(DATA + 5 * i) + 4000, 512, WRITE))
            .collect();
        assert_eq!(request(&mut rig, IN, 0, &pieces), (OK, 200 * 512 + 1));
        for (index, (addr, ..)) in (0..).zip(&pieces) {
            let expected: Vec<u8> = (index * 512..index * 512 + 512).map(pattern).collect();
            assert_eq!(rig.get(*addr, 512), expected, "piece {index}");
        }

        let table = at(FIRST + 2);
        let header = header(&rig, IN, 4);
        let descriptors = [
            (header.0, header.1, NEXT),
            (at(DATA), 512, WRITE | NEXT),
            (STATUS_AT, 1, WRITE),
        ];
        for (index, descriptor) in (0..).zip(descriptors) {
            rig.describe(table, index, descriptor, index + 1);
        }
        rig.to_device(FIRST + 2..FIRST + 3);
        assert_eq!(rig.run(0, &[(table, 48, INDIRECT)]), 513);
        assert_eq!(rig.get(STATUS_AT, 1), [OK]);
        assert_eq!(
            rig.get(at(DATA), 512),
            (2048..2560).map(pattern).collect::<Vec<_>>()
        );
        rig.finish();
    });
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let file = image();
    let before = fs::read(&file).unwrap();
    both_engines("block", |engine| {
        let mut rig = rig(engine, file.path(), ReadOnly, VERSION_1 | FLUSH);
        assert_eq!(rig.offered() & (1 << 5 | DISCARD | WRITE_ZEROES), 1 << 5);
        rig.put(at(DATA), &[0xee; 4096]);
        assert_eq!(
            request(&mut rig, OUT, 0, &[(at(DATA), 4096, 0)]),
            (IO_ERROR, 1)
        );
        let range = records(&rig, &[(0, 8, 0)]);
        for kind in [DO_DISCARD, DO_WRITE_ZEROES] {
            assert_eq!(request(&mut rig, kind, 0, &[range]), (UNSUPPORTED, 1));
        }
        assert_eq!(request(&mut rig, DO_FLUSH, 0, &[]), (OK, 1));
        assert_eq!(request(&mut rig, IN, 0, &[(at(DATA), 512, WRITE)]).0, OK);
        rig.finish();
    });
    assert!(fs::read(&file).unwrap() == before);
}

#[test]
fn what_is_not_on_the_disk_is_an_error() {
    let file = image();
    let before = fs::read(&file).unwrap();
    let mut rig = rig(Engine::Remap, file.path(), Writable, ALL);
    let data = |len, flags| [(at(DATA), len, flags)];
    for (kind, sector, chain, answer) in [
        (IN, SECTORS, data(512, WRITE), IO_ERROR),
        (IN, SECTORS - 1, data(1024, WRITE), IO_ERROR),
        (IN, u64::MAX, data(512, WRITE), IO_ERROR),
        (IN, u64::MAX / 512 + 1, data(512, WRITE), IO_ERROR),
        (IN, 0, data(100, WRITE), IO_ERROR),
        (IN, SECTORS - 1, data(512, WRITE), OK),
        (OUT, SECTORS, data(512, 0), IO_ERROR),
        (OUT, SECTORS - 1, data(1024, 0), IO_ERROR),
        (OUT, u64::MAX, data(512, 0), IO_ERROR),
        (OUT, 0, data(511, 0), IO_ERROR),
        (2, 0, data(512, 0), UNSUPPORTED),
        (14, 0, data(512, 0), UNSUPPORTED),
        (u32::MAX, 0, data(512, WRITE), UNSUPPORTED),
    ] {
        let (status, _) = request(&mut rig, kind, sector, &chain);
        assert_eq!(status, answer, "request {kind} at {sector}");
    }
    assert!(fs::read(&file).unwrap() == before);
    rig.finish();
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let file = image();
    let mut rig = rig(Engine::Remap, file.path(), Writable, ALL);
    let zeroed = records(&rig, &[(16, 8, 0)]);
    assert_eq!(request(&mut rig, DO_WRITE_ZEROES, 0, &[zeroed]), (OK, 1));
    let unmapped = records(&rig, &[(32, 8, 1)]);
    assert_eq!(request(&mut rig, DO_WRITE_ZEROES, 0, &[unmapped]), (OK, 1));
    let discarded = records(&rig, &[(64, 8, 0), (80, 8, 0)]);
    assert_eq!(request(&mut rig, DO_DISCARD, 0, &[discarded]), (OK, 1));
    let check = || {
        let disk = fs::read(&file).unwrap();
        for (index, sector) in (0..).zip(disk.chunks_exact(512)) {
            match index {
                16..24 | 32..40 => assert_eq!(sector, [0; 512], "sector {index}"),
                // Anything.
                64..72 | 80..88 => {}
                _ => {
                    let start = index * 512;
                    let expected: Vec<u8> = (start..start + 512).map(pattern).collect();
                    assert_eq!(sector, expected, "sector {index}");
                }
            }
        }
    };
    check();
    // All or nothing: one bad range spoils the request.
    let before = fs::read(&file).unwrap();
    for (kind, ranges, answer) in [
        (DO_DISCARD, vec![(0, 8, 0), (SECTORS, 1, 0)], IO_ERROR),
        (DO_DISCARD, vec![(0, 0, 0)], IO_ERROR),
        (DO_DISCARD, vec![(u64::MAX, 8, 0)], IO_ERROR),
        (DO_DISCARD, vec![(0, 8, 1)], UNSUPPORTED),
        (DO_DISCARD, vec![(0, 8, 0); 17], IO_ERROR),
        (DO_WRITE_ZEROES, vec![(0, 8, 2)], UNSUPPORTED),
        (DO_WRITE_ZEROES, vec![(0, 8, 0); 2], IO_ERROR),
        (DO_WRITE_ZEROES, vec![(SECTORS - 1, 2, 0)], IO_ERROR),
        (DO_WRITE_ZEROES, vec![(0, u32::MAX, 0)], IO_ERROR),
        (DO_WRITE_ZEROES, vec![], IO_ERROR),
    ] {
        let record = records(&rig, &ranges);
        let data: &[Descriptor] = if ranges.is_empty() { &[] } else { &[record] };
        let (status, _) = request(&mut rig, kind, 0, data);
        assert_eq!(status, answer, "{kind}: {ranges:?}");
    }
    assert!(fs::read(&file).unwrap() == before);
    check();
    rig.finish();
}

/// A driver that has not accepted these features cannot use them.
#[test]
fn only_what_is_agreed_on_works() {
    let file = image();
    let mut rig = rig(Engine::Remap, file.path(), Writable, VERSION_1);
    let range = records(&rig, &[(0, 8, 0)]);
    for kind in [DO_DISCARD, DO_WRITE_ZEROES] {
        assert_eq!(request(&mut rig, kind, 0, &[range]), (UNSUPPORTED, 1));
    }
    rig.put(at(DATA), &[7; 512]);
    assert_eq!(request(&mut rig, OUT, 0, &[(at(DATA), 512, 0)]), (OK, 1));
    assert_eq!(fs::read(&file).unwrap()[..512], [7; 512]);
    rig.finish();
}

/// Header and status may be anywhere and in pieces; the last byte is the status.
#[test]
fn descriptors_end_where_they_like() {
    let file = image();
    let mut rig = rig(Engine::Remap, file.path(), Writable, ALL);
    header(&rig, IN, 2);
    let chain = [
        (at(HEADER), 3, 0),
        (at(HEADER) + 3, 13, 0),
        (at(DATA), 100, WRITE),
        (at(DATA) + 100, 413, WRITE),
    ];
    assert_eq!(rig.run(0, &chain), 513);
    let bytes = rig.get(at(DATA), 513);
    assert_eq!(bytes[..512], (1024..1536).map(pattern).collect::<Vec<_>>());
    assert_eq!(bytes[512], OK);
    rig.finish();
}

/// The file is cut off under the running guest.
#[test]
fn a_disk_that_shrinks_is_an_error() {
    let file = image();
    let mut rig = rig(Engine::Remap, file.path(), Writable, ALL);
    file.as_file().set_len(1 << 20).unwrap();
    let (status, written) = request(&mut rig, IN, 4096, &[(at(DATA), 512, WRITE)]);
    assert_eq!((status, written), (IO_ERROR, 1));
    assert_eq!(request(&mut rig, IN, 0, &[(at(DATA), 512, WRITE)]).0, OK);
    rig.finish();
}

#[test]
fn memory_that_cannot_be_reached_is_an_error() {
    let file = image();
    let before = fs::read(&file).unwrap();
    both_engines("block", |engine| {
        let mut rig = rig(engine, file.path(), Writable, ALL);
        rig.put(at(DATA), &[1; 4096]);
        rig.backend
            .set_permission(pages(DATA as u32..DATA as u32 + 1), Permission::ReadOnly)
            .unwrap();
        // A read of the disk writes memory.
        let (status, _) = request(&mut rig, IN, 0, &[(at(DATA), 512, WRITE)]);
        assert_eq!(status, IO_ERROR);
        assert_eq!(rig.get(at(DATA), 4096), [1; 4096]);

        // The contents of a page are lost on the device that had it.
        rig.put(at(DATA + 1), &[2; 4096]);
        rig.to_device(DATA + 1..DATA + 2);
        rig.driver.refuse(|_| {
            let why = "the memory is gone".to_owned();
            Some(hmmvisor_testkit::FaultError::Fatal(why))
        });
        let (status, _) = request(&mut rig, OUT, 0, &[(at(DATA + 1), 512, 0)]);
        assert_eq!(status, IO_ERROR);
        rig.driver.refuse_nothing();
        assert_eq!(rig.pinned(), [0, 1, 2], "the rings");
        assert_eq!(request(&mut rig, DO_FLUSH, 0, &[]).0, OK);
        rig.finish();
    });
    assert!(fs::read(&file).unwrap() == before);
}
