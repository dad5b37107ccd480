"""The transport nbd against QEMU's real servers: rights, identity, and what is refused."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from storkit.core.backend import Site
from storkit.core.errors import (
    Conflict,
    NotFound,
    ServiceUnreachable,
    StorkitError,
    TimedOut,
    Unsafe,
    Unsupported,
    UsageError,
)
from storkit.core.model import Volume
from storkit.nbd import Nbd
from storkit.system import locks
from storkit.system.qemu.storagedaemon import listen_unix
from storkit.tech.nbd.wire import WRITE, NbdConnection
from tests.contract.rig import wait_until
from tests.e2e.nbdhosts import MIB, NEEDS_SERVER, A, B, Hosts, N, hosts, offer, refused, rights, use, write

__all__ = ["hosts"]

pytestmark = NEEDS_SERVER


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
            with pytest.raises(ServiceUnreachable):
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

        def hammer(connection: NbdConnection = connection, sent: threading.Event = sent) -> None:
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


@pytest.mark.parametrize("next_writers", [[], ["a"]])
def test_the_right_is_gone_only_when_the_last_write_is_done(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, next_writers: list[str]
) -> None:
    slow_storage(hosts.root, monkeypatch)
    a = hosts.nbd("a")
    volume = hosts.volume()
    a.export([volume], [A])
    a.set_writers([volume], ["a"])
    connection = use(offer(a, volume, A))
    connection.send(*((WRITE, number * MIB, b"a" * MIB) for number in range(12)))
    wait_until(lambda: Path(volume.path).read_bytes()[:1] == b"a")  # the server has begun, and has seconds to go
    with monkeypatch.context() as impatient:
        impatient.setattr("storkit.tech.nbd.server._QMP_TIMEOUT", 0.2)
        with pytest.raises(TimedOut):
            a.set_writers([volume], [])
    a.set_writers([volume], next_writers)
    then = Path(volume.path).read_bytes()
    assert rights(a, volume) == {"a": "a" in next_writers}
    a.unexport([volume], ["a"])
    assert Path(volume.path).read_bytes() == then


def slow_storage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that takes 2 MiB a second: the storage daemon is given a throttle below its image."""
    wrapper = root / "qemu-storage-daemon"
    wrapper.write_text(
        f"""#!{sys.executable}
import json, os, sys
words = sys.argv[1:]
place = words.index("--blockdev")
node = json.loads(words[place + 1])
node["file"] = {{"driver": "throttle", "throttle-group": "slow", "file": node["file"]}}
words[place:place + 2] = [
    "--object", "throttle-group,id=slow,x-bps-write=2097152,x-bps-write-max=2097152", "--blockdev", json.dumps(node)]
os.execv({shutil.which("qemu-storage-daemon")!r}, ["qemu-storage-daemon", *words])
"""
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{root}:{os.environ['PATH']}")


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
        other = hosts.volume(str(uuid.uuid4()), size=size)
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
            process = os.pidfd_open(int(pidfile.read_text()))
            signal.pidfd_send_signal(process, signal.SIGTERM)
            assert select.select([process], [], [], 10)[0]
            os.close(process)
        assert b.find_attachments() == []
        assert not os.path.lexists(hosts.root / "b/dev/disk")
    Path(good.socket).unlink(missing_ok=True)
    with pytest.raises(ServiceUnreachable):
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


def test_who_may_never_write(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    golden, importing = hosts.volume("golden", kind="image"), hosts.volume("new", made="importing")
    a.export([golden, importing], [A])
    with pytest.raises(StorkitError) as refused:
        a.set_writers([golden, importing], ["a", "stranger"])
    assert [type(problem) for problem in refused.value.problems] == [Unsafe, NotFound, Unsafe, NotFound]  # type: ignore[attr-defined]
    assert rights(a, golden) == {"a": False}
    a.set_writers([golden, importing], [])


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


@pytest.mark.parametrize("monitor", [True, False])
def test_a_server_that_is_just_dying_is_replaced(hosts: Hosts, monitor: bool) -> None:
    """The kernel closes its files one by one: its port may listen still when the monitor cuts, or takes nobody."""
    a, volume = hosts.nbd("a"), hosts.volume()
    a.export([volume], [A])
    a.set_writers([volume], ["a"])
    for pid in hosts.servers():
        os.kill(pid, signal.SIGKILL)
    run = hosts.root / "a/run"
    dying = locks.acquire(locks.use_lock(run, volume.uuid), "the volume", wait=30)
    ((port,), (told,)) = (list((run / "nbd").glob(pattern)) for pattern in ("*.sock", "*.qmp"))
    listeners = [listen_unix(port), listen_unix(told)]
    asked = threading.Event()

    def die() -> None:
        listeners[-1].accept()[0].close()
        asked.set()
        for listener in listeners:
            listener.close()
        dying.release()

    if not monitor:
        listeners.pop().close()
    thread = threading.Thread(target=die, daemon=True)
    thread.start()
    (export,) = a.restore()
    thread.join()
    assert export.live and asked.is_set() and rights(a, volume) == {"a": True}
