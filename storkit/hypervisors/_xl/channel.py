"""The channel that a guest's memory takes from `xl migrate` to `xl migrate-receive`: one TCP connection with TLS.

xl's own way is ssh from host to host. Here the destination makes a key and a certificate for this one migration, which
both ends show and expect, and which the source gets over the agents' connections. This file is also the program that
`xl migrate -s` runs: it imports nothing of storkit's, so that it starts at once.
"""

from __future__ import annotations

import json
import os
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path

KEY, CERTIFICATE = "key.pem", "cert.pem"
TO = "to.json"
"""Address and port of the destination, for the program."""
SENT = "sent"
"""How many bytes the program has sent so far."""
PIECE = 256 << 10
HANDSHAKE_TIMEOUT = 10.0
"""Seconds; the other end answers at once."""
DEAD = 60
"""Seconds after which an end that does not answer is given up, whatever xl waits for."""
_IGNORE_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME: the clocks of two hosts may differ, and the certificate lives for one migration."""


def secure(connection: socket.socket, directory: Path, *, server: bool) -> ssl.SSLSocket:
    """The connection with TLS, both ends known by the certificate in `directory`. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(directory / CERTIFICATE, directory / KEY)
    context.load_verify_locations(directory / CERTIFICATE)
    context.verify_flags |= _IGNORE_TIME
    if server:
        context.num_tickets = 0
    connection.settimeout(HANDSHAKE_TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, DEAD // 4),
        (socket.TCP_KEEPINTVL, DEAD // 8),
        (socket.TCP_KEEPCNT, 6),
        (socket.TCP_USER_TIMEOUT, DEAD * 1000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    secured = context.wrap_socket(connection, server_side=server)
    shown = secured.getpeercert(binary_form=True)
    if shown != ssl.PEM_cert_to_DER_cert((directory / CERTIFICATE).read_text()):
        secured.close()
        raise ssl.SSLCertVerificationError("the other end shows another certificate")
    return secured


def carry(connection: ssl.SSLSocket, source: int, sink: int, count: Callable[[int], None] = lambda sent: None) -> None:
    """Send what `source` has, and write what comes to `sink`, until one of them ends. Raises OSError.

    `count` is told the bytes sent so far.
    """
    connection.setblocking(False)
    network, sent = connection.fileno(), 0
    while True:
        ready = [network] if connection.pending() else select.select([network, source], [], [])[0]
        if network in ready:
            try:
                data = connection.recv(PIECE)
            except ssl.SSLWantReadError:
                pass
            else:
                if not data:
                    return
                _write(sink, data)
        if source in ready:
            data = os.read(source, PIECE)
            if not data:
                return
            _send(connection, data)
            sent += len(data)
            count(sent)


def _write(sink: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(sink, left) :]


def _send(connection: ssl.SSLSocket, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[connection.send(left) :]
        except ssl.SSLWantWriteError:
            select.select([], [connection], [])
        except ssl.SSLWantReadError:
            select.select([connection], [], [])


def main() -> None:
    """The source's end, whose directory is the last argument: stdin and stdout are `xl migrate`'s."""
    there = Path(sys.argv[-1])
    to = json.loads((there / TO).read_text())
    told = os.open(there / SENT, os.O_WRONLY | os.O_CREAT, 0o600)
    last = 0.0

    def count(sent: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            os.pwrite(told, f"{sent:020}".encode(), 0)

    where = f"{to['address']} port {to['port']}"
    try:
        connection = socket.create_connection((to["address"], to["port"]), HANDSHAKE_TIMEOUT)
        secured = secure(connection, there, server=False)
    except OSError as error:
        sys.exit(f"storkit: {where} cannot be connected to: {error}")
    try:
        with secured:
            carry(secured, 0, 1, count)
    except OSError as error:
        sys.exit(f"storkit: the connection to {where} is lost: {error}")
