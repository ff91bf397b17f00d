"""Every measurement, as one table: `make bench`. The table in docs/benchmarks.md is this output.

Machines are shared and noisy: the aims have room, and what counts is the order of magnitude. What a peer does was
measured in the same run; that one is not at hand is said in its place.
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

HERE: Final = Path(__file__).parent
VENDORS: Final = {"otlp": "OTLP", "newrelic": "New Relic", "datadog": "Datadog"}
PEERS: Final = {"vmagent": "vmagent", "prometheus": "Prometheus agent", "script": "plain script"}


class Row(NamedTuple):
    what: str
    ours: str
    peer: str = ""
    aim: str = ""


def measure(script: str, *arguments: str) -> dict[str, Any]:
    print(f"benchmarks/{script} {' '.join(arguments)} …", file=sys.stderr, flush=True)
    command = [sys.executable, str(HERE / script), *arguments]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{script} failed:\n{result.stderr}")
    return dict(json.loads(result.stdout))


def machine() -> str:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = psutil.virtual_memory().total / 2**30
    python = platform.python_version()
    return f"{psutil.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()}, Python {python}"


def waited() -> float:
    """Seconds since the machine started in which something waited for a busy core; 0 where that is not told."""
    try:
        return int(Path("/proc/pressure/cpu").read_text().split("total=")[1].split()[0]) / 1e6
    except OSError:
        return 0.0


def beside(found: Mapping[str, Any], show: Callable[[Mapping[str, float]], str]) -> str:
    """What the peers came to."""
    told = [f"{name} {show(found[peer])}" for peer, name in PEERS.items() if peer in found]
    missing = [PEERS[peer].upper() for peer in found["missing"]]
    return "; ".join([*told, *(f"**NO PEER AT HAND: {peer}**" for peer in missing)])


# --- the rows, each group from its scripts ------------------------------------------------------------------------


def starts() -> Iterator[tuple[str, Row]]:
    alone = measure("agent.py", "start")["first_delivery_s"]
    yield "agent.py start", Row("start to first delivered event, console", f"{alone['median']:.2f} s", aim="1 s")
    found = measure("footprint.py", "start")
    shown = beside(found, lambda each: f"{each['median_s']:.2f} s")
    yield (
        "footprint.py start",
        Row("the same, three sinks, first request", f"{found['ours']['median_s']:.2f} s", shown),
    )


def footprint() -> Iterator[tuple[str, Row]]:
    one = measure("footprint.py", "one")
    shown = beside(one, lambda each: f"{each['rss_mib']:.0f} MiB")
    ours = one["ours"]
    yield (
        "footprint.py one",
        Row(
            "resident memory, one proxy, three sinks, status page",
            f"{ours['rss_mib']:.0f} MiB ({ours['uss_mib']:.0f} its own)",
            shown,
            "80 MiB",
        ),
    )
    shown = beside(one, lambda each: f"{each['cpu_percent']:.2f} %")
    yield "footprint.py one", Row("CPU, the same, default intervals", f"{ours['cpu_percent']:.2f} % of a core", shown)
    memory = measure("agent.py", "memory")
    text = f"{memory['rss_mib']:.0f} MiB ({memory['uss_mib']:.0f} its own)"
    yield "agent.py memory", Row("resident memory, console sink, no status page", text, aim="60 MiB")
    poll = f"{measure('agent.py', 'cpu')['cpu_ms_per_poll']:.2f} ms"
    yield "agent.py cpu", Row("CPU for a poll, request to console", poll)
    many = measure("footprint.py", "many")
    shown = beside(many, lambda each: f"{each['cores']:.2f} cores, {each['rss_mib']:,.0f} MiB")
    text = f"{many['ours']['cores']:.2f} cores, {many['ours']['rss_mib']:,.0f} MiB"
    yield "footprint.py many", Row("cost of 1,000 proxies (200, times five)", text, shown)


def stages() -> Iterator[tuple[str, Row]]:
    found = measure("stages.py")

    def row(what: str, key: str, peer: str = "") -> tuple[str, Row]:
        return "stages.py", Row(what, f"{found[key]:,.0f} events/s", peer)

    yield row("stage: HTTP read of a metrics page", "read")
    client = f"prometheus_client {found['page_by_prometheus_client']:,.0f}, reading alone"
    yield row("stage: page to events", "page", client)
    yield row("stage: encoded for the spool", "encode")
    yield row("stage: into the spool", "put")
    yield row("stage: out of the spool, settled", "take")
    for sink, name in VENDORS.items():
        text = f"{found[sink]['events_per_cpu_s']:,.0f} events/s"
        peer = f"the SDK's encoder, not sending: {found['otlp_by_sdk']:,.0f}" if sink == "otlp" else ""
        yield "stages.py", Row(f"stage: {name} sink, encoded and sent", text, peer, "20,000 events/s")
    pumped = f"{measure('spool.py')['per_core_second']:,.0f} events/s"
    yield "spool.py", Row("through spool and pump, nothing else", pumped, aim="20,000 events/s")


def pages() -> Iterator[tuple[str, Row]]:
    parsed = measure("metrics_page.py", "parse")
    yield (
        "metrics_page.py parse",
        Row(
            "metrics page of 50,000 series read again",
            f"{parsed['lines_per_s']:,.0f} lines/s ({parsed['first_lines_per_s']:,.0f} the first time)",
            f"prometheus_client {parsed['prometheus_client_lines_per_s']:,.0f} lines/s",
            "500,000 lines/s",
        ),
    )
    found = measure("metrics_page.py", "deliver")
    missing = "**NO PEER AT HAND: VMAGENT**"
    peer = found.get("vmagent")
    ours = found["everything"]
    yield (
        "metrics_page.py deliver",
        Row(
            "the same to OTLP, CPU for each reading",
            f"{ours['cpu_s']:.2f} s; default labels {found['default_labels']['cpu_s']:.2f} s",
            f"vmagent {peer['cpu_s']:.2f} s" if peer else missing,
        ),
    )
    yield (
        "metrics_page.py deliver",
        Row(
            "its most resident memory",
            f"{ours['peak_rss_mib']:.0f} MiB",
            f"vmagent {peer['peak_rss_mib']:.0f} MiB" if peer else missing,
            "200 MiB",
        ),
    )


def isolation() -> Iterator[tuple[str, Row]]:
    found = measure("isolation.py", "--seconds", "5")
    for sink, name in VENDORS.items():
        each = found[sink]
        ratios = ", ".join(f"{how}: {each[how]['ratio']:.2f}" for how in ("refused", "503"))
        text = f"{each['alone']['median_ms']:.1f} ms alone; times {ratios}"
        yield "isolation.py", Row(f"{name}: delay beside a hanging and a refusing sink", text, aim="times 1.10")


def outage() -> Iterator[tuple[str, Row]]:
    whole = measure("outage.py", "--proxies", "1", "--longest", "15")
    small = measure("outage.py", "--proxies", "1", "--max-bytes", str(32 * 2**20))
    for what, found in (("", whole), (", limit too small", small)):
        day, drain = found["outage"], found["drain"]
        assert day["adds_up"]
        assert drain["adds_up"]
        memory = max(day["rss_most_mib"], drain["rss_most_mib"])
        dropped = max(day["dropped"].values())
        script = "outage.py --proxies 1" + (" --max-bytes 33554432" if what else "")
        yield (
            script,
            Row(
                f"a day without backends{what}: disk",
                f"{day['disk_most_mib']:.0f} MiB; {dropped:,} of {day['events']:,} events dropped",
                aim=f"{day['max_bytes_mib']:.0f} MiB",
            ),
        )
        text = f"{memory:.0f} MiB ({day['rss_before_mib']:.0f} before)"
        yield script, Row(f"a day without backends{what}: memory", text, aim="512 MiB")
    drain = whole["drain"]
    for sink, name in VENDORS.items():
        text = drained(drain["alone"][sink])
        yield "outage.py --proxies 1", Row(f"then {name} alone drains", text, aim="20,000 events/s")
    text = drained(drain["all"])
    yield "outage.py --proxies 1", Row("then all three at once", text, aim="20,000 events/s")
    before, during = drain["live_put_ms_before"], drain["live_put_ms_during"]
    text = f"{during['median']:.0f} ms, at most {during['most']:.0f} ms ({before['median']:.0f} before)"
    yield "outage.py --proxies 1", Row("meanwhile, a live put", text)
    most = max(each["most"] for each in small["drain"]["live_delay_s"].values())
    events = max(small["outage"]["pending"].values())
    text = f"{most:.0f} s, behind {events:,} events for each of three sinks"
    yield "outage.py --proxies 1 --max-bytes 33554432", Row("the longest that a live event waited", text)


def drained(found: Mapping[str, float]) -> str:
    return f"{found['events_per_s']:,.0f} events/s ({found['events_per_cpu_s']:,.0f} for a second of CPU)"


def main() -> None:
    before, began = waited(), time.monotonic()
    rows = [row for group in (starts, footprint, stages, pages, isolation, outage) for row in group()]
    disk = measure("agent.py", "disk")["bytes_per_event"]
    rows.append(("agent.py disk", Row("spool for an event that waits, without metrics pages", f"{disk:.0f} bytes")))
    print(
        f"Measured on {machine()}; in {waited() - before:.0f} of "
        f"{time.monotonic() - began:.0f} seconds something waited for a core.\n"
    )
    print("| what | ours | beside | aim | command: `.venv/bin/python benchmarks/…` |\n|---|---|---|---|---|")
    for script, row in rows:
        print(f"| {row.what} | {row.ours} | {row.peer} | {row.aim} | `{script}` |")


if __name__ == "__main__":
    main()
