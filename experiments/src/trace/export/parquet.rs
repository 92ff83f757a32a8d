//! Parquet: the same columns as CSV, with types; the trace's description is in the file's metadata under the key `hmmvisor`.

use std::io;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::events::{Written, each_event};
use super::row::ExportRow;
use crate::output::Output;
use crate::trace::TraceReader;

/// The number of rows in a group. One group is held in memory.
const GROUP: usize = 1 << 17;

/// The columns' types, in the order of [`super::COLUMNS`].
const SCHEMA: &str = "message event {
    REQUIRED INT64 time_ns;
    REQUIRED BYTE_ARRAY kind (STRING);
    REQUIRED INT64 page;
    REQUIRED INT64 pages;
    OPTIONAL INT32 device;
    OPTIONAL BYTE_ARRAY cause (STRING);
    OPTIONAL BYTE_ARRAY access (STRING);
    OPTIONAL INT64 thread;
    OPTIONAL INT32 vcpu;
    OPTIONAL INT64 latency_ns;
    OPTIONAL INT64 hold_ns;
    OPTIONAL BYTE_ARRAY hint (STRING);
    REQUIRED INT64 repeats;
}";

/// Writes a row for each event, in groups.
pub fn write(trace: &mut TraceReader, file: &mut Output) -> Written {
    let threads = trace.totals().threads.clone();
    let meta = serde_json::to_string(trace.meta())?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_created_by(format!("hmmvisor {}", env!("CARGO_PKG_VERSION")))
        .set_key_value_metadata(Some(vec![KeyValue::new("hmmvisor".to_owned(), meta)]))
        .build();
    let schema = Arc::new(parse_message_type(SCHEMA).map_err(failed)?);
    let mut out = SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(failed)?;
    let mut rows = Vec::new();
    let written = each_event(trace, |event| {
        rows.push(ExportRow::new(event, &threads));
        if rows.len() == GROUP {
            write_group(&mut out, &rows).map_err(failed)?;
            rows.clear();
        }
        Ok(())
    })?;
    if !rows.is_empty() {
        write_group(&mut out, &rows).map_err(failed)?;
    }
    out.close().map_err(failed)?;
    Ok(written)
}

fn write_group(
    out: &mut SerializedFileWriter<&mut Output>,
    rows: &[ExportRow],
) -> Result<(), ParquetError> {
    let mut group = out.next_row_group()?;
    let mut index = 0;
    while let Some(mut column) = group.next_column()? {
        match (index, column.untyped()) {
            (0, ColumnWriter::Int64ColumnWriter(w)) => required(w, rows, |row| row.time),
            (1, ColumnWriter::ByteArrayColumnWriter(w)) => required(w, rows, |row| text(row.kind)),
            (2, ColumnWriter::Int64ColumnWriter(w)) => required(w, rows, |row| row.page),
            (3, ColumnWriter::Int64ColumnWriter(w)) => required(w, rows, |row| row.pages),
            (4, ColumnWriter::Int32ColumnWriter(w)) => optional(w, rows, |row| row.device),
            (5, ColumnWriter::ByteArrayColumnWriter(w)) => {
                optional(w, rows, |row| row.cause.map(text))
            }
            (6, ColumnWriter::ByteArrayColumnWriter(w)) => {
                optional(w, rows, |row| row.access.map(text))
            }
            (7, ColumnWriter::Int64ColumnWriter(w)) => optional(w, rows, |row| row.thread),
            (8, ColumnWriter::Int32ColumnWriter(w)) => optional(w, rows, |row| row.vcpu),
            (9, ColumnWriter::Int64ColumnWriter(w)) => optional(w, rows, |row| row.latency),
            (10, ColumnWriter::Int64ColumnWriter(w)) => optional(w, rows, |row| row.hold),
            (11, ColumnWriter::ByteArrayColumnWriter(w)) => {
                optional(w, rows, |row| row.hint.as_deref().map(text))
            }
            (12, ColumnWriter::Int64ColumnWriter(w)) => required(w, rows, |row| row.repeats),
            _ => Err(ParquetError::General(format!(
                "column {index} has another type than the schema says"
            ))),
        }?;
        column.close()?;
        index += 1;
    }
    group.close()?;
    Ok(())
}

type Writer<'a, T> = parquet::column::writer::ColumnWriterImpl<'a, T>;

fn required<T: parquet::data_type::DataType>(
    writer: &mut Writer<'_, T>,
    rows: &[ExportRow],
    value: impl Fn(&ExportRow) -> T::T,
) -> Result<(), ParquetError> {
    let values: Vec<T::T> = rows.iter().map(value).collect();
    writer.write_batch(&values, None, None).map(drop)
}

fn optional<T: parquet::data_type::DataType>(
    writer: &mut Writer<'_, T>,
    rows: &[ExportRow],
    value: impl Fn(&ExportRow) -> Option<T::T>,
) -> Result<(), ParquetError> {
    let values: Vec<Option<T::T>> = rows.iter().map(value).collect();
    let present: Vec<i16> = values
        .iter()
        .map(|value| i16::from(value.is_some()))
        .collect();
    let values: Vec<T::T> = values.into_iter().flatten().collect();
    writer.write_batch(&values, Some(&present), None).map(drop)
}

fn text(name: &str) -> ByteArray {
    ByteArray::from(name)
}

fn failed(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(error) => match error.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(error) => io::Error::other(error),
        },
        other => io::Error::other(other),
    }
}
