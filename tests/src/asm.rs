//! Machine code for guests of a few instructions. Jumps go backwards only, which is enough for loops.

use hmmvisor_abi::map;

/// A 64-bit register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the processor's names")]
pub enum Reg {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rsi = 6,
    Rdi = 7,
}

/// Code, instruction by instruction.
#[derive(Clone, Default, Debug)]
pub struct Asm(Vec<u8>);

/// The operand byte for `[base]` or, with `0xc0`, for a register.
fn operand(kind: u8, reg: Reg, base: Reg) -> u8 {
    kind | (reg as u8) << 3 | base as u8
}

impl Asm {
    /// No code yet.
    pub fn new() -> Asm {
        Asm::default()
    }

    /// The code.
    pub fn bytes(self) -> Vec<u8> {
        self.0
    }

    /// The offset of the next instruction, for jumps back to it.
    pub fn here(&self) -> usize {
        self.0.len()
    }

    /// Any bytes.
    pub fn raw(mut self, bytes: &[u8]) -> Asm {
        self.0.extend(bytes);
        self
    }

    /// `to = value`
    pub fn set(self, to: Reg, value: u64) -> Asm {
        self.raw(&[0x48, 0xb8 | to as u8]).raw(&value.to_le_bytes())
    }

    /// `to = [base]`
    pub fn load(self, to: Reg, base: Reg) -> Asm {
        self.raw(&[0x48, 0x8b, operand(0, to, base)])
    }

    /// `[base] = from`
    pub fn store(self, base: Reg, from: Reg) -> Asm {
        self.raw(&[0x48, 0x89, operand(0, from, base)])
    }

    /// `[base] += from`, atomically
    pub fn atomic_add(self, base: Reg, from: Reg) -> Asm {
        self.raw(&[0xf0, 0x48, 0x01, operand(0, from, base)])
    }

    /// `to += from`
    pub fn add(self, to: Reg, from: Reg) -> Asm {
        self.raw(&[0x48, 0x01, operand(0xc0, from, to)])
    }

    /// `to |= [base]`
    pub fn or_load(self, to: Reg, base: Reg) -> Asm {
        self.raw(&[0x48, 0x0b, operand(0, to, base)])
    }

    /// `to += value`
    pub fn add_value(self, to: Reg, value: i32) -> Asm {
        self.raw(&[0x48, 0x81, 0xc0 | to as u8])
            .raw(&value.to_le_bytes())
    }

    /// Compares `reg` with a number, for the jump that follows.
    pub fn compare(self, reg: Reg, value: i32) -> Asm {
        self.raw(&[0x48, 0x81, 0xf8 | reg as u8])
            .raw(&value.to_le_bytes())
    }

    /// Back to `target` if what was compared is equal.
    pub fn jump_if_equal(self, target: usize) -> Asm {
        self.jump(&[0x0f, 0x84], target)
    }

    /// Back to `target` if what was compared is not equal, or what was counted down is not 0.
    pub fn jump_unless_equal(self, target: usize) -> Asm {
        self.jump(&[0x0f, 0x85], target)
    }

    /// Back to `target`.
    pub fn jump_to(self, target: usize) -> Asm {
        self.jump(&[0xe9], target)
    }

    fn jump(self, opcode: &[u8], target: usize) -> Asm {
        let after = self.0.len() + opcode.len() + 4;
        let distance = target as i32 - after as i32;
        self.raw(opcode).raw(&distance.to_le_bytes())
    }

    /// Counts `reg` down and goes back to `target` until it is 0.
    pub fn repeat(self, reg: Reg, target: usize) -> Asm {
        self.add_value(reg, -1).jump_unless_equal(target)
    }

    /// Lets only this vCPU go on; the others spin. First of all, while `rsi` is the vCPU's index.
    pub fn only_vcpu(self, index: i32) -> Asm {
        let compared = self.compare(Reg::Rsi, index);
        let here = compared.here();
        compared.jump_unless_equal(here)
    }

    /// Ends the run with the lower half of `code`, which must not be `rax`.
    pub fn exit(self, code: Reg) -> Asm {
        assert_ne!(code, Reg::Rax);
        let stored = self.set(Reg::Rax, map::CONTROL).store(Reg::Rax, code);
        let here = stored.here();
        stored.jump_to(here)
    }
}
