// SPDX-License-Identifier: MIT
/*
 * Memory that the accelerator has worked on is given back: `freed [MIB [PAUSE]]`.
 *
 * Touches so many MiB, lets the accelerator work on them so that they are in its memory, frees them, and says so. The kernel's free page
 * reporting then tells the host, if there is a balloon. PAUSE seconds later, it takes memory again: that must be zeros. With a PAUSE,
 * it also waits for two seconds before it frees, so that a test can look at the host's memory.
 *
 * The memory is in huge pages if the kernel has some: only these are reported (in units of pageblock_order).
 */

#include <sys/mman.h>

#include "common.h"

#define HUGE_PAGE (2ul << 20)

static uint64_t *map(uint64_t bytes)
{
	char *memory = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t before;

	if (memory == MAP_FAILED)
		err(1, "%ju bytes", bytes);
	/* An aligned part of it. Without huge pages small ones will do. */
	before = -(uintptr_t)memory % HUGE_PAGE;
	if (before)
		munmap(memory, before);
	munmap(memory + before + bytes, HUGE_PAGE - before);
	madvise(memory + before, bytes, MADV_HUGEPAGE);
	return (uint64_t *)(memory + before);
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
	if (pause)
		sleep(2);
	if (munmap(memory, bytes) < 0)
		err(1, "munmap");
	printf("freed: gave them back\n");
	/* What is not there any more cannot be computed with. */
	if (hmmvisor_reduce(&device, memory, n, &sum) != HMMVISOR_BAD_ADDRESS)
		errx(1, "the accelerator still reads what was unmapped: %s", hmmvisor_error(&device));
	sleep(pause);
	printf("freed: takes memory again\n");
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
