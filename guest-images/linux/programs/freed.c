// SPDX-License-Identifier: MIT
/*
 * Memory that the accelerator has worked on is given back: `freed [MIB [PAUSE]]`.
 *
 * Touches so many MiB, lets the accelerator work on them so that they are in its memory, frees them, and says so. The kernel's free page
 * reporting then tells the host, if there is a balloon. PAUSE seconds later, it takes memory again: that must be zeros.
 */

#include <sys/mman.h>

#include "common.h"

static uint64_t *map(uint64_t bytes)
{
	uint64_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		err(1, "%ju bytes", bytes);
	return memory;
}

int main(int argc, char **argv)
{
	uint64_t mib = argument(argc, argv, 1, 64), pause = argument(argc, argv, 2, 0);
	uint64_t bytes = mib << 20, n = bytes / 8, sum;
	uint64_t *memory = map(bytes);
	struct hmmvisor device;

	setvbuf(stdout, NULL, _IOLBF, 0);
	open_device(&device);
	for (uint64_t i = 0; i < n; i++)
		memory[i] = i;
	must(&device, "reduce", hmmvisor_reduce(&device, memory, n, &sum));
	if (sum != n / 2 * (n - 1))
		errx(1, "the sum is %ju instead of %ju", sum, n / 2 * (n - 1));
	must(&device, "fill", hmmvisor_fill(&device, memory, n, 7, 0));
	printf("freed: used %ju MiB\n", mib);
	if (munmap(memory, bytes) < 0)
		err(1, "munmap");
	printf("freed: gave them back\n");
	/* What is not there any more cannot be computed with. */
	if (hmmvisor_reduce(&device, memory, n, &sum) != HMMVISOR_BAD_ADDRESS)
		errx(1, "the accelerator still reads what was unmapped: %s", hmmvisor_error(&device));
	sleep(pause);
	/* The accelerator is the first to touch the new memory; then the CPU looks at some of it. */
	memory = map(bytes);
	must(&device, "reduce", hmmvisor_reduce(&device, memory, n, &sum));
	if (sum)
		errx(1, "the sum of new memory is %ju", sum);
	for (uint64_t i = 0; i < n; i += n / 64) {
		if (memory[i])
			errx(1, "word %ju of new memory is %ju", i, memory[i]);
		memory[i] = i;
	}
	for (uint64_t i = 0; i < n; i += n / 64)
		if (memory[i] != i)
			errx(1, "word %ju is %ju", i, memory[i]);
	print_info(&device, "freed");
	hmmvisor_close(&device);
	return 0;
}
