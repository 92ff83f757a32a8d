"""A session with a running machine, by a client that is generated from the machine's own description of its API.

    api_session.py HMMVISOR FOLDER

Starts a machine, generates the client into FOLDER, and watches and steers the machine with it: residency, events, another policy twice,
a driver that fails, an eviction, a recording, the end. What the client's calls returned must add up to what the run reports at its end.
Only the stream of events is read without the client, which has no streams.
"""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import httpx

# Seconds: longer than anything here takes, even on a busy host.
PATIENCE = 120
# Pages that the guest does not use.
FIRST, PAGES = 60000, 64


def wait_until(what, condition):
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, f"never came: {what}"
    return value


class Session:
    """The generated client's calls, each of which must be answered as the description says, and with success."""

    def __init__(self, socket, folder):
        raw = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://machine", timeout=PATIENCE)
        self.raw = raw
        (folder / "openapi.json").write_bytes(raw.get("/v1/openapi.json").raise_for_status().content)
        # The client is not formatted: programs for that are not needed.
        (folder / "generator.yml").write_text("post_hooks: []\n")
        command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--path", "openapi.json"]
        command += ["--config", "generator.yml", "--output-path", "machine_client"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        sys.path.insert(0, str(folder))
        self.client = importlib.import_module("machine_client").Client(
            base_url="http://machine",
            timeout=httpx.Timeout(PATIENCE),
            httpx_args={"transport": httpx.HTTPTransport(uds=str(socket))},
            raise_on_unexpected_status=True,
        )
        self.models = importlib.import_module("machine_client.models")

    def call(self, name, *args, **kwargs):
        """Calls an operation like `memory.migrate`."""
        module = importlib.import_module(f"machine_client.api.{name}")
        response = module.sync_detailed(*args, client=self.client, **kwargs)
        assert response.status_code in (200, 204), (name, response)
        return response.parsed

    def stats(self):
        return self.call("figures.stats").additional_properties

    def migrate(self, to):
        body = self.models.Migrate(first=FIRST, pages=PAGES, to=to)
        return self.call("memory.migrate", body=body).pages

    def faults(self):
        return self.stats()["cpu_faults"]

    def run_on(self):
        """Has the guest run for some faults."""
        self.call("vm.resume")
        before = self.faults()
        wait_until("faults", lambda: self.faults() > before + 200)

    def moved_by_events(self, lines):
        """The pages that the next events tell of, until they are as many as a request has moved; by kind."""
        for line in lines:
            event = json.loads(line)
            if event.get("cause") == "user":
                yield event["kind"], event["pages"]


def session(s, folder):
    """Returns the pages that requests moved, by direction."""
    models = s.models
    moved = {"to-device": 0, "to-system": 0}

    vm = s.call("vm.vm")
    assert (vm.state, vm.devices, vm.workload) == (models.VmState.RUNNING, 2, "pingpong"), vm
    memory = s.call("memory.summary").to_dict()
    places = ["untouched", "system", "device", "coherent", "duplicated", "exclusive", "poisoned"]
    assert sum(memory[f"{place}_pages"] for place in places) == memory["pages"] == 65536, memory

    # Only requests move pages now, and the events tell of the same pages.
    s.call("vm.pause")
    assert s.call("vm.vm").state == models.VmState.PAUSED
    pin = s.call("memory.pin", body=models.Pages(first=FIRST, pages=PAGES))
    assert [it.pin for it in s.call("memory.pins").pins] == [pin.pin]
    s.call("memory.unpin", pin.pin)
    with s.raw.stream("GET", "/v1/events", params={"kinds": "to-device,to-system"}) as answer:
        events = s.moved_by_events(answer.iter_lines())
        for to, kind in [("device1", "to-device"), ("system", "to-system"), ("device0", "to-device")]:
            pages = s.migrate(to)
            assert pages == PAGES, (to, pages)
            moved[kind] += pages
            told = 0
            while told < pages:
                happened, count = next(events)
                assert happened == kind, happened
                told += count
            assert told == pages, (told, pages)
    runs = s.call("memory.residency", first=FIRST - 1, pages=PAGES + 1).runs
    assert [(it.first, it.pages, it.place) for it in runs] == [
        (FIRST - 1, 1, models.Where.UNTOUCHED),
        (FIRST, PAGES, models.Where.DEVICE),
    ], runs
    as_bytes = s.call("memory.residency_bytes", first=FIRST - 1, pages=PAGES + 1).payload.read()
    assert as_bytes == bytes([0] + PAGES * [2]), as_bytes

    # Another policy, twice: built-in, and a script.
    policy = s.call("policy.set_policy", body=models.SetPolicy(spec="sequential+fifo"))
    assert policy.policy.startswith("sequential"), policy
    s.run_on()
    text = "return { on_fault = function(page) print(page) return page, 2 end }"
    script = models.SetPolicy(spec="mine.luau+lru", script=text)
    assert s.call("policy.check", body=script).policy.startswith("mine.luau")
    assert s.call("policy.policy") == policy
    s.call("policy.set_policy", body=script)
    wait_until("a decision of the script", lambda: s.stats()["scripts"]["decisions"] > 0)

    # A driver that fails once: the eviction that it fails changes nothing, the next one is done.
    s.call("vm.pause")
    at = models.WayPoint.TO_SYSTEM_BEFORE_COPY
    failure = models.Provoke(at=at, outcome=models.OutcomeType0.FAIL, times=1)
    s.call("devices.provoke", 0, body=failure)
    assert s.migrate("system") == 0
    (provocation,) = s.call("devices.provocations", 0).provocations
    assert (provocation.left, provocation.happened) == (0, 1), provocation
    s.call("devices.end_provocations", 0)
    pages = s.migrate("system")
    assert pages == PAGES, pages
    moved["to-system"] += pages

    # In the place of a file.
    trace = folder / "session.trace"
    trace.write_text("old")
    trace.chmod(0o640)
    assert s.call("figures.record", body=models.Record(path=str(trace))).active
    s.run_on()
    recording = s.call("figures.end_recording")
    assert not recording.active and recording.events > 0 and recording.error is None, recording
    assert (trace.stat().st_size, trace.stat().st_mode & 0o777) == (recording.bytes_, 0o640), recording
    assert all(device.attached for device in s.call("devices.devices").devices)
    return moved


def figures(report):
    """What a paused machine does not change any more."""
    names = ["cpu_faults", "first_touch_faults", "device_faults", "page_free_calls", "pages_freed", "counters", "links"]
    names += ["migrations_to_device", "migrations_to_system", "migrations_between_devices", "scripts", "policy"]
    return {name: report[name] for name in names}


def main():
    hmmvisor, folder = sys.argv[1], Path(sys.argv[2])
    socket, report = folder / "api", folder / "report.json"
    command = [hmmvisor, "run", "--workload", "pingpong", "--param", "rounds=1000000", "--devices", "2"]
    command += ["--api", socket, "--json", report, "--allow-write", folder]
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        # Its socket is there before it answers; then it is asked for as long as it takes.
        wait_until("the socket", lambda: socket.exists() or machine.poll() is not None)
        s = Session(socket, folder)
        moved = session(s, folder)

        s.call("vm.pause")
        last = figures(s.stats())
        while (now := figures(s.stats())) != last:
            last = now
        s.call("vm.stop")
        assert machine.wait(PATIENCE) == 0
        at_end = json.loads(report.read_text())
        assert figures(at_end) == last, (figures(at_end), last)
        assert at_end["migrations_to_device"]["user"] == moved["to-device"], at_end
        assert at_end["migrations_to_system"]["user"] == moved["to-system"], at_end
        assert at_end["end"] == "quit"
    finally:
        machine.kill()
        machine.wait()


if __name__ == "__main__":
    main()
