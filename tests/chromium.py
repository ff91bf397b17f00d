"""A real Chromium without a window, spoken to over the pipe of its DevTools protocol (no port, no driver)."""

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

PROGRAM = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
PATIENCE = 60.0  # seconds; a limit for what must happen, not a measure of how fast


class Browser:
    """One page of it. `complaints`: what the page wrote to the console, exceptions, and what the browser refused."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.complaints: list[str] = []
        self._reader, self._writer = reader, writer
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self._session: str | None = None
        self._number = 0

    async def open(self) -> None:
        target = await self.ask("Target.createTarget", url="about:blank")
        attached = await self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.ask(f"{domain}.enable")

    async def listen(self) -> None:
        while data := await self._reader.readuntil(b"\0"):
            message = json.loads(data[:-1])
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            elif message["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif message["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(message["params"]))
            elif message["method"] == "Page.javascriptDialogOpening":
                self.complaints.append("a dialog")

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(PATIENCE):
            found = await answer
        assert "error" not in found, found
        return dict(found["result"])

    async def visit(self, url: str, *, width: int = 1200, dark: bool = False) -> None:
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded.clear()
        await self.ask("Page.navigate", url=url)
        async with asyncio.timeout(PATIENCE):
            await self._loaded.wait()

    async def value(self, expression: str) -> Any:
        """Of a JavaScript expression in the page."""
        found = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str, wanted: Callable[[Any], bool] = bool) -> None:
        found = None
        for _ in range(int(PATIENCE / 0.05)):
            if wanted(found := await self.value(expression)):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{expression} stayed {found!r}")


@contextlib.asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Browser]:
    """Chromium with an empty profile in `folder`. It and its children are gone when the context is left."""
    assert PROGRAM is not None
    (theirs, to_browser), (from_browser, answers) = os.pipe(), os.pipe()
    # Chromium reads commands from descriptor 3 and writes to 4.
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        f'exec "$@" 3<&{theirs} 4>&{answers}',
        "bash",
        PROGRAM,
        *FLAGS,
        f"--user-data-dir={folder}",
        pass_fds=(theirs, answers),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(answers)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**26)
    read_pipe, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_browser, "rb")
    )
    write_pipe, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(to_browser, "wb"))
    writer = asyncio.StreamWriter(write_pipe, protocol, None, loop)
    found = Browser(reader, writer)
    listening = asyncio.create_task(found.listen())
    try:
        await found.open()
        yield found
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        write_pipe.close()  # which ends Chromium and what it started
        try:
            async with asyncio.timeout(20):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        read_pipe.close()
