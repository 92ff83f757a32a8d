// SPDX-License-Identifier: MIT
/* Vector add on malloc'ed memory, CPU and accelerator in turns: `vecadd [ELEMENTS [ROUNDS]]`. */

#include "common.h"

int main(int argc, char **argv)
{
	uint64_t n = argument(argc, argv, 1, 1 << 20), rounds = argument(argc, argv, 2, 4);
	uint64_t *a = allocate(n * 8), *b = allocate(n * 8), *c = allocate(n * 8);
	struct hmmvisor device;

	open_device(&device);
	for (uint64_t i = 0; i < n; i++) {
		a[i] = i * 3;
		b[i] = i * i;
	}
	for (uint64_t round = 1; round <= rounds; round++) {
		/* The accelerator's turn: in the first round c is untouched. */
		must(&device, "vector add", hmmvisor_vector_add(&device, c, a, b, n));
		/* The CPU's. */
		for (uint64_t i = 0; i < n; i++) {
			uint64_t expected = round * i * 3 + i * i;

			if (c[i] != expected)
				errx(1, "round %ju: c[%ju] is %ju instead of %ju", round, i, c[i], expected);
			b[i] = c[i];
		}
	}
	print_info(&device, "vecadd");
	hmmvisor_close(&device);
	return 0;
}
