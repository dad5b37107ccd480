"""The transport nbd against QEMU's real servers: rights, identity, TLS, healing, fencing, leftovers."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from storkit.core.backend import Client, Site
from storkit.core.errors import Conflict, HostUnreachable, NotFound, StorkitError, Unsafe, Unsupported, UsageError
from storkit.core.model import Offer, Secret, Volume
from storkit.nbd import Nbd
from storkit.system import locks
from storkit.system.nbdclient import FLUSH, WRITE, Connection, ask
from storkit.system.nbdserver import PLAIN_TCP, NbdSettings

pytestmark = pytest.mark.skipif(shutil.which("qemu-storage-daemon") is None, reason="qemu-system-common not installed")

MIB = 1 << 20
A, B, N = Client("a", True), Client("local:/tmp/b", True), Client("n", False)


class Hosts:
    """Hosts on this machine, each with directories of its own below a short path."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def site(self, name: str, address: str = "127.0.0.1") -> Site:
        base = self.root / name
        for directory in ("state", "run", "dev"):
            (base / directory).mkdir(parents=True, exist_ok=True)
        return Site(name, base / "state", base / "run", base / "dev", address)

    def nbd(self, name: str, **settings: Any) -> Nbd:
        return Nbd(self.site(name), NbdSettings(**settings))

    def volume(self, name: str = "disk", *, format: str = "raw", size: int = 16 * MIB, **fields: Any) -> Volume:
        path = self.root / f"{name}.{format}"
        subprocess.run(["qemu-img", "create", "-q", "-f", format, str(path), str(size)], check=True)
        return Volume(name, str(uuid.uuid4()), size, "pool", "a", format=format, path=str(path), **fields)

    def servers(self) -> list[int]:
        """The pids of all daemons that serve from these directories."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            except OSError:
                continue
            if words and words[0].endswith(b"qemu-storage-daemon") and str(self.root) in str(words):
                found.append(int(entry.name))
        return sorted(found)

    def leftovers(self) -> list[str]:
        """Every file, socket and link below the hosts' directories, but for the pool's lock files."""
        return sorted(
            str(path.relative_to(self.root))
            for host in self.root.iterdir()
            if host.is_dir() and host.name != "x509"
            for path in host.rglob("*")
            if (path.is_symlink() or not path.is_dir()) and path.parent.name != "use"
        )

    def assert_clean(self) -> None:
        deadline = time.monotonic() + 5
        while self.servers() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.servers() == []
        assert self.leftovers() == []


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    # Not tmp_path: pytest's names are too long for Unix sockets.
    root = Path(tempfile.mkdtemp(prefix="nbd", dir="/tmp"))
    made = Hosts(root)
    yield made
    for pid in made.servers():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(root)


def write(connection: Connection, offset: int, data: bytes) -> None:
    connection.request(WRITE, offset, payload=data)
    connection.request(FLUSH)


def refused() -> AbstractContextManager[object]:
    """The server's answer to a write on an export that may not: EROFS, which QEMU 7.2 puts on the wire as EINVAL."""
    return pytest.raises(OSError, match=r"Invalid argument|Operation not permitted")


def use(offer: Offer) -> Connection:
    """A client's connection to its own export over the Unix socket."""
    connection = Connection(offer.socket)
    connection.go(offer.name)
    return connection


def offer(home: Nbd, volume: Volume, client: Client) -> Offer:
    return home.offers([volume], client.name)[0]


def rights(home: Nbd, volume: Volume) -> dict[str, bool]:
    assert all(export.live for export in home.find_exports([volume.uuid]))
    return {export.client: export.writable for export in home.find_exports([volume.uuid])}


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_two_hosts_see_one_disk(hosts: Hosts, format: str) -> None:
    a, b = hosts.nbd("a"), hosts.nbd("b")
    volume = hosts.volume(format=format)
    exports = a.export([volume], [A, B])
    assert [(export.client, export.writable, export.live) for export in exports] == [
        ("a", False, True),
        ("local:/tmp/b", False, True),
    ]
    a.set_writers([volume], ["a"])
    with use(offer(a, volume, A)) as guest:
        write(guest, 0, b"storkit!" * 512)
    a.attach(a.offers([volume], "a"))
    (attachment,) = b.attach(a.offers([volume], B.name))
    assert attachment.path == str(hosts.root / "b/dev/disk")
    assert attachment.source.socket == attachment.path and attachment.source.kind == "network"
    assert b.find_attachments() == [attachment] == b.find_attachments([volume.uuid])
    (seen_a,), (seen_b,) = a.evidence([volume]), b.evidence([volume])
    assert seen_a.identity == seen_b.identity and volume.uuid in seen_a.identity
    assert seen_a.blocks == seen_b.blocks and len(seen_a.blocks) >= 12
    assert {"0", str(volume.size - 4096)} <= seen_a.blocks.keys()
    (only,) = b.evidence([volume], [4096])
    assert list(only.blocks) == ["4096"] and only.blocks["4096"] != seen_a.blocks["0"]
    listed = subprocess.run(["qemu-img", "info", attachment.source.uri], capture_output=True, text=True, check=True)
    assert "16 MiB" in listed.stdout
    assert subprocess.run(["qemu-img", "check", "-q", "-U", volume.path]).returncode in (0, 63)
    for host in (a, b):
        host.detach([volume])
        host.detach([volume])
    a.unexport([volume], ["a"])
    assert rights(a, volume) == {B.name: False}
    a.unexport([volume], [B.name])
    a.unexport([volume], [B.name])
    hosts.assert_clean()
    assert not locks.held(locks.use_lock(a.site.run, volume.uuid))


def test_only_a_writer_writes(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    a.export([volume], [A, B])
    a.set_writers([volume], ["a"])
    with use(offer(a, volume, A)) as on_a, use(offer(a, volume, B)) as on_b:
        write(on_a, 0, b"a" * 4096)
        with refused():
            write(on_b, 0, b"b" * 4096)
        assert on_b.read(0, 4096) == b"a" * 4096

        a.set_writers([volume], ["a", B.name])  # the window
        assert rights(a, volume) == {"a": True, B.name: True}
        write(on_a, 0, b"A" * 4096)  # the connection of the host whose right is the same was not cut
        with use(offer(a, volume, B)) as destination:
            write(destination, 4096, b"b" * 4096)

            a.set_writers([volume], [B.name])
            with pytest.raises(HostUnreachable):
                write(on_a, 0, b"x" * 4096)
            with use(offer(a, volume, A)) as again, refused():
                write(again, 0, b"x" * 4096)
            write(destination, 8192, b"b" * 4096)
            assert destination.read(0, 8192) == b"A" * 4096 + b"b" * 4096
    a.set_writers([volume], [])
    assert rights(a, volume) == {"a": False, B.name: False}
    with use(offer(a, volume, B)) as nobody, refused():
        write(nobody, 0, b"x" * 4096)


def test_no_write_of_a_revoked_host_lands_later(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume(size=64 * MIB)
    a.export([volume], [A, B])
    for _ in range(5):
        a.set_writers([volume], ["a"])
        connection = use(offer(a, volume, A))
        sent = threading.Event()

        def hammer(connection: Connection = connection, sent: threading.Event = sent) -> None:
            number = 0
            try:
                while True:
                    connection.request(WRITE, number % 64 * MIB, payload=b"a" * MIB)
                    number += 1
                    if number == 20:
                        sent.set()
            except (StorkitError, OSError):
                return

        thread = threading.Thread(target=hammer)
        thread.start()
        assert sent.wait(20)
        a.set_writers([volume], [B.name])
        with use(offer(a, volume, B)) as on_b:
            for number in range(64):
                on_b.request(WRITE, number * MIB, payload=b"b" * MIB)
            thread.join(20)
            assert not thread.is_alive()
            assert all(on_b.read(number * MIB, MIB) == b"b" * MIB for number in range(64))


def test_another_disk_at_the_same_socket_is_refused(hosts: Hosts) -> None:
    a, b = hosts.nbd("a"), hosts.nbd("b")
    volume = hosts.volume()
    a.export([volume], [B])
    good = offer(a, volume, B)
    a.unexport([volume], [B.name])
    for description, size, word in [
        (f"storkit:{uuid.uuid4()}:0", volume.size, "what answers"),
        (good.identity[:-1] + "x", volume.size, "what answers"),  # another server over a copy
        (good.identity, volume.size // 2, "bytes"),
    ]:
        other = hosts.volume("other", size=size)
        pidfile = hosts.root / "pid"
        subprocess.run(
            [
                *("qemu-nbd", "--fork", "--pid-file", str(pidfile), "-k", good.socket, "-x", good.name),
                *("-D", description, "-t", "-f", "raw", other.path),
            ],
            check=True,
        )
        try:
            with pytest.raises(Unsafe, match=word):
                b.attach([good])
        finally:
            os.kill(int(pidfile.read_text()), signal.SIGTERM)
        assert b.find_attachments() == []
        assert not os.path.lexists(hosts.root / "b/dev/disk")
    Path(good.socket).unlink(missing_ok=True)
    with pytest.raises(HostUnreachable):
        b.attach([good])
    hosts.assert_clean()


def test_names_and_files_of_others_are_left_alone(hosts: Hosts) -> None:
    a, b = hosts.nbd("a"), hosts.nbd("b")
    first, second = hosts.volume("one"), hosts.volume("two")
    twin = Volume("one", str(uuid.uuid4()), second.size, "pool", "a", format="raw", path=second.path)
    a.export([first, twin], [B])
    b.attach(a.offers([first], B.name))
    with pytest.raises(Conflict, match="another volume one"):
        b.attach(a.offers([twin], B.name))
    b.detach([twin])
    assert [attachment.uuid for attachment in b.find_attachments()] == [first.uuid]
    assert (hosts.root / "b/dev/one").is_symlink()
    b.detach([first])
    (hosts.root / "b/dev/one").write_text("mine")
    with pytest.raises(Conflict, match="did not make it"):
        b.attach(a.offers([first], B.name))
    b.detach([first])
    assert (hosts.root / "b/dev/one").read_text() == "mine"


def test_attaching_again_follows_a_restarted_server(hosts: Hosts) -> None:
    a, b = hosts.nbd("a"), hosts.nbd("b")
    volume = hosts.volume()
    a.export([volume], [A, B])
    a.set_writers([volume], ["a"])
    old = offer(a, volume, B)
    b.attach([old])
    (pid,) = hosts.servers()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not locks.held(locks.use_lock(a.site.run, volume.uuid)))
    assert [(export.client, export.writable, export.live) for export in a.find_exports()] == [
        ("a", True, False),
        (B.name, False, False),
    ]
    with pytest.raises(HostUnreachable):
        b.evidence([volume])
    (hosts.root / "b/dev/disk").unlink()  # as after a reboot
    assert [(export.client, export.writable, export.live) for export in a.restore()] == [
        ("a", True, True),
        (B.name, False, True),
    ]
    with pytest.raises(Unsafe, match="what answers"):
        b.attach([old])
    assert len(b.find_attachments()) == 1  # a refused attach takes nothing away
    b.restore()
    assert b.evidence([volume])[0].identity != old.identity
    b.attach(a.offers([volume], B.name))
    a.restore()
    assert len(hosts.servers()) == 1


def test_export_and_set_writers_heal_a_dead_server(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    a.export([volume], [A])
    a.set_writers([volume], ["a"])
    for heal in (lambda: a.export([volume], [A]), lambda: a.set_writers([volume], ["a"])):
        for pid in hosts.servers():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not hosts.servers())
        heal()
        assert rights(a, volume) == {"a": True}
    a.export([volume], [B])
    assert rights(a, volume) == {"a": True, B.name: False}


def test_who_may_never_write(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    golden, importing = hosts.volume("golden", kind="image"), hosts.volume("new", made="importing")
    a.export([golden, importing], [A])
    with pytest.raises(StorkitError) as refused:
        a.set_writers([golden, importing], ["a", "stranger"])
    assert [type(problem) for problem in refused.value.problems] == [Unsafe, NotFound, Unsafe, NotFound]  # type: ignore[attr-defined]
    assert rights(a, golden) == {"a": False}
    a.set_writers([golden, importing], [])


def test_a_volume_in_use_elsewhere_is_not_served(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    lock = locks.acquire(locks.use_lock(a.site.run, volume.uuid), "volume", holder="a resize")
    with pytest.raises(Conflict, match="a resize"):
        a.export([volume], [A])
    assert hosts.servers() == []
    a.unexport([volume], ["a"])
    assert locks.held(lock.path)
    lock.release()
    a.export([volume], [A])
    assert locks.held(lock.path)
    changed = Volume(**{**{f: getattr(volume, f) for f in volume.__slots__}, "size": 2 * volume.size})
    with pytest.raises(Conflict, match="as it was"):
        a.export([changed], [A])


def test_bad_requests_change_nothing(hosts: Hosts, tmp_path: Path) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    gone = Volume("gone", str(uuid.uuid4()), MIB, format="raw", path=str(tmp_path / "gone"))
    odd = Volume("odd", str(uuid.uuid4()), MIB, format="vmdk", path=volume.path)
    with pytest.raises(StorkitError) as refused:
        a.export([volume, gone, odd], [A])
    assert [type(problem) for problem in refused.value.problems] == [Conflict, UsageError]  # type: ignore[attr-defined]
    hosts.assert_clean()
    with pytest.raises(Unsupported, match="no address"):
        Nbd(hosts.site("a", address="")).export([volume], [N])
    hosts.assert_clean()
    deep = hosts.root / ("d" * 60) / ("e" * 40)
    long = Nbd(Site("long", deep / "state", deep / "run", deep / "dev"))
    with pytest.raises(Unsupported, match="107") as too_long:
        long.export([volume], [A])
    assert "shorter" in too_long.value.hint
    wrong = Volume("disk", volume.uuid, 2 * volume.size, format="raw", path=volume.path)
    with pytest.raises(Conflict, match="holds 16777216 bytes"):
        a.export([wrong], [A])
    a.unexport([wrong], ["a"])
    with pytest.raises(NotFound):
        a.offers([volume], "a")
    shutil.rmtree(hosts.root / ("d" * 60))
    hosts.assert_clean()


@pytest.mark.parametrize(
    "settings",
    [{"plain_tcp": "yes"}, {"port_first": 0}, {"port_first": 2, "port_last": 1}, {"tls": "x509"}, {"aio": "native"}],
)
def test_settings_that_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        NbdSettings(**settings)


def test_a_damaged_grant_is_named_and_kept(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume, other = hosts.volume(), hosts.volume("other")
    a.export([volume, other], [A])
    path = hosts.root / f"a/state/nbd/{volume.uuid}.json"
    path.write_text('{"volume": 1}')
    for verb in (a.find_exports, lambda: a.export([volume], [A]), lambda: a.set_writers([volume], ["a"])):
        with pytest.raises(Unsafe, match=str(path)):
            verb()
    with pytest.raises(Unsafe, match=str(path)):
        a.fence("a")
    assert path.read_text() == '{"volume": 1}'
    assert a.find_exports([other.uuid]) == []  # fenced all the same


def test_a_recycled_pid_is_not_killed(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    a.export([volume], [A])
    (pid,) = hosts.servers()
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        (pidfile,) = (hosts.root / "a/run/nbd").glob("*.pid")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not hosts.servers())
        pidfile.write_text(f"{bystander.pid}\n")
        a.unexport([volume], ["a"])
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    hosts.assert_clean()


def test_a_kernel_without_io_uring(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("qemu-storage-daemon")
    fake = hosts.root / "qemu-storage-daemon"
    fake.write_text(
        '#!/bin/sh\ncase "$*" in *\'"io_uring"\'*) echo "qemu-storage-daemon: failed to init linux io_uring ring: '
        f'Operation not permitted" >&2; exit 1;; esac\nexec {real} "$@"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{hosts.root}:{os.environ['PATH']}")
    a = hosts.nbd("a")
    volume = hosts.volume()
    a.export([volume], [A])
    assert rights(a, volume) == {"a": False}
    with pytest.raises(StorkitError, match="io_uring"):
        hosts.nbd("strict", aio="io_uring").export([hosts.volume("second")], [A])


def test_fencing(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volumes = [hosts.volume(name) for name in ("one", "two")]
    a.export(volumes, [A, B])
    a.export(volumes[:1], [N])
    a.set_writers(volumes, [B.name])
    with use(offer(a, volumes[0], B)) as on_b, use(offer(a, volumes[0], A)) as on_a:
        write(on_b, 0, b"b" * 4096)
        had = a.fence(B.name)
        assert [(export.volume, export.writable, export.live) for export in had] == [
            ("one", True, True),
            ("two", True, True),
        ]
        with pytest.raises(HostUnreachable):
            write(on_b, 0, b"x" * 4096)
        assert on_a.read(0, 4096) == b"b" * 4096  # the others go on
    assert {export.client for export in a.find_exports()} == {"a", "n"}
    assert a.fence(B.name) == []
    with pytest.raises(Unsafe, match="fenced"):
        a.export(volumes, [B])
    a.unfence(B.name)
    assert {export.client for export in a.find_exports()} == {"a", "n"}
    a.export(volumes, [B])
    assert rights(a, volumes[1]) == {"a": False, B.name: False}
    a.fence("n")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 10809), 1)


def test_fencing_past_a_server_that_hangs(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storkit.system.nbdserver._QMP_TIMEOUT", 0.5)
    monkeypatch.setattr("storkit.system.nbdclient.TIMEOUT", 0.5)
    a = hosts.nbd("a")
    volume = hosts.volume()
    a.export([volume], [A, B])
    a.set_writers([volume], ["a"])
    (pid,) = hosts.servers()
    os.kill(pid, signal.SIGSTOP)
    a.fence(B.name)
    assert pid not in hosts.servers()
    assert rights(a, volume) == {"a": True}


# TLS.


def test_tls_with_a_key(hosts: Hosts) -> None:
    a, n = hosts.nbd("a"), hosts.nbd("n")
    volume = hosts.volume()
    a.export([volume], [A, N, Client("m", False)])
    a.set_writers([volume], ["a"])
    mine, other = offer(a, volume, N), offer(a, volume, Client("m", False))
    assert mine.port != other.port and mine.credential is not None and mine.credential.secret != other.credential.secret  # type: ignore[union-attr]
    (attachment,) = n.attach([mine])
    assert (hosts.root / "n/dev/disk").readlink() == Path(attachment.source.uri)
    assert attachment.source.uri == f"nbds://127.0.0.1:{mine.port}/disk@n"
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
    with pytest.raises(HostUnreachable):
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
    with Connection(("127.0.0.1", given.port)) as rude:
        assert not rude.go(given.name).writable
        with refused():
            write(rude, 0, b"x" * 4096)
        a.set_writers([volume], ["n"])
        with pytest.raises(HostUnreachable):
            rude.read(0, 4096)
    with Connection(("127.0.0.1", given.port)) as writer:
        writer.go(given.name)
        write(writer, 0, b"n" * 4096)
        a.set_writers([volume], [])
        with pytest.raises(HostUnreachable):
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
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)
    a.export([volume], [N])
    assert offer(a, volume, N).port and rights(a, volume) == {"n": True}
    a.unexport([volume], ["n"])
    hosts.assert_clean()


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


# Many at once.


def test_twenty_volumes_in_one_pass(hosts: Hosts) -> None:
    a, b = hosts.nbd("a"), hosts.nbd("b")
    volumes = [hosts.volume(f"v{number}", size=MIB) for number in range(20)]
    started = time.monotonic()
    assert len(a.export(volumes, [A, B])) == 40
    exported = time.monotonic()
    a.set_writers(volumes, ["a"])
    granted = time.monotonic()
    assert len(b.attach(a.offers(volumes, B.name))) == 20
    attached = time.monotonic()
    assert len({evidence.identity for evidence in b.evidence(volumes)}) == 20
    proved = time.monotonic()
    b.detach(volumes)
    a.unexport(volumes, ["a", B.name])
    ended = time.monotonic()
    hosts.assert_clean()
    times = [exported - started, granted - exported, attached - granted, proved - attached, ended - proved]
    print("ms for 20: export, set_writers, attach, evidence, unexport:", [round(1000 * one) for one in times])
    assert sum(times) < 20


def test_two_commands_at_once(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    problems: list[BaseException] = []

    def work(client: Client) -> None:
        try:
            for _ in range(3):
                a.export([volume], [client])
                a.unexport([volume], [client.name])
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(Client(name, True),)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    hosts.assert_clean()


# Helpers.


def wait_until(true: Callable[[], bool], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


def io_arguments(source: Any) -> list[str]:
    from storkit.system.nbdattach import tls_credential

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


def test_the_lock_outlives_the_command_and_dies_with_the_server(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    a.export([volume], [A])
    path = locks.use_lock(a.site.run, volume.uuid)
    with path.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    (pid,) = hosts.servers()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not locks.held(path))
