//! Device interrupts reach the counters of the vCPU they are routed to.

mod common;

use common::{MOV_EAX_CONTROL, Output, code, machine, wait, wait_until};
use hmmvisor::End;
use hmmvisor::machine::interrupts::InterruptLines;
use hmmvisor_abi::map;
use hmmvisor_devices::Interrupt;
use vm_memory::{Bytes, GuestAddress};

fn counter(vm: &hmmvisor::vm::Vm, vcpu: u64, line: u64) -> u64 {
    vm.machine()
        .ram()
        .read_obj(GuestAddress(map::irq_counter(vcpu, line)))
        .unwrap()
}

#[test]
fn interrupts_are_counted_where_they_are_routed() {
    // Spins until vCPU 1 has had 20 interrupts on line 3, then exits with 0.
    let target = map::irq_counter(1, 3) as u32;
    let guest = code(&[
        &MOV_EAX_CONTROL,
        &[0xb9],
        &target.to_le_bytes(),     // mov ecx, counter
        &[0x83, 0x39, 20],         // cmp dword [rcx], 20
        &[0x72, 0xfb],             // jb -5
        &[0x31, 0xd2, 0x89, 0x10], // xor edx, edx; mov [rax], edx
        &[0xeb, 0xfe],
    ]);
    let mut vm = machine(&guest, 2, &Output::default());
    let lines = InterruptLines::new(vm.machine().vm().clone(), 2);
    let ending = vm.ending();
    let first = lines.line(0, ending).unwrap();
    let third = lines.line(3, ending).unwrap();
    vm.start().unwrap();

    third.trigger();
    assert!(!third.route(2), "there is no such vCPU");
    assert!(first.route(0) && third.route(1));
    for number in 1..=20 {
        // Interrupts may merge if the vCPU does not run in between; so wait for each. The guest ends
        // with the last one on line 3, so those on line 0 must have come before it.
        if number % 4 == 0 {
            first.trigger();
            wait_until("an interrupt on line 0", || {
                counter(&vm, 0, 0) >= number / 4 || vm.ending().get().is_some()
            });
        }
        third.trigger();
        wait_until("an interrupt on line 3", || {
            counter(&vm, 1, 3) >= number || vm.ending().get().is_some()
        });
    }
    assert_eq!(wait(&vm), End::Exit(0));
    vm.stop();
    assert_eq!(counter(&vm, 1, 3), 20);
    assert_eq!(counter(&vm, 0, 0), 5);
    for (vcpu, line) in [(0, 3), (1, 0), (1, 2), (1, 4)] {
        assert_eq!(counter(&vm, vcpu, line), 0, "vCPU {vcpu} line {line}");
    }
}
