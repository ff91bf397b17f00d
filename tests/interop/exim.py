"""A real mail server: Exim, as Debian builds it, with TLS, a log-in and a Maildir. Needs no root, and takes none."""

import asyncio
import contextlib
import email
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest
import trustme

from interop.places import servers
from interop.servers import PATIENCE, free_port

USER, PASSWORD = "agent@example.test", "canary-5f1d0c2e"
NOBODY = 65534  # who runs it where the tests are root
CONFIG = """
exim_user = {uid}
exim_group = {gid}
primary_hostname = mail.example.test
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
pid_file_path = {folder}/pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
tls_advertise_hosts = *
tls_certificate = {folder}/tls.pem
auth_advertise_hosts = ${{if def:tls_in_cipher {{*}}{{}}}}
deliver_drop_privilege = true
host_lookup =
rfc1413_query_timeout = 0s
keep_environment =
acl_smtp_rcpt = who
acl_smtp_data = accept
begin acl
who:
  deny !authenticated = *
       message = log in first
  deny local_parts = nobody
       message = no such user here
  accept
begin routers
all:
  driver = accept
  transport = box
begin transports
box:
  driver = appendfile
  directory = {folder}/mail
  maildir_format
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_condition = ${{if and{{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
"""


def unpacked() -> Path:
    """Where mailserver.sh has put it. Skips the test, and says so, where it has not."""
    folder = servers() / "mail"
    if not (folder / "usr/sbin/exim4").is_file():
        pytest.skip(f"NOT TESTED against a real mail server: no usr/sbin/exim4 below {folder}")
    return folder


class Exim:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.ca_file = folder / "ca.pem"
        self._process: asyncio.subprocess.Process | None = None

    def url(self, more: str = "&to=ops@example.test", password: str = PASSWORD) -> str:
        login = f"{USER.replace('@', '%40')}:{password}"
        return f"mailtos://{login}@127.0.0.1:{self.port}/?from={USER}&mode=starttls{more}"

    def mails(self) -> list[EmailMessage]:
        """Everything in the mailbox, oldest first: the names begin with the time of delivery."""
        found = []
        for path in sorted((self.folder / "mail/new").glob("*")):
            message = email.message_from_bytes(path.read_bytes(), policy=default)
            assert isinstance(message, EmailMessage)
            found.append(message)
        return found

    def log(self) -> str:
        return (self.folder / "log/mainlog").read_text()

    async def start(self) -> None:
        ids = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
        libraries = next((self.folder / "exim/usr/lib").glob("*-linux-gnu"))
        self._process = await asyncio.create_subprocess_exec(
            str(self.folder / "exim/usr/sbin/exim4"),
            "-bdf",
            "-C",
            str(self.folder / "exim.conf"),
            env={
                "PATH": "/usr/bin:/bin",
                "LD_LIBRARY_PATH": str(libraries),
                "LD_PRELOAD": str(libraries / "libnss_wrapper.so"),
                "NSS_WRAPPER_PASSWD": str(self.folder / "passwd"),
                "NSS_WRAPPER_GROUP": str(self.folder / "group"),
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            **ids,  # type: ignore[arg-type]
        )
        async with asyncio.timeout(PATIENCE):
            while True:
                assert self._process.returncode is None, "Exim does not start"
                with contextlib.suppress(ConnectionRefusedError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        if self._process is not None:
            await self._process.wait()


def prepare(folder: Path) -> Exim:
    """Everything it needs, in a folder that it may use: what is below a home folder it may not even read."""
    shutil.copytree(unpacked(), folder / "exim", symlinks=True)
    uid, gid = (NOBODY, NOBODY) if os.getuid() == 0 else (os.getuid(), os.getgid())
    server = Exim(folder, free_port())
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(server.ca_file))
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "tls.pem"))
    (folder / "passwd").write_text(f"Debian-exim:x:{uid}:{gid}::/nonexistent:/bin/false\n")
    (folder / "group").write_text(f"Debian-exim:x:{gid}:\n")
    values = {"uid": uid, "gid": gid, "folder": folder, "port": server.port, "user": USER, "password": PASSWORD}
    (folder / "exim.conf").write_text(CONFIG.format(**values))
    for name in ("spool", "log", "mail"):
        (folder / name).mkdir()
    if os.getuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, gid, follow_symlinks=False)
    return server


@contextlib.asynccontextmanager
async def exim() -> AsyncIterator[Exim]:
    """A running one. Killed on leaving."""
    with tempfile.TemporaryDirectory(prefix="exim-") as name:
        server = prepare(Path(name))
        await server.start()
        try:
            yield server
        finally:
            await server.kill()
