//! How long tests wait before they call something a hang.

use std::sync::LazyLock;
use std::time::Duration;

/// By what tests are more patient than usual.
const VARIABLE: &str = "HMMVISOR_TEST_PATIENCE";

static FACTOR: LazyLock<u32> = LazyLock::new(|| match std::env::var(VARIABLE) {
    Ok(factor) => match factor.parse() {
        Ok(factor @ 1..=1000) => factor,
        _ => panic!("{VARIABLE}: \"{factor}\" is not a whole number from 1 to 1000"),
    },
    Err(_) => 1,
});

/// This time, or that many times as much as the environment variable `HMMVISOR_TEST_PATIENCE` says: for machines that are emulated. No test
/// takes longer for it, but one that hangs.
pub fn patient(time: Duration) -> Duration {
    time * *FACTOR
}
