//! The kinds of guests, on their way into a machine: looked at before it is made, then put into its memory.

pub mod linux;
pub mod program;

use std::sync::Arc;

use hmm_backend::Backend;

use crate::guest::linux::cpuid::Template;
use crate::guest::linux::layout::Layout;
use crate::guest::linux::{Linux, Loaded, Plan};
use crate::guest::program::boot;
use crate::guest::program::image::Image;
use crate::machine::kvm_machine::Machine;
use crate::machine::slots::SlotInfo;
use crate::vm::VmError;

/// What runs in a virtual machine.
pub enum Guest<'a> {
    /// A program in ring 3 that knows its machine (docs/guest-abi.md).
    Program {
        /// Its ELF file.
        image: &'a [u8],
        /// What it reads as its command line.
        cmdline: &'a str,
        /// What it reads as the run's seed.
        seed: u64,
    },
    /// An operating system. All of its memory is managed: as much as [`Layout::end`] says.
    Linux(&'a mut Linux, Layout),
}

/// A guest that fits into the machine made for it.
pub(crate) enum Prepared<'a> {
    Program {
        image: Image<'a>,
        cmdline: &'a str,
        seed: u64,
    },
    Linux {
        linux: &'a mut Linux,
        plan: Plan,
        layout: Layout,
        vcpus: u32,
    },
}

/// A guest in memory.
pub(crate) enum LoadedGuest<'a> {
    Program {
        entry: u64,
        cmdline: &'a str,
        seed: u64,
    },
    Linux {
        kernel: Loaded,
        cpu: Template,
    },
}

impl<'a> Prepared<'a> {
    /// Looks at the guest and makes the machine for it.
    pub(crate) fn new(
        guest: Guest<'a>,
        vcpus: u32,
        backend: Option<&Arc<Backend>>,
    ) -> Result<(Prepared<'a>, Machine), VmError> {
        match guest {
            Guest::Program {
                image,
                cmdline,
                seed,
            } => {
                let managed = backend.map_or(0, |backend| backend.host_memory().1);
                let image = Image::parse(image, managed)?;
                let machine = Machine::new(vcpus, backend.cloned())?;
                let prepared = Prepared::Program {
                    image,
                    cmdline,
                    seed,
                };
                Ok((prepared, machine))
            }
            Guest::Linux(linux, layout) => {
                let backend = backend.ok_or(VmError::NoMemory)?;
                let plan = linux.plan(&layout)?;
                let machine = Machine::for_linux(vcpus, backend.clone(), &layout)?;
                let prepared = Prepared::Linux {
                    linux,
                    plan,
                    layout,
                    vcpus,
                };
                Ok((prepared, machine))
            }
        }
    }

    /// Puts it into memory, whose faults are served by now.
    pub(crate) fn load(
        self,
        machine: &Machine,
        backend: Option<&Arc<Backend>>,
        slots: &[SlotInfo],
    ) -> Result<LoadedGuest<'a>, VmError> {
        match self {
            Prepared::Program {
                image,
                cmdline,
                seed,
            } => {
                boot::load(&image, machine.ram(), backend)?;
                Ok(LoadedGuest::Program {
                    entry: image.entry,
                    cmdline,
                    seed,
                })
            }
            Prepared::Linux {
                linux,
                plan,
                layout,
                vcpus,
            } => {
                let backend = backend.ok_or(VmError::NoMemory)?;
                let kernel = linux.load(&plan, &layout, vcpus, slots, machine.ram(), backend)?;
                Ok(LoadedGuest::Linux {
                    kernel,
                    cpu: linux.cpu,
                })
            }
        }
    }
}
