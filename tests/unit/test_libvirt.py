"""What libvirt's backend reads from virsh's output, and what it builds for it: no libvirtd is needed."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound, StorkitError, UsageError
from storkit.core.guest import Disk, Guest
from storkit.core.model import DiskSource
from storkit.guests.render import render
from storkit.hypervisors import _paused as paused_guests
from storkit.hypervisors._libvirt import domain as domains
from storkit.hypervisors._libvirt import host, virsh
from storkit.hypervisors._libvirt.domainlog import last_messages
from storkit.hypervisors._libvirt.migration import LibvirtLimits, MigrationRoute, arguments, parse_route
from storkit.hypervisors._libvirt.virsh import parse_blocks
from storkit.hypervisors.libvirt import Libvirt
from storkit.system import acl

DATA = Path(__file__).parent / "data"
UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
VOLUME = "6c0c4f0e-6f0c-4f6e-9d0a-0d4a0d0f4b99"
GUEST = Guest("g", UUID, 16 << 20, hypervisor="libvirt", disks=[Disk("v", uuid=VOLUME)])
BLOCK = DiskSource("block", "/dev/storkit/v")


def data(name: str) -> str:
    return (DATA / f"virsh-9.0-{name}").read_text()


OTHER = "5b0c4f0e-6f0c-4f6e-9d0a-0d4a0d0f4b11"


def test_the_disks_of_a_domain() -> None:
    """What `virsh --quiet domblklist` of libvirt 9.0 prints."""
    text = """ vda      /dev/storkit/web
 sda      -
 hdc      /srv/a b.iso

"""
    assert parse_blocks(text) == [("vda", "/dev/storkit/web"), ("sda", "-"), ("hdc", "/srv/a b.iso")]


def test_look_at_all_domains() -> None:
    look = virsh.parse_listing(data("look.txt"))
    assert look.names == {UUID: "g", OTHER: "a 'quoted' name"}
    assert look.saved == set()
    assert look.states == {UUID: virsh.State(1, 1), OTHER: virsh.State(5, 0)}
    assert look.states[UUID].active and not look.states[OTHER].active
    assert [domains.read(xml).name for xml in look.xml] == ["g", "a 'quoted' name"]


def test_saved_memory_is_seen() -> None:
    listed, domain, rest = data("look.txt").partition("Domain: ")
    assert virsh.parse_listing(f"{listed}{UUID}\n{domain}{rest}").saved == {UUID}


def test_no_domains() -> None:
    assert virsh.parse_listing("\n\n") == virsh.DomainListing({}, {}, set(), [])


def test_jobs() -> None:
    job = virsh.parse_job(data("job-outgoing.txt"))
    assert job and job.outgoing and job.numbers["time_elapsed"] > 0
    done = virsh.parse_job(data("job-completed.txt"))
    assert done and (done.numbers["downtime"], done.numbers["data_processed"]) == (685, 582955)
    incoming = virsh.parse_job(data("job-completed-incoming.txt"))
    assert incoming and not incoming.outgoing
    assert virsh.parse_job(data("job-none.txt")) is None
    assert virsh.parse_job("") is None


def test_several_definitions_in_one_answer() -> None:
    live, other = map(domains.read, virsh.split_documents(data("dumpxml-two.xml")))
    assert (live.name, live.uuid, live.ours, live.machine) == ("g", UUID, True, "pc-i440fx-7.2")
    assert live.volumes == {VOLUME: "v"}
    assert (other.name, other.ours, other.volumes) == ("a 'quoted' name", False, {})
    assert virsh.split_documents("") == []


def test_domcapabilities() -> None:
    assert host.parse_offered(data("domcapabilities.xml")) == host.Offered("qemu", "pc-i440fx-7.2")


@pytest.mark.parametrize(("label", "user"), [("+64055:+64055", 64055), ("+0:+0", 0)])
def test_user_of_qemu(label: str, user: int) -> None:
    text = data("capabilities.xml").replace("+0:+0", label)
    assert host.parse_user(text) == user


def test_mark_survives_any_template() -> None:
    foreign = '<metadata><other:x xmlns:other="http://example.org/x"/></metadata>'
    text = render(GUEST, [BLOCK], "libvirt").replace("<memory", f"{foreign}<memory", 1)
    marked = domains.marked(text, GUEST)
    found = domains.read(marked)
    assert (found.ours, found.volumes, found.uuid) == (True, {VOLUME: "v"}, UUID)
    assert "http://example.org/x" in marked
    assert not domains.read(text).ours


def test_words_for_qemu_keep_their_namespace() -> None:
    guest = Guest("g", UUID, 16 << 20, hypervisor="libvirt", extra=["-no-hpet"])
    root = ET.fromstring(domains.marked(render(guest, [], "libvirt"), guest))
    assert [one.get("value") for one in root.iter(f"{{{domains.QEMU_NAMESPACE}}}arg")] == ["-no-hpet"]


def test_disks_are_where_the_destination_has_them() -> None:
    live = virsh.split_documents(data("dumpxml-two.xml"))[0]
    nbd = DiskSource("network", protocol="nbd", export="v", server="192.0.2.1", port=10809)
    there = domains.sources(render(GUEST, [nbd], "libvirt"))
    disk = ET.fromstring(domains.moved(live, there)).find("devices/disk")
    assert disk is not None and disk.get("type") == "network"
    (source,) = disk.findall("source")
    assert source.attrib == {"protocol": "nbd", "name": "v"}
    assert [one.attrib for one in source] == [{"name": "192.0.2.1", "port": "10809"}]
    assert disk.findtext("serial") == VOLUME[:20]
    with pytest.raises(UsageError, match="no disk vda"):
        domains.moved(live, {})


URI = "qemu+ssh://{address}/system"


def test_way_to_the_destination_survives_the_journey() -> None:
    one = MigrationRoute("qemu+ssh://b/system", "tcp://b", {"vda": "<disk/>"})
    assert parse_route(str(one), URI) == one
    for text in ("tcp:b:49152", '{"connect": 1}', "[]"):
        with pytest.raises(StorkitError):
            parse_route(text, URI)


@pytest.mark.parametrize(
    ("connect", "data"),
    [
        ("qemu+ssh://b/system?command=/tmp/x", "tcp://b"),
        ("qemu+ext://b/system", "tcp://b"),
        ("qemu+ssh://b/../system", "tcp://b"),
        ("qemu+ssh://-oProxyCommand=x/system", "tcp://b"),
        ("qemu+ssh://b/system", "exec:rm"),
        ("qemu+ssh://c/system", "tcp://b"),
        ("qemu+ssh://b/system", "tcp://b/?x"),
    ],
)
def test_a_destination_chooses_its_address_and_nothing_else(connect: str, data: str) -> None:
    with pytest.raises(UsageError, match="what this host goes by"):
        parse_route(str(MigrationRoute(connect, data, {})), URI)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (LibvirtLimits("tunnelled", 300, 0, 60), "--tunnelled"),
        (LibvirtLimits("tls", 300, 0, 60), "--migrateuri tcp://b --tls"),
        (LibvirtLimits("plain", 300, 1 << 20, 60), "--migrateuri tcp://b --bandwidth 1"),
        (LibvirtLimits("plain", 300, (1 << 20) + 1, 60), "--migrateuri tcp://b --bandwidth 2"),
    ],
)
def test_arguments_of_virsh_migrate(limits: LibvirtLimits, words: str) -> None:
    to = MigrationRoute("qemu+ssh://b/system", "tcp://b", {})
    made = " ".join(arguments(UUID, to, limits, Path("/x.xml")))
    assert made == (
        f"migrate --live --p2p --suspend --auto-converge --domain {UUID} "
        f"--desturi qemu+ssh://b/system {words} --xml /x.xml"
    )


def test_messages_are_those_of_the_last_start() -> None:
    said = last_messages(data("qemu.log"))
    assert said.startswith("20") and "starting up libvirt version" in said.splitlines()[0]
    assert "tainted: high-privileges" in said
    assert "-machine" not in said and said.count("starting up") == 1
    assert last_messages("no start\n") == "no start"


def test_nbd_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "NBD_CERTIFICATES", tmp_path / "nbd")
    assert host.nbd_certificates("") == host.CERTIFICATES
    (tmp_path / "nbd").mkdir()
    assert host.nbd_certificates('#nbd_tls_x509_cert_dir = "/commented"\n') == tmp_path / "nbd"
    assert host.nbd_certificates('default_tls_x509_cert_dir = "/all"\n') == Path("/all")
    both = 'default_tls_x509_cert_dir = "/all"\nnbd_tls_x509_cert_dir = "/own"\n'
    assert host.nbd_certificates(both) == Path("/own")


def test_directories_that_qemu_cannot_enter(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    assert host.closed_to(0, private / "socket") is None
    nobody = 65534
    assert host.closed_to(nobody, private / "socket") in (private, *private.parents)
    assert host.closed_to(private.stat().st_uid, private / "socket") is None or private.stat().st_uid == 0


def test_libvirts_qemu_is_let_into_storkits_own_directories_and_nobody_else_is(tmp_path: Path) -> None:
    """Also where the stable path, in one of them, is a link to a file in another."""
    run, dev, other = tmp_path / "run", tmp_path / "dev", tmp_path / "other"
    for directory in (run, dev, other):
        directory.mkdir(mode=0o700)
    (run / "disk.raw").touch()
    (dev / "web").symlink_to(run / "disk.raw")
    (other / "mine.raw").touch()
    qemu, stranger = 64055, 64056
    disks = [DiskSource("file", path=str(dev / "web")), DiskSource("file", path=str(other / "mine.raw"))]
    host.let_in(qemu, disks, (run, dev))
    host.let_in(qemu, disks, (run, dev))
    assert [acl.may_search(one, qemu) for one in (run, dev, other)] == [True, True, False]
    assert not any(acl.may_search(one, stranger) for one in (run, dev, other))
    assert all(one.stat().st_mode & 0o707 == 0o700 for one in (run, dev))
    assert acl.decode(acl.encode({(1, 0xFFFFFFFF): 7, (2, qemu): 1})) == {(1, 0xFFFFFFFF): 7, (2, qemu): 1}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    for name in ("state", "run", "dev"):
        (tmp_path / name).mkdir()
    return Site("h", tmp_path / "state", tmp_path / "run", tmp_path / "dev")


def test_host_without_libvirt_has_no_guests(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(tmp_path, monkeypatch, "echo 'error: failed to connect to the hypervisor' >&2; exit 1")
    assert Libvirt(site).find() == []
    with pytest.raises(NotFound):
        Libvirt(site).start("g")


def test_guests_of_a_silent_libvirtd_are_unknown(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(tmp_path, monkeypatch, f'case "$*" in *domcap*) cat {DATA}/virsh-9.0-domcapabilities.xml;; esac')
    libvirt = Libvirt(site)
    libvirt.define(GUEST, [BLOCK])
    assert [state.status for state in libvirt.find()] == ["stopped"]
    answer(tmp_path, monkeypatch, "echo 'error: failed to connect to the hypervisor' >&2; exit 1")
    assert [state.status for state in libvirt.find()] == ["unknown"]
    assert [state.status for state in libvirt.find(["g"])] == ["unknown"]
    assert libvirt.find(["other"]) == []
    for verb in (libvirt.retire, libvirt.undefine, libvirt.start, lambda name: libvirt.receive(name, True)):
        with pytest.raises(StorkitError):
            verb("g")
    assert (site.state / "libvirt/g/guest.json").exists()


def test_disks_that_have_paused_a_domain() -> None:
    """As virsh 9.0 prints them (cmdDomBlkError in libvirt's tools/virsh-domain-monitor.c)."""
    assert virsh.parse_errors("vda: no space\nvdb: unspecified error\n\n") == {"vda": True, "vdb": False}
    assert virsh.parse_errors("No errors found\n") == {}


def test_paused_by_an_error_says_which_and_goes_on(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virsh that stands for a domain without room, then for one that `virsh resume` has let go on."""
    answer(tmp_path, monkeypatch, f'case "$*" in *domcap*) cat {DATA}/virsh-9.0-domcapabilities.xml;; esac')
    libvirt = Libvirt(site)
    libvirt.define(GUEST, [BLOCK])
    now, mended = tmp_path / "now", tmp_path / "mended"
    running = data("look.txt")
    paused = running.replace("state.state=1\n  state.reason=1", "state.state=3\n  state.reason=5")
    assert paused != running
    (tmp_path / "running").write_text(running)
    now.write_text(paused)
    answer(
        tmp_path, monkeypatch,
        f'case "$*" in *"resume {UUID}"*) [ ! -e {mended} ] || cp {tmp_path}/running {now};;'
        f' *domblkerror*) echo "vda: no space";; *domstats*) cat {now};; esac',
    )  # fmt: skip
    (state,) = libvirt.find()
    assert (state.status, state.reason) == ("paused", "disk vda: no space left (ENOSPC)")
    with pytest.raises(Conflict, match="stands still again on h: disk vda: no space left"):
        libvirt.wake("g")
    mended.touch()
    monkeypatch.setattr(paused_guests, "FAILS_AGAIN", 0.01)
    assert libvirt.wake("g").status == "running"


def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a virsh on PATH that answers by a line of shell."""
    program = tmp_path / "bin/virsh"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
