//! CPUs, devices, requests and pins use the same duplicates at the same time.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use crate::common::{Device, Rig, both_engines};
use crate::{POLICY, read_mostly};

/// CPUs and two devices read and write the same few pages, with so little device memory that pages are evicted
/// all the time, while another thread requests migrations and pins. Each thread adds to a word of its own and
/// checks that no word ever decreases: it would if a thread read one copy after another thread had written the
/// other.
#[test]
fn nobody_reads_an_old_copy() {
    const PAGES: u32 = 6;
    const WORDS: usize = 5;
    both_engines(|engine| {
        let rig = Rig::with(512, engine, POLICY, |_| {}, 2);
        read_mostly(&rig, 0..512);
        let (mut one, mut two) = (rig.device(4), rig.device(4));
        let stop = AtomicBool::new(false);
        let rounds = 400u32;
        // Mostly reads, and a few writes; the writing thread, the time and the page differ from round to round.
        let is_write = |round: u32| round % 7 == 3;
        let page_of = |round: u32, who: u32| (round / 5 * 7 + round + who * 3) % PAGES;
        let check =
            |seen: &mut [[u64; WORDS]; PAGES as usize], page: u32, word: usize, now: u64| {
                let before = std::mem::replace(&mut seen[page as usize][word], now);
                assert!(
                    before <= now,
                    "page {page}, word {word}: {now} after {before}"
                );
            };
        let added = std::thread::scope(|scope| {
            let cpu = |who: u32| {
                let (rig, stop) = (&rig, &stop);
                move || {
                    let mut seen = [[0; WORDS]; PAGES as usize];
                    let mut added = 0;
                    for round in 0.. {
                        if stop.load(SeqCst) && round >= rounds {
                            break;
                        }
                        let page = page_of(round, who);
                        if is_write(round) {
                            let before = rig.cpu(page, who as usize).fetch_add(1, SeqCst);
                            check(&mut seen, page, who as usize, before);
                            added += 1;
                        }
                        for word in 0..WORDS {
                            check(&mut seen, page, word, rig.cpu(page, word).load(SeqCst));
                        }
                    }
                    added
                }
            };
            let accelerator = move |who: u32, device: &mut Device| {
                let mut seen = [[0; WORDS]; PAGES as usize];
                let mut added = 0u64;
                for round in 0..rounds {
                    let page = page_of(round, who);
                    if is_write(round) {
                        let before = device.add(page, who as usize, 1).unwrap();
                        check(&mut seen, page, who as usize, before);
                        added += 1;
                    }
                    for word in 0..WORDS {
                        check(&mut seen, page, word, device.read(page, word).unwrap());
                    }
                }
                added
            };
            let (one, two) = (&mut one, &mut two);
            let cpus = [scope.spawn(cpu(0)), scope.spawn(cpu(1))];
            let devices = [
                scope.spawn(move || accelerator(2, one)),
                scope.spawn(move || accelerator(3, two)),
            ];
            let others = scope.spawn(|| {
                let mut added = 0u64;
                for round in 0u32.. {
                    if stop.load(SeqCst) {
                        break;
                    }
                    let page = round % PAGES;
                    let range = rig.range(page..page + 1);
                    match round % 4 {
                        0 => drop(rig.backend.migrate_to_system(range).unwrap()),
                        1 => {
                            let pinned = rig.backend.pin(range).unwrap();
                            rig.cpu(page, 4).fetch_add(1, SeqCst);
                            added += 1;
                            drop(pinned);
                        }
                        _ => std::thread::yield_now(),
                    }
                }
                added
            });
            let sums = devices.map(|device| device.join());
            // The CPU threads and the requesting thread must end also when a device thread has panicked.
            stop.store(true, SeqCst);
            let mut sum: u64 = sums.into_iter().map(Result::unwrap).sum();
            sum += cpus.into_iter().map(|c| c.join().unwrap()).sum::<u64>();
            sum + others.join().unwrap()
        });
        let cells = (0..PAGES).flat_map(|page| (0..WORDS).map(move |word| (page, word)));
        let found: u64 = cells.map(|(p, w)| rig.cpu(p, w).load(SeqCst)).sum();
        assert_eq!(found, added, "additions are lost");
        let stats = rig.backend.stats();
        assert!(stats.counters.duplicated > 0 && stats.counters.collapsed > 0);
        assert!(stats.counters.collapsed <= stats.counters.duplicated);
        for device in [&one, &two] {
            rig.backend.detach(device.id).unwrap();
            assert_eq!(device.driver.live(), 0);
            device.driver.assert_clean();
        }
        assert!(rig.fatal.lock().unwrap().is_empty());
    });
}
