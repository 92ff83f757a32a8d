//! What the way between system memory and a device's memory costs, on the hardware that is modelled.

use std::time::Duration;

/// A link as an affine function: each transfer takes `latency` and its bytes at `bandwidth`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkModel {
    /// Of one transfer.
    pub latency: Duration,
    /// Bytes per second; not 0.
    pub bandwidth: u64,
}

impl Default for LinkModel {
    /// About what PCIe 4.0 with 16 lanes gives in practice: 10 µs and 25 GB/s.
    fn default() -> Self {
        LinkModel {
            latency: Duration::from_micros(10),
            bandwidth: 25_000_000_000,
        }
    }
}

impl LinkModel {
    /// How long a transfer of this many bytes takes.
    pub fn time(&self, bytes: u64) -> Duration {
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.bandwidth.max(1));
        self.latency + Duration::from_nanos(nanoseconds.min(u64::MAX.into()) as u64)
    }
}
