//! Replays of trace files: what the file knows, and what is left to choose.

use std::sync::Arc;

use hmm_backend::pages::Fidelity;
use hmm_backend::policy::{LinkMatrix, PolicyFactory};

use super::{Costs, ReplayConfig, ReplayError, Replayed, Time, is_input, replay};
use crate::trace::limits::Named;
use crate::trace::{TraceError, TraceKind, TraceMeta, TraceReader};

/// The choices in the replay of a trace file.
#[derive(Clone)]
pub struct FileReplay {
    /// The policy.
    pub policy: Arc<dyn PolicyFactory>,
    /// Bytes of each device's memory, a multiple of the page size.
    pub device_memory: u64,
    /// The costs of transfers.
    pub links: LinkMatrix,
    /// How much devices tell of their accesses.
    pub fidelity: Fidelity,
    /// The least number of frames that are evicted at a time.
    pub eviction_batch: u32,
    /// Whether to compare with the optimum, for traces where that is possible.
    pub optimal: bool,
}

/// Why a trace file could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum FileReplayError {
    /// The file cannot be read to its end.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// It was recorded with coherent device memory.
    #[error(
        "{file}: it was recorded with coherent device memory, which CPUs reach without a fault; replays know private device memory only, so its outcome would be another one. Record it with private device memory (the default)"
    )]
    Coherent {
        /// The file.
        file: String,
    },
    /// The trace cannot be replayed.
    #[error("{file}: {error}")]
    Replay {
        /// The file.
        file: String,
        /// The cause.
        #[source]
        error: ReplayError,
    },
}

impl FileReplay {
    /// Returns the configuration of a replay: these choices, and what the trace says about itself.
    pub fn config(&self, meta: &TraceMeta) -> ReplayConfig {
        let devices = meta.devices.clamp(1, 64) as u8;
        ReplayConfig {
            policy: self.policy.clone(),
            memory: meta.memory,
            device_memory: self.device_memory,
            devices,
            links: self.links.clone(),
            costs: Costs::default(),
            fidelity: self.fidelity,
            eviction_batch: self.eviction_batch,
            time: match meta.kind {
                TraceKind::Live => Time::Trace,
                TraceKind::Access => Time::Modelled,
            },
            // The trace of a live run does not hold what needed no service.
            optimal: self.optimal && devices == 1 && meta.kind == TraceKind::Access,
            moves: false,
        }
    }

    /// Checks that a replay of the trace means something.
    ///
    /// # Errors
    /// The trace was recorded with coherent device memory, which replays do not have.
    pub fn check(reader: &TraceReader) -> Result<(), FileReplayError> {
        match reader.meta().is_coherent() {
            true => Err(FileReplayError::Coherent {
                file: reader.path().display().to_string(),
            }),
            false => Ok(()),
        }
    }

    /// Replays all that can be read of it.
    pub fn run(&self, mut reader: TraceReader) -> Result<Replayed, FileReplayError> {
        FileReplay::check(&reader)?;
        let config = self.config(reader.meta());
        let bytes = reader.length();
        let (mut named, mut number) = (Named::default(), 0);
        // Set when events end before the trace does: why.
        let mut broken = None;
        let file = reader.path().display().to_string();
        let refused = |error| FileReplayError::Replay { file, error };
        let events = std::iter::from_fn(|| {
            let event = match reader.next()? {
                Ok(event) => event,
                Err(error) => {
                    broken = Some(Broken::Trace(error));
                    return None;
                }
            };
            if is_input(&event) {
                named.add(&event);
                if let Err(pages) = named.check(bytes) {
                    let event = number;
                    broken = Some(Broken::Pages(ReplayError::TooManyPages {
                        event,
                        pages,
                        bytes,
                    }));
                    return None;
                }
                number += 1;
            }
            Some(event)
        });
        let outcome = replay(events, &config);
        match broken {
            Some(Broken::Trace(error)) => Err(error.into()),
            Some(Broken::Pages(error)) => Err(refused(error)),
            None => outcome.map_err(refused),
        }
    }
}

/// Why not all of a file's events are replayed.
enum Broken {
    Trace(TraceError),
    Pages(ReplayError),
}
