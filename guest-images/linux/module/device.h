/* SPDX-License-Identifier: GPL-2.0 */
/* The accelerator's registers and formats: docs/devices.md. */
#ifndef HMMVISOR_DEVICE_H
#define HMMVISOR_DEVICE_H

#include <linux/types.h>

#define REG_ID 0x00
#define REG_VERSION 0x08
#define REG_MEMORY_SIZE 0x10
#define REG_QUEUE_BASE 0x18
#define REG_QUEUE_ENTRIES 0x20
#define REG_IRQ 0x28
#define REG_ENABLE 0x30
#define REG_DOORBELL 0x38
#define REG_ERROR 0x50
#define REG_SPACES 0x58
#define REG_MANAGED_BASE 0x60
#define REG_MANAGED_SIZE 0x68
#define REG_TRANSLATIONS 0x70
#define REG_SPACE_OPEN 0x78
#define REG_SPACE_CLOSE 0x80
#define REG_MAP 0x88
#define REG_INVALIDATE_START 0x90
#define REG_INVALIDATE 0x98
#define REG_FAULT 0xa0
#define REG_FAULT_ADDRESS 0xa8
#define REG_RESUME 0xb0

#define ID_VALUE 0x4c454343414d4d48ULL /* "HMMACCEL" */
#define DEVICE_VERSION 1

#define FAULT_SPACE(fault) ((fault) & 0xffff)
#define FAULT_IS_WRITE(fault) (((fault) >> 16) & 1)
#define FAULT_NUMBER(fault) ((fault) >> 32)

/* Translations are handed over for blocks of this size. */
#define SPACE_BLOCK_SHIFT 21
#define SPACE_BLOCK (1UL << SPACE_BLOCK_SHIFT)
#define SPACE_BLOCK_PAGES (SPACE_BLOCK >> PAGE_SHIFT)
#define TRANSLATION_VALID 1ULL
#define TRANSLATION_WRITABLE 2ULL

#define COMMAND_INTERRUPT 1U
#define COMMAND_SPACE_SHIFT 16

/* The queue: this, then the commands, then the completions; both as programs know them. */
struct queue_header {
	u64 submitted;
	u64 completed;
	u64 reserved[6];
};

#endif
