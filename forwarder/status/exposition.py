"""Points in Prometheus' text format (version 0.0.4, which every scraper reads). Pure.

Names are as an OTLP receiver would translate them, so that a query is the same whichever way the points came:
dots become underscores, the unit is a suffix, sums end in `_total`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from forwarder import catalog
from forwarder.catalog import MetricDef
from forwarder.events import AttributeValue, Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
UNITS: Final = {"1": "", "s": "_seconds", "By": "_bytes"}
_DEFINED: Final = {metric.name: metric for metric in catalog.METRICS}


def metric_name(metric: MetricDef) -> str:
    """As the OpenTelemetry specification translates it; units in braces are annotations and left out."""
    name, unit = metric.name.replace(".", "_"), UNITS.get(metric.unit, "")
    name += "" if name.endswith(unit) else unit
    return f"{name}_total" if metric.kind == "sum" and not name.endswith("_total") else name


def page(points: Iterable[tuple[Mapping[str, AttributeValue], Metric]]) -> str:
    """The points, each with the attributes of its resource. What is not in the catalog, or no number, is left out."""
    families: dict[str, list[str]] = {}
    for resource, point in points:
        metric = _DEFINED.get(point.name)
        if metric is not None and point.value is not None and metric.kind != "histogram":
            sample = f"{metric_name(metric)}{_labels({**resource, **point.attributes})} {point.value!r}\n"
            families.setdefault(point.name, []).append(sample)
    # All samples of a family stand together, as the format demands, in the order of the catalog.
    return "".join(_head(metric) + "".join(families[name]) for name, metric in _DEFINED.items() if name in families)


def _head(metric: MetricDef) -> str:
    name = metric_name(metric)
    # In this version of the format a counter's head carries its whole name.
    kind = "counter" if metric.kind == "sum" else "gauge"
    text = metric.description.replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _labels(attributes: Mapping[str, AttributeValue]) -> str:
    found = {re.sub(r"[^A-Za-z0-9_]", "_", key): value for key, value in sorted(attributes.items())}
    return "{" + ",".join(f'{key}="{_escaped(str(value))}"' for key, value in found.items()) + "}" if found else ""


def _escaped(text: str) -> str:
    """Lone surrogates cannot be written in UTF-8."""
    text = text.encode("utf-8", "replace").decode()
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
