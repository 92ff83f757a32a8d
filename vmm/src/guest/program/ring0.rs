//! The firmware's ring-0 code: all that ever runs in ring 0 of a small guest.
//!
//! Hosts without hardware virtualization emulate ring 0 about a thousand times slower than they run
//! ring 3, and without SSE. So this code has a handful of integer instructions for each event, and
//! the VMM does everything else before the guest starts.
//!
//! The bytes between the two labels are position-independent and are copied into guest memory; they
//! never run in the VMM's own process.

use std::arch::global_asm;
use std::mem::offset_of;

use hmmvisor_abi::{MemoryError, control, map, memory_error};

use crate::machine::exception::MACHINE_CHECK;

/// CPU exceptions have vectors below this.
pub const EXCEPTIONS: u64 = 32;
/// Vector of spurious interrupts of the local APIC.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// Bytes between the entry points of two exceptions.
const EXCEPTION_STRIDE: u64 = 16;
/// Bytes between the entry points of two interrupt lines.
const INTERRUPT_STRIDE: u64 = 32;

/// Where the local APIC's end-of-interrupt register is.
const APIC_EOI: u64 = 0xfee0_00b0;

global_asm!(
    ".pushsection .rodata.hmmvisor_ring0, \"a\"",
    ".balign 64",
    ".globl hmmvisor_ring0_begin",
    "hmmvisor_ring0_begin:",
    // Exceptions. The processor pushes an error code for some of them; push a zero for the others,
    // so that every frame looks the same.
    ".set .Lvector, 0",
    ".rept {exceptions}",
    "  .balign {exception_stride}",
    "  .if (({with_error_code} >> .Lvector) & 1) == 0",
    "    push 0",
    "  .endif",
    "  push .Lvector",
    "  .if .Lvector == {machine_check}",
    "    jmp .Lmachine_check",
    "  .else",
    "    jmp .Lexception",
    "  .endif",
    "  .set .Lvector, .Lvector + 1",
    ".endr",
    // Interrupt lines. The first word above the processor's frame is this vCPU's counters' address.
    // Only this vCPU writes them, so the increment needs no lock prefix.
    ".set .Lline, 0",
    ".rept {lines}",
    "  .balign {interrupt_stride}",
    "  push rax",
    "  mov rax, [rsp + 48]",
    "  inc qword ptr [rax + .Lline * 8]",
    "  mov eax, {apic_eoi}",
    "  mov dword ptr [rax], 0",
    "  pop rax",
    "  iretq",
    "  .set .Lline, .Lline + 1",
    ".endr",
    // Spurious interrupts get no end-of-interrupt.
    ".balign {interrupt_stride}",
    "  iretq",
    // A machine check: a page that cannot be supplied (see `hmmvisor_abi::memory_error`). Above the frame, the
    // second word is the address of this vCPU's `MemoryError`. With a recovery address, an error of ring 3
    // goes on there; the recovery address is read once, because other vCPUs can write it, too.
    ".balign 16",
    ".Lmachine_check:",
    "  push rax",
    "  push rbx",
    "  push rcx",
    "  push rdx",
    "  mov rbx, [rsp + 96]",
    "  test byte ptr [rsp + 56], 3",
    "  jz .Lfatal",
    "  mov rax, [rbx + {recovery}]",
    "  test rax, rax",
    "  jz .Lfatal",
    "  mov [rsp + 48], rax",
    "  mov qword ptr [rbx + {recovery}], 0",
    "  mov ecx, {mc_addr}",
    "  rdmsr",
    "  mov [rbx + {address}], eax",
    "  mov [rbx + {address} + 4], edx",
    "  mov ecx, {mc_status}",
    "  rdmsr",
    // The reason; this clears the upper half.
    "  shr eax, 16",
    "  mov [rbx + {reason}], rax",
    // Ready for the next machine check.
    "  xor eax, eax",
    "  xor edx, edx",
    "  wrmsr",
    "  mov ecx, {mcg_status}",
    "  wrmsr",
    "  pop rdx",
    "  pop rcx",
    "  pop rbx",
    "  pop rax",
    "  add rsp, 16",
    "  iretq",
    ".Lfatal:",
    "  pop rdx",
    "  pop rcx",
    "  pop rbx",
    "  pop rax",
    // The VMM reads the frame at rsp (see `ExceptionFrame`) and never resumes this vCPU.
    ".Lexception:",
    "  push rax",
    "  push rcx",
    "  mov ecx, {exception_register}",
    "  mov rax, [rsp + 16]",
    "  mov [rcx], rax",
    ".Lhalt:",
    "  hlt",
    "  jmp .Lhalt",
    ".globl hmmvisor_ring0_end",
    "hmmvisor_ring0_end:",
    ".popsection",
    exceptions = const EXCEPTIONS,
    exception_stride = const EXCEPTION_STRIDE,
    machine_check = const MACHINE_CHECK,
    recovery = const offset_of!(MemoryError, recovery),
    address = const offset_of!(MemoryError, address),
    reason = const offset_of!(MemoryError, reason),
    mc_addr = const memory_error::MC_ADDR,
    mc_status = const memory_error::MC_STATUS,
    mcg_status = const memory_error::MCG_STATUS,
    // 8, 10 to 14, 17, 21, 29 and 30.
    with_error_code = const 0x6022_7d00u32,
    lines = const map::IRQ_LINES,
    interrupt_stride = const INTERRUPT_STRIDE,
    apic_eoi = const APIC_EOI,
    exception_register = const map::CONTROL + control::EXCEPTION,
);

unsafe extern "C" {
    static hmmvisor_ring0_begin: u8;
    static hmmvisor_ring0_end: u8;
}

/// Returns the code's bytes.
pub fn code() -> &'static [u8] {
    let begin = &raw const hmmvisor_ring0_begin;
    let end = &raw const hmmvisor_ring0_end;
    // SAFETY: both labels are in the one read-only section above, `begin` before `end`, with
    // initialized bytes in between that are never written.
    unsafe { std::slice::from_raw_parts(begin, end as usize - begin as usize) }
}

/// Returns the offset within [`code`] of the handler of a vector, if it has one.
pub fn entry_offset(vector: u8) -> Option<u64> {
    let v = u64::from(vector);
    let first_line = u64::from(map::IRQ_VECTOR_BASE);
    let lines = EXCEPTIONS * EXCEPTION_STRIDE;
    if v < EXCEPTIONS {
        Some(v * EXCEPTION_STRIDE)
    } else if (first_line..first_line + map::IRQ_LINES).contains(&v) {
        Some(lines + (v - first_line) * INTERRUPT_STRIDE)
    } else if vector == SPURIOUS_VECTOR {
        Some(lines + map::IRQ_LINES * INTERRUPT_STRIDE)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_point_starts_its_handler() {
        let code = code();
        assert!(code.len() < 4096);
        for vector in 0..32u8 {
            let at = entry_offset(vector).unwrap() as usize;
            let with_error = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
            // `push imm8` is 6a.
            let expected: &[u8] = if with_error {
                &[0x6a, vector]
            } else {
                &[0x6a, 0, 0x6a, vector]
            };
            assert_eq!(&code[at..at + expected.len()], expected, "vector {vector}");
        }
        for line in 0..16u8 {
            let at = entry_offset(map::IRQ_VECTOR_BASE + line).unwrap() as usize;
            assert_eq!(code[at], 0x50, "line {line} starts with push rax");
        }
        let spurious = entry_offset(SPURIOUS_VECTOR).unwrap() as usize;
        assert_eq!(&code[spurious..spurious + 2], &[0x48, 0xcf], "iretq");
        assert_eq!(entry_offset(0x3f), None);
        assert_eq!(entry_offset(0x50), None);
    }
}
