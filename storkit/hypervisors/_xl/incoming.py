"""A migration's destination: a key for this one, and what takes the stream from the port to `xl migrate-receive`.

`-p` has the guest stand still when it has arrived, until storkit lets it go on. The threads live as long as the agent.
When the connection ends early, or the agent does, xl loses its output before its input: it then leaves a guest that is
here whole as it is, where it would otherwise destroy it, while its source may already have given it up.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

from storkit.core.errors import StorkitError, UsageError
from storkit.core.model import Credential, Secret
from storkit.hypervisors._xl import channel, toolstack
from storkit.hypervisors._xl.processes import GUEST
from storkit.hypervisors._xl.toolstack import PACKAGE
from storkit.system.files import write_atomic
from storkit.system.run import run
from storkit.system.timeouts import scaled

LOG = "received.log"
LOOK = "see what is there at the destination: storkit host check"
LONGEST = 7 * 24 * 3600.0
"""Seconds for one migration; what ends one that does not move is the source."""
LAST_MOMENTS = scaled(5.0)
"""Seconds for an xl to end after it has said that the guest is here."""
_streams: dict[Path, ssl.SSLSocket] = {}
_ended: dict[Path, threading.Event] = {}
"""Of each guest that comes or has come: when its xl ends."""
_whole: set[Path] = set()
"""Those whose xl has ended well."""
STARTED = b"Domain started successsfully."
"""What xl says, spelled so, of one that stands still under its own name too. Its status is 0 as well when it has
destroyed what came (migrate_receive() in tools/xl/xl_migrate.c)."""


def new_key(directory: Path) -> None:
    """A key and a certificate for one migration; those there are, if they were made already."""
    if (directory / channel.CERTIFICATE).exists():
        return
    key, certificate = directory / channel.KEY, directory / channel.CERTIFICATE
    made = directory / "new.pem"
    run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-batch",
         "-subj", "/CN=storkit", "-days", "30", "-keyout", key, "-out", made],
        package="openssl",
    )  # fmt: skip
    key.chmod(0o600)
    made.rename(certificate)


def read_key(directory: Path) -> Credential | None:
    """The key of the migration that is awaited, for its source."""
    names = (channel.CERTIFICATE, channel.KEY)
    if not (directory / channel.CERTIFICATE).exists():
        return None
    return Credential("x509", files={name: Secret((directory / name).read_text()) for name in names})


def write_key(directory: Path, credential: Credential) -> None:
    """Keep the key that the destination gave. Raises UsageError: it gave none."""
    if missing := [name for name in (channel.CERTIFICATE, channel.KEY) if name not in credential.files]:
        raise UsageError(f"the destination's credential has no {' and no '.join(missing)}", LOOK)
    for name in (channel.CERTIFICATE, channel.KEY):
        write_atomic(directory / name, credential.files[name].reveal())


def forget_key(directory: Path) -> None:
    for name in (channel.CERTIFICATE, channel.KEY):
        (directory / name).unlink(missing_ok=True)


def take(name: str, directory: Path, log: Path, connection: socket.socket) -> bool:
    """Receive guest `name` through this connection, if its other end shows the key of `directory`."""
    try:
        secured = channel.secure(connection.dup(), directory, server=True)
    except OSError:
        return False
    _streams[directory], _ended[directory] = secured, (ended := threading.Event())
    _whole.discard(directory)
    words = (name, directory, log, secured, ended)
    threading.Thread(target=_receive, args=words, name="migration", daemon=True).start()
    return True


def forget(directory: Path) -> None:
    """Know of none that has come."""
    _ended.pop(directory, None)


def cut(directory: Path) -> None:
    """End the connection of a migration that this process receives, and know of none that has come."""
    forget(directory)
    if secured := _streams.get(directory):
        with suppress(OSError):
            socket.socket.shutdown(secured, socket.SHUT_RDWR)


def came(directory: Path) -> bool:
    """Whether a guest has come to this process whole, by the word of the xl that received it: its name is its own, and
    it stands still. Told once: what becomes of it after that only xl's list says."""
    ended = _ended.pop(directory, None)
    if ended is None or not ended.wait(LAST_MOMENTS) or directory not in _whole:
        return False
    _whole.discard(directory)
    return True


def _receive(name: str, directory: Path, log: Path, secured: ssl.SSLSocket, ended: threading.Event) -> None:
    # In this order: of an agent that is killed the kernel lets go of what was opened last first, which is xl's output.
    to_xl, from_xl = os.pipe(), os.pipe()

    def xl() -> None:
        try:
            done = run(
                ["sh", "-c", 'exec 2>"$0"; exec "$@"', log, toolstack.path(), "migrate-receive", "-p"],
                stdin=to_xl[0], stdout=from_xl[1], timeout=LONGEST, ok=range(256), package=PACKAGE, env={GUEST: name},
            )  # fmt: skip
            if done.status == 0 and STARTED in log.read_bytes():
                _whole.add(directory)
        except StorkitError as error:
            write_atomic(log, f"{error.message}\n")
        finally:
            ended.set()
            os.close(to_xl[0])
            os.close(from_xl[1])

    running = threading.Thread(target=xl, name="migration-xl", daemon=True)
    running.start()
    try:
        channel.carry(secured, from_xl[0], to_xl[1])
    except OSError:
        pass
    finally:
        os.close(from_xl[0])
        os.close(to_xl[1])
        secured.close()
        running.join()
        _streams.pop(directory, None)
