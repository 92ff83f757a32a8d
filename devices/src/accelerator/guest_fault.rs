//! The fault registers: how the device asks the guest for a translation. Pure.

use hmm_backend::pages::Access;
use hmmvisor_abi::accel::{
    FAULT_WRITE, STATUS_ABORTED, STATUS_ADDRESS, STATUS_FAULT, STATUS_PERMISSION,
};

use crate::commands::error::CommandError;

/// An access that waits for a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestFault {
    /// The address space of the access.
    pub space: u16,
    /// The page's virtual address.
    pub addr: u64,
    /// What the access does.
    pub access: Access,
}

/// The guest answered a fault with a value that means nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownAnswer;

/// The registers of the device's fault. There is one at a time, because the device executes one command at a time.
#[derive(Debug, Default)]
pub struct FaultRegisters {
    number: u32,
    fault: Option<GuestFault>,
    /// The guest's answer: a status, or 0 to try the access again.
    answer: Option<u32>,
}

impl FaultRegisters {
    /// Puts a fault into the registers, for which the device waits from now on.
    pub fn raise(&mut self, fault: GuestFault) {
        self.number = self.number.checked_add(1).unwrap_or(1);
        self.fault = Some(fault);
        self.answer = None;
    }

    /// Takes the fault out of the registers: the device waits no longer.
    pub fn clear(&mut self) {
        self.fault = None;
        self.answer = None;
    }

    /// The answer to the fault, once there is one.
    pub fn answer(&self) -> Option<Result<(), CommandError>> {
        let fault = self.fault?;
        Some(match self.answer? {
            STATUS_ADDRESS => Err(CommandError::Address(fault.addr)),
            STATUS_FAULT => Err(CommandError::Fault(fault.addr)),
            STATUS_PERMISSION => Err(CommandError::Permission(fault.addr)),
            STATUS_ABORTED => Err(CommandError::Aborted),
            _ => Ok(()),
        })
    }

    /// Whether the guest is expected to answer.
    pub fn is_waiting(&self) -> bool {
        self.fault.is_some() && self.answer.is_none()
    }

    /// Returns the value of `REG_FAULT`.
    pub fn describe(&self) -> u64 {
        match self.fault {
            Some(fault) if self.is_waiting() => {
                let write = match fault.access {
                    Access::Read => 0,
                    Access::Write => FAULT_WRITE,
                };
                u64::from(self.number) << 32 | write | u64::from(fault.space)
            }
            _ => 0,
        }
    }

    /// Returns the value of `REG_FAULT_ADDRESS`.
    pub fn address(&self) -> u64 {
        match self.fault {
            Some(fault) if self.is_waiting() => fault.addr,
            _ => 0,
        }
    }

    /// Takes the value that the guest writes to `REG_RESUME`, which answers the fault.
    pub fn resume(&mut self, value: u64) -> Result<(), UnknownAnswer> {
        let (number, status) = ((value >> 32) as u32, value as u32);
        if !matches!(
            status,
            0 | STATUS_ADDRESS | STATUS_FAULT | STATUS_PERMISSION
        ) {
            return Err(UnknownAnswer);
        }
        // An answer that comes too late must not be taken for one to the next fault.
        if self.is_waiting() && number == self.number {
            self.answer = Some(status);
        }
        Ok(())
    }

    /// Answers the fault with an abort if it is in this address space, which is closed: no other answer will come.
    pub fn abort(&mut self, space: u16) {
        if self.fault.is_some_and(|fault| fault.space == space) {
            self.answer = Some(STATUS_ABORTED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: GuestFault = GuestFault {
        space: 7,
        addr: 0x7000_1000,
        access: Access::Write,
    };

    #[test]
    fn a_fault_is_seen_until_it_is_answered() {
        let mut it = FaultRegisters::default();
        assert_eq!((it.describe(), it.address(), it.answer()), (0, 0, None));
        it.raise(FAULT);
        assert_eq!(it.describe(), 1 << 32 | FAULT_WRITE | 7);
        assert_eq!((it.address(), it.answer()), (FAULT.addr, None));
        assert_eq!(it.resume(1 << 32), Ok(()));
        assert_eq!((it.describe(), it.address()), (0, 0));
        assert_eq!(it.answer(), Some(Ok(())));
        // There is only one answer.
        assert_eq!(it.resume(1 << 32 | u64::from(STATUS_FAULT)), Ok(()));
        assert_eq!(it.answer(), Some(Ok(())));
        it.clear();
        assert_eq!(it.answer(), None);
    }

    #[test]
    fn late_and_unknown_answers_are_no_answers() {
        let mut it = FaultRegisters::default();
        it.raise(FAULT);
        it.clear();
        it.raise(FAULT);
        assert_eq!(it.resume(1 << 32), Ok(()));
        assert_eq!(it.resume(0), Ok(()));
        assert_eq!(it.resume(2 << 32 | 1), Err(UnknownAnswer));
        assert_eq!(
            it.resume(2 << 32 | u64::from(STATUS_ABORTED)),
            Err(UnknownAnswer)
        );
        assert!(it.is_waiting());
        assert_eq!(it.resume(2 << 32 | u64::from(STATUS_ADDRESS)), Ok(()));
        assert_eq!(it.answer(), Some(Err(CommandError::Address(FAULT.addr))));
    }

    #[test]
    fn closing_the_space_aborts_only_its_own_fault() {
        let mut it = FaultRegisters::default();
        it.raise(FAULT);
        it.abort(8);
        assert!(it.is_waiting());
        it.abort(7);
        assert_eq!(it.answer(), Some(Err(CommandError::Aborted)));
        it.clear();
        it.abort(7);
        assert_eq!(it.answer(), None);
    }

    #[test]
    fn the_number_is_never_zero() {
        let mut it = FaultRegisters {
            number: u32::MAX,
            ..FaultRegisters::default()
        };
        it.raise(FAULT);
        assert_eq!(it.describe() >> 32, 1);
    }
}
