//! A vCPU's view of the run: its index, and the values that vCPUs share.

use crate::cmdline::Params;
use crate::console;
use crate::control;
use crate::exit::fail;
use crate::memory::PAGE_WORDS;
use crate::random::Random;
use crate::sync::Barrier;
use core::ops::Range;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use hmmvisor_abi::boot::{BOOT_MAGIC, BOOT_VERSION};
use hmmvisor_abi::control::EXIT_USAGE;
use hmmvisor_abi::{BootInfo, map};

static BARRIER: Barrier = Barrier::new();

/// One of the vCPUs that run a workload together.
///
/// Functions that are called *collective* must be called by all of them.
pub struct Cpu {
    pub index: u64,
    pub boot: &'static BootInfo,
    pub params: Params<'static>,
}

impl Cpu {
    /// Sets a vCPU up; collective.
    pub fn enter(boot: &'static BootInfo, index: u64) -> Self {
        if (boot.magic, boot.version) != (BOOT_MAGIC, BOOT_VERSION) {
            fail!(
                EXIT_USAGE,
                "this guest needs other boot information than {:#x}, version {}",
                boot.magic,
                boot.version
            );
        }
        if index == 0 {
            console::init();
        }
        BARRIER.wait(u64::from(boot.vcpus));
        // SAFETY: the ABI says that so many bytes are there, and no vCPU writes them.
        let cmdline = unsafe {
            core::slice::from_raw_parts(boot.cmdline as *const u8, boot.cmdline_len as usize)
        };
        let Ok(cmdline) = core::str::from_utf8(cmdline) else {
            fail!(EXIT_USAGE, "the command line is not UTF-8");
        };
        match Params::parse(cmdline) {
            Ok(params) => Self {
                index,
                boot,
                params,
            },
            Err(error) => fail!(EXIT_USAGE, "command line: {error}"),
        }
    }

    /// Whether this is the vCPU that does what must be done once.
    pub fn is_leader(&self) -> bool {
        self.index == 0
    }

    /// Number of vCPUs.
    pub fn count(&self) -> u64 {
        u64::from(self.boot.vcpus)
    }

    /// Number of accelerators.
    pub fn devices(&self) -> u64 {
        u64::from(self.boot.devices)
    }

    /// The value of a parameter.
    pub fn param(&self, name: &str) -> u64 {
        self.params.get(name)
    }

    /// Waits for all vCPUs; collective.
    pub fn barrier(&self) {
        BARRIER.wait(self.count());
    }

    /// This vCPU's part of `0..len`, in whole pages of words if there are enough.
    pub fn share(&self, len: u64) -> Range<u64> {
        share(len, PAGE_WORDS, self.count(), self.index)
    }

    /// A generator of this vCPU's own.
    pub fn random(&self) -> Random {
        Random::new(self.boot.seed, self.index)
    }

    /// A generator that gives all vCPUs the same numbers.
    pub fn common_random(&self) -> Random {
        Random::new(self.boot.seed, u64::MAX)
    }

    /// The accelerators that this vCPU drives.
    pub fn own_devices(&self) -> impl Iterator<Item = u64> {
        (self.index..self.devices()).step_by(self.count() as usize)
    }

    /// The leader makes a value, all get it; collective.
    pub fn broadcast<T: Copy + Sync>(&self, make: impl FnOnce() -> T) -> T {
        static VALUE: AtomicPtr<()> = AtomicPtr::new(null_mut());
        let mut value = self.is_leader().then(make);
        if let Some(value) = &mut value {
            VALUE.store((value as *mut T).cast(), Ordering::Relaxed);
        }
        self.barrier();
        // SAFETY: between the barriers the pointer is that of the leader's `value`, which is of the same
        // type `T`, because all vCPUs are in the same call, and none changes it.
        let copy = unsafe { *VALUE.load(Ordering::Relaxed).cast::<T>() };
        self.barrier();
        copy
    }

    /// The wrapping sum of all vCPUs' values; collective.
    pub fn sum(&self, value: u64) -> u64 {
        static VALUES: [AtomicU64; map::MAX_VCPUS as usize] = [const { AtomicU64::new(0) }; _];
        VALUES[self.index as usize].store(value, Ordering::Relaxed);
        self.barrier();
        let values = &VALUES[..self.count() as usize];
        let sum = values.iter().fold(0, |sum: u64, value| {
            sum.wrapping_add(value.load(Ordering::Relaxed))
        });
        // No vCPU may store its next value before all have read this one.
        self.barrier();
        sum
    }

    /// The leader reports how much of the work is done.
    pub fn progress(&self, done: u64, total: u64) {
        static REPORTED: AtomicU64 = AtomicU64::new(0);
        let thousandths = (u128::from(done) * 1000 / u128::from(total.max(1))) as u64;
        if self.is_leader() && REPORTED.swap(thousandths, Ordering::Relaxed) != thousandths {
            control::progress(thousandths);
        }
    }
}

/// The part of `0..len` that number `index` of `parts` gets: multiples of `grain` as far as possible.
pub fn share(len: u64, grain: u64, parts: u64, index: u64) -> Range<u64> {
    let grains = len.div_ceil(grain);
    let bound = |index: u64| {
        ((u128::from(grains) * u128::from(index) / u128::from(parts)) as u64 * grain).min(len)
    };
    bound(index)..bound(index + 1)
}
