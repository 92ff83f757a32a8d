//! Tables: what `trace export --format csv` writes of an access trace, and what others can easily write.

use std::io::BufRead;

use csv::StringRecord;
use hmm_backend::{Access, Hint, Page, PageRange};

use super::{Failure, Importer};

/// Where the columns are that are read.
struct Columns {
    page: Option<usize>,
    pages: Option<usize>,
    address: Option<usize>,
    size: Option<usize>,
    access: Option<usize>,
    kind: Option<usize>,
    device: Option<usize>,
    thread: Option<usize>,
    vcpu: Option<usize>,
    time: Option<usize>,
    hint: Option<usize>,
}

pub fn read(input: impl BufRead, importer: &mut Importer) -> Result<(), Failure> {
    let mut table = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(input);
    let columns = Columns::new(table.headers().map_err(failed)?)?;
    let mut row = StringRecord::new();
    while table.read_record(&mut row).map_err(failed)? {
        let line = row.position().map_or(0, csv::Position::line);
        columns
            .row(&row, importer)
            .map_err(|failure| match failure {
                Wrong::Row(why) => Failure::Line(line, why),
                Wrong::Other(failure) => failure,
            })?;
    }
    Ok(())
}

/// What is wrong with a row, or with something else.
enum Wrong {
    Row(String),
    Other(Failure),
}

impl From<String> for Wrong {
    fn from(why: String) -> Wrong {
        Wrong::Row(why)
    }
}

impl From<super::TraceError> for Wrong {
    fn from(error: super::TraceError) -> Wrong {
        Wrong::Other(error.into())
    }
}

impl Columns {
    fn new(names: &StringRecord) -> Result<Columns, Failure> {
        let find = |wanted| names.iter().position(|name| name == wanted);
        let columns = Columns {
            page: find("page"),
            pages: find("pages"),
            address: find("address"),
            size: find("size"),
            access: find("access"),
            kind: find("kind"),
            device: find("device"),
            thread: find("thread"),
            vcpu: find("vcpu"),
            time: find("time_ns"),
            hint: find("hint"),
        };
        match (columns.page, columns.address) {
            (None, None) => Err(Failure::Line(
                1,
                "the first line must name the columns, and `page` or `address` must be one of them"
                    .to_owned(),
            )),
            (Some(_), Some(_)) => Err(Failure::Line(
                1,
                "there are columns `page` and `address`; there must be one of them".to_owned(),
            )),
            _ => Ok(columns),
        }
    }

    fn row(&self, row: &StringRecord, importer: &mut Importer) -> Result<(), Wrong> {
        let device = number(row, self.device, "device")?;
        let device =
            device.map(|n| u8::try_from(n).map_err(|_| format!("device {n} is beyond 255")));
        let device = device.transpose()?;
        let small =
            |what, n: u64| u32::try_from(n).map_err(|_| format!("{what} {n} is beyond 32 bits"));
        let vcpu = number(row, self.vcpu, "vcpu")?
            .map(|n| small("vcpu", n))
            .transpose()?;
        let thread = number(row, self.thread, "thread")?
            .map(|n| small("thread", n))
            .transpose()?;
        // vCPU n is thread n + 1 unless the table knows better; a device has none.
        let thread = thread.unwrap_or_else(|| match (vcpu, device) {
            (Some(vcpu), _) => vcpu.saturating_add(1),
            (None, None) => 1,
            (None, Some(_)) => 0,
        });
        if device.is_none() {
            // Whoever names no vCPU has one.
            let vcpu = vcpu.or((self.vcpu.is_none() && self.thread.is_none()).then_some(0));
            importer.threads.extend(vcpu.map(|vcpu| (thread, vcpu)));
        }
        let time = number(row, self.time, "time_ns")?;
        let kind = cell(row, self.kind).unwrap_or("access");
        let ranges = self.ranges(row, importer)?;
        for range in ranges.into_iter().flatten() {
            match kind {
                "access" => {
                    let access = match cell(row, self.access) {
                        None => Access::Read,
                        Some(word) => access(word)?,
                    };
                    importer.access(range, access, device, thread, time)?;
                }
                "freed" => importer.freed(range, device, thread, time)?,
                "hint" => {
                    let hint = cell(row, self.hint).unwrap_or_default();
                    importer.hint(range, hint.parse::<Hint>()?, time)?;
                }
                other => {
                    return Err(format!(
                        "events of kind `{other}` are no accesses; there are access, freed and hint"
                    )
                    .into());
                }
            }
        }
        Ok(())
    }

    fn ranges(
        &self,
        row: &StringRecord,
        importer: &mut Importer,
    ) -> Result<[Option<PageRange>; 2], String> {
        if let Some(address) = number(row, self.address, "address")? {
            let size = number(row, self.size, "size")?.unwrap_or(1);
            return importer.addresses.pages(address, size);
        }
        let Some(page) = number(row, self.page, "page")? else {
            return Err("there is neither a page nor an address".to_owned());
        };
        let pages = number(row, self.pages, "pages")?.unwrap_or(1);
        let end = page
            .checked_add(pages)
            .and_then(|end| u32::try_from(end).ok());
        match end {
            Some(end) if pages > 0 => {
                let range = PageRange::new(Page(page as u32), Page(end));
                Ok([Some(range), None])
            }
            _ => Err(format!(
                "{pages} pages from page {page}: there are 1 to 4294967295"
            )),
        }
    }
}

/// What is in a column, if there is anything.
fn cell(row: &StringRecord, column: Option<usize>) -> Option<&str> {
    row.get(column?).filter(|text| !text.is_empty())
}

/// A number, decimal or hexadecimal with `0x`.
fn number(row: &StringRecord, column: Option<usize>, name: &str) -> Result<Option<u64>, String> {
    let Some(text) = cell(row, column) else {
        return Ok(None);
    };
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number
        .map(Some)
        .map_err(|_| format!("{name} `{text}` is no number"))
}

fn access(word: &str) -> Result<Access, String> {
    match word {
        "read" | "r" | "R" | "L" => Ok(Access::Read),
        "write" | "w" | "W" | "S" | "M" => Ok(Access::Write),
        _ => Err(format!("access `{word}` is neither read nor write")),
    }
}

fn failed(error: csv::Error) -> Failure {
    let line = error.position().map_or(0, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(error) => Failure::Input(error),
        csv::ErrorKind::Utf8 { .. } => Failure::Line(line, "it is not UTF-8".to_owned()),
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => Failure::Line(
            line,
            format!("it has {len} columns, the first line names {expected_len}"),
        ),
        _ => Failure::Line(line, "it is no CSV".to_owned()),
    }
}
