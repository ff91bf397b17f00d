"""The tables `[sinks.<name>]`: one model for each type of sink."""

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from forwarder.config_tables import Table
from forwarder.config_values import Duration, problem


class ConsoleSink(Table):
    """One JSON object per event, on a line of standard output."""

    type: Literal["console"] = Field(description="Which backend this is.")
    timeout: Annotated[float, Duration("1ms", "5m")] = Field(
        default=10.0, description="Time for one delivery attempt."
    )


# A new sink is a model, an entry here and a member of the union below, which then needs Field(discriminator="type").
SINK_TYPES: Final = {"console": ConsoleSink}


def _known_type(value: object) -> object:
    """Before the models look: keys of a sink that this release does not have are not mistakes of their own."""
    known = " or ".join(f'"{name}"' for name in SINK_TYPES)
    if isinstance(value, dict) and "type" not in value:
        raise problem("is missing", f"add type = {known}", key="type")
    if isinstance(value, dict) and value["type"] not in list(SINK_TYPES):
        raise problem(f"is unknown to this release, which has {known}", key="type")
    return value


SinkConfig = Annotated[ConsoleSink, BeforeValidator(_known_type)]
