#!/usr/bin/env python3
"""Prints how often each eviction algorithm of libCacheSim misses, and the seconds of processor time that it takes, as JSON.

Usage: misses.py CACHE < REQUESTS    CACHE: objects that fit; REQUESTS: 32-bit little-endian numbers of objects
"""

import array
import json
import struct
import sys
import tempfile
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
# Of the format oracleGeneral: time, object, size, number of the next request for the object or -1.
REQUEST = struct.Struct("<IQIq")


def write(file, pages):
    """Writes a trace that libCacheSim reads by itself: a loop in Python would take longer than what it measures."""
    requests, next_use = [b""] * len(pages), {}
    for number in range(len(pages) - 1, -1, -1):
        page = pages[number]
        # Object 0 is none.
        requests[number] = REQUEST.pack(number, page + 1, 1, next_use.get(page, -1))
        next_use[page] = number
    file.write(b"".join(requests))
    file.flush()


def measured(algorithm, size, name, requests):
    """Misses, and the shortest time of three."""
    shortest = float("inf")
    for _ in range(3):
        cache = algorithm(size)
        reader = lcs.TraceReader(name, lcs.TraceType.ORACLE_GENERAL_TRACE, lcs.ReaderInitParam(ignore_obj_size=True))
        began = time.process_time()
        ratio, _ = cache.process_trace(reader)
        shortest = min(shortest, time.process_time() - began)
    return round(ratio * requests), shortest


def main():
    pages = array.array("I")
    pages.frombytes(sys.stdin.buffer.read())
    size = int(sys.argv[1])
    with tempfile.NamedTemporaryFile() as file:
        write(file, pages)
        json.dump({name: measured(a, size, file.name, len(pages)) for name, a in ALGORITHMS.items()}, sys.stdout)


main()
