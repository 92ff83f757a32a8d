//! System calls that a signal has interrupted: tried again, but not without end.

use std::io;
use std::thread;
use std::time::Duration;

/// Interruptions of a call that are one after the other.
const MOST: u32 = 1000;
/// The first ones are followed by a try at once, the others after this time.
const AT_ONCE: u32 = 8;
const PAUSE: Duration = Duration::from_millis(1);

/// Makes a call again as long as it is interrupted, for at least a second and with pauses.
pub fn interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for failures in 1..MOST {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
        if failures > AT_ONCE {
            thread::sleep(PAUSE);
        }
    }
    call()
}

/// The result of a call of the C library that is negative if it fails.
pub(crate) fn result(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interruptions_are_passed_over_unless_there_is_nothing_else() {
        let mut calls = 0;
        let value = interrupted(|| {
            calls += 1;
            match calls {
                20 => Ok(calls),
                _ => Err(io::ErrorKind::Interrupted.into()),
            }
        });
        assert_eq!(value.unwrap(), 20);
        let error = interrupted(|| Err::<(), _>(io::ErrorKind::Interrupted.into()));
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::Interrupted);
        let mut calls = 0;
        let refused = interrupted(|| {
            calls += 1;
            Err::<(), _>(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(
            (refused.unwrap_err().kind(), calls),
            (io::ErrorKind::StorageFull, 1)
        );
    }
}
