//! A hostile guest writes any bytes into an accelerator's registers, queue and commands. On a real backend.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};

use arbitrary::{Arbitrary, Unstructured};
use hmm_backend::Backend;
use hmm_backend::pages::{PAGE_SIZE, Page, PageRange};
use hmm_backend::residency::Residency;
use hmmvisor_abi::accel::{self, Command};
use hmmvisor_abi::map::MANAGED;
use hmmvisor_devices::commands::command::{decode, space};
use hmmvisor_devices::commands::managed::{Addresses, WORD};
use hmmvisor_devices::{Accelerator, AcceleratorConfig, Interrupt, MmioDevice};

/// One block.
const PAGES: u64 = 512;
const MEMORY: u64 = PAGES * PAGE_SIZE;
const SLOTS: u64 = 8;
/// Offset in managed memory of the page for translations.
const TRANSLATIONS: u64 = PAGE_SIZE;

/// A number as hostile guests choose it: anything, or just inside or outside of something.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Any(u64),
    Small(u8),
    /// An aligned address.
    Word(u16),
    /// A page's address, or not quite.
    Page(u16, i8),
    /// Counted back from the end of managed memory.
    FromEnd(u16),
    Pages(u8),
    /// Virtual: a page of a few blocks, and what is below a page.
    Virtual(u16, u8),
    /// A translation, or not quite.
    Translation(u16, u8),
}

impl Number {
    fn value(self) -> u64 {
        match self {
            Number::Any(n) => n,
            Number::Small(n) => n.into(),
            Number::Word(n) => MANAGED + u64::from(n) * WORD,
            Number::Page(page, off) => (MANAGED + u64::from(page) % (PAGES + 2) * PAGE_SIZE)
                .wrapping_add_signed(off.into()),
            Number::FromEnd(n) => MANAGED + MEMORY - u64::from(n),
            Number::Pages(n) => u64::from(n) * PAGE_SIZE,
            Number::Virtual(page, low) => u64::from(page) % 2048 * PAGE_SIZE + u64::from(low),
            Number::Translation(page, low) => {
                MANAGED + u64::from(page) % (PAGES + 1) * PAGE_SIZE + u64::from(low % 8)
            }
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Submit {
        opcode: u8,
        flags: u8,
        args: [Number; 6],
    },
    SubmitAny(u32, u32, [u64; 6]),
    /// A register, by its index.
    Write(u8, Number),
    WriteShort(u8, u8, u64),
    Read(u8),
    /// The guest writes a word of its memory.
    Store(u16, Number),
    Wait,
    FreeAll,
    ToDevice(u16, u8),
    /// The guest's kernel answers the fault that waits, if one does: with this translation, or a status.
    Answer(Number, u8),
}

#[derive(Arbitrary, Debug)]
struct Input {
    device_pages: u8,
    policy: bool,
    steps: Vec<Step>,
}

struct Irq;

impl Interrupt for Irq {
    fn route(&self, vcpu: u32) -> bool {
        vcpu == 0
    }
    fn trigger(&self) {}
}

pub fn run(bytes: &[u8]) {
    if let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) {
        Guest::new(&input).play(&input.steps);
    }
}

struct Guest {
    // Dropped in this order: no thread may fault after the service has stopped.
    accelerator: Accelerator,
    service: hmm_backend::service::FaultService,
    backend: Arc<Backend>,
    sent: u64,
}

impl Guest {
    fn new(input: &Input) -> Guest {
        let policy = ["density+hints+timeslice:min=0us", "on-demand"][usize::from(input.policy)];
        let (backend, service) = crate::managed::memory(MEMORY, policy);
        let config = AcceleratorConfig {
            fidelity: hmm_backend::pages::Fidelity::default(),
            coherent: false,
            memory: (u64::from(input.device_pages) + 1) * PAGE_SIZE,
            memory_max: (u64::from(input.device_pages) + 1) * PAGE_SIZE,
            managed_base: MANAGED,
            vcpus: 2,
            cpu: None,
        };
        let accelerator =
            Accelerator::new(0, config, &backend, Box::new(Irq)).expect("a thread is needed");
        let mut guest = Guest {
            accelerator,
            service,
            backend,
            sent: 0,
        };
        guest.write(accel::REG_QUEUE_BASE, MANAGED);
        guest.write(accel::REG_QUEUE_ENTRIES, SLOTS);
        guest.write(accel::REG_IRQ, 1);
        guest.write(accel::REG_TRANSLATIONS, MANAGED + TRANSLATIONS);
        guest.write(accel::REG_ENABLE, 1);
        for space in 1..=3 {
            guest.write(accel::REG_SPACE_OPEN, space);
        }
        guest
    }

    fn write(&mut self, register: u64, value: u64) {
        if register == accel::REG_ENABLE {
            self.sent = 0;
        }
        self.accelerator.write(register, &value.to_le_bytes());
    }

    fn read(&self, register: u64) -> u64 {
        let mut data = [0; 8];
        self.accelerator.read(register, &mut data);
        u64::from_le_bytes(data)
    }

    /// A word of managed memory as a CPU reaches it.
    fn cpu(&self, offset: u64) -> &AtomicU64 {
        assert!(offset < MEMORY && offset.is_multiple_of(WORD));
        let (base, _) = self.backend.host_memory();
        let at = base.wrapping_add(offset as usize).cast();
        // SAFETY: the word is in managed memory, which lives as long as the backend; all accesses are atomic.
        unsafe { AtomicU64::from_ptr(at) }
    }

    fn submit(&mut self, command: Command) {
        check_decode(&command);
        let slot = accel::commands_offset() + self.sent % SLOTS * 64;
        let head = u64::from(command.opcode) | u64::from(command.flags) << 32;
        let words = [head, self.sent].into_iter().chain(command.args);
        for (index, value) in (0..).zip(words) {
            self.cpu(slot + WORD * index).store(value, Relaxed);
        }
        self.sent += 1;
        self.cpu(0).store(self.sent, Release);
        self.write(accel::REG_DOORBELL, 1);
    }

    /// Waits a little: commands may be endless.
    fn wait(&mut self) {
        for _ in 0..2 {
            let completed = self.read(accel::REG_COMPLETED);
            if completed < self.sent {
                self.write(accel::REG_WAIT, completed);
            }
        }
    }

    fn answer(&mut self, translation: u64, status: u8) {
        let fault = self.read(accel::REG_FAULT);
        let (space, addr) = (fault & 0xffff, self.read(accel::REG_FAULT_ADDRESS));
        let index = addr % accel::SPACE_BLOCK / PAGE_SIZE;
        self.cpu(TRANSLATIONS + index * WORD)
            .store(translation, SeqCst);
        self.write(accel::REG_MAP, (addr - addr % accel::SPACE_BLOCK) | space);
        let status = u64::from(status % 8);
        self.write(accel::REG_RESUME, fault >> 32 << 32 | status);
    }

    fn play(mut self, steps: &[Step]) {
        for step in steps.iter().take(64) {
            match *step {
                Step::Submit {
                    opcode,
                    flags,
                    args,
                } => self.submit(Command {
                    opcode: u32::from(opcode) % (accel::OP_HINT + 2),
                    // Most often physical, or in one of the spaces that are open at first.
                    flags: u32::from(flags % 4)
                        | (u32::from(flags >> 2) % 8 % 5) << accel::FLAG_SPACE_SHIFT,
                    tag: 0,
                    args: args.map(Number::value),
                }),
                Step::SubmitAny(opcode, flags, args) => self.submit(Command {
                    opcode,
                    flags,
                    tag: 0,
                    args,
                }),
                Step::Write(register, value) => {
                    self.write(u64::from(register % 24) * 8, value.value());
                }
                Step::WriteShort(register, len, value) => {
                    let bytes = value.to_le_bytes();
                    let offset = u64::from(register);
                    self.accelerator
                        .write(offset, &bytes[..usize::from(len % 9)]);
                }
                Step::Read(register) => {
                    self.read(register.into());
                }
                Step::Store(word, value) => {
                    let offset = u64::from(word) * WORD;
                    self.cpu(offset).store(value.value(), SeqCst);
                }
                Step::Wait => self.wait(),
                Step::Answer(translation, status) => self.answer(translation.value(), status),
                Step::FreeAll => {
                    let freed = self.backend.guest_freed(all()).expect("the range is right");
                    assert!(freed <= PAGES);
                }
                Step::ToDevice(page, len) => {
                    let start = u32::from(page) % PAGES as u32;
                    let end = (start + u32::from(len)).min(PAGES as u32);
                    let range = PageRange::new(Page(start), Page(end));
                    let device = self.accelerator.device_id();
                    self.backend
                        .migrate_to_device(device, range)
                        .expect("it is attached");
                }
            }
        }
        self.wait();
        self.finish();
    }

    fn finish(self) {
        self.accelerator.stop();
        // The service may be prefetching; after this no thread changes pages.
        drop(self.service);
        assert_eq!(self.accelerator.stats().contract_violations, 0);
        let device = self.accelerator.device_id();
        self.backend.detach(device).expect("all pages come back");
        for page in all().pages() {
            let word = self.backend.word(page).expect("it is in range");
            let there = matches!(word.residency(), Residency::Device(_));
            assert!(
                !there && word.pins() == 0 && !word.locked(),
                "{page}: {word:?}"
            );
        }
        let stats = self.backend.stats();
        assert!(stats.device_pages_peak <= stats.device_pages_capacity);
    }
}

fn all() -> PageRange {
    PageRange::new(Page(0), Page(PAGES as u32))
}

/// What decoding lets through is in managed memory, or in the address space.
fn check_decode(command: &Command) {
    let managed = Addresses {
        base: MANAGED,
        bytes: MEMORY,
    };
    let addresses = match space(command) {
        Ok(accel::PHYSICAL) => managed,
        Ok(_) => Addresses {
            base: 0,
            bytes: accel::SPACE_END,
        },
        Err(_) => return,
    };
    let Ok(operation) = decode(command, &addresses) else {
        return;
    };
    for run in operation.runs() {
        let bytes = run.len.checked_mul(WORD).expect("no run wraps");
        assert!(
            run.addr.is_multiple_of(WORD) && addresses.contains(run.addr, bytes),
            "{operation:?}"
        );
    }
    if let Some(span) = operation.span() {
        assert!(addresses.contains(span.addr, span.len), "{operation:?}");
    }
}
