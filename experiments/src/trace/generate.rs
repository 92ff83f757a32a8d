//! Access traces of the built-in workloads.

use std::sync::Arc;

use hmmvisor_accesses::{AccessError, Settings};
use parking_lot::Mutex;
use thiserror::Error;

use super::error::TraceError;
use super::meta::{TraceKind, TraceMeta, TraceTotals};
use super::writer::TraceWriter;
use crate::output::Output;

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

/// Writes the accesses of a workload into a trace. See [`hmmvisor_accesses::generate`] for what is in it.
pub fn generate(settings: &Settings, output: Output) -> Result<TraceTotals, GenerateError> {
    struct Sink {
        writer: TraceWriter,
        error: Option<TraceError>,
    }
    // Parameters are checked before the file is made, so that what is refused leaves none.
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
    let mut writer = TraceWriter::new(output, &meta)?;
    writer.threads((0..settings.vcpus).map(|vcpu| (vcpu + 1, vcpu)).collect());
    let sink = Arc::new(Mutex::new(Some(Sink {
        writer,
        error: None,
    })));
    let shared = sink.clone();
    let result = hmmvisor_accesses::generate(settings, move |event| {
        if let Some(sink) = &mut *shared.lock()
            && sink.error.is_none()
        {
            sink.error = sink.writer.write(&[event]).err();
        }
    });
    let Some(Sink { mut writer, error }) = sink.lock().take() else {
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
