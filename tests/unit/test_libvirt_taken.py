"""A domain that runs is taken and given back, cut short between any two commands to libvirt: its definition is never
lost, and nobody takes it for stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storkit.core.backend import Site
from storkit.core.errors import CommandFailed, Conflict
from storkit.core.guest import Disk, Guest, TakenGuest
from storkit.core.model import DiskSource, Existing, Volume
from storkit.guests import document
from storkit.hypervisors._libvirt.virsh import Virsh
from storkit.hypervisors.libvirt import Libvirt, LibvirtSettings
from storkit.system import openers

ROOT = Path(__file__).resolve().parent.parent.parent
UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
VOLUME = "cc18ff28-316c-43a9-9f2c-38e3cc63bc95"
DOMAIN = """\
<domain type='qemu'>
  <name>g</name>
  <uuid>UUID</uuid>
  <memory unit='KiB'>16384</memory>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='PLACE'/>
      <target dev='hda' bus='ide'/>
    </disk>
  </devices>
</domain>
"""


class Host:
    """A host whose libvirt has a domain that runs, of a process of the test's."""

    def __init__(self, base: Path, process: int) -> None:
        self.libvirt, self.disk, self.run = base / "libvirt", base / "disk.img", base / "run"
        self.volume = Volume("g", VOLUME, 4096, "p", "s", path=str(self.disk))
        self.text = DOMAIN.replace("UUID", UUID).replace("PLACE", str(self.disk))
        for directory in (self.libvirt, self.run, base / "bin", base / "runtime/libvirt/qemu/run"):
            directory.mkdir(parents=True)
        self.definition.write_text(self.text)
        (self.libvirt / f"{UUID}.running").write_text(self.text)
        (base / "runtime/libvirt/qemu/run/g.pid").write_text(str(process))
        virsh = base / "bin/virsh"
        virsh.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.e2e.fakevirsh "$@"\n')
        virsh.chmod(0o755)
        settings = LibvirtSettings(uri="qemu:///session")
        self.hypervisor = Libvirt(Site("s", base / "state", self.run, base / "dev"), settings)
        record = Guest("g", UUID, 0, hypervisor="libvirt", document=self.text, disks=[Disk("g", "hda", uuid=VOLUME)])
        self.guest = document.with_facts(record)
        self.sources = [DiskSource("file", str(base / "storkit-g"))]

    @property
    def definition(self) -> Path:
        return self.libvirt / f"{UUID}.xml"

    def take(self) -> None:
        self.hypervisor.take([TakenGuest(self.guest, self.sources)])

    def give_back(self) -> None:
        self.hypervisor.give_back(self.guest)

    def status(self) -> list[str]:
        return [state.status for state in self.hypervisor.find(["g"])]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    code = "file = open(__import__('sys').argv[1], 'r+b'); print(flush=True); input()"
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4096))
    with subprocess.Popen(
        [sys.executable, "-c", code, disk, UUID], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as guest:
        assert guest.stdout and guest.stdout.readline() == b"\n"
        made = Host(tmp_path, guest.pid)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_LIBVIRT", str(made.libvirt))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
        openers.note_earlier(made.run, [(made.volume, Existing(str(made.disk), processes=[guest.pid]))])
        yield made
        guest.kill()


def cut(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """From now on virsh fails at this command."""
    called = Virsh.__call__

    def call(self: Virsh, *words: str, **options: float) -> str:
        if word in words:
            raise CommandFailed(["virsh", *words], 1, "cut short")
        return called(self, *words, **options)

    monkeypatch.setattr(Virsh, "__call__", call)


def test_it_goes_on_and_is_storkits_and_then_its_own_again(host: Host) -> None:
    host.take()
    assert str(host.sources[0].path) in host.definition.read_text() and host.status() == ["running"]
    live = (host.libvirt / f"{UUID}.running").read_text()
    assert str(host.disk) in live and VOLUME in live
    host.take()  # once more changes nothing
    host.give_back()
    assert host.definition.read_text() == host.text
    assert VOLUME not in (host.libvirt / f"{UUID}.running").read_text() and host.status() == []
    host.give_back()


@pytest.mark.parametrize("word", ["define", "metadata"])
def test_taking_it_is_cut_short(host: Host, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    with monkeypatch.context() as patch:
        cut(patch, word)
        with pytest.raises(CommandFailed):
            host.take()
    if word == "metadata":
        assert host.status() == ["running"], "nobody takes it for stopped"
    host.give_back()
    assert host.definition.read_text() == host.text and host.status() == []
    host.take()
    assert host.status() == ["running"]


@pytest.mark.parametrize("word", ["define", "metadata"])
def test_giving_it_back_is_cut_short(host: Host, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    host.take()
    with monkeypatch.context() as patch:
        cut(patch, word)
        with pytest.raises(CommandFailed):
            host.give_back()
    assert host.status() == ["running"], "nobody takes it for stopped"
    host.give_back()
    assert host.definition.read_text() == host.text and host.status() == []
    assert VOLUME not in (host.libvirt / f"{UUID}.running").read_text()


def test_one_that_was_started_while_it_was_adopted_is_not_taken(host: Host) -> None:
    openers.forget_earlier(host.run, [VOLUME])
    with pytest.raises(Conflict, match="was started here while it was adopted"):
        host.take()
    assert host.definition.read_text() == host.text


def test_one_that_has_moved_on_to_other_disks_is_not_given_back(host: Host) -> None:
    host.take()
    running = host.libvirt / f"{UUID}.running"
    running.write_text(running.read_text().replace(str(host.disk), "/dev/storkit/g"))
    with pytest.raises(Conflict, match="is running here"):
        host.give_back()
    assert host.status() == ["running"]
