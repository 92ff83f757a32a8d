//! What the formats' writers share.

use std::io;

use crate::trace::error::TraceError;
use crate::trace::reader::TraceReader;

/// What a format's writer returns: how many events it wrote, and why there were no more; or why it could not write.
pub(super) type Written = io::Result<(u64, Option<TraceError>)>;

/// Calls `each` with the trace's events, up to the first that cannot be read.
pub(super) fn each_event(
    trace: &mut TraceReader,
    mut each: impl FnMut(&hmm_backend::observe::Event) -> io::Result<()>,
) -> Written {
    let mut events = 0;
    for event in trace {
        match event {
            Ok(event) => each(&event)?,
            Err(error) => return Ok((events, Some(error))),
        }
        events += 1;
    }
    Ok((events, None))
}
