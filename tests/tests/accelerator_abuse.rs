//! What a guest can do to the accelerator on purpose: commands that make no sense, queues that overrun, stops at the
//! wrong moment. Each gets its documented answer, and the device works afterwards.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, Release};

use hmm_backend::pages::PAGE_SIZE;
use hmmvisor_abi::accel::*;
use hmmvisor_abi::map::MANAGED;
use hmmvisor_devices::MmioDevice;
use hmmvisor_testkit::Random;
use hmmvisor_testkit::accelerator::{FIRST, PAGES, Rig, SLOTS, at, command};
use hmmvisor_testkit::machine::both_engines;

/// One past the last byte of managed memory.
const END: u64 = MANAGED + PAGES as u64 * PAGE_SIZE;

/// The accelerator computes.
fn works(rig: &mut Rig) {
    rig.result(OP_FILL, &[at(500), 1000, 1, 2]);
    assert_eq!(rig.result(OP_REDUCE, &[at(500), 1000]), 1000 * 1000);
}

#[test]
fn malformed_commands_get_their_status_and_touch_nothing() {
    both_engines("malformed commands", |engine| {
        let mut rig = Rig::new(engine, "density", 64);
        let a = at(20);
        let index = 1 << 30;
        // Where the index that is out of range will be.
        rig.fill(40, [0, 5, index, 1]);
        // Rows that descend, and rows that end beyond the columns.
        rig.fill(41, [0, 3, 2, 4]);
        rig.fill(42, [0, 1, 9, 2]);
        rig.fill(20, (0..4096).map(|i| i * 3));
        let cases: &[(u32, &[u64], u32, u64)] = &[
            (17, &[], STATUS_OPCODE, 0),
            (u32::MAX, &[a, a, a], STATUS_OPCODE, 0),
            (OP_FILL, &[a + 4, 1], STATUS_ARGUMENT, 0),
            (OP_FILL, &[0, 1], STATUS_ADDRESS, 0),
            (OP_FILL, &[END - 8, 2], STATUS_ADDRESS, END),
            (OP_FILL, &[a, u64::MAX], STATUS_ADDRESS, END),
            (OP_FILL, &[MANAGED - 8, 1], STATUS_ADDRESS, MANAGED - 8),
            (OP_COPY, &[a, a + 64, 12], STATUS_ARGUMENT, 0),
            (OP_COPY, &[a, a + 8, 16], STATUS_ARGUMENT, 0),
            (OP_COPY, &[a, END, 8], STATUS_ADDRESS, END),
            (OP_VECTOR_ADD, &[a, a, END - 8, 2], STATUS_ADDRESS, END),
            (OP_TRIAD, &[a, 8, a, 1], STATUS_ADDRESS, 8),
            (OP_REDUCE, &[END + 8, 1], STATUS_ADDRESS, END + 8),
            (OP_MATMUL, &[a, a, a, 1 << 33], STATUS_ADDRESS, END),
            (OP_GATHER, &[at(60), a, at(40), 4, 16], STATUS_INDEX, index),
            (OP_SCATTER, &[at(60), a, at(40), 4, 16], STATUS_INDEX, index),
            (
                OP_ATOMIC_ADD,
                &[at(60), at(40), 4, 1, 16],
                STATUS_INDEX,
                index,
            ),
            (OP_CHASE, &[at(40), 2, 5, 4], STATUS_INDEX, index),
            (OP_CHASE, &[a, 4, 1, 4], STATUS_ARGUMENT, 0),
            (OP_SPMV, &[at(60), at(41), a, a, a, 3], STATUS_INDEX, 3),
            (OP_BFS_STEP, &[at(42), a, at(70), 3, 0], STATUS_INDEX, 9),
            (
                OP_BFS_STEP,
                &[at(41), a, a, 3, u64::MAX],
                STATUS_ARGUMENT,
                0,
            ),
            (OP_MIGRATE, &[a, 8, 2], STATUS_ARGUMENT, 0),
            (OP_MIGRATE, &[END, 8, TO_DEVICE], STATUS_ADDRESS, END),
            (OP_FREE, &[a + 8, PAGE_SIZE], STATUS_ARGUMENT, 0),
            (OP_FREE, &[a, PAGE_SIZE - 8], STATUS_ARGUMENT, 0),
            (OP_FREE, &[a, !4095], STATUS_ADDRESS, END),
            (
                OP_HINT,
                &[a, 8, HINT_NOT_READ_MOSTLY + 1],
                STATUS_ARGUMENT,
                0,
            ),
            (OP_HINT, &[a + 4, 8, HINT_READ_MOSTLY], STATUS_ARGUMENT, 0),
            (
                OP_HINT,
                &[END - 8, 9, HINT_READ_MOSTLY],
                STATUS_ADDRESS,
                END,
            ),
            (OP_HINT, &[a, u64::MAX, HINT_ACCESSED], STATUS_ADDRESS, END),
            (OP_EXCLUSIVE_ADD, &[a + 4, 1, 1], STATUS_ARGUMENT, 0),
            (
                OP_EXCLUSIVE_ADD,
                &[a, MAX_EXCLUSIVE_ADDS + 1, 1],
                STATUS_ARGUMENT,
                0,
            ),
            (OP_EXCLUSIVE_ADD, &[END, 1, 1], STATUS_ADDRESS, END),
        ];
        for (opcode, args, status, address) in cases {
            let answer = rig.run(*opcode, args);
            assert_eq!(answer, (*status, 0, *address), "command {opcode} {args:x?}");
        }
        rig.submit(Command {
            flags: 2,
            ..command(OP_NOP, &[])
        });
        rig.wait();
        assert_eq!(rig.answer().0, STATUS_ARGUMENT);
        let failed = cases.len() as u64 + 1;
        assert_eq!(rig.accelerator.stats().errors, failed);
        // What refused commands would have written to is as it was.
        rig.expect("the area", 20, (0..4096).map(|i| i * 3));
        works(&mut rig);
        rig.check_contract();
    });
}

#[test]
fn any_64_bytes_are_answered() {
    both_engines("random commands", |engine| {
        let mut rig = Rig::new(engine, "density+timeslice:min=0", 32);
        let mut statuses = [0; 8];
        rig.amid_migrations(3, |rig| {
            let mut random = Random(17);
            for _ in 0..1500 {
                let args: [u64; 6] = std::array::from_fn(|_| match random.below(8) {
                    0 => random.number() >> random.below(64),
                    // Not the queue: a device may be told to overwrite it, but then no answer can be relied on.
                    1..4 => {
                        at(FIRST + random.below(u64::from(PAGES) - FIRST)) + 8 * random.below(3)
                    }
                    4 => PAGE_SIZE * random.below(20),
                    5 => at(FIRST + random.below(u64::from(PAGES) - FIRST)),
                    _ => random.below(300),
                });
                let opcode = random.below(18) as u32;
                // These would have the device at work for years; how to end that is another test.
                if opcode == OP_CHASE && args[2] > 1 << 20 {
                    continue;
                }
                let (status, ..) = rig.run(opcode, &args);
                statuses[status as usize] += 1;
            }
        });
        // The choice is good enough to get both through and refused in many ways.
        for status in [
            STATUS_OK,
            STATUS_OPCODE,
            STATUS_ARGUMENT,
            STATUS_ADDRESS,
            STATUS_INDEX,
        ] {
            assert!(statuses[status as usize] > 0, "{statuses:?}");
        }
        assert_eq!(
            statuses[STATUS_FAULT as usize] + statuses[STATUS_ABORTED as usize],
            0,
            "{statuses:?}"
        );
        works(&mut rig);
    });
}

#[test]
fn an_overrun_disables_the_queue_until_it_is_enabled_again() {
    both_engines("overruns", |engine| {
        let mut rig = Rig::new(engine, "density", 64);
        for claimed in [SLOTS + 1, u64::MAX, 1 << 32] {
            works(&mut rig);
            rig.cpu(0).store(rig.sent.wrapping_add(claimed), Release);
            rig.write(REG_DOORBELL, 1);
            while rig.read(REG_ENABLE) == 1 {
                rig.write(REG_WAIT, rig.read(REG_COMPLETED));
            }
            assert_eq!(rig.read(REG_ERROR), ERR_QUEUE_OVERRUN);
            rig.enable();
        }
        for _ in 0..200 {
            works(&mut rig);
            rig.write(REG_ENABLE, 0);
            // The write waits for the device, but not for ever: it may not get to run in time.
            while rig.read(REG_ENABLE) != 0 {
                std::thread::yield_now();
            }
            rig.enable();
        }
        rig.check_contract();
    });
}

#[test]
fn atomics_of_cpus_and_the_accelerator_never_lose_one() {
    both_engines("atomics", |engine| {
        let mut rig = Rig::new(engine, "density+timeslice:min=0", 16);
        // One counter on each of 32 pages; each command adds to all of them, 8 times.
        rig.fill(10, (0..256).map(|i| i % 32 * 512));
        let stop = AtomicBool::new(false);
        let commands = 60;
        let backend = rig.backend.clone();
        let by_cpus: u64 = std::thread::scope(|scope| {
            let cpus = [0, 1].map(|seed| {
                let (stop, backend) = (&stop, &backend);
                scope.spawn(move || {
                    let (mut random, mut added) = (Random(seed), 0);
                    while !stop.load(Relaxed) {
                        let page = 100 + random.below(32) as u32;
                        hmmvisor_testkit::word(backend, page, 0).fetch_add(1, Relaxed);
                        added += 1;
                    }
                    added
                })
            });
            rig.amid_migrations(5, |rig| {
                for _ in 0..commands {
                    rig.result(OP_ATOMIC_ADD, &[at(100), at(10), 256, 1, 32 * 512]);
                }
            });
            stop.store(true, Relaxed);
            cpus.map(|cpu| cpu.join().unwrap()).into_iter().sum()
        });
        let total = rig.result(OP_REDUCE, &[at(100), 32 * 512]);
        assert_eq!(total, by_cpus + commands * 256);
        assert!(by_cpus > 0);
    });
}

#[test]
fn an_endless_command_can_be_stopped() {
    both_engines("an endless command", |engine| {
        for disable_first in [false, true] {
            let mut rig = Rig::new(engine, "density", 64);
            // All zeros: the chase stays at the first word for ever.
            rig.submit(command(OP_CHASE, &[at(20), 0, u64::MAX, 512]));
            while rig.accelerator.stats().faults == 0 {
                std::thread::yield_now();
            }
            // A vCPU that waits for it is let go now and then.
            rig.write(REG_WAIT, 0);
            assert_eq!(rig.read(REG_COMPLETED), 0);
            // The page it is at can migrate, nevertheless.
            for _ in 0..50 {
                assert_eq!(rig.cpu(20 * PAGE_SIZE).load(Relaxed), 0);
            }
            if disable_first {
                rig.write(REG_ENABLE, 0);
                assert_eq!(rig.read(REG_ENABLE), 1, "the command has not ended");
                rig.write(REG_QUEUE_BASE, MANAGED);
                assert_eq!(rig.read(REG_ERROR), ERR_NOT_WRITABLE);
            }
            let accelerator = Arc::clone(&rig.accelerator);
            let other = std::thread::spawn(move || accelerator.stop());
            rig.accelerator.stop();
            other.join().unwrap();
            assert_eq!(rig.answer().0, STATUS_ABORTED);
            assert_eq!(rig.read(REG_ENABLE), 0);
            rig.write(REG_ENABLE, 1);
            assert_eq!(rig.read(REG_ERROR), ERR_PIN);
            rig.check_contract();
        }
    });
}
