/* SPDX-License-Identifier: MIT */
/* What the programs have in common: numbers, and giving up. */
#ifndef COMMON_H
#define COMMON_H

#include <err.h>
#include <stdint.h>
#include <stdlib.h>

#include "hmmvisor.h"

static inline uint64_t next_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static inline void *allocate(size_t bytes)
{
	void *memory = malloc(bytes);

	if (!memory)
		err(1, "%zu bytes", bytes);
	return memory;
}

static inline void open_device(struct hmmvisor *device)
{
	if (hmmvisor_open(device, NULL) < 0)
		err(1, "/dev/hmmvisor0");
}

/* A command must have ended well. */
static inline void must(struct hmmvisor *device, const char *what, int result)
{
	if (result < 0)
		err(1, "%s", what);
	if (result > 0)
		errx(1, "%s: %s", what, hmmvisor_error(device));
}

/* The number after the program's name, or this one. */
static inline uint64_t argument(int argc, char **argv, int index, uint64_t otherwise)
{
	char *end;
	uint64_t value;

	if (index >= argc)
		return otherwise;
	value = strtoull(argv[index], &end, 0);
	if (end == argv[index] || *end)
		errx(2, "%s is no number", argv[index]);
	return value;
}

static inline void print_info(struct hmmvisor *device, const char *what)
{
	struct hmmvisor_info info;

	if (ioctl(device->fd, HMMVISOR_IOC_INFO, &info) < 0)
		err(1, "HMMVISOR_IOC_INFO");
	printf("%s: ok, %llu device faults, %llu invalidations, %llu retries\n", what, (unsigned long long)info.faults,
	       (unsigned long long)info.invalidations, (unsigned long long)info.retries);
}

#endif
