//! vCPUs can be stopped at any moment: while they spin, start, or sleep in a page fault.

mod common;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use common::{Output, code, machine};
use hmmvisor_abi::map;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Far more than stopping takes, far less than for ever.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn spinning_vcpus_stop() {
    for pause_us in [0, 50, 500, 5000] {
        let mut vm = machine(&[0xeb, 0xfe], 4, &Output::default());
        vm.start().unwrap();
        std::thread::sleep(Duration::from_micros(pause_us));
        let begin = Instant::now();
        vm.stop();
        assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    }
}

#[test]
fn a_vcpu_in_device_accesses_stops() {
    // mov eax, CONTROL; mov [rax + 0x10], eax (yield); jmp -5
    let mut vm = machine(
        &code(&[&common::MOV_EAX_CONTROL, &[0x89, 0x40, 0x10, 0xeb, 0xfb]]),
        2,
        &Output::default(),
    );
    vm.start().unwrap();
    std::thread::sleep(Duration::from_millis(5));
    let begin = Instant::now();
    vm.stop();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
}

#[test]
fn a_machine_that_never_started_goes_away() {
    drop(machine(&[0xeb, 0xfe], 2, &Output::default()));
}

#[test]
fn a_vcpu_asleep_in_a_fault_that_nobody_serves_stops() {
    const PAGE: u64 = 0x30_0000;
    const { assert!(PAGE < map::IMAGE_END) };
    // mov eax, PAGE; inc byte [rax]; jmp .
    let mut vm = machine(
        &[0xb8, 0, 0, 0x30, 0, 0xfe, 0x00, 0xeb, 0xfe],
        1,
        &Output::default(),
    );
    let page = vm
        .machine()
        .ram()
        .get_host_address(GuestAddress(PAGE))
        .unwrap();
    let faults = watch_missing_page(page);
    vm.start().unwrap();

    let mut poll = libc::pollfd {
        fd: faults.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid structure, as the count says.
    let ready = unsafe { libc::poll(&mut poll, 1, 5000) };
    assert_eq!(ready, 1, "the vCPU did not fault");

    let begin = Instant::now();
    vm.stop();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert!(vm.ending().get().is_none(), "{:?}", vm.ending().get());
}

/// A userfaultfd for one page that is not there; whoever touches it sleeps.
fn watch_missing_page(page: *mut u8) -> OwnedFd {
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
    const UFFD_API: u64 = 0xaa;
    const MISSING: u64 = 1;
    // SAFETY: makes a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    assert!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut api = [UFFD_API, 0, 0];
    // SAFETY: the kernel reads and writes a structure of three 64-bit integers.
    assert_eq!(
        unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &mut api) },
        0
    );
    let mut range = [page as u64, 4096, MISSING, 0];
    // SAFETY: a structure of four 64-bit integers; the page is boot RAM of a guest, which the host
    // does not touch.
    assert_eq!(
        unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, &mut range) },
        0
    );
    fd
}
