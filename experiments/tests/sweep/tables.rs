use super::*;

use hmmvisor_experiments::sweep::{COLUMNS, Column};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

#[test]
fn csv_and_parquet_say_the_same() {
    let folder = Folder::new();
    let out = settings(&folder.path("out"));
    let broken = Fake {
        broken: vec![1],
        ..Fake::default()
    };
    folder.sweep(SWEEP).unwrap().start(&out, &broken).unwrap();

    let mut csv = csv::Reader::from_path(out.folder.join("results.csv")).unwrap();
    let names: Vec<String> = csv.headers().unwrap().iter().map(str::to_owned).collect();
    let expected: Vec<_> = COLUMNS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expected);
    let records: Vec<_> = csv.records().map(Result::unwrap).collect();

    let file = std::fs::File::open(out.folder.join("results.parquet")).unwrap();
    let parquet = SerializedFileReader::new(file).unwrap();
    let rows: Vec<_> = parquet
        .get_row_iter(None)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!((rows.len(), records.len()), (24, 24));
    for (row, record) in rows.iter().zip(&records) {
        let mut cells = record.iter();
        for ((name, field), (_, column)) in row.get_column_iter().zip(COLUMNS) {
            let cell = cells.next().unwrap();
            let (text, fits) = match field {
                Field::Null => (String::new(), true),
                Field::Str(text) => (text.clone(), *column == Column::Text),
                Field::ULong(number) => (number.to_string(), *column == Column::Integer),
                Field::Double(number) => (number.to_string(), *column == Column::Number),
                other => panic!("{name}: {other:?}"),
            };
            assert!(fits, "{name}: {field:?}");
            assert_eq!(text, cell, "{name}");
        }
    }

    let first: Vec<_> = records[0].iter().collect();
    let cell = |name: &str| first[names.iter().position(|it| it == name).unwrap()];
    for (name, value) in [
        ("run", "0"),
        ("mode", "model"),
        ("source", "bfs"),
        ("params", "vertices=64K"),
        ("policy", "on-demand"),
        ("device_memory_bytes", "8388608"),
        ("link", "pcie"),
        ("link_latency_ns", "10000"),
        ("seed", "1"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("cpu_faults", "901"),
        ("elapsed_s", ""),
        ("error", ""),
    ] {
        assert_eq!(cell(name), value, "{name}");
    }
}

#[test]
fn the_number_of_jobs_changes_nothing() {
    let folder = Folder::new();
    let sweep = folder.sweep(SWEEP).unwrap();
    let tables = [1, 2, 7].map(|jobs| {
        let out = folder.path(&format!("jobs{jobs}"));
        let parallel = Parallel { jobs, live: jobs };
        sweep
            .start(
                &Settings {
                    parallel,
                    ..settings(&out)
                },
                &Fake::default(),
            )
            .unwrap();
        (
            read(&out.join("results.csv")),
            read(&out.join("results.parquet")),
        )
    });
    assert!(tables.windows(2).all(|pair| pair[0] == pair[1]));
}
