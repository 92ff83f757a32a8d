//! Read duplication in virtual machines: vCPUs and devices read copies of their own of what is read mostly.

use hmm_backend::pages::Hint;
use hmm_backend::residency::Residency;
use hmmvisor_testkit::{GuestError, TestVm, each_engine, pages, snapshot};

const N: u32 = 32;
const START: u64 = 5_000_000;

/// A machine with two devices, all of whose pages are read mostly.
fn machine(engine: hmmvisor_testkit::Engine) -> TestVm {
    let vm = TestVm::builder()
        .engine(engine)
        .policy("on-demand+hints+timeslice:min=0us")
        .vcpus(2)
        .pages(512)
        .scripted(N)
        .scripted(N)
        .start();
    let hint = Hint::ReadMostly(true);
    vm.backend().hint(pages(0..512), hint).unwrap();
    vm
}

fn duplicated(vm: &TestVm, range: std::ops::Range<u32>) -> usize {
    let pages = range.inspect(|page| vm.settle(*page));
    pages
        .filter(|page| vm.residency(*page).duplicated())
        .count()
}

#[test]
fn vcpus_read_what_stays_on_the_device() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = machine(engine);
        vm.vcpu(0).fill(0..N, START).wait()?;
        vm.to_device(0, 0..N);
        vm.vcpu(1).verify(0..N, START).wait()?;
        assert_eq!(duplicated(&vm, 0..N), N as usize);
        assert!(vm.device(0).holds(0..N), "its frames are in use");
        let own = snapshot::DEVICE_LOCAL | snapshot::READ;
        assert_eq!(vm.snapshot(0, 0..N), vec![own; N as usize]);
        assert_eq!(vm.snapshot(1, 0..N), vec![snapshot::READ; N as usize]);
        // Both sides read, without faults.
        vm.wait_for(|stats| stats.cpu_faults == 2 * u64::from(N));
        let faults = vm.stats().cpu_faults;
        for page in 0..N {
            let expected = START + u64::from(page) * 512 + 511;
            for device in [0, 1] {
                assert_eq!(vm.device(device).read((page, 511)), Ok(expected));
            }
        }
        vm.vcpu(0).verify(0..N, START).wait()?;
        assert_eq!(vm.stats().cpu_faults, faults);
        assert_eq!(duplicated(&vm, 0..N), N as usize);
        Ok(())
    })
}

#[test]
fn vcpus_and_devices_write_what_is_duplicated() -> Result<(), GuestError> {
    each_engine(|engine| {
        let vm = machine(engine);
        vm.vcpu(0).fill(0..8, START).wait()?;
        for round in 0..10 {
            vm.to_device(0, 0..8);
            vm.vcpu(1).read((0, 0)).wait()?;
            vm.vcpu(1).read((1, 0)).wait()?;
            vm.vcpu(1).read((2, 0)).wait()?;
            assert_eq!(duplicated(&vm, 0..3), 3, "round {round}");
            // A vCPU, the device itself, another device.
            vm.vcpu(0).fetch_add((0, 1), 1).wait()?;
            vm.device(0).add((1, 1), 1).unwrap();
            vm.device(1).add((2, 1), 1).unwrap();
            vm.settle(0);
            assert_eq!(vm.residency(0), Residency::System);
            assert_eq!(duplicated(&vm, 0..3), 0);
            for page in 0..3 {
                let expected = START + u64::from(page) * 512 + 1 + round + 1;
                for vcpu in [0, 1] {
                    assert_eq!(vm.vcpu(vcpu).read((page, 1)).wait()?, expected);
                }
                for device in [0, 1] {
                    assert_eq!(vm.device(device).read((page, 1)), Ok(expected));
                }
            }
            vm.to_system(0..8);
        }
        // Freed with both copies: zeros for all.
        vm.to_device(0, 3..5);
        vm.vcpu(0).read(3).wait()?;
        assert_eq!(duplicated(&vm, 3..4), 1);
        assert_eq!(vm.vcpu(1).free(3..5).wait()?, 2);
        assert_eq!(vm.vcpu(0).checksum(3..5).wait()?, 0);
        assert_eq!(vm.device(0).read((3, 0)), Ok(0));
        Ok(())
    })
}
