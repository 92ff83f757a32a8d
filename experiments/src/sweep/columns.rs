//! The rows as columns of a Parquet file.

use std::io::Write;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, Repetition, Type as PhysicalType, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::row::{COLUMNS, Column, Row};

pub(super) fn write(file: &mut (dyn Write + Send), rows: &[&Row]) -> Result<(), ParquetError> {
    let values: Vec<Map<String, Value>> = rows
        .iter()
        .map(|row| match serde_json::to_value(row) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        })
        .collect();
    let field = |(name, column): &(&str, Column)| {
        let (physical, converted) = match column {
            Column::Text => (PhysicalType::BYTE_ARRAY, ConvertedType::UTF8),
            Column::Integer => (PhysicalType::INT64, ConvertedType::UINT_64),
            Column::Number => (PhysicalType::DOUBLE, ConvertedType::NONE),
        };
        Type::primitive_type_builder(name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_converted_type(converted)
            .build()
            .map(Arc::new)
    };
    let fields = COLUMNS.iter().map(field).collect::<Result<Vec<_>, _>>()?;
    let schema = Type::group_type_builder("run")
        .with_fields(fields)
        .build()?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    for (name, column) in COLUMNS {
        let cells = || {
            values
                .iter()
                .map(|row| row.get(*name).unwrap_or(&Value::Null))
        };
        let present: Vec<i16> = cells().map(|cell| i16::from(!cell.is_null())).collect();
        let Some(mut out) = group.next_column()? else {
            return Err(ParquetError::General(format!("no place for column {name}")));
        };
        let levels = Some(present.as_slice());
        match column {
            Column::Text => {
                let texts: Vec<ByteArray> =
                    cells().filter_map(Value::as_str).map(Into::into).collect();
                out.typed::<ByteArrayType>()
                    .write_batch(&texts, levels, None)?;
            }
            Column::Integer => {
                let numbers: Vec<i64> = cells()
                    .filter_map(Value::as_u64)
                    .map(u64::cast_signed)
                    .collect();
                out.typed::<Int64Type>()
                    .write_batch(&numbers, levels, None)?;
            }
            Column::Number => {
                let numbers: Vec<f64> = cells().filter_map(Value::as_f64).collect();
                out.typed::<DoubleType>()
                    .write_batch(&numbers, levels, None)?;
            }
        }
        out.close()?;
    }
    group.close()?;
    writer.close()?;
    Ok(())
}
