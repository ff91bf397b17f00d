"""The promises of forwarder/spool/base.py, as checks that every engine passes and that cheating engines fail."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import spool_checks_ledger as ledger
import spool_checks_queue as queue
from spool_cheaters import Amnesiac, Consuming, Flattering, Hasty, Honest, Shared, Silent, Unordered
from spool_stores import SqliteStore, Store

from forwarder.spool.base import Spool

Check = Callable[[Store], Awaitable[None]]
CHECKS: list[Check] = [
    check for module in (queue, ledger) for name, check in vars(module).items() if name.startswith("check_")
]
STORES = {"sqlite": SqliteStore}


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = STORES[request.param](tmp_path)
    yield made
    await made.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_engine_keeps(check: Check, store: Store) -> None:
    """Every engine keeps every promise; the check's own docstring says which."""
    await check(store)


async def test_honest_wrapper_passes(tmp_path: Path) -> None:
    """The cheaters fail for what they cheat at, not for being wrapped."""
    for check in CHECKS:
        store = SqliteStore(tmp_path / getattr(check, "__name__", "check"), Honest)
        await check(store)
        await store.close()


@pytest.mark.parametrize(
    ("cheater", "check"),
    [
        (Hasty, queue.check_put_survives_a_crash),
        (Unordered, queue.check_order),
        (Flattering, ledger.check_every_fate_is_counted),
        (Silent, ledger.check_bytes_are_bounded),
        (Shared, queue.check_sinks_are_independent),
        (Amnesiac, ledger.check_a_settlement_stores_state),
        (Consuming, queue.check_unsettled_is_read_again),
    ],
)
async def test_cheater_is_caught(cheater: Callable[[Spool], Spool], check: Check, tmp_path: Path) -> None:
    """A suite that only an honest engine passes: each way of cheating fails the check made for it."""
    store = SqliteStore(tmp_path, cheater)
    try:
        with pytest.raises((AssertionError, ValueError)):
            await check(store)
    finally:
        await store.close()
