"""Asks a running agent how it is, for the command line."""

from typing import Final

import httpx
import msgspec

from forwarder.config import Agent
from forwarder.config_values import Address
from forwarder.instance import fingerprint
from forwarder.status.view import FORMAT, SERVICE, View, decode

MOST: Final = 64 * 2**20  # bytes of an answer


class NoAgentError(Exception):
    """Nobody, or somebody else, answers there. `str()` is one clause for an operator."""


def base_url(listen: Address | None) -> str:
    """Where the agent of this configuration answers. NoAgentError where that cannot be known."""
    if listen is None:
        raise NoAgentError('agent.listen is "off" in the configuration, so nothing can be asked')
    if listen.port == 0:
        raise NoAgentError("agent.listen has port 0 in the configuration; give --url, which the agent's log tells")
    return listen.url


def state_folder(agent: Agent) -> str:
    """The fingerprint that the agent of this configuration shows; empty where that cannot be known from here, because
    the folder is not configured and the agent may have another default (its user, $STATE_DIRECTORY).
    """
    return fingerprint(agent.state_dir) if "state_dir" in agent.model_fields_set else ""


def view(url: str, timeout: float, expected: str = "") -> View:
    """How the agent at `url` is, within `timeout` seconds. `expected`: the `state_folder` it must have, if any.
    Raises NoAgentError.
    """
    status, body = _get(url, "/api/status", timeout)
    if status != 200:
        raise NoAgentError(f"what answers at {url} is no litellm-forwarder (HTTP {status})")
    try:
        found = msgspec.json.decode(body, type=dict[str, object])
        theirs = found.get("format")
        if found.get("service") == SERVICE and isinstance(theirs, int) and theirs != FORMAT:
            raise NoAgentError(f"the agent at {url} is another release, whose status this one cannot read")
        view = decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise NoAgentError(f"what answers at {url} is no litellm-forwarder") from None
    _refuse_another(view.state_folder, expected, url)
    return view


def alive(url: str, timeout: float, expected: str = "") -> list[str]:
    """What is wrong with the agent itself; empty: nothing. `expected` as of `view`. Raises NoAgentError."""
    status, body = _get(url, "/healthz", timeout)
    try:
        found = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = {}
    if found.get("service") != SERVICE:
        raise NoAgentError(f"what answers at {url} is no litellm-forwarder (HTTP {status})")
    _refuse_another(found.get("state_folder", ""), expected, url)
    problems = found.get("problems")
    wrong = [str(each) for each in problems] if isinstance(problems, list) else []
    return wrong if status == 200 else wrong or ["it says that it is not well"]


def _refuse_another(theirs: object, expected: str, url: str) -> None:
    if expected and theirs not in ("", expected):
        raise NoAgentError(f"another agent answers at {url}: its state folder is not agent.state_dir")


def _get(url: str, path: str, timeout: float) -> tuple[int, bytes]:
    body = b""
    try:
        with (
            httpx.Client(trust_env=False, timeout=timeout) as client,
            client.stream("GET", url.rstrip("/") + path, headers={"accept-encoding": "identity"}) as answer,
        ):
            for part in answer.iter_raw():
                body += part
                if len(body) > MOST:
                    raise NoAgentError(f"what answers at {url} is no litellm-forwarder: it says too much")
            return answer.status_code, body
    except httpx.ConnectError:
        raise NoAgentError(
            f"no agent answers at {url}: nothing listens there; an agent that runs takes a changed agent.listen only "
            "after a restart, until then --url asks it"
        ) from None
    except httpx.TimeoutException:
        raise NoAgentError(f"no agent answers at {url} within {timeout:g} s") from None
    except httpx.ProtocolError:
        raise NoAgentError(f"what answers at {url} is no litellm-forwarder: it speaks no HTTP") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NoAgentError(f"no agent answers at {url}: {type(error).__name__}") from None
