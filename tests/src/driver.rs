//! Scripts for drivers that refuse migrations.

use std::collections::HashMap;

use hmm_backend::driver::{DeviceFolio, FaultError};

/// A script: each folio is refused up to three times, then let through.
pub fn few_refusals() -> impl FnMut(DeviceFolio) -> Option<FaultError> + Send {
    let mut refused = HashMap::new();
    move |folio| {
        let times = refused.entry(folio.cookie).or_insert(0);
        *times += 1;
        match (*times, folio.cookie % 3) {
            (4.., _) | (_, 0) => None,
            (_, 1) => Some(FaultError::Retry),
            _ => Some(FaultError::OutOfMemory),
        }
    }
}
