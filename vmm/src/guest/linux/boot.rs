//! Puts a kernel, its ramdisk and its boot parameters into memory.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use hmm_backend::Backend;
use hmm_backend::pages::{BLOCK_PAGES, PAGE_SIZE, Page, PageRange};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::initrd::{Initrd, InitrdError};
use super::kernel::{Kernel, KernelError, Loaded, Protocol};
use super::layout::{ACPI, CMDLINE, HIGH_START, Layout, RESET_VECTOR, START_INFO, ZERO_PAGE};
use super::{acpi, cpuid, entry, power};
use crate::host::file::FileError;
use crate::machine::slots::SlotInfo;

/// Number of a boot loader without a number of its own.
const LOADER_UNKNOWN: u8 = 0xff;
/// The start information has a memory map.
const START_INFO_VERSION: u32 = 1;

/// Why a kernel could not be put into memory.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel.
    #[error("booting kernel {path}: {error}")]
    Kernel {
        /// Its file.
        path: String,
        /// The cause.
        #[source]
        error: KernelError,
    },
    /// The initial ramdisk.
    #[error("loading initial ramdisk {path}: {error}")]
    Initrd {
        /// Its file.
        path: String,
        /// The cause.
        #[source]
        error: InitrdError,
    },
    /// The command line.
    #[error(
        "passing the command line: it has {len} bytes, but this kernel takes {limit} at most; shorten it"
    )]
    CmdlineTooLong {
        /// Its length.
        len: u64,
        /// The kernel's limit.
        limit: u64,
    },
    /// The command line.
    #[error("passing the command line: it must not contain a zero byte")]
    CmdlineZero,
    /// The backend.
    #[error("providing guest memory to load into: {0}")]
    Backend(#[from] hmm_backend::Error),
    /// Guest memory could not be written: a bug, as everything has been checked before.
    #[error("writing into guest memory: {0}; this is a bug in Hmmvisor")]
    Memory(#[from] GuestMemoryError),
    /// Boot parameters could not be written: a bug as well.
    #[error("writing boot parameters: {0}; this is a bug in Hmmvisor")]
    Parameters(String),
}

/// Where kernel and ramdisk go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The memory that loading the kernel writes. The place that was found is larger, since a bzImage unpacks itself.
    kernel: Range<u64>,
    initrd: Option<Range<u64>>,
}

impl Plan {
    /// Returns the pages that loading writes. They are to be there from the start: filling them page by page, as loading touches
    /// them, takes much longer. They are whole blocks, since those can be huge pages of the host. The kernel itself chooses where
    /// it unpacks itself to (KASLR).
    pub fn written(&self, layout: &Layout) -> Vec<PageRange> {
        let low = pages(&layout.low());
        let blocks = |range: &Range<u64>| {
            let range = pages(range);
            let end = Page(range.end.0.next_multiple_of(BLOCK_PAGES as u32));
            PageRange::new(range.start.block().first_page(), end.min(low.end))
        };
        let files = [Some(&self.kernel), self.initrd.as_ref()];
        let files = files.into_iter().flatten().map(blocks);
        files.chain([pages(&(0..HIGH_START))]).collect()
    }
}

/// A kernel with its ramdisk, its command line and its processor.
#[derive(Debug)]
pub struct Linux {
    /// The kernel.
    pub kernel: Kernel,
    /// Its initial ramdisk.
    pub initrd: Option<Initrd>,
    /// Its command line.
    pub cmdline: String,
    /// The processor that it sees.
    pub cpu: cpuid::Template,
}

impl Linux {
    /// Opens the files and checks what they are.
    pub fn open(
        kernel: &Path,
        initrd: Option<&Path>,
        cmdline: &str,
        cpu: cpuid::Template,
    ) -> Result<Linux, LoadError> {
        let initrd = initrd.map(|path| {
            Initrd::open(path).map_err(|error| LoadError::Initrd {
                path: path.display().to_string(),
                error,
            })
        });
        Ok(Linux {
            kernel: Kernel::open(kernel).map_err(|error| LoadError::Kernel {
                path: kernel.display().to_string(),
                error,
            })?,
            initrd: initrd.transpose()?,
            cmdline: cmdline.to_owned(),
            cpu,
        })
    }

    /// Finds places for everything, or says why there are none. Needs no machine.
    pub fn plan(&self, layout: &Layout) -> Result<Plan, LoadError> {
        let (len, limit) = (self.cmdline.len() as u64, self.kernel.cmdline_limit());
        if len > limit {
            return Err(LoadError::CmdlineTooLong { len, limit });
        }
        if self.cmdline.contains('\0') {
            return Err(LoadError::CmdlineZero);
        }
        let low = layout.low();
        let kernel = self
            .kernel
            .place(&low)
            .map_err(|error| self.refuse(error))?;
        let place = |initrd: &Initrd| {
            initrd
                .place(&low, &kernel, self.kernel.initrd_limit())
                .map_err(|error| LoadError::Initrd {
                    path: initrd.path().display().to_string(),
                    error,
                })
        };
        let initrd = self.initrd.as_ref().map(place).transpose()?;
        Ok(Plan {
            kernel: self.kernel.loaded(&kernel),
            initrd,
        })
    }

    fn refuse(&self, error: KernelError) -> LoadError {
        LoadError::Kernel {
            path: self.kernel.path().display().to_string(),
            error,
        }
    }

    /// Puts everything where it was planned, for a machine with these slots. Faults on managed memory must be served.
    pub fn load(
        &mut self,
        plan: &Plan,
        layout: &Layout,
        vcpus: u32,
        slots: &[SlotInfo],
        memory: &GuestMemoryMmap,
        backend: &Arc<Backend>,
    ) -> Result<Loaded, LoadError> {
        let kernel = {
            let _traced = traced(backend, &plan.kernel)?;
            self.kernel.load(memory)
        };
        let kernel = kernel.map_err(|error| self.refuse(error))?;
        if let (Some(initrd), Some(place)) = (&mut self.initrd, &plan.initrd) {
            let _traced = traced(backend, place)?;
            let size = (place.end - place.start) as usize;
            let path = initrd.path().display().to_string();
            let file = initrd.contents().map_err(|error| LoadError::Initrd {
                path: path.clone(),
                error: FileError::from(error).into(),
            })?;
            // Checked before: what fails now is reading the file.
            memory
                .read_exact_volatile_from(GuestAddress(place.start), file, size)
                .map_err(|error| LoadError::Initrd {
                    path,
                    error: FileError::from(std::io::Error::other(error)).into(),
                })?;
        }

        let _traced = traced(backend, &(0..HIGH_START))?;
        memory.write_slice(self.cmdline.as_bytes(), GuestAddress(CMDLINE))?;
        memory.write_slice(
            &acpi::tables(ACPI.start, vcpus, slots),
            GuestAddress(ACPI.start),
        )?;
        // Linux resets a machine with hardware-reduced ACPI by EFI; if there is none, not by ACPI's register, but by the BIOS.
        memory.write_slice(&power::reset_code(), GuestAddress(RESET_VECTOR))?;
        entry::install(memory)?;
        match &kernel.protocol {
            Protocol::Linux(header) => self.zero_page(**header, plan, layout, memory)?,
            Protocol::Pvh => start_info(plan, layout, memory)?,
        }
        Ok(kernel)
    }

    fn zero_page(
        &self,
        header: setup_header,
        plan: &Plan,
        layout: &Layout,
        memory: &GuestMemoryMmap,
    ) -> Result<(), LoadError> {
        let mut parameters = boot_params {
            hdr: header,
            acpi_rsdp_addr: ACPI.start,
            ..Default::default()
        };
        parameters.hdr.type_of_loader = LOADER_UNKNOWN;
        parameters.hdr.cmd_line_ptr = CMDLINE as u32;
        if let Some(initrd) = &plan.initrd {
            // Below 4 GiB.
            parameters.hdr.ramdisk_image = initrd.start as u32;
            parameters.hdr.ramdisk_size = (initrd.end - initrd.start) as u32;
        }
        let map = layout.map();
        parameters.e820_entries = map.len() as u8;
        for (index, (range, kind)) in map.into_iter().enumerate() {
            parameters.e820_table[index] = boot_e820_entry {
                addr: range.start,
                size: range.end - range.start,
                r#type: kind as u32,
            };
        }
        let parameters = BootParams::new(&parameters, GuestAddress(ZERO_PAGE));
        LinuxBootConfigurator::write_bootparams(&parameters, memory)
            .map_err(|error| LoadError::Parameters(error.to_string()))
    }
}

fn start_info(plan: &Plan, layout: &Layout, memory: &GuestMemoryMmap) -> Result<(), LoadError> {
    let entry = |(range, kind): (Range<u64>, super::layout::Kind)| hvm_memmap_table_entry {
        addr: range.start,
        size: range.end - range.start,
        type_: kind as u32,
        reserved: 0,
    };
    let map: Vec<_> = layout.map().into_iter().map(entry).collect();
    let module = |initrd: &Range<u64>| hvm_modlist_entry {
        paddr: initrd.start,
        size: initrd.end - initrd.start,
        ..Default::default()
    };
    let modules: Vec<_> = plan.initrd.iter().map(module).collect();
    let map_at = START_INFO + size_of::<hvm_start_info>() as u64;
    let modules_at = map_at + size_of_val(map.as_slice()) as u64;
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: START_INFO_VERSION,
        nr_modules: modules.len() as u32,
        modlist_paddr: modules_at,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: ACPI.start,
        memmap_paddr: map_at,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut parameters = BootParams::new(&info, GuestAddress(START_INFO));
    parameters.set_sections(&map, GuestAddress(map_at));
    if !modules.is_empty() {
        parameters.set_modules(&modules, GuestAddress(modules_at));
    }
    PvhBootConfigurator::write_bootparams(&parameters, memory)
        .map_err(|error| LoadError::Parameters(error.to_string()))
}

/// Pins these pages, which are there already, so that a trace of the run tells of them.
fn traced(
    backend: &Arc<Backend>,
    range: &Range<u64>,
) -> Result<hmm_backend::Pinned, hmm_backend::Error> {
    backend.pin(pages(range))
}

/// Returns the pages of a range of memory.
fn pages(range: &Range<u64>) -> PageRange {
    let page = |number: u64| Page(number as u32);
    PageRange::new(
        page(range.start / PAGE_SIZE),
        page(range.end.div_ceil(PAGE_SIZE)),
    )
}
