//! The memory trace of valgrind's tool lackey: a line for each instruction fetch (`I`), load (` L`), store (` S`) or
//! both (` M`), with address in hexadecimal and size in bytes. Valgrind's own messages, between `==`, are skipped.

use std::io::BufRead;

use hmm_backend::pages::Access;

use super::Instructions;
use super::importer::{Failure, Importer};
use super::lines::Lines;

/// Reads all lines and gives the importer their accesses, as those of this device or, without one, of a CPU.
pub fn read(
    input: impl BufRead,
    instructions: Instructions,
    device: Option<u8>,
    importer: &mut Importer,
) -> Result<(), Failure> {
    // Devices have no threads.
    let thread = u32::from(device.is_none());
    let mut lines = Lines::new(input, LONGEST);
    while let Some((number, line)) = lines.next()? {
        let wrong = |why: String| Failure::Line(number, why);
        let access = match parse(line) {
            Some(Line::Access(access)) => access,
            Some(Line::Message) => continue,
            None => {
                let text = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
                return Err(wrong(format!(
                    "`{}` is no line of `valgrind --tool=lackey --trace-mem=yes`; let it write to a file of its own with --log-file",
                    text.trim_end()
                )));
            }
        };
        if access.fetch && instructions == Instructions::LeftOut {
            continue;
        }
        let pages = importer
            .addresses
            .pages(access.address, access.size)
            .map_err(wrong)?;
        for page in pages.into_iter().flatten() {
            let result = importer.access(page, access.access, device, thread, None, 1);
            result.map_err(|refused| refused.at(number))?;
        }
    }
    if device.is_none() {
        importer.threads.insert(thread, 0);
    }
    Ok(())
}

/// Longer than any line: valgrind's own messages hold the program's command line.
const LONGEST: u64 = 1 << 20;

enum Line {
    Access(Fetched),
    Message,
}

struct Fetched {
    /// Whether it fetched an instruction.
    fetch: bool,
    access: Access,
    address: u64,
    size: u64,
}

fn parse(line: &[u8]) -> Option<Line> {
    let line = line.trim_ascii_end();
    if line.is_empty() || line.starts_with(b"==") || line.starts_with(b"--") {
        return Some(Line::Message);
    }
    let (kind, rest) = line.split_at_checked(3)?;
    let (fetch, access) = match kind {
        b"I  " => (true, Access::Read),
        b" L " => (false, Access::Read),
        // What is loaded and stored again is written.
        b" S " | b" M " => (false, Access::Write),
        _ => return None,
    };
    let comma = rest.iter().position(|byte| *byte == b',')?;
    let number =
        |digits: &[u8], radix| u64::from_str_radix(str::from_utf8(digits).ok()?, radix).ok();
    Some(Line::Access(Fetched {
        fetch,
        access,
        address: number(&rest[..comma], 16)?,
        size: number(&rest[comma + 1..], 10)?,
    }))
}
