"""How anything is written to the spool: one byte of version, then msgpack."""

from typing import Final, Generic, TypeVar

import msgspec

from forwarder.errors import CodecError

T = TypeVar("T")

# Fields may be appended to array-like structs: older rows are read with their defaults. Any other change of layout
# needs a new version here and a reader for the old one.
VERSION: Final = b"\x01"


class Codec(Generic[T]):
    """For values of one type. `what` names it in errors."""

    def __init__(self, type_: type[T], what: str) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(type_)
        self._what = what

    def encode(self, value: T) -> bytes:
        return VERSION + self._encoder.encode(value)

    def decode(self, data: bytes) -> T:
        """Read what `encode` wrote. Raises CodecError for anything else."""
        if data[:1] != VERSION:
            version = data[:1].hex() or "none"
            raise CodecError(f"{self._what} of codec version {version}; this release reads {VERSION.hex()}")
        try:
            return self._decoder.decode(memoryview(data)[1:])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CodecError(f"damaged {self._what}: {error}") from None
