//! The C header for guests says what the Rust package of the interface says.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

use hmmvisor_abi::{BootInfo, MemoryError, accel, boot, control, map, memory_error};

const HEADER: &str = include_str!("../c/hmmvisor_guest.h");

/// The constants of a module: its source, the prefix of their names in C, and their values.
struct Module {
    source: &'static str,
    prefix: &'static str,
    values: Vec<(&'static str, u64)>,
    /// Constants that are of no use to small guests.
    left_out: &'static [&'static str],
}

/// The names and values of constants.
macro_rules! values {
    ($module:ident: $($name:ident)*) => {
        vec![$((stringify!($name), $module::$name as u64)),*]
    };
}

fn modules() -> Vec<Module> {
    vec![
        Module {
            source: include_str!("../abi/src/map.rs"),
            prefix: "HMMVISOR_",
            values: values!(map: BOOT_RAM_BASE BOOT_RAM_SIZE FIRMWARE_BASE FIRMWARE_END BOOT_INFO BOOT_INFO_SIZE
                IRQ_COUNTERS IRQ_LINES IRQ_VECTOR_BASE MEMORY_ERRORS IMAGE_BASE IMAGE_END STACKS STACK_SIZE MAX_VCPUS
                CONTROL SERIAL ACCEL ACCEL_STRIDE MAX_ACCELS MANAGED MANAGED_MAX),
            left_out: &[],
        },
        Module {
            source: include_str!("../abi/src/boot.rs"),
            prefix: "HMMVISOR_",
            values: values!(boot: BOOT_MAGIC BOOT_VERSION),
            left_out: &[],
        },
        Module {
            source: include_str!("../abi/src/control.rs"),
            prefix: "HMMVISOR_CONTROL_",
            values: values!(control: EXIT PROGRESS YIELD PARK TIME_NS EXCEPTION CHECKED ROUND CHAOS_BASE CHAOS_SHARED
                EXIT_WRONG_DATA EXIT_PANIC EXIT_USAGE),
            // Between the host's chaos and workload torture.
            left_out: &["COUNTERS", "CONSTANT", "VOLATILE", "PAGES"],
        },
        Module {
            source: include_str!("../abi/src/memory_error.rs"),
            prefix: "HMMVISOR_",
            values: values!(memory_error: REASON_LOST REASON_DEVICE REASON_OUT_OF_MEMORY REASON_BUSY REASON_READ_ONLY
                REASON_HOST),
            // Machine-check registers, which the firmware and operating systems read.
            left_out: &[
                "BANK",
                "MCG_STATUS",
                "MC_STATUS",
                "MC_ADDR",
                "STATUS",
                "MISC",
                "MCG_STATUS_VALUE",
            ],
        },
        Module {
            source: include_str!("../abi/src/accel.rs"),
            prefix: "HMMVISOR_",
            values: values!(accel: REG_ID REG_VERSION REG_MEMORY_SIZE REG_QUEUE_BASE REG_QUEUE_ENTRIES REG_IRQ REG_ENABLE
                REG_DOORBELL REG_COMPLETED REG_WAIT REG_ERROR REG_SPACES REG_MANAGED_BASE REG_MANAGED_SIZE
                REG_TRANSLATIONS REG_SPACE_OPEN REG_SPACE_CLOSE REG_MAP REG_INVALIDATE_START REG_INVALIDATE REG_FAULT
                REG_FAULT_ADDRESS REG_RESUME PHYSICAL SPACES SPACE_END SPACE_BLOCK TRANSLATIONS TRANSLATION_VALID
                TRANSLATION_WRITABLE FAULT_WRITE ID_VALUE MAX_QUEUE_ENTRIES ERR_NONE ERR_QUEUE_BASE ERR_QUEUE_ENTRIES
                ERR_NOT_WRITABLE ERR_IRQ ERR_PIN ERR_QUEUE_OVERRUN ERR_SPACE ERR_TRANSLATION FLAG_INTERRUPT
                FLAG_SPACE_SHIFT OP_NOP OP_FILL OP_COPY OP_VECTOR_ADD OP_TRIAD OP_REDUCE OP_GATHER OP_SCATTER OP_MATMUL
                OP_SPMV OP_BFS_STEP OP_ATOMIC_ADD OP_CHASE OP_MIGRATE OP_FREE OP_EXCLUSIVE_ADD OP_HINT
                MAX_EXCLUSIVE_ADDS TO_DEVICE TO_SYSTEM HINT_PREFER_NONE HINT_PREFER_SYSTEM HINT_PREFER_DEVICE
                HINT_ACCESSED HINT_NOT_ACCESSED HINT_READ_MOSTLY HINT_NOT_READ_MOSTLY STATUS_OK STATUS_OPCODE
                STATUS_ARGUMENT STATUS_ADDRESS STATUS_FAULT STATUS_PERMISSION STATUS_INDEX STATUS_ABORTED),
            left_out: &[],
        },
    ]
}

/// The sizes and offsets of a structure's fields, as assertions in C.
macro_rules! layout {
    ($rust:ty, $c:literal: $($field:ident)*) => {{
        let mut lines = vec![format!("_Static_assert(sizeof(struct {}) == {}, \"size\");", $c, size_of::<$rust>())];
        $(lines.push(format!(
            "_Static_assert(offsetof(struct {}, {}) == {}, \"{1}\");",
            $c, stringify!($field), offset_of!($rust, $field)
        ));)*
        lines
    }};
}

fn layouts() -> Vec<String> {
    use accel::{Command, Completion, QueueHeader};
    [
        layout!(BootInfo, "hmmvisor_boot_info": magic version vcpus devices reserved memory_base memory_size
            control_base serial_base accel_base accel_stride irq_counters seed tsc_khz cmdline cmdline_len),
        layout!(MemoryError, "hmmvisor_memory_error": recovery address reason reserved),
        layout!(QueueHeader, "hmmvisor_queue_header": submitted completed reserved),
        layout!(Command, "hmmvisor_command": opcode flags tag args),
        layout!(Completion, "hmmvisor_completion": tag status reserved result address),
    ]
    .concat()
}

/// Has the C compiler check a source in C that consists of the header and these lines.
fn compiles(lines: &[String]) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = folder.join(format!("header-{}.c", lines.len()));
    let text = format!(
        "#include <stddef.h>\n#include \"hmmvisor_guest.h\"\n{}\n",
        lines.join("\n")
    );
    std::fs::write(&source, text).unwrap();
    let output = Command::new(std::env::var_os("CC").unwrap_or("cc".into()))
        .args(["-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-pedantic"])
        .arg(concat!("-I", env!("CARGO_MANIFEST_DIR"), "/c"))
        .arg(&source)
        .output()
        .expect("the C compiler `cc`, which the workspace's dependencies need, too");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn every_constant_and_structure_is_that_of_the_rust_package() {
    let mut lines = layouts();
    for module in modules() {
        for (name, value) in module.values {
            let name = format!("{}{name}", module.prefix);
            lines.push(format!(
                "_Static_assert({name} == {value:#x}ull, \"{name}\");"
            ));
        }
    }
    compiles(&lines).unwrap_or_else(|error| panic!("{error}"));
    // The compiler looks at the assertions.
    let wrong = "_Static_assert(HMMVISOR_OP_FILL == 2, \"wrong\");".to_owned();
    assert!(compiles(&[wrong]).is_err());
}

#[test]
fn no_constant_is_missing() {
    let mut expected = BTreeSet::new();
    for module in modules() {
        let declared: BTreeSet<&str> = module
            .source
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("pub const "))
            .filter_map(|rest| rest.split_once(':'))
            .map(|(name, _)| name)
            .filter(|name| !name.starts_with("fn "))
            .collect();
        let known = module.values.iter().map(|(name, _)| *name);
        let known: BTreeSet<&str> = known.chain(module.left_out.iter().copied()).collect();
        assert_eq!(
            declared, known,
            "constants of the package, and those that this test compares"
        );
        let names = module.values.iter().map(|(name, _)| name);
        expected.extend(names.map(|name| format!("{}{name}", module.prefix)));
    }
    let found = HEADER
        .lines()
        .filter_map(|line| line.strip_prefix("#define ")?.split_whitespace().next())
        .filter(|name| *name != "HMMVISOR_GUEST_H");
    let found: BTreeSet<String> = found.map(str::to_owned).collect();
    assert_eq!(found, expected, "constants of the header and of this test");
}
