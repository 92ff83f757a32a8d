// SPDX-License-Identifier: GPL-2.0
/* Open files of /dev/hmmvisorN. */

#include <linux/fs.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "driver.h"

static void context_free(struct kref *ref)
{
	struct context *context = container_of(ref, struct context, ref);

	mirror_free(context);
	mmdrop(context->mm);
	accel_put(context->accel);
	kfree(context);
}

void context_put(struct context *context)
{
	kref_put(&context->ref, context_free);
}

static int context_open(struct inode *inode, struct file *file)
{
	struct accel *accel = container_of(file->private_data, struct accel, misc);
	struct context *context;
	int ret;

	context = kzalloc(sizeof(*context), GFP_KERNEL_ACCOUNT);
	if (!context)
		return -ENOMEM;
	kref_init(&context->ref);
	kref_get(&accel->ref);
	context->accel = accel;
	context->mm = current->mm;
	mmgrab(context->mm);
	mutex_init(&context->submit_lock);
	spin_lock_init(&context->jobs_lock);
	init_waitqueue_head(&context->done);
	ret = mirror_open(context);
	if (ret) {
		context_put(context);
		return ret;
	}
	file->private_data = context;
	return nonseekable_open(inode, file);
}

static int context_release(struct inode *inode, struct file *file)
{
	struct context *context = file->private_data;

	/* Commands that are still in the queue end as aborted, one after the other; each has a reference. */
	mirror_close(context);
	context_put(context);
	return 0;
}

/* A command has left the device. */
void context_completed(struct context *context, u64 number, const struct hmmvisor_completion *completion)
{
	struct job *job = &context->jobs[number % HMMVISOR_OUTSTANDING];

	spin_lock(&context->jobs_lock);
	job->completion = *completion;
	job->completion.tag = job->tag;
	job->state = JOB_DONE;
	spin_unlock(&context->jobs_lock);
	wake_up_interruptible_all(&context->done);
}

static int submit_one(struct context *context, const struct hmmvisor_command *command)
{
	struct job *job = &context->jobs[context->next % HMMVISOR_OUTSTANDING];
	int ret = 0;

	if (command->flags)
		return -EINVAL;
	spin_lock(&context->jobs_lock);
	if (job->state == JOB_FREE) {
		job->state = JOB_QUEUED;
		job->number = context->next;
		job->tag = command->tag;
	} else {
		ret = -EBUSY;
	}
	spin_unlock(&context->jobs_lock);
	if (ret)
		return ret;
	ret = queue_push(context->accel, context, command, context->next);
	if (ret) {
		spin_lock(&context->jobs_lock);
		job->state = JOB_FREE;
		spin_unlock(&context->jobs_lock);
		return ret;
	}
	context->next++;
	return 0;
}

static long submit(struct context *context, void __user *arg)
{
	struct hmmvisor_submit request;
	struct hmmvisor_command command;
	struct hmmvisor_command __user *commands;
	long ret = 0;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	commands = u64_to_user_ptr(request.commands);
	if (mutex_lock_interruptible(&context->submit_lock))
		return -ERESTARTSYS;
	request.first = context->next;
	for (request.submitted = 0; request.submitted < request.count; request.submitted++) {
		if (copy_from_user(&command, &commands[request.submitted], sizeof(command)))
			ret = -EFAULT;
		else
			ret = submit_one(context, &command);
		if (ret)
			break;
	}
	mutex_unlock(&context->submit_lock);
	/* Those that were submitted must be known to the caller; the next call reports what keeps the rest. */
	if (request.submitted == 0 && ret)
		return ret;
	return copy_to_user(arg, &request, sizeof(request)) ? -EFAULT : 0;
}

/* 1: all are done; 0: not yet; -EINVAL: one is not outstanding. */
static int all_done(struct context *context, u64 first, u32 count)
{
	int ret = 1;
	u32 i;

	spin_lock(&context->jobs_lock);
	for (i = 0; i < count; i++) {
		struct job *job = &context->jobs[(first + i) % HMMVISOR_OUTSTANDING];

		if (job->state == JOB_FREE || job->number != first + i) {
			ret = -EINVAL;
			break;
		}
		if (job->state != JOB_DONE)
			ret = 0;
	}
	spin_unlock(&context->jobs_lock);
	return ret;
}

/* Hands over completions; -EINVAL if another thread has taken one since. */
static int take(struct context *context, u64 first, u32 count, struct hmmvisor_completion *out)
{
	int ret = 0;
	u32 i;

	spin_lock(&context->jobs_lock);
	for (i = 0; i < count; i++) {
		struct job *job = &context->jobs[(first + i) % HMMVISOR_OUTSTANDING];

		if (job->state != JOB_DONE || job->number != first + i)
			ret = -EINVAL;
		out[i] = job->completion;
	}
	for (i = 0; i < count && !ret; i++)
		context->jobs[(first + i) % HMMVISOR_OUTSTANDING].state = JOB_FREE;
	spin_unlock(&context->jobs_lock);
	return ret;
}

static long wait(struct context *context, void __user *arg)
{
	struct hmmvisor_completion *completions;
	struct hmmvisor_wait request;
	size_t bytes;
	int found = 0;
	long ret;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (!request.count || request.count > HMMVISOR_OUTSTANDING || request.reserved)
		return -EINVAL;
	bytes = request.count * sizeof(*completions);
	ret = wait_event_interruptible(context->done,
				       (found = all_done(context, request.first, request.count)) != 0);
	if (ret)
		return ret;
	if (found < 0)
		return found;
	completions = kmalloc(bytes, GFP_KERNEL_ACCOUNT);
	if (!completions)
		return -ENOMEM;
	ret = take(context, request.first, request.count, completions);
	if (!ret && copy_to_user(u64_to_user_ptr(request.completions), completions, bytes))
		ret = -EFAULT;
	kfree(completions);
	return ret;
}

static long info(struct context *context, void __user *arg)
{
	struct hmmvisor_info answer = {
		.memory = context->accel->memory,
		.faults = atomic64_read(&context->faults),
		.invalidations = atomic64_read(&context->invalidations),
		.retries = atomic64_read(&context->retries),
	};

	return copy_to_user(arg, &answer, sizeof(answer)) ? -EFAULT : 0;
}

static long context_ioctl(struct file *file, unsigned int request, unsigned long arg)
{
	struct context *context = file->private_data;

	/* After fork or exec, pointers mean something else. */
	if (current->mm != context->mm)
		return -EPERM;
	switch (request) {
	case HMMVISOR_IOC_INFO:
		return info(context, (void __user *)arg);
	case HMMVISOR_IOC_SUBMIT:
		return submit(context, (void __user *)arg);
	case HMMVISOR_IOC_WAIT:
		return wait(context, (void __user *)arg);
	default:
		return -ENOTTY;
	}
}

const struct file_operations context_fops = {
	.owner = THIS_MODULE,
	.open = context_open,
	.release = context_release,
	.unlocked_ioctl = context_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};
