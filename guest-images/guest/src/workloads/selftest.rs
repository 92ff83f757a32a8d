//! Gives the accelerators nonsense: everything must be refused as documented, and the device must work
//! afterwards.

use super::{Count, report};
use crate::accel::{Accel, ENTRIES};
use crate::command::{command, copy, fill, reduce};
use crate::control;
use crate::cpu::Cpu;
use crate::devices;
use crate::memory::{PAGE, PAGE_WORDS, Words, alloc};
use crate::pattern::Pattern;
use crate::verify;
use hmmvisor_abi::accel::*;
use hmmvisor_abi::map;

/// An index that is out of range everywhere here.
const BAD_INDEX: u64 = 1 << 30;

pub fn run(cpu: &Cpu) {
    if cpu.is_leader() {
        let area = alloc("the test area", 4 * PAGE_WORDS);
        let memory_end = cpu.boot.memory_base + cpu.boot.memory_size;
        for device in 0..cpu.devices() {
            devices::with(device, |accel| {
                commands(accel, area, memory_end);
                works(accel, area);
                registers(accel, cpu, memory_end);
                works(accel, area);
                overrun(accel);
                works(accel, area);
            });
            cpu.progress(device + 1, cpu.devices());
        }
    }
    report!(
        cpu,
        "{} refused nonsense and worked afterwards",
        Count(cpu.devices(), "accelerator")
    );
}

/// Commands that must fail, each with one of the given statuses.
fn commands(accel: &mut Accel, area: Words, memory_end: u64) {
    let at = area.address();
    let len = area.len();
    let mut refuses = |what: &str, command: Command, statuses: &[u32], address: Option<u64>| {
        let completion = accel.try_run(command);
        if !statuses.contains(&completion.status) {
            verify::value(what, u64::from(statuses[0]), u64::from(completion.status));
        }
        if let Some(address) = address {
            verify::value(what, address, completion.address);
        }
    };
    refuses(
        "status of an unknown opcode",
        command(u32::MAX, &[]),
        &[STATUS_OPCODE],
        None,
    );
    refuses(
        "status of the first unused opcode",
        command(OP_HINT + 1, &[]),
        &[STATUS_OPCODE],
        None,
    );

    refuses(
        "misaligned fill",
        command(OP_FILL, &[at + 4, 1, 0, 0]),
        &[STATUS_ARGUMENT],
        None,
    );
    refuses(
        "copy of half a word",
        command(OP_COPY, &[at, at + 64, 12]),
        &[STATUS_ARGUMENT],
        None,
    );
    let overlapping = copy(area.slice(0..16), area.slice(8..24));
    refuses("overlapping copy", overlapping, &[STATUS_ARGUMENT], None);
    refuses(
        "migration to nowhere",
        command(OP_MIGRATE, &[at, PAGE, 2]),
        &[STATUS_ARGUMENT],
        None,
    );
    refuses(
        "free of half a page",
        command(OP_FREE, &[at, PAGE / 2]),
        &[STATUS_ARGUMENT],
        None,
    );
    refuses(
        "misaligned free",
        command(OP_FREE, &[at + 8, PAGE]),
        &[STATUS_ARGUMENT],
        None,
    );

    refuses(
        "hint that there is not",
        command(OP_HINT, &[at, PAGE, HINT_NOT_READ_MOSTLY + 1]),
        &[STATUS_ARGUMENT],
        None,
    );
    refuses(
        "hint about what is behind the end",
        command(OP_HINT, &[memory_end, 8, HINT_READ_MOSTLY]),
        &[STATUS_ADDRESS],
        Some(memory_end),
    );

    // Memory that the guest has, but that is not managed, and the very end.
    let boot_ram = map::IMAGE_BASE;
    refuses(
        "fill of the image",
        command(OP_FILL, &[boot_ram, 1, 0, 0]),
        &[STATUS_ADDRESS],
        Some(boot_ram),
    );
    refuses(
        "sum of page 0",
        command(OP_REDUCE, &[0, 1]),
        &[STATUS_ADDRESS],
        Some(0),
    );
    refuses(
        "fill behind the end",
        command(OP_FILL, &[memory_end, 1, 0, 0]),
        &[STATUS_ADDRESS],
        Some(memory_end),
    );
    refuses(
        "fill across the end",
        command(OP_FILL, &[memory_end - 8, 2, 0, 0]),
        &[STATUS_ADDRESS],
        None,
    );
    refuses(
        "copy from a device",
        command(OP_COPY, &[at, map::CONTROL, 8]),
        &[STATUS_ADDRESS],
        Some(map::CONTROL),
    );
    // Sizes that wrap around the address space: either reason is right.
    let wraps = &[STATUS_ADDRESS, STATUS_ARGUMENT];
    refuses(
        "fill of everything",
        command(OP_FILL, &[at, u64::MAX, 0, 0]),
        wraps,
        None,
    );
    refuses(
        "fill that wraps",
        command(OP_FILL, &[at, 1 << 61, 0, 0]),
        wraps,
        None,
    );
    refuses(
        "product that wraps",
        command(OP_MATMUL, &[at, at, at, 1 << 32]),
        wraps,
        None,
    );
    refuses(
        "free of everything",
        command(OP_FREE, &[at, PAGE.wrapping_neg()]),
        wraps,
        None,
    );

    area.fill(0..len, |_| BAD_INDEX);
    let [to, indices] = [area.slice(0..8), area.slice(8..16)].map(Words::address);
    let table = command(OP_GATHER, &[to, at, indices, 8, len]);
    refuses("gather", table, &[STATUS_INDEX], Some(BAD_INDEX));
    refuses(
        "scatter",
        Command {
            opcode: OP_SCATTER,
            ..table
        },
        &[STATUS_INDEX],
        Some(BAD_INDEX),
    );
    let add = command(OP_ATOMIC_ADD, &[at, indices, 8, 1, len]);
    refuses("atomic add", add, &[STATUS_INDEX], Some(BAD_INDEX));
    refuses(
        "chase",
        command(OP_CHASE, &[at, 0, 2, len]),
        &[STATUS_INDEX],
        Some(BAD_INDEX),
    );
    refuses(
        "chase from outside",
        command(OP_CHASE, &[at, len, 1, len]),
        &[STATUS_INDEX, STATUS_ARGUMENT],
        None,
    );
}

/// Register writes that must fail.
fn registers(accel: &mut Accel, cpu: &Cpu, memory_end: u64) {
    let registers = accel.registers;
    let error_of = |what: &str, register: u64, value: u64, expected: u64| {
        registers.write(register, value);
        verify::value(what, expected, registers.read(REG_ERROR));
        verify::value(
            "error after it was read",
            ERR_NONE,
            registers.read(REG_ERROR),
        );
    };
    let base = registers.read(REG_QUEUE_BASE);
    error_of(
        "error of a queue base written while enabled",
        REG_QUEUE_BASE,
        base + PAGE,
        ERR_NOT_WRITABLE,
    );
    error_of(
        "error of queue entries written while enabled",
        REG_QUEUE_ENTRIES,
        2 * ENTRIES,
        ERR_NOT_WRITABLE,
    );
    error_of("error of a written id", REG_ID, 0, ERR_NOT_WRITABLE);
    verify::value("queue base", base, registers.read(REG_QUEUE_BASE));
    verify::value("queue entries", ENTRIES, registers.read(REG_QUEUE_ENTRIES));

    accel.disable();
    error_of(
        "error of a misaligned queue base",
        REG_QUEUE_BASE,
        base + 8,
        ERR_QUEUE_BASE,
    );
    error_of(
        "error of a queue in boot RAM",
        REG_QUEUE_BASE,
        map::IMAGE_BASE,
        ERR_QUEUE_BASE,
    );
    error_of(
        "error of a queue behind the end",
        REG_QUEUE_BASE,
        memory_end,
        ERR_QUEUE_BASE,
    );
    for entries in [0, 3, 2 * MAX_QUEUE_ENTRIES, u64::MAX] {
        error_of(
            "error of bad queue entries",
            REG_QUEUE_ENTRIES,
            entries,
            ERR_QUEUE_ENTRIES,
        );
    }
    error_of(
        "error of an interrupt for no vCPU",
        REG_IRQ,
        cpu.count() + 1,
        ERR_IRQ,
    );
    // A queue that starts inside managed memory and ends outside may be refused as early as its base
    // is known, or when it is to be used.
    registers.write(REG_QUEUE_ENTRIES, MAX_QUEUE_ENTRIES);
    registers.write(REG_QUEUE_BASE, memory_end - PAGE);
    if registers.read(REG_ERROR) != ERR_QUEUE_BASE {
        error_of(
            "error of a queue that ends outside",
            REG_ENABLE,
            1,
            ERR_QUEUE_BASE,
        );
    }
    verify::value("enabled", 0, registers.read(REG_ENABLE));
    // Of no consequence while disabled.
    registers.write(REG_DOORBELL, 1);
    registers.write(REG_WAIT, 0);
    accel.enable();
    verify::value("enabled", 1, registers.read(REG_ENABLE));
    verify::value("submitted commands after enabling", 0, accel.header().0);
    verify::value("completed commands after enabling", 0, accel.header().1);
}

/// Claims more commands than the queue has slots; the device must notice and disable itself.
fn overrun(accel: &mut Accel) {
    const PATIENCE_NS: u64 = 10_000_000_000;
    let (submitted, _) = accel.header();
    accel.submit(submitted + ENTRIES + 1);
    let deadline = control::time_ns() + PATIENCE_NS;
    let error = loop {
        let error = accel.registers.read(REG_ERROR);
        if error != ERR_NONE || control::time_ns() > deadline {
            break error;
        }
        control::yield_now();
    };
    verify::value("error of a queue overrun", ERR_QUEUE_OVERRUN, error);
    verify::value(
        "enabled after a queue overrun",
        0,
        accel.registers.read(REG_ENABLE),
    );
    accel.enable();
}

/// An accelerator must still do what it is told.
fn works(accel: &mut Accel, area: Words) {
    let pattern = Pattern {
        start: accel.header().0,
        step: 3,
    };
    accel.run(fill(area, pattern));
    verify::words("what an accelerator filled", area, 0..area.len(), |i| {
        pattern.at(i)
    });
    verify::value("sum", pattern.sum(area.len()), accel.run(reduce(area)));
    verify::value(
        "completions",
        accel.header().0,
        accel.registers.read(REG_COMPLETED),
    );
}
