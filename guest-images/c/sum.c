// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A guest in C: the vCPU writes numbers into managed memory, accelerator 0 adds them up, the vCPU checks the sum. The head of
// hmmvisor_guest.h says how it is built, docs/guest-abi.md explains it.
//
// Exit codes: 0 the sum is right; 1 it is wrong; 3 the machine has no accelerator, too little memory, or refused the queue; 4 the command failed.

#include "hmmvisor_guest.h"

// Managed memory begins with the queue, in a page of its own; the numbers follow.
enum { SLOTS = 16, PAGE = 4096, NUMBERS = 1 << 20 };

static struct hmmvisor_queue_header *const queue = (void *)HMMVISOR_MANAGED;
static struct hmmvisor_command *const commands = (void *)(HMMVISOR_MANAGED + sizeof(struct hmmvisor_queue_header));
static struct hmmvisor_completion *const completions =
	(void *)(HMMVISOR_MANAGED + sizeof(struct hmmvisor_queue_header) + SLOTS * sizeof(struct hmmvisor_command));
static uint64_t *const numbers = (void *)(HMMVISOR_MANAGED + PAGE);

_Static_assert(sizeof *queue + SLOTS * (sizeof *commands + sizeof *completions) <= PAGE, "the queue fits into its page");

// Tells the accelerator where its queue is, and starts it. False if the accelerator refuses.
static int start(void)
{
	hmmvisor_write(HMMVISOR_ACCEL + HMMVISOR_REG_QUEUE_BASE, HMMVISOR_MANAGED);
	hmmvisor_write(HMMVISOR_ACCEL + HMMVISOR_REG_QUEUE_ENTRIES, SLOTS);
	hmmvisor_write(HMMVISOR_ACCEL + HMMVISOR_REG_ENABLE, 1);
	return hmmvisor_read(HMMVISOR_ACCEL + HMMVISOR_REG_ERROR) == HMMVISOR_ERR_NONE;
}

// Executes one command: submit it, ring the doorbell, wait for the completion.
static struct hmmvisor_completion execute(struct hmmvisor_command command)
{
	uint64_t number = queue->submitted;

	commands[number % SLOTS] = command;
	__atomic_store_n(&queue->submitted, number + 1, __ATOMIC_RELEASE);
	hmmvisor_write(HMMVISOR_ACCEL + HMMVISOR_REG_DOORBELL, 1);
	while (__atomic_load_n(&queue->completed, __ATOMIC_ACQUIRE) == number)
		hmmvisor_write(HMMVISOR_ACCEL + HMMVISOR_REG_WAIT, number);
	return completions[number % SLOTS];
}

void _start(const struct hmmvisor_boot_info *info, uint64_t vcpu)
{
	struct hmmvisor_completion done;

	// Every vCPU starts here; one of them is enough.
	if (vcpu != 0)
		hmmvisor_park();
	if (info->magic != HMMVISOR_BOOT_MAGIC || info->devices == 0 || info->memory_size < PAGE + NUMBERS * sizeof *numbers || !start()) {
		hmmvisor_print("sum: this guest needs an accelerator and 9 MiB of memory\n");
		hmmvisor_exit(3);
	}
	// These writes fault: each page is filled with zeros when it is touched first.
	for (uint64_t i = 0; i < NUMBERS; i++)
		numbers[i] = i;
	// Here the accelerator faults, and pages migrate to its memory.
	done = execute((struct hmmvisor_command){ .opcode = HMMVISOR_OP_REDUCE, .args = { (uint64_t)numbers, NUMBERS } });
	if (done.status != HMMVISOR_STATUS_OK) {
		hmmvisor_print("sum: the command failed\n");
		hmmvisor_exit(4);
	}
	// And here the vCPU faults, and gets the page back.
	if (done.result != (uint64_t)NUMBERS * (NUMBERS - 1) / 2 || numbers[NUMBERS - 1] != NUMBERS - 1) {
		hmmvisor_print("sum: wrong\n");
		hmmvisor_exit(1);
	}
	hmmvisor_print("sum: right\n");
	hmmvisor_exit(0);
}
