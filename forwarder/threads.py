"""Threads that never hold up the end of the process, and name lookups in them."""

import errno
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

MOST_NAMES: Final = 200  # that may hang at a time, so that their threads do not fill the machine

P = ParamSpec("P")
T = TypeVar("T")


class TooManyLookups(OSError):  # noqa: N818 - says what there is too many of
    """The name was not looked up, which says nothing about its host."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "too many name lookups hang already")


class Lookups:
    """`socket.getaddrinfo`, at most once at a time for each question: whoever asks meanwhile gets the same answer.

    A lookup cannot be ended from outside. One that hangs for longer than its poll waits would otherwise be joined by
    that of the next poll, and that of the one after it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[tuple[Any, ...], list[Future[Any]]] = {}

    def submit(self, *question: Any) -> Future[Any]:
        """The arguments are those of `socket.getaddrinfo`, by position. Fails with TooManyLookups."""
        future: Future[Any] = Future()
        with self._lock:
            if question in self._waiting:
                self._waiting[question].append(future)
                return future
            if len(self._waiting) >= MOST_NAMES:
                future.set_exception(TooManyLookups())
                return future
            self._waiting[question] = [future]
        try:
            threading.Thread(target=self._run, args=question, name="name-lookup", daemon=True).start()
        except RuntimeError:  # the machine has no more threads
            self._answer(question, lambda each: each.set_exception(TooManyLookups()))
        return future

    def _run(self, *question: Any) -> None:
        try:
            found = socket.getaddrinfo(*question)
        except BaseException as error:  # noqa: BLE001 - the futures carry it to those who wait
            reason = error  # Python forgets `error` at the end of the clause
            self._answer(question, lambda each: each.set_exception(reason))
        else:
            self._answer(question, lambda each: each.set_result(found))

    def _answer(self, question: tuple[Any, ...], tell: Callable[[Future[Any]], None]) -> None:
        with self._lock:
            waiting = self._waiting.pop(question)
        for each in waiting:
            if each.set_running_or_notify_cancel():
                tell(each)


class DaemonThreads(ThreadPoolExecutor):
    """An executor for blocking calls with a daemon thread for each call; an event loop's lookups go to `Lookups`.

    The standard one has few threads, which lookups that hang would fill, and joins them at exit: a name server that
    does not answer would then hold up a stop for as long as the resolver tries. A subclass, because asyncio
    takes nothing else for its default executor.
    """

    def __init__(self, most: int | None = None) -> None:
        """`most` calls at a time, lookups apart: for calls that may hang. One more fails, with EAGAIN."""
        super().__init__()
        self._most = most
        self._free = threading.Semaphore(most or 0)
        self._lookups = Lookups()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if fn is socket.getaddrinfo and not kwargs:  # as asyncio's `loop.getaddrinfo` submits it
            return self._lookups.submit(*args)
        future: Future[T] = Future()
        if self._most is not None and not self._free.acquire(blocking=False):
            future.set_exception(OSError(errno.EAGAIN, f"{self._most} blocking calls hang already"))
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
