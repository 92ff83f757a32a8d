//! Pages that cannot be supplied, as guests see them: an error of the access, with the page's address, and nothing else.

use std::fs;
use std::sync::atomic::Ordering::SeqCst;

use hmm_backend::driver::FaultError;
use hmm_backend::engine::Engine;
use hmm_backend::pages::{PAGE_SIZE, Page};
use hmmvisor::{End, Failure, OnMemoryError};
use hmmvisor_abi::{control, map, memory_error};
use hmmvisor_testkit::machine::{address, both_engines, guest};
use hmmvisor_testkit::{Asm, GuestError, Machine, Random, Reg, Setup, TestVm, each_engine, pages};

/// Pages of managed memory, and how many of them `recover` reads: the last ones.
const PAGES: u32 = 4096;
const READ: u32 = 64;
const FIRST: u32 = PAGES - READ;

/// The value that the host has written to the first word of each page.
fn contents(page: u32) -> u64 {
    u64::from(page) << 32 | 1
}

/// A guest that reads these pages, of which all are written and none is lost yet.
fn reader(engine: Engine, vcpus: u32, params: &str) -> Machine {
    let machine = Setup {
        engine,
        vcpus,
        pages: PAGES,
        // One thread gets the faults of several vCPUs on one page at once.
        service_threads: 1,
        workload: format!("recover pages={READ} {params}"),
        ..Setup::default()
    }
    .build();
    for page in FIRST..PAGES {
        machine.word(page, 0).store(contents(page), SeqCst);
    }
    machine
}

/// The first word of a page, when the machine does not run any more.
fn first_word(machine: &Machine, page: u32) -> u64 {
    let pinned = machine.backend.pin(pages(page..page + 1)).unwrap();
    // SAFETY: the page is pinned: present as long as the guard lives; no thread writes it.
    unsafe { pinned.host().cast::<u64>().read_volatile() }
}

/// Every page that was not lost is as it was, the others are as the guest left them: new and used.
fn check(machine: &Machine, lost: &[u32]) {
    for page in FIRST..PAGES {
        let expected = if lost.contains(&page) {
            11
        } else {
            contents(page)
        };
        assert_eq!(first_word(machine, page), expected, "page {page}");
    }
}

#[test]
fn each_vcpu_gets_the_error_of_a_lost_page_and_no_other() {
    both_engines("a guest with lost pages", |engine| {
        for vcpus in [1, 4] {
            let mut machine = reader(engine, vcpus, "lost=3 reason=1 rounds=10");
            let (device, driver) = machine.attach(64);
            let folio = FIRST + 16..FIRST + 32;
            let moved = machine.backend.migrate_to_device(device, pages(folio));
            assert_eq!(moved.unwrap(), 16);
            // In the middle of a folio of the device, at its end, and in system memory.
            let lost = [FIRST + 21, FIRST + 31, FIRST + 40];
            for page in lost {
                machine.backend.memory_failure(Page(page)).unwrap();
            }
            machine.vm.start().unwrap();
            machine.expect_verified();
            check(&machine, &lost);
            driver.assert_clean();
        }
    });
}

#[test]
fn a_driver_that_fails_is_an_error_with_its_own_reason() {
    both_engines("a guest with a broken device", |engine| {
        let mut machine = reader(engine, 2, "lost=2 reason=2 rounds=3");
        let (device, driver) = machine.attach(64);
        for page in [FIRST, PAGES - 1] {
            let moved = machine
                .backend
                .migrate_to_device(device, pages(page..page + 1));
            assert_eq!(moved.unwrap(), 1);
        }
        driver.refuse(|_| Some(FaultError::Fatal("broken down".into())));
        machine.vm.start().unwrap();
        machine.expect_verified();
        check(&machine, &[FIRST, PAGES - 1]);
        assert!(driver.refused() > 0);
        assert_eq!(driver.live(), 0, "freed pages are still the device's");
        driver.assert_clean();
    });
}

/// Interrupts all threads of this process that run vCPUs, of whatever machine.
fn kick_vcpus() {
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap();
        let thread: i32 = task.file_name().to_str().unwrap().parse().unwrap();
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.starts_with("vcpu") {
            // SAFETY: takes integers; the signal has a handler, which does nothing, since a vCPU has started.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGRTMIN()) };
        }
    }
}

#[test]
fn kicks_and_migrations_make_up_no_errors_and_lose_none() {
    both_engines("a guest with lost pages on the move", |engine| {
        let mut machine = reader(engine, 3, "lost=4 reason=1 rounds=60");
        let (device, driver) = machine.attach(64);
        let lost = [FIRST + 1, FIRST + 2, FIRST + 33, FIRST + 62];
        for page in lost {
            machine.backend.memory_failure(Page(page)).unwrap();
        }
        machine.vm.start().unwrap();
        let mut random = Random(7);
        let mut moved = 0;
        while machine.runs() {
            let start = FIRST + random.below(READ.into()) as u32;
            let range = pages(start..PAGES.min(start + 8));
            moved += machine.backend.migrate_to_device(device, range).unwrap();
            kick_vcpus();
        }
        machine.expect_verified();
        assert!(moved > 0, "nothing was on the move: the test is void");
        check(&machine, &lost);
        driver.assert_clean();
    });
}

/// The end of a run whose vCPU 1 executes this code with `rdi` at lost page 5.
fn end_of(engine: Engine, on_memory_error: OnMemoryError, code: impl Fn(Asm) -> Asm) -> End {
    let start = Asm::new().only_vcpu(1).set(Reg::Rdi, address(5));
    let mut machine = Setup {
        engine,
        on_memory_error,
        guest: guest(code(start)),
        ..Setup::default()
    }
    .build();
    machine.backend.memory_failure(Page(5)).unwrap();
    machine.vm.start().unwrap();
    machine.finish()
}

fn page_5_was_lost() -> End {
    End::Failed(Failure::Page {
        page: 5,
        address: map::MANAGED + 5 * 4096,
        vcpu: Some(1),
        cause: "its contents were lost".into(),
    })
}

#[test]
fn a_guest_that_does_not_recover_ends_with_the_pages_name() {
    both_engines("a guest without recovery", |engine| {
        for choice in [OnMemoryError::MachineCheck, OnMemoryError::End] {
            let end = end_of(engine, choice, |code| {
                code.load(Reg::Rdx, Reg::Rdi).exit(Reg::Rdx)
            });
            assert_eq!(end, page_5_was_lost(), "{choice}");
        }
    });
}

#[test]
fn an_access_that_kvm_emulates_ends_the_run() {
    both_engines("a guest that copies from a device", |engine| {
        let end = end_of(engine, OnMemoryError::MachineCheck, |code| {
            // Recovery does not help.
            code.set(Reg::Rax, map::memory_error(1))
                .set(Reg::Rdx, map::IMAGE_BASE)
                .store(Reg::Rax, Reg::Rdx)
                .set(Reg::Rsi, map::CONTROL + control::TIME_NS)
                // movsq
                .raw(&[0x48, 0xa5])
                .exit(Reg::Rdx)
        });
        assert_eq!(end, page_5_was_lost());
    });
}

#[test]
fn the_firmware_tells_what_happened() {
    both_engines("a guest of a few instructions", |engine| {
        let slot = map::memory_error(1);
        let end = |offset: u64| {
            // At the beginning of managed memory.
            let recovery = Asm::new()
                .set(Reg::Rcx, slot + offset)
                .load(Reg::Rdx, Reg::Rcx)
                .exit(Reg::Rdx);
            let main = Asm::new()
                .only_vcpu(1)
                .set(Reg::Rax, slot)
                .set(Reg::Rdx, map::MANAGED)
                .store(Reg::Rax, Reg::Rdx)
                .set(Reg::Rdi, address(5) + 8)
                .load(Reg::Rdx, Reg::Rdi)
                .exit(Reg::Rdi);
            let mut machine = Setup {
                engine,
                guest: guest(main),
                ..Setup::default()
            }
            .build();
            let code = recovery.bytes();
            let pinned = machine.backend.pin(pages(0..1)).unwrap();
            // SAFETY: the page is pinned and larger than the code; no vCPU runs yet.
            unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), pinned.host(), code.len()) };
            drop(pinned);
            machine.backend.memory_failure(Page(5)).unwrap();
            machine.vm.start().unwrap();
            machine.finish()
        };
        assert_eq!(end(16), End::Exit(memory_error::REASON_LOST as u32));
        // The lower half; the exit register takes no more.
        assert_eq!(end(8), End::Exit((5 * PAGE_SIZE) as u32));
        assert_eq!(end(12), End::Exit((map::MANAGED >> 32) as u32));
        assert_eq!(end(0), End::Exit(0), "the recovery address is used once");
    });
}

#[test]
fn a_write_to_a_read_only_page_is_an_error_and_reads_go_on() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = TestVm::builder()
            .engine(engine)
            .vcpus(2)
            .scripted(16)
            .start();
        let (writer, reader) = (vm.vcpu(0), vm.vcpu(1));
        let (untouched, system, on_device) = (3, 4, 5);
        writer.write(system, 40).wait()?;
        writer.write(on_device, 50).wait()?;
        vm.to_device(0, on_device);
        for (page, value) in [(untouched, 0), (system, 40), (on_device, 50)] {
            writer.set_read_only(page).wait()?;
            for _ in 0..20 {
                let read = reader.read(page);
                let written = writer.write(page, 1).wait();
                assert_eq!(written, Err(GuestError::Permission { page }));
                assert_eq!(read.wait(), Ok(value));
            }
            writer.set_writable(page).wait()?;
            writer.fetch_add(page, 1).wait()?;
            assert_eq!(reader.read(page).wait(), Ok(value + 1));
        }
        assert_eq!(vm.ended(), None);
        Ok(())
    })
}
