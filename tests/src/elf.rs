//! Guest files made on the spot.

/// A loadable segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// The contents in the file.
    pub data: Vec<u8>,
    /// Size in memory, at least that of the data; the rest is zeros.
    pub size: u64,
}

impl Segment {
    /// A segment as large as its data.
    pub fn new(address: u64, data: impl Into<Vec<u8>>) -> Segment {
        let data = data.into();
        Segment {
            address,
            size: data.len() as u64,
            data,
        }
    }
}

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;

/// A static x86-64 ELF file with these segments.
pub fn elf(entry: u64, segments: &[Segment]) -> Vec<u8> {
    let words = |numbers: &[u64]| {
        numbers
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect::<Vec<_>>()
    };
    let count = segments.len() as u16;
    let mut file = Vec::new();
    // Identification, then type, machine, version.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    // Entry, offsets of program and section headers.
    file.extend(words(&[entry, HEADER, 0]));
    // Flags; sizes and numbers of headers.
    file.extend([0u8; 4]);
    let sizes = [HEADER as u16, PROGRAM_HEADER as u16, count, 0, 0, 0];
    file.extend(sizes.iter().flat_map(|n| n.to_le_bytes()));
    let mut offset = HEADER + PROGRAM_HEADER * u64::from(count);
    for Segment {
        address,
        data,
        size,
    } in segments
    {
        let len = data.len() as u64;
        // To be loaded; readable, writable, executable.
        file.extend([1u32, 7].iter().flat_map(|n| n.to_le_bytes()));
        file.extend(words(&[offset, *address, *address, len, *size, 1]));
        offset += len;
    }
    segments
        .iter()
        .for_each(|segment| file.extend(&segment.data));
    file
}
