//! vCPUs can be stopped at any moment: while they spin, start, or sleep in a page fault.

mod common;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use common::{Output, code, machine};
use hmmvisor::vm::Vm;
use hmmvisor_abi::map;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Far more than stopping takes, far less than for ever.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn spinning_vcpus_stop() {
    // At different moments of their start.
    for pause_us in [0, 50, 500, 5000] {
        let mut vm = machine(&[0xeb, 0xfe], 4, &Output::default());
        vm.start().unwrap();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_micros(pause_us) {
            std::thread::yield_now();
        }
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
    common::wait_until("a device access", || vm.first_exit().is_some());
    let begin = Instant::now();
    vm.stop();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
}

#[test]
fn a_machine_that_never_started_goes_away() {
    drop(machine(&[0xeb, 0xfe], 2, &Output::default()));
}

/// The address of the page that is never supplied.
const PAGE: u64 = 0x30_0000;
const _: () = assert!(PAGE < map::IMAGE_END);

fn watched(code: &[u8]) -> (Vm, OwnedFd) {
    let mut vm = machine(code, 1, &Output::default());
    let page = vm
        .machine()
        .ram()
        .get_host_address(GuestAddress(PAGE))
        .unwrap();
    let faults = watch_missing_page(page);
    vm.start().unwrap();
    wait_for_fault(&faults);
    (vm, faults)
}

#[test]
fn a_vcpu_asleep_in_a_fault_that_nobody_serves_stops() {
    // mov eax, PAGE; inc byte [rax]; jmp .
    let (mut vm, _faults) = watched(&[0xb8, 0, 0, 0x30, 0, 0xfe, 0x00, 0xeb, 0xfe]);
    let begin = Instant::now();
    vm.stop();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert!(vm.ending().get().is_none(), "{:?}", vm.ending().get());
}

#[test]
fn a_fault_within_kvm_does_not_hang_the_vmm() {
    // mov esi, CONTROL + 0x20 (time); mov edi, PAGE; movsq; jmp .: KVM itself writes the page.
    let (mut vm, faults) = watched(&[
        0xbe, 0x20, 0, 0, 0xd0, 0xbf, 0, 0, 0x30, 0, 0x48, 0xa5, 0xeb, 0xfe,
    ]);
    let begin = Instant::now();
    vm.stop();
    drop(vm);
    assert!(begin.elapsed() < 3 * SOON, "{:?}", begin.elapsed());
    // When its userfaultfd is closed, the page becomes an ordinary one; the vCPU's thread ends.
    drop(faults);
    let alive = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let mut names =
            tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.any(|name| name.trim() == "vcpu0")
    };
    // Other tests of this program have such threads, too, but not for ever.
    common::wait_until("the end of the vCPU's thread", || !alive());
}

/// A userfaultfd for one missing page; a thread that touches it sleeps.
fn watch_missing_page(page: *mut u8) -> OwnedFd {
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
    const UFFD_API: u64 = 0xaa;
    const MISSING: u64 = 1;
    // SAFETY: makes a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    assert!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, and no other value owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut api = [UFFD_API, 0, 0];
    // SAFETY: the kernel reads and writes a structure of three 64-bit integers.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &mut api) };
    assert_eq!(result, 0);
    let mut range = [page as u64, 4096, MISSING, 0];
    // SAFETY: a structure of four 64-bit integers; the page is boot RAM of a guest, which the host
    // does not touch.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, &mut range) };
    assert_eq!(result, 0);
    fd
}

/// Waits until a thread has touched a watched page.
fn wait_for_fault(faults: &OwnedFd) {
    let mut poll = libc::pollfd {
        fd: faults.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid structure, as the count says.
    let ready = unsafe { libc::poll(&mut poll, 1, 5000) };
    assert_eq!(ready, 1, "the vCPU did not fault");
}
