//! The bounds that scripts run in.

use std::time::Duration;

/// Bounds of one instance of a script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Loops and calls in one event: about 10 ns each.
    pub steps: u32,
    /// Time of one event. When the clock says that it was longer, the thread's CPU time decides.
    pub time: Duration,
    /// Time of loading: a signal that arrives meanwhile has to end the run within a second.
    pub loading: Duration,
    /// Bytes of memory, all that the script keeps included.
    pub memory: usize,
    /// Failures in a row after which the script is not asked again until it is reloaded.
    pub failures: u32,
}

impl Limits {
    /// Steps that loading a script may take, for each step of an event: it may make tables.
    pub(crate) const LOADING_STEPS: u32 = 100;
    /// Bytes of the largest text that an event may make.
    pub(crate) const TEXT: usize = 64 << 10;

    /// The limits of scripts unless the caller sets others.
    pub const DEFAULT: Limits = Limits {
        steps: 50_000,
        time: Duration::from_millis(5),
        loading: Duration::from_millis(200),
        memory: 16 << 20,
        failures: 16,
    };
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::DEFAULT
    }
}
