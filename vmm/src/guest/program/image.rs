//! Guest images: ELF files, checked before anything of them gets into a guest.

use std::ops::Range;

use hmmvisor_abi::map;
use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, ET_DYN, ET_EXEC, Elf64_Ehdr,
    Elf64_Phdr, PT_INTERP, PT_LOAD,
};
use thiserror::Error;
use vm_memory::ByteValued;

/// The largest file that is read: a larger one is a mistake.
pub const FILE_LIMIT: u64 = 1 << 30;

/// The advice for files that are the wrong kind of program.
const HOW_TO_LINK: &str = "link it statically at 0x200000 (`-static -no-pie -Wl,--image-base=0x200000`, or `-Ttext-segment=0x200000` with GNU ld); see docs/guest-abi.md";

/// Why a file cannot be a guest.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file is empty.
    #[error("it is empty")]
    Empty,
    /// It has no ELF magic number.
    #[error("it is not an ELF file")]
    NotElf,
    /// It ends in the middle of a header or a segment.
    #[error(
        "it is too short: {what} ends at byte {end}, the file at byte {len}; was it truncated?"
    )]
    Truncated {
        /// The header or segment.
        what: &'static str,
        /// Where it would end.
        end: u64,
        /// Where the file ends.
        len: u64,
    },
    /// It is for another kind of processor.
    #[error(
        "it is not for 64-bit x86 (ELF class {class}, data encoding {data}, machine {machine})"
    )]
    Architecture {
        /// 1 for 32 bits, 2 for 64.
        class: u8,
        /// 1 for little-endian.
        data: u8,
        /// The kind of processor.
        machine: u16,
    },
    /// It is not a static program.
    #[error("it is {0}; {HOW_TO_LINK}")]
    NotStatic(&'static str),
    /// It contradicts itself.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It has no segment to load.
    #[error("it has nothing to load")]
    NoSegments,
    /// Two segments want the same memory.
    #[error(
        "its segments at {:#x}..{:#x} and {:#x}..{:#x} overlap; link it so that each has memory of its own", .0.start, .0.end, .1.start, .1.end
    )]
    Overlap(Range<u64>, Range<u64>),
    /// A segment is outside of the memory for guests.
    #[error(
        "its segment at {start:#x}..{end:#x} lies neither in the image area ({:#x}..{:#x}) nor in managed memory ({managed}); {HOW_TO_LINK}",
        map::IMAGE_BASE,
        map::IMAGE_END
    )]
    Place {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// The range of managed memory.
        managed: String,
    },
    /// The entry point is in no segment.
    #[error("its entry point {0:#x} is in none of its segments")]
    Entry(u64),
}

/// A checked image.
#[derive(Debug)]
pub struct Image<'a> {
    /// Address of the first instruction.
    pub entry: u64,
    /// The contents to load.
    pub segments: Vec<Segment<'a>>,
}

/// A piece of memory with contents. What follows the contents, up to the segment's end, is zero.
#[derive(Debug)]
pub struct Segment<'a> {
    /// Its guest-physical address.
    pub address: u64,
    /// The contents.
    pub data: &'a [u8],
}

impl Image<'_> {
    /// Checks an ELF file for a guest with `managed` bytes of managed memory.
    pub fn parse(file: &[u8], managed: u64) -> Result<Image<'_>, ImageError> {
        if file.is_empty() {
            return Err(ImageError::Empty);
        }
        if !file.starts_with(ELFMAG) {
            return Err(ImageError::NotElf);
        }
        let header: Elf64_Ehdr = object(file, 0, "the ELF header")?;
        let (class, data, machine) = (
            header.e_ident[EI_CLASS],
            header.e_ident[EI_DATA],
            header.e_machine,
        );
        if (class, data, machine) != (ELFCLASS64, ELFDATA2LSB, EM_X86_64) {
            return Err(ImageError::Architecture {
                class,
                data,
                machine,
            });
        }
        match header.e_type {
            ET_EXEC => {}
            ET_DYN => return Err(ImageError::NotStatic("position-independent")),
            _ => return Err(ImageError::NotStatic("not a linked program")),
        }
        if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() && header.e_phnum != 0 {
            return Err(ImageError::Damaged(
                "its program headers have the wrong size",
            ));
        }

        let mut segments = Vec::new();
        let mut places = Vec::new();
        let mut has_entry = false;
        for index in 0..u64::from(header.e_phnum) {
            let offset = header
                .e_phoff
                .saturating_add(index * size_of::<Elf64_Phdr>() as u64);
            let program: Elf64_Phdr = object(file, offset, "a program header")?;
            if program.p_type == PT_INTERP {
                return Err(ImageError::NotStatic("dynamically linked"));
            }
            if program.p_type != PT_LOAD {
                continue;
            }
            if program.p_filesz > program.p_memsz {
                return Err(ImageError::Damaged(
                    "a segment has more contents than memory",
                ));
            }
            if program.p_memsz == 0 {
                continue;
            }
            let place = place(program.p_vaddr, program.p_memsz, managed)?;
            has_entry |= place.contains(&header.e_entry);
            // The offset of a segment without contents means nothing: linkers write any number.
            let data = match program.p_filesz {
                0 => &[],
                size => slice(file, program.p_offset, size, "a segment")?,
            };
            segments.push(Segment {
                address: place.start,
                data,
            });
            places.push(place);
        }
        if segments.is_empty() {
            return Err(ImageError::NoSegments);
        }
        if let Some((first, second)) = overlap(places) {
            return Err(ImageError::Overlap(first, second));
        }
        if !has_entry {
            return Err(ImageError::Entry(header.e_entry));
        }
        Ok(Image {
            entry: header.e_entry,
            segments,
        })
    }
}

/// Two of these places that have addresses in common, if any do. Without such two, segments have no more contents than
/// there is memory, however many a file lists.
pub fn overlap(mut places: Vec<Range<u64>>) -> Option<(Range<u64>, Range<u64>)> {
    places.sort_unstable_by_key(|place| (place.start, place.end));
    let pair = places.windows(2).find(|pair| pair[1].start < pair[0].end)?;
    Some((pair[0].clone(), pair[1].clone()))
}

/// Returns the addresses of a segment, if it may be there.
fn place(address: u64, size: u64, managed: u64) -> Result<Range<u64>, ImageError> {
    let place = address..address.saturating_add(size);
    let within = |area: Range<u64>| area.start <= place.start && place.end <= area.end;
    let managed = map::MANAGED..map::MANAGED + managed;
    if within(map::IMAGE_BASE..map::IMAGE_END) || within(managed.clone()) {
        Ok(place)
    } else {
        let managed = match managed.is_empty() {
            true => "none".to_owned(),
            false => format!("{:#x}..{:#x}", managed.start, managed.end),
        };
        Err(ImageError::Place {
            start: place.start,
            end: place.end,
            managed,
        })
    }
}

fn slice<'a>(
    file: &'a [u8],
    offset: u64,
    size: u64,
    what: &'static str,
) -> Result<&'a [u8], ImageError> {
    let (len, end) = (file.len() as u64, offset.saturating_add(size));
    if end > len {
        return Err(ImageError::Truncated { what, end, len });
    }
    Ok(&file[offset as usize..end as usize])
}

fn object<T: ByteValued + Default>(
    file: &[u8],
    offset: u64,
    what: &'static str,
) -> Result<T, ImageError> {
    let mut object = T::default();
    object
        .as_mut_slice()
        .copy_from_slice(slice(file, offset, size_of::<T>() as u64, what)?);
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANAGED: u64 = 64 << 20;
    const HEADERS: usize = size_of::<Elf64_Ehdr>() + 2 * size_of::<Elf64_Phdr>();

    /// Returns a file with one segment of four bytes in the file and a page in memory.
    fn elf(change: impl FnOnce(&mut Elf64_Ehdr, &mut Elf64_Phdr)) -> Vec<u8> {
        with_another(change, |_| {})
    }

    /// Returns the same with a second segment behind it, without contents; `other` says which.
    fn two(other: impl FnOnce(&mut Elf64_Phdr)) -> Vec<u8> {
        with_another(
            |_, _| {},
            |program| {
                program.p_type = PT_LOAD;
                program.p_vaddr = map::IMAGE_BASE + 4096;
                program.p_memsz = 4096;
                other(program);
            },
        )
    }

    fn with_another(
        change: impl FnOnce(&mut Elf64_Ehdr, &mut Elf64_Phdr),
        other: impl FnOnce(&mut Elf64_Phdr),
    ) -> Vec<u8> {
        let mut header = Elf64_Ehdr {
            e_type: ET_EXEC,
            e_machine: EM_X86_64,
            e_entry: map::IMAGE_BASE,
            e_phoff: size_of::<Elf64_Ehdr>() as u64,
            e_phentsize: size_of::<Elf64_Phdr>() as u16,
            e_phnum: 2,
            ..Default::default()
        };
        header.e_ident[..4].copy_from_slice(ELFMAG);
        header.e_ident[EI_CLASS] = ELFCLASS64;
        header.e_ident[EI_DATA] = ELFDATA2LSB;
        let mut program = Elf64_Phdr {
            p_type: PT_LOAD,
            p_offset: HEADERS as u64,
            p_vaddr: map::IMAGE_BASE,
            p_filesz: 4,
            p_memsz: 4096,
            ..Default::default()
        };
        change(&mut header, &mut program);
        let mut second = Elf64_Phdr::default();
        other(&mut second);
        [
            header.as_slice(),
            program.as_slice(),
            second.as_slice(),
            b"code",
        ]
        .concat()
    }

    fn refusal(file: &[u8]) -> String {
        Image::parse(file, MANAGED).unwrap_err().to_string()
    }

    #[test]
    fn a_static_program_is_taken() {
        let file = elf(|_, _| {});
        let image = Image::parse(&file, MANAGED).unwrap();
        assert_eq!(image.entry, map::IMAGE_BASE);
        assert_eq!(image.segments.len(), 1);
        assert_eq!(image.segments[0].data, b"code");

        let file = elf(|header, program| {
            header.e_entry = map::MANAGED + 5;
            program.p_vaddr = map::MANAGED;
            program.p_memsz = MANAGED;
        });
        assert_eq!(
            Image::parse(&file, MANAGED).unwrap().segments[0].address,
            map::MANAGED
        );
    }

    #[test]
    fn bad_files_are_refused_with_the_reason() {
        assert_eq!(refusal(b""), "it is empty");
        assert_eq!(refusal(b"#!/bin/sh\n"), "it is not an ELF file");
        assert!(
            refusal(b"\x7fELF")
                .starts_with("it is too short: the ELF header ends at byte 64, the file at byte 4")
        );
        let good = elf(|_, _| {});
        assert!(refusal(&good[..100]).contains("a program header"));
        assert!(refusal(&good[..HEADERS + 3]).contains("a segment ends at"));
        assert!(refusal(&elf(|header, _| header.e_machine = 183)).contains("machine 183"));
        assert!(
            refusal(&elf(|header, _| header.e_ident[EI_CLASS] = 1)).contains("not for 64-bit x86")
        );
        assert!(refusal(&elf(|header, _| header.e_type = ET_DYN)).contains("position-independent"));
        assert!(refusal(&elf(|header, _| header.e_phnum = 0)).contains("nothing to load"));
        assert!(refusal(&elf(|header, _| header.e_phentsize = 1)).contains("damaged"));
        assert!(refusal(&elf(|header, _| header.e_phoff = u64::MAX)).contains("too short"));
        assert!(refusal(&elf(|header, _| header.e_entry = 0)).contains("entry point 0x0"));
        assert!(
            refusal(&elf(|_, program| program.p_type = PT_INTERP)).contains("dynamically linked")
        );
        assert!(refusal(&elf(|_, program| program.p_filesz = 5000)).contains("damaged"));
        assert!(refusal(&elf(|_, program| program.p_offset = u64::MAX)).contains("too short"));
        assert!(refusal(&elf(|_, program| program.p_memsz = 0)).contains("damaged"));
    }

    #[test]
    fn a_segment_without_contents_may_name_any_place_in_the_file() {
        for offset in [0, 5, 1 << 20, u64::MAX] {
            for align in [0, 1, 3, 4096, u64::MAX] {
                let file = two(|program| {
                    program.p_offset = offset;
                    program.p_align = align;
                });
                let image = Image::parse(&file, MANAGED).unwrap();
                assert_eq!(image.segments.len(), 2);
                assert_eq!(image.segments[1].address, map::IMAGE_BASE + 4096);
                assert!(image.segments[1].data.is_empty());
            }
        }
        // Nor does one without memory need a place there.
        let file = two(|program| (program.p_memsz, program.p_vaddr) = (0, 5));
        assert_eq!(Image::parse(&file, MANAGED).unwrap().segments.len(), 1);
    }

    #[test]
    fn segments_must_not_overlap() {
        for (from, size) in [(0, 1), (0, 4096), (4095, 1), (4095, 5000), (1, 8192)] {
            let file = two(|program| {
                program.p_vaddr = map::IMAGE_BASE + from;
                program.p_memsz = size;
            });
            let message = refusal(&file);
            assert!(message.contains("overlap"), "{from} {size}: {message}");
            assert!(message.contains("0x200000..0x201000"), "{message}");
        }
        let beside = two(|program| program.p_vaddr = map::MANAGED);
        Image::parse(&beside, MANAGED).unwrap();
    }

    #[test]
    fn segments_must_lie_in_one_of_the_two_areas() {
        for (address, size) in [
            (0, 0x1000),
            (map::BOOT_INFO, 0x1000),
            (map::IMAGE_BASE - 1, 0x1000),
            (map::IMAGE_BASE, map::IMAGE_END - map::IMAGE_BASE + 1),
            (map::STACKS, 0x1000),
            (map::MANAGED, MANAGED + 1),
            (map::MANAGED - 1, 0x1000),
            (u64::MAX, u64::MAX),
            (map::IMAGE_BASE, u64::MAX),
        ] {
            let file = elf(|_, program| {
                program.p_vaddr = address;
                program.p_memsz = size;
            });
            assert!(
                refusal(&file).contains("neither in the image area"),
                "{address:#x} {size:#x}"
            );
        }
    }
}
