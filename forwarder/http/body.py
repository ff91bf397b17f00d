"""A body read within a cap, as sent and as decoded.

httpx 0.28 decodes what one read brings at once: 64 KB of a gzip bomb become 67 MB before any cap could be asked.
"""

import io
import zlib
from collections.abc import AsyncIterator
from typing import Final

from forwarder.reply import Failure
from forwarder.transport.failures import Failed

_STEP: Final = 64 * 1024
_WBITS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's: gzip header, zlib header (RFC 9110 8.4.1)


async def read_body(chunks: AsyncIterator[bytes], encoding: str, limit: int) -> bytes:
    """The decoded body. Raises Failed with TOO_LARGE or ENCODING; holds never more than `limit` bytes and a step."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        body = io.BytesIO()  # its getvalue() does not copy
        async for chunk in chunks:
            _write(body, chunk, limit)
        return body.getvalue()
    if encoding not in _WBITS:
        raise Failed(Failure.ENCODING, "a content-encoding that was not asked for")
    return await _decoded(chunks, _WBITS[encoding], limit)


async def _decoded(chunks: AsyncIterator[bytes], wbits: int, limit: int) -> bytes:
    body = io.BytesIO()
    raw = 0
    decoder = zlib.decompressobj(wbits)
    async for chunk in chunks:
        raw += len(chunk)
        if raw > limit:
            raise Failed(Failure.TOO_LARGE, f"the body is over {limit} bytes")
        data = chunk
        while True:
            try:
                piece = decoder.decompress(data, _STEP)
            except zlib.error:
                raise Failed(Failure.ENCODING, "the compressed body is damaged") from None
            _write(body, piece, limit)
            if decoder.eof and decoder.unused_data:  # gzip allows several members, one after the other
                data, decoder = decoder.unused_data, zlib.decompressobj(wbits)
            elif decoder.eof or (not decoder.unconsumed_tail and len(piece) < _STEP):
                break
            else:
                data = decoder.unconsumed_tail
    if raw and not decoder.eof:
        raise Failed(Failure.ENCODING, "the compressed body is cut off")
    return body.getvalue()


def _write(body: io.BytesIO, piece: bytes, limit: int) -> None:
    if body.tell() + len(piece) > limit:
        raise Failed(Failure.TOO_LARGE, f"the body is over {limit} bytes")
    body.write(piece)
