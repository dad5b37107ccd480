"""Real QEMU processes of two hosts on one machine: guests are defined, start, stop, hang, and are killed."""

from __future__ import annotations

import os
import signal
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    TimedOut,
    Unsafe,
    Unsupported,
    UsageError,
)
from storkit.core.guest import Boot
from storkit.core.model import DiskSource
from storkit.core.registry import hypervisor
from storkit.hypervisors._qemu.host import accelerator, parse_machines
from storkit.hypervisors._qemu.settings import QemuSettings
from storkit.hypervisors.qemu import Qemu
from storkit.system.run import which
from storkit.system.timeouts import scaled
from tests.e2e.qemuhosts import NAME, Hosts, status, wait_until
from tests.guestkit import bootsector, log

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(which("qemu-system-x86_64") is None, reason="needs qemu-system-x86"),
]


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


@pytest.mark.usefixtures("impatient")
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


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("has_pid", [False, True], ids=["before its pid is known", "while it opens its disks"])
def test_guest_that_another_command_is_starting_is_neither_unknown_nor_stopped(hosts: Hosts, has_pid: bool) -> None:
    go = hosts.base / "go"
    program = hosts.base / "qemu"
    program.write_text(f'#!/bin/sh\nwhile [ ! -e {go} ]; do sleep 0.01; done\nexec qemu-system-x86_64 "$@"\n')
    program.chmod(0o755)
    a = hosts.host("a", QemuSettings(accel="tcg") if has_pid else QemuSettings(accel="tcg", binary=str(program)))
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        disk = DiskSource("network", protocol="nbd", export="x", server="127.0.0.1", port=server.getsockname()[1])
        go.touch()  # QEMU is asked for its machine types
        a.define(hosts.boot_sector(), [disk])
        go.unlink()
        starts = pool.submit(a.start, NAME)
        try:
            wait_until(lambda: status(a) == "starting", "the guest is not being started")
            if has_pid:
                wait_until(lambda: hosts.pid(a) > 0, "QEMU does not write its pid")
            assert status(a) == "starting"
            with pytest.raises(Conflict, match="just being started"):
                a.stop(NAME)
            with pytest.raises(Unsafe, match="it is starting here, so it may run"):
                a.retire(NAME)
        finally:
            go.touch()
            server.close()  # its disk's server is silent no longer, but gone
        with pytest.raises(CommandFailed):
            starts.result(timeout=scaled(60))
    assert status(a) == "stopped"


@pytest.mark.usefixtures("impatient")
def test_guest_that_hangs_can_be_stopped_by_force(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    os.kill(hosts.pid(hosts.a), signal.SIGSTOP)
    hosts.a.stop(NAME, force=True)
    assert status(hosts.a) == "stopped"


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
