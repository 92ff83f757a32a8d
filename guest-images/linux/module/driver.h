/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The driver's parts:
 *
 *   main.c	the platform device: probe, remove
 *   queue.c	the device's queue: commands in, completions out
 *   context.c	open files: ioctls
 *   mirror.c	a process's address space in the device's MMU
 *
 * Locks, in the order in which they are taken:
 *
 *   context.submit_lock   the numbers of one SUBMIT follow each other
 *   context.fault_lock	   one fault or tear-down of a context at a time; protects its blocks
 *   mm->mmap_lock
 *   accel.mirror_lock	   "driver->update" of Documentation/mm/hmm.rst: translations change, and are checked to be current,
 *			   only under it. Taken in invalidations, so nothing that allocates memory may happen under it.
 *   accel.queue_lock, accel.spaces_lock, context.jobs_lock	spinlocks, one at a time
 */
#ifndef HMMVISOR_DRIVER_H
#define HMMVISOR_DRIVER_H

#include <linux/io.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "../include/hmmvisor_ioctl.h"
#include "device.h"

/* Slots of the device's queue: a power of two. */
#define QUEUE_ENTRIES 256

struct context;

/* Whose command is in a slot of the queue. */
struct queue_owner {
	struct context *context;
	u64 number;
};

/* An accelerator. Contexts hold references, so it outlives the platform device. */
struct accel {
	struct kref ref;
	struct device *dev;
	void __iomem *regs;
	int irq;
	int id;
	char name[24];
	struct miscdevice misc;
	u64 memory;
	u64 managed_base;
	u64 managed_size;

	/* The queue. */
	spinlock_t queue_lock;
	bool queue_gone;
	struct queue_header *queue;
	struct hmmvisor_command *commands;
	struct hmmvisor_completion *completions;
	u64 submitted;
	u64 completed;
	struct queue_owner owners[QUEUE_ENTRIES];
	wait_queue_head_t queue_space;

	/* Address spaces. */
	struct mutex mirror_lock;
	bool mirror_gone;
	u64 *translations;
	struct xarray spaces;
	u32 last_space;
	struct workqueue_struct *faults;
	u32 last_fault;
};

enum job_state { JOB_FREE, JOB_QUEUED, JOB_DONE };

/* A command of a context, from SUBMIT to WAIT. */
struct job {
	enum job_state state;
	u64 number;
	u64 tag;
	struct hmmvisor_completion completion;
};

/* An open file. Each of its commands in the queue holds a reference, and so does a fault. */
struct context {
	struct kref ref;
	struct accel *accel;
	struct mm_struct *mm;
	u32 space;

	struct mutex submit_lock;
	spinlock_t jobs_lock;
	u64 next;
	struct job jobs[HMMVISOR_OUTSTANDING];
	wait_queue_head_t done;

	/* The mirror. */
	struct mutex fault_lock;
	bool closing;
	struct xarray blocks;
	unsigned long nr_blocks;
	unsigned long *pfns;
	struct work_struct fault_work;
	u64 fault;
	unsigned long fault_address;
	atomic64_t faults;
	atomic64_t invalidations;
	atomic64_t retries;
};

static inline u64 reg_read(struct accel *accel, unsigned int reg)
{
	return readq(accel->regs + reg);
}

static inline void reg_write(struct accel *accel, unsigned int reg, u64 value)
{
	writeq(value, accel->regs + reg);
}

/* main.c */
void accel_put(struct accel *accel);

/* queue.c */
size_t queue_bytes(void);
int queue_push(struct accel *accel, struct context *context, const struct hmmvisor_command *command, u64 number);
void queue_reap(struct accel *accel);
void queue_abort(struct accel *accel);

/* context.c */
extern const struct file_operations context_fops;
void context_put(struct context *context);
void context_completed(struct context *context, u64 number, const struct hmmvisor_completion *completion);

/* mirror.c */
int mirror_open(struct context *context);
void mirror_close(struct context *context);
void mirror_free(struct context *context);
void mirror_check_fault(struct accel *accel);
void mirror_stop(struct accel *accel);

#endif
