"""What schemathesis cannot know of a machine; it loads this module.

The description of the API says what may be said to any machine. What this one has (so many pages, these accelerators, a folder for traces)
is here, and so are the rules of specifications and scripts, and that 1.0, an integer to JSON Schema, is none to the machine: a request that the description allows, and that would be refused for what only
the machine knows, is changed into one that the machine must carry out. So `positive_data_acceptance` holds for all of them. Requests that the
description forbids are sent as they are.

MACHINE, in the environment, is JSON: `socket`, `pages`, `devices`, `folder`, `count` (a file to which each request adds a byte), and
`guest_pages`, how many pages from the first on must not lose their contents, become read-only or be pinned.
"""

import json
import os
import socket
from http.client import HTTPConnection

import requests
import schemathesis
import urllib3.connection

MACHINE = json.loads(os.environ["MACHINE"])
COUNT = open(MACHINE["count"], "ab", buffering=0)
# Seconds that a stream of events is read for, if it says nothing.
SILENCE = 0.2

SPECS = ["density+lru", "sequential+fifo", "adaptive", "on-demand+s3-fifo", "density:threshold=60+clock"]
# Without what decides about evictions, which is the same everywhere.
REGION_SPECS = ["density", "sequential", "on-demand"]
SCRIPTS = [
    "return { on_fault = function(page) return page, 4 end }",
    "return { on_fault = function(page, write, device, now) if write then return nil end return page, 1 end }",
    "return { on_fault = function(page) print(page) return page, 2 end }",
]
HINTS = ["read-mostly", "not-read-mostly", "preferred:none", "preferred:system", "preferred:device{}", "accessed-by:device{}"]
KINDS = ["cpu-fault", "to-device,to-system", "cpu-fault,device-fault"]


def connect(_self=None):
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.connect(MACHINE["socket"])
    return stream


# Whatever the host in the URL is, it is the machine.
urllib3.connection.HTTPConnection._new_conn = connect
send = requests.Session.send


def send_and_read(self, request, **kwargs):
    """A stream of events has no end: of it, the first lines are read."""
    response = send(self, request, **kwargs)
    if response.headers.get("Content-Type") == "application/x-ndjson":
        response.raw._fp.fp.raw._sock.settimeout(SILENCE)
        try:
            response._content = response.raw.read1(4096)
        except (TimeoutError, urllib3.exceptions.HTTPError):
            response._content = b""
        response._content_consumed = True
        response.raw.close()
    return response


requests.Session.send = send_and_read


def ask(method, path):
    """Asks the machine beside schemathesis."""
    connection = HTTPConnection("machine")
    connection.sock = connect()
    connection.request(method, path)
    status = connection.getresponse().status
    connection.close()
    return status


def pick(choices, by):
    """One of them, the same for the same value."""
    return choices[sum(repr(by).encode()) % len(choices)]


def pages_within(fields, begin=0):
    """Moves a range into the machine's memory, behind `begin`."""
    room = MACHINE["pages"] - begin
    fields["first"] = begin + int(fields["first"]) % room
    fields["pages"] = 1 + (int(fields["pages"]) - 1) % (MACHINE["pages"] - fields["first"])


def device(by):
    return pick(range(MACHINE["devices"]), by)


def migrate(body):
    pages_within(body)
    places = ["system"] + [f"device{number}" for number in range(MACHINE["devices"])]
    body["to"] = pick(places, body["to"])


def hint(body):
    pages_within(body)
    hints = HINTS if MACHINE["devices"] else [it for it in HINTS if "{}" not in it]
    body["hint"] = pick(hints, body["hint"]).format(device(body["hint"]) if MACHINE["devices"] else "")


def protect(body):
    pages_within(body, MACHINE["guest_pages"])


def pin(body):
    # Pages that are pinned keep their contents when the guest frees them, and it takes them for zeros.
    pages_within(body, MACHINE["guest_pages"])


def poison(body):
    begin = MACHINE["guest_pages"]
    body["page"] = begin + int(body["page"]) % (MACHINE["pages"] - begin)


def provoke(body):
    # What has arrived can only take longer, and failures must end before faults are given up.
    if body["outcome"] == "fail" and body["at"].endswith("committed"):
        body["at"] = "flush"
    if body["outcome"] != "fail":
        body["outcome"] = {"delay-ms": 1 + int(body["outcome"]["delay-ms"]) % 3}
    body["times"] = 1 + int(body.get("times") or 1) % 3


def policy(body):
    region = body.get("region")
    if region:
        blocks = MACHINE["pages"] // 512
        first = int(region["first"]) % blocks
        body["region"] = {"first": first * 512, "pages": (1 + int(region["pages"]) % (blocks - first)) * 512}
    if body.get("script") is None:
        body["spec"] = pick(REGION_SPECS if region else SPECS, body["spec"])
    else:
        body["spec"] = "mine.luau" if region else pick(["mine.luau", "mine.luau+fifo"], body["spec"])
        body["script"] = pick(SCRIPTS, body["script"])


def record(body):
    body["path"] = os.path.join(MACHINE["folder"], pick(["a.trace", "b.trace"], body["path"]))


def balloon(body):
    body["target_bytes"] = int(body["target_bytes"]) % (1 << 40)


def resize(body):
    # Up to what the accelerator has at the beginning of a run that says nothing else, and large enough for the guest to get on.
    body["memory_bytes"] = (1 << 20) + int(body["memory_bytes"]) % (15 << 20) // 4096 * 4096


def events(query):
    if "kinds" in query:
        query["kinds"] = pick(KINDS, query["kinds"])


# By operation: what makes a right body, or a right query, one that this machine carries out.
BODIES = {
    "migrate": migrate,
    "hint": hint,
    "protect": protect,
    "poison": poison,
    "pin": pin,
    "provoke": provoke,
    "set_policy": policy,
    "check": policy,
    "record": record,
    "set_balloon": balloon,
    "set_device": resize,
}
QUERIES = {"residency": pages_within, "residency_bytes": pages_within, "events": events}


@schemathesis.hook
def before_call(context, case, kwargs):
    COUNT.write(b".")
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    operation = case.operation.definition.raw["operationId"]
    if operation in BODIES and isinstance(case.body, dict):
        BODIES[operation](case.body)
    if operation in QUERIES and case.query:
        QUERIES[operation](case.query)


@schemathesis.hook
def after_call(context, case, response):
    # The guest goes on at once.
    if case.operation.definition.raw["operationId"] == "pause" and MACHINE.get("resume"):
        ask("POST", "/v1/vm/resume")
