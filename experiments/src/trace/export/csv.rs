//! CSV: a line with the columns' names, then one for each event.

use std::io::{self, BufWriter};

use super::events::{Written, each_event};
use super::row::{COLUMNS, ExportRow};
use crate::output::Output;
use crate::trace::TraceReader;

/// Writes the columns' names and a line for each event.
pub fn write(trace: &mut TraceReader, file: &mut Output) -> Written {
    let threads = trace.totals().threads.clone();
    let mut out = csv::Writer::from_writer(BufWriter::with_capacity(1 << 18, file));
    out.write_record(COLUMNS).map_err(failed)?;
    let written = each_event(trace, |event| {
        let row = ExportRow::new(event, &threads);
        out.serialize((
            row.time,
            row.kind,
            row.page,
            row.pages,
            row.device,
            row.cause,
            row.access,
            row.thread,
            row.vcpu,
            row.latency,
            row.hold,
            row.hint,
            row.repeats,
        ))
        .map_err(failed)
    })?;
    out.flush()?;
    Ok(written)
}

/// Returns the system's own error, whose kind and number say what was wrong.
fn failed(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}
