"""What every table of the configuration is, and what those have in common that say how to reach a peer."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationInfo, field_validator
from pydantic_core import CoreSchema

from forwarder.config_references import OptionalFile, OptionalKeyFile, authorities, certificate
from forwarder.config_values import ProxyUrl, problem


class Table(BaseModel):
    """Strict, because TOML has types: "5" is not 5. Inputs are hidden, because a value may be a secret, misplaced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A table's own keys first, then those it shares with others: the order of a reader's interest."""
        found = handler.resolve_ref_schema(handler(schema))
        keys = found.get("properties", {})
        found["properties"] = {key: keys[key] for key in sorted(keys, key=lambda key: key not in cls.__annotations__)}
        return found


class Connection(Table):
    """How a peer is reached over HTTP."""

    proxy: ProxyUrl = Field(
        default=None, description="Forward proxy to go through. No variable such as `HTTPS_PROXY` is read."
    )
    ca_file: OptionalFile = Field(
        default=None, description="PEM file of the authorities to trust, instead of the system's."
    )
    client_cert: OptionalFile = Field(default=None, description="PEM file of the certificate to present.")
    client_key: OptionalKeyFile = Field(
        default=None,
        validate_default=True,
        description="PEM file of its private key, not encrypted. Default: it is in `client_cert`.",
    )

    @field_validator("ca_file", mode="after")
    @classmethod
    def _authorities(cls, value: Path | None) -> Path | None:
        if value is not None:
            authorities(value)
        return value

    @field_validator("client_key", mode="after")
    @classmethod
    def _pair(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        cert = info.data.get("client_cert")
        if cert is not None:
            certificate(cert, value)
        elif value is not None and "client_cert" in info.data:  # else it is wrong itself, and reported
            raise problem("needs client_cert beside it")
        return value
