//! The stack frame by which ring-0 code of a small guest reports an exception to the VMM.

/// Vector of machine checks.
pub const MACHINE_CHECK: u64 = 18;

/// The frame at `rsp` when the exception register is written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ExceptionFrame {
    /// The guest's `rcx`.
    pub rcx: u64,
    /// The guest's `rax`.
    pub rax: u64,
    /// The exception's number.
    pub vector: u64,
    /// The exception's error code; 0 for exceptions that have none.
    pub error_code: u64,
    /// Address of the instruction.
    pub rip: u64,
    /// Code segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

// SAFETY: nine integers without padding; every bit pattern is valid.
unsafe impl vm_memory::ByteValued for ExceptionFrame {}
