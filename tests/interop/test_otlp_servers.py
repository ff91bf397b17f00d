"""OTLP into real servers, read back by query: a VictoriaMetrics, and a Prometheus behind a vmagent that translates."""

import asyncio
import functools
import importlib.util
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backends.otlp import Relay
from captured import captures
from http_support import PLAIN_TLS

from forwarder import catalog
from forwarder.events import Attributes, Batch, Event, Histogram, Metric, Resource
from forwarder.pump import Pump
from forwarder.sinks.base import Delivered, Outcome, Retry
from forwarder.sinks.otlp.http import OtlpHttp
from forwarder.spool.sqlite import SqliteSpool
from forwarder.transport.post import Poster
from interop.otlp_servers import Sample, Series, free_port, program, prometheus, read, until, victoria, vmagent

SECOND = 10**9
TESTS = Path(__file__).parent.parent
KINDS = {"victoriametrics": ("victoria-metrics",), "prometheus": ("prometheus", "vmagent")}  # what each needs
HISTOGRAM = Histogram((0.1, 1.0), (1, 2, 3), 4.5, 6)


class Server:
    """Where OTLP goes in and queries go out."""

    def __init__(self, takes: int, asked: int) -> None:
        self.takes = takes
        self._asked = asked

    def url(self, port: int | None = None) -> str:
        return f"http://127.0.0.1:{port or self.takes}/opentelemetry"

    def series(self, selector: str) -> Series:
        return read(self._asked, selector, time.time() + 60)

    def settled(self, selector: str, samples: int) -> Series:
        """When so many samples are there; a vmagent passes them on in the background."""
        until(lambda: sum(map(len, self.series(selector).values())) >= samples)
        return self.series(selector)


@contextmanager
def server(kind: str, folder: Path) -> Iterator[Server]:
    with ExitStack() as stack:
        if kind == "victoriametrics":
            port = stack.enter_context(victoria(folder))
            yield Server(port, port)
        else:
            asked = stack.enter_context(prometheus(folder))
            yield Server(stack.enter_context(vmagent(folder, asked)), asked)


def sink(url: str, instance: str = "agent-1") -> OtlpHttp:
    return OtlpHttp("otlp", Poster(url, {}, PLAIN_TLS), lambda: instance, changes=False)


def send(url: str, *batches: Batch, instance: str = "agent-1") -> Outcome:
    made = sink(url, instance)
    try:
        return made.send(batches, timeout=20)
    finally:
        made.close()


def batch(*events: Event, target: str = "eu") -> Batch:
    return Batch(Resource({"litellm.target": target}), events[0].time, events)


def milliseconds(time_ns: int) -> float:
    return time_ns // 10**6 / 1000


@functools.cache
def page() -> Any:
    """The generator of the documentation, which knows the names."""
    spec = importlib.util.spec_from_file_location("generate", TESTS.parent / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- everything we send -------------------------------------------------------------------------------------------


def one_of_each(now: int) -> list[Metric]:
    """A point of every metric in the catalog, with every attribute it may have."""
    points = []
    for number, metric in enumerate(catalog.METRICS):
        attributes: Attributes = {
            key: 503 if key.endswith("status_code") else f'{key} {number} "é"\\' for key in metric.attributes
        }
        start = now - 3600 * SECOND
        if metric.kind == "histogram":
            points.append(Metric(metric.name, "histogram", metric.unit, now, None, attributes, start, HISTOGRAM))
        else:
            points.append(
                Metric(metric.name, metric.kind, metric.unit, now + number * 10**6, number + 0.25, attributes, start)
            )
    return points


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_of_the_catalog_has_its_name_value_labels_and_time(kind: str, tmp_path: Path) -> None:
    """Under the name that docs/backends.md gives, in reach of the query that it gives."""
    points = one_of_each(time.time_ns() - 5 * SECOND)
    with server(kind, tmp_path) as real:
        assert send(real.url(), batch(*points)) == Delivered()
        for metric, point in zip(catalog.METRICS, points, strict=True):
            name = page().prometheus_name(metric) + ("_count" if metric.kind == "histogram" else "")
            ((found, samples),) = real.settled(name, 1).items()
            value = 6.0 if point.value is None else point.value
            assert samples == [(milliseconds(point.time), value)], metric.name
            wanted = {key.replace(".", "_"): str(each) for key, each in point.attributes.items()}
            wanted = {"__name__": name, "litellm_target": "eu"} | wanted  # the agent's own name a target themselves
            wanted |= {"service_name": "litellm", "service_instance_id": "agent-1/eu"}  # `job`, `instance` elsewhere
            assert wanted.items() <= dict(found).items(), metric.name


@pytest.mark.parametrize("kind", KINDS)
def test_every_reading_of_a_real_proxy_is_there(kind: str, tmp_path: Path) -> None:
    """Every capture of every release, each as a target of its own."""
    now = time.time_ns() - 5 * SECOND
    polls = [
        batch(*(msgspec.structs.replace(metric, time=now) for metric in reading.metrics), target=f"t{number}")
        for number, reading in enumerate(captured.reading() for captured in captures())
        if reading.metrics
    ]
    wanted = {
        (page().prometheus_name(KNOWN[metric.name]), *_labels(poll, metric), metric.value)
        for poll in polls
        for metric in poll.events
        if isinstance(metric, Metric)
    }
    count = sum(len(poll.events) for poll in polls)
    assert count > 300
    with server(kind, tmp_path) as real:
        assert send(real.url(), *polls) == Delivered()
        found = real.settled('{litellm_target!=""}', count)
    arrived = {
        (dict(each)["__name__"], *sorted((key, value) for key, value in each if key not in IDENTITY), samples[0][1])
        for each, samples in found.items()
    }
    assert arrived == wanted
    assert {at for samples in found.values() for at, _ in samples} == {milliseconds(now)}


KNOWN = {metric.name: metric for metric in catalog.METRICS}
IDENTITY = {
    "__name__",
    "job",
    "instance",
    "service.name",
    "service.instance.id",
    "service_name",
    "service_instance_id",
}
IDENTITY |= {"otel_scope_name", "otel_scope_version", "scope.name", "scope.version", "scope_name", "scope_version"}


def _labels(poll: Batch, metric: Metric) -> list[tuple[str, str]]:
    whole = {**metric.attributes, **poll.resource.attributes}
    return sorted((key.replace(".", "_"), str(value)) for key, value in whole.items() if value != "")


# --- who is who ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_two_agents_and_two_targets_write_to_four_series(kind: str, tmp_path: Path) -> None:
    """And none overwrites another."""
    now = time.time_ns() - SECOND
    values = {("a", "eu"): 0.0, ("a", "us"): 1.0, ("b", "eu"): 2.0, ("b", "us"): 3.0}
    with server(kind, tmp_path) as real:
        for (instance, target), value in values.items():
            point = Metric("litellm.health", "gauge", "1", now, value)
            assert send(real.url(), batch(point, target=target), instance=instance) == Delivered()
        found = {
            dict(each)["service_instance_id"]: samples for each, samples in real.settled("litellm_health", 4).items()
        }
    assert found == {f"{a}/{t}": [(milliseconds(now), value)] for (a, t), value in values.items()}


# --- outages ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def spooled(folder: Path, batches: Sequence[Batch]) -> AsyncIterator[SqliteSpool]:
    spool = SqliteSpool(folder / "spool.db")
    await spool.open()
    try:
        await spool.attach(["otlp"])
        for each in batches:
            await spool.put(each)
        yield spool
    finally:
        await spool.close()


async def drained(spool: SqliteSpool) -> None:
    async with asyncio.timeout(60):
        while (await spool.accounts())[0].pending:  # noqa: ASYNC110 - another process takes its time
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_hour_of_outage_is_made_up_for(kind: str, tmp_path: Path) -> None:
    """240 polls of several series, made while nobody listened: all of them arrive, each once, in their order."""
    for name in KINDS[kind]:
        program(name)  # which skips the test here; inside the pump it would end the pump alone
    start = time.time_ns() - 3600 * SECOND
    times = [start + number * 15 * SECOND for number in range(240)]
    polls = [outage(at, number) for number, at in enumerate(times)]
    port, pauses, real = free_port(), 0, list[Server]()
    with ExitStack() as stack:

        async def sleep(_seconds: float) -> None:
            """The hour passes in five pauses; then the receiver is there."""
            nonlocal pauses
            pauses += 1
            if pauses == 5:
                real.append(await asyncio.to_thread(stack.enter_context, server(kind, tmp_path)))
                stack.callback(Relay(real[0].takes, port).close)

        async with spooled(tmp_path, polls) as spool:
            made = sink(f"http://127.0.0.1:{port}/opentelemetry")
            stop = asyncio.Event()
            pump = asyncio.create_task(Pump(made, spool, timeout=10, sleep=sleep).run(stop))
            await drained(spool)
            stop.set()
            assert await pump
            made.close()
            (account,) = await spool.accounts()
        assert pauses >= 5
        assert (account.delivered, account.rejected, account.expired, account.pending) == (240 * 5, 0, 0, 0)
        for number in range(3):
            series = await asyncio.to_thread(real[0].settled, f'litellm_deployment_up{{model="m{number}"}}', 240)
            assert list(series.values()) == [whole(times, lambda each: float(each % 2))]
        series = await asyncio.to_thread(real[0].settled, "litellm_probe_billed_calls_total", 240)
        assert list(series.values()) == [whole(times, lambda each: each * 7.0)]


def outage(at: int, number: int) -> Batch:
    ups = [Metric("litellm.deployment.up", "gauge", "1", at, float(number % 2), {"model": f"m{i}"}) for i in range(3)]
    calls = Metric("litellm.probe.billed_calls", "sum", "{call}", at, number * 7.0, {}, at - number * 15 * SECOND)
    return batch(*ups, calls, catalog.PROXY_UP.at(at, "up"))


def whole(times: Sequence[int], value: Callable[[int], float]) -> list[Sample]:
    return [(milliseconds(at), value(number)) for number, at in enumerate(times)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_that_was_lost_makes_no_duplicate(kind: str, tmp_path: Path) -> None:
    """The data was stored, nobody said so, and it is sent again."""
    now = time.time_ns() - 60 * SECOND
    polls = [batch(Metric("litellm.up", "gauge", "1", now + number * SECOND, float(number))) for number in range(20)]
    with server(kind, tmp_path) as real:
        relay = Relay(real.takes)
        try:
            relay.fault = "close"
            assert isinstance(send(real.url(relay.port), *polls), Retry)
            assert len(real.settled("litellm_up", 20)) == 1, "the data was to be stored"
            relay.fault = None
            assert send(real.url(relay.port), *polls) == Delivered()
            end = batch(Metric("litellm.up", "gauge", "1", now + 30 * SECOND, 30.0))
            # A Prometheus refuses what it has had, with all that its vmagent put into the same request.
            until(lambda: send(real.url(), end) == Delivered() and len(*real.series("litellm_up").values()) > 20)
            (samples,) = real.series("litellm_up").values()
        finally:
            relay.close()
    assert samples == [(milliseconds(now + number * SECOND), float(number)) for number in (*range(20), 30)]
