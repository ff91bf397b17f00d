"""A real LiteLLM proxy on loopback, over an upstream of ours that answers and fails as told. For `make interop`.

    async with Upstream() as upstream, proxy("1.106.2", upstream, folder) as running:
        ...  # running.url; upstream.calls counts what reached each deployment

A release lives in a virtual environment of its own, which `install.py` makes from tests/interop/locks.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
from backends.http_server import Request, Response, ScriptedServer

from interop.places import home

RELEASES: Final = ("1.53.1", "1.80.17", "1.106.2")
MASTER_KEY: Final = "sk-MASTER-LEAKTEST-1"
PATIENCE: Final = 180.0  # seconds until a proxy must have started; the machine may be busy

# What each deployment's upstream does, and the class of failure that the agent must name. `leaky` works.
DEPLOYMENTS: Final[Mapping[str, str | None]] = {
    "ok": None,
    "ok2": None,
    "leaky": None,
    "e401": "authentication",
    "e404": "not_found",
    "e429": "rate_limit",
    "e500": "server_error",
    "refused": "connection",
}
_ERRORS: Final[Mapping[str, tuple[int, dict[str, Any]]]] = {
    "e401": (401, {"message": "Incorrect API key provided: sk-LEAKTEST*test.", "code": "invalid_api_key"}),
    "e404": (404, {"message": "The model `gpt-LEAKTEST` does not exist.", "code": "model_not_found"}),
    "e429": (429, {"message": "Rate limit reached in organization org-LEAKTEST.", "type": "requests"}),
    "e500": (500, {"message": "The server had an error: LEAKTEST", "type": "server_error"}),
}


def environment_of(release: str) -> Path:
    return home() / f"litellm-{release}"


def installed(release: str) -> bool:
    return (environment_of(release) / ".complete").exists()


@dataclass
class Upstream:
    """An OpenAI-like API. The first element of the path says how it answers; `failing` makes more of them fail."""

    calls: Counter[str] = field(default_factory=Counter)
    failing: set[str] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = ScriptedServer(self._answer)
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.__aexit__(kind, error, trace)

    @property
    def url(self) -> str:
        return self._server.url

    def _answer(self, request: Request) -> Response:
        kind = request.path.strip("/").partition("/")[0]
        self.calls[kind] += 1
        status, error = _ERRORS.get("e401" if kind in self.failing else kind, (0, {}))
        if status:
            return _json(status, {"error": error}, {"retry-after": "1"} if status == 429 else {})
        model = json.loads(request.body or b"{}").get("model", "m")
        choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [choice],
            "usage": usage,
        }
        return _json(200, body)


def _json(status: int, body: object, more: Mapping[str, str] | None = None) -> Response:
    return Response(status, json.dumps(body).encode(), {"content-type": "application/json", **(more or {})})


def configuration(upstream: Upstream, *, background: bool) -> dict[str, Any]:
    """As a user would write it, with secrets wherever the proxy lets one stand."""
    deployments = []
    for name in DEPLOYMENTS:
        base = "http://127.0.0.1:9/v1" if name == "refused" else f"{upstream.url}/{name}/v1"
        parameters: dict[str, Any] = {
            "model": "openai/gpt-4o",
            "api_base": base,
            "api_key": f"sk-LEAKTEST-{name}-0123",
        }
        if name == "leaky":
            parameters["api_base"] = f"{base}?sig=SIG-LEAKTEST"
            parameters["extra_headers"] = {"X-Internal-Token": "HEADER-LEAKTEST"}
        deployments.append({"model_name": name, "litellm_params": parameters, "model_info": {"id": f"id-{name}"}})
    general: dict[str, Any] = {"master_key": MASTER_KEY}
    if background:
        general |= {"background_health_checks": True, "health_check_interval": 5}
    settings = {"callbacks": ["prometheus"], "num_retries": 0, "request_timeout": 30}
    return {"model_list": deployments, "litellm_settings": settings, "general_settings": general}


@dataclass(frozen=True)
class Proxy:
    url: str
    process: asyncio.subprocess.Process

    async def die(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@contextlib.asynccontextmanager
async def proxy(release: str, upstream: Upstream, folder: Path, *, background: bool = False) -> AsyncIterator[Proxy]:
    """A proxy that answers. Killed on leaving."""
    file = folder / "proxy.yaml"  # JSON is YAML
    file.write_text(json.dumps(configuration(upstream, background=background)))
    port = _free_port()
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "DISABLE_ADMIN_UI": "True"}
    with (folder / "proxy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            environment_of(release) / "bin" / "litellm",
            *("--config", str(file), "--host", "127.0.0.1", "--port", str(port)),
            cwd=folder,
            env=kept | quiet | {"NO_PROXY": "127.0.0.1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    running = Proxy(f"http://127.0.0.1:{port}", process)
    try:
        await _until_alive(running.url, process, folder / "proxy.log")
        yield running
    finally:
        await running.die()


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


async def _until_alive(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(PATIENCE), httpx.AsyncClient(trust_env=False) as client:
        while True:
            assert process.returncode is None, f"the proxy ended; see {log}"
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(f"{url}/health/liveliness", timeout=2)).status_code == 200:
                    return
            await asyncio.sleep(0.3)
