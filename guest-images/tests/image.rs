//! The guest's image fits the memory map and runs on the oldest x86-64 CPU.

use hmmvisor_abi::map::{IMAGE_BASE, IMAGE_END};
use hmmvisor_guest_images::IMAGE;
use std::process::{Command, Stdio};

const TYPE_EXECUTABLE: u64 = 2;
const MACHINE_X86_64: u64 = 62;
const SEGMENT_LOAD: u64 = 1;
const SEGMENT_DYNAMIC: u64 = 2;
const SEGMENT_INTERPRETER: u64 = 3;
const SEGMENT_TLS: u64 = 7;

/// A little-endian number in the image.
fn number(at: u64, bytes: usize) -> u64 {
    let at = at as usize;
    IMAGE[at..at + bytes]
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

struct Segment {
    kind: u64,
    begin: u64,
    end: u64,
}

fn segments() -> Vec<Segment> {
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let segment = |index| {
        let header = table + index * size;
        let (begin, bytes) = (number(header + 16, 8), number(header + 40, 8));
        Segment {
            kind: number(header, 4),
            begin,
            end: begin + bytes,
        }
    };
    (0..count).map(segment).collect()
}

#[test]
fn is_a_static_executable() {
    assert_eq!(&IMAGE[..6], b"\x7fELF\x02\x01", "64-bit, little-endian");
    assert_eq!(
        (number(16, 2), number(18, 2)),
        (TYPE_EXECUTABLE, MACHINE_X86_64)
    );
    for segment in segments() {
        assert!(
            ![SEGMENT_DYNAMIC, SEGMENT_INTERPRETER, SEGMENT_TLS].contains(&segment.kind),
            "segment of type {} needs a loader",
            segment.kind
        );
    }
}

#[test]
fn is_linked_into_the_image_area() {
    let loaded: Vec<_> = segments()
        .into_iter()
        .filter(|segment| segment.kind == SEGMENT_LOAD)
        .collect();
    assert_eq!(
        loaded.iter().map(|segment| segment.begin).min(),
        Some(IMAGE_BASE)
    );
    assert!(loaded.iter().all(|segment| segment.end <= IMAGE_END));
    let entry = number(24, 8);
    assert!(
        loaded
            .iter()
            .any(|segment| (segment.begin..segment.end).contains(&entry)),
        "{entry:#x}"
    );
}

/// The instructions that ring 3 cannot use, and those beyond SSE2.
#[test]
fn has_no_instructions_that_guests_lack() {
    let file = std::path::Path::new(env!("HMMVISOR_GUEST_IMAGE"));
    let listing = Command::new("objdump")
        .args(["-d", "--no-show-raw-insn", "-M", "intel"])
        .arg(file)
        .stderr(Stdio::inherit())
        .output();
    let Ok(listing) = listing else {
        eprintln!("skipped: there is no objdump");
        return;
    };
    assert!(listing.status.success());
    let listing = String::from_utf8(listing.stdout).unwrap();
    let mut instructions = 0;
    for line in listing.lines().filter(|line| line.starts_with("  ")) {
        let text = line.split_once(':').map_or("", |(_, text)| text.trim());
        let mnemonic = text.split_whitespace().next().unwrap_or("");
        let forbidden = [
            "in", "out", "int", "hlt", "cli", "sti", "syscall", "sysenter", "popcnt", "tzcnt",
            "lzcnt",
        ];
        // Port string instructions are `ins` and `outs`; all of AVX starts with `v`.
        let refused = forbidden.contains(&mnemonic)
            || mnemonic.starts_with("ins")
            || mnemonic.starts_with("outs")
            || mnemonic.starts_with('v')
            || text.contains("ymm");
        assert!(!refused, "{line}");
        instructions += 1;
    }
    assert!(
        instructions > 1000,
        "the listing is not understood: {listing}"
    );
}
