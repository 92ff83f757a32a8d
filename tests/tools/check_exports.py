"""Reads exported traces with the programs that people use, and compares what they find with `hmmvisor trace info --json`.

    check_exports.py INFO.json TRACE.csv TRACE.parquet TRACE.perfetto
"""

import json
import sys
from collections import defaultdict

import duckdb
import polars
from google.protobuf.unknown_fields import UnknownFieldSet
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    CounterDescriptor,
    Trace,
    TrackEvent,
)

PAGE = 4096


def check(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: found {found!r}, expected {expected!r}")


def kinds_of(info):
    return {kind: (n["events"], n["pages"]) for kind, n in info["kinds"].items()}


def check_tables(info, csv, parquet):
    query = "select kind, count(*), sum(pages) from '{}' group by kind"
    for path in (csv, parquet):
        rows = duckdb.sql(query.format(path)).fetchall()
        check(f"DuckDB, {path}", {k: (n, int(p)) for k, n, p in rows}, kinds_of(info))
    differences = duckdb.sql(
        f"(from '{csv}' except all from '{parquet}') union all (from '{parquet}' except all from '{csv}')"
    ).fetchall()
    check("DuckDB, rows that only one table has", differences, [])
    meta = duckdb.sql(
        f"select decode(value) from parquet_kv_metadata('{parquet}') where decode(key) = 'hmmvisor'"
    ).fetchall()
    check("the description in Parquet", json.loads(meta[0][0]), info["meta"])

    frame = polars.read_parquet(parquet)
    check("Polars, rows", frame.height, info["events"])
    check("Polars, columns and types", dict(frame.schema), {
        "time_ns": polars.Int64, "kind": polars.String, "page": polars.Int64, "pages": polars.Int64,
        "device": polars.Int32, "cause": polars.String, "access": polars.String,
        "thread": polars.Int64, "vcpu": polars.Int32, "latency_ns": polars.Int64,
        "hold_ns": polars.Int64,
        "hint": polars.String, "repeats": polars.Int64,
    })
    check("Polars, times", (frame["time_ns"].min(), frame["time_ns"].max()), (info["first_ns"], info["last_ns"]))
    faults = frame.filter(polars.col("kind") == "cpu-fault")
    check("Polars, faults of no vCPU", faults["vcpu"].null_count(), 0)
    served = frame["kind"].is_in(["cpu-fault", "device-fault"])
    for column, applies in (("latency_ns", served), ("hold_ns", frame["kind"] == "advice")):
        check(f"Polars, {column} where it applies, and nowhere else", frame[column].is_not_null().equals(applies), True)
    check("Polars, faults of CPUs without a thread", faults["thread"].null_count(), 0)
    check("Polars, threads of no CPU", frame.filter(polars.col("kind") == "to-device")["thread"].count(), 0)
    moved = frame.filter(polars.col("kind").is_in(["to-device", "to-system", "between-devices"]))
    check("Polars, migrations without cause or device",
          (moved["cause"].null_count(), moved["device"].null_count()), (0, 0))


def known(message, path="trace"):
    """Every field must be one that the official schema knows."""
    check(f"unknown fields in {path}", len(UnknownFieldSet(message)), 0)
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if isinstance(value, list) or hasattr(value, "append") else [value]:
                known(part, f"{path}.{field.name}")


def check_perfetto(info, path):
    trace = Trace()
    with open(path, "rb") as file:
        trace.ParseFromString(file.read())
    names, units, parents = {}, {}, {}
    slices, instants, steps = defaultdict(list), defaultdict(int), defaultdict(list)
    for packet in trace.packet:
        known(packet)
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            names[track.uuid], parents[track.uuid] = track.name, track.parent_uuid
            units[track.uuid] = track.counter.unit
            continue
        event = packet.track_event
        name = names[event.track_uuid]
        if event.type == TrackEvent.TYPE_COUNTER:
            steps[name].append((packet.timestamp, event.counter_value))
        elif event.type == TrackEvent.TYPE_INSTANT:
            instants[name] += 1
        else:
            slices[name].append((packet.timestamp, event.type, event.name))
    root = [uuid for uuid, name in names.items() if name == "hmmvisor"]
    check("the run's track", len(root), 1)
    check("parents", {parents[u] for u in names if u != root[0]}, {root[0]})

    kinds = kinds_of(info)
    vcpus = {f"vCPU {vcpu}" for vcpu in info["threads"].values()}
    accelerators = {f"accelerator {device}" for device in range(info["meta"]["devices"])}
    check("tracks with faults that belong to no vCPU and no accelerator", set(slices) - vcpus - accelerators, set())
    check("tracks of vCPUs", bool(set(slices) & vcpus), True)
    check("tracks of accelerators", accelerators - set(slices), set())
    faults = {"CPU": kinds["cpu-fault"][0], "device": kinds["device-fault"][0]}
    begun = defaultdict(int)
    for name, events in slices.items():
        last = 0
        for (begin, kind, what), (end, other, _) in zip(events[::2], events[1::2]):
            check(f"slices of {name}", (kind, other), (TrackEvent.TYPE_SLICE_BEGIN, TrackEvent.TYPE_SLICE_END))
            check(f"order of slices of {name}", last <= begin <= end, True)
            last = end
            begun[what.split()[0]] += 1
        check(f"ends of {name}", len(events) % 2, 0)
    check("fault slices", dict(begun), faults)
    moved = [kind for kind in ("to-device", "to-system", "between-devices") if kind in kinds]
    check("migrations", instants["service: migrations"], sum(kinds[kind][0] for kind in moved))

    # What the bandwidth adds up to is what was moved.
    ways = {"to-device": "to devices", "to-system": "to system memory", "between-devices": "between devices"}
    for name, kind in ((f"bandwidth {ways[kind]}", kind) for kind in moved):
        points = steps[name]
        check(f"the end of {name}", points[-1][1], 0)
        area = sum(value * (after - before) for (before, value), (after, _) in zip(points, points[1:]))
        check(f"sum of {name}", area, kinds[kind][1] * PAGE * 10**9)
    for device in range(info["meta"]["devices"]):
        pages = [value for _, value in steps[f"pages on accelerator {device}"]]
        check(f"pages on accelerator {device} beyond its memory or below zero",
              [n for n in pages if not 0 <= n <= info["meta"]["device_memory"] // PAGE], [])
        check(f"pages on accelerator {device} at all", max(pages) > 0, True)
    counters = {name: units[uuid] for uuid, name in names.items() if name in steps}
    check("units", {name: unit for name, unit in counters.items() if name.startswith("bandwidth")},
          {f"bandwidth {ways[kind]}": CounterDescriptor.UNIT_SIZE_BYTES for kind in moved})


def main():
    info_path, csv, parquet, perfetto = sys.argv[1:]
    with open(info_path) as file:
        info = json.load(file)
    check_tables(info, csv, parquet)
    check_perfetto(info, perfetto)
    print(f"{info['events']} events: DuckDB, Polars and Perfetto's schema agree")


main()
