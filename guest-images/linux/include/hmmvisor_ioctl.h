/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * What programs ask of /dev/hmmvisorN.
 *
 * An open file is a context: it belongs to the address space of the process that opened it, and the addresses in its
 * commands are that process's pointers. Nothing has to be registered, pinned or copied. A child gets the file, but not
 * the address space: its requests fail with EPERM, and it opens a context of its own. Threads share one.
 */
#ifndef HMMVISOR_IOCTL_H
#define HMMVISOR_IOCTL_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Opcodes, with arguments as in docs/devices.md. Addresses are 8-byte aligned, counts are in 8-byte elements. */
#define HMMVISOR_NOP 0
#define HMMVISOR_FILL 1 /* dst, n, start, step */
#define HMMVISOR_COPY 2 /* dst, src, bytes */
#define HMMVISOR_VECTOR_ADD 3 /* c, a, b, n */
#define HMMVISOR_TRIAD 4 /* a, b, c, n, bits of a double */
#define HMMVISOR_REDUCE 5 /* src, n */
#define HMMVISOR_GATHER 6 /* dst, src, idx, n, len */
#define HMMVISOR_SCATTER 7 /* dst, src, idx, n, len */
#define HMMVISOR_MATMUL 8 /* c, a, b, n */
#define HMMVISOR_SPMV 9 /* y, row, col, val, x, n */
#define HMMVISOR_BFS_STEP 10 /* row, col, dist, n, level */
#define HMMVISOR_ATOMIC_ADD 11 /* base, idx, n, value, len */
#define HMMVISOR_CHASE 12 /* base, start, steps, len */
#define HMMVISOR_MIGRATE 13 /* addr, bytes, 1 = to the device, 0 = back */
#define HMMVISOR_EXCLUSIVE_ADD 15 /* addr, n, value */

/* How a command ended. */
#define HMMVISOR_OK 0
#define HMMVISOR_BAD_OPCODE 1
#define HMMVISOR_BAD_ARGUMENT 2
#define HMMVISOR_BAD_ADDRESS 3 /* nothing is mapped there */
#define HMMVISOR_FAULT 4 /* it is mapped, but cannot be supplied */
#define HMMVISOR_NOT_PERMITTED 5 /* mapped without the right to do this */
#define HMMVISOR_BAD_INDEX 6
#define HMMVISOR_ABORTED 7 /* the device or the address space is gone */

struct hmmvisor_command {
	__u32 opcode;
	__u32 flags; /* 0 */
	__u64 tag; /* comes back in the completion */
	__u64 args[6];
};

struct hmmvisor_completion {
	__u64 tag;
	__u32 status;
	__u32 reserved; /* 0 */
	__u64 result;
	__u64 address; /* what the status is about: address or index */
};

/* Commands that a context may have submitted and not yet waited for. */
#define HMMVISOR_OUTSTANDING 128

struct hmmvisor_info {
	__u64 memory; /* of the device, in bytes */
	__u64 faults; /* of this context: translations the device has asked for */
	__u64 invalidations; /* how often translations were taken away again */
	__u64 retries; /* how often both met */
};

struct hmmvisor_submit {
	__u64 commands; /* pointer to struct hmmvisor_command[count] */
	__u32 count;
	__u32 submitted; /* out: how many were; fewer than count if a signal came or HMMVISOR_OUTSTANDING are outstanding */
	__u64 first; /* out: the number of the first one; those after it have the numbers after it */
};

struct hmmvisor_wait {
	__u64 completions; /* pointer to struct hmmvisor_completion[count] */
	__u64 first; /* number of the first command */
	__u32 count;
	__u32 reserved; /* 0 */
};

/*
 * INFO	  EPERM: see above.
 * SUBMIT queues commands; they are executed in the order of their numbers. EBUSY: HMMVISOR_OUTSTANDING are outstanding;
 *	  EINTR: a signal came before the first was queued (restarted where SA_RESTART says so); ENODEV: the device is gone.
 * WAIT	  sleeps until these commands have completed, and hands over their completions, once. EINVAL: one of them was never
 *	  submitted, or has been waited for already; EINTR as above: nothing has been handed over, wait again.
 */
#define HMMVISOR_IOC_INFO _IOR(0xE7, 0, struct hmmvisor_info)
#define HMMVISOR_IOC_SUBMIT _IOWR(0xE7, 1, struct hmmvisor_submit)
#define HMMVISOR_IOC_WAIT _IOW(0xE7, 2, struct hmmvisor_wait)

#endif
