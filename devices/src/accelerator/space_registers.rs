//! The registers of address spaces: what may be written to them. Pure.

use hmm_backend::pages::PAGE_SIZE;
use hmmvisor_abi::accel::{self, SPACE_BLOCK, SPACE_END, SPACES};

use super::guest_fault::FaultRegisters;
use super::registers::RegisterEffect;

/// The registers from [`accel::REG_SPACE_OPEN`] on.
#[derive(Debug, Default)]
pub struct SpaceRegisters {
    invalidate_start: u64,
    /// The fault that the device waits for.
    pub fault: FaultRegisters,
}

impl SpaceRegisters {
    /// Reads a register for the guest.
    pub fn read(&self, offset: u64) -> u64 {
        match offset {
            accel::REG_INVALIDATE_START => self.invalidate_start,
            accel::REG_FAULT => self.fault.describe(),
            accel::REG_FAULT_ADDRESS => self.fault.address(),
            _ => 0,
        }
    }

    /// Writes a register for the guest. Returns what the accelerator has to do then, or an `ERR_*` if the write is refused.
    pub fn write(&mut self, offset: u64, value: u64) -> Result<RegisterEffect, u64> {
        match offset {
            accel::REG_SPACE_OPEN => Ok(RegisterEffect::OpenSpace {
                space: space(value)?,
            }),
            accel::REG_SPACE_CLOSE => {
                let space = space(value)?;
                self.fault.abort(space);
                Ok(RegisterEffect::CloseSpace { space })
            }
            accel::REG_MAP => {
                let (start, space) = (value - value % SPACE_BLOCK, space(value % SPACE_BLOCK)?);
                match start < SPACE_END {
                    true => Ok(RegisterEffect::Map { space, start }),
                    false => Err(accel::ERR_SPACE),
                }
            }
            accel::REG_INVALIDATE_START => {
                if !value.is_multiple_of(PAGE_SIZE) || value > SPACE_END {
                    return Err(accel::ERR_SPACE);
                }
                self.invalidate_start = value;
                Ok(RegisterEffect::None)
            }
            accel::REG_INVALIDATE => {
                let (start, space) = (self.invalidate_start, space(value % PAGE_SIZE)?);
                let end = value - value % PAGE_SIZE;
                match start <= end && end <= SPACE_END {
                    true => Ok(RegisterEffect::Invalidate { space, start, end }),
                    false => Err(accel::ERR_SPACE),
                }
            }
            accel::REG_RESUME => match self.fault.resume(value) {
                Ok(()) => Ok(RegisterEffect::Resume),
                Err(_) => Err(accel::ERR_SPACE),
            },
            _ => Err(accel::ERR_NOT_WRITABLE),
        }
    }
}

fn space(number: u64) -> Result<u16, u64> {
    match number {
        1..=SPACES => Ok(number as u16),
        _ => Err(accel::ERR_SPACE),
    }
}

#[cfg(test)]
mod tests {
    use hmm_backend::pages::Access;

    use super::*;
    use crate::accelerator::guest_fault::GuestFault;
    use crate::commands::error::CommandError;

    #[test]
    fn a_fault_is_answered_or_goes_with_its_space() {
        let mut it = SpaceRegisters::default();
        let fault = GuestFault {
            space: 9,
            addr: PAGE_SIZE,
            access: Access::Read,
        };
        it.fault.raise(fault);
        assert_eq!(it.read(accel::REG_FAULT), 1 << 32 | 9);
        assert_eq!(it.read(accel::REG_FAULT_ADDRESS), PAGE_SIZE);
        it.write(accel::REG_SPACE_CLOSE, 8).unwrap();
        assert!(it.fault.is_waiting());
        it.write(accel::REG_SPACE_CLOSE, 9).unwrap();
        assert_eq!(it.fault.answer(), Some(Err(CommandError::Aborted)));
        it.fault.raise(fault);
        assert_eq!(
            it.write(accel::REG_RESUME, 2 << 32),
            Ok(RegisterEffect::Resume)
        );
        assert_eq!(it.fault.answer(), Some(Ok(())));
    }

    #[test]
    fn only_addresses_and_spaces_that_there_are() {
        let mut it = SpaceRegisters::default();
        let block = SPACE_END - SPACE_BLOCK;
        for (register, value) in [
            (accel::REG_SPACE_OPEN, 0),
            (accel::REG_SPACE_OPEN, SPACES + 1),
            (accel::REG_SPACE_CLOSE, 1 << 32 | 1),
            (accel::REG_MAP, block),
            (accel::REG_MAP, block | (SPACES + 1)),
            (accel::REG_MAP, SPACE_END | 1),
            (accel::REG_MAP, u64::MAX),
            (accel::REG_INVALIDATE_START, 8),
            (accel::REG_INVALIDATE_START, SPACE_END + PAGE_SIZE),
            (accel::REG_INVALIDATE, SPACE_END),
            (accel::REG_INVALIDATE, (SPACE_END + PAGE_SIZE) | 1),
            (accel::REG_INVALIDATE, u64::MAX),
            (accel::REG_RESUME, 7),
        ] {
            let refused = it.write(register, value);
            assert_eq!(refused, Err(accel::ERR_SPACE), "{register:#x} {value:#x}");
        }
        assert_eq!(it.write(0xb8, 0), Err(accel::ERR_NOT_WRITABLE));
        assert_eq!(it.write(accel::REG_FAULT, 0), Err(accel::ERR_NOT_WRITABLE));
        let space = SPACES as u16;
        assert_eq!(
            it.write(accel::REG_MAP, block | SPACES),
            Ok(RegisterEffect::Map {
                space,
                start: block
            })
        );
        let start = 3 * PAGE_SIZE;
        let end = SPACE_END;
        assert_eq!(
            it.write(accel::REG_INVALIDATE_START, start),
            Ok(RegisterEffect::None)
        );
        assert_eq!(it.read(accel::REG_INVALIDATE_START), start);
        assert_eq!(
            it.write(accel::REG_INVALIDATE, end | SPACES),
            Ok(RegisterEffect::Invalidate { space, start, end })
        );
        let backwards = it.write(accel::REG_INVALIDATE, (start - PAGE_SIZE) | 1);
        assert_eq!(backwards, Err(accel::ERR_SPACE));
    }
}
