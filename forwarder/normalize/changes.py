"""Which changes follow from readings, with hysteresis: a state is told as changed once it was seen often enough.

Pure: `observe` takes the state of one target and returns the next; the caller stores it with the batch in one
transaction, so that a restart neither repeats nor misses a change. The rules:

- A first observation that is good is the silent baseline. A first that is bad is told after `failure_threshold`.
- Unknown neither counts nor resets: it leaves a streak as it is.
- Dependencies and versions have one state per target, whichever endpoint tells; each telling is one observation.
- A first listing is the baseline: nobody in it was added. When another endpoint becomes the source of deployments its
  first listing is a baseline again; who has the same id there is still known.
- Added is told at first sight; removed after `failure_threshold` listings in a row without the deployment. One that
  comes back before was never away.
- Another class of error while unhealthy is no change.
- A version is told after `success_threshold` sightings in a row: during a rolling update two workers on different
  releases answer in turn.
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from forwarder import catalog
from forwarder.codec import Codec
from forwarder.events import Attributes, Change
from forwarder.normalize.reading import Deployment, Reading, name


class Track(msgspec.Struct, frozen=True, array_like=True):
    """`told`: the state people were told of, or the silent baseline; None before either.
    `streak`: observations in a row that say otherwise.
    """

    told: bool | None = None
    streak: int = 0


class DeploymentTrack(msgspec.Struct, frozen=True, array_like=True):
    """`missing`: listings in a row without it. The names are kept to tell a removal by."""

    model: str
    provider: str | None
    track: Track = Track()
    missing: int = 0
    name: str | None = None


class VersionTrack(msgspec.Struct, frozen=True, array_like=True):
    told: str | None = None
    candidate: str | None = None
    streak: int = 0


class ChangeState(msgspec.Struct, frozen=True, array_like=True):
    """What changes of one target are computed from. Never modified. `source`: whose deployments these are; None before
    the first listing. Fields may be appended (older rows are read with their defaults), as in forwarder.events.
    """

    alive: Track = Track()
    ready: Track = Track()
    dependencies: dict[str, Track] = {}
    version: VersionTrack = VersionTrack()
    source: str | None = None
    deployments: dict[str, DeploymentTrack] = {}


_codec: Final = Codec(ChangeState, "the state of changes")
encode: Final = _codec.encode
decode: Final = _codec.decode  # raises CodecError


class _Observation:
    """What one call of `observe` works with: the limits, and the changes so far."""

    def __init__(self, time: int, target: str, failures: int, successes: int) -> None:
        self.time = time
        self.target = target
        self.failures = max(failures, 1)
        self.successes = max(successes, 1)
        self.changes: list[Change] = []

    def step(self, track: Track, seen: bool | None) -> tuple[Track, bool]:
        """The track after one more observation, and whether that is to be told."""
        if seen is None:
            return track, False
        if track.told == seen or (track.told is None and seen):
            return Track(seen), False
        streak = track.streak + 1
        if streak >= (self.successes if seen else self.failures):
            return Track(seen), True
        return Track(track.told, streak), False

    def tell(
        self,
        kind: catalog.ChangeDef,
        title: str,
        text: str,
        attributes: Attributes | None = None,
        severity: Literal["info"] | None = None,
    ) -> None:
        self.changes.append(kind.at(self.time, f"{self.target}: {title}", text, attributes, severity=severity))


def observe(  # noqa: PLR0913 - all by name: one observation and its limits
    state: ChangeState,
    reading: Reading,
    time: int,
    *,
    target: str,
    source: str | None,
    failure_threshold: int,
    success_threshold: int,
) -> tuple[ChangeState, list[Change]]:
    """The state after one reading, and the changes to tell, in the order of the rules above.

    time: ns, when the reply arrived. target: its name in the configuration.
    source: the endpoint that the deployments of this reading come from. A reading of an endpoint that is not the
    poller's source of deployments must come with source=None, or without its deployments: they are left alone then.
    Returns `state` itself when nothing changed in it, so that the caller need not store it again.
    """
    now = _Observation(time, name(target) or "target", failure_threshold, success_threshold)
    after = ChangeState(
        alive=_alive(now, state.alive, reading),
        ready=_ready(now, state.ready, reading.ready),
        dependencies=_dependencies(now, state.dependencies, reading),
        version=_version(now, state.version, reading.version),
        source=state.source,
        deployments=state.deployments,
    )
    if source is not None and reading.deployments is not None:
        deployments = _deployments(now, state, reading.deployments, baseline=state.source != source)
        after = msgspec.structs.replace(after, source=source, deployments=deployments)
    return (state if after == state else after), now.changes


def _alive(now: _Observation, track: Track, reading: Reading) -> Track:
    after, tell = now.step(track, reading.alive)
    if tell and reading.alive:
        now.tell(catalog.PROXY_UP, "the proxy is up again", "The proxy answers its liveliness endpoint again.")
    elif tell:
        error = reading.error
        reason = (
            catalog.PROBE_ERRORS.get(error, "it could not be read") if error else "it says that it is shutting down"
        )
        now.tell(
            catalog.PROXY_DOWN,
            f"the proxy is down ({error or 'shutting down'})",
            f"The liveliness endpoint failed {_times(now.failures)}: {reason}.",
            {"error.type": error} if error else {},
        )
    return after


def _ready(now: _Observation, track: Track, seen: bool | None) -> Track:
    after, tell = now.step(track, seen)
    if tell:
        words = {True: "ready", False: "not_ready", None: "unknown"}
        said = {"previous": words[track.told], "current": words[seen]}
        if seen:
            text = "The readiness endpoint says that the proxy takes requests again."
            now.tell(catalog.READINESS_CHANGED, "the proxy is ready again", text, {**said}, "info")
        else:
            text = f"The readiness endpoint said {_times(now.failures)} that the proxy is not ready to take requests."
            now.tell(catalog.READINESS_CHANGED, "the proxy is not ready", text, {**said})
    return after


def _dependencies(now: _Observation, tracks: dict[str, Track], reading: Reading) -> dict[str, Track]:
    after = dict(tracks)
    for dependency, seen in reading.dependencies.items():
        after[dependency], tell = now.step(tracks.get(dependency, Track()), seen)
        if tell and seen:
            text = f"The proxy says that its {dependency} is connected."
            now.tell(catalog.DEPENDENCY_UP_CHANGE, f"{dependency} is back", text, {"dependency": dependency})
        elif tell:
            text = f"The proxy said {_times(now.failures)} that its {dependency} is not connected."
            now.tell(catalog.DEPENDENCY_DOWN, f"{dependency} is down", text, {"dependency": dependency})
    return after


def _version(now: _Observation, track: VersionTrack, seen: str | None) -> VersionTrack:
    if seen is None:
        return track
    if track.told is None or track.told == seen:
        return VersionTrack(seen)
    streak = track.streak + 1 if track.candidate == seen else 1
    if streak < now.successes:
        return VersionTrack(track.told, seen, streak)
    now.tell(
        catalog.VERSION_CHANGED,
        f"LiteLLM {seen} instead of {track.told}",
        f"The proxy says that it runs LiteLLM {seen}; before it was {track.told}.",
        {"previous": track.told, "current": seen},
    )
    return VersionTrack(seen)


def _deployments(
    now: _Observation, state: ChangeState, listed: Sequence[Deployment], *, baseline: bool
) -> dict[str, DeploymentTrack]:
    after: dict[str, DeploymentTrack] = {}
    for deployment in listed:
        known = state.deployments.get(deployment.id)
        if known is None and not baseline:
            text = f"The proxy lists deployment {deployment.id} of {deployment.model}, which it did not before."
            now.tell(catalog.DEPLOYMENT_ADDED, f"{_short(deployment)} was added", text, deployment.attributes())
        track, tell = now.step(known.track if known else Track(), deployment.up)
        if tell:
            _tell_deployment(now, deployment)
        after[deployment.id] = DeploymentTrack(deployment.model, deployment.provider, track, name=deployment.name)
    if baseline:
        return after
    for id_, known in state.deployments.items():
        if id_ in after:
            continue
        if known.missing + 1 < now.failures:
            after[id_] = msgspec.structs.replace(known, missing=known.missing + 1)
            continue
        gone = Deployment(id_, known.model, known.provider, up=False, name=known.name)
        text = f"The proxy no longer lists deployment {id_} of {known.model} (missing {_times(now.failures)})."
        now.tell(catalog.DEPLOYMENT_REMOVED, f"{_short(gone)} was removed", text, gone.attributes())
    return after


def _tell_deployment(now: _Observation, deployment: Deployment) -> None:
    what = f"deployment {deployment.id} of {deployment.model}"
    if deployment.up:
        text = f"The proxy lists {what} as healthy again."
        now.tell(catalog.DEPLOYMENT_HEALTHY, f"{_short(deployment)} is healthy", text, deployment.attributes())
        return
    error = deployment.error_type or "other"
    attributes = {**deployment.attributes(), "error.type": error}
    text = (
        f"The proxy listed {what} as unhealthy {_times(now.failures)}: {catalog.DEPLOYMENT_ERRORS.get(error, error)}."
    )
    if deployment.http_status is not None:
        attributes["http.response.status_code"] = deployment.http_status
        text += f" HTTP status {deployment.http_status}."
    now.tell(catalog.DEPLOYMENT_UNHEALTHY, f"{_short(deployment)} is unhealthy ({error})", text, attributes)


def _short(deployment: Deployment) -> str:
    """Name, model and id for a title."""
    name = f"{deployment.name} ({deployment.model})" if deployment.name else deployment.model
    return f"{name} [{deployment.short_id}]"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times in a row"
