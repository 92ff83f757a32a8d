// SPDX-License-Identifier: GPL-2.0
/* The device's queue, which all contexts share: the device executes one command after the other. */

#include "driver.h"

size_t queue_bytes(void)
{
	return sizeof(struct queue_header) +
	       QUEUE_ENTRIES * (sizeof(struct hmmvisor_command) + sizeof(struct hmmvisor_completion));
}

/* Returns 0, -EAGAIN if the queue is full, or -ENODEV. */
static int try_push(struct accel *accel, struct context *context, const struct hmmvisor_command *command, u64 number)
{
	struct hmmvisor_command *slot;
	struct queue_owner *owner;
	int ret = 0;

	spin_lock(&accel->queue_lock);
	if (accel->queue_gone) {
		ret = -ENODEV;
	} else if (accel->submitted - accel->completed == QUEUE_ENTRIES) {
		ret = -EAGAIN;
	} else {
		owner = &accel->owners[accel->submitted % QUEUE_ENTRIES];
		kref_get(&context->ref);
		owner->context = context;
		owner->number = number;
		slot = &accel->commands[accel->submitted % QUEUE_ENTRIES];
		*slot = *command;
		slot->flags = COMMAND_INTERRUPT | context->space << COMMAND_SPACE_SHIFT;
		slot->tag = accel->submitted;
		accel->submitted++;
		/* The device reads the command after it has read the number. */
		smp_store_release(&accel->queue->submitted, accel->submitted);
		reg_write(accel, REG_DOORBELL, 1);
	}
	spin_unlock(&accel->queue_lock);
	return ret;
}

/* Waits for room. Returns 0, -ERESTARTSYS or -ENODEV. */
int queue_push(struct accel *accel, struct context *context, const struct hmmvisor_command *command, u64 number)
{
	int ret = -EAGAIN;
	int interrupted;

	interrupted = wait_event_interruptible(accel->queue_space,
					       (ret = try_push(accel, context, command, number)) != -EAGAIN);
	return interrupted ?: ret;
}

/* Takes the oldest command out of the queue if it has completed, or in any case if the device is gone. */
static bool pop(struct accel *accel, struct queue_owner *owner, struct hmmvisor_completion *completion)
{
	bool found = false;
	u64 completed;

	spin_lock(&accel->queue_lock);
	/* The completions were written before their number. */
	completed = smp_load_acquire(&accel->queue->completed);
	if (accel->completed != accel->submitted && (accel->completed != completed || accel->queue_gone)) {
		*owner = accel->owners[accel->completed % QUEUE_ENTRIES];
		if (accel->completed != completed) {
			*completion = accel->completions[accel->completed % QUEUE_ENTRIES];
		} else {
			memset(completion, 0, sizeof(*completion));
			completion->status = HMMVISOR_ABORTED;
			/* The device will not count on. */
			accel->queue->completed++;
		}
		accel->completed++;
		found = true;
	}
	spin_unlock(&accel->queue_lock);
	return found;
}

void queue_reap(struct accel *accel)
{
	struct hmmvisor_completion completion;
	struct queue_owner owner;
	bool any = false;

	while (pop(accel, &owner, &completion)) {
		context_completed(owner.context, owner.number, &completion);
		context_put(owner.context);
		any = true;
	}
	if (any)
		wake_up_interruptible_all(&accel->queue_space);
}

/* The device no longer uses the queue: what it has not completed it never will. */
void queue_abort(struct accel *accel)
{
	spin_lock(&accel->queue_lock);
	accel->queue_gone = true;
	spin_unlock(&accel->queue_lock);
	queue_reap(accel);
	wake_up_interruptible_all(&accel->queue_space);
}
