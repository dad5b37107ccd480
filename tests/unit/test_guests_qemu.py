"""The installed QEMU takes what is rendered for it: started stopped (-S), asked over QMP, ended."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storkit.core.errors import CommandFailed
from storkit.core.guest import Boot, Disk, Guest, Nic
from storkit.core.model import DiskSource
from storkit.core.units import parse_size
from storkit.guests import parse_qemu
from storkit.guests.place import Place
from storkit.guests.render import device_id, node_name, read_args, render
from storkit.system.run import run, which

QEMU = "qemu-system-x86_64"
UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
DISK_UUID = "6f9d6a70-3d19-4a0e-9f5b-02a3f6b1c7aa"
MIB = 1024**2

pytestmark = pytest.mark.skipif(not which(QEMU), reason=f"{QEMU} is not installed (qemu-system-x86)")


def ask(guest: Guest, sources: list[DiskSource], place: Place | None = None, *commands: str) -> list[Any]:
    """Start QEMU with the rendered arguments, without running the guest, and return its answers."""
    args = read_args(render(guest, sources, "qemu", replace(place or Place(), accel="tcg")))
    words = ["qmp_capabilities", *commands, "quit"]
    text = "".join(json.dumps({"execute": word}) for word in words)
    result = run([QEMU, *args, "-S", "-qmp", "stdio"], stdin=text, timeout=60)
    assert result.stderr == "", "not even a warning"
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert not [answer for answer in answers if "error" in answer]
    return [answer["return"] for answer in answers if "return" in answer][1:-1]


def raw(path: Path, size: int = MIB) -> DiskSource:
    path.touch()
    os.truncate(path, size)
    return DiskSource("file", str(path))


def qcow2(path: Path) -> DiskSource:
    run(["qemu-img", "create", "-q", "-f", "qcow2", path, "4M"])
    return DiskSource("file", str(path), "qcow2")


def guest(**changes: Any) -> Guest:
    return Guest(**{"name": "web", "uuid": UUID, "memory": 64 * MIB, **changes})


BUSES = {"pc": "virtio scsi sata ide", "q35": "virtio scsi sata", "pc-i440fx-7.2": "virtio ide", "microvm": "virtio"}


@pytest.mark.parametrize(("machine", "bus"), [(machine, bus) for machine in BUSES for bus in BUSES[machine].split()])
def test_every_bus_on_every_machine(tmp_path: Path, machine: str, bus: Any) -> None:
    disks = [Disk("one", bus=bus, uuid=DISK_UUID), Disk("two", bus=bus)]
    sources = [raw(tmp_path / "one.raw"), qcow2(tmp_path / "two.qcow2")]
    (blocks,) = ask(guest(machine=machine, disks=disks), sources, None, "query-block")
    nodes = [block["inserted"] for block in blocks if "inserted" in block]
    assert [(node["node-name"], node["drv"]) for node in nodes] == [(node_name(0), "raw"), (node_name(1), "qcow2")]
    assert [node["ro"] for node in nodes] == [False, False]
    assert all(device_id(number) in block["qdev"] for number, block in enumerate(blocks[:2]))


def test_awkward_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    place = tmp_path / "a,readonly=on,b 'c' \"d\" \\ é"
    place.mkdir()
    source = raw(place / "x,if=none.raw")
    console = place / "con,sole.log"
    (blocks,) = ask(guest(console=str(console), disks=[Disk("web")]), [source], None, "query-block")
    assert [block["inserted"]["file"] for block in blocks if "inserted" in block] == [source.path]
    assert console.exists()


def test_a_kernel_with_an_awkward_command_line(tmp_path: Path) -> None:
    """What the guest's firmware gets of it is QEMU's fw_cfg; here QEMU only has to take it as one argument."""
    kernel = tmp_path / "kernel,with=comma"
    header = bytearray(4096)
    header[0x1FE:0x200], header[0x202:0x206], header[0x206:0x208] = b"\x55\xaa", b"HdrS", b"\x04\x02"
    kernel.write_bytes(header)
    line = "a=\"b c\",,d='e' -S -daemonize $(id)"
    ask(guest(boot=Boot(str(kernel), cmdline=line)), [])


def test_a_second_qemu_is_kept_off_a_local_file(tmp_path: Path) -> None:
    """locking=on: QEMU's own image lock is asked for in so many words."""
    source, monitor = raw(tmp_path / "one.raw"), tmp_path / "qmp"
    pidfile = tmp_path / "pid"
    place = Place("tcg", qmp=str(monitor), pidfile=str(pidfile), daemonize=True)
    one = guest(disks=[Disk("web")])
    run([QEMU, *read_args(render(one, [source], "qemu", place)), "-S"])
    pid = int(pidfile.read_text())
    try:
        with pytest.raises(CommandFailed) as caught:
            ask(one, [source])
        assert 'Failed to get "write" lock' in caught.value.stderr
    finally:
        end(pid)


def test_a_receiving_qemu_waits_for_the_guest(tmp_path: Path) -> None:
    disks, sources = [Disk("web")], [raw(tmp_path / "web.raw")]
    status, migration = ask(guest(disks=disks), sources, Place(incoming=True), "query-status", "query-migrate")
    assert status["status"] == "inmigrate"
    assert migration == {}


def test_read_only_disks(tmp_path: Path) -> None:
    disks = [Disk("one", readonly=True), Disk("two", bus="scsi", readonly=True)]
    sources = [raw(tmp_path / "one.raw"), qcow2(tmp_path / "two.qcow2")]
    (blocks,) = ask(guest(disks=disks), sources, None, "query-block")
    assert [block["inserted"]["ro"] for block in blocks if "inserted" in block] == [True, True]


def test_uefi_firmware(tmp_path: Path) -> None:
    """Flash of the sizes of Debian's OVMF; what is in it does not matter before the guest runs."""
    code, variables = tmp_path / "code.fd", tmp_path / "vars.fd"
    raw(code, 3653632)
    raw(variables, 540672)
    place = Place(uefi_code=str(code), uefi_vars=str(variables))
    ask(guest(machine="q35", boot=Boot(firmware="uefi")), [], place)


def test_uefi_variables_in_a_volume(tmp_path: Path) -> None:
    code, variables = raw(tmp_path / "code.fd", 3653632), raw(tmp_path / "vars.fd", 540672)
    place = Place(uefi_code=code.path, uefi_vars="/no/such/file")
    one = guest(disks=[Disk("web"), Disk("vars", bus="flash")], boot=Boot(firmware="uefi"))
    (blocks,) = ask(one, [raw(tmp_path / "web.raw"), variables], place, "query-block")
    seen = {block["inserted"]["node-name"]: block["qdev"] for block in blocks if "inserted" in block}
    assert "disk0" in seen["node0"] and "flash1" in seen["node1"], seen


@pytest.mark.skipif(not Path("/dev/net/tun").exists() or os.geteuid() != 0, reason="taps need root and /dev/net/tun")
def test_network_cards(tmp_path: Path) -> None:
    cards = [Nic("br0"), Nic("br0", model="e1000"), Nic("br0", mac="52:54:00:00:00:07")]
    place = Place(taps=[f"sk{os.getpid() % 100000}{letter}" for letter in "abc"])
    one = guest(nics=cards)
    (filters,) = ask(one, [], place, "query-rx-filter")  # e1000 has none
    assert {card["name"]: card["main-mac"] for card in filters} == {"nic0": one.mac(0), "nic2": "52:54:00:00:00:07"}


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DiskSource]:
    """A volume over NBD: on a Unix socket, or over TCP with TLS and a pre-shared key."""
    image = raw(tmp_path / "served.raw", 2 * MIB).path
    pidfile = tmp_path / "nbd.pid"
    argv = ["qemu-nbd", "--fork", "--persistent", "--format", "raw", "--export-name", "web", "--pid-file", str(pidfile)]
    if request.param == "unix":
        path = str(tmp_path / "nbd,sock")
        argv += ["--socket", path]
        source = DiskSource("network", protocol="nbd", export="web", socket=path)
    else:
        keys = tmp_path / "tls,dir"
        keys.mkdir(mode=0o700)
        (keys / "keys.psk").write_text("host-b:" + "5a" * 32 + "\n")
        object_ = f"tls-creds-psk,id=tls,endpoint=server,dir={str(keys).replace(',', ',,')}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        argv += ["--bind", "127.0.0.1", "--port", str(port), "--object", object_, "--tls-creds", "tls"]
        source = DiskSource(
            "network", protocol="nbd", export="web", server="127.0.0.1", port=port, tls="psk", tls_dir=str(keys),
            tls_user="host-b",
        )  # fmt: skip
    run([*argv, image])
    pid = int(pidfile.read_text())
    yield source
    end(pid)


@pytest.mark.skipif(not which("qemu-nbd"), reason="qemu-nbd is not installed (qemu-utils)")
@pytest.mark.parametrize("served", ["unix", "psk"], indirect=True)
def test_disks_over_nbd(served: DiskSource) -> None:
    blocks, nodes = ask(guest(disks=[Disk("web")]), [served], None, "query-block", "query-named-block-nodes")
    assert [node["drv"] for node in nodes if node["node-name"] == node_name(0)] == ["raw"]
    (inserted,) = [block["inserted"] for block in blocks if "inserted" in block]
    assert inserted["image"]["virtual-size"] == 2 * MIB


def test_losing_the_right_to_write_pauses_the_guest(tmp_path: Path) -> None:
    """rerror=stop and werror=stop are on every bus: seen in the device tree, not in the text."""
    disks = [Disk("one"), Disk("two", bus="scsi"), Disk("three", bus="sata"), Disk("four", bus="ide")]
    sources = [raw(tmp_path / f"{disk.volume}.raw") for disk in disks]
    args = read_args(render(guest(disks=disks), sources, "qemu", Place("tcg")))
    asked = "".join(
        f"qom-get /machine/peripheral/{device_id(n)} {key}\n" for n in range(4) for key in ("rerror", "werror")
    )
    result = run([QEMU, *args, "-S", "-monitor", "stdio"], stdin=asked + "quit\n")
    assert result.stdout.count('"stop"') == 8


def end(pid: int) -> None:
    """Kill a daemon that this test started and wait until it is gone."""
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        assert poller.poll(10_000), f"process {pid} does not end"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", [16, 64, 112, 1024])
def test_memory_without_kvm_is_what_qemu_migrates_without_loss_and_reads_back_as_it_was(size: int) -> None:
    """QEMU before 9.0 loses writes where the memory of a guest without KVM is a multiple of 64 pages."""
    wanted = guest(memory=size * MIB)
    text = render(wanted, [], "qemu", Place("tcg"))
    (memory,) = [parse_size(line.removeprefix("size=")) for line in text.splitlines() if line.startswith("size=")]
    assert memory % (64 * 4096) and memory % 8192 == 0 and memory - wanted.memory == 8192
    assert parse_qemu.read(text).memory == wanted.memory
    assert f"size={size}M" in render(wanted, [], "qemu", Place("kvm")).splitlines()
