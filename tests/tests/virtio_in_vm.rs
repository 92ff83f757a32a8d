//! A virtio device in a virtual machine: registers by exits, the doorbell by an ioeventfd, the interrupt by KVM.

use std::sync::atomic::Ordering::{Acquire, SeqCst};
use std::time::Duration;

use hmm_backend::engine::EngineChoice;
use hmm_backend::{Backend, BackendConfig};
use hmmvisor::vm::{Managed, Vm, VmConfig};
use hmmvisor::{Config, End};
use hmmvisor_abi::map;
use hmmvisor_testkit::machine::{both_engines, guest, word};
use hmmvisor_testkit::virtio::*;
use hmmvisor_testkit::{Asm, Reg};

/// A 32-bit write to a register of the first device.
fn write(asm: Asm, register: u64, value: u32) -> Asm {
    // The last instruction: mov [rbx], edx.
    asm.set(Reg::Rbx, map::ACCEL + register)
        .set(Reg::Rdx, value.into())
        .raw(&[0x89, 0x13])
}

/// Brings an entropy device up, asks for 64 bytes, waits for the interrupt, and exits with what is at the beginning of
/// the used ring.
fn code(rings: [u64; 3]) -> Asm {
    let mut asm = Asm::new();
    for (register, value) in [
        (STATUS, 0),
        (STATUS, 1),
        (STATUS, 3),
        (DRIVER_FEATURES_SEL, 1),
        (DRIVER_FEATURES, (VERSION_1 >> 32) as u32),
        (STATUS, NEGOTIATED),
        (QUEUE_SEL, 0),
        (QUEUE_NUM, 8),
    ] {
        asm = write(asm, register, value);
    }
    for (register, addr) in [QUEUE_DESC, QUEUE_AVAIL, QUEUE_USED].into_iter().zip(rings) {
        asm = write(asm, register, addr as u32);
        asm = write(asm, register + 4, (addr >> 32) as u32);
    }
    asm = write(asm, QUEUE_READY, 1);
    asm = write(asm, STATUS, WORKING);
    asm = write(asm, QUEUE_NOTIFY, 0).set(Reg::Rcx, map::irq_counter(0, 0));
    let wait = asm.here();
    asm.load(Reg::Rdx, Reg::Rcx)
        .compare(Reg::Rdx, 1)
        .jump_unless_equal(wait)
        .set(Reg::Rbx, rings[2])
        .load(Reg::Rdx, Reg::Rbx)
        .exit(Reg::Rdx)
}

#[test]
fn a_guest_gets_entropy() {
    both_engines("virtio in a virtual machine", |engine| {
        let config = Config {
            rng: true,
            ..Config::default()
        };
        let virtio = hmmvisor::run::virtio::devices(&config).unwrap();
        let mut config = BackendConfig::new(2 << 20);
        config.engine = EngineChoice::Only(engine);
        let backend = Backend::new(config).unwrap();
        let code = code([at(0), at(1), at(2)]);
        let mut vm = Vm::new(VmConfig {
            managed: Some(Managed {
                foreign: virtio.new,
                ..Managed::new(backend.clone())
            }),
            ..VmConfig::new(&guest(code).unwrap())
        })
        .unwrap();
        // The one request, which the test writes as the guest might: 64 bytes to page 3.
        word(&backend, 0, 0).store(at(3), SeqCst);
        word(&backend, 0, 1).store(64 | u64::from(WRITE) << 32, SeqCst);
        // No flags, one chain, which begins at descriptor 0.
        word(&backend, 1, 0).store(1 << 16, SeqCst);
        vm.start().unwrap();
        let end = vm.ending().wait(Duration::from_secs(60)).cloned();
        assert_eq!(end, Some(End::Exit(1 << 16)));
        let random: Vec<u64> = (0..8).map(|i| word(&backend, 3, i).load(Acquire)).collect();
        assert!(random.iter().all(|word| *word != 0), "{random:x?}");
        let pins = |page| backend.word(hmm_backend::pages::Page(page)).unwrap().pins();
        assert_eq!((pins(0), pins(1), pins(2), pins(3)), (1, 1, 1, 0));
        vm.stop();
        assert_eq!((pins(0), pins(1), pins(2), pins(3)), (0, 0, 0, 0));
    });
}
