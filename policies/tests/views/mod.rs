//! Faults and views for tests and benchmarks, taken from a real backend: only a backend makes views. A closure is
//! asked in the place of a policy.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};

use hmm_backend::driver::DefaultDriver;
use hmm_backend::pages::{BLOCK_PAGES, PAGE_SIZE, Page, PageRange};
use hmm_backend::policy::{
    Advice, BlockFault, BlockView, EvictionPolicy, FaultPolicy, PolicyFactory, PolicySpec,
};
use hmm_backend::service::ServiceConfig;
use hmm_backend::{Backend, BackendConfig};

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as u32 % n
    }
}

type Panic = Option<Box<dyn Any + Send>>;

type Asked = Box<dyn FnMut(&BlockFault, &BlockView<'_>) + Send>;

#[derive(Clone)]
struct Asking {
    asked: Arc<Mutex<Option<Asked>>>,
    panic: Arc<Mutex<Panic>>,
}

impl PolicyFactory for Asking {
    fn fault_policy(&self) -> Box<dyn FaultPolicy> {
        Box::new(self.clone())
    }
    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy> {
        PolicySpec::default().eviction_policy(frames)
    }
    fn name(&self) -> String {
        "asking".into()
    }
}

impl FaultPolicy for Asking {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        if let Some(asked) = &mut *self.asked.lock().unwrap() {
            // A service thread that ends in a panic would leave the toucher asleep.
            let asked = AssertUnwindSafe(|| asked(fault, view));
            if let Err(panic) = catch_unwind(asked) {
                *self.panic.lock().unwrap() = Some(panic);
            }
        }
        Advice::default()
    }
}

/// Calls `asked` at a CPU fault in each of `blocks` blocks, of whose pages some random ones are in system memory, some
/// on device 0, the others untouched. The service thread runs it; a panic there is one of the caller.
pub fn each_view(
    blocks: u32,
    seed: u64,
    asked: impl FnMut(&BlockFault, &BlockView<'_>) + Send + 'static,
) {
    let mut random = Random(seed);
    let hook = Asking {
        asked: Arc::default(),
        panic: Arc::default(),
    };
    let bytes = u64::from(blocks) * BLOCK_PAGES * PAGE_SIZE;
    let mut config = BackendConfig::new(bytes);
    config.policy = Arc::new(hook.clone());
    let backend = Backend::new(config).unwrap();
    let device = backend.attach(bytes, Arc::new(DefaultDriver)).unwrap();
    let mut faulting = Vec::new();
    for block in 0..blocks {
        let start = block * BLOCK_PAGES as u32;
        for _ in 0..random.below(12) {
            let at = random.below(512);
            let n = 1 + {
                let part = 1 + random.below(6);
                random.below(1 + (512 - at) / part)
            };
            let n = n.min(512 - at);
            let range = PageRange::with_len(Page(start + at), n);
            match random.below(3) {
                0 => drop(backend.migrate_to_device(device, range).unwrap()),
                _ => drop(backend.pin(range).unwrap()),
            }
        }
        let lacks = |page: &u32| {
            let word = backend.word(Page(*page)).unwrap();
            !word.residency().reached_by_cpus()
        };
        faulting.extend((start..start + 512).find(lacks));
    }
    *hook.asked.lock().unwrap() = Some(Box::new(asked) as Asked);
    let service = backend
        .start_service(ServiceConfig::default(), |fault| panic!("{fault:?}"))
        .unwrap();
    let base = backend.host_memory().0 as usize;
    let toucher = std::thread::spawn(move || {
        for page in faulting {
            let at = (base + page as usize * PAGE_SIZE as usize) as *mut u8;
            // SAFETY: managed memory, kept by the caller until the thread has ended.
            unsafe { at.write_volatile(1) };
        }
    });
    toucher.join().unwrap();
    drop(service);
    *hook.asked.lock().unwrap() = None;
    let panic = hook.panic.lock().unwrap().take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}
