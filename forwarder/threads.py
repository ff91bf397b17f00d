"""Threads that never hold up the end of the process."""

import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

MOST: Final = 200  # threads at a time, so that lookups which hang do not fill the machine

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(ThreadPoolExecutor):
    """An executor for an event loop's blocking calls (name lookups among them) with a daemon thread for each call.

    The standard one has few threads, which lookups that hang would fill, and joins them at exit: a name server that
    does not answer would then hold up a stop for as long as the resolver tries. A subclass, because asyncio
    takes nothing else for its default executor.
    """

    def __init__(self) -> None:
        super().__init__()
        self._free = threading.Semaphore(MOST)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        if not self._free.acquire(blocking=False):
            # An OSError, as a failed name lookup is: the poll fails like any that cannot reach its target.
            future.set_exception(OSError(errno.EAGAIN, f"{MOST} blocking calls hang already"))
            return future

        def run() -> None:
            try:
                if not future.set_running_or_notify_cancel():
                    return
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - the future carries it to whoever waits
                future.set_exception(error)
            finally:
                self._free.release()

        threading.Thread(target=run, name="blocking-call", daemon=True).start()
        return future

    def shutdown(self, *_: Any, **__: Any) -> None:
        """Wait for nobody."""
