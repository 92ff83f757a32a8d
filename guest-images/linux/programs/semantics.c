// SPDX-License-Identifier: MIT
/* What the kernel's HMM promises about fork, munmap, mremap, mprotect, exit and signals, seen from a program: `semantics`. */

#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "common.h"

#define PAGE 4096UL
#define PAGE_WORDS (PAGE / 8)

static struct hmmvisor device;

static uint64_t *map_pages(uint64_t pages, int flags)
{
	uint64_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		err(1, "%ju pages", pages);
	return memory;
}

static void fill(uint64_t *memory, uint64_t n, uint64_t start, uint64_t step)
{
	must(&device, "fill", hmmvisor_fill(&device, memory, n, start, step));
}

static uint64_t sum(const uint64_t *memory, uint64_t n)
{
	uint64_t result;

	must(&device, "reduce", hmmvisor_reduce(&device, memory, n, &result));
	return result;
}

static void equal(const char *what, uint64_t found, uint64_t expected)
{
	if (found != expected)
		errx(1, "%s: %ju instead of %ju", what, found, expected);
}

/* Waits for a child, which must exit with 0, or die of a signal. */
static void reap(pid_t child, int signal)
{
	int status;

	if (waitpid(child, &status, 0) < 0)
		err(1, "waitpid");
	if (signal ? !WIFSIGNALED(status) || WTERMSIG(status) != signal : status != 0)
		errx(1, "a child ended with status %#x", status);
}

static pid_t start_child(void)
{
	pid_t child = fork();

	if (child < 0)
		err(1, "fork");
	return child;
}

static void ok(const char *what)
{
	printf("semantics: %s: ok\n", what);
}

/* The device accepts pointers to all kinds of memory: untouched memory, the stack, constants. */
static void all_memory(void)
{
	static const uint64_t constants[3] = { 5, 6, 7 };
	uint64_t *fresh = map_pages(600, MAP_PRIVATE), local[40];
	int fd = memfd_create("semantics", 0);
	uint64_t *file, word;

	equal("untouched memory", sum(fresh, 600 * PAGE_WORDS), 0);
	fill(local, 40, 1, 1);
	for (uint64_t i = 0; i < 40; i++)
		equal("the stack", local[i], 1 + i);
	equal("constants", sum(constants, 3), 18);
	equal("writing constants", hmmvisor_fill(&device, (uint64_t *)constants, 3, 0, 0), HMMVISOR_NOT_PERMITTED);
	if (fd < 0 || ftruncate(fd, 3 * PAGE) < 0)
		err(1, "memfd_create");
	file = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (file == MAP_FAILED)
		err(1, "mmap of a file");
	fill(file, 3 * PAGE_WORDS, 100, 1);
	if (pread(fd, &word, 8, 2 * PAGE) != 8)
		err(1, "pread");
	equal("a file's byte", word, 100 + 2 * PAGE_WORDS);
	if (ftruncate(fd, PAGE) < 0)
		err(1, "ftruncate");
	equal("behind a file's end", hmmvisor_fill(&device, file + PAGE_WORDS, 1, 0, 0) != HMMVISOR_OK, 1);
	equal("before it", sum(file, 2), 201);
	munmap(file, 3 * PAGE);
	close(fd);
	munmap(fresh, 600 * PAGE);
	ok("all kinds of memory");
}

static void unmapping(void)
{
	uint64_t *memory = map_pages(600, MAP_PRIVATE), *moved, result;

	fill(memory, 600 * PAGE_WORDS, 1, 0);
	munmap(memory + 300 * PAGE_WORDS, 300 * PAGE);
	equal("the lower half", sum(memory, 300 * PAGE_WORDS), 300 * PAGE_WORDS);
	equal("the upper half", hmmvisor_reduce(&device, memory + 300 * PAGE_WORDS, 1, &result), HMMVISOR_BAD_ADDRESS);
	equal("across the edge", hmmvisor_reduce(&device, memory + 299 * PAGE_WORDS, 2 * PAGE_WORDS, &result), HMMVISOR_BAD_ADDRESS);
	equal("where", device.last.address, (uint64_t)(memory + 300 * PAGE_WORDS));
	/* Moved: the old place is nothing, the new one has the contents. */
	moved = map_pages(1200, MAP_PRIVATE);
	moved = mremap(memory, 300 * PAGE, 300 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved + 450 * PAGE_WORDS);
	if (moved == MAP_FAILED)
		err(1, "mremap");
	equal("moved", sum(moved, 300 * PAGE_WORDS), 300 * PAGE_WORDS);
	equal("the old place", hmmvisor_reduce(&device, memory, 1, &result), HMMVISOR_BAD_ADDRESS);
	/* Dropped: zeros. */
	fill(moved, 300 * PAGE_WORDS, 9, 0);
	if (madvise(moved, 100 * PAGE, MADV_DONTNEED) < 0)
		err(1, "madvise");
	equal("dropped", sum(moved, 300 * PAGE_WORDS), 200 * PAGE_WORDS * 9);
	/* Read-only, and writable again. */
	if (mprotect(moved, 10 * PAGE, PROT_READ) < 0)
		err(1, "mprotect");
	equal("a write to read-only memory", hmmvisor_fill(&device, moved, 1, 1, 0), HMMVISOR_NOT_PERMITTED);
	equal("its contents", sum(moved, 10 * PAGE_WORDS), 0);
	if (mprotect(moved, 10 * PAGE, PROT_READ | PROT_WRITE) < 0)
		err(1, "mprotect");
	fill(moved, 10 * PAGE_WORDS, 2, 0);
	equal("writable again", sum(moved, 10 * PAGE_WORDS), 20 * PAGE_WORDS);
	munmap(moved, 300 * PAGE);
	ok("munmap, mremap, madvise, mprotect");
}

static void forking(void)
{
	uint64_t *private = map_pages(200, MAP_PRIVATE), *shared = map_pages(20, MAP_SHARED);
	uint64_t n = 200 * PAGE_WORDS;
	struct hmmvisor_info info;
	pid_t child;

	fill(private, n, 3, 0);
	fill(shared, 20 * PAGE_WORDS, 3, 0);
	child = start_child();
	if (!child) {
		/* The parent's context is not this process's. */
		if (ioctl(device.fd, HMMVISOR_IOC_INFO, &info) == 0 || errno != EPERM)
			errx(1, "the child could use its parent's context");
		open_device(&device);
		/* Whatever the parent does to its copy meanwhile. */
		equal("the child's copy", sum(private, n), 3 * n);
		fill(private, n / 2, 8, 0);
		equal("the child's changes", sum(private, n), n / 2 * 8 + n / 2 * 3);
		for (uint64_t i = 0; i < n; i++)
			equal("the child's words", private[i], i < n / 2 ? 8 : 3);
		fill(shared, 10 * PAGE_WORDS, 4, 0);
		_exit(0);
	}
	fill(private + n / 4, n / 2, 5, 0);
	reap(child, 0);
	for (uint64_t i = 0; i < n; i++)
		equal("the parent's words", private[i], i >= n / 4 && i < n / 4 * 3 ? 5 : 3);
	equal("the parent's copy", sum(private, n), n / 2 * 8);
	equal("shared memory", sum(shared, 20 * PAGE_WORDS), 70 * PAGE_WORDS);
	munmap(private, 200 * PAGE);
	munmap(shared, 20 * PAGE);
	ok("fork");
}

/* Starts a command that takes long: a chase round a ring, in memory that a child loses. */
static void start_long_command(uint64_t *ring, uint64_t steps)
{
	struct hmmvisor_command command = {
		.opcode = HMMVISOR_CHASE,
		.args = { HMMVISOR_POINTER(ring), 0, steps, PAGE_WORDS },
	};
	uint64_t number;

	for (uint64_t i = 0; i < PAGE_WORDS; i++)
		ring[i] = (i + 37) % PAGE_WORDS;
	if (hmmvisor_submit(&device, &command, 1, &number) < 0)
		err(1, "a long command");
}

static void ending(void)
{
	uint64_t *memory = map_pages(4, MAP_PRIVATE), number;
	struct hmmvisor_completion completion;
	pid_t child;

	for (int how = 0; how < 4; how++) {
		child = start_child();
		if (!child) {
			open_device(&device);
			/* Years, if it were not for the end of this process. */
			start_long_command(memory, 1ULL << 60);
			switch (how) {
			case 0:
				_exit(0);
			case 1:
				kill(getpid(), SIGKILL);
				break;
			case 2:
				munmap(memory, 4 * PAGE);
				hmmvisor_wait(&device, 0, 1, &completion);
				_exit(completion.status == HMMVISOR_BAD_ADDRESS ? 0 : 1);
			case 3:
				alarm(1);
				hmmvisor_wait(&device, 0, 1, &completion);
			}
			_exit(1);
		}
		reap(child, how == 1 ? SIGKILL : how == 3 ? SIGALRM : 0);
		/* The device is free again for the parent. */
		fill(memory, 4 * PAGE_WORDS, how, 0);
		equal("after a child's end", sum(memory, 4 * PAGE_WORDS), how * 4 * PAGE_WORDS);
	}
	/* The same for the file alone: its commands end with it. */
	start_long_command(memory, 1ULL << 60);
	hmmvisor_close(&device);
	open_device(&device);
	equal("after a file's end", sum(memory, 1), 37);
	/* What has been waited for cannot be waited for again. */
	if (hmmvisor_submit(&device, &(struct hmmvisor_command){ .tag = 77 }, 1, &number) < 0 ||
	    hmmvisor_wait(&device, number, 1, &completion) < 0)
		err(1, "nop");
	equal("the tag", completion.tag, 77);
	if (hmmvisor_wait(&device, number, 1, &completion) == 0 || errno != EINVAL)
		errx(1, "a completion came twice");
	munmap(memory, 4 * PAGE);
	ok("exit, kill, close");
}

static volatile sig_atomic_t alarms;

static void on_alarm(int signal)
{
	(void)signal;
	alarms++;
}

static void signals(void)
{
	uint64_t pages = 1000, n = pages * PAGE_WORDS, rounds = 0;
	uint64_t *memory = map_pages(pages, MAP_PRIVATE);

	for (int flags = 0; flags <= SA_RESTART; flags += SA_RESTART) {
		struct sigaction action = { .sa_handler = on_alarm, .sa_flags = flags };
		struct itimerval timer = { { 0, 2000 }, { 0, 2000 } }, off = { 0 };

		alarms = 0;
		sigaction(SIGALRM, &action, NULL);
		setitimer(ITIMER_REAL, &timer, NULL);
		/* Each interrupts a wait, or a submission, and changes nothing. */
		while (alarms < 20) {
			fill(memory, n, ++rounds, 0);
			equal("amid signals", sum(memory, n), n * rounds);
		}
		setitimer(ITIMER_REAL, &off, NULL);
	}
	munmap(memory, pages * PAGE);
	ok("signals");
}

/* More than fit, in an order that shows. */
static void many_commands(void)
{
	struct hmmvisor_command commands[HMMVISOR_OUTSTANDING + 1] = { 0 };
	struct hmmvisor_completion completions[HMMVISOR_OUTSTANDING];
	struct hmmvisor_submit request = { .commands = (uintptr_t)commands, .count = HMMVISOR_OUTSTANDING + 1 };
	uint64_t word = 0, index = 0;

	for (uint64_t i = 0; i < HMMVISOR_OUTSTANDING + 1; i++) {
		commands[i].opcode = HMMVISOR_EXCLUSIVE_ADD;
		commands[i].tag = i;
		commands[i].args[0] = HMMVISOR_POINTER(&word);
		commands[i].args[1] = 1;
		commands[i].args[2] = 1;
	}
	if (ioctl(device.fd, HMMVISOR_IOC_SUBMIT, &request) < 0)
		err(1, "HMMVISOR_IOC_SUBMIT");
	equal("as many as fit", request.submitted, HMMVISOR_OUTSTANDING);
	if (ioctl(device.fd, HMMVISOR_IOC_SUBMIT, &request) == 0 || errno != EBUSY)
		errx(1, "more commands than fit");
	if (hmmvisor_wait(&device, request.first, HMMVISOR_OUTSTANDING, completions) < 0)
		err(1, "HMMVISOR_IOC_WAIT");
	for (uint64_t i = 0; i < HMMVISOR_OUTSTANDING; i++) {
		equal("status", completions[i].status, HMMVISOR_OK);
		equal("tag", completions[i].tag, i);
		equal("order", completions[i].result, i);
	}
	equal("all of them", word, HMMVISOR_OUTSTANDING);
	/* Atomic towards this CPU, on a page that both use. */
	must(&device, "atomic add",
	     HMMVISOR_RUN(&device, HMMVISOR_ATOMIC_ADD, NULL, HMMVISOR_POINTER(&word), HMMVISOR_POINTER(&index), 1, 5, 1));
	equal("atomic add", word, HMMVISOR_OUTSTANDING + 5);
	commands[0].flags = 1;
	request.count = 1;
	if (ioctl(device.fd, HMMVISOR_IOC_SUBMIT, &request) == 0 || errno != EINVAL)
		errx(1, "flags that there are not");
	equal("an opcode that there is not", HMMVISOR_RUN(&device, 999, NULL, 0), HMMVISOR_BAD_OPCODE);
	equal("free", HMMVISOR_RUN(&device, 14, NULL, HMMVISOR_POINTER(&word) & ~(PAGE - 1), PAGE), HMMVISOR_BAD_ARGUMENT);
	equal("the kernel's memory", HMMVISOR_RUN(&device, HMMVISOR_REDUCE, NULL, 0xffff888000000000, 1), HMMVISOR_BAD_ADDRESS);
	ok("many commands, bad commands");
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	open_device(&device);
	all_memory();
	unmapping();
	forking();
	ending();
	signals();
	many_commands();
	print_info(&device, "semantics");
	return 0;
}
