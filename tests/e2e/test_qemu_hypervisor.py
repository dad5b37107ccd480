"""Real QEMU processes of two hosts on one machine: guests start, move live, and are killed at bad moments."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from storkit.core.backend import Site
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    StorkitError,
    TimedOut,
    Unsafe,
    Unsupported,
    UsageError,
)
from storkit.core.model import DiskSource, Secret
from storkit.core.registry import hypervisor
from storkit.guests.record import Boot, Disk, Guest
from storkit.hypervisors._qemu_host import accelerator, parse_machines
from storkit.hypervisors.qemu import Qemu, QemuSettings
from storkit.system.files import make_private
from storkit.system.run import run, which
from tests.guestkit import bootsector, linux, log

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(which("qemu-system-x86_64") is None, reason="needs qemu-system-x86"),
]

NAME = "g1"
SLOW = QemuSettings(accel="tcg", bandwidth=100_000)
"""So slow that a test can act in the middle of a migration."""


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout:g} s")
        time.sleep(0.005)


class Hosts:
    """Two hosts, a and b, and the disk that both reach."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.disk = base / "disk.img"
        self.moving = threading.Event()
        self.a = self.host("a")
        self.b = self.host("b")

    def host(self, name: str, settings: QemuSettings | None = None, address: str = "") -> Qemu:
        place = self.base / name
        site = Site(name, place / "state", place / "run", place / "dev", address, self._progress)
        for directory in (site.state, site.run, site.dev):
            make_private(directory)
        return Qemu(site, settings or QemuSettings(accel="tcg"))

    def _progress(self, fraction: float, text: str) -> None:
        if fraction > 0:
            self.moving.set()

    @property
    def console(self) -> Path:
        return self.base / "console"

    def boot_sector(self, name: str = NAME) -> Guest:
        bootsector.make_disk(self.disk)
        disk = Disk("v1", uuid=str(uuid.uuid4()))
        return Guest(name, str(uuid.uuid4()), 16 << 20, disks=[disk], console=str(self.console))

    def linux(self) -> Guest:
        kit = linux.build()
        shutil.copyfile(kit.root, self.disk)
        return linux.guest(kit, NAME, str(uuid.uuid4()), Disk("v1", uuid=str(uuid.uuid4())), str(self.console))

    def define(self, guest: Guest) -> None:
        """On a, and on b with a's machine type."""
        source = [DiskSource("file", str(self.disk))]
        self.a.define(guest, source)
        self.b.define(guest, source, self.a.find([guest.name])[0].machine)

    def start(self, guest: Guest) -> None:
        self.define(guest)
        self.a.start(guest.name)
        self.writes_on()

    def writes_on(self, count: int = 20) -> None:
        """Wait for further records: the guest runs, and its disk takes them."""
        last = bootsector.last_record(self.disk)
        wait_until(lambda: bootsector.last_record(self.disk) >= last + count, "the guest does not write")

    def pid(self, host: Qemu) -> int:
        return host.find([NAME])[0].pid

    def end(self) -> None:
        for host in (self.a, self.b):
            for state in host.find():
                host.stop(state.name, force=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="sk-") as base:
        both = Hosts(Path(base))
        try:
            yield both
        finally:
            both.end()


def status(host: Qemu) -> str:
    return host.find([NAME])[0].status


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
    assert report.last > 80
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


def test_killed_linux_guest_leaves_a_log_without_holes(hosts: Hosts) -> None:
    hosts.define(hosts.linux())
    with log.Watch(hosts.console) as watch:
        hosts.a.start(NAME)
        watch.wait_for(30)
        os.kill(hosts.pid(hosts.a), signal.SIGKILL)
        wait_until(lambda: status(hosts.a) == "stopped", "the killed guest still lives")
        watch.wait_for(watch.last)
        hosts.a.start(NAME)
        watch.wait_for_more(10)
        hosts.a.stop(NAME)
    report = log.verify(hosts.disk)
    assert report.clean, report
    assert report.last >= watch.last


def test_start_is_quick_to_say_so_when_it_runs(hosts: Hosts) -> None:
    guest = hosts.boot_sector()
    hosts.define(guest)
    assert status(hosts.a) == "stopped"
    state = hosts.a.start(NAME)
    assert state.status == "running" and state.machine.startswith("pc-i440fx-")
    assert state.volumes == {guest.disks[0].uuid: "v1"}
    assert hosts.a.start(NAME).pid == state.pid


def test_many_starts_at_once_give_one_guest(hosts: Hosts) -> None:
    hosts.define(hosts.boot_sector())
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda _: hosts.a.start(NAME), range(8)))
    assert len({state.pid for state in states}) == 1
    assert {state.status for state in states} == {"running"}


def test_start_that_fails_says_why_and_leaves_nothing(hosts: Hosts) -> None:
    hosts.define(hosts.boot_sector())
    hosts.disk.unlink()
    with pytest.raises(CommandFailed, match=r"disk\.img.*No such file") as caught:
        hosts.a.start(NAME)
    assert "args" in caught.value.hint
    assert status(hosts.a) == "stopped"


def test_second_start_on_another_host_is_refused_by_the_image_lock(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    with pytest.raises(CommandFailed, match="another process using the image"):
        hosts.b.start(NAME)
    assert (status(hosts.a), status(hosts.b)) == ("running", "stopped")


def test_guest_without_acpi_does_not_stop_by_itself(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    with pytest.raises(TimedOut) as caught:
        hosts.a.stop(NAME, timeout=0.3)
    assert caught.value.hint == f"storkit guest stop {NAME} --force"
    assert status(hosts.a) == "running"
    hosts.a.stop(NAME, force=True)
    hosts.a.stop(NAME, force=True)
    assert status(hosts.a) == "stopped"


def test_killed_guest_is_stopped_and_starts_again(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    os.kill(hosts.pid(hosts.a), signal.SIGKILL)
    wait_until(lambda: status(hosts.a) == "stopped", "the killed guest still lives")
    before = bootsector.last_record(hosts.disk)
    hosts.a.start(NAME)
    hosts.writes_on()
    hosts.a.stop(NAME, force=True)
    report = bootsector.verify(hosts.disk)
    assert not report.gaps and not report.torn and report.last > before


def test_guest_that_hangs_is_unknown_and_left_alone(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    pid = hosts.pid(hosts.a)
    os.kill(pid, signal.SIGSTOP)
    try:
        state = hosts.a.find()[0]
        assert (state.status, state.pid) == ("unknown", pid)
        with pytest.raises(Unsafe, match="unknown"):
            hosts.a.retire(NAME)
        with pytest.raises(Conflict, match="does not answer"):
            hosts.a.stop(NAME)
        with pytest.raises(Conflict, match="has a process"):
            hosts.a.undefine(NAME)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: status(hosts.a) == "running", "the guest does not come back")


def test_guest_that_hangs_can_be_stopped_by_force(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    os.kill(hosts.pid(hosts.a), signal.SIGSTOP)
    hosts.a.stop(NAME, force=True)
    assert status(hosts.a) == "stopped"


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
from storkit.hypervisors.qemu import Qemu, QemuSettings
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


def test_defining_a_running_guest_anew_is_refused(hosts: Hosts) -> None:
    guest = hosts.boot_sector()
    hosts.start(guest)
    source = [DiskSource("file", str(hosts.disk))]
    assert hosts.a.define(guest, source) == str(hosts.a.site.state / "qemu" / NAME / "args")
    with pytest.raises(Conflict, match="another guest"):
        hosts.a.define(replace(guest, uuid=str(uuid.uuid4())), source)
    with pytest.raises(Conflict, match="it runs"):
        hosts.a.define(replace(guest, memory=32 << 20), source)


def test_undefined_guest_leaves_no_file(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    hosts.a.stop(NAME, force=True)
    for host in (hosts.a, hosts.b):
        host.undefine(NAME)
        host.undefine(NAME)
        assert host.find() == []
        left = [path for path in host.site.state.parent.rglob("*") if "qemu-" not in path.name and path.is_file()]
        assert left == []
        assert list(host.site.run.glob("qemu-????????????")) == []


def test_undefined_guest_is_unknown_to_every_verb(hosts: Hosts) -> None:
    for verb in (hosts.a.start, lambda name: hosts.a.receive(name, True), lambda name: hosts.a.send(name, "unix:/x")):
        with pytest.raises(NotFound):
            verb("nobody")
    hosts.a.retire("nobody")
    hosts.a.undefine("nobody")
    assert hosts.a.find(["nobody"]) == []


@pytest.mark.parametrize("name", ["../etc", "a/b", "-x", "", "a\n", "ü", "x" * 64])
def test_names_that_are_no_names_are_refused(hosts: Hosts, name: str) -> None:
    for verb in (hosts.a.start, hosts.a.stop, hosts.a.undefine, hosts.a.retire, lambda name: hosts.a.find([name])):
        with pytest.raises(UsageError):
            verb(name)


def test_damaged_record_is_named_and_kept(hosts: Hosts) -> None:
    hosts.define(hosts.boot_sector())
    record = hosts.a.site.state / "qemu" / NAME / "guest.json"
    record.write_text("{")
    with pytest.raises(Unsafe, match=r"guest\.json"):
        hosts.a.find()
    assert record.read_text() == "{"
    hosts.a.undefine(NAME)
    assert hosts.a.find() == []


def test_machine_type_is_pinned(hosts: Hosts) -> None:
    guest = hosts.boot_sector()
    source = [DiskSource("file", str(hosts.disk))]
    hosts.a.define(guest, source, "pc-i440fx-7.0")
    assert hosts.a.find()[0].machine == "pc-i440fx-7.0"
    hosts.a.define(guest, source)
    assert hosts.a.find()[0].machine == "pc-i440fx-7.0"
    with pytest.raises(Unsupported, match="nosuch"):
        hosts.a.define(guest, source, "nosuch")


def test_check_names_all_that_is_missing(hosts: Hosts) -> None:
    guest = replace(
        hosts.boot_sector(),
        machine="nosuch",
        memory=1 << 50,
        boot=Boot("/nowhere/vmlinuz", "/nowhere/initrd"),
        console="/nowhere/console",
    )
    problems = hosts.a.check(guest)
    for word in ("nosuch", "/nowhere/vmlinuz", "/nowhere/initrd", ["/nowhere", "missing"][0], "memory"):
        assert any(word in problem for problem in problems), (word, problems)
    assert hosts.a.check(hosts.boot_sector()) == []
    assert "not installed" in hosts.host("a", QemuSettings(binary="qemu-system-nosuch")).check(guest)[0]


def test_fingerprints_of_equal_hosts_are_equal(hosts: Hosts) -> None:
    guest = hosts.boot_sector()
    first, second = hosts.a.fingerprint(guest), hosts.b.fingerprint(guest)
    assert first == second
    assert first["machine type"].startswith("pc-i440fx-")
    kernel = hosts.base / "vmlinuz"
    kernel.write_bytes(b"one")
    ours = hosts.a.fingerprint(replace(guest, boot=Boot(str(kernel))))
    kernel.write_bytes(b"two")
    theirs = hosts.b.fingerprint(replace(guest, boot=Boot(str(kernel))))
    assert {key for key in ours if ours[key] != theirs[key]} == {"kernel"}


def test_kvm_is_taken_only_if_a_guest_runs_under_it(hosts: Hosts) -> None:
    site = hosts.a.site
    accel = accelerator(site, "qemu-system-x86_64")
    begin = time.monotonic()
    assert accelerator(site, "qemu-system-x86_64") == accel
    assert time.monotonic() - begin < 0.05
    broken = hosts.base / "qemu-broken"
    broken.write_text("#!/bin/sh\necho 'failed to initialize kvm' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert accelerator(site, str(broken)) == "tcg"


def test_machine_types_are_read_with_what_they_stand_for() -> None:
    text = (
        "Supported machines are:\n"
        "microvm              microvm (i386)\n"
        "pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)\n"
        "pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)\n"
    )
    assert parse_machines(text) == {"microvm": "microvm", "pc": "pc-i440fx-7.2", "pc-i440fx-7.2": "pc-i440fx-7.2"}


def test_the_registry_finds_it() -> None:
    assert hypervisor("qemu") is Qemu
