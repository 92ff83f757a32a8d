//! The register file: a state machine that checks what the guest writes and tells the accelerator
//! what to do. Pure: no memory, threads or interrupts.

use hmm_backend::pages::PAGE_SIZE;
use hmmvisor_abi::accel::{self, queue_bytes};

use super::space_registers::SpaceRegisters;
use crate::commands::managed::Addresses;

/// The effect of a register write on the accelerator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegisterEffect {
    /// Nothing more; refused writes, too.
    None,
    /// Pin the queue and the page of translations, if there is one, then call [`Registers::enable`] or
    /// [`Registers::refuse`].
    Enable {
        base: u64,
        entries: u64,
        translations: Option<u64>,
    },
    /// Stop after the current command, then call [`Registers::disabled`].
    Disable,
    /// There may be commands.
    Doorbell,
    /// Let the vCPU sleep until [`Registers::wait_is_over`].
    Wait { seen: u64 },
    /// Route the interrupt, then call [`Registers::interrupt_routed`] or [`Registers::refuse`].
    RouteInterrupt { vcpu: u32 },
    /// Open an address space.
    OpenSpace { space: u16 },
    /// Close it. Its fault has been aborted.
    CloseSpace { space: u16 },
    /// Take translations of the block at `start`.
    Map { space: u16, start: u64 },
    /// Forget translations.
    Invalidate { space: u16, start: u64, end: u64 },
    /// The device's fault may have been answered.
    Resume,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Disabled,
    Enabled,
    /// The queue is still in use, for the current command only.
    Disabling,
}

/// The registers of one accelerator.
#[derive(Debug)]
pub struct Registers {
    memory_size: u64,
    managed: Addresses,
    vcpus: u32,
    queue_base: u64,
    queue_entries: u64,
    irq: u64,
    /// Guest-physical address of the page of translations, or 0.
    translations: u64,
    state: State,
    completed: u64,
    error: u64,
    /// The registers of address spaces.
    pub spaces: SpaceRegisters,
}

impl Registers {
    /// The state at power-on.
    pub fn new(memory_size: u64, managed: Addresses, vcpus: u32) -> Registers {
        Registers {
            memory_size,
            managed,
            vcpus,
            queue_base: 0,
            queue_entries: 0,
            irq: 0,
            translations: 0,
            state: State::Disabled,
            completed: 0,
            error: accel::ERR_NONE,
            spaces: SpaceRegisters::default(),
        }
    }

    /// Reads a register for the guest. Reading the error register clears it.
    pub fn read(&mut self, offset: u64) -> u64 {
        match offset {
            accel::REG_ID => accel::ID_VALUE,
            accel::REG_VERSION => 1,
            accel::REG_MEMORY_SIZE => self.memory_size,
            accel::REG_QUEUE_BASE => self.queue_base,
            accel::REG_QUEUE_ENTRIES => self.queue_entries,
            accel::REG_IRQ => self.irq,
            accel::REG_ENABLE => u64::from(self.state != State::Disabled),
            accel::REG_COMPLETED => self.completed,
            accel::REG_ERROR => std::mem::replace(&mut self.error, accel::ERR_NONE),
            accel::REG_SPACES => accel::SPACES,
            accel::REG_MANAGED_BASE => self.managed.base,
            accel::REG_MANAGED_SIZE => self.managed.bytes,
            accel::REG_TRANSLATIONS => self.translations,
            _ => self.spaces.read(offset),
        }
    }

    /// Writes a register for the guest. Returns what the accelerator has to do then.
    pub fn write(&mut self, offset: u64, value: u64) -> RegisterEffect {
        match self.check_write(offset, value) {
            Ok(effect) => effect,
            Err(error) => {
                self.error = error;
                RegisterEffect::None
            }
        }
    }

    fn check_write(&mut self, offset: u64, value: u64) -> Result<RegisterEffect, u64> {
        match offset {
            accel::REG_QUEUE_BASE => {
                self.require_disabled()?;
                // Whether the whole queue fits is checked when the device is enabled, because then both numbers are known.
                if !self.is_page(value) {
                    return Err(accel::ERR_QUEUE_BASE);
                }
                self.queue_base = value;
                Ok(RegisterEffect::None)
            }
            accel::REG_QUEUE_ENTRIES => {
                self.require_disabled()?;
                if !value.is_power_of_two() || value > accel::MAX_QUEUE_ENTRIES {
                    return Err(accel::ERR_QUEUE_ENTRIES);
                }
                self.queue_entries = value;
                Ok(RegisterEffect::None)
            }
            accel::REG_IRQ => match value.checked_sub(1) {
                None => {
                    self.irq = 0;
                    Ok(RegisterEffect::None)
                }
                Some(vcpu) if vcpu < u64::from(self.vcpus) => {
                    Ok(RegisterEffect::RouteInterrupt { vcpu: vcpu as u32 })
                }
                Some(_) => Err(accel::ERR_IRQ),
            },
            accel::REG_ENABLE => self.check_enable(value),
            accel::REG_DOORBELL => Ok(RegisterEffect::Doorbell),
            accel::REG_WAIT => Ok(RegisterEffect::Wait { seen: value }),
            accel::REG_TRANSLATIONS => {
                self.require_disabled()?;
                if value != 0 && !self.is_page(value) {
                    return Err(accel::ERR_TRANSLATION);
                }
                self.translations = value;
                Ok(RegisterEffect::None)
            }
            _ => self.spaces.write(offset, value),
        }
    }

    /// Whether a page of managed memory begins at this address.
    fn is_page(&self, addr: u64) -> bool {
        addr.is_multiple_of(PAGE_SIZE) && self.managed.contains(addr, PAGE_SIZE)
    }

    fn check_enable(&mut self, value: u64) -> Result<RegisterEffect, u64> {
        match (value, self.state) {
            (0, State::Enabled) => {
                self.state = State::Disabling;
                Ok(RegisterEffect::Disable)
            }
            (0, _) => Ok(RegisterEffect::None),
            (1, State::Disabled) => {
                if self.queue_entries == 0 {
                    return Err(accel::ERR_QUEUE_ENTRIES);
                }
                let (base, entries) = (self.queue_base, self.queue_entries);
                if !self.managed.contains(base, queue_bytes(entries)) {
                    return Err(accel::ERR_QUEUE_BASE);
                }
                let translations = (self.translations != 0).then_some(self.translations);
                Ok(RegisterEffect::Enable {
                    base,
                    entries,
                    translations,
                })
            }
            _ => Err(accel::ERR_NOT_WRITABLE),
        }
    }

    fn require_disabled(&self) -> Result<(), u64> {
        match self.state {
            State::Disabled => Ok(()),
            State::Enabled | State::Disabling => Err(accel::ERR_NOT_WRITABLE),
        }
    }

    /// Sets the error register to an `ERR_*`, because an effect could not be carried out or the device had to disable itself.
    pub fn refuse(&mut self, error: u64) {
        self.error = error;
    }

    /// Enables the device, whose queue is pinned now. Commands count from 0.
    pub fn enable(&mut self) {
        self.state = State::Enabled;
        self.completed = 0;
    }

    /// Disables the device, whose queue is no longer in use.
    pub fn disabled(&mut self) {
        self.state = State::Disabled;
    }

    /// Whether commands may be executed.
    pub fn is_enabled(&self) -> bool {
        self.state == State::Enabled
    }

    /// Whether the queue is no longer in use.
    pub fn is_disabled(&self) -> bool {
        self.state == State::Disabled
    }

    /// Notes that the interrupt now goes to this vCPU.
    pub fn interrupt_routed(&mut self, vcpu: u32) {
        self.irq = u64::from(vcpu) + 1;
    }

    /// Whether the guest wants interrupts.
    pub fn interrupts(&self) -> bool {
        self.irq != 0
    }

    /// Sets the number of commands completed since the device was enabled.
    pub fn set_completed(&mut self, completed: u64) {
        self.completed = completed;
    }

    /// Whether a vCPU that has seen this many completions need not sleep (any longer).
    pub fn wait_is_over(&self, seen: u64) -> bool {
        let fault = self.spaces.fault.is_waiting();
        self.completed > seen || fault || self.state == State::Disabled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1_0000_0000;
    const MEMORY: u64 = 32 * PAGE_SIZE;

    fn registers() -> Registers {
        let managed = Addresses {
            base: BASE,
            bytes: MEMORY,
        };
        Registers::new(1 << 20, managed, 2)
    }

    fn error(registers: &mut Registers, offset: u64, value: u64) -> u64 {
        assert_eq!(registers.write(offset, value), RegisterEffect::None);
        let error = registers.read(accel::REG_ERROR);
        assert_eq!(registers.read(accel::REG_ERROR), accel::ERR_NONE);
        error
    }

    #[test]
    fn identifies_itself() {
        let mut it = registers();
        assert_eq!(it.read(accel::REG_ID).to_le_bytes(), *b"HMMACCEL");
        assert_eq!(it.read(accel::REG_VERSION), 1);
        assert_eq!(it.read(accel::REG_MEMORY_SIZE), 1 << 20);
        assert_eq!(it.read(accel::REG_DOORBELL), 0);
        assert_eq!(it.read(0x800), 0);
    }

    #[test]
    fn refuses_bad_queues() {
        let mut it = registers();
        for base in [
            0,
            BASE + 8,
            BASE - PAGE_SIZE,
            BASE + MEMORY,
            u64::MAX - 4095,
        ] {
            assert_eq!(
                error(&mut it, accel::REG_QUEUE_BASE, base),
                accel::ERR_QUEUE_BASE
            );
        }
        for entries in [0, 3, 2048, u64::MAX, 1 << 63] {
            assert_eq!(
                error(&mut it, accel::REG_QUEUE_ENTRIES, entries),
                accel::ERR_QUEUE_ENTRIES
            );
        }
        assert_eq!(
            error(&mut it, accel::REG_ENABLE, 1),
            accel::ERR_QUEUE_ENTRIES
        );
        assert_eq!(
            error(&mut it, accel::REG_QUEUE_ENTRIES, 1024),
            accel::ERR_NONE
        );
        assert_eq!(error(&mut it, accel::REG_ENABLE, 1), accel::ERR_QUEUE_BASE);
        // The last page is inside, but a queue of 1024 slots is not.
        let last = BASE + MEMORY - PAGE_SIZE;
        assert_eq!(error(&mut it, accel::REG_QUEUE_BASE, last), accel::ERR_NONE);
        assert_eq!(error(&mut it, accel::REG_ENABLE, 1), accel::ERR_QUEUE_BASE);
        assert_eq!(
            error(&mut it, accel::REG_QUEUE_ENTRIES, 32),
            accel::ERR_NONE
        );
        let effect = |translations| RegisterEffect::Enable {
            base: last,
            entries: 32,
            translations,
        };
        assert_eq!(it.write(accel::REG_ENABLE, 1), effect(None));
        for page in [8, BASE - PAGE_SIZE, BASE + MEMORY, u64::MAX - 4095] {
            assert_eq!(
                error(&mut it, accel::REG_TRANSLATIONS, page),
                accel::ERR_TRANSLATION
            );
        }
        assert_eq!(
            error(&mut it, accel::REG_TRANSLATIONS, BASE),
            accel::ERR_NONE
        );
        assert_eq!(it.write(accel::REG_ENABLE, 1), effect(Some(BASE)));
    }

    #[test]
    fn queue_is_fixed_while_enabled() {
        let mut it = registers();
        it.write(accel::REG_QUEUE_BASE, BASE);
        it.write(accel::REG_QUEUE_ENTRIES, 8);
        it.set_completed(9);
        it.enable();
        assert!(it.is_enabled());
        assert_eq!(it.read(accel::REG_COMPLETED), 0);
        for (offset, value) in [
            (accel::REG_QUEUE_BASE, BASE),
            (accel::REG_QUEUE_ENTRIES, 16),
            (accel::REG_ENABLE, 1),
            (accel::REG_ENABLE, 2),
            (accel::REG_ID, 0),
            (accel::REG_COMPLETED, 0),
            (accel::REG_SPACES, 0),
            (accel::REG_MANAGED_BASE, 0),
            (accel::REG_MANAGED_SIZE, 0),
            (accel::REG_TRANSLATIONS, BASE),
            (accel::REG_FAULT, 0),
            (0xb8, 0),
        ] {
            assert_eq!(error(&mut it, offset, value), accel::ERR_NOT_WRITABLE);
        }
        assert_eq!(it.write(accel::REG_ENABLE, 0), RegisterEffect::Disable);
        assert_eq!(it.write(accel::REG_ENABLE, 0), RegisterEffect::None);
        assert_eq!(it.read(accel::REG_ENABLE), 1);
        assert_eq!(
            error(&mut it, accel::REG_QUEUE_BASE, BASE),
            accel::ERR_NOT_WRITABLE
        );
        it.disabled();
        assert_eq!(it.read(accel::REG_ENABLE), 0);
        assert_eq!(error(&mut it, accel::REG_QUEUE_BASE, BASE), accel::ERR_NONE);
    }

    #[test]
    fn routes_interrupts_to_existing_vcpus() {
        let mut it = registers();
        assert_eq!(
            it.write(accel::REG_IRQ, 2),
            RegisterEffect::RouteInterrupt { vcpu: 1 }
        );
        assert!(!it.interrupts());
        it.interrupt_routed(1);
        assert_eq!(it.read(accel::REG_IRQ), 2);
        assert_eq!(error(&mut it, accel::REG_IRQ, 3), accel::ERR_IRQ);
        assert_eq!(error(&mut it, accel::REG_IRQ, u64::MAX), accel::ERR_IRQ);
        assert!(it.interrupts());
        it.write(accel::REG_IRQ, 0);
        assert!(!it.interrupts());
    }

    #[test]
    fn waits_for_more_completions() {
        let mut it = registers();
        assert!(it.wait_is_over(0), "a disabled device completes nothing");
        it.enable();
        assert_eq!(
            it.write(accel::REG_WAIT, 3),
            RegisterEffect::Wait { seen: 3 }
        );
        it.set_completed(3);
        assert!(!it.wait_is_over(3));
        it.set_completed(4);
        assert!(it.wait_is_over(3));
        it.disabled();
        assert!(it.wait_is_over(4));
    }
}
