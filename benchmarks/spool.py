"""Events a second through spool and pump: put durably (fsync), read, handed to a sink, settled. One process.

    .venv/bin/python benchmarks/spool.py [EVENTS]

Batches have 50 events like those of a `/health` poll; 32 polls put at a time, as with many targets. The sink takes
everything at once: it is the agent's own machinery that is measured. "A core" is CPU time of the whole process,
user and system: the spool's thread runs beside the loop.
"""

import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from forwarder.events import Batch, Metric, Resource
from forwarder.pump import Pump
from forwarder.sinks.base import Delivered, Limits
from forwarder.spool.sqlite import SqliteSpool

EVENTS_PER_BATCH = 50
PRODUCERS = 32


class Taker:
    name = "taker"
    limits = Limits(max_events=5000, max_bytes=4_000_000)

    def __init__(self) -> None:
        self.events = 0

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Delivered:
        del timeout
        self.events += sum(len(batch.events) for batch in batches)
        return Delivered()

    def close(self) -> None:
        pass


def batch(now: int) -> Batch:
    events = tuple(
        Metric(
            "litellm.deployment.up",
            "gauge",
            "1",
            now,
            1.0,
            {"model": "openai/gpt-4o", "deployment.id": f"{index:064x}", "provider": "openai"},
        )
        for index in range(EVENTS_PER_BATCH)
    )
    return Batch(Resource({"litellm.target": "eu", "deployment.environment.name": "prod"}), now, events)


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(total: int, folder: Path) -> dict[str, float]:
    spool = SqliteSpool(folder / "spool.db", max_bytes=4 * 2**30)
    await spool.open()
    await spool.attach(["taker"])
    sink, stop = Taker(), asyncio.Event()
    pump = Pump(sink, spool, timeout=10)
    left = iter(range(total // EVENTS_PER_BATCH))
    wall, used = time.perf_counter(), cpu()

    async def produce() -> None:
        for _ in left:
            await spool.put(batch(time.time_ns()))

    pumping = asyncio.create_task(pump.run(stop))
    await asyncio.gather(*(produce() for _ in range(PRODUCERS)))
    stop.set()
    drained = await pumping
    wall, used = time.perf_counter() - wall, cpu() - used
    (account,) = await spool.accounts()
    await spool.close()
    assert drained
    assert account.adds_up
    assert sink.events == account.delivered == account.accepted
    return {"events": sink.events, "per_second": sink.events / wall, "per_core_second": sink.events / used}


def main() -> None:
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(total, Path(folder)))))


if __name__ == "__main__":
    main()
