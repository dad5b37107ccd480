"""What the Xen lab promises to the tests that use it."""

from __future__ import annotations

from pathlib import Path

import pytest

import storkit
from tests.guestkit import log
from tests.lab import Host
from tests.lab.xen import Dom0, XenLab, console, frozen

pytestmark = pytest.mark.lab
PATIENT = 300.0
"""Seconds for what emulation makes slow."""


def domains(host: Dom0) -> list[str]:
    """The names that `xl list` tells, in its order."""
    return [line.split()[0] for line in host.run(["xl", "list"]).stdout.splitlines()[1:]]


def writes_on(host: Dom0, lines: int = 5) -> None:
    console.wait_for_lines(host, lines, 2 * PATIENT)


def test_two_dom0s_thaw_and_a_guest_goes_on_writing(xen: XenLab) -> None:
    h1, h2, s = xen.thaw(frozen.GUEST)
    assert domains(h1) == ["Domain-0", "g1"] and domains(h2) == ["Domain-0"]
    writes_on(h1)
    assert s.run(["ping", "-c", "1", "-W", "30", "h1"]).status == 0


@pytest.mark.slow
def test_files_names_and_ssh(xen: XenLab) -> None:
    h1, h2, s = xen.thaw()
    content = bytes(range(256)) * 8000
    h1.put(content, "/root/new/file", mode=0o600)
    assert h1.get("/root/new/file") == content
    assert h1.run(["stat", "-c", "%a %s", "/root/new/file"]).stdout.split() == ["600", str(len(content))]
    ssh = ["ssh", "-o", "BatchMode=yes"]
    assert h1.run([*ssh, "h2", "hostname"]).stdout == "h2\n"
    assert h2.run([*ssh, "s", "hostname"]).stdout == "s\n"
    assert s.run([*ssh, "h1", "hostname"]).stdout == "h1\n"
    assert xen.lab.ssh("h2", ["hostname"]).stdout == "h2\n"


@pytest.mark.slow
def test_a_network_is_cut_a_host_hangs_and_both_come_back(xen: XenLab) -> None:
    h1, h2, s = xen.thaw()
    s.run(["ping", "-c", "1", "-W", "30", "h1-san1"])
    h1.cut("san1")
    assert s.run(["ping", "-c", "2", "-W", "2", "h1-san1"], check=False).status
    s.run(["ping", "-c", "1", "-W", "30", "h1-san2"])
    h1.heal("san1")
    s.run(["ping", "-c", "3", "-W", "30", "h1-san1"])
    h2.pause()
    command = h2.spawn(["echo", "after"])
    assert s.run(["ping", "-c", "2", "-W", "2", "h2"], check=False).status and command.running()
    h2.resume()
    assert command.wait().stdout == "after\n"


@pytest.mark.slow
def test_a_power_cut_ends_the_guest_and_keeps_the_disks(xen: XenLab) -> None:
    h1, _, _ = xen.thaw(frozen.GUEST)
    disk = h1.add_disk(64 << 20)
    h1.run(["sh", "-c", f"printf kept | dd of={disk} conv=fsync; echo kept >/root/synced; sync; date >/run/lost"])
    h1.power_off()
    h1.boot()
    assert domains(h1) == ["Domain-0"]
    assert h1.run(["head", "-c", "4", disk]).stdout == "kept"
    assert h1.run(["cat", "/root/synced"]).stdout == "kept\n"
    assert h1.run(["test", "-e", "/run/lost"], check=False).status


@pytest.mark.slow
def test_storkit_is_the_working_trees(xen: XenLab) -> None:
    h1, _, _ = xen.thaw()
    xen.install(h1)
    assert storkit.__version__ in h1.run(["storkit", "--version"]).stdout
    assert h1.python("import storkit; print(storkit.__file__)").strip() == "/storkit/storkit/__init__.py"


def nbd(s: Host, *dom0s: Dom0) -> str:
    """A guest's disk on s that dom0s reach by NBD; its device on each."""
    s.run(["qemu-nbd", "--persistent", "--shared=8", "--fork", "-f", "raw", "-x", "g1", "-b", s.address("san1"),
           "-p", "10900", "/root/g1.img"])  # fmt: skip
    for host in dom0s:
        host.run(["modprobe", "nbd"])
        host.run(["nbd-client", s.address("san1"), "10900", "/dev/nbd0", "-N", "g1", "-b", "512", "-persist"])
    return "/dev/nbd0"


@pytest.mark.slow
def test_xl_moves_a_guest_that_writes(xen: XenLab, tmp_path: Path) -> None:
    h1, h2, s = xen.thaw()
    s.put(xen.guest_disk, "/root/g1.img")
    config = frozen.config("g1", nbd(s, h1, h2))
    h1.put(config, "/root/g1.cfg")
    h1.run(["xl", "create", "/root/g1.cfg"], timeout=PATIENT)
    writes_on(h1, 20)
    h1.run(["xl", "migrate", "g1", "h2"], timeout=PATIENT)
    assert domains(h1) == ["Domain-0"] and domains(h2) == ["Domain-0", "g1"]
    writes_on(h2)
    h2.run(["xl", "shutdown", "-w", "g1"], timeout=PATIENT)
    # xl has seen the guest's end; another xl, in the background, then takes its disk away
    h2.wait_for(lambda: domains(h2) == ["Domain-0"], "end of the domain", PATIENT, every=0.5)
    for host in (h1, h2):
        host.run(["nbd-client", "-d", "/dev/nbd0"])
    after = tmp_path / "g1.img"
    after.write_bytes(s.get("/root/g1.img"))
    report = log.verify(after)
    assert report.clean and not report.recovered and report.starts == 1 and report.count > 25, report
