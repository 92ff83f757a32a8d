// SPDX-License-Identifier: MIT
/* Powers of a matrix of whole numbers, CPU and accelerator in turns: `matmul [N [ROUNDS]]`. */

#include "common.h"

static void multiply(double *c, const double *a, const double *b, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		for (uint64_t j = 0; j < n; j++)
			c[i * n + j] = 0;
		for (uint64_t k = 0; k < n; k++)
			for (uint64_t j = 0; j < n; j++)
				c[i * n + j] += a[i * n + k] * b[k * n + j];
	}
}

int main(int argc, char **argv)
{
	uint64_t n = argument(argc, argv, 1, 160), rounds = argument(argc, argv, 2, 3), seed = 1;
	size_t bytes = n * n * sizeof(double);
	double *a = allocate(bytes), *b = allocate(bytes), *c = allocate(bytes), *expected = allocate(bytes);
	struct hmmvisor device;

	open_device(&device);
	for (uint64_t i = 0; i < n * n; i++) {
		a[i] = next_random(&seed) % 7;
		b[i] = next_random(&seed) % 7;
	}
	for (uint64_t round = 1; round <= rounds; round++) {
		must(&device, "matrix multiply", hmmvisor_matmul(&device, c, a, b, n));
		multiply(expected, a, b, n);
		/* Sums are made in the same order: they are equal, bit for bit. */
		for (uint64_t i = 0; i < n * n; i++) {
			if (c[i] != expected[i])
				errx(1, "round %ju: element %ju is %g instead of %g", round, i, c[i], expected[i]);
			b[i] = (uint64_t)c[i] % 11;
		}
	}
	print_info(&device, "matmul");
	hmmvisor_close(&device);
	return 0;
}
