// SPDX-License-Identifier: MIT
/* Breadth-first search, the levels by CPU and accelerator in turns: `bfs [VERTICES [DEGREE]]`. */

#include "common.h"

#define UNREACHED UINT64_MAX

static uint64_t step(const uint64_t *row, const uint64_t *col, uint64_t *dist, uint64_t n, uint64_t level)
{
	uint64_t reached = 0;

	for (uint64_t v = 0; v < n; v++) {
		if (dist[v] != level)
			continue;
		for (uint64_t e = row[v]; e < row[v + 1]; e++) {
			if (dist[col[e]] == UNREACHED) {
				dist[col[e]] = level + 1;
				reached++;
			}
		}
	}
	return reached;
}

int main(int argc, char **argv)
{
	uint64_t n = argument(argc, argv, 1, 50000), degree = argument(argc, argv, 2, 3), seed = 2, total = 1;
	uint64_t *row = allocate((n + 1) * 8), *col = allocate(n * degree * 2 * 8);
	uint64_t *dist = allocate(n * 8), *expected = allocate(n * 8);
	struct hmmvisor device;

	open_device(&device);
	row[0] = 0;
	for (uint64_t v = 0; v < n; v++) {
		row[v + 1] = row[v] + next_random(&seed) % (2 * degree);
		for (uint64_t e = row[v]; e < row[v + 1]; e++)
			col[e] = next_random(&seed) % n;
		dist[v] = expected[v] = v ? UNREACHED : 0;
	}
	for (uint64_t level = 0;; level++) {
		uint64_t reached, should = step(row, col, expected, n, level);

		if (level % 2 == 0)
			must(&device, "breadth-first step", hmmvisor_bfs_step(&device, row, col, dist, n, level, &reached));
		else
			reached = step(row, col, dist, n, level);
		if (reached != should)
			errx(1, "level %ju: %ju vertices instead of %ju", level, reached, should);
		total += reached;
		if (!reached)
			break;
	}
	for (uint64_t v = 0; v < n; v++)
		if (dist[v] != expected[v])
			errx(1, "vertex %ju is at %ju instead of %ju", v, dist[v], expected[v]);
	if (total < n / 2)
		errx(1, "only %ju vertices reached: a strange graph", total);
	print_info(&device, "bfs");
	hmmvisor_close(&device);
	return 0;
}
