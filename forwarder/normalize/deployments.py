"""The deployments in a reply: who they are, which are up, and the points made of them.

**Identity.** A deployment keeps its `deployment.id` from poll to poll, or its series break and changes are told that
never happened. 1.106 and later give `model_id`, which is stable. Older releases and the documented shape give only the
model and its API base, and real configurations hold several deployments that share both. So the identity is then a
digest of both and an occurrence number. The API base enters the digest without its user name, password, query and
fragment: those are secrets in real configurations, and a digest of a guessable secret is not a secret.

**Why twins are numbered healthy ones first.** LiteLLM lists in the order of its configuration, but in two lists;
which of two indistinguishable entries a number meant last time cannot be known. Numbered through, healthy ones first,
n twins always have the numbers 1 … n, and those up to the number of healthy ones are up. So when one of them changes
side, exactly one identity changes its verdict and none appears or disappears: the least that can be told, and the
number of twins that are up is always right. Numbering each list by itself would end one identity and begin another.
"""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from forwarder import catalog
from forwarder.codec import Codec
from forwarder.events import Metric
from forwarder.normalize.failure import failure
from forwarder.normalize.reading import Deployment, Reading, masked, name

MAX_LISTED: Final = 5_000  # deployments per reply that become events; a proxy beyond this is misconfigured or hostile
_MAX_ID: Final = 180  # characters, so that an occurrence number still fits into a name
_MAX_AGE: Final = 10 * 365 * 86_400.0  # seconds; older is a placeholder such as 1970 or year 1, not a check
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a list, before it has an identity of its own."""

    fields: dict[str, Any]
    up: bool
    given_id: str | None
    digest: str


def listing(healthy: object, unhealthy: object, time: int) -> Reading | None:
    """The deployments of a reply's two lists; None when neither is a list.

    An entry that is a string is taken for a model name. Entries that are neither object nor string are counted,
    as the proxy lists them, but are no deployments. Past MAX_LISTED those with the smallest ids are taken: a choice
    that does not depend on who is healthy, so nobody comes or goes when a neighbour fails.
    """
    if not isinstance(healthy, list) and not isinstance(unhealthy, list):
        return None
    lists = [(healthy, True), (unhealthy, False)]
    entries = [_entry(item, up) for items, up in lists if isinstance(items, list) for item in items]
    usable = [entry for entry in entries if entry is not None]
    detail = "" if len(usable) == len(entries) else f"{len(entries) - len(usable)} entries are not deployments"
    identified = list(zip(_identify(usable), usable, strict=True))
    if len(identified) > MAX_LISTED:
        detail = f"{len(identified)} deployments, of which the first {MAX_LISTED} by id are followed"
        kept = set(heapq.nsmallest(MAX_LISTED, (id_ for id_, _ in identified)))
        identified = [(id_, entry) for id_, entry in identified if id_ in kept]
    deployments = tuple(_deployment(entry, id_, time) for id_, entry in identified)
    return Reading(
        detail=detail,
        deployments=deployments,
        healthy=len(healthy) if isinstance(healthy, list) else None,
        unhealthy=len(unhealthy) if isinstance(unhealthy, list) else None,
    )


def names(configured: Sequence[object]) -> dict[str, str]:
    """What clients call each deployment, from the entries of /model/info: by the proxy's id, and by our own digest
    (followed by "-") where all deployments with that digest have the same name.
    """
    found: dict[str, str] = {}
    ambiguous: set[str] = set()
    for item in configured:
        if not isinstance(item, dict) or (public := _public(item.get("model_name"))) is None:
            continue
        parameters, info = item.get("litellm_params"), item.get("model_info")
        fields = parameters if isinstance(parameters, dict) else {}
        given = info.get("id") if isinstance(info, dict) else None
        entry = _entry({"model": fields.get("model"), "api_base": fields.get("api_base"), "model_id": given}, up=True)
        if entry is None:
            continue
        if entry.given_id:
            found[entry.given_id] = public
        if found.setdefault(f"{entry.digest}-", public) != public:
            ambiguous.add(f"{entry.digest}-")
    return {key: public for key, public in found.items() if key not in ambiguous}


_names_codec: Final = Codec(dict[str, str], "the names of deployments")
encode_names: Final = _names_codec.encode
decode_names: Final = _names_codec.decode  # raises CodecError


def named(deployments: Sequence[Deployment], public: Mapping[str, str]) -> tuple[Deployment, ...]:
    """The deployments with the names that model_info told. Releases before 1.106 give no id in /health; there the
    digest of model and API base stands for it.
    """
    return tuple(
        msgspec.structs.replace(each, name=public.get(each.id) or public.get(each.id.rpartition("-")[0] + "-"))
        for each in deployments
    )


def deployment_metrics(deployments: Sequence[Deployment], time: int) -> list[Metric]:
    """litellm.deployment.up of each, .failure of those that fail, .check.age where it is known. `time` is ns."""
    found = []
    for deployment in deployments:
        found.append(catalog.DEPLOYMENT_UP.at(time, deployment.up, deployment.attributes()))
        if not deployment.up:
            why = {**deployment.attributes(), "error.type": deployment.error_type or "other"}
            if deployment.http_status is not None:
                why["http.response.status_code"] = deployment.http_status
            found.append(catalog.DEPLOYMENT_FAILURE.at(time, 1, why))
        if deployment.check_age is not None:
            found.append(catalog.DEPLOYMENT_CHECK_AGE.at(time, deployment.check_age, deployment.attributes()))
    return found


def count_metrics(reading: Reading, time: int) -> list[Metric]:
    """litellm.healthy_models and litellm.unhealthy_models: each only when the reply had that list. `time` is ns."""
    found = []
    if reading.healthy is not None:
        found.append(catalog.HEALTHY_MODELS.at(time, reading.healthy))
    if reading.unhealthy is not None:
        found.append(catalog.UNHEALTHY_MODELS.at(time, reading.unhealthy))
    return found


def age(moment: object, time: int) -> float | None:
    """Seconds from an ISO 8601 moment (without a zone: UTC) to `time` (ns). None for a future or absurd one."""
    if not isinstance(moment, str) or len(moment) > 40:
        return None
    try:
        parsed = datetime.fromisoformat(moment.strip())
        since = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)) - _EPOCH
    except (ValueError, OverflowError):
        return None
    seconds = (time - since // timedelta(microseconds=1) * 1_000) / 1e9
    return seconds if 0 <= seconds <= _MAX_AGE else None


def model_name(value: object) -> str | None:
    """The model, cleaned. A model that is a URL (`huggingface/https://…`) is cut there: that is an API base. So is one
    with a query, which no model has; and what looks like a key is masked.
    """
    model = name(value, limit=10_000)
    if model and "://" in model:
        model = model.partition("://")[0] + "://..."
    return name(masked(model.partition("?")[0])) if model else None


def _public(value: object) -> str | None:
    """What clients call it, cleaned."""
    return name(masked(value)) if isinstance(value, str) else None


def deployment_id(value: object) -> str | None:
    """The proxy's `model_id`, cleaned; None when it gives none, or one that holds a key."""
    found = name(value, limit=_MAX_ID)
    return found if found and masked(found) == found else None


def _entry(item: object, up: bool) -> _Entry | None:
    if isinstance(item, str):
        item = {"model": item}
    if not isinstance(item, dict):
        return None
    parts = [_model_without_secrets(item.get("model")), _without_secrets(item.get("api_base"))]
    # A length in front of each part, so that no two pairs read the same. "backslashreplace": lone surrogates.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    return _Entry(item, up, deployment_id(item.get("model_id")), digest)


def _identify(entries: Sequence[_Entry]) -> list[str]:
    """One id for each, all different, and the same set of ids in whatever order the entries come."""
    given = {entry.given_id for entry in entries}
    seen: set[str] = set()
    numbers: Counter[str] = Counter()
    found = []
    for entry in entries:
        if entry.given_id and entry.given_id not in seen:
            seen.add(entry.given_id)
            numbers[f"{entry.given_id}#"] = 1
            found.append(entry.given_id)
            continue
        prefix = f"{entry.given_id}#" if entry.given_id else f"{entry.digest}-"
        numbers[prefix] += 1
        while f"{prefix}{numbers[prefix]}" in given:  # a proxy may give an id that looks like one of ours
            numbers[prefix] += 1
        found.append(f"{prefix}{numbers[prefix]}")
    return found


def _deployment(entry: _Entry, id_: str, time: int) -> Deployment:
    model = model_name(entry.fields.get("model")) or "unknown"
    before_url = model.partition("://")[0]
    provider = name(before_url.partition("/")[0]) if "/" in before_url else None
    error_type, http_status = (None, None) if entry.up else failure(entry.fields)
    return Deployment(
        id=id_,
        model=model,
        provider=provider,
        up=entry.up,
        error_type=error_type,
        http_status=http_status,
        check_age=age(entry.fields.get("last_check"), time),
    )


_QUERY: Final = re.compile(r"[?#]")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20})://")


def _without_secrets(base: object) -> str:
    """Scheme, host in lower case, port and path of an API base. By hand: urllib raises for some hostile ones.

    A password may hold an unescaped `/`, a query an `@`. So everything up to the last `@` goes, and where an `@`
    stands after a `?` or `#`, which makes it doubtful what is what, everything but the scheme.
    """
    if not isinstance(base, str):
        return ""
    match = _SCHEME.match(base)
    scheme = match[0].lower() if match else ""
    before, *after = _QUERY.split(base[len(scheme) :], maxsplit=1)
    if after and "@" in after[0]:
        return scheme
    host, slash, path = before.rpartition("@")[2].partition("/")
    return scheme + host.lower() + slash + path


def _model_without_secrets(model: object) -> str:
    if not isinstance(model, str):
        return ""
    start, separator, url = model.partition("://")
    return start + _without_secrets(f"url://{url}") if separator else model
