"""A fake LiteLLM proxy: the documented API, and what releases 1.53.1, 1.80.17 and 1.106.2 answered (tests/captures).

    async with FakeLiteLLM("1.106.2", key="sk-1") as proxy:
        proxy.deployments[0].error = "rate_limit"   # every attribute may be changed while it runs
        ...  # proxy.url, proxy.billed_calls, proxy.violations, proxy.requests

The entries of /health leak as the real ones do; every secret among them says LEAKTEST. Not simulated: filters by
`?model=`, roles, and what /health/latest answers with a database.
"""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from backends.http_server import Answer, Handler, Request, Response, ScriptedServer, redirect
from backends.litellm_bodies import ERRORS, Deployment, Release, entry, model_info

__all__ = ["ERRORS", "Deployment", "FakeLiteLLM", "Release"]


def _two_deployments() -> list[Deployment]:
    return [Deployment(), Deployment("anthropic/claude", "claude")]


def _no_backlog() -> dict[str, int]:
    return dict.fromkeys(("in_flight_requests", "admitted_requests", "queued_requests", "rejected_requests"), 0)


@dataclass
class FakeLiteLLM:
    release: Release = "1.106.2"
    key: str | None = None  # the master key; None: no key is asked for
    deployments: list[Deployment] = field(default_factory=_two_deployments)
    version: str = ""  # the release it says it is
    db: Literal["none", "connected", "disconnected"] = "none"
    redis: Literal["none", "connected", "disconnected"] = "none"  # only the documented proxy tells
    background: bool = False  # background_health_checks
    checked: bool = True  # whether the first background cycle is over
    shared_cache_age: float | None = None  # seconds; None: no shared health check
    draining: bool = False
    prisma: bool = False  # 1.106 without the prisma package answers 500, not 401, to requests without a key
    health_delay: float = 0.0  # seconds
    backlog: dict[str, int] = field(default_factory=_no_backlog)
    overrides: dict[str, Handler] = field(default_factory=dict)  # by path without query; before anything else
    tls: ssl.SSLContext | None = None
    port: int = 0
    billed_calls: int = 0  # what /health made the upstreams answer
    violations: list[str] = field(default_factory=list)  # requests for paths with side effects

    def __post_init__(self) -> None:
        self.version = self.version or ("1.50.0" if self.release == "documented" else self.release)
        self._server = ScriptedServer(self._answer, tls=self.tls, port=self.port)

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def requests(self) -> list[Request]:
        return self._server.requests

    def asked(self, path: str) -> int:
        """How many requests there were for a path, queries aside."""
        return sum(request.path.partition("?")[0] == path for request in self.requests)

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        self.port = self._server.port
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.__aexit__(kind, error, trace)

    async def stop(self) -> None:
        await self._server.stop()

    async def restart(self) -> None:
        """Listen again, on the same port."""
        await self._server.__aenter__()

    async def _answer(self, request: Request) -> Answer:
        path, mark, _ = request.path.partition("?")
        plain = path.lower().rstrip("/")
        tests = plain.endswith("/health/services") and mark
        if tests or plain.endswith(("/health/drain", "/health/test_connection", "/cache/ping")):
            self.violations.append(request.path)
        if path in self.overrides:
            overridden = self.overrides[path](request)
            return await overridden if isinstance(overridden, Awaitable) else overridden
        if path not in _ROUTES[self.release]:
            return _json(404, {"detail": "Not Found"})
        if path not in _OPEN and not (path == "/metrics/" and self.release != "1.106.2"):
            refusal = self._refusal(request.headers)
            if refusal is not None:
                return refusal
        answer = _HANDLERS[path](self, request)
        return await answer if isinstance(answer, Awaitable) else answer

    def _refusal(self, headers: Mapping[str, str]) -> Response | None:
        """What an absent or wrong key gets (LITELLM notes, section 7); None for the right one."""
        given = headers.get("authorization", "").removeprefix("Bearer ") or headers.get("x-api-key", "")
        if self.key is None or given == self.key:
            return None
        if not given:
            if self.release == "1.106.2" and not self.prisma:
                return Response(500, b"Internal Server Error", {"content-type": "text/plain; charset=utf-8"})
            return _refused(401, "Authentication Error, No api key passed in.", "auth_error", "None")
        if self.db == "connected":
            return _refused(401, "Authentication Error, Invalid API key provided.", "token_not_found_in_db")
        if self.release in ("documented", "1.53.1"):
            return _refused(401, "Authentication Error, No connected db.", "auth_error", "None")
        return _refused(400, "No connected db.", "no_db_connection")

    def _liveliness(self, _request: Request) -> Response:
        if self.draining and self.release == "1.106.2":
            return _json(503, {"status": "shutting_down"})
        return _json(200, "I'm alive!")

    def _details(self, _request: Request) -> Response:
        more = {"log_level": "WARNING", "is_detailed_debug": False}
        warnings = {"show_no_redis_warning": True, "show_env_credential_login_warning": True}
        return _json(200, {**self._long_readiness(), **more, **warnings})

    def _shared_status(self, _request: Request) -> Response:
        if self.shared_cache_age is None:
            message = "Shared health check is not enabled"
            return _json(200, {"shared_health_check_enabled": False, "message": message})
        return _json(200, {"shared_health_check_enabled": True, "cache_age_seconds": self.shared_cache_age})

    def _backlog(self, _request: Request) -> Response:
        return _json(200, self.backlog)

    def _latest(self, _request: Request) -> Response:
        return _json(500, {"detail": {"error": "Database not initialized"}})

    def _model_info(self, _request: Request) -> Response:
        return _json(200, {"data": [model_info(each) for each in self.deployments]})

    def _metrics(self, request: Request) -> Response:
        if request.path == "/metrics":
            return redirect(f"{self.url}/metrics/")
        page = b"# HELP litellm_x A counter.\n# TYPE litellm_x counter\nlitellm_x_total 1.0\n"
        return Response(200, page, {"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _health(self, _request: Request) -> Response:
        await asyncio.sleep(self.health_delay)
        if self.background and not self.checked:
            return _json(200, {})
        if not self.background:
            self.billed_calls += sum(ERRORS[each.error].calls if each.error else 1 for each in self.deployments)
        up = [each for each in self.deployments if not each.error]
        down = [each for each in self.deployments if each.error]
        admin = self.key is not None  # in a proxy without a key nobody is one
        body: dict[str, Any] = {
            "healthy_endpoints": [entry(self.release, each, admin=admin) for each in up],
            "unhealthy_endpoints": [entry(self.release, each, admin=admin) for each in down],
        }
        if self.release != "documented":
            return _json(200, {**body, "healthy_count": len(up), "unhealthy_count": len(down)})
        status = "healthy" if up and self.db != "disconnected" else "unhealthy"
        told = {"db": self.db, "redis": self.redis}
        known = {name: state for name, state in told.items() if state != "none"}
        return _json(200, {"status": status, **known, "litellm_version": self.version, **body})

    def _readiness(self, _request: Request) -> Response:
        if self.release == "documented":
            ready = self.db != "disconnected" and not self.draining
            body = {"status": "ready" if ready else "not_ready", "db_initialized": ready, "router_initialized": True}
            return _json(200 if ready else 503, body)
        if self.release == "1.106.2":
            down = self.db == "disconnected"
            return _json(503 if down else 200, {"status": "healthy", "db": _DB_WORDS[self.db]})
        if self.db == "disconnected":
            return _json(503, {"detail": "Service Unhealthy (All connection attempts failed)"})
        return _json(200, self._long_readiness())

    def _long_readiness(self) -> dict[str, Any]:
        connected = self.db == "connected" and self.release != "1.106.2"
        body: dict[str, Any] = {
            "status": "connected" if connected else "healthy",
            "db": _DB_WORDS[self.db],
            "cache": None,
            "litellm_version": self.version,
            "success_callbacks": ["sync_deployment_callback_on_success", "ServiceLogging"],
        }
        return body if self.release == "1.53.1" else {**body, "use_aiohttp_transport": True}

    def _services(self, request: Request) -> Response:
        if self.release != "documented":
            if "?" in request.path:
                return _json(200, {"status": "success", "message": "Mock alert sent"})
            detail = {"type": "missing", "loc": ["query", "service"], "msg": "Field required"}
            old: dict[str, Any] = {} if self.release == "1.106.2" else {"input": None}
            return _json(422, {"detail": [{**detail, **old}]})
        database = {"status": self.db, "latency_ms": 2.5}
        redis = {"status": self.redis, "latency_ms": 1.2}
        router = {"status": "initialized", "models": len(self.deployments)}
        return _json(200, {"database": database, "redis": redis, "router": router})

    def _models(self, _request: Request) -> Response:
        lists: dict[str, list[dict[str, str]]] = {"healthy": [], "unhealthy": []}
        for each in self.deployments:
            status = "unhealthy" if each.error else "healthy"
            told = {"model": each.name, "api_base": each.api_base, "status": status}
            lists[status].append({**told, "last_check": "2024-01-15T10:30:00Z"})
        return _json(200, lists)


_DB_WORDS = {"none": "Not connected", "connected": "connected", "disconnected": "disconnected"}
_OPEN = {"/health/readiness", "/health/liveliness", "/health/liveness", "/health/models", "/metrics"}
_EVERYWHERE = {"/health", "/health/readiness", "/health/liveliness", "/health/liveness", "/health/services"}
_EVERYWHERE |= {"/model/info", "/metrics", "/metrics/"}
_SINCE_1_80 = _EVERYWHERE | {"/health/shared-status", "/health/latest"}
_ROUTES: dict[Release, set[str]] = {
    "documented": _EVERYWHERE | {"/health/models"},
    "1.53.1": _EVERYWHERE,
    "1.80.17": _SINCE_1_80,
    "1.106.2": _SINCE_1_80 | {"/health/backlog", "/health/readiness/details"},
}
_HANDLERS: dict[str, Callable[[FakeLiteLLM, Request], Response | Awaitable[Response]]] = {
    "/health": FakeLiteLLM._health,
    "/health/readiness": FakeLiteLLM._readiness,
    "/health/readiness/details": FakeLiteLLM._details,
    "/health/liveliness": FakeLiteLLM._liveliness,
    "/health/liveness": FakeLiteLLM._liveliness,
    "/health/models": FakeLiteLLM._models,
    "/health/services": FakeLiteLLM._services,
    "/health/shared-status": FakeLiteLLM._shared_status,
    "/health/backlog": FakeLiteLLM._backlog,
    "/health/latest": FakeLiteLLM._latest,
    "/model/info": FakeLiteLLM._model_info,
    "/metrics": FakeLiteLLM._metrics,
    "/metrics/": FakeLiteLLM._metrics,
}


def _json(status: int, value: object) -> Response:
    return Response(status, json.dumps(value).encode(), {"content-type": "application/json"})


def _refused(status: int, message: str, kind: str, param: str | None = None) -> Response:
    return _json(status, {"error": {"message": message, "type": kind, "param": param, "code": str(status)}})
