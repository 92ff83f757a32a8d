//! Kernel files: their format, whether they are whole, their place in memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, Elf64_Ehdr, Elf64_Phdr, PT_LOAD,
    PT_NOTE,
};
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use thiserror::Error;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    ByteValued, GuestAddress, GuestMemoryMmap, ReadVolatile, VolatileMemoryError, VolatileSlice,
};

use super::layout::{CMDLINE_ROOM, HIGH_START};
use crate::guest::program::image::overlap;
use crate::host::file::FileError;

/// The largest file: a larger one is a mistake.
const FILE_LIMIT: u64 = 1 << 30;
/// The most bytes of notes, all together: they are read one by one. Kernels have some hundred.
const NOTES_LIMIT: u64 = 1 << 20;
/// Where a bzImage's set-up header begins.
const SETUP_HEADER: u64 = 0x1f1;
const SETUP_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const SECTOR: u64 = 512;
/// The first version of the boot protocol that knows a 64-bit entry.
const VERSION_64_BIT: u16 = 0x20c;
/// In `xloadflags`: there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry, from where the kernel is loaded.
const ENTRY_64: u64 = 0x200;
/// The longest command line of kernels that do not name a limit: that of all Linux kernels for x86.
const CMDLINE_LIMIT: u64 = 2047;

/// Why a file cannot be booted.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is empty.
    #[error("it is empty")]
    Empty,
    /// It is no kernel.
    #[error(
        "it is no Linux kernel for x86: neither a bzImage (`vmlinuz`) nor an ELF file (`vmlinux`)"
    )]
    NotAKernel,
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
    #[error("it is not for 64-bit x86 ({0})")]
    Architecture(String),
    /// It has no entry point that Hmmvisor can use.
    #[error(
        "it is an ELF file without a PVH entry point; use one built with CONFIG_PVH, or the bzImage (`vmlinuz`)"
    )]
    NoPvh,
    /// It contradicts itself.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It needs memory that is not there.
    #[error(
        "it needs guest memory from {start:#x} to {end:#x}, but there is memory up to {memory:#x} only; use more with --memory"
    )]
    TooLarge {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// The end of memory.
        memory: u64,
    },
}

/// A kernel file that has been checked.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    file: File,
    format: Format,
}

#[derive(Debug)]
enum Format {
    BzImage(Box<setup_header>),
    /// The memory that the file asks for.
    Elf(Range<u64>),
}

/// How a loaded kernel is entered.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// Linux's own, in 64-bit mode: with the header for the zero page.
    Linux(Box<setup_header>),
    /// PVH, in 32-bit mode.
    Pvh,
}

/// A kernel in memory.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Its first instruction.
    pub entry: u64,
    /// How its first instruction is entered.
    pub protocol: Protocol,
}

impl Kernel {
    /// Opens the file and checks its headers.
    pub fn open(path: &Path) -> Result<Kernel, KernelError> {
        let (mut file, len) = crate::host::file::open(path, FILE_LIMIT)?;
        let format = format(&mut file, len)?;
        Ok(Kernel {
            path: path.to_owned(),
            file,
            format,
        })
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the length of the longest command line that the kernel takes, in bytes.
    pub fn cmdline_limit(&self) -> u64 {
        let limit = match &self.format {
            Format::BzImage(header) if header.cmdline_size != 0 => header.cmdline_size.into(),
            _ => CMDLINE_LIMIT,
        };
        limit.min(CMDLINE_ROOM - 1)
    }

    /// Returns the last byte that an initial ramdisk may have.
    pub fn initrd_limit(&self) -> u64 {
        match &self.format {
            Format::BzImage(header) if header.initrd_addr_max != 0 => header.initrd_addr_max.into(),
            _ => u32::MAX.into(),
        }
    }

    /// Finds the memory that it needs until it has taken over, if that is in `low`.
    pub fn place(&self, low: &Range<u64>) -> Result<Range<u64>, KernelError> {
        let place = match &self.format {
            Format::BzImage(header) => {
                let start = header.pref_address;
                // As much as it needs to unpack itself in place; its own size at least.
                let size = u64::from(header.init_size).max(u64::from(header.syssize) * 16);
                start..start.saturating_add(size)
            }
            Format::Elf(range) => range.clone(),
        };
        if place.start < HIGH_START {
            return Err(KernelError::Damaged(format!(
                "it wants to be at {:#x}, below 1 MiB",
                place.start
            )));
        }
        if place.end > low.end {
            return Err(KernelError::TooLarge {
                start: place.start,
                end: place.end,
                memory: low.end,
            });
        }
        Ok(place)
    }

    /// Returns the part of its place that [`Self::load`] writes.
    pub fn loaded(&self, place: &Range<u64>) -> Range<u64> {
        match &self.format {
            Format::BzImage(header) => place.start..place.start + u64::from(header.syssize) * 16,
            Format::Elf(_) => place.clone(),
        }
    }

    /// Puts it into memory, where [`Self::place`] says.
    pub fn load(&mut self, memory: &GuestMemoryMmap) -> Result<Loaded, KernelError> {
        let mut source = Source::new(&mut self.file);
        let high = Some(GuestAddress(HIGH_START));
        match &self.format {
            Format::BzImage(header) => {
                let at = GuestAddress(header.pref_address);
                let loaded = BzImage::load(memory, Some(at), &mut source, high);
                let loaded = loaded.map_err(|error| source.error(&error))?;
                let header = loaded.setup_header.ok_or(KernelError::NotAKernel)?;
                Ok(Loaded {
                    entry: at.0 + ENTRY_64,
                    protocol: Protocol::Linux(Box::new(header)),
                })
            }
            Format::Elf(place) => {
                let loaded = Elf::load(memory, None, &mut source, None);
                let loaded = loaded.map_err(|error| source.error(&error))?;
                match loaded.pvh_boot_cap {
                    PvhBootCapability::PvhEntryPresent(entry) if place.contains(&entry.0) => {
                        Ok(Loaded {
                            entry: entry.0,
                            protocol: Protocol::Pvh,
                        })
                    }
                    PvhBootCapability::PvhEntryPresent(entry) => {
                        Err(KernelError::Damaged(format!(
                            "its PVH entry point {:#x} is in none of its segments",
                            entry.0
                        )))
                    }
                    _ => Err(KernelError::NoPvh),
                }
            }
        }
    }
}

/// The file as the loader reads it. Repeats reads that are interrupted or incomplete, and keeps the system's error, which the loader
/// drops.
struct Source<'f> {
    file: &'f mut File,
    failed: Option<io::Error>,
}

impl Source<'_> {
    fn new(file: &mut File) -> Source<'_> {
        Source { file, failed: None }
    }

    /// Keeps the error, and gives one like it.
    fn keep(&mut self, error: io::Error) -> io::Error {
        let kind = error.kind();
        if kind != io::ErrorKind::Interrupted {
            self.failed = Some(error);
        }
        kind.into()
    }

    /// Returns the cause of an error of the loader.
    fn error(&mut self, error: &linux_loader::loader::Error) -> KernelError {
        match self.failed.take() {
            // Only what the file itself says can lead to a place where no file has a byte.
            Some(cause) if cause.raw_os_error() == Some(libc::EINVAL) => {
                KernelError::Damaged(format!("{error}: {cause}"))
            }
            Some(error) => KernelError::File(error.into()),
            None => KernelError::Damaged(error.to_string()),
        }
    }
}

impl ReadVolatile for Source<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_volatile(&mut buffer.offset(done)?) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(VolatileMemoryError::IOError(error))
                    if error.kind() == io::ErrorKind::Interrupted => {}
                Err(VolatileMemoryError::IOError(error)) => {
                    return Err(VolatileMemoryError::IOError(self.keep(error)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer);
        read.map_err(|error| self.keep(error))
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let sought = self.file.seek(to);
        sought.map_err(|error| self.keep(error))
    }
}

fn format(file: &mut File, len: u64) -> Result<Format, KernelError> {
    let mut magic = [0; 4];
    match len {
        0 => return Err(KernelError::Empty),
        1..4 => return Err(KernelError::NotAKernel),
        _ => read(file, len, 0, "its magic number", &mut magic)?,
    }
    if magic == *ELFMAG {
        return elf(file, len);
    }
    let end = SETUP_HEADER + size_of::<setup_header>() as u64;
    if len < end {
        return Err(KernelError::NotAKernel);
    }
    let mut header = setup_header::default();
    read(file, len, SETUP_HEADER, "its header", header.as_mut_slice())?;
    bzimage(header, len)
}

fn bzimage(header: setup_header, len: u64) -> Result<Format, KernelError> {
    // The structure is packed: fields are copied out.
    let (magic, version, xloadflags) = (header.header, header.version, header.xloadflags);
    if magic != SETUP_MAGIC {
        return Err(KernelError::NotAKernel);
    }
    if version < VERSION_64_BIT {
        return Err(KernelError::Architecture(format!(
            "boot protocol {}.{:02}; 2.12 or later has a 64-bit entry",
            version >> 8,
            version & 0xff
        )));
    }
    if xloadflags & XLF_KERNEL_64 == 0 {
        return Err(KernelError::Architecture(
            "a bzImage without a 64-bit entry".into(),
        ));
    }
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let end = (sectors + 1) * SECTOR + u64::from(header.syssize) * 16;
    // The last paragraph need not be whole.
    if end > len + 15 {
        let what = "the kernel's code";
        return Err(KernelError::Truncated { what, end, len });
    }
    Ok(Format::BzImage(Box::new(header)))
}

fn elf(file: &mut File, len: u64) -> Result<Format, KernelError> {
    let mut header = Elf64_Ehdr::default();
    read(file, len, 0, "the ELF header", header.as_mut_slice())?;
    let (class, data) = (header.e_ident[EI_CLASS], header.e_ident[EI_DATA]);
    let machine = header.e_machine;
    if (class, data, machine) != (ELFCLASS64, ELFDATA2LSB, EM_X86_64) {
        return Err(KernelError::Architecture(format!(
            "ELF class {class}, data encoding {data}, machine {machine}"
        )));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Err(KernelError::Damaged(
            "its program headers have the wrong size".into(),
        ));
    }
    let mut places = Vec::new();
    let mut notes = 0u64;
    for index in 0..u64::from(header.e_phnum) {
        let mut program = Elf64_Phdr::default();
        let size = size_of::<Elf64_Phdr>() as u64;
        let at = header.e_phoff.saturating_add(index * size);
        read(file, len, at, "a program header", program.as_mut_slice())?;
        if program.p_type != PT_LOAD && program.p_type != PT_NOTE {
            continue;
        }
        // The offset of a segment without contents means nothing.
        if program.p_filesz > 0 {
            within(len, program.p_offset, program.p_filesz, "a segment")?;
        }
        if program.p_type == PT_NOTE {
            notes = notes.saturating_add(program.p_filesz);
            continue;
        }
        if program.p_filesz > program.p_memsz {
            return Err(KernelError::Damaged(
                "a segment has more contents than memory".into(),
            ));
        }
        if program.p_memsz > 0 {
            places.push(program.p_paddr..program.p_paddr.saturating_add(program.p_memsz));
        }
    }
    if notes > NOTES_LIMIT {
        return Err(KernelError::Damaged(format!(
            "its notes have {notes} bytes; {NOTES_LIMIT} are the most"
        )));
    }
    let start = places.iter().map(|place| place.start).min();
    let end = places.iter().map(|place| place.end).max();
    let (Some(start), Some(end)) = (start, end) else {
        return Err(KernelError::Damaged("it has nothing to load".into()));
    };
    // Segments that overlap are refused. So no more is copied than there is memory, however many a file lists.
    if let Some((first, second)) = overlap(places) {
        return Err(KernelError::Damaged(format!(
            "its segments at {:#x}..{:#x} and {:#x}..{:#x} overlap",
            first.start, first.end, second.start, second.end
        )));
    }
    Ok(Format::Elf(start..end))
}

/// An error if the file does not have these bytes.
fn within(len: u64, offset: u64, size: u64, what: &'static str) -> Result<(), KernelError> {
    let end = offset.saturating_add(size);
    match end <= len {
        true => Ok(()),
        false => Err(KernelError::Truncated { what, end, len }),
    }
}

fn read(
    file: &mut File,
    len: u64,
    offset: u64,
    what: &'static str,
    bytes: &mut [u8],
) -> Result<(), KernelError> {
    within(len, offset, bytes.len() as u64, what)?;
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(bytes))
        .map_err(|error| KernelError::File(error.into()))
}
