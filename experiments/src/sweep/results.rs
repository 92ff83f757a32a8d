//! The tables and the page in a sweep's folder: opened before the runs, so that what cannot be written is known by then,
//! and put there together when all of them could be made.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use super::error::SweepError;
use super::row::Row;
use super::{PAGE, TABLES, table};
use crate::output::{Files, Output, OutputError};
use crate::report::sweep_page;

pub(super) struct Results {
    csv: Output,
    #[cfg(feature = "parquet")]
    parquet: Output,
    page: Output,
}

impl Results {
    /// Opens them; nothing is changed yet.
    pub(super) fn open(folder: &Path, files: &mut Files) -> Result<Results, OutputError> {
        Ok(Results {
            csv: files.whole("the table", &folder.join(TABLES[0]))?,
            #[cfg(feature = "parquet")]
            parquet: files.whole("the table", &folder.join(TABLES[1]))?,
            page: files.whole("the page", &folder.join(PAGE))?,
        })
    }

    /// Writes them; the folder's journal has these rows.
    pub(super) fn write(
        mut self,
        folder: &Path,
        rows: &BTreeMap<usize, Row>,
    ) -> Result<(), SweepError> {
        let rows: Vec<&Row> = rows.values().collect();
        table::write_csv(&mut self.csv, &rows)?;
        #[cfg(feature = "parquet")]
        table::write_parquet(&mut self.parquet, &rows)?;
        let page = sweep_page(folder)?;
        let written = self.page.write_all(page.as_bytes());
        written.map_err(|error| table::failed(self.page.path(), error))?;
        put(self.csv)?;
        #[cfg(feature = "parquet")]
        put(self.parquet)?;
        put(self.page)
    }
}

fn put(output: Output) -> Result<(), SweepError> {
    let path = output.path().to_owned();
    output.commit().map_err(|error| table::failed(&path, error))
}
