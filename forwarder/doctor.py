"""`litellm-forwarder doctor`: looks at everything that must work, and says how to mend what does not.

It works beside a running agent: it takes no lock and leaves the spool alone. What it sends to a sink is marked as a
test. It reads what the agent would read of a target, and `/health` only where that is free or somebody agreed to pay.
"""

import asyncio
import fcntl
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from forwarder import catalog, inspection
from forwarder.build import build_clients, build_sink
from forwarder.config import Agent, Config, Loaded, Target
from forwarder.config_notify import NotifySink
from forwarder.config_references import exists
from forwarder.config_sinks import ConsoleSink, SinkConfig
from forwarder.config_values import size_text
from forwarder.errors import ConfigError, StateFolderError
from forwarder.events import Batch, Event, Resource
from forwarder.http import Client
from forwarder.instance import Instance
from forwarder.normalize.reading import Endpoint
from forwarder.poll import endpoints_of
from forwarder.pump import in_thread
from forwarder.sinks.base import Blocked, Delivered, Rejected, Retry, Sink
from forwarder.spool.lock import open_to_all, refuse_folder
from forwarder.status import client as status
from forwarder.status.client import NoAgentError

SCARCE: Final = 16 * 2**20  # bytes: less is no room for a spool
GRACE: Final = 5.0  # seconds past its timeout after which a send is a bug
PARTS: Final = 4  # sends at most for the test's two events, which may go to two addresses

Verdict = Literal["good", "warning", "bad", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`about`: what was looked at. `text` says how it is, `fix` what to do. Never holds a secret."""

    about: str
    verdict: Verdict
    text: str
    fix: str = ""


async def examine(loaded: Loaded, *, billed: bool) -> AsyncIterator[Finding]:
    """Everything about a configuration that was read, one by one. `billed`: /health may cost money."""
    config = loaded.config
    yield Finding("configuration", "good", f"{loaded.path}: valid")
    for each in (*secret_files(loaded), *state_folder(config), await asyncio.to_thread(listening, config.agent)):
        yield each
    clients = build_clients(config)
    try:
        for target, client in zip(config.targets, clients, strict=True):
            for each in await reach(target, client, billed=billed):
                yield each
    finally:
        for client in clients:
            await client.close()
    instance = Instance(config.agent.state_dir, config.agent.instance or "doctor")  # not the agent's own: no I/O there
    for name, sink in config.sinks.items():
        yield await deliver(name, sink, Resource(dict(config.resource)), instance)


# --- this machine -------------------------------------------------------------------------------------------------


def secret_files(loaded: Loaded) -> Iterator[Finding]:
    """Who may read the files that hold keys. The configuration was read, so they can be."""
    open_ = loaded.exposed()
    for each in open_:
        yield Finding("secrets", "warning", f"{each} can be read by every user", f"chmod o-r {each}")
    if loaded.private and not open_:
        yield Finding("secrets", "good", "no file that holds a key can be read by every user")


def state_folder(config: Config) -> Iterator[Finding]:
    """Whether the spool can be there, and whether an agent uses it."""
    folder = config.agent.state_dir
    there = next(each for each in (folder, *folder.parents) if exists(each))
    try:
        # Nothing less tells: /proc grants root every access, and takes no folder.
        Path(tempfile.mkdtemp(prefix=".doctor-", dir=there)).rmdir()
    except OSError as error:
        fix = "give it to the user that runs the agent, or set agent.state_dir"
        text = f"{there} cannot be written by this user: {error.strerror or type(error).__name__}"
        yield Finding("state folder", "bad", text, fix)
        return
    try:
        if there == folder:
            refuse_folder(folder)
    except StateFolderError as error:
        yield Finding("state folder", "bad", str(error))
        return
    if there == folder and open_to_all(folder):
        text = f"every user may write {folder}: others can remove or replace what is in it"
        yield Finding("state folder", "warning", text, f"chmod o-w {folder}")
    yield Finding("state folder", "good", f"{folder} can be written" if there == folder else f"{folder} can be made")
    free, wanted = shutil.disk_usage(there).free, config.spool.max_bytes
    if free < min(wanted, SCARCE):
        yield Finding("state folder", "bad", f"{_bytes(free)} are free there", "free some space, or move it")
    elif free < wanted:
        text = f"{_bytes(free)} are free there, less than spool.max_bytes ({size_text(wanted)})"
        yield Finding("state folder", "warning", text, "free some space, or lower spool.max_bytes")
    if (holder := _holder(folder / "lock")) is not None:
        yield Finding("state folder", "note", f"an agent uses it (pid {holder})")


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _holder(lock: Path) -> str | None:
    """The pid of the agent that holds the lock. Looks by asking for a share of it, and gives it back at once."""
    try:
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(32).decode("ascii", "replace").strip() or "unknown"
    except OSError:
        return None
    return None


def listening(agent: Agent) -> Finding:
    """The status page: served by an agent, free to be served, or taken by another program."""
    if agent.listen is None:
        return Finding("status page", "note", 'none: agent.listen is "off"')
    family = socket.AF_INET6 if ":" in agent.listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((agent.listen.host, agent.listen.port))
            trial.listen(1)
        except OSError as error:
            taken = error.strerror or type(error).__name__
        else:
            return Finding("status page", "good", f"{agent.listen} is free for it; no agent answers there")
    try:
        view = status.view(agent.listen.url, 5.0, status.state_folder(agent))
    except NoAgentError as error:
        fix = 'stop what listens there, or set agent.listen to another address, or to "off"'
        return Finding("status page", "bad", f"{agent.listen} cannot be used ({taken}), and {error}", fix)
    return Finding("status page", "good", f"an agent ({view.version}) answers at {agent.listen.url}")


# --- targets ------------------------------------------------------------------------------------------------------


async def reach(target: Target, client: Client, *, billed: bool) -> list[Finding]:
    """What can be read of a target, by the same requests that the agent makes."""
    about, keyed = f"target {target.name}", target.api_key is not None
    wanted = endpoints_of(target)
    cheap = tuple(e for e in wanted if e != "health")
    view = await inspection.look(client, target.name, target.url, cheap, timeout=target.timeout, keyed=keyed)
    if view.status == "unreachable":
        fix = f"is the proxy running, and is url ({target.url}) right? litellm-forwarder check {target.url}"
        return [Finding(about, "bad", f"cannot be reached: {view.why}", fix)]
    found = []
    free = view.background or target.health.background == "on"
    if "health" in wanted and (billed or free):
        more = await inspection.look(
            client, target.name, target.url, ("health",), timeout=target.health.timeout, keyed=keyed
        )
        view = inspection.View(view.target, view.url, {**view.said, **more.said})
    elif "health" in wanted:
        found.append(
            Finding(
                about,
                "note",
                f"/health is not read: {inspection.billed_warning(view, keyed)}",
                "doctor --billed reads it",
            )
        )
    return [*_read(about, view), *_refused(about, view, keyed=keyed), *found]


def _read(about: str, view: inspection.View) -> Iterator[Finding]:
    read = {
        e: seen.reply.elapsed for e, seen in view.said.items() if not seen.reading.error and not seen.reading.absent
    }
    if read:
        slowest = max(read, key=lambda e: read[e])
        yield Finding(about, "good", f"reads {', '.join(read)} (slowest: {slowest}, {read[slowest]:.2f} s)")
    if view.status != "healthy":
        yield Finding(
            about, "warning", f"the proxy is {view.status}: {view.why}", "look at the proxy, not at the agent"
        )
    if absent := [e for e, seen in view.said.items() if seen.reading.absent]:
        yield Finding(about, "note", f"does not offer {', '.join(absent)}")


def _refused(about: str, view: inspection.View, *, keyed: bool) -> Iterator[Finding]:
    """What cannot be read, once for each reason."""
    troubles: dict[tuple[str, str], list[Endpoint]] = {}
    for endpoint, seen in view.said.items():
        if seen.reading.error:
            troubles.setdefault((seen.reading.error, seen.reading.detail), []).append(endpoint)
    for (error, detail), endpoints in troubles.items():
        essential = error == "auth" or not set(endpoints).isdisjoint(("liveliness", "readiness", "health"))
        fix = detail
        if error == "auth":
            fix = "give api_key the right key" if keyed else "give the target an api_key"
        meaning = catalog.PROBE_ERRORS.get(error, error)
        text = f"cannot read {', '.join(endpoints)}: {meaning}"
        yield Finding(about, "bad" if essential else "warning", text, fix)


# --- sinks --------------------------------------------------------------------------------------------------------


async def deliver(name: str, config: SinkConfig, resource: Resource, instance: Instance) -> Finding:
    """One marked event and one gauge, by the same path as everything else but the spool."""
    about = f"sink {name}"
    if isinstance(config, ConsoleSink):
        return Finding(about, "note", "writes to the agent's own standard output; nothing is sent from here")
    try:
        sink = build_sink(name, config, instance)
    except ConfigError as error:
        (problem,) = error.problems
        return Finding(about, "bad", problem.reason, problem.hint)
    if isinstance(config, NotifySink):
        sink.close()
        return Finding(
            about,
            "note",
            f"tells people, whom this does not wake: `litellm-forwarder notify test {name}` sends a sample",
        )
    try:
        return await _send(about, sink, resource, config.timeout)
    finally:
        sink.close()


async def _send(about: str, sink: Sink, resource: Resource, timeout: float) -> Finding:
    now = time.time_ns()
    title = "litellm-forwarder doctor: a test, nothing happened"
    text = "Sent by `litellm-forwarder doctor` to see that events arrive."
    left: tuple[Event, ...] = (catalog.TEST.at(now, 1), catalog.TEST_CHANGE.at(now, title, text))
    for _ in range(PARTS):
        batch = Batch(resource, now, left)

        def attempt(batch: Batch = batch) -> object:
            try:
                return sink.send([batch], timeout=timeout)
            except Exception as error:  # noqa: BLE001 - a bug of the sink is a finding
                return error

        sending = in_thread(attempt, f"doctor-{sink.name}")
        done, _ = await asyncio.wait([sending], timeout=timeout + GRACE)
        outcome = sending.result() if done else TimeoutError()
        if not isinstance(outcome, Delivered) or outcome.rejected:
            return _failed(about, outcome)
        left = left[len(left) if outcome.events is None else max(1, outcome.events) :]
        if not left:
            break
    if not sink.limits.confirms:
        return Finding(
            about, "good", "a test event was handed over; nothing there acknowledges, so look for forwarder.test"
        )
    return Finding(about, "good", "took a test event (forwarder.test)")


def _failed(about: str, outcome: object) -> Finding:
    match outcome:
        case Delivered():
            return Finding(about, "bad", f"took the test but refused a part of it: {outcome.reason}", "docs/sinks.md")
        case Retry():
            return Finding(about, "bad", f"not delivered: {outcome.reason}", "is it up, and is its address right?")
        case Blocked():
            return Finding(
                about, "bad", f"refused us: {outcome.reason}", "check its address and its key; docs/sinks.md"
            )
        case Rejected():
            return Finding(about, "bad", f"refused the test event: {outcome.reason}", "docs/sinks.md")
        case _:
            return Finding(about, "bad", f"a bug in the sink ({type(outcome).__name__})", "please report it")
