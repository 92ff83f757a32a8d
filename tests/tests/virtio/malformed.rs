//! Rings and requests that no driver may write: the device needs a reset, keeps nothing, and works afterwards.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use hmm_backend::pages::Permission;
use hmmvisor_devices::virtio::{Balloon, Disk, VirtioDevice, block};
use hmmvisor_testkit::machine::both_engines;
use hmmvisor_testkit::virtio::*;
use hmmvisor_testkit::{Engine, Watchdog};

use super::entropy;

const END: u64 = 0x1_0000_0000 + PAGES as u64 * 4096;

/// The device notices the mistake and unpins all memory; then a driver starts again.
fn expect_reset(rig: &mut Rig, what: &str) {
    rig.kick(0);
    rig.wait_for_needs_reset();
    assert!(rig.pinned().is_empty(), "{what}");
    rig.write(STATUS, 0);
    rig.start(VERSION_1, &[8]);
}

#[test]
fn broken_rings_need_a_reset() {
    both_engines("malformed", |engine| {
        let mut rig = entropy::rig(engine);
        let [table, available, _] = Rig::rings(0);
        let buffer = (at(FIRST), 8, WRITE);

        // More chains than slots.
        rig.half(available + 2).store(9, SeqCst);
        expect_reset(&mut rig, "the index jumps");
        rig.half(available + 2).store(0xffff, SeqCst);
        expect_reset(&mut rig, "the index goes back");
        // A head that is no descriptor.
        rig.offer(0, 8);
        expect_reset(&mut rig, "a head out of bounds");
        rig.offer(0, 0xffff);
        expect_reset(&mut rig, "a head far out of bounds");

        for (what, chain) in [
            ("a buffer that is no memory", vec![(0x1000, 8, WRITE)]),
            ("beyond the end", vec![(END, 1, WRITE)]),
            ("over the end", vec![(END - 7, 8, WRITE)]),
            (
                "around the end of everything",
                vec![(u64::MAX - 3, 8, WRITE)],
            ),
            ("nothing", vec![(at(FIRST), 0, WRITE)]),
            (
                "nothing in the middle",
                vec![buffer, (at(FIRST), 0, WRITE), buffer],
            ),
            ("readable behind writable", vec![buffer, (at(FIRST), 8, 0)]),
            (
                "readable, where only writable makes sense",
                vec![(at(FIRST), 8, 0)],
            ),
            (
                "it goes on, but not to anywhere",
                vec![(at(FIRST), 8, WRITE | NEXT)],
            ),
        ] {
            rig.add(0, &chain);
            if what.starts_with("it goes on") {
                rig.describe(table, 0, chain[0], 200);
            }
            expect_reset(&mut rig, what);
        }

        // Loops: of one, of two, of all.
        for len in [1u16, 2, 8] {
            for index in 0..len {
                rig.describe(
                    table,
                    index,
                    (at(FIRST), 8, WRITE | NEXT),
                    (index + 1) % len,
                );
            }
            rig.offer(0, 0);
            expect_reset(&mut rig, "a loop");
        }
        // More bytes than a chain may have.
        for index in 0..8 {
            let flags = if index < 7 { WRITE | NEXT } else { WRITE };
            rig.describe(table, index, (at(0), u32::MAX, flags), index + 1);
        }
        rig.offer(0, 0);
        expect_reset(&mut rig, "too many bytes");

        assert_eq!(rig.run(0, &[buffer]), 8);
        rig.finish();
    });
}

#[test]
fn broken_tables_need_a_reset() {
    both_engines("malformed", |engine| {
        let mut rig = entropy::rig(engine);
        let table = at(FIRST + 4);
        let entry = |rig: &Rig, index, flags, next| {
            rig.describe(table, index, (at(FIRST), 8, flags), next);
        };
        for (what, addr, len) in [
            ("no table", table, 0),
            ("a part of a descriptor", table, 17),
            ("out of memory", END, 16),
            ("over the end", END - 8, 16),
            ("around the end of everything", u64::MAX - 7, 16),
            ("a huge one that is not there", at(0), 0xffff_fff0),
        ] {
            entry(&rig, 0, WRITE, 0);
            rig.add(0, &[(addr, len, INDIRECT)]);
            expect_reset(&mut rig, what);
        }
        // A table in a table.
        rig.describe(table, 0, (table, 16, INDIRECT), 0);
        rig.add(0, &[(table, 16, INDIRECT)]);
        expect_reset(&mut rig, "a table in a table");
        // A loop.
        entry(&rig, 0, WRITE | NEXT, 1);
        entry(&rig, 1, WRITE | NEXT, 0);
        rig.add(0, &[(table, 32, INDIRECT)]);
        expect_reset(&mut rig, "a loop");
        // Longer than the queue, which no chain may be: by one, and all over the largest table there can be.
        for index in 0..9 {
            entry(
                &rig,
                index,
                if index < 8 { WRITE | NEXT } else { WRITE },
                index + 1,
            );
        }
        rig.add(0, &[(table, 16 * 9, INDIRECT)]);
        expect_reset(&mut rig, "a chain that is too long");
        let far = |index: u16| index % 200 * 300 + index / 200;
        for index in 0..4000 {
            let flags = if index < 3999 { WRITE | NEXT } else { WRITE };
            entry(&rig, far(index), flags, far(index + 1));
        }
        rig.add(0, &[(table, 16 * 65535, INDIRECT)]);
        expect_reset(&mut rig, "a chain that is much too long");
        // As long as it may be.
        for index in 0..8 {
            entry(
                &rig,
                index,
                if index < 7 { WRITE | NEXT } else { WRITE },
                index + 1,
            );
        }
        assert_eq!(rig.run(0, &[(table, 128, INDIRECT)]), 64);
        rig.finish();
    });
}

#[test]
fn block_requests_without_their_parts_need_a_reset() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, [1; 1 << 16]).unwrap();
    let disk = Disk::open(file.path(), Permission::Writable).unwrap();
    let _watchdog = Watchdog::new("malformed block requests", 60);
    let mut rig = Rig::new(Engine::Copy, |ram, irq| {
        Arc::new(VirtioDevice::new(block(0, disk), ram, irq).unwrap())
    });
    rig.start(VERSION_1, &[8]);
    for chain in [
        vec![(at(FIRST), 16, 0)],
        vec![(at(FIRST), 15, 0), (at(FIRST + 1), 513, WRITE)],
        vec![(at(FIRST), 17, WRITE)],
    ] {
        rig.add(0, &chain);
        expect_reset(&mut rig, "a block request");
    }
    assert_eq!(std::fs::read(&file).unwrap(), [1; 1 << 16]);
    rig.finish();
}

#[test]
fn balloon_requests_that_make_no_sense_need_a_reset() {
    let _watchdog = Watchdog::new("malformed balloon requests", 60);
    let mut rig = Rig::new(Engine::Copy, |ram, irq| {
        Balloon::new(0, ram, irq).unwrap().device().clone()
    });
    let features = VERSION_1 | 0b11_1110;
    let mut expect = |queue: u32, bytes: &[u8], flags: u16, len: u32| {
        rig.start(features, &[8; 5]);
        rig.put(at(FIRST), &[77; 8]);
        rig.put(at(FIRST + 1), bytes);
        rig.add(queue, &[(at(FIRST + 1), len, flags)]);
        rig.kick(queue);
        rig.wait_for_needs_reset();
        rig.write(STATUS, 0);
        assert!(rig.pinned().is_empty(), "{:?}", rig.pinned());
        assert_eq!(rig.get(at(FIRST), 8), [77; 8]);
    };
    let number = |page: u32| page.to_le_bytes();
    // Pages that are not memory; half a number; too many.
    expect(0, &number(0), 0, 4);
    expect(0, &number(u32::MAX), 0, 4);
    expect(0, &number((END / 4096) as u32), 0, 4);
    expect(0, &number(0), 0, 3);
    expect(0, &[], 0, 1 << 20);
    // A command that is none.
    expect(3, &[2, 0, 0, 0, 0, 0, 0, 0], 0, 8);
    // A second buffer of statistics.
    rig.start(features, &[8; 5]);
    rig.add(2, &[(at(FIRST), 10, 0)]);
    rig.add(2, &[(at(FIRST), 10, 0)]);
    rig.kick(2);
    rig.wait_for_needs_reset();
    rig.write(STATUS, 0);
    rig.finish();
}
