"""What is fuzzed, coverage-guided: `make fuzz`. Each target takes any bytes and must neither raise nor hang.

One target for each edge where bytes come in: the HTTP readers (replies of proxies, answers of backends), the
normalisers, the metrics page, what the spool stores, the configuration.

    python tests/fuzz/targets.py TARGET [libFuzzer options] [corpus folders]
"""

import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import atheris

with atheris.instrument_imports(include=["forwarder"]):
    from forwarder import config, cost, events, poll
    from forwarder.errors import CodecError, ConfigError
    from forwarder.exposition import state
    from forwarder.exposition.counters import Counters
    from forwarder.exposition.page import Page
    from forwarder.exposition.selection import Selection
    from forwarder.http import Client
    from forwarder.normalize import changes, deployments, normalize
    from forwarder.reply import Reply
    from forwarder.scrape import Scraper
    from forwarder.sinks.notify import memory
    from forwarder.status import history
    from forwarder.transport import tls_context
    from forwarder.transport.post import Poster

sys.path.insert(0, str(Path(__file__).parents[1]))  # the fakes are imported as `backends`, as in tests
from backends.memory import AsyncMemory, Memory

CONTEXT: Final = tls_context(None, None, None)
FOLDER: Final = Path(tempfile.mkdtemp(prefix="fuzz-"))
MIB: Final = 1 << 20
SLOW: Final = 5.0  # seconds that no input of a few kilobytes may cost
TYPES: Final = ("application/json", "text/html", "text/plain", "")
ENDPOINTS: Final = tuple(poll.PATHS)


def normalisers(data: bytes) -> None:
    """A reply of any status and any bytes, on any endpoint, comes to a reading, and that to changes and a batch."""
    given = atheris.FuzzedDataProvider(data)
    endpoint: Any = ENDPOINTS[given.ConsumeIntInRange(0, len(ENDPOINTS) - 1)]
    status = given.ConsumeIntInRange(199, 599)
    content_type = TYPES[given.ConsumeIntInRange(0, len(TYPES) - 1)]
    body = given.ConsumeBytes(given.remaining_bytes())
    reading = normalize(
        endpoint, Reply(1, 0.5, None if status == 199 else status, None, content_type, body), keyed=True
    )
    found = [*reading.metrics, *deployments.deployment_metrics(reading.deployments or (), 1)]
    state, told = changes.observe(
        changes.ChangeState(),
        reading,
        time=1,
        failure_threshold=1,
        success_threshold=1,
        target="t",
        source=endpoint,
    )
    batch = events.Batch(events.Resource(), 1, (*found, *told))
    assert events.decode(events.encode(batch)) == batch
    assert changes.decode(changes.encode(state)) == state


def codec(data: bytes) -> None:
    """What is stored is a batch or a CodecError; a batch is written as it was read."""
    try:
        batch = events.decode(data)
        again = events.encode(batch)
    except (CodecError, UnicodeEncodeError):
        return
    assert repr(events.decode(again)) == repr(batch)  # NaN is not equal to itself


def configuration(data: bytes) -> None:
    """Any file is a configuration or a ConfigError of plain lines."""
    path = FOLDER / "config.toml"
    path.write_bytes(data)
    try:
        config.load(path, {"HOME": str(FOLDER), "A_KEY": "sk-1"})
    except ConfigError as error:
        told = str(error)
    else:
        return
    assert all(line.isprintable() for line in told.splitlines())


def replies(data: bytes) -> None:
    """Whatever a proxy sends over the wire is a Reply."""

    async def get() -> Reply:
        client = Client("http://h", {}, CONTEXT, max_body=MIB)
        client._transport._pool._network_backend = AsyncMemory(data)
        try:
            return await client.get("/health", timeout=SLOW)
        finally:
            await client.close()

    reply = asyncio.run(get())
    assert reply.status is not None or reply.failure is not None
    assert len(reply.body) <= MIB


def answers(data: bytes) -> None:
    """Whatever a backend answers is an Answer."""
    poster = Poster("http://h", {}, CONTEXT)
    poster._pool._network_backend = Memory(data)
    answer = poster.post("/", b"{}", {}, timeout=SLOW)
    poster.close()
    assert answer.status is not None or answer.failure is not None
    assert all(value.isprintable() for value in answer.headers.values())


SECOND: Final = 1_000_000_000
NOW: Final = 1_795_000_000 * SECOND
CUT: Final = b"\f"  # between two readings of a metrics page
TARGET: Final = config.for_url("http://h", "A_KEY", {}).targets[0]


def metrics(data: bytes) -> None:
    """Pages that one target answers with, one after the other: each comes to a batch that can be stored, and so does
    what is remembered. A page that was read before says what it says to who reads it the first time.
    """
    scraper, last = Scraper(TARGET), b""
    for number, body in enumerate(data.split(CUT)[:6], 1):
        read = scraper.read(Reply(NOW + number * 15 * SECOND, 0.1, 200, None, "text/plain", body), keyed=False)
        batch = events.Batch(events.Resource({}), NOW, tuple(read.events))
        assert events.decode(events.encode(batch)) == batch
        assert all(finite(event) for event in read.events)
        if read.state is not None:
            last = read.state
            if number % 3:  # every third reading could not be stored
                scraper.stored()
    if last:
        scraper = Scraper(TARGET)
        scraper.open(last)
        scraper.read(Reply(NOW + 200 * SECOND, 0.1, 200, None, "text/plain", data), keyed=False)


def finite(event: events.Event) -> bool:
    if isinstance(event, events.Change):
        return True
    found = [event.value, event.histogram, event.delta.value if event.delta else None]
    found += [event.delta.histogram if event.delta else None]
    numbers = [each.sum if isinstance(each, events.Histogram) else each for each in found]
    return all(math.isfinite(number) for number in numbers if isinstance(number, float))


def pages(data: bytes) -> None:
    """The reader of pages alone, with a cap that is soon reached. What it found the first time it finds again: known
    lines go another way. (The second reading knows all types; a `# TYPE` may stand behind its samples.)
    """
    page = Page(Selection(include=("a*", "litellm_*"), exclude_series=({"b": "c*"},)), max_series=5)
    for body in (data, data):
        page.read(body)
    first = said(page)
    page.read(data)
    assert said(page) == first
    assert page.kept <= 5
    assert len(page.members) <= 50
    counters = Counters(page)
    for number in range(3):
        counters.observe(NOW + number * SECOND)
        stored = state.decode(state.encode(counters, page.fingerprint))
        state.restore(Counters(page), stored, page.fingerprint)
        counters.commit()
        page.read(data)


def said(page: Page) -> object:
    told = sorted((each.digest, repr(page.values[each.at : each.at + each.size])) for each in page.members.values())
    return told, page.bad_lines, page.malformed, page.capped, page.kept


def remembered(data: bytes) -> None:
    """Whatever stands in the spool where something was remembered: it is taken up, or a CodecError."""
    kind, data = data[:1], b"\x01" + data[1:]
    try:
        match kind:
            case b"p":
                scraper = Scraper(TARGET)
                scraper.open(data)
                scraper.read(Reply(NOW, 0.1, 200, None, "text/plain", b"litellm_a 1\n"), keyed=False)
            case b"m":
                memory.encode(memory.decode(data))
            case b"h":
                history.History(lambda _: 1.0, history.decode(data)).encode()
            case b"$":
                cost.encode(cost.decode(data))
            case b"n":
                deployments.decode_names(data)
            case _:
                changes.encode(changes.decode(data))
    except (CodecError, UnicodeEncodeError):
        return


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (normalisers, codec, configuration, replies, answers, metrics, pages, remembered)
}


def timed(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        began = time.process_time()
        target(data)
        spent = time.process_time() - began
        assert spent < SLOW, f"{spent:.1f} s of CPU for {len(data)} bytes"

    return run


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], timed(TARGETS[sys.argv[1]]))
    atheris.Fuzz()
