//! Files that are no kernels or ramdisks, or do not fit, and options that do not go together.

use hmmvisor::guest::linux::cpuid::Template;
use hmmvisor::guest::linux::layout::Layout;
use hmmvisor::guest::linux::{Linux, LoadError};
use hmmvisor::size::Size;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::kernel::{AT, Code, Folder, command, initrd, run, str, text};

fn kernel() -> Code {
    Code::default().power_off()
}

/// The message with which these arguments are refused.
fn refusal(args: &[&str]) -> String {
    let output = command(args).output().unwrap();
    let message = text(&output);
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{args:?}: {message}"
    );
    assert!(output.stdout.is_empty(), "{args:?}: {message}");
    assert!(
        message.contains("error: ") && !message.contains("panicked"),
        "{args:?}: {message}"
    );
    message
}

#[test]
fn files_that_are_no_kernels_are_refused_with_the_reason() {
    let folder = Folder::new();
    let good = kernel().bzimage();
    let changed = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let elf = kernel().vmlinux();
    let changed_elf = |at: usize, bytes: &[u8]| {
        let mut file = elf.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let mut long_notes = changed_elf(64 + 32, &(2u64 << 20).to_le_bytes());
    long_notes.resize(3 << 20, 0);
    for (file, expected) in [
        (vec![], "it is empty"),
        (b"hi".to_vec(), "it is no Linux kernel"),
        (
            vec![b' '; 10_000],
            "neither a bzImage (`vmlinuz`) nor an ELF file",
        ),
        (good[..0x210].to_vec(), "it is no Linux kernel"),
        (good[..good.len() - 20].to_vec(), "was it truncated?"),
        (changed(0x206, &[4, 2]), "boot protocol 2.04"),
        (changed(0x236, &[0]), "without a 64-bit entry"),
        (changed(0x258, &[0; 8]), "below 1 MiB"),
        (
            changed(0x258, &[0xff; 8]),
            "but there is memory up to 0x4000000 only; use more with --memory",
        ),
        (changed(0x260, &[0xff; 4]), "use more with --memory"),
        (elf[..4].to_vec(), "the ELF header ends at byte 64"),
        (elf[..100].to_vec(), "a program header ends at byte"),
        (elf[..elf.len() - 1].to_vec(), "a segment ends at byte"),
        (changed_elf(4, &[1]), "not for 64-bit x86 (ELF class 1"),
        (changed_elf(18, &[183, 0]), "machine 183"),
        (
            changed_elf(54, &[1, 0]),
            "program headers have the wrong size",
        ),
        (changed_elf(56, &[0, 0]), "nothing to load"),
        (changed_elf(120 + 24, &[0xff; 8]), "use more with --memory"),
        (changed_elf(120 + 24, &[0; 8]), "below 1 MiB"),
        (
            changed_elf(120 + 40, &[0; 8]),
            "a segment has more contents than memory",
        ),
        (
            changed_elf(176 + 24, &(AT + 4096).to_le_bytes()),
            "its segments at 0x1000000..0x1100000 and 0x1001000..0x1002000 overlap",
        ),
        (
            long_notes,
            "its notes have 2097152 bytes; 1048576 are the most",
        ),
        (kernel().elf(None), "without a PVH entry point"),
        (
            kernel().elf(Some(0x1000)),
            "PVH entry point 0x1000 is in none of its segments",
        ),
    ] {
        let path = folder.file("kernel", &file);
        let message = refusal(&["--kernel", &path]);
        assert!(message.contains(expected), "{expected}: {message}");
        assert!(message.contains(&path), "{message}");
    }
    for (path, expected) in [
        ("/nosuch/vmlinuz", "No such file"),
        ("/", "it is a folder"),
        ("/dev/null", "not a regular file"),
    ] {
        assert!(refusal(&["--kernel", path]).contains(expected));
    }
}

#[test]
fn kernels_and_ramdisks_must_fit() {
    let folder = Folder::new();
    let kernel = folder.file("kernel", &kernel().bzimage());
    let message = refusal(&[
        "--kernel",
        &kernel,
        "--memory",
        "16M",
        "--device-memory",
        "1M",
    ]);
    assert!(
        message.contains("it needs guest memory from 0x1000000 to 0x1100000, but there is memory up to 0x1000000 only"),
        "{message}"
    );
    // All that is behind the kernel, and a byte more. It need not be in the file system in full.
    let path = folder.path("initrd");
    let mut packed = std::fs::File::create(&path).unwrap();
    std::io::Write::write_all(&mut packed, b"\x1f\x8b").unwrap();
    packed.set_len((47 << 20) + 1).unwrap();
    let message = refusal(&["--kernel", &kernel, "--initrd", str(&path)]);
    assert!(message.contains("where 47 MiB are free"), "{message}");
}

#[test]
fn files_that_are_no_ramdisks_are_refused_with_the_reason() {
    let folder = Folder::new();
    let kernel = folder.file("kernel", &kernel().bzimage());
    let good = initrd();
    for (file, expected) in [
        (&b""[..], "it is empty"),
        (b"<html>", "it is no initial ramdisk"),
        (
            b"\x7fELF\x02\x01",
            "neither a cpio archive (newc) nor packed by gzip, xz, zstd",
        ),
        (&good[..60], "was it truncated?"),
        (&good[..115], "was it truncated?"),
    ] {
        let path = folder.file("initrd", file);
        let message = refusal(&["--kernel", &kernel, "--initrd", &path]);
        assert!(message.contains(expected), "{expected}: {message}");
        assert!(message.contains(&path), "{message}");
    }
    let message = refusal(&["--kernel", &kernel, "--initrd", "/nosuch"]);
    assert!(message.contains("No such file"), "{message}");
}

#[test]
fn command_lines_have_the_kernel_s_limit() {
    let folder = Folder::new();
    let path = folder.file("kernel", &kernel().bzimage());
    let message = refusal(&["--kernel", &path, "--cmdline", &"x".repeat(2048)]);
    let expected = "it has 2048 bytes, but this kernel takes 2047 at most";
    assert!(message.contains(expected), "{message}");
    let (_, output) = run(&kernel().bzimage(), &["--cmdline", &"x".repeat(2047)]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));

    let path = folder.path("kernel");
    let plan = |cmdline: &str| {
        let linux = Linux::open(&path, None, cmdline, Template::Host).unwrap();
        linux.plan(&Layout::new(Size(64 << 20)))
    };
    plan("quiet").unwrap();
    assert!(matches!(plan("a\0b"), Err(LoadError::CmdlineZero)));
}

#[test]
fn options_must_go_together() {
    let folder = Folder::new();
    let kernel = folder.file("kernel", &kernel().bzimage());
    for (args, expected) in [
        (
            &["--initrd", "x"][..],
            "an initial ramdisk without a kernel",
        ),
        (
            &["--cmdline", "x"],
            "a kernel command line without a kernel",
        ),
        (&["--cpu", "baseline"], "a processor without a kernel"),
        (
            &["--cpu", "i386"],
            "unknown processor 'i386'; there are: host, baseline",
        ),
        (
            &["--kernel", &kernel, "--workload", "bfs"],
            "a workload for another guest",
        ),
        (
            &["--kernel", &kernel, "--guest", &kernel],
            "a guest file for another guest",
        ),
        (
            &["--kernel", &kernel, "--watchdog", "0"],
            "the watchdog's time in seconds is 0",
        ),
        (
            &["--kernel", &kernel, "--console", "/nosuch/log"],
            "writing the console to /nosuch/log: its folder does not exist",
        ),
        (&["--devices", "0"], "from 1 to 16"),
    ] {
        let message = refusal(args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
}

/// Bytes of good files replaced by random ones: whatever that is, it ends with a message or runs.
#[test]
fn damaged_files_never_hurt_the_vmm() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let folder = Folder::new();
    let layout = Layout::new(Size(64 << 20));
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
    for good in [kernel().bzimage(), kernel().vmlinux()] {
        for _ in 0..2000 {
            let mut file = good.clone();
            for _ in 0..1 + random(4) {
                let at = random(file.len().min(0x280));
                file[at] = random(256) as u8;
            }
            file.truncate(good.len() - random(2) * random(good.len()));
            let path = folder.file("kernel", &file);
            let linux = Linux::open(path.as_ref(), None, "", Template::Host);
            if let Ok(mut linux) = linux
                && linux.plan(&layout).is_ok()
            {
                let _ = linux.kernel.load(&memory);
            }
        }
    }
}
