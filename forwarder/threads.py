"""Threads that never hold up the end of the process."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(ThreadPoolExecutor):
    """An executor for an event loop's blocking calls (name lookups among them) with a daemon thread for each call.

    The standard one has few threads, which lookups that hang would fill, and joins them at exit: a name server that
    does not answer would then hold up a stop for as long as the resolver tries. A subclass, because asyncio
    takes nothing else for its default executor.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - the future carries it to whoever waits
                future.set_exception(error)

        threading.Thread(target=run, name="blocking-call", daemon=True).start()
        return future

    def shutdown(self, *_: Any, **__: Any) -> None:
        """Wait for nobody."""
