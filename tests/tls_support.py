"""What tests over TLS and through forward proxies share."""

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme
from backends.http_server import Answer, Request, Response


@dataclass(frozen=True)
class Authority:
    """A throw-away CA, and the files of what it signed."""

    ca: trustme.CA
    ca_file: Path
    client_cert: Path
    client_key: Path

    def server(self, *names: str, client_needed: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ("127.0.0.1", "localhost"))).configure_cert(context)
        if client_needed:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ca.configure_trust(context)
        return context


def made_in(folder: Path) -> Authority:
    ca = trustme.CA()
    made = Authority(ca, folder / "ca.pem", folder / "client.pem", folder / "client.key")
    client = ca.issue_cert("agent.test")
    ca.cert_pem.write_to_path(str(made.ca_file))
    client.cert_chain_pems[0].write_to_path(str(made.client_cert))
    client.private_key_pem.write_to_path(str(made.client_key))
    return made


async def relay(request: Request) -> Answer:
    """A forward proxy: CONNECT makes a tunnel, anything else is answered by the proxy itself."""
    if request.method != "CONNECT":
        return Response(200, b"through the proxy")
    host, _, port = request.path.rpartition(":")

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Established\r\n\r\n")
        await asyncio.gather(pump(reader, onward[1]), pump(onward[0], writer))

    return tunnel


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()
