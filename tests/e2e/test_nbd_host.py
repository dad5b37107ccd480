"""The servers of the transport nbd on their host: healing, fencing, locks, many at once."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from typing import Any

import pytest

from storkit.core.errors import Conflict, ServiceUnreachable, StorkitError, TimedOut, Unsafe
from storkit.core.model import Client, Volume
from storkit.system import locks
from storkit.system.qemu.storagedaemon import Daemon
from storkit.tech.grants import GrantStore
from tests.contract.rig import wait_until
from tests.e2e.nbdhosts import MIB, NEEDS_SERVER, A, B, Hosts, N, hosts, offer, rights, use, write

__all__ = ["hosts"]

pytestmark = NEEDS_SERVER


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
        with pytest.raises(ServiceUnreachable):
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
    port = offer(a, volumes[0], N).port
    assert port in hosts.ports()
    a.fence("n")
    assert port not in hosts.ports()


def test_fencing_during_an_export(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    a.export([volume], [A])
    save = GrantStore.save

    def slow(self: GrantStore[Any], grants: Any) -> None:
        save(self, grants)
        self.fence(B.name)

    monkeypatch.setattr(GrantStore, "save", slow)
    with pytest.raises(Unsafe, match="fenced"):
        a.export([volume], [B])
    assert rights(a, volume) == {"a": False}


def test_fencing_past_a_server_that_hangs(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storkit.tech.nbd.server._QMP_TIMEOUT", 0.5)
    monkeypatch.setattr("storkit.tech.nbd.wire.TIMEOUT", 0.5)
    a = hosts.nbd("a")
    volume = hosts.volume()
    a.export([volume], [A, B])
    a.set_writers([volume], ["a"])
    (pid,) = hosts.servers()
    os.kill(pid, signal.SIGSTOP)
    a.fence(B.name)
    assert pid not in hosts.servers()
    assert rights(a, volume) == {"a": True}


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
        # Also while someone else holds the lock, so that something seems to run.
        lock = locks.acquire(hosts.root / "lock", "lock")
        pidfile.write_text(f"{bystander.pid}\n")
        with pytest.raises(TimedOut):
            Daemon("a server", pidfile, lock.path).stop(kill=True, timeout=0.2)
        assert bystander.poll() is None
        pidfile.unlink()
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
    with pytest.raises(ServiceUnreachable):
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
