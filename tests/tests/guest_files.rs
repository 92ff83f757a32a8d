//! Guests from files: segments in managed memory, code that migrates under the vCPU that runs it, and guests that do
//! what they must not.

use std::sync::atomic::Ordering::SeqCst;

use hmm_backend::engine::{Engine, EngineChoice};
use hmm_backend::pages::Page;
use hmm_backend::residency::Residency;
use hmmvisor::size::Size;
use hmmvisor::{Config, End, Failure, Options};
use hmmvisor_abi::{accel, control, map};
use hmmvisor_testkit::machine::{address, both_engines, guest};
use hmmvisor_testkit::{Asm, Output, Random, Reg, Segment, Setup, elf, pages};

/// Runs a file as `hmmvisor run --guest` does, on a machine with 2 MiB of managed memory.
fn run_file(file: &[u8], engine: Engine) -> End {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest");
    std::fs::write(&path, file).unwrap();
    let mut config = Config {
        guest: Some(path),
        ..Config::default()
    };
    config.machine.memory = Size(2 << 20);
    config.devices.memory = Size(64 << 10);
    config.engine.kind = EngineChoice::Only(engine);
    let options = Options {
        console: Box::new(Output::default()),
        ..Options::default()
    };
    hmmvisor::run(&config, options).unwrap().end.unwrap()
}

#[test]
fn segments_in_managed_memory_are_loaded_as_they_are() {
    both_engines("a guest in managed memory", |engine| {
        // Everything in managed memory: the code in the last page, data that begins in the middle of a page and
        // spans several, zeros behind it.
        let mut random = Random(11);
        let data: Vec<u64> = (0..1500).map(|_| random.number()).collect();
        let (start, code_at) = (address(3) + 1000, address(511));
        let code = Asm::new()
            .set(Reg::Rdx, 0)
            .set(Reg::Rsi, 0)
            .set(Reg::Rdi, start)
            .set(Reg::Rcx, data.len() as u64);
        let word = code.here();
        let code = code
            .load(Reg::Rax, Reg::Rdi)
            .add(Reg::Rdx, Reg::Rax)
            .add_value(Reg::Rdi, 8)
            .repeat(Reg::Rcx, word)
            .set(Reg::Rcx, 1000);
        let zero = code.here();
        let code = code
            .or_load(Reg::Rsi, Reg::Rdi)
            .add_value(Reg::Rdi, 8)
            .repeat(Reg::Rcx, zero)
            .add(Reg::Rdx, Reg::Rsi)
            .exit(Reg::Rdx);
        let bytes: Vec<u8> = data.iter().flat_map(|word| word.to_le_bytes()).collect();
        let segment = Segment {
            size: bytes.len() as u64 + 8000,
            ..Segment::new(start, bytes)
        };
        let file = elf(code_at, &[segment, Segment::new(code_at, code.bytes())]);
        let sum = data
            .iter()
            .fold(0, |sum: u64, word| sum.wrapping_add(*word));
        assert_eq!(run_file(&file, engine), End::Exit(sum as u32));
    });
}

#[test]
fn code_runs_on_while_its_page_migrates() {
    both_engines("code that migrates", |engine| {
        const FLAG: u32 = 8;
        // Both vCPUs count, until the host says stop. The exit code is the sum of two registers of which one counts
        // up and one down: 0 as long as every instruction is what was loaded.
        let code = Asm::new()
            .set(Reg::Rbx, address(FLAG))
            .set(Reg::Rdi, address(FLAG) + 8)
            .set(Reg::Rdx, 0)
            .set(Reg::Rsi, 0);
        let turn = code.here();
        let code = code
            .add_value(Reg::Rdx, 1)
            .set(Reg::Rcx, 1)
            .atomic_add(Reg::Rdi, Reg::Rcx)
            .add_value(Reg::Rsi, -1)
            .load(Reg::Rcx, Reg::Rbx)
            .compare(Reg::Rcx, 0)
            .jump_if_equal(turn)
            .add(Reg::Rdx, Reg::Rsi)
            .exit(Reg::Rdx);
        let entry = address(0);
        let mut machine = Setup {
            engine,
            guest: Some(elf(entry, &[Segment::new(entry, code.bytes())])),
            ..Setup::default()
        }
        .start();
        let device = machine.vm.accelerators()[0].device_id();
        let mut away = 0;
        while away < 200 {
            assert!(machine.runs(), "{:?}", machine.vm.ending().get());
            // Progress first: the code has come back from where it was sent.
            let count = machine.word(FLAG, 1).load(SeqCst);
            while machine.word(FLAG, 1).load(SeqCst) == count {
                assert!(machine.runs(), "{:?}", machine.vm.ending().get());
                std::thread::yield_now();
            }
            away += machine
                .backend
                .migrate_to_device(device, pages(0..1))
                .unwrap();
        }
        machine.word(FLAG, 0).store(1, SeqCst);
        assert_eq!(machine.finish(), End::Exit(0));
        assert!(machine.backend.stats().pages_to_system() >= away);
        let word = machine.backend.word(Page(0)).unwrap();
        assert_eq!(word.residency(), Residency::System);
    });
}

#[test]
fn accesses_outside_of_memory_are_reported() {
    let end = address(512);
    let holes = [
        0,
        0xff8,
        map::FIRMWARE_BASE,
        map::BOOT_RAM_SIZE,
        map::CONTROL - 8,
        end,
        end + (1 << 30),
        1 << 46,
    ];
    both_engines("accesses outside", |engine| {
        for hole in holes {
            for write in [false, true] {
                let code = Asm::new().set(Reg::Rdi, hole);
                let at = code.here() as u64;
                let code = match write {
                    false => code.load(Reg::Rdx, Reg::Rdi),
                    true => code.store(Reg::Rdi, Reg::Rdx),
                };
                // Exits with 0 if nothing happens.
                let file = guest(code.set(Reg::Rdx, 0).exit(Reg::Rdx)).unwrap();
                match run_file(&file, engine) {
                    End::Failed(Failure::Exception {
                        vcpu: 0,
                        vector: 14,
                        error_code,
                        rip,
                        cr2,
                        ..
                    }) => {
                        assert_eq!((rip, cr2), (map::IMAGE_BASE + at, hole));
                        assert_eq!(error_code & 0b110, if write { 0b110 } else { 0b100 });
                    }
                    other => panic!("{hole:#x}: {other:?}"),
                }
            }
        }
        // The last word of managed memory is inside.
        let code = Asm::new()
            .set(Reg::Rdi, end - 8)
            .load(Reg::Rdx, Reg::Rdi)
            .exit(Reg::Rdx);
        assert_eq!(run_file(&guest(code).unwrap(), engine), End::Exit(0));
    });
}

/// How the guest of [`nonsense`] accesses a register.
const KINDS: u64 = 7;

/// Entries of three words: address, value, kind. The guest does what they say and exits with 0.
fn nonsense(table: &[[u64; 3]]) -> Vec<u8> {
    const TABLE: u64 = map::IMAGE_BASE + 0x1000;
    // rbx: entry, rdi: address, rax: value, rcx: kind, rsi: how many entries are left.
    let code = Asm::new()
        .set(Reg::Rbx, TABLE)
        .set(Reg::Rsi, table.len() as u64);
    let entry = code.here();
    let mut code = code
        .load(Reg::Rdi, Reg::Rbx)
        .add_value(Reg::Rbx, 8)
        .load(Reg::Rax, Reg::Rbx)
        .add_value(Reg::Rbx, 8)
        .load(Reg::Rcx, Reg::Rbx)
        .add_value(Reg::Rbx, 8);
    let access: [&[u8]; KINDS as usize] = [
        &[0x88, 0x07],       // mov [rdi], al
        &[0x66, 0x89, 0x07], // mov [rdi], ax
        &[0x89, 0x07],       // mov [rdi], eax
        &[0x48, 0x89, 0x07], // mov [rdi], rax
        &[0x48, 0x8b, 0x07], // mov rax, [rdi]
        &[0x8b, 0x07],       // mov eax, [rdi]
        &[0x0f, 0xb6, 0x07], // movzx eax, byte [rdi]
    ];
    for (kind, bytes) in access.into_iter().enumerate() {
        // Over the access unless it is this kind's.
        code = code
            .compare(Reg::Rcx, kind as i32)
            .raw(&[0x75, bytes.len() as u8])
            .raw(bytes);
    }
    let code = code
        .repeat(Reg::Rsi, entry)
        .set(Reg::Rdx, 0)
        .exit(Reg::Rdx)
        .bytes();
    assert!(code.len() < 0x1000);
    let words: Vec<u8> = table
        .iter()
        .flatten()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    elf(
        map::IMAGE_BASE,
        &[
            Segment::new(map::IMAGE_BASE, code),
            Segment::new(TABLE, words),
        ],
    )
}

/// Pseudo-random accesses, most of them to things that exist and with values that mean something.
fn random_table(seed: u64, entries: usize, managed: u64) -> Vec<[u64; 3]> {
    let mut random = Random(seed);
    let queue = map::MANAGED + 4096 * 4;
    // Registers of an accelerator, each with values that mean something to it.
    let registers: [(u64, &[u64]); 8] = [
        (
            accel::REG_QUEUE_BASE,
            &[queue, queue, map::MANAGED, map::MANAGED + managed - 4096],
        ),
        (accel::REG_QUEUE_ENTRIES, &[1, 4, 64, 1024]),
        (accel::REG_IRQ, &[0, 1, 2]),
        (accel::REG_ENABLE, &[0, 1, 1, 1]),
        (accel::REG_DOORBELL, &[0]),
        (accel::REG_COMPLETED, &[0]),
        (accel::REG_WAIT, &[0, 1, u64::MAX]),
        (accel::REG_ERROR, &[0]),
    ];
    let mut table = Vec::new();
    while table.len() < entries {
        let (address, sense): (u64, &[u64]) = match random.below(10) {
            0 => (map::CONTROL + random.below(0x1000), &[0, 1]),
            1 => (map::SERIAL + random.below(0x1000), &[0]),
            // Also behind the accelerators that there are.
            2 => (
                map::ACCEL + random.below(map::ACCEL_STRIDE * map::MAX_ACCELS),
                &[0, 1],
            ),
            // How many commands there are, and the commands: opcodes and arguments as they come.
            3 => (queue, &[1, 2, 3, 4]),
            4 => (queue + 64 + 64 * random.below(4), &[0, 1, 5, 12, 13, 14]),
            5 => (queue + 8 * random.below(40), &[queue, map::MANAGED, 4096]),
            _ => {
                let (register, sense) = random.pick(&registers);
                (
                    map::ACCEL + map::ACCEL_STRIDE * random.below(2) + register,
                    sense,
                )
            }
        };
        let value = match random.below(4) {
            0 => random.number() >> random.below(64),
            _ => random.pick(sense),
        };
        // Only these two would end the run, by any access that covers their first byte.
        let (first, last) = (address.saturating_sub(7), address);
        let ends = |register| (first..=last).contains(&(map::CONTROL + register));
        if !ends(control::EXIT) && !ends(control::PARK) {
            table.push([address, value, random.below(KINDS)]);
        }
    }
    table
}

#[test]
fn nonsense_in_registers_harms_nobody() {
    both_engines("nonsense in registers", |engine| {
        for seed in 0..3 {
            let pages = 1024;
            let mut machine = Setup {
                engine,
                pages,
                vcpus: 1,
                devices: 2,
                guest: Some(nonsense(&random_table(seed, 4000, u64::from(pages) * 4096))),
                ..Setup::default()
            }
            .start();
            assert_eq!(machine.finish(), End::Exit(0), "seed {seed}");
            let commands = machine
                .vm
                .accelerators()
                .iter()
                .map(|one| one.stats().commands);
            assert!(
                commands.sum::<u64>() > 0,
                "no command was ever executed: the test is void"
            );
            for accelerator in machine.vm.accelerators() {
                assert_eq!(accelerator.stats().contract_violations, 0);
            }
        }
    });
}
