//! Kernels of a few bytes, and how the command runs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Where these kernels are loaded.
pub const AT: u64 = 16 << 20;
/// Memory they ask for.
pub const INIT_SIZE: u32 = 1 << 20;
const SETUP_SECTORS: usize = 2;
/// The 64-bit entry's offset.
const ENTRY_64: usize = 0x200;

/// Machine code that is the same in 32-bit and 64-bit mode.
#[derive(Default)]
pub struct Code(pub Vec<u8>);

impl Code {
    fn add(mut self, bytes: &[u8]) -> Code {
        self.0.extend(bytes);
        self
    }

    /// Writes a byte to a port.
    pub fn out(self, port: u16, value: u8) -> Code {
        let [low, high] = port.to_le_bytes();
        // mov dx, port; mov al, value; out dx, al
        self.add(&[0x66, 0xba, low, high, 0xb0, value, 0xee])
    }

    /// Says something at the serial port.
    pub fn say(self, text: &str) -> Code {
        text.bytes().fold(self, |code, byte| code.out(0x3f8, byte))
    }

    /// Says the byte that it reads from a port.
    pub fn say_port(self, port: u16) -> Code {
        let [low, high] = port.to_le_bytes();
        // mov dx, port; in al, dx; mov dx, 0x3f8; out dx, al
        self.add(&[0x66, 0xba, low, high, 0xec, 0x66, 0xba, 0xf8, 0x03, 0xee])
    }

    /// Says the byte at an address below 2 GiB.
    pub fn say_memory(self, address: u32) -> Code {
        // mov ecx, address; mov al, [ecx]; mov dx, 0x3f8; out dx, al
        self.add(&[0xb9])
            .add(&address.to_le_bytes())
            .add(&[0x8a, 0x01, 0x66, 0xba, 0xf8, 0x03, 0xee])
    }

    /// Opens the serial port for input, and says what comes, until it has said `last`.
    pub fn echo_until(self, last: u8) -> Code {
        // Wants interrupts for input, though none reaches it. Then:
        // wait: mov dx, 0x3fd; in al, dx; test al, 1; jz wait; mov dx, 0x3f8; in al, dx; out dx, al; cmp al, last; jne wait
        self.out(0x3f9, 1).add(&[
            0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec,
            0xee, 0x3c, last, 0x75, 0xed,
        ])
    }

    /// Switches the machine off.
    pub fn power_off(self) -> Code {
        self.out(0x600, 5 << 2 | 1 << 5).hang()
    }

    /// Resets the machine.
    pub fn reset(self) -> Code {
        self.out(0x602, 1).hang()
    }

    /// Does nothing for ever.
    pub fn hang(self) -> Code {
        self.add(&[0xeb, 0xfe])
    }

    /// A bzImage that begins with this code at its 64-bit entry.
    pub fn bzimage(&self) -> Vec<u8> {
        let mut file = vec![0; (SETUP_SECTORS + 1) * 512];
        file.extend([0; ENTRY_64]);
        file.extend(&self.0);
        let code = file.len() - (SETUP_SECTORS + 1) * 512;
        let paragraphs = code.div_ceil(16);
        file.resize((SETUP_SECTORS + 1) * 512 + paragraphs * 16, 0);
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[SETUP_SECTORS as u8]);
        put(0x1f4, &(paragraphs as u32).to_le_bytes());
        put(0x1fe, &[0x55, 0xaa]);
        put(0x202, b"HdrS");
        put(0x206, &0x20fu16.to_le_bytes());
        put(0x211, &[1]);
        put(0x214, &0x10_0000u32.to_le_bytes());
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x236, &1u16.to_le_bytes());
        put(0x238, &2047u32.to_le_bytes());
        put(0x258, &AT.to_le_bytes());
        put(0x260, &INIT_SIZE.to_le_bytes());
        file
    }

    /// An ELF file whose PVH entry is this code.
    pub fn vmlinux(&self) -> Vec<u8> {
        self.elf(Some(AT as u32))
    }

    /// An ELF file with this PVH entry, or none.
    pub fn elf(&self, entry: Option<u32>) -> Vec<u8> {
        const HEADERS: u64 = 64 + 3 * 56;
        let mut note = Vec::new();
        let kind: u32 = if entry.is_some() { 18 } else { 1 };
        for number in [4, 4, kind] {
            note.extend(number.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(entry.unwrap_or(0).to_le_bytes());
        let code_at = HEADERS + note.len() as u64;

        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        file.extend([AT, 64, 0].iter().flat_map(|n: &u64| n.to_le_bytes()));
        file.extend([0; 4]);
        file.extend([64u16, 56, 3, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
        let mut segment = |kind: u32, offset: u64, address: u64, size: u64, memory: u64| {
            file.extend([kind, 7].iter().flat_map(|n| n.to_le_bytes()));
            let numbers = [offset, address, address, size, memory, 4];
            file.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
        };
        let len = self.0.len() as u64;
        segment(4, HEADERS, 0, note.len() as u64, note.len() as u64);
        segment(1, code_at, AT, len, len.max(INIT_SIZE.into()));
        // Without contents: where in the file they would be means nothing.
        segment(1, 1 << 40, AT + u64::from(INIT_SIZE), 0, 4096);
        file.extend(note);
        file.extend(&self.0);
        file
    }
}

/// A folder with files for one test.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn file(&self, name: &str, contents: &[u8]) -> String {
        fs::write(self.path(name), contents).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }
}

/// The command, with these arguments for `run` and a small guest memory.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hmmvisor"));
    command.arg("run").args(args);
    // A kernel that does not end as it should must not keep the test for ever.
    for default in [["--memory", "64M"], ["--watchdog", "60"]] {
        if !args.contains(&default[0]) {
            command.args(default);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a kernel and returns what it said and how that ended.
pub fn run(kernel: &[u8], args: &[&str]) -> (String, Output) {
    let folder = Folder::new();
    let (kernel, log) = (folder.file("kernel", kernel), folder.path("console"));
    let with = ["--kernel", &kernel, "--console", log.to_str().unwrap()];
    let output = command(&[&with, args].concat()).output().unwrap();
    let said = fs::read(log).map(|bytes| bytes.iter().map(|byte| char::from(*byte)).collect());
    (said.unwrap_or_default(), output)
}

/// Standard output and error, for messages.
pub fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{}\n{out}{err}", output.status)
}

/// An initial ramdisk with nothing in it.
pub fn initrd() -> Vec<u8> {
    let mut archive = b"070701".to_vec();
    for number in 0..13 {
        let value = if number == 11 { 11 } else { 0 };
        archive.extend(format!("{value:08X}").as_bytes());
    }
    archive.extend(b"TRAILER!!!\0\0\0\0");
    archive
}

/// As a path for a command line.
pub fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}
