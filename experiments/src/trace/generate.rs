//! Access traces of the built-in workloads.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hmmvisor_accesses::{AccessError, Settings};
use thiserror::Error;

use super::error::TraceError;
use super::meta::{TraceKind, TraceMeta, TraceTotals};
use super::writer::TraceWriter;

/// Why there is no access trace, or not all of it.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// The workload.
    #[error(transparent)]
    Workload(#[from] AccessError),
    /// The file.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// Writes the accesses of a workload into a new trace. See [`hmmvisor_accesses::generate`] for what is in it.
pub fn generate(settings: &Settings, path: &Path) -> Result<TraceTotals, GenerateError> {
    struct Output {
        writer: TraceWriter,
        error: Option<TraceError>,
    }
    fn lock(output: &Mutex<Option<Output>>) -> MutexGuard<'_, Option<Output>> {
        output.lock().unwrap_or_else(PoisonError::into_inner)
    }
    // Before the file: what is refused leaves none.
    let params = hmmvisor_accesses::check(settings)?;
    let meta = TraceMeta {
        kind: TraceKind::Access,
        hmmvisor: env!("CARGO_PKG_VERSION").to_owned(),
        workload: Some(settings.workload.clone()),
        params,
        seed: settings.seed,
        vcpus: settings.vcpus,
        devices: settings.devices,
        memory: settings.memory,
        ..TraceMeta::default()
    };
    let mut writer = TraceWriter::create(path, &meta)?;
    writer.threads((0..settings.vcpus).map(|vcpu| (vcpu + 1, vcpu)).collect());
    let output = Arc::new(Mutex::new(Some(Output {
        writer,
        error: None,
    })));
    let sink = output.clone();
    let result = hmmvisor_accesses::generate(settings, move |event| {
        if let Some(output) = &mut *lock(&sink)
            && output.error.is_none()
        {
            output.error = output.writer.write(&[event]).err();
        }
    });
    let Some(Output { mut writer, error }) = lock(&output).take() else {
        unreachable!("taken only here");
    };
    if let Some(error) = error {
        return Err(error.into());
    }
    // What a workload that failed did before stays, as an unfinished trace.
    writer.flush()?;
    result?;
    Ok(writer.finish()?)
}
