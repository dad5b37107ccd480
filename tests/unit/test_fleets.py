"""A fleet's record, who its members are, and what is found in images and laid in them, by e2fsprogs' own tools."""

from __future__ import annotations

import base64
import email
import json
import os
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, UsageError
from storkit.core.guest import Guest, Nic
from storkit.core.imagefiles import Extent, FileToLay, Inside, Laid
from storkit.core.model import Secret
from storkit.guests.fleets import identity, keys, record, seed
from storkit.guests.fleets.keys import FleetKeys, MemberKeys
from storkit.guests.fleets.record import Fleet
from storkit.plans.intent.fleets import making
from storkit.tech.images import ext4

UUID = "11111111-2222-4333-8444-555555555555"
FLEET = Fleet("web", UUID, "debian", str(uuid4()), "default", 12, 2, 64 << 20, hosts=["a", "b"], base=str(uuid4()))
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "k" * 360 + "\n"
PUBLIC = "ssh-ed25519 AAAA storkit"
DEBIAN = ["systemd", "sshd", "networkd", "udev", "iscsi"]


def member(fleet: Fleet, name: str) -> Guest:
    return Guest(name, str(uuid4()), 64 << 20, nics=[Nic(kind="user"), Nic(kind="group", group=fleet.group)])


def of(*guests: Guest) -> FleetKeys:
    mine = {guest.uuid: MemberKeys(Secret(KEY), PUBLIC, Secret("ab" * keys.SEED_BYTES)) for guest in guests}
    return FleetKeys(Secret(KEY), PUBLIC, mine)


# The record


def test_the_largest_fleet_has_an_address_for_each(tmp_path: Path) -> None:
    fleet = replace(FLEET, count=record.MOST, width=4, inside=Inside("ext4", 0, DEBIAN))
    assert len({fleet.address(name) for name in fleet.members}) == record.MOST
    hosts = next(file.content for file in identity.to_lay(fleet, of()) if file.path == "/etc/hosts")
    assert hosts.count("\n") == record.MOST + 2 and hosts.endswith(f"{fleet.address('web-4000').ip}\tweb-4000\n")


def test_names_hosts_and_addresses_of_members() -> None:
    assert FLEET.members[0] == "web-01" and FLEET.members[-1] == "web-12" and len(FLEET.members) == 12
    assert [FLEET.host(name) for name in FLEET.members[:3]] == ["a", "b", "a"]
    assert len({FLEET.address(name) for name in FLEET.members}) == 12
    assert FLEET.address("web-03").ip in FLEET.network and FLEET.network.prefixlen == 20
    for wrong in ("web-00", "web-13", "web-1", "web-001", "web", "web-", "web-x", "other-01", "web-०१"):
        with pytest.raises(NotFound, match="has no member"):
            FLEET.number(wrong)


def test_two_fleets_have_groups_of_their_own() -> None:
    fleets = [replace(FLEET, uuid=str(uuid4())) for _ in range(200)]
    assert len({fleet.group for fleet in fleets}) == 200
    assert all(fleet.group.startswith("239.19") and fleet.network.is_private for fleet in fleets)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    laid = [Laid("/etc/hostname", 64, [Extent(4096, 64)])]
    fleet = replace(FLEET, inside=Inside("ext4", 1048576, DEBIAN), laid=laid, expires="2026-11-30T10:00:00+00:00")
    record.save(tmp_path / "fleets", fleet)
    assert record.names(tmp_path / "fleets") == ["web"] and record.load(tmp_path / "fleets", "web") == fleet
    record.delete(tmp_path / "fleets", "web")
    assert record.names(tmp_path / "fleets") == [] == record.names(tmp_path / "none")
    with pytest.raises(NotFound, match="there is no fleet 'web'"):
        record.load(tmp_path / "fleets", "web")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("count = 0", "count"),
        ("count = 999999", "count"),
        ("width = 9", "count"),
        ('name = "other"', "not the file's name"),
        ("hosts = []", "hosts"),
        ('uuid = "../../etc"', "uuid"),
        ("= =", "cannot be read"),
        ('expires = "tomorrow"', "is no time"),
        ('expires = "2026-11-30T10:00:00"', "is no time"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, line: str, says: str) -> None:
    record.save(tmp_path, FLEET)
    file = tmp_path / "web.toml"
    key = line.partition(" ")[0]
    rest = [each for each in file.read_text().splitlines() if not each.startswith(f"{key} =")]
    rest = rest if key != "hosts" else [each for each in rest if each not in ('    "a",', '    "b",', "]")]
    file.write_text("\n".join([line, *rest]))
    with pytest.raises(StorkitError, match=says):
        record.load(tmp_path, "web")


def test_a_fleet_grows_and_is_no_other() -> None:
    record.refuse_change(FLEET, replace(FLEET, count=20, uuid=str(uuid4()), base="", expires="x"))
    for other in (replace(FLEET, memory=1 << 30), replace(FLEET, hosts=["b", "a"]), replace(FLEET, bridge="br0")):
        with pytest.raises(Conflict, match="exists already, with another"):
            record.refuse_change(FLEET, other)


def test_time_to_live() -> None:
    now = datetime(2026, 11, 30, 10, tzinfo=UTC)
    assert making.expires("", now) == ""
    assert making.expires("90m", now) == "2026-11-30T11:30:00+00:00"
    assert making.expires("2h", now) == "2026-11-30T12:00:00+00:00"
    assert making.expires("1d", now) == "2026-12-01T10:00:00+00:00"
    for wrong in ("2", "h", "0h", "-1h", "1w", "1.5h", "٢h"):
        with pytest.raises(UsageError, match="no time to live"):
            making.expires(wrong, now)


# Who a member is


def contents(fleet: Fleet, guest: Guest) -> dict[str, str]:
    """What a member is told, by path, put together from its pieces as its disk would have them."""
    everything = of(guest)
    laid, place = [], 4096
    for file in identity.to_lay(fleet, everything):
        if file.slot:
            size = len(file.content)
            half = size // 2
            # in two parts, apart
            parts = [Extent(place, half), Extent(place + 8192, size - half)]
            laid.append(Laid(file.path, size, parts))
            place += 16384
    who = identity.identity(fleet, guest)
    disk = bytearray(place + 16384)
    for piece in identity.pieces(fleet, who, everything.members[guest.uuid], laid):
        data = base64.b64decode(piece.data.reveal())
        disk[piece.offset : piece.offset + len(data)] = data
    return {
        slot.path: "".join(disk[e.offset : e.offset + e.length].decode("latin-1") for e in slot.extents)
        for slot in laid
    }


def test_a_member_is_told_all_that_makes_it_itself() -> None:
    fleet = replace(FLEET, inside=Inside("ext4", 0, DEBIAN))
    guest = member(fleet, "web-07")
    told = contents(fleet, guest)
    assert told["/etc/hostname"].strip() == "web-07"
    assert told["/etc/machine-id"] == guest.uuid.replace("-", "") + "\n"
    assert told["/etc/ssh/ssh_host_ed25519_key"] == KEY and told["/etc/ssh/ssh_host_ed25519_key.pub"] == PUBLIC + "\n"
    assert told["/etc/iscsi/initiatorname.iscsi"].startswith("InitiatorName=iqn.1993-08.org.debian:01:")
    assert len(told["/var/lib/systemd/random-seed"]) == keys.SEED_BYTES
    own = told["/etc/systemd/network/10-storkit1.network"]
    assert f"MACAddress={guest.mac(1)}" in own and f"Address={fleet.address('web-07')}" in own
    assert "Gateway=10.0.2.2" in told["/etc/systemd/network/10-storkit0.network"]
    other = contents(fleet, member(fleet, "web-08"))
    assert {path for path in told if told[path] == other[path]} == {
        # keys are the same in this test alone; the address towards the outside is the same for every guest of QEMU's
        "/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_ed25519_key.pub", "/var/lib/systemd/random-seed",
    }  # fmt: skip


def test_ifupdown_and_bridges() -> None:
    fleet = replace(FLEET, inside=Inside("ext4", 0, ["systemd", "sshd", "ifupdown"]))
    told = contents(fleet, member(fleet, "web-01"))
    assert f"address {fleet.address('web-01')}" in told["/etc/network/interfaces.d/storkit1"]
    assert "Name=storkit1" in told["/etc/systemd/network/10-storkit1.link"]
    bridged = replace(fleet, bridge="br0")
    guest = replace(member(fleet, "web-01"), nics=[Nic("br0")])
    told = contents(bridged, guest)
    assert "iface storkit0 inet dhcp" in told["/etc/network/interfaces.d/storkit0"]
    assert "/etc/network/interfaces.d/storkit1" not in told and identity.hosts_lines(bridged) == ""


def test_what_is_laid_for_all_lets_the_fleets_key_in_and_removes_the_images_host_keys() -> None:
    fleet = replace(FLEET, inside=Inside("ext4", 0, DEBIAN))
    laid = {file.path: file for file in identity.to_lay(fleet, of())}
    assert (
        laid["/root/.ssh/authorized_keys"].content == PUBLIC + "\n" and laid["/root/.ssh/authorized_keys"].mode == 0o600
    )
    assert f"{fleet.address('web-12').ip}\tweb-12\n" in laid["/etc/hosts"].content
    assert laid["/etc/ssh/ssh_host_rsa_key"].absent and KEY not in "".join(file.content for file in laid.values())


def test_a_slot_of_another_size_is_refused() -> None:
    fleet = replace(FLEET, inside=Inside("ext4", 0, DEBIAN))
    guest = member(fleet, "web-01")
    everything = of(guest)
    who = identity.identity(fleet, guest)
    for slot in (Laid("/etc/hostname", 63, [Extent(0, 63)]), Laid("/x", 5, [Extent(0, 5)]),
                 Laid("/etc/hostname", 64, [Extent(0, 60)])):  # fmt: skip
        with pytest.raises(Unsafe, match="does not fit"):
            identity.pieces(fleet, who, everything.members[guest.uuid], [slot])


def test_what_could_not_be_set_is_said() -> None:
    whole = replace(FLEET, inside=Inside("ext4", 0, DEBIAN))
    assert identity.unset(whole) == []
    assert "no ext4" in identity.unset(replace(FLEET, inside=Inside("")))[0]
    assert "not unmounted" in identity.unset(replace(FLEET, inside=Inside("ext4", problem="it was not unmounted")))[0]
    bare = identity.unset(replace(FLEET, inside=Inside("ext4", 0, ["systemd"])))
    assert [each.partition(":")[0] for each in bare] == ["SSH", "the network"]
    cloud = replace(FLEET, inside=Inside("", has=["cloud-init"]))
    assert identity.unset(cloud)[0].startswith("the machine id")


def test_cloud_init_is_told_by_a_disk_that_is_read_as_it_was_meant() -> None:
    import pycdlib

    fleet = replace(FLEET, inside=Inside("ext4", 0, [*DEBIAN, "cloud-init"]))
    guest = member(fleet, "web-02")
    who = identity.identity(fleet, guest)
    files = identity.cloud_config(fleet, who, of(guest))
    image = seed.image(files)
    assert len(image) <= seed.SIZE
    disk = bytearray(seed.SIZE)
    for piece in identity.sparse(image):
        data = base64.b64decode(piece.data.reveal())
        disk[piece.offset : piece.offset + len(data)] = data
    assert disk[: len(image)] == image
    iso = pycdlib.PyCdlib()
    iso.open_fp(BytesIO(bytes(disk[: len(image)])))
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    for name, content in files.items():
        found = BytesIO()
        iso.get_file_from_iso_fp(found, rr_path=f"/{name}")
        assert found.getvalue().decode() == content
    user = json.loads(files["user-data"].removeprefix("#cloud-config\n"))
    assert user["hostname"] == "web-02" and user["ssh_keys"]["ed25519_private"] == KEY
    assert user["ssh_authorized_keys"] == [PUBLIC] and json.loads(files["meta-data"])["instance-id"] == guest.uuid
    cards = json.loads(files["network-config"])["ethernets"]
    assert cards["card1"]["match"]["macaddress"] == guest.mac(1) and cards["card0"]["dhcp4"]
    assert cards["card1"]["addresses"] == [str(fleet.address("web-02"))]
    # What cloud-init leaves as it is is laid.
    assert [file.path for file in identity.to_lay(fleet, of())] == ["/etc/machine-id"]


def test_what_else_cloud_init_is_to_do_stands_beside_who_the_machine_is(tmp_path: Path) -> None:
    """As cloud-init takes a MIME multi-part archive apart: by the standard library's email."""
    guest = member(FLEET, "web-01")
    fleet = replace(FLEET, inside=Inside("ext4", 0, ["systemd", "sshd", "cloud-init"]))
    keys.configure(tmp_path, UUID, "#cloud-config\nhostname: other # \u00fc\n")
    keys.make(tmp_path, UUID, [guest.uuid])
    mine = keys.load(tmp_path, UUID, [guest.uuid])
    files = identity.cloud_config(fleet, identity.identity(fleet, guest), mine)
    whole = email.message_from_string(files["user-data"])
    parts: Any = whole.get_payload()
    own, more = parts
    assert whole.get_content_type() == "multipart/mixed"
    assert [part.get_content_type() for part in (own, more)] == ["text/cloud-config"] * 2
    texts = [part.get_payload(decode=True).decode() for part in (own, more)]
    assert json.loads(texts[0].removeprefix("#cloud-config\n"))["hostname"] == "web-01"
    assert texts[1] == "#cloud-config\nhostname: other # \u00fc\n"
    assert own["Merge-Type"] is None and more["Merge-Type"] == "list(append)+dict(no_replace,recurse_array)+str()"
    assert {"/etc/hosts", "/root/.ssh/authorized_keys", "/etc/machine-id"} <= set(identity.put_back(fleet, mine))
    (kept,) = tmp_path.rglob("cloud-config")
    assert kept.stat().st_mode & 0o777 == 0o600
    keys.forget(tmp_path, UUID)
    assert not kept.exists()


def test_keys_are_made_once_and_are_nobody_elses(tmp_path: Path) -> None:
    one, two = str(uuid4()), str(uuid4())
    with pytest.raises(Conflict, match="not on this machine"):
        keys.load(tmp_path, UUID, [])
    keys.make(tmp_path, UUID, [one])
    made = keys.load(tmp_path, UUID, [one])
    with pytest.raises(Conflict, match="not on this machine"):
        keys.load(tmp_path, UUID, [one, two])
    keys.make(tmp_path, UUID, [one, two])
    again = keys.load(tmp_path, UUID, [one, two])
    assert again.private == made.private and again.members[one] == made.members[one]
    assert len({each.public for each in again.members.values()} | {again.public}) == 3
    assert len({len(each.private.reveal()) for each in again.members.values()}) == 1
    login, known = keys.for_ssh(tmp_path, UUID, {one: "web-01", two: "web-02"})
    assert login.stat().st_mode & 0o777 == 0o600 and login.read_text() == again.private.reveal()
    assert known.read_text().splitlines()[1] == f"web-02 {again.members[two].public}"
    assert (tmp_path / "fleets").stat().st_mode & 0o077 == 0 and "BEGIN" not in str(again)
    keys.drop(tmp_path, UUID, [one])
    assert keys.load(tmp_path, UUID, [two]).members[two] == again.members[two]
    with pytest.raises(Conflict, match="not on this machine"):
        keys.load(tmp_path, UUID, [one])
    keys.forget(tmp_path, UUID)
    assert not keys.there(tmp_path, UUID)


# Images


def golden(path: Path, options: tuple[str, ...] = (), size: str = "16M") -> Path:
    """A file system with what a small machine has."""
    tree = path.with_suffix(".tree")
    for name in ("etc/ssh", "etc/iscsi", "usr/sbin", "usr/lib/systemd", "usr/bin", "root"):
        (tree / name).mkdir(parents=True)
    for name in ("usr/sbin/sshd", "usr/lib/systemd/systemd", "etc/ssh/ssh_host_rsa_key"):
        (tree / name).write_text("x")
    (tree / "etc/hostname").write_text("golden\n")
    subprocess.run(["mke2fs", "-q", "-d", str(tree), *options, str(path), size], check=True, env=_environment())
    shutil.rmtree(tree)
    return path


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def read(image: Path, path: str, offset: int = 0) -> str:
    done = subprocess.run(["debugfs", "-R", f"cat {path}", f"{image}?offset={offset}" if offset else str(image)],
                          capture_output=True, text=True, check=True, env=_environment())  # fmt: skip
    return done.stdout


FILES = [
    FileToLay("/etc/hostname", "x" * 64, 0o644, True),
    FileToLay("/etc/long", "y" * 9000, 0o600, True),
    FileToLay("/root/.ssh/authorized_keys", "key\n", 0o600),
    FileToLay("/var/lib/made/for/it", "no new line at its end", 0o644),
    FileToLay("/etc/hosts", "".join(f"10.0.0.{number % 256}\tweb-{number}\n" for number in range(2000)), 0o644),
    FileToLay("/etc/ssh/ssh_host_rsa_key", "", absent=True),
    FileToLay("/etc/ssh/none", "", absent=True),
]


@pytest.mark.parametrize(
    "options",
    [("-t", "ext4"), ("-t", "ext4", "-b", "1024"), ("-t", "ext4", "-O", "^metadata_csum,^64bit"), ("-t", "ext3"),
     ("-t", "ext2"), ("-t", "ext4", "-O", "bigalloc")],
    ids=" ".join,
)  # fmt: skip
def test_files_are_laid_and_found_again_and_the_file_system_is_whole(tmp_path: Path, options: tuple[str, ...]) -> None:
    image = golden(tmp_path / "g.img", options)
    descriptor = os.open(image, os.O_RDWR)
    try:
        inside = ext4.look(descriptor, image.stat().st_size)
        assert inside == Inside("ext4", 0, ["systemd", "sshd", "iscsi"])
        laid = ext4.lay(descriptor, inside, FILES, write=True)
        assert [slot.path for slot in laid] == ["/etc/hostname", "/etc/long"]
        before = image.read_bytes()
        assert ext4.lay(descriptor, inside, FILES, write=False) == laid
        assert image.read_bytes() == before, "a look writes nothing"
        for slot in laid:
            begin = 0
            content = f"{slot.path} of its own\n".encode().ljust(slot.size, b"\n")
            for extent in slot.extents:
                os.pwrite(descriptor, content[begin : begin + extent.length], extent.offset)
                begin += extent.length
    finally:
        os.close(descriptor)
    assert read(image, "/etc/hostname").strip() == "/etc/hostname of its own"
    assert read(image, "/etc/long") == "/etc/long of its own\n".ljust(9000, "\n")
    assert read(image, "/root/.ssh/authorized_keys") == "key\n" and read(image, "/etc/ssh/ssh_host_rsa_key") == ""
    shown = subprocess.run(["debugfs", "-R", "stat /root/.ssh/authorized_keys", str(image)], capture_output=True,
                           text=True, check=True, env=_environment()).stdout  # fmt: skip
    assert "Mode:  0600" in shown and "User:     0" in shown and "Type: regular" in shown
    subprocess.run(["e2fsck", "-fn", str(image)], check=True, capture_output=True, env=_environment())


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_the_root_is_found_in_a_partition(tmp_path: Path, label: str) -> None:
    root, disk = golden(tmp_path / "root.img"), tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    kinds = {"gpt": ("U", "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"), "dos": ("0xef", "0x83")}[label]
    script = f"label: {label}\nstart=2048, size=2048, type={kinds[0]}\nstart=6144, size=32768, type={kinds[1]}\n"
    subprocess.run(["sfdisk", "-q", str(disk)], input=script, text=True, check=True, env=_environment())
    with disk.open("r+b") as file:
        file.seek(6144 * 512)
        file.write(root.read_bytes())
        inside = ext4.look(file.fileno(), 32 << 20)
        assert (inside.filesystem, inside.offset) == ("ext4", 6144 * 512) and "sshd" in inside.has
        laid = ext4.lay(file.fileno(), inside, FILES[:1], write=True)
        os.pwrite(file.fileno(), b"web-01".ljust(64, b"\n"), laid[0].extents[0].offset)
    assert read(disk, "/etc/hostname", inside.offset).strip() == "web-01"


def test_what_has_no_such_root_is_told(tmp_path: Path) -> None:
    for content in (b"", bytes(1 << 20), os.urandom(1 << 20)):
        file = tmp_path / "image"
        file.write_bytes(content)
        with file.open("rb") as opened:
            assert ext4.look(opened.fileno(), len(content)) == Inside("")
    data = golden(tmp_path / "data.img", ("-t", "ext4"))
    subprocess.run(["debugfs", "-w", "-R", "rmdir /etc/iscsi", str(data)], check=True, capture_output=True,
                   env=_environment())  # fmt: skip
    with data.open("r+b") as opened:
        opened.seek(1024 + 0x60)
        flags = int.from_bytes(opened.read(4), "little") | 0x4
        opened.seek(1024 + 0x60)
        opened.write(flags.to_bytes(4, "little"))
        opened.flush()
        found = ext4.look(opened.fileno(), data.stat().st_size)
        assert "was not unmounted" in found.problem and found.filesystem == "ext4"
        with pytest.raises(Unsafe, match="was not unmounted"):
            ext4.lay(opened.fileno(), found, FILES, write=True)


def test_what_is_there_with_another_content_is_written_and_odd_paths_are_refused(tmp_path: Path) -> None:
    image = golden(tmp_path / "g.img")
    with image.open("r+b") as opened:
        inside = ext4.look(opened.fileno(), image.stat().st_size)
        for content in ("one\n", "two\n"):
            files = [FileToLay("/etc/own", content), FileToLay("/etc/ssh/ssh_host_rsa_key", "", absent=True)]
            ext4.lay(opened.fileno(), inside, files, write=True)
            assert read(image, "/etc/own") == content
        for wrong in (FileToLay("/etc/own", "six\n"), FileToLay("/etc/own", "", absent=True)):
            with pytest.raises(Unsafe, match="/etc/own"):
                ext4.lay(opened.fileno(), inside, [wrong], write=False)
        subprocess.run(["debugfs", "-w", "-R", "symlink /var /etc", str(image)], check=True, capture_output=True,
                       env=_environment())  # fmt: skip
        for path, says in (("/var/x", "/var is no directory"), ("/etc", "/etc is a directory"),
                           ("/etc/own/x", "/etc/own is no directory")):  # fmt: skip
            with pytest.raises(Unsafe, match=says):
                ext4.lay(opened.fileno(), inside, [FileToLay(path, "x")], write=True)


def test_a_full_file_system_and_a_sealed_image_are_refused(tmp_path: Path) -> None:
    image = golden(tmp_path / "g.img", ("-t", "ext4", "-b", "1024"), "2M")
    with image.open("r+b") as opened:
        inside = ext4.look(opened.fileno(), image.stat().st_size)
        with pytest.raises(Unsafe, match="lacks /etc/hostname as it is to be"):
            ext4.lay(opened.fileno(), inside, FILES, write=False)
        with pytest.raises(Conflict, match="did not take"):
            ext4.lay(opened.fileno(), inside, [FileToLay("/etc/large", "x" * (2 << 20))], write=True)
        for path in ("/etc/$(id)", "/etc/a b", "/etc/a\nrm /etc/hostname", "/etc/../x", "etc/x", "/", ""):
            with pytest.raises(UsageError, match="no path that can be laid"):
                ext4.lay(opened.fileno(), inside, [FileToLay(path, "x")], write=True)
