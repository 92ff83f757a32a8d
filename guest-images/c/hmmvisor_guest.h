/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The interface between Hmmvisor and a small guest in C: memory map, boot information, registers, commands. docs/guest-abi.md and
 * docs/devices.md explain it. The constants are those of the Rust package guest-images/abi; guest-images/tests/guest_header.rs compares
 * all of them.
 *
 * A guest is freestanding: no C library, no start-up files. It begins at
 *
 *	void _start(const struct hmmvisor_boot_info *info, uint64_t vcpu);
 *
 * on every vCPU, and is built with
 *
 *	cc -O2 -ffreestanding -fno-stack-protector -nostdlib -static -no-pie -Wl,-Ttext-segment=0x200000 guest.c -o guest
 *	hmmvisor run --guest guest
 *
 * (Programs in a Linux guest use guest-images/linux/include/hmmvisor.h.)
 */
#ifndef HMMVISOR_GUEST_H
#define HMMVISOR_GUEST_H

#include <stdint.h>

/* Memory map. Addresses are guest-physical; the page tables map them one to one. */
#define HMMVISOR_BOOT_RAM_BASE 0x0ull /* never migrates */
#define HMMVISOR_BOOT_RAM_SIZE 0x1000000ull
#define HMMVISOR_FIRMWARE_BASE 0x1000ull /* not reachable by the guest */
#define HMMVISOR_FIRMWARE_END 0x100000ull
#define HMMVISOR_BOOT_INFO 0x100000ull
#define HMMVISOR_BOOT_INFO_SIZE 0x1000ull
#define HMMVISOR_IRQ_COUNTERS 0x101000ull /* see hmmvisor_irq_counter */
#define HMMVISOR_IRQ_LINES 16ull
#define HMMVISOR_IRQ_VECTOR_BASE 0x40ull
#define HMMVISOR_MEMORY_ERRORS 0x103000ull /* see hmmvisor_memory_error */
#define HMMVISOR_IMAGE_BASE 0x200000ull /* the guest's image lies from here */
#define HMMVISOR_IMAGE_END 0xc00000ull /* to here (exclusive), or in managed memory */
#define HMMVISOR_STACKS 0xc00000ull
#define HMMVISOR_STACK_SIZE 0x10000ull /* of each vCPU */
#define HMMVISOR_MAX_VCPUS 64ull
#define HMMVISOR_CONTROL 0xd0000000ull /* control device */
#define HMMVISOR_SERIAL 0xd0001000ull /* 16550 serial port */
#define HMMVISOR_ACCEL 0xd0010000ull /* accelerator 0 */
#define HMMVISOR_ACCEL_STRIDE 0x1000ull /* from one accelerator to the next */
#define HMMVISOR_MAX_ACCELS 16ull
#define HMMVISOR_MANAGED 0x100000000ull /* managed memory: its pages migrate */
#define HMMVISOR_MANAGED_MAX 0x2000000000ull

/* Boot information. */
#define HMMVISOR_BOOT_MAGIC 0x31545347564d4d48ull /* "HMMVGST1" */
#define HMMVISOR_BOOT_VERSION 1u

struct hmmvisor_boot_info {
	uint64_t magic;
	uint32_t version;
	uint32_t vcpus; /* all of them start at once */
	uint32_t devices; /* accelerators */
	uint32_t reserved;
	uint64_t memory_base; /* managed memory */
	uint64_t memory_size; /* in bytes */
	uint64_t control_base;
	uint64_t serial_base;
	uint64_t accel_base;
	uint64_t accel_stride;
	uint64_t irq_counters;
	uint64_t seed; /* --seed */
	uint64_t tsc_khz; /* 0 if unknown */
	uint64_t cmdline; /* "key=value key=value", without a terminator */
	uint64_t cmdline_len;
};

/* Registers of the control device: offsets from HMMVISOR_CONTROL. */
#define HMMVISOR_CONTROL_EXIT 0x00ull /* write: ends the run with this exit code */
#define HMMVISOR_CONTROL_PROGRESS 0x08ull /* write: thousandths of the work that are done */
#define HMMVISOR_CONTROL_YIELD 0x10ull /* write: lets the host run something else */
#define HMMVISOR_CONTROL_PARK 0x18ull /* write: this vCPU never runs again */
#define HMMVISOR_CONTROL_TIME_NS 0x20ull /* read: nanoseconds since the machine was made */
#define HMMVISOR_CONTROL_EXCEPTION 0x28ull /* firmware only */
#define HMMVISOR_CONTROL_CHECKED 0x30ull /* write: so many more operations have been checked */
#define HMMVISOR_CONTROL_ROUND 0x38ull /* write: number of the round that begins */
#define HMMVISOR_CONTROL_CHAOS_BASE 0x40ull /* workload torture only, as the next one */
#define HMMVISOR_CONTROL_CHAOS_SHARED 0x48ull

/* Exit codes of the embedded guest; a guest of your own may use others. 0: everything was verified. */
#define HMMVISOR_CONTROL_EXIT_WRONG_DATA 1u
#define HMMVISOR_CONTROL_EXIT_PANIC 2u
#define HMMVISOR_CONTROL_EXIT_USAGE 3u

/* Memory errors: a page of managed memory that cannot be supplied. */
struct hmmvisor_memory_error {
	uint64_t recovery; /* written by the guest: where to continue; 0 for nowhere */
	uint64_t address; /* written by the firmware: the page */
	uint64_t reason; /* written by the firmware: HMMVISOR_REASON_*, never 0 */
	uint64_t reserved[5];
};

#define HMMVISOR_REASON_LOST 1ull
#define HMMVISOR_REASON_DEVICE 2ull
#define HMMVISOR_REASON_OUT_OF_MEMORY 3ull
#define HMMVISOR_REASON_BUSY 4ull
#define HMMVISOR_REASON_READ_ONLY 5ull
#define HMMVISOR_REASON_HOST 6ull

/* Registers of an accelerator: offsets from its window. */
#define HMMVISOR_REG_ID 0x00ull
#define HMMVISOR_REG_VERSION 0x08ull
#define HMMVISOR_REG_MEMORY_SIZE 0x10ull
#define HMMVISOR_REG_QUEUE_BASE 0x18ull
#define HMMVISOR_REG_QUEUE_ENTRIES 0x20ull
#define HMMVISOR_REG_IRQ 0x28ull
#define HMMVISOR_REG_ENABLE 0x30ull
#define HMMVISOR_REG_DOORBELL 0x38ull
#define HMMVISOR_REG_COMPLETED 0x40ull
#define HMMVISOR_REG_WAIT 0x48ull
#define HMMVISOR_REG_ERROR 0x50ull
#define HMMVISOR_REG_SPACES 0x58ull
#define HMMVISOR_REG_MANAGED_BASE 0x60ull
#define HMMVISOR_REG_MANAGED_SIZE 0x68ull
#define HMMVISOR_REG_TRANSLATIONS 0x70ull
#define HMMVISOR_REG_SPACE_OPEN 0x78ull
#define HMMVISOR_REG_SPACE_CLOSE 0x80ull
#define HMMVISOR_REG_MAP 0x88ull
#define HMMVISOR_REG_INVALIDATE_START 0x90ull
#define HMMVISOR_REG_INVALIDATE 0x98ull
#define HMMVISOR_REG_FAULT 0xa0ull
#define HMMVISOR_REG_FAULT_ADDRESS 0xa8ull
#define HMMVISOR_REG_RESUME 0xb0ull

#define HMMVISOR_ID_VALUE 0x4c454343414d4d48ull /* of REG_ID: "HMMACCEL" */
#define HMMVISOR_MAX_QUEUE_ENTRIES 1024ull

/* Values of REG_ERROR. */
#define HMMVISOR_ERR_NONE 0ull
#define HMMVISOR_ERR_QUEUE_BASE 1ull
#define HMMVISOR_ERR_QUEUE_ENTRIES 2ull
#define HMMVISOR_ERR_NOT_WRITABLE 3ull
#define HMMVISOR_ERR_IRQ 4ull
#define HMMVISOR_ERR_PIN 5ull
#define HMMVISOR_ERR_QUEUE_OVERRUN 6ull
#define HMMVISOR_ERR_SPACE 7ull
#define HMMVISOR_ERR_TRANSLATION 8ull

/* Address spaces. */
#define HMMVISOR_PHYSICAL 0u /* in place of a space's number: addresses are guest-physical */
#define HMMVISOR_SPACES 1023ull
#define HMMVISOR_SPACE_END 0x200000000000000ull
#define HMMVISOR_SPACE_BLOCK 0x200000ull
#define HMMVISOR_TRANSLATIONS 512ull
#define HMMVISOR_TRANSLATION_VALID 1ull
#define HMMVISOR_TRANSLATION_WRITABLE 2ull
#define HMMVISOR_FAULT_WRITE 0x10000ull

/*
 * A queue is page-aligned and lies in managed memory: the header, then n commands, then n completions. Command number i, counted from 0 for
 * ever, is in slot i % n, and so is its completion.
 */
struct hmmvisor_queue_header {
	uint64_t submitted; /* written by the guest, after the command */
	uint64_t completed; /* written by the device, after the completion */
	uint64_t reserved[6];
};

struct hmmvisor_command {
	uint32_t opcode;
	uint32_t flags;
	uint64_t tag; /* comes back in the completion */
	uint64_t args[6];
};

struct hmmvisor_completion {
	uint64_t tag;
	uint32_t status;
	uint32_t reserved;
	uint64_t result;
	uint64_t address; /* the address or index that an error is about */
};

#define HMMVISOR_FLAG_INTERRUPT 1u
#define HMMVISOR_FLAG_SPACE_SHIFT 16u

/* Opcodes, with their arguments. */
#define HMMVISOR_OP_NOP 0u
#define HMMVISOR_OP_FILL 1u /* dst, n, start, step */
#define HMMVISOR_OP_COPY 2u /* dst, src, bytes */
#define HMMVISOR_OP_VECTOR_ADD 3u /* c, a, b, n */
#define HMMVISOR_OP_TRIAD 4u /* a, b, c, n, s */
#define HMMVISOR_OP_REDUCE 5u /* src, n; result = sum */
#define HMMVISOR_OP_GATHER 6u /* dst, src, idx, n, len */
#define HMMVISOR_OP_SCATTER 7u /* dst, src, idx, n, len */
#define HMMVISOR_OP_MATMUL 8u /* c, a, b, n */
#define HMMVISOR_OP_SPMV 9u /* y, row, col, val, x, n */
#define HMMVISOR_OP_BFS_STEP 10u /* row, col, dist, n, level; result = vertices reached */
#define HMMVISOR_OP_ATOMIC_ADD 11u /* base, idx, n, value, len */
#define HMMVISOR_OP_CHASE 12u /* base, start, steps, len; result = the last index */
#define HMMVISOR_OP_MIGRATE 13u /* addr, bytes, direction; result = pages moved */
#define HMMVISOR_OP_FREE 14u /* addr, bytes; result = pages freed that had contents */
#define HMMVISOR_OP_EXCLUSIVE_ADD 15u /* addr, n, value; result = the word before */
#define HMMVISOR_OP_HINT 16u /* addr, bytes, hint */
#define HMMVISOR_MAX_EXCLUSIVE_ADDS 0x100000ull

/* Directions of OP_MIGRATE. */
#define HMMVISOR_TO_DEVICE 1ull
#define HMMVISOR_TO_SYSTEM 0ull

/* Hints of OP_HINT. */
#define HMMVISOR_HINT_PREFER_NONE 0ull
#define HMMVISOR_HINT_PREFER_SYSTEM 1ull
#define HMMVISOR_HINT_PREFER_DEVICE 2ull
#define HMMVISOR_HINT_ACCESSED 3ull
#define HMMVISOR_HINT_NOT_ACCESSED 4ull
#define HMMVISOR_HINT_READ_MOSTLY 5ull
#define HMMVISOR_HINT_NOT_READ_MOSTLY 6ull

/* Statuses of completions. */
#define HMMVISOR_STATUS_OK 0u
#define HMMVISOR_STATUS_OPCODE 1u
#define HMMVISOR_STATUS_ARGUMENT 2u
#define HMMVISOR_STATUS_ADDRESS 3u
#define HMMVISOR_STATUS_FAULT 4u
#define HMMVISOR_STATUS_PERMISSION 5u
#define HMMVISOR_STATUS_INDEX 6u
#define HMMVISOR_STATUS_ABORTED 7u

/* Reads a 64-bit register. */
static inline uint64_t hmmvisor_read(uint64_t address)
{
	return *(volatile uint64_t *)address;
}

/* Writes a 64-bit register. */
static inline void hmmvisor_write(uint64_t address, uint64_t value)
{
	*(volatile uint64_t *)address = value;
}

/* Ends the run; hmmvisor exits with this code. */
static inline _Noreturn void hmmvisor_exit(uint32_t code)
{
	for (;;)
		hmmvisor_write(HMMVISOR_CONTROL + HMMVISOR_CONTROL_EXIT, code);
}

/* Stops this vCPU for ever. */
static inline _Noreturn void hmmvisor_park(void)
{
	for (;;)
		hmmvisor_write(HMMVISOR_CONTROL + HMMVISOR_CONTROL_PARK, 1);
}

/* Writes a text to the serial port: hmmvisor's standard output. */
static inline void hmmvisor_print(const char *text)
{
	while (*text)
		*(volatile uint8_t *)HMMVISOR_SERIAL = (uint8_t)*text++;
}

/* The counter of interrupts on a line (accelerator i has line i) that a vCPU has taken. */
static inline volatile uint64_t *hmmvisor_irq_counter(uint64_t vcpu, uint64_t line)
{
	return (volatile uint64_t *)(HMMVISOR_IRQ_COUNTERS + (vcpu * HMMVISOR_IRQ_LINES + line) * 8);
}

/* A vCPU's place for recovery from memory errors. */
static inline volatile struct hmmvisor_memory_error *hmmvisor_memory_error(uint64_t vcpu)
{
	return (volatile struct hmmvisor_memory_error *)(HMMVISOR_MEMORY_ERRORS + vcpu * sizeof(struct hmmvisor_memory_error));
}

#endif
