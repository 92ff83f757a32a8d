/* SPDX-License-Identifier: MIT */
/*
 * Computing on a Hmmvisor accelerator from C. Pointers are plain pointers: malloc'ed memory, the stack, files mapped into memory.
 *
 *	struct hmmvisor device;
 *	if (hmmvisor_open(&device, NULL) < 0)
 *		err(1, "/dev/hmmvisor0");
 *	if (hmmvisor_vector_add(&device, c, a, b, n) != 0)
 *		errx(1, "%s", hmmvisor_error(&device));
 *
 * Functions return 0 when the command has been executed and ended well, a positive HMMVISOR_* when it ended otherwise, and -1 with errno
 * set when it could not be submitted or waited for. Threads may share a device if each has a struct hmmvisor of its own (copy it). A
 * child of fork() must open its own.
 */
#ifndef HMMVISOR_H
#define HMMVISOR_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "hmmvisor_ioctl.h"

struct hmmvisor {
	int fd;
	/* The completion of the last command. */
	struct hmmvisor_completion last;
	char message[128];
};

/* Opens a device, /dev/hmmvisor0 unless said otherwise. */
static inline int hmmvisor_open(struct hmmvisor *device, const char *path)
{
	memset(device, 0, sizeof(*device));
	device->fd = open(path ? path : "/dev/hmmvisor0", O_RDWR | O_CLOEXEC);
	return device->fd < 0 ? -1 : 0;
}

static inline void hmmvisor_close(struct hmmvisor *device)
{
	close(device->fd);
	device->fd = -1;
}

/* Submits commands without waiting; the number of the first one. All or none: -1 with errno set. */
static inline int hmmvisor_submit(struct hmmvisor *device, const struct hmmvisor_command *commands, uint32_t count, uint64_t *first)
{
	uint32_t done = 0;

	while (done < count) {
		struct hmmvisor_submit request = {
			.commands = (uintptr_t)(commands + done),
			.count = count - done,
		};

		if (ioctl(device->fd, HMMVISOR_IOC_SUBMIT, &request) < 0) {
			/* Some have been submitted: that cannot be taken back, so go on. */
			if (errno == EINTR)
				continue;
			return -1;
		}
		if (done == 0)
			*first = request.first;
		done += request.submitted;
	}
	return 0;
}

/* Waits for commands and takes their completions. */
static inline int hmmvisor_wait(struct hmmvisor *device, uint64_t first, uint32_t count, struct hmmvisor_completion *completions)
{
	struct hmmvisor_wait request = {
		.completions = (uintptr_t)completions,
		.first = first,
		.count = count,
	};
	int ret;

	do
		ret = ioctl(device->fd, HMMVISOR_IOC_WAIT, &request);
	while (ret < 0 && errno == EINTR);
	return ret;
}

/* Executes one command; writes its result to `result` unless that is NULL. */
static inline int hmmvisor_run(struct hmmvisor *device, uint32_t opcode, const uint64_t args[6], uint64_t *result)
{
	struct hmmvisor_command command = { .opcode = opcode };
	uint64_t number;

	memcpy(command.args, args, sizeof(command.args));
	memset(&device->last, 0, sizeof(device->last));
	if (hmmvisor_submit(device, &command, 1, &number) < 0 || hmmvisor_wait(device, number, 1, &device->last) < 0)
		return -1;
	if (result)
		*result = device->last.result;
	return (int)device->last.status;
}

#define HMMVISOR_RUN(device, opcode, result, ...) hmmvisor_run(device, opcode, (const uint64_t[6]){ __VA_ARGS__ }, result)
#define HMMVISOR_POINTER(pointer) ((uint64_t)(uintptr_t)(pointer))

/* dst[i] = start + i * step */
static inline int hmmvisor_fill(struct hmmvisor *device, uint64_t *dst, uint64_t n, uint64_t start, uint64_t step)
{
	return HMMVISOR_RUN(device, HMMVISOR_FILL, NULL, HMMVISOR_POINTER(dst), n, start, step);
}

/* c[i] = a[i] + b[i] */
static inline int hmmvisor_vector_add(struct hmmvisor *device, uint64_t *c, const uint64_t *a, const uint64_t *b, uint64_t n)
{
	return HMMVISOR_RUN(device, HMMVISOR_VECTOR_ADD, NULL, HMMVISOR_POINTER(c), HMMVISOR_POINTER(a), HMMVISOR_POINTER(b), n);
}

/* The sum. */
static inline int hmmvisor_reduce(struct hmmvisor *device, const uint64_t *src, uint64_t n, uint64_t *sum)
{
	return HMMVISOR_RUN(device, HMMVISOR_REDUCE, sum, HMMVISOR_POINTER(src), n);
}

/* C = A * B, row-major n x n. */
static inline int hmmvisor_matmul(struct hmmvisor *device, double *c, const double *a, const double *b, uint64_t n)
{
	return HMMVISOR_RUN(device, HMMVISOR_MATMUL, NULL, HMMVISOR_POINTER(c), HMMVISOR_POINTER(a), HMMVISOR_POINTER(b), n);
}

/* One level of a breadth-first search; how many vertices it reached. */
static inline int hmmvisor_bfs_step(struct hmmvisor *device, const uint64_t *row, const uint64_t *col, uint64_t *dist, uint64_t n,
				    uint64_t level, uint64_t *reached)
{
	return HMMVISOR_RUN(device, HMMVISOR_BFS_STEP, reached, HMMVISOR_POINTER(row), HMMVISOR_POINTER(col), HMMVISOR_POINTER(dist), n,
			    level);
}

/* A hint: these pages are going to be used by the device, or by the CPU. */
static inline int hmmvisor_migrate(struct hmmvisor *device, const void *addr, uint64_t bytes, int to_device)
{
	return HMMVISOR_RUN(device, HMMVISOR_MIGRATE, NULL, HMMVISOR_POINTER(addr), bytes, to_device ? 1 : 0);
}

/* The result of the last command, in words. */
static inline const char *hmmvisor_error(struct hmmvisor *device)
{
	static const char *const statuses[] = {
		"done", "unknown opcode", "bad argument", "nothing is mapped at", "contents cannot be supplied at",
		"access not permitted at", "index out of range:", "aborted",
	};
	uint32_t status = device->last.status;

	snprintf(device->message, sizeof(device->message), "%s %#llx",
		 status < sizeof(statuses) / sizeof(*statuses) ? statuses[status] : "unknown status", (unsigned long long)device->last.address);
	return device->message;
}

#endif
