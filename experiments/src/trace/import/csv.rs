//! Tables: what `trace export --format csv` writes of an access trace, and what others can easily write.

use std::collections::HashMap;
use std::io::BufRead;
use std::num::IntErrorKind;

use csv_core::ReadRecordResult;
use hmm_backend::observe::EventKind;
use hmm_backend::pages::{Access, Hint, Page, PageRange};

use super::importer::{Failure, Importer, Refused};
use super::lines::Lines;
use crate::figures::count;
use crate::trace::limits;

/// The most bytes of a line, and so of a field.
const LONGEST: u64 = 64 << 10;

/// The positions of the columns that are read.
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
    repeats: Option<usize>,
}

/// Reads a table and gives the importer what its lines say.
pub fn read(input: impl BufRead, importer: &mut Importer) -> Result<(), Failure> {
    let mut lines = Lines::new(input, LONGEST);
    let mut row = CsvRow::new();
    let mut columns = None;
    while let Some((number, line)) = lines.next()? {
        if line.is_empty() {
            continue;
        }
        row.read(line).map_err(|why| Failure::Line(number, why))?;
        let Some((columns, names)) = &columns else {
            columns = Some((Columns::new(&row, number)?, row.len()));
            continue;
        };
        if row.len() != *names {
            let columns = count(row.len() as u64, "column");
            let why = format!("it has {columns}, the first line names {names}");
            return Err(Failure::Line(number, why));
        }
        let result = columns.row(&row, importer);
        result.map_err(|refused| refused.at(number))?;
    }
    match columns {
        Some(_) => Ok(()),
        None => Err(Failure::Line(1, NO_COLUMNS.to_owned())),
    }
}

const NO_COLUMNS: &str =
    "the first line must name the columns, and `page` or `address` must be one of them";

/// The fields of a line.
struct CsvRow {
    parser: csv_core::Reader,
    text: Vec<u8>,
    /// The end of each field in `text`.
    ends: Vec<usize>,
}

impl CsvRow {
    fn new() -> CsvRow {
        CsvRow {
            parser: csv_core::Reader::new(),
            text: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Takes a line apart. A row has one line: a quote that is not closed in it would take the rest of the table for its
    /// contents.
    fn read(&mut self, line: &[u8]) -> Result<(), String> {
        self.text.resize(line.len() + 1, 0);
        self.ends.resize(line.len() + 1, 0);
        let parser = &mut self.parser;
        let (_, read, text, ends) = parser.read_record(line, &mut self.text, &mut self.ends);
        if read < line.len() {
            return Err(format!(
                "a carriage return is at its byte {read}, not at its end"
            ));
        }
        let (result, _, _, last) =
            parser.read_record(b"\n", &mut self.text[text..], &mut self.ends[ends..]);
        self.ends.truncate(ends + last);
        if result != ReadRecordResult::Record {
            return Err(format!(
                "column {} begins with a quote that is not closed in this line",
                ends + 1
            ));
        }
        let end = self.ends.last().copied().unwrap_or(0);
        self.text.truncate(end);
        Ok(())
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns a field, without spaces around it.
    fn get(&self, column: usize) -> Result<&str, String> {
        let start = column.checked_sub(1).map_or(0, |before| self.ends[before]);
        let field = &self.text[start..self.ends[column]];
        let text = str::from_utf8(field);
        let text = text.map_err(|_| format!("column {} is not UTF-8", column + 1))?;
        Ok(text.trim())
    }
}

impl Columns {
    /// Finds the columns by the names in the first line.
    fn new(row: &CsvRow, line: u64) -> Result<Columns, Failure> {
        let wrong = |why| Failure::Line(line, why);
        let mut names = Vec::new();
        for column in 0..row.len() {
            names.push(row.get(column).map_err(wrong)?);
        }
        let mut places = HashMap::new();
        for (column, name) in names.into_iter().enumerate() {
            if let Some(first) = places.insert(name, column)
                && !name.is_empty()
            {
                return Err(wrong(format!(
                    "columns {} and {} are both named {}",
                    first + 1,
                    column + 1,
                    shown(name)
                )));
            }
        }
        let find = |wanted: &str| places.get(wanted).copied();
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
            repeats: find("repeats"),
        };
        match (columns.page, columns.address) {
            (None, None) => Err(wrong(NO_COLUMNS.to_owned())),
            (Some(_), Some(_)) => Err(wrong(
                "there are columns `page` and `address`; there must be one of them".to_owned(),
            )),
            _ => Ok(columns),
        }
    }

    fn row(&self, row: &CsvRow, importer: &mut Importer) -> Result<(), Refused> {
        let device = below(row, self.device, "device", limits::DEVICES.into())?;
        let device = device.map(|device| device as u8);
        let vcpu = below(row, self.vcpu, "vcpu", limits::THREADS as u64)?;
        let vcpu = vcpu.map(|vcpu| vcpu as u32);
        let thread = below(row, self.thread, "thread", 1 << 32)?;
        // vCPU n is thread n + 1 unless the table knows better; a device has none, and so has a row without one in a table that
        // names threads.
        let thread = match (thread, vcpu, device) {
            (Some(thread), ..) => thread as u32,
            (None, Some(vcpu), _) => vcpu + 1,
            (None, None, None) if self.thread.is_none() => 1,
            (None, None, None) => 0,
            (None, None, Some(_)) => 0,
        };
        if device.is_none() {
            // A table that names no vCPUs has one.
            let vcpu = vcpu.or((self.vcpu.is_none() && self.thread.is_none()).then_some(0));
            vcpu.map_or(Ok(()), |vcpu| importer.thread(thread, vcpu))?;
        }
        let time = below(row, self.time, "time_ns", limits::TIME + 1)?;
        let kind = cell(row, self.kind)?.unwrap_or("access");
        // Whatever else such a row has says nothing about accesses.
        if !["access", "freed", "hint"].contains(&kind) {
            return Err(wrong_cell(no_access(kind), self.kind).into());
        }
        let repeats = below(row, self.repeats, "repeats", 1 << 32)?.unwrap_or(1);
        if repeats == 0 {
            return Err(wrong_cell("repeats 0: there is at least one", self.repeats).into());
        }
        let ranges = self.ranges(row, importer)?;
        for range in ranges.into_iter().flatten() {
            match kind {
                "access" => {
                    let access = match cell(row, self.access)? {
                        None => Access::Read,
                        Some(word) => access(word).map_err(|why| wrong_cell(why, self.access))?,
                    };
                    importer.access(range, access, device, thread, time, repeats as u32)?;
                }
                "freed" => importer.freed(range, device, thread, time)?,
                "hint" => {
                    let hint = cell(row, self.hint)?.unwrap_or_default();
                    let hint = hint.parse::<Hint>();
                    let hint = hint.map_err(|why| wrong_cell(why, self.hint))?;
                    importer.hint(range, hint, time)?;
                }
                other => return Err(wrong_cell(no_access(other), self.kind).into()),
            }
        }
        Ok(())
    }

    fn ranges(
        &self,
        row: &CsvRow,
        importer: &mut Importer,
    ) -> Result<[Option<PageRange>; 2], String> {
        if let Some(address) = number(row, self.address, "address")? {
            let size = number(row, self.size, "size")?.unwrap_or(1);
            let pages = importer.addresses.pages(address, size);
            return pages.map_err(|why| wrong_cell(why, self.address));
        }
        let Some(page) = number(row, self.page, "page")? else {
            return Err("there is neither a page nor an address".to_owned());
        };
        let pages = number(row, self.pages, "pages")?.unwrap_or(1);
        let end = page.checked_add(pages);
        match end.filter(|end| pages > 0 && *end <= limits::PAGES.into()) {
            Some(end) => {
                let range = PageRange::new(Page(page as u32), Page(end as u32));
                Ok([Some(range), None])
            }
            None => Err(wrong_cell(
                format!(
                    "{} from page {page}: there is at least one, and pages are 0 to {}; a column `address` takes any address",
                    count(pages, "page"),
                    limits::PAGES - 1
                ),
                self.page,
            )),
        }
    }
}

/// Returns the text of the mistake that is a row of such a kind.
fn no_access(kind: &str) -> String {
    let is_recorded = EventKind::ALL.iter().any(|it| it.name() == kind);
    let shown = shown(kind);
    match is_recorded {
        true => format!(
            "events of kind {shown} are those of a live run: an exported live trace cannot be imported, because the accesses between its faults are not in it"
        ),
        false => {
            format!("events of kind {shown} are no accesses; there are access, freed and hint")
        }
    }
}

/// Returns the text of a mistake, with its column.
fn wrong_cell(why: impl std::fmt::Display, column: Option<usize>) -> String {
    match column {
        Some(column) => format!("{why} (column {})", column + 1),
        None => why.to_string(),
    }
}

/// Returns the text in a column, if it is not empty.
fn cell(row: &CsvRow, column: Option<usize>) -> Result<Option<&str>, String> {
    let text = column.map(|column| row.get(column)).transpose()?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// Returns the number in a column, decimal or hexadecimal with `0x`; none if the column is empty.
fn number(row: &CsvRow, column: Option<usize>, name: &str) -> Result<Option<u64>, String> {
    let Some(text) = cell(row, column)? else {
        return Ok(None);
    };
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let why = |error: std::num::ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => format!("{name} {} is beyond 64 bits", shown(text)),
        _ => format!("{name} {} is no number", shown(text)),
    };
    number
        .map(Some)
        .map_err(|error| wrong_cell(why(error), column))
}

/// Returns the number in a column; an error if it is not less than `end`.
fn below(row: &CsvRow, column: Option<usize>, name: &str, end: u64) -> Result<Option<u64>, String> {
    match number(row, column, name)? {
        Some(number) if number >= end => Err(wrong_cell(
            format!("{name} {number} is beyond {}", end - 1),
            column,
        )),
        number => Ok(number),
    }
}

/// Returns a field as messages show it: not all of a long one.
fn shown(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}

fn access(word: &str) -> Result<Access, String> {
    match word {
        "read" | "r" | "R" | "L" => Ok(Access::Read),
        "write" | "w" | "W" | "S" | "M" => Ok(Access::Write),
        _ => Err(format!("access {} is neither read nor write", shown(word))),
    }
}
