"""Guests that libvirt has already are adopted with their disks in place, and given back; killed anywhere as well."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.test_kill_points import walk
from tests.e2e.world import ROOT, World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e

UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
DOMAIN = """\
<domain type='qemu'>
  <name>NAME</name>
  <uuid>UUID</uuid>
  <description>made by hand</description>
  <memory unit='KiB'>16384</memory>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
  </os>
  <devices>
DISKS  </devices>
</domain>
"""
DISK = """\
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='PLACE'/>
      <target dev='TARGET' bus='ide'/>
      <serial>S-1</serial>
    </disk>
"""


class Site:
    """A world whose hosts have a virsh, and an administrator's domains."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.libvirt, self.images = world.directory / "libvirt", world.directory / "images"
        binaries = world.directory / "bin"
        for directory in (self.libvirt, self.images, binaries):
            directory.mkdir()
        virsh = binaries / "virsh"
        virsh.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.e2e.fakevirsh "$@"\n')
        virsh.chmod(0o755)
        world.environment["PATH"] = f"{binaries}:{os.environ['PATH']}"
        world.environment["FAKE_LIBVIRT"] = str(self.libvirt)

    def domain(self, name: str = "g", uuid: str = UUID, *targets: str, more: str = "") -> str:
        """Make a domain with disks of these targets; its XML."""
        disks = ""
        for target in targets or ("hda",):
            path = self.image(f"{name}-{target}")
            bootsector.make_disk(path, rest=2)
            path.chmod(0o600)
            disks += DISK.replace("PLACE", str(path)).replace("TARGET", target)
        text = DOMAIN.replace("NAME", name).replace("UUID", uuid).replace("DISKS", disks + more)
        (self.libvirt / f"{uuid}.xml").write_text(text)
        return text

    def image(self, name: str) -> Path:
        return self.images / f"{name}.img"

    def defined(self, uuid: str = UUID) -> str:
        return (self.libvirt / f"{uuid}.xml").read_text()

    def file(self, text: str) -> Path:
        """A configuration in a file of the administrator's."""
        file = self.world.directory / "own.xml"
        file.write_text(text)
        return file

    def volumes(self) -> list[str]:
        return [each["name"] for each in self.world.storkit("--json", "volume", "list").json]


@pytest.fixture
def site(make_world: Callable[..., World]) -> Site:
    return Site(make_world("raw"))


def test_a_domain_is_adopted_with_its_disks_and_given_back(site: Site) -> None:
    world, text = site.world, site.domain("g", UUID, "hda", "hdb")
    inodes = {target: site.image(f"g-{target}").stat().st_ino for target in ("hda", "hdb")}
    assert "take g on a" in world.storkit("-n", "guest", "adopt", "g").stdout
    assert site.defined() == text and site.image("g-hda").exists() and site.volumes() == []
    (guest,) = world.storkit("--json", "guest", "adopt", "g", "--disk", "hdb=data").json
    assert (guest["name"], guest["uuid"], guest["hypervisor"]) == ("g", UUID, "libvirt")
    assert [(disk["target"], disk["volume"]) for disk in guest["disks"]] == [("hda", "g-hda"), ("hdb", "data")]
    assert (world.directory / "guests/g.xml").read_text() == text, "its own document, as it was"
    for target, volume in (("hda", "g-hda"), ("hdb", "data")):
        shown = world.storkit("--json", "volume", "show", volume).json
        assert Path(shown["path"]).stat().st_ino == inodes[target] and shown["writers"] == ["a"]
        assert str(world.directory / "a/dev" / volume) in site.defined(), "its stable path"
    for kept in ("made by hand", "<serial>S-1</serial>", "cache=", "16384", UUID):
        assert kept in site.defined()
    assert str(site.images) not in site.defined()
    assert world.storkit("guest", "adopt", "g", ok=None).status == 5
    assert "made by hand" in world.storkit("guest", "render", "g").stdout

    world.storkit("guest", "release", "g")
    assert site.defined() == text and site.volumes() == []
    assert {target: site.image(f"g-{target}").stat().st_ino for target in inodes} == inodes
    assert not (world.directory / "guests/g.toml").exists() and world.leftovers() == []


def test_all_of_a_host_in_one_plan_and_with_as_few_processes_as_one(site: Site) -> None:
    uuids = {f"g{number}": UUID[:-1] + str(number) for number in range(1, 4)}
    texts = {name: site.domain(name, uuid) for name, uuid in uuids.items()}
    calls = site.libvirt / "calls"
    site.world.storkit("guest", "adopt", "g1", "--on", "a")
    alone = len(calls.read_text().splitlines())
    site.world.storkit("guest", "release", "g1")
    calls.unlink()
    names = [guest["name"] for guest in site.world.storkit("--json", "guest", "adopt", "--all", "--on", "a").json]
    assert names == list(uuids) == site.volumes()
    # More are those that ask whom storkit does not know.
    assert len(calls.read_text().splitlines()) <= alone + 5, calls.read_text()
    plans = [each for each in site.world.storkit("--json", "plan", "list").json if each["title"].startswith("adopt 3")]
    assert len(plans) <= 1
    assert "no guest that storkit does not know" in site.world.storkit("guest", "adopt", "--all", ok=4).stderr
    for name, uuid in uuids.items():
        site.world.storkit("guest", "release", name)
        assert site.defined(uuid) == texts[name]


CDROM = """\
    <disk type='file' device='cdrom'>
      <source file='/srv/debian.iso'/>
      <target dev='hdc' bus='ide'/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='rbd' name='pool/x'/>
      <target dev='hdd' bus='ide'/>
    </disk>
"""


def test_all_that_speaks_against_it_is_said_at_once_and_nothing_changes(site: Site) -> None:
    world, text = site.world, site.domain("g", UUID, "hda", more=CDROM)
    image = site.image("g-hda")
    os.link(image, site.images / "second")
    said = world.storkit("guest", "adopt", "g", ok=None)
    assert said.status != 0
    for words in ("has 2 names", "cdrom hdc (/srv/debian.iso) is no volume", "disk hdd (rbd:pool/x) is no volume"):
        assert words in said.stderr
    (site.images / "second").unlink()
    (site.libvirt / f"{UUID}.running").touch()
    said = world.storkit("guest", "adopt", "g", "--local", "hdc", "--local", "hdd", ok=None)
    assert said.status != 0 and "domain g runs, and which process it is cannot be seen" in said.stderr
    (site.libvirt / f"{UUID}.running").unlink()
    (site.libvirt / f"{UUID}.saved").touch()
    assert "memory saved" in world.storkit("guest", "adopt", "g", "--local", "hdc", "--local", "hdd", ok=5).stderr
    (site.libvirt / f"{UUID}.saved").unlink()
    assert "no domain h" in world.storkit("guest", "adopt", "h", ok=4).stderr
    assert site.volumes() == [] and image.exists() and site.defined() == text


@contextmanager
def runs(site: Site, name: str = "g", uuid: str = UUID) -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a domain's QEMU, which has its disk open."""
    world = site.world
    with world.inventory.open("a") as inventory:
        inventory.write('[hypervisors.libvirt]\nuri = "qemu:///session"\n')
    notes = world.directory / "runtime/libvirt/qemu/run"
    notes.mkdir(parents=True)
    world.environment["XDG_RUNTIME_DIR"] = str(world.directory / "runtime")
    code = "file = open(__import__('sys').argv[1], 'r+b'); print(flush=True); input()"
    words = [sys.executable, "-c", code, str(site.image(f"{name}-hda")), uuid]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guest:
        assert guest.stdout and guest.stdout.readline() == b"\n"
        (site.libvirt / f"{uuid}.running").touch()
        (notes / f"{name}.pid").write_text(str(guest.pid))
        try:
            yield guest
        finally:
            guest.kill()
            (site.libvirt / f"{uuid}.running").unlink(missing_ok=True)


def test_a_guest_that_runs_stays_as_it_is_where_its_disk_cannot_be_shared(site: Site) -> None:
    """A cached file, an image with tables, and a disk that is another than the one that its domain is defined with."""
    world, text = site.world, site.domain()
    with runs(site) as guest:
        (site.libvirt / f"{UUID}.xml").write_text(text.replace(" cache='none'", ""))
        said = world.storkit("guest", "adopt", "g", ok=5).stderr
        assert "writes the file of its disk hda through the page cache" in said
        (site.libvirt / f"{UUID}.xml").write_text(text)
        (site.libvirt / f"{UUID}.running").write_text(text.replace("g-hda.img", "other.img"))
        assert "runs with other disks than its definition has" in world.storkit("guest", "adopt", "g", ok=5).stderr
        (world.directory / "runtime/libvirt/qemu/run/g.pid").write_text(str(os.getpid()))
        (site.libvirt / f"{UUID}.running").write_text("")
        said = world.storkit("guest", "adopt", "g", ok=None).stderr
        assert "which process it is cannot be seen" in said
        (world.directory / "runtime/libvirt/qemu/run/g.pid").write_text(str(guest.pid))
        image = site.image("g-hda")
        image.unlink()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "2M"], check=True)
        image.chmod(0o600)
        (site.libvirt / f"{UUID}.xml").write_text(text.replace("type='raw'", "type='qcow2'"))
        said = world.storkit("guest", "adopt", "g", ok=5).stderr
        assert "its own process has its disk hda open, and its format is qcow2" in said
    assert site.volumes() == [] and site.image("g-hda").exists()


def test_a_guest_that_runs_on_a_raw_file_goes_on_with_it(site: Site) -> None:
    world, text = site.world, site.domain()
    image = site.image("g-hda")
    inode = image.stat().st_ino
    with runs(site) as guest:
        said = world.storkit("guest", "adopt", "g").stderr
        assert "nothing keeps that process from writing them" in said and guest.poll() is None
        shown = world.storkit("--json", "volume", "show", "g").json
        assert (Path(shown["path"]).stat().st_ino, shown["writers"]) == (inode, ["a"])
        assert image.stat().st_ino == inode, "its QEMU finds it by its old name as well"
        assert world.storkit("attach", "g", "--on", "b", ok=None).status == 5
        assert world.storkit("guest", "release", "g", ok=5).stderr
    world.storkit("guest", "release", "g")
    assert (image.stat().st_ino, image.stat().st_nlink) == (inode, 1)
    assert site.defined() == text and world.leftovers() == []


def test_what_is_changed_in_libvirt_is_shown_and_taken_over_when_somebody_has_looked(site: Site) -> None:
    world, text = site.world, site.domain()
    world.storkit("guest", "adopt", "g")
    definition = site.libvirt / f"{UUID}.xml"
    ours = definition.read_text()
    assert world.storkit("--json", "guest", "show", "g").json["edited"] == []
    definition.write_text(ours.replace("made by hand", "made by another"))
    assert world.storkit("--json", "guest", "show", "g").json["edited"] == ["a"]
    assert "changed" in world.storkit("guest", "show", "g").stdout
    said = world.storkit("guest", "diff", "g").stdout
    changed = [line for line in said.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert changed == ["-  <description>made by hand</description>", "+  <description>made by another</description>"]
    for words in (("start", "g", "--on", "a"), ("release", "g"), ("stop", "g")):
        refused = world.storkit("guest", *words, ok=5).stderr
        assert "g was changed on a by its hypervisor's own tools" in refused and "guest refresh g" in refused
    assert "made by another" in definition.read_text()

    record = world.directory / "guests/g.xml"
    kept = record.read_text()
    record.write_text(kept.replace("made by hand", "mine"))
    assert "its files here say what is not kept" in world.storkit("guest", "refresh", "g", ok=5).stderr
    record.write_text(kept)
    disk = DISK.replace("PLACE", "/new").replace("TARGET", "hdb")
    definition.write_text(ours.replace("    <disk", f"{disk}    <disk", 1))
    assert "disk hdb is new, and no volume" in world.storkit("guest", "refresh", "g", ok=2).stderr
    definition.write_text(re.sub("<source .*</source>", "<source file='/new'/>", ours, flags=re.S))
    assert "disk hda is another one than the volume that it was" in world.storkit("guest", "refresh", "g", ok=2).stderr
    definition.write_text(ours.replace("made by hand", "made by another"))
    done = world.storkit("guest", "refresh", "g").stdout
    assert "generation 2" in done and "+  <description>made by another" in done
    shown = world.storkit("--json", "guest", "show", "g").json
    assert (shown["edited"], shown["kept"]["same"], shown["kept"]["generation"]) == ([], True, 2)
    assert "made by another" in record.read_text() and str(site.image("g-hda")) in record.read_text()
    assert world.storkit("guest", "diff", "g").stdout.strip() == ""
    assert "was not changed" in world.storkit("guest", "refresh", "g").stdout

    definition.write_text(ours.replace("made by hand", "made by a third"))
    world.storkit("guest", "stop", "g", "--on", "a", "--force")  # b has the same libvirt in this world
    (aside,) = (world.directory / "a/libvirt-edited").iterdir()
    assert "made by a third" in aside.read_text() and aside.stat().st_mode & 0o777 == 0o600
    assert not definition.exists() and text != ours


def test_a_password_is_kept_apart_and_put_in_again(site: Site) -> None:
    world = site.world
    secret = site.domain().replace("<devices>", "<devices>\n    <graphics type='vnc' passwd='hush'/>")
    (site.libvirt / f"{UUID}.xml").write_text(secret)
    assert "hush" not in world.storkit("-n", "guest", "adopt", "g").stdout
    assert not list(world.directory.glob("**/secrets/*.json"))
    world.storkit("guest", "adopt", "g")
    said = (world.directory / "guests/g.xml").read_text()
    assert "hush" not in said and "storkit-secret-1" in said and "hush" in site.defined()
    having = [file for file in world.directory.rglob("*") if file.is_file() and b"hush" in file.read_bytes()]
    names = [f"{UUID}.json", f"{UUID}.xml", "domain.xml", "written.xml"]
    assert sorted(file.name for file in having) == sorted(names), having
    assert all(file.stat().st_mode & 0o077 == 0 for file in having if file.parent != site.libvirt)
    world.storkit("guest", "release", "g")
    assert site.defined() == secret and not list(world.directory.glob("**/secrets/*.json"))


def test_what_speaks_against_giving_back_is_said(site: Site) -> None:
    world, _ = site.world, site.domain()
    world.storkit("guest", "adopt", "g")
    world.storkit("guest", "define", "h", "--disk", "g:ro", "--memory", "16MiB")
    assert "is a disk of guest h" in world.storkit("guest", "release", "g", ok=5).stderr
    (site.libvirt / f"{UUID}.running").touch()
    assert "running" in world.storkit("guest", "release", "g", ok=5).stderr
    (site.libvirt / f"{UUID}.running").unlink()
    world.storkit("guest", "delete", "h")
    world.storkit("guest", "release", "g")
    assert site.volumes() == []


def test_the_pool_keeps_an_adopted_guest(site: Site) -> None:
    """As it keeps others: for whoever has not the files of this machine."""
    world, text = site.world, site.domain()
    world.storkit("guest", "adopt", "g")
    shown = world.storkit("--json", "guest", "show", "g").json["kept"]
    assert (shown["generation"], shown["same"]) == (1, True)
    for file in (world.directory / "guests").iterdir():
        file.unlink()
    assert [guest["name"] for guest in world.storkit("--json", "guest", "list").json] == ["g"]
    again = site.file(text)
    assert "exists already" in world.storkit("guest", "adopt", "g", "--config", again, ok=5).stderr
    world.storkit("guest", "release", "g")
    assert site.defined() == text and world.storkit("--json", "guest", "list").json == []


def test_a_guest_of_a_file_is_adopted_with_its_disks(site: Site) -> None:
    """As for xl, which keeps no configuration of a guest that does not run."""
    cfg = site.world.directory / "x.cfg"
    image = site.image("x")
    bootsector.make_disk(image)
    image.chmod(0o600)
    cfg.write_text(f'name = "x"\nmemory = 64\n# ours\ndisk = [ "format=raw, vdev=xvda, target={image}" ]\n')
    (guest,) = site.world.storkit("--json", "guest", "adopt", "x", "--config", cfg).json
    assert (guest["hypervisor"], guest["disks"][0]["volume"]) == ("xl", "x") and site.volumes() == ["x"]
    rendered = site.world.storkit("guest", "render", "x").stdout
    assert "# ours" in rendered and "/dev/storkit/x" in rendered
    site.world.storkit("guest", "release", "x")
    assert image.exists() and site.volumes() == []


@pytest.mark.slow
@pytest.mark.parametrize("mend", ["resume", "rollback"])
@pytest.mark.parametrize("verb", ["adopt", "release"])
def test_killed_anywhere(site: Site, verb: str, mend: str) -> None:
    world, text = site.world, site.domain()
    inode = site.image("g-hda").stat().st_ino
    if verb == "release":
        world.storkit("guest", "adopt", "g")

    def check(point: str, plan: str) -> None:
        adopted = (verb == "adopt") == (mend == "resume")
        assert site.volumes() == ["g"] * adopted, f"{mend} after {point}"
        place = world.directory / "a/volumes/g.raw" if adopted else site.image("g-hda")
        assert place.stat().st_ino == inode, f"{mend} after {point}"
        assert (site.defined() == text) != adopted, f"{mend} after {point}"
        if (verb, mend) == ("release", "resume"):
            world.storkit("guest", "delete", "g")  # the files of whoever gave the command
        listed = [guest["name"] for guest in world.storkit("--json", "guest", "list").json]
        assert listed == ["g"] * adopted, f"{mend} after {point}"
        if adopted:
            assert world.storkit("--json", "volume", "show", "g").json["writers"] == ["a"], f"{mend} after {point}"
        else:
            assert world.leftovers() == [], f"{mend} after {point}"
        if mend == "resume":
            world.storkit("guest", "release" if verb == "adopt" else "adopt", "g")

    assert len(walk(world, ("guest", verb, "g"), mend, check)) >= 8
