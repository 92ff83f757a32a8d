//! The accelerator's address spaces on a real backend, without a guest: this process's threads are the guest's kernel, which
//! answers faults on virtual addresses, changes translations under running commands and closes spaces.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use hmm_backend::engine::Engine;
use hmm_backend::pages::{PAGE_SIZE, Page};
use hmm_backend::residency::Residency;
use hmmvisor_abi::accel::*;
use hmmvisor_devices::CommandInFlight;
use hmmvisor_devices::MmioDevice;
use hmmvisor_testkit::Random;
use hmmvisor_testkit::accelerator::{PAGES, Rig, at, command};
use hmmvisor_testkit::machine::both_engines;

/// The page in which translations are handed over.
const TABLE: u64 = 1;
/// The first virtual address: a few pages before the end of a block.
const V: u64 = 0x7fff_ffe0_0000 - 5 * PAGE_SIZE;
/// The space that most tests use.
const SPACE: u64 = 3;
const READ: u64 = TRANSLATION_VALID;
const WRITE: u64 = TRANSLATION_VALID | TRANSLATION_WRITABLE;

/// The guest's kernel: which virtual page (counted from `V`) is which page, with which rights.
#[derive(Default)]
struct Kernel {
    pages: BTreeMap<u64, (u64, u64)>,
    /// Faults answered: (page from `V`, whether it was a write).
    faults: Vec<(u64, bool)>,
}

fn rig(engine: Engine, policy: &str, device_pages: u64) -> Rig {
    let mut rig = Rig::new(engine, policy, device_pages);
    assert_eq!(rig.read(REG_SPACES), SPACES);
    assert_eq!(rig.read(REG_MANAGED_BASE), at(0));
    assert_eq!(rig.read(REG_MANAGED_SIZE), u64::from(PAGES) * PAGE_SIZE);
    enable(&mut rig);
    rig
}

/// Enables the device again, with a page for translations.
fn enable(rig: &mut Rig) {
    rig.write(REG_ENABLE, 0);
    while rig.read(REG_ENABLE) != 0 {
        std::thread::yield_now();
    }
    rig.write(REG_TRANSLATIONS, at(TABLE));
    rig.enable();
    rig.write(REG_SPACE_OPEN, SPACE);
    assert_eq!(rig.read(REG_ERROR), ERR_NONE);
}

/// Virtual address of a page.
fn v(page: u64) -> u64 {
    V + page * PAGE_SIZE
}

/// Enters one translation.
fn map(rig: &Rig, space: u64, addr: u64, page: u64, rights: u64) {
    let index = addr % SPACE_BLOCK / PAGE_SIZE;
    rig.fill(TABLE, [0; TRANSLATIONS]);
    rig.cpu(TABLE * PAGE_SIZE + 8 * index)
        .store(at(page) | rights, Relaxed);
    rig.write(REG_MAP, (addr - addr % SPACE_BLOCK) | space);
}

/// Waits for a fault: its space, address, and whether it is a write.
fn fault(rig: &Rig) -> (u64, u64, bool) {
    loop {
        let fault = rig.read(REG_FAULT);
        if fault != 0 {
            let space = fault & 0xffff;
            return (space, rig.read(REG_FAULT_ADDRESS), fault & FAULT_WRITE != 0);
        }
        rig.write(REG_WAIT, rig.read(REG_COMPLETED));
    }
}

/// Answers the fault that waits.
fn resume(rig: &Rig, status: u32) {
    let number = rig.read(REG_FAULT) >> 32;
    assert_ne!(number, 0);
    rig.write(REG_RESUME, number << 32 | u64::from(status));
}

/// A command in a space.
fn virtual_command(space: u64, opcode: u32, args: &[u64]) -> Command {
    let mut it = command(opcode, args);
    it.flags |= (space as u32) << FLAG_SPACE_SHIFT;
    it
}

impl Kernel {
    /// Virtual pages `first..` are these pages, with all rights.
    fn place(&mut self, first: u64, pages: impl IntoIterator<Item = u64>) {
        let pages = pages.into_iter().map(|page| (page, WRITE));
        self.pages.extend((first..).zip(pages));
    }

    /// Answers faults until all commands are done.
    fn serve(&mut self, rig: &Rig) {
        while rig.read(REG_COMPLETED) < rig.sent {
            if rig.read(REG_FAULT) == 0 {
                rig.write(REG_WAIT, rig.read(REG_COMPLETED));
                continue;
            }
            let (space, addr, write) = fault(rig);
            assert!(addr.is_multiple_of(PAGE_SIZE));
            let page = addr.wrapping_sub(V) / PAGE_SIZE;
            self.faults.push((page, write));
            match self.pages.get(&page) {
                None => resume(rig, STATUS_ADDRESS),
                Some((_, READ)) if write => resume(rig, STATUS_PERMISSION),
                Some((to, rights)) => {
                    map(rig, space, addr, *to, *rights);
                    resume(rig, 0);
                }
            }
        }
        rig.wait();
    }

    fn run(&mut self, rig: &mut Rig, opcode: u32, args: &[u64]) -> (u32, u64, u64) {
        rig.submit(virtual_command(SPACE, opcode, args));
        self.serve(rig);
        rig.answer()
    }

    fn result(&mut self, rig: &mut Rig, opcode: u32, args: &[u64]) -> u64 {
        let (status, result, address) = self.run(rig, opcode, args);
        assert_eq!((status, address), (STATUS_OK, 0), "{opcode} {args:x?}");
        result
    }
}

/// A number from 16 to 1023 for each of the first 1008 numbers, each once.
fn scattered(i: u64) -> u64 {
    16 + i * 611 % 1008
}

#[test]
fn commands_work_on_scattered_pages_amid_migrations() {
    both_engines("virtual addresses", |engine| {
        for (policy, device_pages) in [("density", 256), ("on-demand+timeslice:min=0", 16)] {
            let mut rig = rig(engine, policy, device_pages);
            let mut kernel = Kernel::default();
            kernel.place(0, (0..300).map(scattered));
            rig.amid_migrations(2, |rig| {
                let n = 40 * 512 + 100;
                let (a, b, c) = (v(0) + 8, v(100), v(200) + 64);
                kernel.result(rig, OP_FILL, &[a, n, 5, 3]);
                kernel.result(rig, OP_FILL, &[b, n, 7, 11]);
                kernel.result(rig, OP_VECTOR_ADD, &[c, a, b, n]);
                let sum = (0..n).map(|i| 12 + 14 * i).sum::<u64>();
                assert_eq!(kernel.result(rig, OP_REDUCE, &[c, n]), sum);
                for i in (0..n).step_by(97) {
                    let byte = 64 + 8 * i;
                    let page = scattered(200 + byte / PAGE_SIZE);
                    let word = rig.cpu(page * PAGE_SIZE + byte % PAGE_SIZE);
                    assert_eq!(word.load(Relaxed), 12 + 14 * i, "{i}");
                }
                // Every translation was asked for once, though pages moved all the time.
                let pages = kernel.faults.len();
                assert_eq!(pages, 3 * 41 + usize::from(n % 512 > 440));
                // In another space the same addresses are something else, physical ones are as ever.
                rig.write(REG_SPACE_OPEN, SPACE + 1);
                let mut other = Kernel::default();
                other.place(0, [scattered(0)]);
                let one = virtual_command(SPACE + 1, OP_REDUCE, &[v(0) + 8, 1]);
                rig.submit(one);
                other.serve(rig);
                assert_eq!(rig.answer(), (STATUS_OK, 5, 0));
                let physical = at(scattered(0)) + 8;
                assert_eq!(rig.result(OP_REDUCE, &[physical, 1]), 5);
            });
            let counted = rig.accelerator.stats().guest_faults;
            assert_eq!(counted as usize, kernel.faults.len() + 1);
        }
    });
}

#[test]
fn the_guest_says_what_becomes_of_a_fault() {
    both_engines("answers", |engine| {
        let mut rig = rig(engine, "on-demand", 64);
        let mut kernel = Kernel::default();
        kernel.place(0, [20, 21]);
        kernel.pages.insert(2, (22, READ));
        rig.fill(22, [1, 2, 3]);
        // Pages are reached in order; the third one may only be read.
        assert_eq!(kernel.result(&mut rig, OP_REDUCE, &[v(2), 3]), 6);
        let refused = kernel.run(&mut rig, OP_FILL, &[v(0), 3 * 512, 9, 0]);
        assert_eq!(refused, (STATUS_PERMISSION, 0, v(2)));
        rig.expect("what came before", 20, [9; 1024]);
        rig.expect("what may not be written", 22, [1, 2, 3]);
        // Rights are extended by entering the translation again.
        kernel.pages.insert(2, (22, WRITE));
        kernel.result(&mut rig, OP_FILL, &[v(2), 2, 9, 0]);
        rig.expect("what may be written now", 22, [9, 9, 3]);
        let unmapped = kernel.run(&mut rig, OP_REDUCE, &[v(3) + 16, 1]);
        assert_eq!(unmapped, (STATUS_ADDRESS, 0, v(3)));
        assert_eq!(
            kernel.faults,
            [
                (2, false),
                (0, true),
                (1, true),
                (2, true),
                (2, true),
                (3, false)
            ]
        );
        // Neither may be done with virtual addresses; and there are some that are none.
        let free = kernel.run(&mut rig, OP_FREE, &[v(0), PAGE_SIZE]);
        assert_eq!(free, (STATUS_ARGUMENT, 0, 0));
        let outside = kernel.run(&mut rig, OP_REDUCE, &[SPACE_END - 8, 2]);
        assert_eq!(outside, (STATUS_ADDRESS, 0, SPACE_END));
        rig.submit(virtual_command(SPACES + 1, OP_NOP, &[]));
        rig.wait();
        assert_eq!(rig.answer(), (STATUS_ARGUMENT, 0, 0));
        // An answer while no fault waits, and an answer that means nothing.
        rig.write(REG_RESUME, 1 << 32);
        assert_eq!(rig.read(REG_ERROR), ERR_NONE);
        rig.write(REG_RESUME, 99);
        assert_eq!(rig.read(REG_ERROR), ERR_SPACE);
        // What is not in managed memory is not entered.
        map(&rig, SPACE, v(0), u64::from(PAGES), WRITE);
        assert_eq!(rig.read(REG_ERROR), ERR_TRANSLATION);
        assert_eq!(kernel.result(&mut rig, OP_REDUCE, &[v(0), 1]), 9);
    });
}

#[test]
fn hints_and_exclusive_access_reach_the_pages_behind() {
    both_engines("hints", |engine| {
        let mut rig = rig(engine, "on-demand+timeslice:min=0", 64);
        let mut kernel = Kernel::default();
        kernel.place(0, [40, 41, 42, 60, 61, 70, 71, 72]);
        for page in 40..80 {
            rig.fill(page, [page]);
        }
        let hint = [v(0) + 64, 7 * PAGE_SIZE, TO_DEVICE];
        assert_eq!(kernel.result(&mut rig, OP_MIGRATE, &hint), 8);
        for page in 40..80 {
            let residency = rig.backend.word(Page(page as u32)).unwrap().residency();
            let there = matches!(residency, Residency::Device(_));
            let named = kernel.pages.values().any(|(it, _)| *it == page);
            assert_eq!(there, named, "{page}");
        }
        let hint = [v(1), 2 * PAGE_SIZE, TO_SYSTEM];
        assert_eq!(kernel.result(&mut rig, OP_MIGRATE, &hint), 2);
        let hint = [v(1) + 5, 0, TO_SYSTEM];
        assert_eq!(kernel.run(&mut rig, OP_MIGRATE, &hint).0, STATUS_ARGUMENT);
        assert_eq!(
            kernel.result(&mut rig, OP_EXCLUSIVE_ADD, &[v(3), 500, 2]),
            60
        );
        rig.expect("exclusive add", 60, [1060]);
        let unmapped = kernel.run(&mut rig, OP_MIGRATE, &[v(7), 2 * PAGE_SIZE, TO_DEVICE]);
        assert_eq!(unmapped, (STATUS_ADDRESS, 0, v(8)));
        rig.check_contract();
    });
}

/// When an invalidation returns, the device is done with the page: what is written there afterwards stays.
#[test]
fn an_invalidation_returns_when_the_page_is_no_longer_used() {
    both_engines("invalidation", |engine| {
        let mut rig = rig(engine, "on-demand+timeslice:min=0", 64);
        // A block whose pages are all the same page: the device writes there without a pause.
        let (block, page) = (0x7000_0000_0000, 20);
        let map_all = |rig: &Rig| rig.write(REG_MAP, block | SPACE);
        rig.fill(TABLE, [at(page) | WRITE; TRANSLATIONS]);
        let mut random = Random(9);
        let used = Cell::new(0);
        // Until the device has worked often enough.
        for round in (1..).take_while(|_| used.get() < 800) {
            rig.write(REG_INVALIDATE_START, block);
            let fill = [block, 512 * 512, round, 0];
            let fill = virtual_command(SPACE, OP_FILL, &fill);
            rig.submit(fill);
            while rig.read(REG_COMPLETED) < rig.sent {
                if rig.read(REG_FAULT) == 0 {
                    continue;
                }
                // The word that the device writes last in a page: if it is still there, it will come by.
                let last = rig.cpu(page * PAGE_SIZE + 511 * 8);
                last.store(0, SeqCst);
                map_all(&rig);
                resume(&rig, 0);
                while last.load(SeqCst) != round && rig.read(REG_COMPLETED) < rig.sent {
                    std::hint::spin_loop();
                }
                for _ in 0..random.below(64) {
                    std::hint::spin_loop();
                }
                rig.write(REG_INVALIDATE, (block + SPACE_BLOCK) | SPACE);
                let marker = u64::MAX - round;
                let at_work = last.swap(marker, SeqCst) == round;
                used.set(used.get() + u64::from(at_work));
                // From here on the device can only wait, or be done.
                while rig.read(REG_FAULT) == 0 && rig.read(REG_COMPLETED) < rig.sent {
                    std::hint::spin_loop();
                }
                assert_eq!(last.load(SeqCst), marker, "written after the invalidation");
            }
            rig.wait();
            assert_eq!(rig.answer().0, STATUS_OK);
        }
    });
}

/// Invalidations are not kept waiting by a device that works all the time, nor the device by invalidations.
#[test]
fn translations_change_all_the_time_under_running_commands() {
    both_engines("changing translations", |engine| {
        let mut rig = rig(engine, "density+timeslice:min=0", 64);
        let mut kernel = Kernel::default();
        kernel.place(0, (0..200).map(scattered));
        let accelerator = rig.accelerator.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let invalidator = std::thread::spawn(move || {
            let write = |register, value: u64| accelerator.write(register, &value.to_le_bytes());
            let mut random = Random(3);
            let mut rounds = 0;
            while !stopped.load(Relaxed) || rounds < 100 {
                let start = random.below(200);
                write(REG_INVALIDATE_START, v(start));
                write(REG_INVALIDATE, v(start + 1 + random.below(40)) | SPACE);
                rounds += 1;
                std::thread::yield_now();
            }
        });
        for round in 0..10 {
            let n = 90 * 512;
            kernel.result(&mut rig, OP_FILL, &[v(0), n, round, 1]);
            kernel.result(&mut rig, OP_COPY, &[v(100), v(0), n * 8]);
            let sum = (0..n).map(|i| i + round).sum::<u64>();
            assert_eq!(kernel.result(&mut rig, OP_REDUCE, &[v(100), n]), sum);
        }
        stop.store(true, Relaxed);
        invalidator.join().unwrap();
        rig.check_contract();
    });
}

#[test]
fn closing_a_space_aborts_its_commands_only() {
    both_engines("closing", |engine| {
        let mut rig = rig(engine, "on-demand", 64);
        rig.fill(30, [77]);
        rig.write(REG_SPACE_OPEN, 5);
        let first = rig.sent;
        for space in [SPACE, SPACE, 5, SPACE] {
            rig.submit(virtual_command(space, OP_REDUCE, &[v(0), 1]));
        }
        rig.submit(command(OP_REDUCE, &[at(30), 1]));
        // The first one waits for its translation.
        assert_eq!(fault(&rig), (SPACE, v(0), false));
        rig.write(REG_SPACE_CLOSE, SPACE);
        assert_eq!(fault(&rig), (5, v(0), false));
        map(&rig, 5, v(0), 30, READ);
        resume(&rig, 0);
        rig.wait();
        let status = |number: u64| {
            let slot = completions_offset(8) + number % 8 * 32;
            let field = |offset| rig.cpu(slot + offset).load(Relaxed);
            (field(8) as u32, field(16))
        };
        let statuses: Vec<_> = (first..first + 5).map(status).collect();
        let aborted = (STATUS_ABORTED, 0);
        let done = (STATUS_OK, 77);
        assert_eq!(statuses, [aborted, aborted, done, aborted, done]);
        // Opened again, it is empty.
        rig.write(REG_SPACE_OPEN, SPACE);
        rig.submit(virtual_command(SPACE, OP_REDUCE, &[v(0), 1]));
        assert_eq!(fault(&rig), (SPACE, v(0), false));
        resume(&rig, STATUS_FAULT);
        rig.wait();
        assert_eq!(rig.answer(), (STATUS_FAULT, 0, v(0)));
    });
}

#[test]
fn who_waits_for_a_translation_can_be_disabled_and_stopped() {
    both_engines("disabling", |engine| {
        let mut rig = rig(engine, "on-demand", 64);
        rig.submit(virtual_command(SPACE, OP_FILL, &[v(0), 1, 0, 0]));
        assert_eq!(fault(&rig), (SPACE, v(0), true));
        // Opening needs an enabled device, and what was entered is forgotten with it.
        enable(&mut rig);
        assert_eq!(rig.read(REG_FAULT), 0);
        rig.submit(virtual_command(SPACE, OP_FILL, &[v(0), 1, 0, 0]));
        assert_eq!(fault(&rig), (SPACE, v(0), true));
        map(&rig, SPACE, v(0), 30, WRITE);
        resume(&rig, 0);
        rig.wait();
        assert_eq!(rig.answer().0, STATUS_OK);
        rig.submit(virtual_command(SPACE, OP_FILL, &[v(1), 1, 0, 0]));
        assert_eq!(fault(&rig), (SPACE, v(1), true));
        rig.accelerator.stop();
        assert_eq!(rig.read(REG_FAULT), 0);
    });
}

#[test]
fn a_command_that_waits_for_the_guest_halts_there() {
    both_engines("pause", |engine| {
        let mut rig = rig(engine, "on-demand+lru", 64);
        rig.submit(virtual_command(SPACE, OP_FILL, &[v(0), 512, 5, 1]));
        let (space, addr, write) = fault(&rig);
        assert_eq!((space, addr, write), (SPACE, v(0), true));
        assert!(
            rig.accelerator
                .pause(CommandInFlight::Finishes, Duration::from_secs(60))
        );
        // The answer comes, and the device has it when the pause is over.
        map(&rig, SPACE, addr, 40, WRITE);
        resume(&rig, 0);
        for _ in 0..3 {
            rig.write(REG_WAIT, 0);
        }
        assert_eq!(rig.read(REG_COMPLETED), 0);
        rig.accelerator.resume();
        rig.wait();
        assert_eq!(rig.answer().0, STATUS_OK);
        rig.expect("the fill", 40, (0..512).map(|i| 5 + i));
    });
}
