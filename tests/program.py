"""The installed program as a process of its own, for tests of the whole agent."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, "-m", "forwarder")
PATIENCE = 30.0  # seconds; a limit for what must happen, not a measure of how fast


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a fresh user has: no variables of ours, and no proxy of the machine's."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    return kept | {"PYTHONWARNINGS": "error", "COLUMNS": "120"} | dict(more or {})


async def call(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, stdin: bytes | None = None
) -> Finished:
    """Run a command to its end."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *arguments,
        cwd=cwd,
        env=environment(env),
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(stdin)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())


async def call_shell(script: str, *arguments: str, cwd: Path) -> Finished:
    """Run a shell script that gets the interpreter as $0 and the arguments as $@."""
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        script,
        sys.executable,
        *arguments,
        cwd=cwd,
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())


async def on_terminal(
    *arguments: str, cwd: Path, answer: bytes, until: bytes, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a command on a terminal; give `answer` (Ctrl-C as the signal that it is) when `until` is shown. Its exit
    code, and what it showed.
    """
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *arguments,
        cwd=cwd,
        env=environment({"TERM": "xterm", **(env or {})}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    part = await asyncio.to_thread(os.read, ours, 4096)
                except OSError:  # Linux says EIO when the last process has closed its side
                    break
                shown += part
                if until in shown and answer:
                    if answer == b"\x03":
                        process.send_signal(signal.SIGINT)
                    else:
                        os.write(ours, answer)
                    answer = b""
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
    return code, shown.decode()


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


class Running:
    """A running agent whose output goes to files, which survive it."""

    def __init__(self, process: asyncio.subprocess.Process, out: Path, err: Path) -> None:
        self.process, self._out, self._err = process, out, err

    def out(self) -> str:
        return self._out.read_text()

    def err(self) -> str:
        return self._err.read_text()

    def events(self) -> list[dict[str, Any]]:
        """Every whole line. What a killed agent wrote last may be cut off."""
        lines = self.out().split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def names(self) -> list[str]:
        return [event["name"] for event in self.events()]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Look again and again. Fails, with the log, if it never comes true or the agent ends."""
        for _ in range(int(PATIENCE / 0.02)):
            if condition():
                return
            assert self.process.returncode is None, self.err()
            await asyncio.sleep(0.02)
        raise AssertionError(f"never came true; log:\n{self.err()}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def agent(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, stdout: int | None = None
) -> AsyncIterator[Running]:
    """`litellm-forwarder run` in `folder`. Killed on leaving, if it still runs."""
    number = sum(name.startswith("out-") for name in names_in(folder))
    out, err = folder / f"out-{number}", folder / f"err-{number}"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            *(arguments or ("run",)),
            cwd=folder,
            env=environment(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out_file if stdout is None else stdout,
            stderr=err_file,
        )
    try:
        yield Running(process, out, err)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def write_config(folder: Path, urls: Sequence[str], target: str = "", more: str = "", *, listen: str = "off") -> None:
    """A configuration with the state beside it; `target` is appended to each target's table."""
    targets = "".join(f'[[targets]]\nname = "t{n}"\nurl = "{url}"\n{target}\n' for n, url in enumerate(urls))
    head = f'[agent]\nstate_dir = "state"\nlisten = "{listen}"\n'
    (folder / "config.toml").write_text(f'{head}{more}\n{targets}\n[sinks.console]\ntype = "console"\n')


async def ledger(folder: Path) -> dict[str, Any]:
    """The console sink's account, as a user sees it; it must add up."""
    finished = await call("spool", "ledger", "--json", cwd=folder)
    assert finished.code == 0, finished
    (account,) = json.loads(finished.out)
    assert account["adds_up"]
    return dict(account)
