//! Small guests on real KVM: how they start, what they reach, how they end.

mod common;

use common::{MOV_EAX_CONTROL, Output, code, machine, run, wait};
use hmmvisor::ending::failure::Code;
use hmmvisor::{End, Failure};
use hmmvisor_abi::map;

/// `mov dword [rax], edx; jmp .`: exits with `edx`, once `eax` is the control device.
const EXIT_EDX: [u8; 4] = [0x89, 0x10, 0xeb, 0xfe];

fn exception(end: &End) -> (u64, u64, u64, u64) {
    match *end {
        End::Failed(Failure::Exception {
            vector,
            error_code,
            rip,
            cr2,
            code: Code::Guest,
            ..
        }) => (vector, error_code, rip - map::IMAGE_BASE, cr2),
        ref other => panic!("expected an exception, got {other:?}"),
    }
}

#[test]
fn a_guest_starts_in_ring_3_and_exits() {
    // mov ecx, cs; and ecx, 3; lea edx, [rcx + 100]. The selector's upper bits may be the host's.
    let guest = code(&[
        &MOV_EAX_CONTROL,
        &[0x8c, 0xc9, 0x83, 0xe1, 0x03, 0x8d, 0x51, 100],
        &EXIT_EDX,
    ]);
    let (end, _) = run(&guest, 1);
    assert_eq!(end, End::Exit(103));
}

#[test]
fn registers_and_boot_information_are_as_documented() {
    // Exits with the sum of what it finds, so one wrong value shows.
    let guest = code(&[
        &MOV_EAX_CONTROL,
        &[0x8b, 0x57, 0x50],       // mov edx, [rdi + 80]: the seed
        &[0x03, 0x57, 0x0c],       // add edx, [rdi + 12]: vCPUs
        &[0x01, 0xf2],             // add edx, esi: this vCPU's index
        &[0x03, 0x57, 0x68],       // add edx, [rdi + 104]: the command line's length
        &[0x48, 0x8b, 0x4f, 0x60], // mov rcx, [rdi + 96]: the command line
        &[0x02, 0x11],             // add dl, [rcx]: its first byte
        &[0x01, 0xe2],             // add edx, esp
        &[0x2b, 0x14, 0x24],       // sub edx, [rsp]: zero
        &EXIT_EDX,
    ]);
    let (end, _) = run(&guest, 1);
    let low = (0x5eed + 1 + 9) as u32;
    let low = low & !0xff | low.wrapping_add(u32::from(b'a')) & 0xff;
    let stack = (map::STACKS + map::STACK_SIZE - 8) as u32;
    assert_eq!(end, End::Exit(low.wrapping_add(stack)));
}

#[test]
fn sse_works() {
    let guest = code(&[
        &MOV_EAX_CONTROL,
        &[0xb9, 21, 0, 0, 0],      // mov ecx, 21
        &[0xf2, 0x0f, 0x2a, 0xc1], // cvtsi2sd xmm0, ecx
        &[0xf2, 0x0f, 0x58, 0xc0], // addsd xmm0, xmm0
        &[0xf2, 0x0f, 0x2d, 0xd0], // cvtsd2si edx, xmm0
        &EXIT_EDX,
    ]);
    assert_eq!(run(&guest, 1).0, End::Exit(42));
}

#[test]
fn all_vcpus_start_and_each_has_a_stack_of_its_own() {
    // push rsi; lock inc [counter]; until counter == 4; vCPU 0 exits with what it pushed + 7
    let guest = code(&[
        &MOV_EAX_CONTROL,
        &[0xb9, 0x00, 0x10, 0x20, 0x00], // mov ecx, 0x201000
        &[0x56],                         // push rsi
        &[0xf0, 0xff, 0x01],             // lock inc dword [rcx]
        &[0xf3, 0x90],                   // pause
        &[0x83, 0x39, 0x04],             // cmp dword [rcx], 4
        &[0x75, 0xf9],                   // jne -7
        &[0x5a],                         // pop rdx
        &[0x39, 0xf2],                   // cmp edx, esi
        &[0x75, 0xfe],                   // jne .: a stack was shared
        &[0x83, 0xc2, 0x07],             // add edx, 7
        &[0x85, 0xf6],                   // test esi, esi
        &[0x75, 0xfe],                   // jne .
        &EXIT_EDX,
    ]);
    assert_eq!(run(&guest, 4).0, End::Exit(7));
}

#[test]
fn cpu_exceptions_are_reported_with_their_place() {
    // xor eax, eax; mov [rax], al
    assert_eq!(
        exception(&run(&[0x31, 0xc0, 0x88, 0x00], 1).0),
        (14, 6, 2, 0)
    );
    // ud2, on two vCPUs
    assert_eq!(exception(&run(&[0x0f, 0x0b], 2).0), (6, 0, 0, 0));
    // xor ecx, ecx; div ecx
    assert_eq!(
        exception(&run(&[0x31, 0xc9, 0xf7, 0xf1], 1).0),
        (0, 0, 2, 0)
    );
    // hlt is ring 0's
    assert_eq!(exception(&run(&[0xf4], 1).0), (13, 0, 0, 0));
    // int3: the address behind it
    assert_eq!(exception(&run(&[0xcc], 1).0), (3, 0, 1, 0));
}

#[test]
fn the_firmware_is_out_of_reach() {
    // mov eax, 0x1000; mov al, [rax]
    let (vector, error, rip, cr2) = exception(&run(&[0xb8, 0, 0x10, 0, 0, 0x8a, 0x00], 1).0);
    assert_eq!((vector, rip, cr2), (14, 5, 0x1000));
    assert_eq!(
        error & 0b101,
        0b101,
        "present, but not for ring 3: {error:#x}"
    );
}

#[test]
fn ring_3_cannot_fake_an_exception() {
    // mov dword [rax + 0x28], 14; mov edx, 5; exit
    let guest = code(&[
        &MOV_EAX_CONTROL,
        &[0xc7, 0x40, 0x28, 14, 0, 0, 0],
        &[0xba, 5, 0, 0, 0],
        &EXIT_EDX,
    ]);
    assert_eq!(run(&guest, 1).0, End::Exit(5));
}

#[test]
fn the_serial_port_is_reached_by_port_and_by_memory() {
    let guest = code(&[
        &[0x66, 0xba, 0xf8, 0x03],       // mov dx, 0x3f8
        &[0xb0, b'p', 0xee],             // mov al, 'p'; out dx, al
        &[0xb9, 0x00, 0x10, 0x00, 0xd0], // mov ecx, SERIAL
        &[0xc6, 0x01, b'm'],             // mov byte [rcx], 'm'
        &[0x66, 0xba, 0x80, 0x00],       // mov dx, 0x80
        &[0xee],                         // out dx, al: not allowed
    ]);
    let (end, output) = run(&guest, 1);
    assert_eq!(exception(&end).0, 13);
    assert_eq!(output, "pm\n");
}

#[test]
fn a_guest_without_anybody_left_is_a_failure() {
    // mov dword [rax + 0x18], 0: park
    let guest = code(&[
        &MOV_EAX_CONTROL,
        &[0xc7, 0x40, 0x18, 0, 0, 0, 0],
        &[0xeb, 0xfe],
    ]);
    assert_eq!(run(&guest, 3).0, End::Failed(Failure::AllParked));
}

#[test]
fn accesses_to_absent_devices_do_nothing() {
    // mov ecx, ACCEL + 0xf000; mov [rcx], ecx; mov edx, [rcx]; exit with what was read
    let guest = code(&[
        &MOV_EAX_CONTROL,
        &[0xb9, 0x00, 0xf0, 0x01, 0xd0],
        &[0x48, 0x89, 0x09],
        &[0x8b, 0x11],
        &EXIT_EDX,
    ]);
    assert_eq!(run(&guest, 1).0, End::Exit(0));
}

#[test]
fn machines_run_one_after_another_and_side_by_side() {
    let guest = code(&[&MOV_EAX_CONTROL, &[0x89, 0xf2], &EXIT_EDX]);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let guest = guest.clone();
            std::thread::spawn(move || {
                (0..5).for_each(|_| assert_eq!(run(&guest, 1).0, End::Exit(0)))
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

#[test]
fn threads_are_known_by_their_ids() {
    let mut vm = machine(&[0xeb, 0xfe], 2, &Output::default());
    vm.start().unwrap();
    let names = || -> Vec<(u32, String)> {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| {
                let task = task.unwrap();
                let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
                Some((
                    task.file_name().to_str()?.parse().ok()?,
                    name.trim().to_owned(),
                ))
            })
            .collect()
    };
    // The threads announce themselves once they run.
    common::wait_until("both vCPUs' threads", || {
        let ours = names()
            .into_iter()
            .filter_map(|(id, name)| Some((vm.thread_ids().vcpu(id)?, name)));
        let mut ours: Vec<_> = ours.collect();
        ours.sort();
        ours == [(0, "vcpu0".to_owned()), (1, "vcpu1".to_owned())]
    });
    assert!(vm.ending().get().is_none());
    vm.stop();
    assert!(vm.ending().get().is_none());
}

#[test]
fn progress_reaches_the_host() {
    // mov dword [rax + 8], 250; exit 0
    let guest = code(&[
        &MOV_EAX_CONTROL,
        &[0xc7, 0x40, 0x08, 250, 0, 0, 0],
        &[0x31, 0xd2],
        &EXIT_EDX,
    ]);
    let mut vm = machine(&guest, 1, &Output::default());
    vm.start().unwrap();
    assert_eq!(wait(&vm), End::Exit(0));
    assert_eq!(vm.control().progress(), 250);
    assert!(vm.first_exit().is_some());
}
