"""The transport nbd over the network: TLS with keys and certificates, ports, addresses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storkit.core.errors import Conflict, ServiceUnreachable, StorkitError, Unsafe, UsageError
from storkit.core.model import Client, Offer, Secret
from storkit.nbd import Nbd
from storkit.tech.nbd.server import PLAIN_TCP, NbdSettings
from storkit.tech.nbd.wire import NbdConnection, ask
from tests.contract.rig import wait_until
from tests.e2e.nbdhosts import NEEDS_SERVER, A, B, Hosts, N, hosts, offer, refused, rights, use, write

__all__ = ["hosts"]

pytestmark = NEEDS_SERVER


def test_tls_with_a_key(hosts: Hosts) -> None:
    a, n = hosts.nbd("a"), hosts.nbd("n")
    volume = hosts.volume()
    a.export([volume], [A, N, Client("m", False)])
    a.set_writers([volume], ["a"])
    mine, other = offer(a, volume, N), offer(a, volume, Client("m", False))
    assert mine.port != other.port and mine.credential is not None and mine.credential.secret != other.credential.secret  # type: ignore[union-attr]
    (attachment,) = n.attach([mine])
    assert (hosts.root / "n/dev/disk").readlink() == Path(attachment.source.uri)
    assert attachment.source.uri.startswith(f"nbds://127.0.0.1:{mine.port}/disk@n+")
    with use(offer(a, volume, A)) as guest:
        write(guest, 0, b"first" * 1000)
    a.attach(a.offers([volume], "a"))
    (seen_a,), (seen_n,) = a.evidence([volume]), n.evidence([volume])
    assert (seen_a.identity, seen_a.size, seen_a.blocks) == (seen_n.identity, seen_n.size, seen_n.blocks)

    assert "Permission denied" in write_by_tool(attachment.source, b"n")
    a.set_writers([volume], ["a", "n"])
    assert write_by_tool(attachment.source, b"n") == ""
    with use(offer(a, volume, A)) as guest:
        assert guest.read(0, 4096) == b"n" * 4096
    a.set_writers([volume], ["a"])
    assert "Permission denied" in write_by_tool(attachment.source, b"x")
    assert offer(a, volume, N).port == mine.port

    # The server refuses a wrong key, another client's key and a client without TLS.
    for wrong in ("00" * 32, other.credential.secret.reveal()):  # type: ignore[union-attr]
        keys = hosts.root / "n/state/nbd/attached" / volume.uuid / "keys.psk"
        assert keys.stat().st_mode & 0o777 == 0o600
        keys.write_text(f"storkit:{wrong}\n")
        with pytest.raises(Unsafe, match="do not accept"):
            n.evidence([volume])
    with pytest.raises(Unsafe, match="TLS"):
        ask(("127.0.0.1", mine.port), mine.name)
    n.attach([mine])
    n.evidence([volume])

    # No secret in any argument vector, or in a file that others may read.
    secret = mine.credential.secret
    assert secret is not None and repr(secret) == "***"
    for pid in hosts.servers():
        assert secret.reveal() not in Path(f"/proc/{pid}/cmdline").read_text()
    for path in hosts.root.rglob("*"):
        if path.is_file() and secret.reveal() in path.read_text(errors="replace"):
            assert path.stat().st_mode & 0o077 == 0, path

    for pid in hosts.servers():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not hosts.servers())
    with pytest.raises(ServiceUnreachable):
        n.evidence([volume])
    assert all(export.live for export in a.restore())
    assert n.evidence([volume])[0].blocks.keys() == seen_n.blocks.keys()  # the same port, the same key
    for host in (a, n):
        host.detach([volume])
    a.unexport([volume], ["a", "n", "m"])
    hosts.assert_clean()


def test_a_revoked_tls_connection_is_cut(hosts: Hosts) -> None:
    a, n = hosts.nbd("a"), hosts.nbd("n")
    volume = hosts.volume()
    a.export([volume], [N, B])
    a.set_writers([volume], ["n"])
    (attachment,) = n.attach([offer(a, volume, N)])
    tool = subprocess.Popen(
        io_arguments(attachment.source),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert tool.stdin and tool.stdout
    tool.stdin.write("write -P 1 0 4096\n")
    tool.stdin.flush()
    line = tool.stdout.readline()
    while "wrote 4096/4096" not in line:
        assert line, "qemu-io ended"
        line = tool.stdout.readline()
    a.set_writers([volume], [B.name])
    output, _ = tool.communicate("write -P 2 0 4096\nflush\nquit\n", timeout=20)
    assert "failed" in output
    with use(offer(a, volume, B)) as on_b:
        assert on_b.read(0, 4096) == b"\1" * 4096


def test_tls_with_certificates(hosts: Hosts) -> None:
    if shutil.which("certtool") is None:
        pytest.skip("gnutls-bin not installed")
    authority = make_authority(hosts.root / "x509")
    server = authority("server", "127.0.0.1")
    a = hosts.nbd("a", tls="x509", tls_dir=str(server))
    n = hosts.nbd("n", tls="x509", tls_dir=str(authority("client", "n")))
    m = hosts.nbd("m", tls="x509", tls_dir=str(authority("client", "m")))
    volume = hosts.volume()
    with pytest.raises(UsageError, match="server-cert"):
        hosts.nbd("b", tls="x509", tls_dir=n.settings.tls_dir).export([volume], [N])
    a.export([volume], [N])
    given = offer(a, volume, N)
    assert given.credential is not None and given.credential.method == "x509" and given.credential.secret is None
    (attachment,) = n.attach([given])
    assert attachment.source.tls == "x509" and attachment.source.tls_dir == n.settings.tls_dir
    assert n.evidence([volume])[0].identity == given.identity
    with pytest.raises(StorkitError):
        m.attach([given])  # a certificate of the same authority, for another host
    assert m.find_attachments() == []
    n.detach([volume])
    a.unexport([volume], ["n"])
    hosts.assert_clean()


def test_plain_tcp_only_in_so_many_words(hosts: Hosts) -> None:
    a, n = hosts.nbd("a", plain_tcp=PLAIN_TCP), hosts.nbd("n")
    volume = hosts.volume()
    a.export([volume], [N])
    given = offer(a, volume, N)
    assert given.credential is None
    (attachment,) = n.attach([given])
    assert attachment.source.uri.startswith("nbd://127.0.0.1:")
    assert n.evidence([volume])[0].identity == given.identity
    # The front refuses what a client without manners asks; QEMU's would not even try.
    with NbdConnection(("127.0.0.1", given.port)) as rude:
        assert not rude.go(given.name).writable
        with refused():
            write(rude, 0, b"x" * 4096)
        a.set_writers([volume], ["n"])
        with pytest.raises(ServiceUnreachable):
            rude.read(0, 4096)
    with NbdConnection(("127.0.0.1", given.port)) as writer:
        writer.go(given.name)
        write(writer, 0, b"n" * 4096)
        a.set_writers([volume], [])
        with pytest.raises(ServiceUnreachable):
            write(writer, 0, b"x" * 4096)
    assert Path(volume.path).read_bytes()[:4096] == b"n" * 4096


def test_a_host_that_moves_nearer(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    a.export([volume], [N])
    a.set_writers([volume], ["n"])
    port = offer(a, volume, N).port
    a.export([volume], [Client("n", True)])
    assert offer(a, volume, N).socket and rights(a, volume) == {"n": True}
    assert port not in hosts.ports()
    a.export([volume], [N])
    assert offer(a, volume, N).port and rights(a, volume) == {"n": True}
    a.unexport([volume], ["n"])
    hosts.assert_clean()


def test_an_address_of_ipv6(hosts: Hosts) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    a, n = Nbd(hosts.site("a", "::1")), hosts.nbd("n")
    volume = hosts.volume()
    a.export([volume], [N])
    (attachment,) = n.attach(a.offers([volume], "n"))
    assert attachment.source.uri.startswith("nbds://[::1]:")
    assert n.evidence([volume])[0].size == volume.size


def test_a_taken_port_is_passed_over(hosts: Hosts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        a = hosts.nbd("a", port_first=port, port_last=port + 5)
        volume = hosts.volume()
        a.export([volume], [N])
        assert offer(a, volume, N).port > port
        full = hosts.nbd("full", port_first=port, port_last=port)
        with pytest.raises(Conflict, match="free"):
            full.export([hosts.volume("second")], [N])


def io_arguments(source: Any) -> list[str]:
    from storkit.tech.nbd.attach import tls_credential

    server = {"type": "inet", "host": source.server, "port": str(source.port)}
    node = {"driver": "nbd", "server": server, "export": source.export, "tls-creds": "tls0"}
    image = "json:" + json.dumps({"driver": "raw", "file": node})
    return ["qemu-io", "-t", "none", "--object", json.dumps(tls_credential(source)), image]


def write_by_tool(source: Any, byte: bytes) -> str:
    """What qemu-io has to say against a write by this attachment; nothing if it went well."""
    command = f"write -P {byte[0]} 0 4096"
    done = subprocess.run([*io_arguments(source), "-c", command], capture_output=True, text=True, timeout=30)
    if "wrote 4096/4096" in done.stdout:
        return ""
    return done.stdout + done.stderr


def make_authority(root: Path) -> Callable[[str, str], Path]:
    """A certificate authority; the result makes directories as QEMU's tls-creds-x509 takes them."""
    root.mkdir()

    def certtool(*words: str) -> None:
        subprocess.run(["certtool", *words], check=True, capture_output=True)

    certtool("--generate-privkey", "--key-type", "ecdsa", "--outfile", str(root / "ca-key.pem"))
    (root / "ca.info").write_text("cn = lab\nca\ncert_signing_key\n")
    ca = ["--load-privkey", str(root / "ca-key.pem"), "--template", str(root / "ca.info")]
    certtool("--generate-self-signed", *ca, "--outfile", str(root / "ca-cert.pem"))

    def make(role: str, name: str) -> Path:
        directory = root / name
        directory.mkdir()
        shutil.copy(root / "ca-cert.pem", directory)
        key, info = directory / f"{role}-key.pem", directory / "info"
        certtool("--generate-privkey", "--key-type", "ecdsa", "--outfile", str(key))
        address = f"ip_address = {name}\n" if role == "server" else ""
        info.write_text(f"organization = Lab\ncn = {name}\ntls_www_{role}\nsigning_key\n{address}")
        signer = ["--load-ca-certificate", str(root / "ca-cert.pem"), "--load-ca-privkey", str(root / "ca-key.pem")]
        certtool("--generate-certificate", "--load-privkey", str(key), *signer, "--template", str(info))
        certtool(
            *("--generate-certificate", "--load-privkey", str(key), *signer, "--template", str(info)),
            *("--outfile", str(directory / f"{role}-cert.pem")),
        )
        return directory

    return make


def test_secrets_stay_out_of_offers_as_json(hosts: Hosts) -> None:
    from storkit.core import codec

    a = hosts.nbd("a")
    volume = hosts.volume()
    a.export([volume], [N])
    given = offer(a, volume, N)
    assert given.credential is not None and isinstance(given.credential.secret, Secret)
    assert given.credential.secret.reveal() not in json.dumps(codec.dump(given))
    assert codec.load(Offer, codec.dump(given, reveal=True)) == given


@pytest.mark.parametrize(
    "settings",
    [
        {"plain_tcp": "yes"},
        {"port_first": 0},
        {"port_first": 2, "port_last": 1},
        {"tls": "x509"},
        {"aio": "native"},
        {"keepalive_time": -1},
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        NbdSettings(**settings)
