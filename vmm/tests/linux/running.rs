//! Kernels that run, and how their runs end.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;

use hmmvisor_experiments::trace::TraceReader;

use crate::kernel::{AT, Code, Folder, command, initrd, run, text};

fn code() -> Code {
    Code::default()
}

#[test]
fn both_formats_boot_and_power_off_with_both_engines() {
    let kernel = code().say("hello\n").power_off();
    for (format, file) in [("bzImage", kernel.bzimage()), ("vmlinux", kernel.vmlinux())] {
        for engine in ["copy", "remap"] {
            let (said, output) = run(&file, &["--engine", engine]);
            assert_eq!(said, "hello\n", "{format} {engine}: {}", text(&output));
            assert_eq!(output.status.code(), Some(0), "{}", text(&output));
            assert!(
                text(&output).contains(": powered off\n"),
                "{}",
                text(&output)
            );
        }
    }
}

#[test]
fn a_reset_is_a_good_end_unless_the_kernel_has_panicked() {
    let (_, output) = run(&code().say("Restarting\n").reset().bzimage(), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(
        text(&output).contains("asked for a reboot"),
        "{}",
        text(&output)
    );

    let panic = code().say("[ 1.0] Kernel panic - not syncing: bad luck\n");
    let (_, output) = run(&panic.reset().bzimage(), &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let message = "error: the guest's kernel panicked: bad luck\n";
    assert!(text(&output).contains(message), "{}", text(&output));
}

#[test]
fn a_kernel_that_hangs_is_noticed_by_the_watchdog() {
    let (said, output) = run(&code().say("a").hang().bzimage(), &["--watchdog", "1"]);
    assert_eq!(said, "a\n");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("no sign of life for 1 s")
            && text(&output).contains("hmmvisor check"),
        "{}",
        text(&output)
    );
}

#[test]
fn a_triple_fault_is_a_failure() {
    // ud2, without a table of handlers.
    let (_, output) = run(&Code(vec![0x0f, 0x0b]).bzimage(), &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("triple-faulted"),
        "{}",
        text(&output)
    );
}

#[test]
fn nothing_is_read_as_all_ones() {
    let kernel = code().say_port(0x60).say_port(0x2f8).say_port(0xcfc);
    // Behind the last window, and where small guests have their control device.
    let kernel = [0xc000_0000u32, 0xd000_0000, 0xd002_0000, 0xfed0_0000]
        .into_iter()
        .fold(kernel, Code::say_memory);
    let (said, output) = run(&kernel.say("\n").power_off().bzimage(), &[]);
    assert_eq!(said, "ÿÿÿÿÿÿÿ\n", "{}", text(&output));
}

#[test]
fn kernels_find_what_they_are_told() {
    // The zero page has the command line, the ramdisk and the tables; memory has their contents.
    let kernel = [
        0x2_0000u32,
        0x2_0001,
        0xe_0000,
        0xe_0001,
        0x3ff_f000,
        0x3ff_f001,
    ]
    .into_iter()
    .fold(code(), Code::say_memory);
    let cmdline_pointer = (0..4).fold(kernel, |code, at| code.say_memory(0x7228 + at));
    let kernel = (0..4).fold(cmdline_pointer, |code, at| code.say_memory(0x7218 + at));
    let folder = Folder::new();
    let initrd = folder.file("initrd", &initrd());
    let args = ["--cmdline", "xyz", "--initrd", &initrd];
    let (said, output) = run(&kernel.power_off().bzimage(), &args);
    let expected = "xyRS07\0\0\u{2}\0\0\u{f0}\u{ff}\u{3}\n";
    assert_eq!(said, expected, "{}", text(&output));
}

#[test]
fn vcpus_wait_for_their_start_up_interrupts() {
    // Says 2, tells the first vCPU, halts.
    // mov dx, 0x3f8; mov al, '2'; out dx, al; mov byte cs:[0x80], 1; cli; hlt
    let second = [
        0xba, 0xf8, 0x03, 0xb0, b'2', 0xee, 0x2e, 0xc6, 0x06, 0x80, 0x00, 0x01, 0xfa, 0xf4,
    ];
    let kernel = starting_second(&second).say("1\n").power_off().bzimage();
    let (said, output) = run(&kernel, &["--vcpus", "2"]);
    assert_eq!(said, "21\n", "{}", text(&output));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

#[test]
fn what_a_bios_has_at_its_start_resets_the_machine() {
    // jmp f000:fff0
    let second = [0xea, 0xf0, 0xff, 0x00, 0xf0];
    let kernel = starting_second(&second).hang().bzimage();
    let (_, output) = run(&kernel, &["--vcpus", "2"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(
        text(&output).contains("asked for a reboot"),
        "{}",
        text(&output)
    );
}

/// Starts the second vCPU, in real mode, with this code at a page below 1 MiB, and waits until byte 0x80 of that page is 1.
fn starting_second(second: &[u8]) -> Code {
    let mut code = vec![];
    for (at, byte) in (0x3_0000u32..).zip(second) {
        // mov ecx, at; mov byte [ecx], byte
        code.push(0xb9);
        code.extend(at.to_le_bytes());
        code.extend([0xc6, 0x01, *byte]);
    }
    let mut store = |address: u32, value: u32| {
        // mov ecx, address; mov dword [ecx], value
        code.push(0xb9);
        code.extend(address.to_le_bytes());
        code.extend([0xc7, 0x01]);
        code.extend(value.to_le_bytes());
    };
    // The local APIC: on; to APIC 1: INIT, then start-up at page 0x30.
    store(0xfee0_00f0, 0x1ff);
    store(0xfee0_0310, 1 << 24);
    store(0xfee0_0300, 0x4500);
    store(0xfee0_0300, 0x4630);
    // wait: cmp byte [ecx], 1; jne wait
    code.push(0xb9);
    code.extend(0x3_0080u32.to_le_bytes());
    code.extend([0x80, 0x39, 1, 0x75, 0xfb]);
    Code(code)
}

#[test]
fn input_comes_through_a_pipe() {
    let folder = Folder::new();
    let kernel = code().say("> ").echo_until(b'.').power_off().bzimage();
    let kernel = folder.file("kernel", &kernel);
    for console in ["auto", "stdio"] {
        let mut child = command(&["--kernel", &kernel, "--console", console])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        // The prompt comes though its line does not end.
        let mut prompt = [0; 2];
        output.read_exact(&mut prompt).unwrap();
        assert_eq!(&prompt, b"> ");
        // More than the port's queue holds, and no escape sequence.
        let text = format!("\x01x{}.", "0123456789".repeat(20));
        child
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert!(rest.starts_with(&text), "{rest}");
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn no_terminal_and_no_input_are_needed() {
    let folder = Folder::new();
    let kernel = folder.file("kernel", &code().say("hello\n").power_off().bzimage());
    let input = folder.file("input", b"text");
    for stdin in ["null", "closed", "file"] {
        let mut command = command(&["--kernel", &kernel]);
        match stdin {
            "null" => _ = command.stdin(Stdio::null()),
            "file" => _ = command.stdin(File::open(&input).unwrap()),
            _ => {
                // A shell is the simplest way to start something without standard input.
                let program = command.get_program().to_owned();
                let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
                command = std::process::Command::new("sh");
                command
                    .args(["-c", "exec \"$0\" \"$@\" <&-"])
                    .arg(program)
                    .args(args);
            }
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{stdin}: {}", text(&output));
        assert!(
            output.stdout.starts_with(b"hello\n"),
            "{stdin}: {}",
            text(&output)
        );
    }
}

#[test]
fn large_memory_leaves_a_gap() {
    // Says a byte it has written above 4 GiB, by a page table entry of its own, and the length of the memory map.
    let memory_end = 0x1_0000_0000u64 + (64 << 20);
    assert!(memory_end > AT);
    let kernel = code().say_memory(0x71e8).say("\n").power_off().bzimage();
    for shared in ["0", "32M"] {
        let (said, output) = run(&kernel, &["--memory", "3136M", "--shared", shared]);
        assert_eq!(said, "\u{4}\n", "{}", text(&output));
    }
    let (said, _) = run(&kernel, &[]);
    assert_eq!(said, "\u{3}\n");
}

#[test]
fn the_report_says_how_it_ended() {
    let folder = Folder::new();
    let report = folder.path("report.json");
    let args = ["--json", report.to_str().unwrap(), "--devices", "0"];
    let (_, output) = run(&code().power_off().bzimage(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let report = std::fs::read_to_string(report).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["end"], "power-off");
    assert!(report["kernel"].as_str().unwrap().ends_with("kernel"));
    assert!(report["error"].is_null() && report["workload"].is_null());
    assert_eq!(report["devices"], 0);
}

#[test]
fn a_trace_says_where_memory_is() {
    let folder = Folder::new();
    let trace = folder.path("trace");
    let args = ["--record", trace.to_str().unwrap()];
    let (_, output) = run(&code().power_off().bzimage(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let reader = TraceReader::open(&trace).unwrap();
    let meta = reader.meta();
    assert_eq!((meta.base, meta.memory), (Some(0), 64 << 20));
    assert!(meta.guest.as_ref().unwrap().ends_with("kernel"));
}
