"""Events for each second of CPU through each stage of the agent, alone; and what peers need for the same.

    .venv/bin/python benchmarks/stages.py

The events are those of one proxy's polls (polls.py), most of them of its metrics page. `read` is the GET
of the page over a real socket, `page` from its bytes to events, `encode` and `decode` the spool's codec, `put` and
`take` the spool (with its commits; puts 32 at a time), the sinks a whole send to a receiver in another process, which
takes everything. Beside `page`: prometheus_client reads it. Beside `otlp`: the SDK's encoder, which does not send.

Prints one JSON object. Wall time is in it for the sinks: what one sink delivers in a second, if nothing else is done.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from otlp import by_sdk
from peers import a_proxy
from polls import Poll, polls_of_a_proxy
from prometheus_client.parser import text_string_to_metric_families
from receivers import receiving

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from exposition_pages import Reader, recorded
from http_support import PLAIN_TLS

from forwarder.events import Batch, decode, encode
from forwarder.http import Client
from forwarder.secrets import Secret
from forwarder.sinks.base import Delivered, Sink
from forwarder.sinks.datadog.api import DatadogApiSink
from forwarder.sinks.datadog.points import Form
from forwarder.sinks.newrelic import NewRelicSink
from forwarder.sinks.otlp.http import OtlpHttp
from forwarder.spool.base import Settlement
from forwarder.spool.sqlite import SqliteSpool
from forwarder.transport.post import Poster

ROUNDS: Final = 400  # of polls of one proxy
PAGES: Final = 100
TOGETHER: Final = 32


def rounds(polls: Sequence[Poll]) -> list[Batch]:
    """As they come out of the spool: freshly decoded, each with its time."""
    now = time.time_ns()
    return [
        decode(encode(poll.at(f"p{number % 10}", now - (ROUNDS - number) * 10**9)[0]))
        for number in range(ROUNDS)
        for poll in polls
        if poll.every == 15
    ]


def count(batches: Sequence[Batch]) -> int:
    return sum(len(batch.events) for batch in batches)


def rate(events: int, work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return events / (time.process_time() - began)


def through(sink: Sink, batches: Sequence[Batch]) -> dict[str, float]:
    for part in parts(batches[: len(batches) // 4], sink):  # what is kept from request to request
        _send(sink, part)
    wall, used = time.perf_counter(), time.process_time()
    for part in parts(batches, sink):
        _send(sink, part)
    wall, used = time.perf_counter() - wall, time.process_time() - used
    return {"events_per_cpu_s": count(batches) / used, "events_per_s": count(batches) / wall}


def parts(batches: Sequence[Batch], sink: Sink) -> Iterator[list[Batch]]:
    part: list[Batch] = []
    size = 0
    for batch in batches:
        size += len(encode(batch))
        if part and (count(part) + len(batch.events) > sink.limits.max_events or size > sink.limits.max_bytes):
            yield part
            part, size = [], len(encode(batch))
        part.append(batch)
    yield part


def _send(sink: Sink, batches: list[Batch]) -> None:
    """All of it, in as many requests as it takes."""
    while batches:
        outcome = sink.send(batches, timeout=30)
        assert isinstance(outcome, Delivered), outcome
        taken = count(batches) if outcome.events is None else outcome.events
        while batches and taken >= len(batches[0].events):
            taken -= len(batches.pop(0).events)
        if taken:
            first = batches[0]
            batches[0] = Batch(first.resource, first.time, first.events[taken:])


def sinks(url: str) -> list[Sink]:
    return [
        OtlpHttp("otlp", Poster(url, {}, PLAIN_TLS), lambda: "bench"),
        NewRelicSink("newrelic", Secret("k" * 40), PLAIN_TLS, url=url, events_url=url),
        DatadogApiSink("datadog", Poster(url, {"DD-API-KEY": Secret("k")}, PLAIN_TLS), Form(), max_age=3480.0),
    ]


async def spool(batches: Sequence[Batch]) -> dict[str, float]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteSpool(Path(folder, "spool.db"))
        await store.open()
        await store.attach(["a"])
        began = time.process_time()
        for at in range(0, len(batches), TOGETHER):
            await asyncio.gather(*(store.put(batch) for batch in batches[at : at + TOGETHER]))
        found["put"] = count(batches) / (time.process_time() - began)
        began = time.process_time()
        while pieces := await store.read("a", max_events=5000, max_bytes=2_000_000):
            taken = sum(len(piece.batch.events) for piece in pieces)
            await store.settle("a", Settlement(pieces[-1].end, delivered=taken))
        found["take"] = count(batches) / (time.process_time() - began)
        await store.close()
    return found


async def read(url: str) -> float:
    client = Client(url, {}, PLAIN_TLS, max_body=64 * 2**20)
    began = time.process_time()
    for _ in range(PAGES):
        reply = await client.get("/metrics/", timeout=10.0)
        assert reply.status == 200
    used = time.process_time() - began
    await client.close()
    return PAGES / used


def pages() -> dict[str, float]:
    body = recorded("1.106.2")
    reader = Reader()
    points = len(reader.read(body))
    text = body.decode()
    used = rate(points * PAGES, lambda: [reader.read(body) for _ in range(PAGES)])
    theirs = rate(points * 10, lambda: [list(text_string_to_metric_families(text)) for _ in range(10)])
    return {"points": points, "page": used, "page_by_prometheus_client": theirs}


async def measure() -> dict[str, object]:
    batches = rounds(await polls_of_a_proxy())
    events = count(batches)
    encoded = [encode(batch) for batch in batches]
    found: dict[str, object] = {"events": events, **pages()}
    async with a_proxy() as url:
        found["read"] = await read(url) * count([max(batches, key=lambda batch: len(batch.events))])
    found["encode"] = rate(events, lambda: [encode(batch) for batch in batches])
    found["decode"] = rate(events, lambda: [decode(data) for data in encoded])
    found |= await spool(batches)
    async with receiving() as receiver:
        for sink in sinks(receiver.url):
            found[sink.name] = await asyncio.to_thread(through, sink, batches)
            sink.close()
    found["otlp_by_sdk"] = rate(events, lambda: by_sdk(batches))
    return found


def main() -> None:
    print(json.dumps(asyncio.run(measure())))


if __name__ == "__main__":
    main()
