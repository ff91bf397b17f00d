"""What to read of one target and when: from a due endpoint to a batch in the spool.

The agent ticks every endpoint at the target's interval; the poller decides whether the tick becomes a poll. It holds
back from endpoints that the target does not have or that refuse the key, and asks the cost guard before `/health`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, get_args

import msgspec

from forwarder import catalog, cost
from forwarder.config import Target
from forwarder.errors import CodecError
from forwarder.events import Batch, Change, Delta, Event, Metric, Resource
from forwarder.http import Client
from forwarder.intake import Intake
from forwarder.logs import Reminder, fields
from forwarder.normalize import changes, normalize
from forwarder.normalize.deployments import count_metrics, decode_names, deployment_metrics, encode_names, named
from forwarder.normalize.proxy import verdict_of
from forwarder.normalize.reading import Endpoint, Reading
from forwarder.reply import Reply
from forwarder.scrape import Scrape, Scraper, fetch_metrics
from forwarder.telemetry import Telemetry
from forwarder.threads import TooManyLookups
from forwarder.troubles import Troubles

log = logging.getLogger(__name__)

PATHS: Final[Mapping[str, str]] = {endpoint.name: endpoint.path for endpoint in catalog.ENDPOINTS}
LIVELINESS_ALIAS: Final = "/health/liveness"

ABSENT_RETRY: Final = 3600.0  # seconds until an endpoint that a target does not have is tried again
AUTH_RETRY: Final = 300.0  # the same where the key was refused: a rotated key heals, a wrong one does not hammer
NO_METRICS_RETRY: Final = 300.0  # a metrics page may be empty until the first request
MODEL_INFO_INTERVAL: Final = 3600.0  # it is large (1.7 MB for 200 deployments) and only counts deployments

LARGE: Final = 512 * 1024  # bytes of a reply; ordinary ones (200 deployments) take 2 to 4 ms
LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
TOLD: Final = 50  # lines in the log for the changes of one reply; a proxy may have thousands of deployments
UNREACHED: Final = frozenset({"dns", "refused", "unreachable", "tls", "proxy"})


async def fetch(client: Client, endpoint: Endpoint, timeout: float) -> Reply:
    """One endpoint of a target, within `timeout` seconds."""
    reply = await client.get(PATHS[endpoint], timeout=timeout)
    if endpoint == "liveliness" and reply.status == 404:
        reply = await client.get(LIVELINESS_ALIAS, timeout=timeout)
    return reply


def endpoints_of(target: Target) -> tuple[Endpoint, ...]:
    """What is read of the target."""
    skip: set[str] = set(target.skip)
    if not target.health.enabled:
        skip |= {"health", "model_info"}  # model_info serves what /health says, and costs
    if not target.metrics.enabled:
        skip.add("metrics")
    return tuple(endpoint for endpoint in get_args(Endpoint) if endpoint not in skip)


def pause(endpoint: Endpoint, reading: Reading, retry_after: float | None) -> float:
    """Seconds in which the endpoint is left alone, beyond its interval."""
    if endpoint == "metrics" and (reading.absent or reading.error == "no_metrics"):
        return NO_METRICS_RETRY
    if reading.absent:
        return ABSENT_RETRY
    if reading.error == "auth" or (reading.error and endpoint == "model_info"):
        return AUTH_RETRY
    if reading.error:
        return min(retry_after or 0.0, ABSENT_RETRY)
    return MODEL_INFO_INTERVAL if endpoint == "model_info" else 0.0


def outcome_of(reading: Reading) -> str:
    """One of catalog.POLL_OUTCOMES."""
    return "absent" if reading.absent else "failure" if reading.error else "success"


class Said(NamedTuple):
    """What an endpoint said last, and until when (ns UTC) that counts."""

    reading: Reading
    until: int


class Seen(NamedTuple):
    """What a poller knows at a moment, for those who show it: what each endpoint said last, when it was last asked and
    before when it is not asked again (ns UTC), and what /health costs.
    """

    said: Mapping[Endpoint, Said]
    asked: Mapping[Endpoint, int]
    not_before: Mapping[Endpoint, int]
    account: cost.Account
    budget: cost.Budget


class Known(NamedTuple):
    """What is known about a target beside what its endpoints say now, and what of it is stored."""

    account: cost.Account
    changes: changes.ChangeState
    names: dict[str, str]
    stored: dict[str, bytes]


class Poller:
    """One target. `open` reads what a previous run stored; `tick` is called by the schedule."""

    def __init__(  # noqa: PLR0913 - what it works with, and a clock
        self,
        target: Target,
        client: Client,
        intake: Intake,
        resource: Mapping[str, str | int],
        *,
        telemetry: Telemetry | None = None,
        clock: Callable[[], int] = time.time_ns,
        announce: bool = True,
    ) -> None:
        """`announce`: whether the arithmetic of what /health costs is told at start; a cron job need not."""
        self.target = target
        self.endpoints: Final = endpoints_of(target)
        self._client = client
        self._intake = intake
        self._telemetry = telemetry or Telemetry()
        self._clock = clock
        self._resource = Resource({**resource, "litellm.target": target.name})
        health = target.health
        self._budget = cost.Budget(
            interval=health.interval,
            cheap_interval=target.interval,
            per_day=health.max_billed_calls_per_day,
            background=health.background,
        )
        self._account = cost.Account(opened=clock())
        self._changes = changes.ChangeState()
        self._stored: dict[str, bytes] = {}
        self._lock = asyncio.Lock()  # one reply at a time becomes a batch
        self._busy: set[Endpoint] = set()
        self._last: dict[Endpoint, Said] = {}
        self._source: Endpoint = "health"
        self._not_before: dict[Endpoint, int] = {}
        self._troubles = Troubles(target.name, target.url)
        self._unasked = Reminder(0)
        self._names: dict[str, str] = {}  # of deployments, from model_info
        self._began: dict[Endpoint, int] = {}  # when each was last polled
        self._scraper = Scraper(target)
        self._announce = announce
        self._told_deployments: int | None = None
        self._retired = False

    def lasting(self, endpoint: str) -> float:
        """Seconds for which what the endpoint said is taken for now: two readings may fail to come."""
        health = self._budget.interval + self.target.health.timeout
        interval = {"health": health, "metrics": self.target.metrics.interval}.get(endpoint, self.target.interval)
        return 2 * interval + self.target.timeout

    def seen(self) -> Seen:
        """What is known now; a copy."""
        return Seen(dict(self._last), dict(self._began), dict(self._not_before), self._account, self._budget)

    # --- state that survives restarts -------------------------------------------------------------------------------

    def open(self, state: Mapping[str, bytes], *, damaged: bool = False) -> None:
        """Take up what the last run stored. State that cannot be read starts anew, with a line in the log.

        `damaged`: the spool was, so what was stored is lost: nobody knows when /health was polled last.
        """
        readers: dict[str, Callable[[bytes], object]] = {
            "changes": changes.decode,
            "cost": cost.decode,
            "names": decode_names,
            "metrics": self._scraper.open,
        }
        for kind, read in readers.items():
            data = state.get(self._key(kind))
            if not data:
                continue
            try:
                value = read(data)
            except CodecError as error:
                log.warning("stored state cannot be read and starts anew", extra=self._fields(reason=error))
                damaged = damaged or kind == "cost"
                continue
            self._stored[self._key(kind)] = data
            match value:
                case changes.ChangeState():
                    self._changes = value
                case cost.Account():
                    self._account = value
                case dict():
                    self._names = value
        if damaged:
            self._account = msgspec.structs.replace(self._account, last=self._clock())
        if self._account.deployments is not None:
            self._tell_cost(self._account)  # else when model_info has been asked, a moment after the start

    # --- another configuration, in the middle of things -------------------------------------------------------------

    def describe(self, resource: Mapping[str, str | int]) -> None:
        """From now on, other attributes for everything about this target."""
        self._resource = Resource({**resource, "litellm.target": self.target.name})

    def renew(self, target: Target, client: Client) -> None:
        """The same target with another key or other certificates. Polls in flight keep the client that they have;
        where the key was refused it is tried again with the next tick, and told if it is refused again.
        """
        self.target, self._client = target, client
        for endpoint, said in self._last.items():
            if said.reading.error == "auth":
                self._not_before.pop(endpoint, None)
        self._troubles.remind("auth")

    async def retire(self) -> Known:
        """Store nothing more: what comes after this is another poller's, which `follow`s."""
        async with self._lock:
            self._retired = True
        return Known(self._account, self._changes, self._names, self._stored)

    def follow(self, known: Known) -> None:
        """Take up what the poller of this target before knew, as `open` does after a restart."""
        self._account, self._changes, self._names, self._stored = known
        if metrics := self._stored.get(self._key("metrics")):
            self._scraper.open(metrics)
        if self._account.deployments is not None:
            self._tell_cost(self._account)

    def _key(self, kind: str) -> str:
        return f"{kind}/{self.target.name}"

    @property
    def up(self) -> bool | None:
        """Whether the proxy answered liveliness last; None before it was asked."""
        said = self._last.get("liveliness")
        return None if said is None else said.reading.alive

    # --- when -------------------------------------------------------------------------------------------------------

    def interval(self, endpoint: Endpoint) -> float:
        """Seconds between two ticks."""
        return self.target.metrics.interval if endpoint == "metrics" else self.target.interval

    def due(self, endpoint: Endpoint) -> bool:
        """True when a tick should become a poll now."""
        if endpoint in self._busy:
            return False
        now = self._clock()
        # A clock that was set back must not silence an endpoint for longer than its own pause.
        if 0 < self._not_before.get(endpoint, 0) - now <= ABSENT_RETRY * 1e9:
            return False
        if endpoint != "health":
            # The first poll is made at start, out of the schedule's phase: the tick right after it is no second one.
            since = now - self._began.get(endpoint, 0)
            return not 0 <= since < self.interval(endpoint) * 1e9 / 2
        # /health waits until every cheap endpoint has had its say: they may show that it is not needed, or free.
        if any(e not in self._last for e in self.endpoints if e not in ("health", "metrics")):
            return False
        # A proxy that is down, or too busy to say that it lives, is not asked for its most expensive answer.
        liveliness = self._last.get("liveliness")
        if liveliness is not None and liveliness.reading.alive is False:
            return False
        self._account = cost.today(self._account, now)
        return cost.due_in(self._account, self._budget, now) <= 0

    async def tick(self, endpoint: Endpoint) -> None:
        """Poll the endpoint if it is due."""
        if not self.due(endpoint):
            if (
                endpoint in self._busy and endpoint != "health"
            ):  # which may well take longer than the schedule's interval
                self._telemetry.polled(self.target.name, endpoint, "overrun")
            return
        self._busy.add(endpoint)
        self._began[endpoint] = self._clock()
        try:
            await self._poll(endpoint)
        except TooManyLookups as error:  # so many other names hang: nothing is known of this target, nor said
            self._telemetry.polled(self.target.name, endpoint, "failure")
            if self._unasked.due(self._clock()):
                log.warning("not polled", extra=self._fields(endpoint=endpoint, reason=error.strerror))
        finally:
            self._busy.discard(endpoint)

    async def _poll(self, endpoint: Endpoint) -> None:
        if endpoint == "metrics":
            await self._poll_metrics()
            return
        timeout = self.target.timeout
        if endpoint == "health":
            if not await self._may_spend():
                return
            timeout = self.target.health.timeout
        reply = await fetch(self._client, endpoint, timeout)
        keyed = self.target.api_key is not None
        if len(reply.body) > LARGE:  # seconds of work in the worst case (8 MB made for it); the loop must go on
            reading = await asyncio.to_thread(normalize, endpoint, reply, keyed=keyed)
        else:
            reading = normalize(endpoint, reply, keyed=keyed)
        self._telemetry.polled(self.target.name, endpoint, outcome_of(reading), len(reply.body))
        if reading.names is not None:
            self._names = dict(reading.names)
        if reading.deployments:
            reading = replace(reading, deployments=named(reading.deployments, self._names))
        async with self._lock:
            if self._retired:
                return
            await self._absorb(endpoint, reply, reading)

    async def _poll_metrics(self) -> None:
        reply = await fetch_metrics(self._client, self.target.metrics)
        keyed = self.target.api_key is not None
        if len(reply.body) > LARGE:
            scrape = await asyncio.to_thread(self._scraper.read, reply, keyed=keyed)
        else:
            scrape = self._scraper.read(reply, keyed=keyed)
        reading = scrape.reading
        self._telemetry.polled(self.target.name, "metrics", outcome_of(reading), len(reply.body))
        async with self._lock:
            if self._retired:
                return
            before = self._last.get("metrics")
            if reading.absent and (before is None or before.reading.detail != reading.detail):
                log.info(reading.detail, extra=self._fields(endpoint="metrics"))
            self._note("metrics", reading, reply.time, reply.retry_after)
            if scrape.events:
                await self._put_metrics(reply.time, scrape)

    async def _put_metrics(self, now: int, scrape: Scrape) -> None:
        states = {} if scrape.state is None else {self._key("metrics"): scrape.state}
        if not await self._intake.put(Batch(self._resource, now, tuple(scrape.events)), states):
            return
        self._stored |= states
        if scrape.state is not None:
            self._scraper.stored()
        self._tell([event for event in scrape.events if isinstance(event, Change)])

    async def _may_spend(self) -> bool:
        """Ask the cost guard, and book the poll durably before it is made."""
        now = self._clock()
        async with self._lock:
            if self._retired:
                return False
            if not cost.affordable(self._account, self._budget):
                await self._refuse(now)
                return False
            charged = cost.charge(self._account, self._budget, now)
            booked = await self._intake.put(None, self._changed(charged, self._changes))
            if not booked and charged.booked:
                # What cannot be booked is not spent: a crash loop over a full disk must not run up a bill.
                self._account = msgspec.structs.replace(self._account, last=now)
                why = "not polled: its cost cannot be written to the spool"
                self._troubles.began("health", "not_booked", why, now)
                return False
            self._account = charged
        return True

    async def _refuse(self, now: int) -> None:
        account = msgspec.structs.replace(self._account, last=now)
        events = self._cost_metrics(account, now)
        if account.told != account.day:
            account = msgspec.structs.replace(account, told=account.day)
            need, left = cost.expected(account), cost.remaining(account, self._budget) or 0
            text = (
                f"{left:,} of {self._budget.per_day or 0:,} calls are left today and the next poll may cost {need:,}"
            )
            log.warning(
                "the budget for billed calls is spent: /health is not polled until the next UTC day",
                extra=self._fields(left=left, next_poll=need, budget=self._budget.per_day),
            )
            title = f"{self.target.name}: budget for billed health checks is spent"
            events.append(catalog.BUDGET_SPENT.at(now, title, text))
        await self._put(now, events, account, self._changes)

    # --- from a reading to a batch ----------------------------------------------------------------------------------

    async def _absorb(self, endpoint: Endpoint, reply: Reply, reading: Reading) -> None:
        now = reply.time
        self._note(endpoint, reading, now, reply.retry_after)
        account = self._learn(endpoint, reading, reply.elapsed)
        events: list[Event] = [*reading.metrics, *self._verdict(endpoint, now)]
        if endpoint == "health":
            events += self._cost_metrics(account, now)
        if endpoint == self._source and reading.deployments is not None:
            events += deployment_metrics(reading.deployments, now)
            events += count_metrics(reading, now)
        state, told = changes.observe(
            self._changes,
            reading,
            time=now,
            failure_threshold=self.target.changes.failure_threshold,
            success_threshold=self.target.changes.success_threshold,
            target=self.target.name,
            source=endpoint if endpoint == self._source else None,
        )
        await self._put(now, [*events, *told], account, state)
        self._tell(told)

    def _tell(self, told: Sequence[Change]) -> None:
        for change in told[:TOLD]:
            log.log(LEVELS[change.severity], change.title, extra=self._fields(change=change.name))
        if len(told) > TOLD:
            log.warning("and more changes, not listed here", extra=self._fields(changes=len(told) - TOLD))

    def _note(self, endpoint: Endpoint, reading: Reading, now: int, retry_after: float | None) -> None:
        """Remember what the endpoint said, when to ask again, and log what is new about it."""
        if reading.absent:
            log.debug("the target does not have the endpoint", extra=self._fields(endpoint=endpoint))
        self._last[endpoint] = Said(reading, now + int(self.lasting(endpoint) * 1e9))
        self._not_before[endpoint] = now + int(pause(endpoint, reading, retry_after) * 1e9)
        if endpoint == "models" and reading.deployments is not None:
            self._source = "models"
        elif endpoint == "models" and reading.absent:
            self._source = "health"
        if reading.error not in UNREACHED:  # an answer, whatever it says: the way there is open again
            self._troubles.none_of(UNREACHED, now)
        if reading.error:
            self._troubles.began(endpoint, reading.error, reading.detail, now)
        else:
            self._troubles.ended(endpoint, now)

    def _learn(self, endpoint: Endpoint, reading: Reading, elapsed: float) -> cost.Account:
        """The cost account after this reading."""
        account, was_free = self._account, cost.free(self._account, self._budget)
        if endpoint == "health":
            account = cost.correct(account, self._budget, reading, elapsed)
        if reading.configured is not None:
            account = msgspec.structs.replace(account, deployments=reading.configured)
        if cost.free(account, self._budget) != was_free:
            if was_free:
                log.warning(
                    "/health is slow: the proxy seems to call its deployments on each poll, so it is billed again",
                    extra=self._fields(elapsed=f"{elapsed:.1f}s"),
                )
            else:
                log.info(
                    "the proxy checks its deployments in the background: /health costs nothing and is polled often "
                    '(health.background = "off" says otherwise)',
                    extra=self._fields(certain=account.certain),
                )
        if endpoint in ("health", "model_info"):
            self._tell_cost(account)
        return account

    def _verdict(self, endpoint: Endpoint, now: int) -> list[Metric]:
        """litellm.health, with each reply that bears on it."""
        if endpoint not in ("liveliness", "readiness", "health"):
            return []
        fresh = {e: said.reading for e, said in self._last.items() if now <= said.until}
        health = verdict_of(fresh)
        return [] if health is None else [catalog.HEALTH.at(now, health)]

    def _cost_metrics(self, account: cost.Account, now: int) -> list[Event]:
        total = catalog.PROBE_BILLED_CALLS.at(now, account.total, start_time=account.opened)
        delta = Delta(account.reported_at or account.opened, float(account.total - account.reported))
        events: list[Event] = [msgspec.structs.replace(total, delta=delta)]
        left = cost.remaining(account, self._budget)
        if left is not None:
            events.append(catalog.PROBE_BUDGET_REMAINING.at(now, left))
        return events

    async def _put(self, now: int, events: list[Event], account: cost.Account, state: changes.ChangeState) -> None:
        if any(event.name == catalog.PROBE_BILLED_CALLS.name for event in events):
            reported = msgspec.structs.replace(account, reported=account.total, reported_at=now)
        else:
            reported = account
        changed = self._changed(reported, state)
        batch = Batch(self._resource, now, tuple(events)) if events else None
        damages = self._intake.damages
        if (batch is not None or changed) and not await self._intake.put(batch, changed):
            # A change that could not be stored must be found again, and a delta reported later; but money that was
            # spent stays spent.
            self._account = account
            return
        self._account = reported
        self._changes = state
        # A file that took the place of a damaged one holds nothing of ours: store everything anew, next time.
        self._stored = self._stored | changed if damages == self._intake.damages else {}

    def _changed(self, account: cost.Account, state: changes.ChangeState) -> dict[str, bytes]:
        """The states as they are to be stored, where they differ from what is."""
        now = {
            self._key("cost"): cost.encode(account),
            self._key("changes"): changes.encode(state),
            self._key("names"): encode_names(self._names),
        }
        return {key: value for key, value in now.items() if self._stored.get(key) != value}

    # --- one line per thing that matters ----------------------------------------------------------------------------

    def _fields(self, **values: object) -> dict[str, dict[str, object]]:
        return fields(target=self.target.name, **values)

    def _tell_cost(self, account: cost.Account) -> None:
        """The arithmetic, at start and once more when the number of deployments becomes known or doubles."""
        if not self._announce or cost.free(account, self._budget) or "health" not in self.endpoints:
            return
        told, now = self._told_deployments, account.deployments
        if told is not None and (not now or 0 < told <= now < 2 * told or now < told):
            return
        self._told_deployments = now or 0
        log.warning(cost.arithmetic(account, self._budget), extra=self._fields())
