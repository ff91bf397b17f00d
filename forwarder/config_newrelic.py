"""The table of a sink of the type `newrelic`."""

import ipaddress
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from forwarder.config_references import ApiKey
from forwarder.config_tables import Connection
from forwarder.config_values import Duration, OptionalUrl, problem
from forwarder.secrets import Secret


class NewRelicSink(Connection):
    """New Relic: metrics to its Metric API, changes to its Event API."""

    type: Literal["newrelic"] = Field(description="Which backend this is.")
    api_key: ApiKey = Field(
        description="A license key of the account that everything goes to, of the type `INGEST - LICENSE`."
    )
    region: Literal["us", "eu"] = Field(
        default="us", description="Data center of the account. A license key of the EU begins with `eu01xx`."
    )
    url: OptionalUrl = Field(
        default=None,
        description="Base address of the Metric API, instead of the region's: another data center, or a relay on this "
        "machine. `/metric/v1` is added. `http://` only for this machine.",
    )
    events_url: OptionalUrl = Field(
        default=None,
        description="The same for the Event API. `/v1/accounts/events` is added.",
    )
    changes: bool = Field(default=True, description="Whether changes are sent, as events of the type `LiteLLMChange`.")
    histogram_buckets: bool = Field(
        default=True,
        description="Whether histograms are sent bucket by bucket too, which percentiles need. It is most of what a "
        "histogram adds to the data that is billed.",
    )
    timeout: Annotated[float, Duration("1ms", "5m")] = Field(
        default=10.0, description="Time for one delivery attempt."
    )

    @property
    def license_key(self) -> Secret:
        """ValueError where the configuration was loaded without its secrets."""
        if self.api_key is None:
            raise ValueError("the secrets were not read")
        return self.api_key

    @field_validator("url", "events_url", mode="after")
    @classmethod
    def _base(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if value.startswith("http://") and not _on_this_machine(value):
            raise problem("would send the license key in the clear", "https://, unless it is this machine")
        if value.endswith(("/metric/v1", "/events")):
            raise problem("must be a base address", "leave out the path of the API")
        return value

    @field_validator("proxy", mode="after")
    @classmethod
    def _plain_proxy(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("http://"):
            raise problem("must begin with http://", "what goes to https:// is encrypted in it too")
        return value

    @model_validator(mode="after")
    def _account(self, info: ValidationInfo) -> Self:
        """One license key, so one account, at both addresses."""
        if self.api_key is None:
            if info.context is None or info.context.secrets:
                raise problem("is missing", "New Relic takes nothing without", key="api_key")
        elif self.api_key.reveal().startswith("NRAK-"):
            raise problem("is a user key", "a license key is needed, of the type INGEST - LICENSE", key="api_key")
        elif self.api_key.reveal().startswith("eu") and self.region == "us" and self.url is None:
            raise problem("holds a license key of the EU", 'set region = "eu"', key="api_key")
        if self.url is None and self.events_url is not None:
            raise problem("needs url beside it", "both are of one account", key="events_url")
        if self.url is not None and self.events_url is None and self.changes:
            raise problem("needs events_url beside it", "or changes = false", key="url")
        return self


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "localhost.")
