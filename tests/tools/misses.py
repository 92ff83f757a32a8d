#!/usr/bin/env python3
"""Prints how often each eviction algorithm of libCacheSim misses, as JSON.

Usage: misses.py CACHE < REQUESTS    CACHE: objects that fit; REQUESTS: 32-bit little-endian numbers of objects
"""

import array
import json
import sys
import time

import libcachesim as lcs

ALGORITHMS = {
    "lru": lcs.LRU,
    "fifo": lcs.FIFO,
    "clock": lcs.Clock,
    "lfu": lcs.LFU,
    "s3-fifo": lcs.S3FIFO,
    "belady": lcs.Belady,
}


def misses(algorithm, size, pages, later):
    cache = algorithm(size)
    request = lcs.Request()
    request.obj_size = 1
    missed = 0
    for time, page in enumerate(pages):
        request.obj_id = page
        request.clock_time = time
        request.next_access_vtime = later[time]
        missed += not cache.get(request)
    return missed


def next_uses(pages):
    """For each request, the number of the next one for the same object; the largest number if there is none."""
    never = (1 << 63) - 1
    later, next_use = [0] * len(pages), {}
    for time in range(len(pages) - 1, -1, -1):
        later[time] = next_use.get(pages[time], never)
        next_use[pages[time]] = time
    return later


def main():
    pages = array.array("I")
    pages.frombytes(sys.stdin.buffer.read())
    later = next_uses(pages)
    size = int(sys.argv[1])
    json.dump({name: misses(a, size, pages, later) for name, a in ALGORITHMS.items()}, sys.stdout)


main()
