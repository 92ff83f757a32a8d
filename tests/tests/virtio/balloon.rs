//! The balloon: in each way that memory comes back, the host gets it, the driver of a device is called once, and the guest
//! gets zeros.

use std::cell::RefCell;

use hmm_backend::pages::PAGE_SIZE;
use hmmvisor_devices::virtio::{Balloon, BalloonFigures, Hinting, Statistics};
use hmmvisor_testkit::machine::both_engines;
use hmmvisor_testkit::virtio::*;
use hmmvisor_testkit::{Engine, Page, Residency, pages};

const FEATURES: u64 = VERSION_1 | 0b10_1110;
const POISON: u64 = 1 << 4;

// Queues.
const INFLATE: u32 = 0;
const DEFLATE: u32 = 1;
const STATISTICS: u32 = 2;
const HINTING: u32 = 3;
const REPORTING: u32 = 4;

// Commands.
const STOP: u32 = 0;
const DONE: u32 = 1;

/// The address of requests.
const REQUEST: u64 = FIRST;
/// The address of memory that is given back.
const DATA: u64 = 512;

fn rig(engine: Engine, target: u64, features: u64) -> (Rig, Balloon) {
    let made = RefCell::new(None);
    let mut rig = Rig::new(engine, |ram, irq| {
        let balloon = Balloon::new(target, ram, irq).expect("a balloon");
        let device = balloon.device().clone();
        *made.borrow_mut() = Some(balloon);
        device
    });
    rig.start(features, &[64; 5]);
    (rig, made.take().unwrap())
}

/// Pages with contents from `DATA` on, the middle half of which are on a device.
fn fill(rig: &Rig, count: u64) {
    for page in DATA..DATA + count {
        rig.put(at(page), &[page as u8 | 1; 4096]);
    }
    rig.to_device(DATA + count / 4..DATA + count * 3 / 4);
    assert!(rig.driver.live() > 0);
}

fn resident(rig: &Rig, count: u64) -> u64 {
    let range = pages(DATA as u32..(DATA + count) as u32);
    rig.backend.resident_bytes(range).unwrap()
}

/// The pages have gone: from the host, from the device, from the guest's eyes.
fn expect_gone(rig: &Rig, count: u64) {
    assert_eq!(rig.driver.live(), 0, "page_free for all of them");
    rig.driver.assert_clean();
    assert_eq!(resident(rig, count), 0);
    for page in DATA..DATA + count {
        let word = rig.backend.word(Page(page as u32)).unwrap();
        assert_eq!(word.residency(), Residency::Untouched, "page {page}");
    }
    for page in DATA..DATA + count {
        assert_eq!(rig.get(at(page), 4096), [0; 4096], "page {page}");
    }
}

fn numbers(rig: &Rig, pages: impl IntoIterator<Item = u64>) -> Descriptor {
    let bytes: Vec<u8> = pages
        .into_iter()
        .flat_map(|page| ((at(page) / PAGE_SIZE) as u32).to_le_bytes())
        .collect();
    rig.put(at(REQUEST), &bytes);
    (at(REQUEST), bytes.len() as u32, 0)
}

#[test]
fn inflation_gives_pages_back() {
    both_engines("balloon", |engine| {
        let (mut rig, balloon) = rig(engine, 1 << 20, FEATURES);
        assert_eq!((balloon.target(), balloon.actual()), (1 << 20, 0));
        assert_eq!(rig.read(CONFIG), 256);
        fill(&rig, 256);
        // In system memory: half of the pages. What the device has is elsewhere.
        assert_eq!(resident(&rig, 256), 128 * PAGE_SIZE);
        let frees = rig.backend.stats().page_free_calls;
        // In any order, and one of them twice.
        let order = (0..256).map(|i| DATA + i * 77 % 256);
        let request = numbers(&rig, order.chain([DATA + 3]));
        assert_eq!(rig.run(INFLATE, &[request]), 0);
        expect_gone(&rig, 256);
        assert!(rig.backend.stats().page_free_calls > frees);
        let inflated = BalloonFigures {
            inflated: 256,
            ..BalloonFigures::default()
        };
        assert_eq!(balloon.figures(), inflated);

        rig.write(CONFIG + 4, 256);
        assert_eq!(balloon.actual(), 1 << 20);
        // The driver cannot write what is not its own.
        rig.write(CONFIG, 7);
        assert_eq!(balloon.target(), 1 << 20);

        let request = numbers(&rig, DATA..DATA + 256);
        assert_eq!(rig.run(DEFLATE, &[request]), 0);
        rig.put(at(DATA), &[3; 4096]);
        assert_eq!(rig.get(at(DATA), 4096), [3; 4096]);
        rig.finish();
    });
}

#[test]
fn the_target_changes_while_the_guest_runs() {
    let (mut rig, balloon) = rig(Engine::Remap, 0, FEATURES);
    let (interrupts, generation) = (rig.interrupts(), rig.read(CONFIG_GENERATION));
    balloon.set_target(5 << 12).unwrap();
    rig.wait_for_interrupt(interrupts);
    assert_eq!(rig.read(INTERRUPT_STATUS), 2);
    assert_eq!(rig.read(CONFIG), 5);
    assert_ne!(rig.read(CONFIG_GENERATION), generation);
    let memory = u64::from(PAGES) * PAGE_SIZE;
    balloon.set_target(memory).unwrap();
    let error = balloon.set_target(memory + 1).unwrap_err();
    assert!(error.to_string().contains("the guest has only"));
    // A new driver gives back as much.
    rig.write(CONFIG + 4, 3);
    rig.start(FEATURES, &[64; 5]);
    assert_eq!((balloon.target(), balloon.actual()), (memory, 0));
    // When it has had its first answer, what the one before said is forgotten.
    let request = numbers(&rig, [DATA]);
    assert_eq!(rig.run(DEFLATE, &[request]), 0);
    assert_eq!(balloon.last_actual(), 0);
    // What an operating system had given back when it was shut down.
    rig.write(CONFIG + 4, 3);
    rig.write(STATUS, 0);
    rig.write(STATUS, 0);
    assert_eq!((balloon.actual(), balloon.last_actual()), (0, 3 << 12));
    rig.finish();
}

#[test]
fn reported_pages_are_given_back() {
    both_engines("balloon", |engine| {
        let (mut rig, balloon) = rig(engine, 0, FEATURES);
        fill(&rig, 1024);
        let before = resident(&rig, 1024);
        assert_eq!(before, 512 * PAGE_SIZE);
        let piece = |index: u64| (at(DATA + 256 * index), 256 * PAGE_SIZE as u32, WRITE);
        assert_eq!(
            rig.run(REPORTING, &[piece(3), piece(0), piece(1), piece(2)]),
            0
        );
        assert_eq!(balloon.figures().reported, 1024);
        expect_gone(&rig, 1024);

        // Only whole pages.
        rig.put(at(DATA), &[8; 3 * 4096]);
        rig.run(REPORTING, &[(at(DATA) + 1, 2 * 4096, WRITE)]);
        assert_eq!(rig.get(at(DATA), 4096), [8; 4096]);
        assert_eq!(rig.get(at(DATA + 1), 4096), [0; 4096]);
        assert_eq!(rig.get(at(DATA + 2), 4096), [8; 4096]);
        rig.finish();
    });
}

/// A guest that looks for a pattern in its free pages must find it; one that wants zeros there may get them.
#[test]
fn poisoned_pages_are_left_alone() {
    both_engines("balloon", |engine| {
        let (mut rig, balloon) = rig(engine, 0, FEATURES | POISON);
        rig.write(CONFIG + 12, 0xaaaa_aaaa);
        fill(&rig, 8);
        let report = [(at(DATA), 8 * 4096, WRITE)];
        rig.run(REPORTING, &report);
        assert_eq!(balloon.figures(), BalloonFigures::default());
        for page in DATA..DATA + 8 {
            assert_eq!(rig.get(at(page), 4096), [page as u8 | 1; 4096]);
        }
        rig.write(CONFIG + 12, 0);
        rig.run(REPORTING, &report);
        expect_gone(&rig, 8);
        rig.finish();
    });
}

fn command(rig: &mut Rig, command: u32) {
    rig.put(at(REQUEST), &command.to_le_bytes());
    rig.run(HINTING, &[(at(REQUEST), 4, 0)]);
}

#[test]
fn hinted_pages_are_given_back_in_their_round_only() {
    both_engines("balloon", |engine| {
        let (mut rig, balloon) = rig(engine, 0, FEATURES);
        let hint = [(at(DATA), 64 * 4096, WRITE)];
        fill(&rig, 64);
        // No statistics were requested.
        rig.run(HINTING, &hint);
        command(&mut rig, 77);
        rig.run(HINTING, &hint);
        assert_eq!(balloon.figures().hinted, 0);
        assert_eq!(balloon.hinting(), Hinting::Off);

        let interrupts = rig.interrupts();
        balloon.start_hinting();
        rig.wait_for_interrupt(interrupts);
        assert_eq!(balloon.hinting(), Hinting::Asked);
        let round = rig.read(CONFIG + 8);
        assert!(round > DONE);
        // Not yet, as the driver has not said which round this is of.
        rig.run(HINTING, &hint);
        assert_eq!(balloon.figures().hinted, 0);
        command(&mut rig, round);
        assert_eq!(balloon.hinting(), Hinting::Running);
        rig.run(HINTING, &hint);
        assert_eq!(balloon.figures().hinted, 64);
        expect_gone(&rig, 64);
        command(&mut rig, STOP);
        assert_eq!(balloon.hinting(), Hinting::Done);
        assert_eq!(rig.read(CONFIG + 8), DONE);

        // What comes late is in use again.
        fill(&rig, 64);
        rig.run(HINTING, &hint);
        command(&mut rig, round);
        rig.run(HINTING, &hint);
        assert_eq!(rig.get(at(DATA), 4096), [DATA as u8 | 1; 4096]);

        // Another round, stopped in the middle.
        balloon.start_hinting();
        let next = rig.read(CONFIG + 8);
        assert!(next > DONE && next != round);
        command(&mut rig, next);
        balloon.stop_hinting();
        assert_eq!(rig.read(CONFIG + 8), STOP);
        rig.run(HINTING, &hint);
        assert_eq!(rig.get(at(DATA), 4096), [DATA as u8 | 1; 4096]);
        command(&mut rig, STOP);
        assert_eq!(
            (rig.read(CONFIG + 8), balloon.hinting()),
            (DONE, Hinting::Off)
        );
        rig.finish();
    });
}

/// When the doorbell has rung, hints have been taken: the driver may have its pages back from then on.
#[test]
fn hints_are_taken_while_the_doorbell_rings() {
    both_engines("balloon", |engine| {
        let (mut rig, balloon) = rig(engine, 0, FEATURES);
        balloon.start_hinting();
        let round = rig.read(CONFIG + 8);
        command(&mut rig, round);
        for turn in 0..50 {
            let page = DATA + turn % 16 * 16;
            rig.put(at(page), &[1; 4096]);
            rig.add(HINTING, &[(at(page), 16 * 4096, WRITE)]);
            rig.kick(HINTING);
            rig.put(at(page), &[turn as u8 + 2; 4096]);
            rig.take(HINTING);
            assert_eq!(rig.get(at(page), 4096), [turn as u8 + 2; 4096]);
        }
        // The device has not asked not to be rung for.
        assert_eq!(
            rig.half(Rig::rings(HINTING)[2])
                .load(std::sync::atomic::Ordering::SeqCst),
            0
        );
        assert!(balloon.figures().hinted >= 50);
        rig.finish();
    });
}

#[test]
fn statistics_come_when_asked_for() {
    let (mut rig, balloon) = rig(Engine::Remap, 0, FEATURES);
    assert_eq!(balloon.statistics(), None);
    // Before there is a buffer.
    balloon.request_statistics();
    let send = |rig: &mut Rig, free: u64| {
        let mut bytes = Vec::new();
        for (tag, value) in [(4u16, free), (5, 1 << 30)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        rig.put(at(REQUEST), &bytes);
        let head = rig.add(STATISTICS, &[(at(REQUEST), bytes.len() as u32, 0)]);
        rig.kick(STATISTICS);
        head
    };
    let expected = |free| Statistics {
        free: Some(free),
        total: Some(1 << 30),
        ..Statistics::default()
    };
    // The request from before gets the first buffer back at once.
    let head = send(&mut rig, 1000);
    assert_eq!(rig.take(STATISTICS), (head, 0));
    assert_eq!(balloon.statistics(), Some((1, expected(1000))));
    for round in 2..6 {
        let head = send(&mut rig, round);
        let seen = rig.used(STATISTICS);
        // The device keeps the buffer until statistics are requested.
        while balloon.statistics().unwrap().0 != round {
            std::thread::yield_now();
        }
        assert_eq!(rig.used(STATISTICS), seen);
        assert_eq!(balloon.statistics(), Some((round, expected(round))));
        balloon.request_statistics();
        assert_eq!(rig.take(STATISTICS), (head, 0));
    }
    // A buffer that is kept is forgotten with a reset.
    send(&mut rig, 1);
    rig.start(FEATURES, &[64; 5]);
    balloon.request_statistics();
    let head = send(&mut rig, 2);
    assert_eq!(rig.take(STATISTICS), (head, 0));
    rig.finish();
}

/// A balloon without the queues that only features bring.
#[test]
fn a_simple_driver_uses_two_queues() {
    let (mut rig, _) = rig(Engine::Copy, 0, VERSION_1);
    rig.start(VERSION_1, &[64, 64]);
    rig.put(at(DATA), &[1; 4096]);
    let request = numbers(&rig, [DATA]);
    rig.run(INFLATE, &[request]);
    assert_eq!(rig.get(at(DATA), 4096), [0; 4096]);
    rig.finish();
}
