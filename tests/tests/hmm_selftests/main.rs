//! Every test of the kernel's own HMM selftest, one level down: vCPUs of a running guest are the CPUs, scripted devices
//! with a mirror are the device that `test_hmm` makes up. Numbers and names are the selftest's;
//! `docs/conformance.md` says what stands for what.

mod access;
mod document;
mod exclusive;
mod folios;
mod gaps;
mod migration;
mod sharing;
mod trouble;

use hmmvisor_testkit::{Engine, GuestError, TestVm, each_engine, pages, snapshot};

/// Pages of an ordinary test.
const N: u32 = 64;
/// Pages of a folio of the largest size.
const LARGE: u32 = 512;
/// The first word of a filled range.
const START: u64 = 7_000_000;
/// Words of a page that devices look at.
const WORDS: [u32; 4] = [0, 1, 255, 511];

/// The selftest's two variants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Private,
    Coherent,
}

impl Kind {
    /// A machine with one such device.
    fn machine(self, engine: Engine, device_pages: u32) -> TestVm {
        self.machines(engine, &[device_pages], LARGE)
    }

    /// A machine with so many pages and such devices.
    fn machines(self, engine: Engine, devices: &[u32], pages: u32) -> TestVm {
        let builder = TestVm::builder().engine(engine).pages(pages);
        let with = devices.iter().fold(builder, |builder, pages| match self {
            Kind::Private => builder.scripted(*pages),
            Kind::Coherent => builder.coherent(*pages),
        });
        with.start()
    }

    /// Its byte in a snapshot, seen by the device itself.
    fn local(self) -> u8 {
        match self {
            Kind::Private => snapshot::DEVICE_LOCAL,
            Kind::Coherent => snapshot::COHERENT_LOCAL,
        }
    }

    /// Seen by another device.
    fn remote(self) -> u8 {
        match self {
            Kind::Private => snapshot::DEVICE_REMOTE,
            Kind::Coherent => snapshot::COHERENT_REMOTE,
        }
    }
}

/// Runs a test with both engines and both kinds of device memory.
fn each_kind(test: impl Fn(Engine, Kind) -> Result<(), GuestError>) -> Result<(), GuestError> {
    each_engine(|engine| {
        test(engine, Kind::Private)?;
        test(engine, Kind::Coherent)
    })
}

/// The value that [`hmmvisor_testkit::Vcpu::fill`] from page `first` writes.
fn filled(first: u32, page: u32, word: u32) -> u64 {
    START + u64::from(page - first) * 512 + u64::from(word)
}

/// Asks for a migration once; returns how many pages moved.
fn migrate(vm: &TestVm, device: usize, range: std::ops::Range<u32>) -> u32 {
    let id = vm.device(device).id();
    let moved = vm.backend().migrate_to_device(id, pages(range));
    moved.expect("the device is attached") as u32
}

/// The guest frees pages; returns how many had contents.
fn free(vm: &TestVm, range: std::ops::Range<u32>) -> Result<u32, GuestError> {
    vm.vcpu(0).free(range).wait().map(|freed| freed as u32)
}

/// The device finds in these pages what a fill from page `first` has put there.
fn device_verifies(vm: &TestVm, device: usize, first: u32, range: std::ops::Range<u32>) {
    for page in range {
        for word in WORDS {
            let found = vm.device(device).read((page, word));
            let expected = filled(first, page, word);
            assert_eq!(found, Ok(expected), "page {page:#x}, word {word}");
        }
    }
}

/// The device finds zeros in these pages.
fn device_finds_zeros(vm: &TestVm, device: usize, range: std::ops::Range<u32>) {
    for page in range {
        let found = WORDS.map(|word| vm.device(device).read((page, word)));
        assert_eq!(found, [Ok(0), Ok(0), Ok(0), Ok(0)], "page {page:#x}");
    }
}

/// Waits until the driver of device 0 has no folios: a CPU wakes from its fault before `page_free` is called.
fn all_freed(vm: &TestVm) {
    let driver = vm.device(0).script();
    vm.wait_until("page_free for every folio", || driver.live() == 0);
}

/// A vCPU copies pages, as a guest's kernel does when it breaks copy-on-write.
fn guest_copies(vm: &TestVm, from: u32, to: u32, count: u32) -> Result<(), GuestError> {
    for page in 0..count {
        for word in WORDS {
            let value = vm.vcpu(0).read((from + page, word)).wait()?;
            vm.vcpu(0).write((to + page, word), value).wait()?;
        }
    }
    Ok(())
}

/// Pages of the guest that are in this state now.
fn seen(vm: &TestVm, device: usize, page: u32) -> u8 {
    vm.settle(page);
    vm.snapshot(device, page)[0]
}
