"""Live migration between real QEMU processes, killed, hung and cut off at bad moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from storkit.core.errors import (
    CommandFailed,
    Conflict,
    StorkitError,
    TimedOut,
    Unsafe,
    Unsupported,
)
from storkit.core.model import DiskSource, Secret
from storkit.hypervisors._qemu.settings import QemuSettings
from storkit.system.run import run, which
from tests.e2e.qemuhosts import NAME, SLOW, Hosts, status, wait_until
from tests.guestkit import bootsector, log

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(which("qemu-system-x86_64") is None, reason="needs qemu-system-x86"),
]


def test_guest_moves_there_and_back_and_loses_nothing(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    here, there = hosts.a, hosts.b
    for _ in range(3):
        uri = there.receive(NAME, same_machine=True)
        assert there.receive(NAME, same_machine=True) == uri
        assert (status(here), status(there)) == ("running", "incoming")
        result = here.send(NAME, uri)
        assert result.total_ms > 0 and result.transferred > 0
        assert here.send(NAME, uri) == result
        assert (status(here), status(there)) == ("migrated", "arrived")
        there.resume(NAME)
        there.resume(NAME)
        assert (status(here), status(there)) == ("migrated", "running")
        here.retire(NAME)
        here.retire(NAME)
        assert status(here) == "stopped"
        hosts.writes_on()
        here, there = there, here
    here.stop(NAME, force=True)
    report = bootsector.verify(hosts.disk)
    assert report.clean, report
    assert report.last >= 80  # at the start, and after each of three moves
    assert b"c" not in hosts.console.read_bytes()


def test_linux_guest_moves_there_and_back_and_loses_nothing(hosts: Hosts) -> None:
    guest = hosts.linux()
    hosts.define(guest)
    begin = time.monotonic()
    with log.Watch(hosts.console) as watch:
        hosts.a.start(NAME)
        started = time.monotonic() - begin
        watch.wait_for(1)
        first = time.monotonic() - begin
        watch.wait_for(30)
        here, there = hosts.a, hosts.b
        results = []
        for _ in range(2):
            uri = there.receive(NAME, same_machine=True)
            results.append(here.send(NAME, uri))
            there.resume(NAME)
            here.retire(NAME)
            watch.wait_for_more(30)
            here, there = there, here
        here.stop(NAME)
        assert status(here) == "stopped"
        last = watch.last
    report = log.verify(hosts.disk)
    assert report.clean, report
    assert not report.recovered
    assert report.first == 1 and report.last >= last > 90
    moves = ", ".join(f"{result.total_ms} ms (downtime {result.downtime_ms} ms)" for result in results)
    print(
        f"start {started * 1000:.0f} ms, first write {first:.2f} s, moves {moves}, "
        f"longest gap from outside {watch.longest_gap_ms:.0f} ms, longest write {report.longest_stall_ms:.0f} ms"
    )


def test_awaited_guest_that_never_comes_is_retired(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    hosts.b.receive(NAME, same_machine=True)
    with pytest.raises(Conflict, match="incoming"):
        hosts.b.start(NAME)
    hosts.b.retire(NAME)
    assert (status(hosts.a), status(hosts.b)) == ("running", "stopped")
    with pytest.raises(Unsafe, match="running"):
        hosts.a.retire(NAME)
    with pytest.raises(Conflict, match="running"):
        hosts.a.receive(NAME, same_machine=True)


def test_destination_killed_in_the_middle_leaves_the_source_running(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    uri = hosts.b.receive(NAME, same_machine=True)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(hosts.host("a", SLOW).send, NAME, uri)
        assert hosts.moving.wait(30)
        os.kill(hosts.pid(hosts.b), signal.SIGKILL)
        with pytest.raises(CommandFailed) as caught:
            sending.result(30)
    assert "still running here" in caught.value.hint
    assert (status(hosts.a), status(hosts.b)) == ("running", "stopped")
    hosts.writes_on()
    hosts.a.send(NAME, hosts.b.receive(NAME, same_machine=True))
    hosts.b.resume(NAME)
    hosts.writes_on()
    hosts.end()
    assert bootsector.verify(hosts.disk).clean


def test_migration_that_the_destination_cannot_take_says_why_there(hosts: Hosts) -> None:
    guest = hosts.boot_sector()
    hosts.start(guest)
    hosts.b.define(replace(guest, memory=32 << 20), [DiskSource("file", str(hosts.disk))])
    uri = hosts.b.receive(NAME, same_machine=True)
    with pytest.raises(CommandFailed):
        hosts.a.send(NAME, uri)
    hosts.writes_on()
    wait_until(lambda: status(hosts.b) == "stopped", "the destination does not end")
    assert "Size mismatch" in hosts.b.messages(NAME)


def test_source_killed_in_the_middle_leaves_nothing_running(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    uri = hosts.b.receive(NAME, same_machine=True)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(hosts.host("a", SLOW).send, NAME, uri)
        assert hosts.moving.wait(30)
        os.kill(hosts.pid(hosts.a), signal.SIGKILL)
        with pytest.raises(StorkitError):
            sending.result(30)
    wait_until(lambda: (status(hosts.a), status(hosts.b)) == ("stopped", "stopped"), "something still runs")
    hosts.b.retire(NAME)
    hosts.b.start(NAME)
    hosts.writes_on()


def test_migration_goes_on_when_its_command_is_killed(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    uri = hosts.b.receive(NAME, same_machine=True)
    site = hosts.a.site
    script = f"""
from pathlib import Path
from storkit.core.backend import Site
from storkit.hypervisors._qemu.settings import QemuSettings
from storkit.hypervisors.qemu import Qemu
site = Site("a", Path({str(site.state)!r}), Path({str(site.run)!r}), Path({str(site.dev)!r}),
            progress=lambda fraction, text: print(fraction, flush=True))
Qemu(site, QemuSettings(accel="tcg", bandwidth=200_000)).send({NAME!r}, {uri!r})
"""
    sender = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert sender.stdout is not None
    sender.stdout.readline()
    sender.kill()
    sender.wait()
    sender.stdout.close()
    assert hosts.a.find()[0].migration == "active"
    result = hosts.a.send(NAME, uri)
    assert result.total_ms > 500
    hosts.b.resume(NAME)
    assert (status(hosts.a), status(hosts.b)) == ("migrated", "running")
    hosts.writes_on()


@pytest.mark.usefixtures("impatient")
def test_migration_that_does_not_move_is_given_up(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    uri = hosts.b.receive(NAME, same_machine=True)
    hung = hosts.pid(hosts.b)
    impatient = hosts.host("a", replace(SLOW, bandwidth=2_000_000, stall_timeout=1.0))
    os.kill(hung, signal.SIGSTOP)
    with pytest.raises(TimedOut):
        impatient.send(NAME, uri)
    os.kill(hung, signal.SIGCONT)
    hosts.b.stop(NAME, force=True)
    wait_until(lambda: status(hosts.a) == "running", "the source does not run on")
    hosts.writes_on()


def test_migration_over_tcp_is_encrypted_or_refused(hosts: Hosts) -> None:
    keys = hosts.base / "tls"
    keys.mkdir(mode=0o700)
    run(["psktool", "-u", "qemu", "-p", keys / "keys.psk"], package="gnutls-bin")
    hosts.start(hosts.boot_sector())
    with pytest.raises(Unsupported, match="no address"):
        hosts.b.receive(NAME, same_machine=False)
    tls = QemuSettings(accel="tcg", migration_tls="psk", migration_tls_dir=str(keys))
    uri = hosts.host("b", tls, address="127.0.0.1").receive(NAME, same_machine=False)
    assert uri.startswith("tcp:127.0.0.1:") and not uri.endswith(":0")
    assert hosts.host("b", tls, address="127.0.0.1").receive(NAME, same_machine=False) == uri
    with pytest.raises(CommandFailed):
        hosts.host("a", replace(tls, migration_tls="")).send(NAME, uri)
    assert status(hosts.a) == "running"
    hosts.b.retire(NAME)
    uri = hosts.host("b", tls, address="127.0.0.1").receive(NAME, same_machine=False)
    hosts.host("a", tls).send(NAME, uri)
    hosts.b.resume(NAME)
    assert (status(hosts.a), status(hosts.b)) == ("migrated", "running")
    hosts.writes_on()


def test_migration_between_machines_has_a_key_of_its_own(hosts: Hosts) -> None:
    """Without any setting: the destination makes a key, only its holder is let in, and it is gone afterwards."""
    hosts.start(hosts.boot_sector())
    there = hosts.host("b", address="127.0.0.1")
    uri = there.receive(NAME, same_machine=False)
    key = there.credential(NAME)
    assert key is not None and key.secret is not None and key.secret.reveal() not in repr(key)
    for wrong in (None, replace(key, secret=Secret("00" * 32))):
        with pytest.raises(CommandFailed):
            hosts.a.send(NAME, uri, wrong)
        assert status(hosts.a) == "running"
        there.retire(NAME)
        uri = there.receive(NAME, same_machine=False)
        key = there.credential(NAME)
        assert key is not None
    hosts.a.send(NAME, uri, key)
    there.resume(NAME)
    assert (status(hosts.a), status(there)) == ("migrated", "running")
    assert there.credential(NAME) is None
    hosts.a.retire(NAME)
    hosts.writes_on()
    assert list(hosts.base.rglob("keys.psk")) == []


def test_guest_that_has_not_arrived_cannot_go_on(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    hosts.b.receive(NAME, same_machine=True)
    with pytest.raises(Unsafe, match="inmigrate"):
        hosts.b.resume(NAME)
    hosts.b.retire(NAME)
