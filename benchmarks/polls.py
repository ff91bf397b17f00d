"""What a proxy's polls put into the spool, made by the agent's own poller from a fake proxy with the metrics page that
a real one of release 1.106 had under some traffic; to be stamped with other names and times.
"""

import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from backends.http_server import Request, Response
from backends.litellm import Deployment, FakeLiteLLM
from exposition_pages import recorded

from forwarder.build import build_clients
from forwarder.config import Config, load
from forwarder.events import Batch, Event, Metric, Resource
from forwarder.intake import Intake
from forwarder.poll import Poller
from forwarder.spool.sqlite import SqliteSpool

DEPLOYMENTS: Final = 20
PAGE: Final = recorded("1.106.2")
_SAMPLE: Final = re.compile(rb"^(litellm_\w+_(?:total|bucket|count|sum)(?:\{.*\})?) ([0-9.e+-]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Poll:
    """Of one endpoint, every so many seconds; `state` is stored with it, by what stands before the target's name."""

    every: float
    batch: Batch
    state: Mapping[str, bytes]

    def at(self, target: str, time: int) -> tuple[Batch, dict[str, bytes]]:
        resource = Resource({**self.batch.resource.attributes, "litellm.target": target})
        events = tuple(_moved(event, time - self.batch.time) for event in self.batch.events)
        return Batch(resource, time, events), {f"{kind}/{target}": state for kind, state in self.state.items()}


def _moved(event: Event, by: int) -> Event:
    if not isinstance(event, Metric):
        return replace(event, time=event.time + by)
    delta = event.delta and replace(event.delta, since=event.delta.since + by)
    start = event.start_time and event.start_time + by
    return replace(event, time=event.time + by, delta=delta, start_time=start)


class _Growing:
    """The page, in which every third series grows from one reading to the next."""

    def __init__(self) -> None:
        self.turn = 0

    def __call__(self, _: Request) -> Response:
        self.turn += 1
        return Response(200, self.page(), {"content-type": "text/plain; version=0.0.4"})

    def page(self) -> bytes:
        kept: dict[bytes, int] = {}

        def grown(sample: re.Match[bytes]) -> bytes:
            # All lines of a histogram grow together, or it is none.
            series = re.sub(rb'_(bucket|count|sum)\b|le="[^"]*",?|,?le="[^"]*"', b"", sample[1])
            more = self.turn if kept.setdefault(series, len(kept)) % 3 == 0 else 0
            return sample[1] + b" " + repr(float(sample[2]) + more).encode()

        return _SAMPLE.sub(grown, PAGE)


def configured(path: Path, url: str) -> Config:
    path.write_text(f'[[targets]]\nname = "eu"\nurl = "{url}"\n[sinks.console]\ntype = "console"\n')
    return load(path, {})


async def polls_of_a_proxy() -> list[Poll]:
    """At the default intervals: cheap endpoints and the metrics page every 15 seconds, /health every 5 minutes."""
    async with FakeLiteLLM() as proxy:
        proxy.deployments = [Deployment(f"openai/model-{n}", f"model-{n}") for n in range(DEPLOYMENTS)]
        proxy.overrides["/metrics/"] = _Growing()
        with tempfile.TemporaryDirectory() as name:
            config = configured(Path(name, "config.toml"), proxy.url)
            spool = SqliteSpool(Path(name, "spool.db"))
            await spool.open()
            (client,) = build_clients(config)
            try:
                return await _made(Poller(config.targets[0], client, Intake(spool, {}), {}, announce=False), spool)
            finally:
                await client.close()
                await spool.close()


async def _made(poller: Poller, spool: SqliteSpool) -> list[Poll]:
    target = poller.target
    every = {"health": target.health.interval, "model_info": 3600.0, "metrics": target.metrics.interval}
    found = []
    await spool.attach(["these"])
    # The page twice: the first reading of a counter has nothing to be compared with.
    await poller._poll("metrics")  # noqa: SLF001 - a second poll at once is what `tick` prevents
    for endpoint in poller.endpoints:
        await spool.attach([])
        await spool.attach([endpoint])
        await poller._poll(endpoint)  # noqa: SLF001 - as above
        pieces = await spool.read(endpoint, max_events=100_000, max_bytes=10**9)
        states = await spool.state()
        kinds = ("metrics",) if endpoint == "metrics" else ("cost", "changes")
        state = {kind: states[f"{kind}/eu"] for kind in kinds if f"{kind}/eu" in states}
        found += [Poll(every.get(endpoint, target.interval), piece.batch, state) for piece in pieces]
    return found
