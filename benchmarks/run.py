"""Every measurement, as one table: `make bench`. The table in docs/benchmarks.md is this output.

Machines are shared and noisy: the aims have room, and what counts is the order of magnitude.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

import psutil

HERE = Path(__file__).parent


def measure(script: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, str(HERE / script), *arguments]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
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


def main() -> None:
    start = measure("agent.py", "start")["first_delivery_s"]
    assert isinstance(start, dict)
    memory = measure("agent.py", "memory")
    cpu = measure("agent.py", "cpu")
    disk = measure("agent.py", "disk")
    spool = measure("spool.py")
    otlp = measure("otlp.py")
    parsed = measure("metrics_page.py", "parse")
    first, theirs = parsed["first_lines_per_s"], parsed["prometheus_client_lines_per_s"]
    delivered = measure("metrics_page.py", "deliver")
    everything, default, vmagent = (delivered.get(key) for key in ("everything", "default_labels", "vmagent"))
    assert isinstance(everything, dict)
    assert isinstance(default, dict)
    rows = [
        (
            "start to first delivered event",
            f"{start['median']:.2f} s (worst of 7: {start['max']:.2f})",
            "1 s",
            "agent.py start",
        ),
        ("resident memory, idle, one target", f"{memory['rss_mib']:.1f} MiB", "60 MiB", "agent.py memory"),
        ("of that not shared with other processes", f"{memory['uss_mib']:.1f} MiB", "", "agent.py memory"),
        ("CPU for a poll, request to delivery", f"{cpu['cpu_ms_per_poll']:.2f} ms", "", "agent.py cpu"),
        ("spool for an event that waits", f"{disk['bytes_per_event']:.0f} bytes", "", "agent.py disk"),
        (
            "through spool and pump, on one core",
            f"{spool['per_core_second']:,.0f} events/s",
            "20,000 events/s",
            "spool.py",
        ),
        (
            "points into OTLP requests, series seen before",
            f"{otlp['again_points_s']:,.0f} /s",
            "100,000 /s",
            "otlp.py",
        ),
        ("the same, series never seen", f"{otlp['first_points_s']:,.0f} /s", "", "otlp.py"),
        ("the same, by the SDK's encoder", f"{otlp['sdk_points_s']:,.0f} /s", "", "otlp.py"),
        (
            "metrics page of 50,000 series read again",
            f"{parsed['lines_per_s']:,.0f} lines/s ({first:,.0f} the first time; prometheus_client {theirs:,.0f})",
            "500,000 lines/s",
            "metrics_page.py parse",
        ),
        (
            "the same, fetched to delivered over OTLP, CPU for each reading",
            f"{everything['cpu_s']:.2f} s; with default labels {default['cpu_s']:.2f} s",
            f"vmagent: {vmagent['cpu_s']:.2f} s" if isinstance(vmagent, dict) else "vmagent's (not at hand)",
            "metrics_page.py deliver",
        ),
        (
            "its most resident memory",
            f"{everything['peak_rss_mib']:.0f} MiB"
            + (f" (vmagent {vmagent['peak_rss_mib']:.0f} MiB)" if isinstance(vmagent, dict) else ""),
            "200 MiB",
            "metrics_page.py deliver",
        ),
    ]
    print(f"Measured on {machine()}.\n")
    print("| what | measured | aim | command |\n|---|---|---|---|")
    for what, value, aim, command in rows:
        print(f"| {what} | {value} | {aim} | `.venv/bin/python benchmarks/{command}` |")


if __name__ == "__main__":
    main()
