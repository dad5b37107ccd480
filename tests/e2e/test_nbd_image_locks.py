"""The home host's own files while other programs want them: QEMU's image locks, against QEMU's real tools."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from storkit.core.errors import Conflict
from storkit.core.model import Volume
from storkit.system import locks, openers
from tests.contract.rig import wait_until
from tests.e2e.nbdhosts import NEEDS_SERVER, A, B, Hosts, hosts, offer, rights, use, write

__all__ = ["hosts"]

pytestmark = NEEDS_SERVER

FOREIGN = ["qemu-nbd", "qemu-storage-daemon", "qemu-system-x86_64"]


def foreign(hosts: Hosts, program: str, path: str, format: str, *, read_only: bool = False) -> list[str]:
    """The command by which somebody else writes an image."""
    socket = str(hosts.root / "foreign.sock")
    if program == "qemu-nbd":
        return ["qemu-nbd", "-t", "-f", format, "-k", socket, *(["-r"] if read_only else []), path]
    node = f"driver={format},node-name=n,file.driver=file,file.filename={path}"
    if program == "qemu-storage-daemon":
        export = "type=nbd,id=e,node-name=n,writable=on"
        server = f"addr.type=unix,addr.path={socket}"
        return [program, "--blockdev", node, "--nbd-server", server, "--export", export]
    return [program, "-display", "none", "-S", "-blockdev", node, "-device", "virtio-blk-pci,drive=n"]


@contextmanager
def running(argv: list[str], path: str) -> Iterator[int]:
    """A program that has an image open and locked."""
    process = subprocess.Popen(argv)
    try:
        wait_until(lambda: any(each.pid == process.pid and each.locked for each in openers.find([path])[path]))
        yield process.pid
    finally:
        process.kill()
        process.wait()


def refusal(argv: list[str]) -> str:
    """What a program says that ends because it gets no lock."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("program", FOREIGN)
def test_nobody_else_writes_what_is_served(hosts: Hosts, program: str, format: str) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume(format=format)
    a.export([volume], [A, B])
    assert "lock" in refusal(foreign(hosts, program, volume.path, format))  # also while nobody is a writer
    a.set_writers([volume], ["a", B.name])
    with use(offer(a, volume, A)) as source, use(offer(a, volume, B)) as destination:
        write(source, 0, b"a" * 4096)  # the two hosts of a migration are let in by their server
        write(destination, 4096, b"b" * 4096)
        assert "lock" in refusal(foreign(hosts, program, volume.path, format))
        a.set_writers([volume], [B.name])
        write(destination, 0, b"b" * 4096)
    assert "lock" in refusal(foreign(hosts, program, volume.path, format))


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("program", FOREIGN)
def test_who_has_the_image_already_is_named(hosts: Hosts, program: str, format: str) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume(format=format)
    with running(foreign(hosts, program, volume.path, format), volume.path) as pid:
        with pytest.raises(Conflict, match=rf"volume disk is in use: {program[:15]} \(pid {pid}\)") as error:
            a.export([volume], [A])
        assert error.value.hint.endswith(f"ps -fp {pid}")
        assert a.find_exports() == []
        assert hosts.leftovers() == []  # refused before anything was granted
    a.export([volume], [A])
    assert rights(a, volume) == {"a": False}


def test_who_only_reads_is_in_nobodys_way(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    with running(foreign(hosts, "qemu-nbd", volume.path, "raw", read_only=True), volume.path):
        a.export([volume], [A])
        a.set_writers([volume], ["a"])
    assert "16 MiB" in subprocess.run(["qemu-img", "info", volume.path], capture_output=True, text=True).stdout


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_an_image_is_held_for_its_clones(hosts: Hosts, format: str) -> None:
    """Nobody writes what overlays stand on; several servers read it beside each other."""
    a = hosts.nbd("a")
    golden = replace(hosts.volume("golden", format=format), kind="image")
    clones = [overlay(hosts, name, golden) for name in ("one", "two")]
    a.export([golden, *clones], [A])
    a.set_writers(clones, ["a"])
    a.unexport([golden], ["a"])
    assert "lock" in refusal(foreign(hosts, "qemu-nbd", golden.path, format))
    a.unexport(clones[:1], ["a"])
    assert "lock" in refusal(foreign(hosts, "qemu-nbd", golden.path, format))
    a.unexport(clones[1:], ["a"])
    with (
        running(foreign(hosts, "qemu-nbd", golden.path, format), golden.path) as pid,
        pytest.raises(Conflict, match=rf"volume one is in use: qemu-nbd \(pid {pid}\).*{golden.path}"),
    ):
        a.export(clones[:1], [A])


def overlay(hosts: Hosts, name: str, golden: Volume) -> Volume:
    path = hosts.root / f"{name}.qcow2"
    backing = ["-b", Path(golden.path).name, "-F", golden.format]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, path], check=True, cwd=hosts.root)
    return replace(golden, name=name, uuid=str(uuid4()), kind="disk", format="qcow2", path=str(path))


def test_who_comes_while_the_server_is_dead_is_named_when_it_is_to_come_back(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    a.export([volume], [A, B])
    a.set_writers([volume], ["a"])
    for pid in hosts.servers():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not locks.held(locks.use_lock(a.site.run, volume.uuid)))
    with running(foreign(hosts, "qemu-nbd", volume.path, "raw"), volume.path) as pid:
        for give in (lambda: a.set_writers([volume], ["a", B.name]), a.restore):
            with pytest.raises(Conflict, match=rf"qemu-nbd \(pid {pid}\)"):
                give()
        assert hosts.servers() == []
    a.restore()
    assert rights(a, volume) == {"a": True, B.name: False}  # what was refused was not granted either
    assert "lock" in refusal(foreign(hosts, "qemu-nbd", volume.path, "raw"))


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="no loop devices")
def test_a_loop_device_on_the_file_is_named(hosts: Hosts) -> None:
    a = hosts.nbd("a")
    volume = hosts.volume()
    device = subprocess.run(
        ["losetup", "--find", "--show", volume.path], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        with pytest.raises(Conflict, match=f"the loop device {device.removeprefix('/dev/')}") as refused:
            a.export([volume], [A])
    finally:
        subprocess.run(refused.value.hint.split(), check=True)
    a.export([volume], [A])
