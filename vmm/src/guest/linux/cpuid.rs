//! The processor that an operating system sees: the host's, as far as KVM supports it, less what a template hides.

use std::fmt::{self, Display};
use std::str::FromStr;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::guest::program::registers;

/// A named choice of processor features.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Template {
    /// All features that work in this machine.
    #[default]
    Host,
    /// What any 64-bit server processor has had since about 2010 (x86-64-v2), and what is there for security: guests see the same
    /// on different hosts of one vendor.
    Baseline,
}

impl Template {
    const ALL: [Template; 2] = [Template::Host, Template::Baseline];
}

impl Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Template::Host => "host",
            Template::Baseline => "baseline",
        })
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Template, String> {
        let is_it = |template: &Template| template.to_string() == text;
        Template::ALL.into_iter().find(is_it).ok_or_else(|| {
            let names = Template::ALL.map(|template| template.to_string());
            format!(
                "unknown processor '{text}'; there are: {}",
                names.join(", ")
            )
        })
    }
}

/// A register that CPUID fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// Bits of one register of one leaf that are hidden.
struct Hidden {
    leaf: u32,
    /// The subleaf, for leaves that have some; `None` means all.
    subleaf: Option<u32>,
    register: Register,
    bits: u32,
    /// The reason, for readers of the table and of failed tests.
    #[cfg_attr(not(test), allow(dead_code))]
    why: &'static str,
}

const fn hide(leaf: u32, register: Register, bits: u32, why: &'static str) -> Hidden {
    Hidden {
        leaf,
        subleaf: None,
        register,
        bits,
        why,
    }
}

const fn hide_in(
    leaf: u32,
    subleaf: u32,
    register: Register,
    bits: u32,
    why: &'static str,
) -> Hidden {
    Hidden {
        subleaf: Some(subleaf),
        ..hide(leaf, register, bits, why)
    }
}

const fn bits<const N: usize>(numbers: [u32; N]) -> u32 {
    let mut all = 0;
    let mut at = 0;
    while at < N {
        all |= 1 << numbers[at];
        at += 1;
    }
    all
}

const ALL: u32 = u32::MAX;
/// KVM's own features.
const KVM_FEATURES: u32 = 0x4000_0001;

/// Hidden in every template: what does not work in this machine.
#[rustfmt::skip]
const HOST: &[Hidden] = &[
    hide(1, Ecx, bits([3]), "MONITOR and MWAIT: vCPUs halt instead"),
    hide(1, Ecx, bits([5, 6]), "VMX, SMX: no virtual machines in the guest"),
    hide(1, Ecx, bits([2, 4, 7, 8, 10, 14, 15, 18]), "debug store, power and temperature management, DCA: not there"),
    hide(1, Edx, bits([21, 22, 29]), "debug store, thermal control: not there"),
    hide(6, Eax, ALL & !bits([2]), "power management; only that the APIC timer always runs is true"),
    hide(6, Ecx, ALL, "power management"),
    hide(0xa, Eax, ALL, "performance counters: they would slow down every entry into the guest"),
    hide(0xa, Ebx, ALL, "performance counters"),
    hide(0xa, Ecx, ALL, "performance counters"),
    hide(0xa, Edx, ALL, "performance counters"),
    hide(0x8000_0001, Ecx, bits([2]), "SVM: no virtual machines in the guest"),
    hide(0x8000_0001, Ecx, bits([23, 24, 28]), "performance counters"),
    hide(0x8000_000a, Edx, ALL, "SVM"),
    hide(0x8000_0022, Eax, ALL, "performance counters"),
    hide(KVM_FEATURES, Eax, bits([4, 10, 14]), "asynchronous page faults: a fault must be its own vCPU's (docs/architecture.md, Threads)"),
    hide(KVM_FEATURES, Eax, bits([7, 13]), "waiting for locks by hypercall: vCPUs halt without leaving the guest"),
    hide(KVM_FEATURES, Eax, bits([16, 17]), "encrypted memory"),
];

/// Hidden in `baseline` on top of that: what came after x86-64-v2 and is not for security.
#[rustfmt::skip]
const BASELINE: &[Hidden] = &[
    hide(1, Ecx, bits([12, 22, 28, 29]), "FMA, MOVBE, AVX, F16C"),
    hide(1, Ecx, bits([26, 27]), "XSAVE: nothing is left that needs it"),
    hide_in(7, 0, Ebx, ALL & !bits([0, 7, 9, 18, 20]), "keeps FSGSBASE, SMEP, fast strings, RDSEED, SMAP"),
    hide_in(7, 0, Ecx, ALL & !bits([2]), "keeps UMIP"),
    hide_in(7, 0, Edx, ALL & !bits([10, 26, 27, 28, 29, 31]), "keeps what is there against speculation"),
    hide_in(7, 1, Eax, ALL, "vector instructions"),
    hide_in(7, 1, Ebx, ALL, "later features"),
    hide_in(7, 1, Ecx, ALL, "later features"),
    hide_in(7, 1, Edx, ALL, "later features"),
    hide(0xd, Eax, ALL, "XSAVE"),
    hide(0xd, Ebx, ALL, "XSAVE"),
    hide(0xd, Ecx, ALL, "XSAVE"),
    hide(0xd, Edx, ALL, "XSAVE"),
    hide(0x14, Eax, ALL, "processor trace"),
    hide(0x19, Eax, ALL, "key locker"),
    hide(0x1d, Eax, ALL, "matrix tiles"),
    hide(0x1e, Ebx, ALL, "matrix tiles"),
    hide(0x24, Ebx, ALL, "AVX10"),
    hide(0x8000_0001, Ecx, bits([5, 6, 7, 8, 11, 16, 21, 29]), "LZCNT, SSE4A, XOP, FMA4, TBM, MONITORX and other vendor's own"),
    hide(0x8000_0001, Edx, bits([30, 31]), "3DNow!"),
];

/// The processor that a template is applied to.
pub struct Processor {
    /// Number of this vCPU, which is its APIC's, too.
    pub vcpu: u32,
    /// The number of vCPUs.
    pub vcpus: u32,
    /// The time-stamp counter's frequency, 0 if unknown.
    pub tsc_khz: u32,
    /// KVM's local APIC has a timer that follows the time-stamp counter.
    pub deadline_timer: bool,
}

impl Template {
    fn hidden(self) -> impl Iterator<Item = &'static Hidden> {
        let more = match self {
            Template::Host => &[],
            Template::Baseline => BASELINE,
        };
        HOST.iter().chain(more)
    }

    /// Makes what KVM supports the description of one processor of the machine.
    pub fn apply(
        self,
        cpuid: &mut CpuId,
        processor: &Processor,
    ) -> Result<(), vmm_sys_util::fam::Error> {
        for entry in cpuid.as_mut_slice() {
            for hidden in self.hidden() {
                let here = hidden.subleaf.is_none_or(|subleaf| subleaf == entry.index);
                if entry.function == hidden.leaf && here {
                    *register(entry, hidden.register) &= !hidden.bits;
                }
            }
        }
        registers::identify(cpuid, processor.vcpu, processor.vcpus);
        topology(cpuid, processor)?;
        timing(cpuid, processor)
    }
}

fn register(entry: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Eax => &mut entry.eax,
        Ebx => &mut entry.ebx,
        Ecx => &mut entry.ecx,
        Edx => &mut entry.edx,
    }
}

/// The leaf in which processors of all vendors describe their topology, if they have it.
const EXTENDED_TOPOLOGY: u32 = 0xb;
/// The successor of leaf [`EXTENDED_TOPOLOGY`], with the same contents here.
const EXTENDED_TOPOLOGY_2: u32 = 0x1f;

/// One thread in each core, all cores in one package, said in every way that processors have.
fn topology(cpuid: &mut CpuId, processor: &Processor) -> Result<(), vmm_sys_util::fam::Error> {
    let Processor { vcpu, vcpus, .. } = *processor;
    // EBX of leaf 0 is the first third of the vendor's name.
    let first = cpuid.as_slice().iter().find(|entry| entry.function == 0);
    let vendor = first.map_or(0, |entry| entry.ebx).to_le_bytes();
    let is_amd = [*b"Auth", *b"Hygo"].contains(&vendor);
    let others = vcpus - 1;
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 if vcpus > 1 => entry.edx |= 1 << 28,
            // Caches: who shares them; the third level is the package's.
            4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { others } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14;
                if entry.function == 4 {
                    entry.eax |= others << 26;
                }
            }
            0x8000_0008 if is_amd => {
                let bits = vcpus.next_power_of_two().trailing_zeros();
                entry.ecx = entry.ecx & !0xf0ff | bits << 12 | others;
            }
            0x8000_001e => {
                entry.eax = vcpu;
                entry.ebx = entry.ebx & !0xffff | vcpu & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    // KVM has one subleaf only, which says that there is no topology.
    let leaves = cpuid.as_slice();
    if leaves.iter().any(|leaf| leaf.function == EXTENDED_TOPOLOGY) {
        cpuid.retain(|leaf| ![EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_2].contains(&leaf.function));
        for index in 0..3 {
            cpuid.push(kvm_cpuid_entry2 {
                function: EXTENDED_TOPOLOGY,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                ..Default::default()
            })?;
        }
        registers::identify_topology(cpuid, vcpu, vcpus);
    }
    Ok(())
}

const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_TIMING: u32 = 0x4000_0010;
/// The local APIC's timer counts at this rate in KVM.
const APIC_KHZ: u32 = 1_000_000;

/// How fast time goes.
fn timing(cpuid: &mut CpuId, processor: &Processor) -> Result<(), vmm_sys_util::fam::Error> {
    let mut is_kvm = false;
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            // KVM has it, but does not say so in all versions.
            1 if processor.deadline_timer => entry.ecx |= 1 << 24,
            KVM_SIGNATURE if processor.tsc_khz != 0 => {
                entry.eax = entry.eax.max(KVM_TIMING);
                is_kvm = true;
            }
            _ => {}
        }
    }
    if is_kvm {
        cpuid.retain(|entry| entry.function != KVM_TIMING);
        cpuid.push(kvm_cpuid_entry2 {
            function: KVM_TIMING,
            eax: processor.tsc_khz,
            ebx: APIC_KHZ,
            ..Default::default()
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported(leaves: &[(u32, u32)]) -> CpuId {
        let entry = |(function, index): &(u32, u32)| kvm_cpuid_entry2 {
            function: *function,
            index: *index,
            eax: ALL,
            ebx: ALL,
            ecx: ALL,
            edx: ALL,
            ..Default::default()
        };
        CpuId::from_entries(&leaves.iter().map(entry).collect::<Vec<_>>()).unwrap()
    }

    fn applied(template: Template, leaves: &[(u32, u32)]) -> CpuId {
        let mut cpuid = supported(leaves);
        let processor = Processor {
            vcpu: 2,
            vcpus: 4,
            tsc_khz: 2_100_000,
            deadline_timer: true,
        };
        template.apply(&mut cpuid, &processor).unwrap();
        cpuid
    }

    fn leaf(cpuid: &CpuId, function: u32) -> kvm_cpuid_entry2 {
        let mut leaves = cpuid.as_slice().iter();
        *leaves.find(|leaf| leaf.function == function).unwrap()
    }

    #[test]
    fn what_is_in_the_tables_is_hidden() {
        for template in Template::ALL {
            for hidden in template.hidden() {
                let cpuid = applied(template, &[(hidden.leaf, hidden.subleaf.unwrap_or(0))]);
                let mut entry = leaf(&cpuid, hidden.leaf);
                let left = *register(&mut entry, hidden.register) & hidden.bits;
                // Leaf 1 gets the deadline timer back, which no template hides.
                assert_eq!(left, 0, "{template}: {}", hidden.why);
            }
        }
        assert_eq!(leaf(&applied(Template::Host, &[(7, 0)]), 7).ebx, ALL);
    }

    #[test]
    fn baseline_keeps_what_kernels_and_security_need() {
        let cpuid = applied(Template::Baseline, &[(1, 0), (7, 0), (0x8000_0001, 0)]);
        // SSE3, SSSE3, CX16, SSE4.1, SSE4.2, x2APIC, POPCNT, deadline timer, hypervisor.
        let kept = bits([0, 9, 13, 19, 20, 21, 23, 24, 31]);
        assert_eq!(leaf(&cpuid, 1).ecx & kept, kept);
        let (smep, smap, speculation) = (1 << 7, 1 << 20, 1 << 26);
        assert_eq!(leaf(&cpuid, 7).ebx & (smep | smap), smep | smap);
        assert_eq!(leaf(&cpuid, 7).edx & speculation, speculation);
        // No-execute and long mode.
        let edx = leaf(&cpuid, 0x8000_0001).edx;
        assert_eq!(edx & bits([20, 29]), bits([20, 29]));
    }

    #[test]
    fn every_vcpu_has_its_number_and_all_are_cores_of_a_package() {
        let cpuid = applied(
            Template::Host,
            &[(1, 0), (4, 3), (0xb, 0), (0x1f, 0), (0x8000_001e, 0)],
        );
        let levels = cpuid.as_slice().iter().filter(|leaf| leaf.function == 0xb);
        let levels: Vec<_> = levels
            .map(|leaf| (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx))
            .collect();
        // A thread of a core, a core of a package, and no more.
        assert_eq!(levels, [(0, 1, 0x100, 2), (2, 4, 0x201, 2), (0, 0, 2, 2)]);
        assert!(cpuid.as_slice().iter().all(|leaf| leaf.function != 0x1f));
        assert_eq!(leaf(&cpuid, 1).ebx >> 16, 2 << 8 | 4);
        assert_eq!(leaf(&cpuid, 0x8000_001e).eax, 2);
        // A cache of level 7 (all ones) is shared by 4.
        assert_eq!(leaf(&cpuid, 4).eax >> 14 & 0xfff, 3);
        assert_eq!(leaf(&cpuid, 4).eax >> 26, 3);
    }

    #[test]
    fn the_counter_s_frequency_is_told_where_kvm_is_named() {
        let cpuid = applied(Template::Host, &[(KVM_SIGNATURE, 0), (KVM_TIMING, 0)]);
        let timing = leaf(&cpuid, KVM_TIMING);
        assert_eq!((timing.eax, timing.ebx), (2_100_000, 1_000_000));
        assert_eq!(cpuid.as_slice().len(), 2);
        let without = applied(Template::Host, &[(1, 0)]);
        assert_eq!(without.as_slice().len(), 1);
    }

    #[test]
    fn templates_have_names() {
        for template in Template::ALL {
            assert_eq!(template.to_string().parse(), Ok(template));
        }
        let error = "i386".parse::<Template>().unwrap_err();
        assert_eq!(error, "unknown processor 'i386'; there are: host, baseline");
    }
}
