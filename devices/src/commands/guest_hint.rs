//! Hints as commands carry them.

use hmm_backend::pages::{DeviceId, Hint, Place};
use hmmvisor_abi::accel;

use super::error::CommandError;

/// A guest's hint about pages. *This* device is the one that executes the command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestHint {
    /// The pages should be nowhere in particular.
    PreferNone,
    /// The pages should be in system memory.
    PreferSystem,
    /// The pages should be in this device's memory.
    PreferDevice,
    /// Whether this device should reach the pages where they are.
    Accessed(bool),
    /// Whether the pages are read far more often than written.
    ReadMostly(bool),
}

impl GuestHint {
    pub(crate) fn decode(number: u64) -> Result<GuestHint, CommandError> {
        Ok(match number {
            accel::HINT_PREFER_NONE => GuestHint::PreferNone,
            accel::HINT_PREFER_SYSTEM => GuestHint::PreferSystem,
            accel::HINT_PREFER_DEVICE => GuestHint::PreferDevice,
            accel::HINT_ACCESSED => GuestHint::Accessed(true),
            accel::HINT_NOT_ACCESSED => GuestHint::Accessed(false),
            accel::HINT_READ_MOSTLY => GuestHint::ReadMostly(true),
            accel::HINT_NOT_READ_MOSTLY => GuestHint::ReadMostly(false),
            _ => return Err(CommandError::Argument),
        })
    }

    /// The backend's word for it, said by this device.
    pub fn by(self, device: DeviceId) -> Hint {
        match self {
            GuestHint::PreferNone => Hint::PreferredLocation(None),
            GuestHint::PreferSystem => Hint::PreferredLocation(Some(Place::System)),
            GuestHint::PreferDevice => Hint::PreferredLocation(Some(Place::Device(device))),
            GuestHint::Accessed(on) => Hint::AccessedBy(device, on),
            GuestHint::ReadMostly(on) => Hint::ReadMostly(on),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_about_the_device_that_is_told() {
        let said = |number| {
            let hint = GuestHint::decode(number).unwrap();
            hint.by(DeviceId(3)).to_string()
        };
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 6].map(said),
            [
                "preferred:none",
                "preferred:system",
                "preferred:device3",
                "accessed-by:device3",
                "not-accessed-by:device3",
                "read-mostly",
                "not-read-mostly",
            ]
        );
        assert_eq!(GuestHint::decode(7), Err(CommandError::Argument));
    }
}
