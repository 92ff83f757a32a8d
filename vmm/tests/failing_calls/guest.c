// A guest that uses a disk, a balloon and a source of random numbers, in this order behind one accelerator, and says what
// they answered. docs/guest-abi.md and docs/devices.md are all that it needs.
//
// Exit codes: 0 all answers were good, and so was the data; 1 wrong data; 4 a request failed; 5 a device gave up;
// 6 nothing came for a long time.

#include <stdint.h>

struct boot {
    uint64_t magic;
    uint32_t version, vcpus, accelerators, zero;
    uint64_t managed, managed_size, control, serial, accelerator, stride;
};

static uint64_t control, serial;

static uint32_t read32(uint64_t address) { return *(volatile uint32_t *)address; }
static void write32(uint64_t address, uint32_t value) { *(volatile uint32_t *)address = value; }

static void say(const char *text) {
    for (; *text; text++)
        *(volatile uint8_t *)serial = *text;
}

static _Noreturn void end(uint32_t code) {
    for (;;)
        write32(control, code);
}

static uint64_t now(void) { return *(volatile uint64_t *)(control + 0x20); }

struct descriptor {
    uint64_t address;
    uint32_t len;
    uint16_t flags, next;
};
enum { NEXT = 1, WRITE = 2, SLOTS = 8, PAGE = 4096 };

struct queue {
    const char *name;
    uint64_t window, number;
    struct descriptor *descriptors;
    uint16_t *available;
    uint16_t *used;
    uint16_t added;
};

// Brings a device up with this queue, whose rings are in three pages from `memory` on.
static void set_up(struct queue *queue, const char *name, uint64_t window, uint64_t number, uint64_t memory) {
    queue->name = name;
    queue->window = window;
    queue->number = number;
    queue->descriptors = (void *)memory;
    queue->available = (void *)(memory + PAGE);
    queue->used = (void *)(memory + 2 * PAGE);
    queue->added = 0;
    write32(window + 0x30, number);
    write32(window + 0x38, SLOTS);
    for (int i = 0; i < 3; i++) {
        uint64_t address = memory + i * PAGE, registers[] = {0x80, 0x90, 0xa0};
        write32(window + registers[i], address);
        write32(window + registers[i] + 4, address >> 32);
    }
    write32(window + 0x44, 1);
}

static void negotiate(uint64_t window, uint32_t features) {
    write32(window + 0x70, 0);
    write32(window + 0x70, 1);
    write32(window + 0x70, 3);
    write32(window + 0x24, 0);
    write32(window + 0x20, features);
    write32(window + 0x24, 1);
    write32(window + 0x20, 1); // VERSION_1
    write32(window + 0x70, 11);
}

// The device gets the chain from descriptor 0 on, and gives it back.
static void ask(struct queue *queue) {
    queue->available[2 + queue->added % SLOTS] = 0;
    __atomic_store_n(&queue->available[1], ++queue->added, __ATOMIC_SEQ_CST);
    write32(queue->window + 0x50, queue->number);
    uint64_t begin = now();
    while (__atomic_load_n(&queue->used[1], __ATOMIC_ACQUIRE) != queue->added) {
        if (read32(queue->window + 0x70) & 0x40) {
            say(queue->name);
            say(": the device needs a reset\n");
            end(5);
        }
        if (now() - begin > 5000000000) {
            say(queue->name);
            say(": no answer\n");
            end(6);
        }
        write32(control + 0x10, 0);
    }
}

static void chain(struct queue *queue, int index, uint64_t address, uint32_t len, uint16_t flags) {
    queue->descriptors[index] = (struct descriptor){address, len, flags, index + 1};
}

enum { IN, OUT, FLUSH = 4, DISCARD = 11, ZEROES = 13 };

struct request {
    uint32_t type, reserved;
    uint64_t sector;
};

static void disk(struct queue *queue, uint64_t memory, uint32_t type, uint64_t sector, uint64_t data, uint32_t len) {
    struct request *request = (void *)memory;
    uint8_t *status = (void *)(memory + 64);
    *request = (struct request){type, 0, sector};
    *status = 0xff;
    int last = 0;
    chain(queue, 0, memory, sizeof *request, NEXT);
    if (len)
        chain(queue, ++last, data, len, type == IN ? NEXT | WRITE : NEXT);
    chain(queue, ++last, memory + 64, 1, WRITE);
    ask(queue);
    if (*status != 0) {
        say("disk: a request failed\n");
        end(4);
    }
}

static void fill(uint64_t data, uint64_t seed, int check) {
    for (uint64_t i = 0; i < 4 * PAGE / 8; i++) {
        volatile uint64_t *word = (uint64_t *)data + i;
        if (check && *word != seed * 1000003 + i) {
            say("disk: wrong data\n");
            end(1);
        }
        *word = check ? 0 : seed * 1000003 + i;
    }
}

void _start(struct boot *boot, uint64_t vcpu) {
    control = boot->control;
    serial = boot->serial;
    if (vcpu != 0)
        for (;;)
            write32(control + 0x18, 0);
    uint64_t first = boot->accelerator + boot->accelerators * boot->stride;
    uint64_t memory = boot->managed;
    struct queue block, inflate, entropy;

    negotiate(first, 1 << 9 | 1 << 13 | 1 << 14); // FLUSH, DISCARD, WRITE_ZEROES
    set_up(&block, "disk", first, 0, memory);
    write32(first + 0x70, 15);
    uint64_t data = memory + 16 * PAGE;
    for (int round = 0; round < 30; round++) {
        uint64_t sector = round * 32 % 512;
        fill(data, round, 0);
        disk(&block, memory + 8 * PAGE, OUT, sector, data, 4 * PAGE);
        fill(data, round, 0);
        disk(&block, memory + 8 * PAGE, FLUSH, 0, 0, 0);
        disk(&block, memory + 8 * PAGE, IN, sector, data, 4 * PAGE);
        fill(data, round, 1);
        struct {
            uint64_t sector;
            uint32_t count, flags;
        } *range = (void *)(memory + 9 * PAGE);
        range->sector = 600;
        range->count = 8;
        range->flags = 0;
        disk(&block, memory + 8 * PAGE, round % 2 ? DISCARD : ZEROES, 0, memory + 9 * PAGE, 16);
    }

    uint64_t window = first + boot->stride;
    negotiate(window, 0);
    set_up(&inflate, "balloon", window, 0, memory + 3 * PAGE);
    write32(window + 0x70, 15);
    uint32_t *numbers = (void *)(memory + 10 * PAGE);
    for (uint32_t round = 0; round < 60; round++) {
        // Every fourth time, memory at the end, which is shared.
        uint64_t from = round % 4 ? memory + (64 + round % 4 * 16) * PAGE : memory + boot->managed_size - 16 * PAGE;
        for (uint32_t i = 0; i < 16; i++) {
            uint64_t page = from + i * PAGE;
            *(volatile uint64_t *)page = 7;
            numbers[i] = page / PAGE;
        }
        chain(&inflate, 0, memory + 10 * PAGE, 64, 0);
        ask(&inflate);
        for (uint32_t i = 0; i < 16; i++)
            if (*(volatile uint64_t *)((uint64_t)numbers[i] * PAGE) != 0) {
                say("balloon: wrong data\n");
                end(1);
            }
    }

    window += boot->stride;
    negotiate(window, 0);
    set_up(&entropy, "rng", window, 0, memory + 6 * PAGE);
    write32(window + 0x70, 15);
    for (int round = 0; round < 60; round++) {
        chain(&entropy, 0, data, 256, WRITE);
        ask(&entropy);
        // The last entry of the used ring: its length.
        uint32_t *entry = (uint32_t *)(entropy.used + 2) + (entropy.added - 1) % SLOTS * 2;
        if (entry[1] == 0) {
            say("rng: a request failed\n");
            end(4);
        }
    }
    say("virtio: verified\n");
    end(0);
}
