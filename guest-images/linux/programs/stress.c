// SPDX-License-Identifier: MIT
/*
 * Threads, fork, munmap and device work at once: `stress [SECONDS [THREADS]]`.
 *
 * Each thread works on pieces of memory of its own, some of which share pages and blocks with those of other threads: CPU and
 * accelerator in turns, every word checked. Meanwhile memory comes and goes, moves, is dropped, and the process forks.
 */

#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "common.h"

#define PAGE 4096UL
#define PAGE_WORDS (PAGE / 8)
/* Words of each thread in memory that all threads use. */
#define COMMON_WORDS 5000UL

static struct hmmvisor shared_device;
static uint64_t *common;
static time_t end;

struct worker {
	pthread_t thread;
	uint64_t index, seed, rounds, forks, lost;
};

static uint64_t below(struct worker *worker, uint64_t limit)
{
	return next_random(&worker->seed) % limit;
}

static void check(struct worker *worker, const char *what, const uint64_t *memory, uint64_t n, uint64_t start, uint64_t step)
{
	for (uint64_t i = 0; i < n; i++)
		if (memory[i] != start + i * step)
			errx(1, "thread %ju, round %ju, %s: word %ju is %ju instead of %ju", worker->index, worker->rounds, what, i,
			     memory[i], start + i * step);
}

static uint64_t *map(uint64_t bytes)
{
	uint64_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		err(1, "%ju bytes", bytes);
	return memory;
}

/* This thread's words of the memory that all use, pages shared with neighbours. */
static void work_on_common(struct worker *worker, struct hmmvisor *device)
{
	uint64_t *mine = common + worker->index * COMMON_WORDS, start = below(worker, 1000), sum;

	if (below(worker, 2)) {
		must(device, "fill", hmmvisor_fill(device, mine, COMMON_WORDS, start, 2));
		check(worker, "filled by the accelerator", mine, COMMON_WORDS, start, 2);
	} else {
		for (uint64_t i = 0; i < COMMON_WORDS; i++)
			mine[i] = start + 2 * i;
		must(device, "reduce", hmmvisor_reduce(device, mine, COMMON_WORDS, &sum));
		if (sum != COMMON_WORDS * start + COMMON_WORDS * (COMMON_WORDS - 1))
			errx(1, "thread %ju, round %ju: the sum is %ju", worker->index, worker->rounds, sum);
	}
}

/* Memory that comes, moves and goes. */
static void work_on_own(struct worker *worker, struct hmmvisor *device)
{
	uint64_t pages = 1 + below(worker, 300), n = pages * PAGE_WORDS, start = below(worker, 1000), sum;
	uint64_t *memory = map(pages * PAGE), *place;

	must(device, "fill", hmmvisor_fill(device, memory, n, start, 1));
	switch (below(worker, 4)) {
	case 0:
		place = mremap(memory, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, map(pages * PAGE));
		if (place == MAP_FAILED)
			err(1, "mremap");
		memory = place;
		break;
	case 1:
		must(device, "migrate", hmmvisor_migrate(device, memory, pages * PAGE, below(worker, 2)));
		break;
	case 2:
		if (madvise(memory, pages * PAGE, MADV_DONTNEED) < 0)
			err(1, "madvise");
		must(device, "reduce", hmmvisor_reduce(device, memory, n, &sum));
		if (sum)
			errx(1, "thread %ju, round %ju: dropped memory has sum %ju", worker->index, worker->rounds, sum);
		must(device, "fill", hmmvisor_fill(device, memory, n, start, 1));
		break;
	}
	check(worker, "own memory", memory, n, start, 1);
	munmap(memory, pages * PAGE);
}

/* Half of the memory goes while the accelerator works on it: that it notices or has been faster; the other half is right. */
static void unmap_under_work(struct worker *worker, struct hmmvisor *device)
{
	uint64_t pages = 2 + 2 * below(worker, 100), n = pages * PAGE_WORDS, start = below(worker, 1000), number;
	uint64_t *memory = map(pages * PAGE);
	struct hmmvisor_command command = {
		.opcode = HMMVISOR_FILL,
		.args = { HMMVISOR_POINTER(memory), n, start, 1 },
	};

	if (hmmvisor_submit(device, &command, 1, &number) < 0)
		err(1, "submit");
	if (below(worker, 2))
		memory[0] = 0;
	/*
	 * It stays reserved: another thread's memory must not come to where the accelerator still writes. PROT_NONE takes the pages away.
	 */
	if (mmap(memory + n / 2, pages * PAGE / 2, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
		err(1, "mmap over memory");
	if (hmmvisor_wait(device, number, 1, &device->last) < 0)
		err(1, "wait");
	switch (device->last.status) {
	case HMMVISOR_OK:
		break;
	case HMMVISOR_BAD_ADDRESS:
	case HMMVISOR_NOT_PERMITTED:
		worker->lost++;
		if (device->last.address < HMMVISOR_POINTER(memory + n / 2))
			errx(1, "thread %ju: %s is still mapped", worker->index, hmmvisor_error(device));
		break;
	default:
		errx(1, "thread %ju: %s", worker->index, hmmvisor_error(device));
	}
	check(worker, "what is left", memory + 1, n / 2 - 1, start + 1, 1);
	munmap(memory, pages * PAGE);
}

/* A child with its own copy, on which both compute. */
static void fork_and_compute(struct worker *worker, struct hmmvisor *device)
{
	uint64_t n = 40 * PAGE_WORDS, start = below(worker, 1000), sum;
	uint64_t *memory = map(n * 8);
	pid_t child;
	int status;

	must(device, "fill", hmmvisor_fill(device, memory, n, start, 1));
	child = fork();
	if (child < 0)
		err(1, "fork");
	if (!child) {
		struct hmmvisor own;

		open_device(&own);
		must(&own, "the child's reduce", hmmvisor_reduce(&own, memory, n, &sum));
		if (sum != n * start + n * (n - 1) / 2)
			errx(1, "the child's sum is %ju", sum);
		must(&own, "the child's fill", hmmvisor_fill(&own, memory, n, 5, 5));
		check(worker, "the child's copy", memory, n, 5, 5);
		/* Sometimes it ends while the accelerator executes its command. */
		if (start % 2) {
			struct hmmvisor_command command = {
				.opcode = HMMVISOR_FILL,
				.args = { HMMVISOR_POINTER(memory), n, 1, 1 },
			};

			hmmvisor_submit(&own, &command, 1, &sum);
		}
		_exit(0);
	}
	must(device, "the parent's fill", hmmvisor_fill(device, memory, n / 2, start + 7, 1));
	check(worker, "the parent's changes", memory, n / 2, start + 7, 1);
	check(worker, "the parent's copy", memory + n / 2, n / 2, start + n / 2, 1);
	if (waitpid(child, &status, 0) < 0)
		err(1, "waitpid");
	if (status)
		errx(1, "a child ended with status %#x", status);
	munmap(memory, n * 8);
	worker->forks++;
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct hmmvisor device = shared_device;

	/* Every second thread has a context of its own. */
	if (worker->index % 2)
		open_device(&device);
	while (time(NULL) < end) {
		work_on_common(worker, &device);
		work_on_own(worker, &device);
		unmap_under_work(worker, &device);
		if (worker->rounds++ % 8 == worker->index % 8)
			fork_and_compute(worker, &device);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	uint64_t seconds = argument(argc, argv, 1, 10), threads = argument(argc, argv, 2, 4);
	uint64_t rounds = 0, forks = 0, lost = 0;
	struct worker *workers = calloc(threads, sizeof(*workers));

	open_device(&shared_device);
	common = allocate(threads * COMMON_WORDS * 8);
	end = time(NULL) + seconds;
	for (uint64_t i = 0; i < threads; i++) {
		workers[i].index = i;
		workers[i].seed = i;
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			errx(1, "no thread");
	}
	for (uint64_t i = 0; i < threads; i++) {
		pthread_join(workers[i].thread, NULL);
		rounds += workers[i].rounds;
		forks += workers[i].forks;
		lost += workers[i].lost;
	}
	if (!rounds || !forks)
		errx(1, "nothing happened");
	printf("stress: %ju rounds, %ju forks, %ju commands that lost their memory\n", rounds, forks, lost);
	print_info(&shared_device, "stress");
	return 0;
}
