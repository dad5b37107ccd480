"""What nfs reads from the kernel and from nfs-utils, and what it writes for them: no server is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from storkit.core.backend import Site
from storkit.core.errors import CommandFailed, Conflict, ServiceUnreachable, StorkitError, Unsupported, UsageError
from storkit.core.model import Client, Offer, Volume
from storkit.nfs import Nfs, NfsPool, NfsPoolSettings
from storkit.tech.grants import GrantStore
from storkit.tech.nfs import attach, layout
from storkit.tech.nfs import server as nfs_server
from storkit.tech.nfs.names import NfsClientGrant, NfsGrant, NfsSettings
from storkit.tech.nfs.server import Entry

DATA = Path(__file__).parent / "data"
FSID = "6aa75046225c4f4f9b7a1f0d2c3b4a59"
UUID = "68ef4ad6-1cb9-49f8-8773-a1a59a20d668"


def test_the_table_of_exports() -> None:
    theirs, ours, odd = nfs_server.parse_etab((DATA / "nfs-utils-2.6-etab.txt").read_text())
    assert (theirs.path, theirs.client, theirs.writable, theirs.ours) == ("/srv/other", "10.77.9.9", True, False)
    assert ours.ours and ours.writable and ours.client == "10.77.0.12/32"
    assert (odd.path, odd.client, odd.writable) == ('/srv/pool/sp a"ce#ü', "fd00::1/128", False)
    same = Entry(ours.path, ours.client, True, FSID)
    assert nfs_server.changed([ours], [same], NfsSettings()) == []
    for other in (replace(same, writable=False), replace(same, fsid=FSID[::-1]), replace(same, path="/srv/x")):
        assert nfs_server.changed([ours], [same, other], NfsSettings()) == [other]
    assert nfs_server.changed([ours], [same], NfsSettings(uid=1000)) == [same]


def test_the_kernels_table_without_what_it_has_forgotten() -> None:
    entries = nfs_server.parse_etab((DATA / "nfsd-6.1-export-content.txt").read_text())
    assert [(entry.path, entry.writable) for entry in entries] == [
        ("/srv/pool/.exports", False), ("/", False), ("/srv/pool/.exports/u1/n1", True)
    ]  # fmt: skip


def test_the_state_of_a_client() -> None:
    states = (DATA / "nfsd-6.1-client-states.txt").read_text()
    client = nfs_server.parse_client("7", (DATA / "nfsd-6.1-client-info.txt").read_text(), states)
    assert (client.number, client.address, set(client.files)) == ("7", "10.77.0.12", {13432})
    assert nfs_server.parse_client("8", 'address: "[fd00::1]:700"\n', "").address == "fd00::1"


def test_mounts() -> None:
    mounts = attach.parse_mountinfo((DATA / "proc-6.1-mountinfo-nfs.txt").read_text())
    assert mounts[-1].point == "/srv/a b"
    assert attach.mount_of(Path("/m/disk"), mounts).source == "10.77.0.11:/srv/pool/.exports/u1/n1"
    assert attach.mount_of(Path("/mnt/disk"), mounts).type == "ext4"
    assert attach.mount_of(Path("/srv/a b/x"), mounts).source == "/dev/ubdb"


@pytest.mark.parametrize("path", ["/srv/pool", "/srv/a b", "/srv/#\"'\\(x)", "/srv/é\n", "/srv/\udcff"])
def test_paths_survive_the_exports_file(path: str) -> None:
    escaped = nfs_server.escape(path)
    assert escaped.isascii() and not set(escaped) & set(" #\"'()\n")
    assert nfs_server.unescape(escaped) == path


def test_the_file_in_exports_d() -> None:
    entries = [Entry("/srv/a b", "10.0.0.1/32", True, FSID), Entry("/srv/a b", "fd00::1/128", False, FSID)]
    lines = nfs_server.exports_text(entries, NfsSettings(sec="krb5p", uid=900)).splitlines()
    assert lines[1].startswith("/srv/a\\040b 10.0.0.1/32(rw,sync,no_wdelay,subtree_check,all_squash,anonuid=900,")
    assert lines[2].startswith("/srv/a\\040b fd00::1/128(ro,") and lines[2].endswith(f"sec=krb5p,fsid={FSID})")
    assert nfs_server.exports_text([], NfsSettings()) == ""
    assert nfs_server.argument(entries[1]) == "[fd00::1/128]:/srv/a b"


@pytest.mark.parametrize(
    "settings",
    [
        {"version": "2"},
        {"sec": "none"},
        {"uid": 0},
        {"options": "soft"},
        {"options": "nconnect=4,vers=3"},
        {"options": "a b"},
        {"options": "suid"},
        {"options": "nconnect=4, dev"},
        {"options": "defaults"},
    ],
    ids=str,
)
def test_settings_that_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        NfsSettings(**settings)  # type: ignore[arg-type]


def test_mount_options_and_sources() -> None:
    assert attach.mount_options(NfsSettings(options="nconnect=4")) == (
        "vers=4.2,proto=tcp,hard,nosharecache,sec=sys,nconnect=4,nosuid,nodev,noexec"
    )
    assert attach.source("fd00::1", "/x") == "[fd00::1]:/x"
    with pytest.raises(UsageError):
        NfsPoolSettings(server="nas")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site("here", tmp_path / "state", tmp_path / "run", tmp_path / "dev", "127.0.0.1")


@pytest.fixture
def volume(site: Site, tmp_path: Path) -> Volume:
    (tmp_path / "pool").mkdir()
    pool = NfsPool(site, NfsPoolSettings(path=str(tmp_path / "pool"), format="qcow2"), "p")
    (image,) = pool.create([Volume("image", "00000000-0000-4000-8000-000000000001", 1 << 20)])
    (image,) = pool.relabel([replace(image, kind="image")])
    return pool.clone(image, [Volume("web", UUID, 1 << 20)])[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_clients_directory_has_the_files_that_the_volume_stands_on(volume: Volume) -> None:
    if volume.made != "overlay":
        pytest.skip("this file system shares blocks: no overlays")
    grant = NfsGrant(volume, "i1", {"b": NfsClientGrant(["192.0.2.2"], "n1")})
    for _ in range(2):
        layout.make(grant, "b", NfsSettings(uid=900, gid=901), managed=True)
    directory = grant.path("b")
    assert sorted(entry.name for entry in directory.iterdir()) == [".storkit", "image.qcow2", "web.qcow2"]
    assert (directory / ".storkit").read_text().strip() == layout.identity(grant)
    image, web = (directory / "image.qcow2").stat(), (directory / "web.qcow2").stat()
    assert (image.st_uid, image.st_gid, image.st_mode & 0o777) == (0, 901, 0o440), "nobody at a client writes an image"
    assert (web.st_uid, web.st_gid, web.st_mode & 0o777) == (900, 901, 0o600)
    assert web.st_ino == Path(volume.path).stat().st_ino
    layout.remove(layout.left(grant.pool, UUID))
    layout.take_back(volume)
    assert not directory.exists() and Path(volume.path).stat().st_uid == 0


def test_exports_that_are_refused_before_anything_changes(site: Site, volume: Volume, tmp_path: Path) -> None:
    nfs = Nfs(site)
    with pytest.raises(StorkitError) as refused:
        nfs.export([volume], [Client("b", False), Client("c", False, "no-such-host.invalid")])
    messages = [error.message for error in getattr(refused.value, "problems", [refused.value])]
    assert any("host b has none" in text for text in messages) and any("not known here" in text for text in messages)
    assert GrantStore(site, NfsGrant).find() == ([], []) and layout.left(tmp_path / "pool", UUID) == []


def test_two_hosts_of_one_address_are_refused(site: Site, volume: Volume) -> None:
    GrantStore(site, NfsGrant).save([NfsGrant(volume, "i", {"b": NfsClientGrant(["192.0.2.2"], "n1")})])
    with pytest.raises(StorkitError) as refused:
        Nfs(site).export([volume], [Client("c", False, "192.0.2.2")])
    problems = getattr(refused.value, "problems", [refused.value])
    assert any(isinstance(error, Unsupported) and "both come from 192.0.2.2" in error.message for error in problems)


def test_a_server_that_does_not_answer_is_named(site: Site) -> None:
    offer = Offer("web", UUID, 1 << 20, "here", "nfs", "/x", "storkit:x", False, server="127.0.0.9",
                  options={"file": "web.raw", "format": "raw"})  # fmt: skip
    with pytest.raises(ServiceUnreachable, match=r"127\.0\.0\.9, port 2049"):
        Nfs(site).attach([offer])
    assert Nfs(site).find_attachments() == [] and not (site.dev / "web").is_symlink()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An NFS server of files: its table of exports, and an exportfs that notes what it is told, or fails."""
    tools, kernel = tmp_path / "tools", tmp_path / "kernel"
    for directory in (tools, *(kernel / cache for cache in ("auth.unix.ip", "nfsd.fh", "nfsd.export"))):
        directory.mkdir(parents=True)
    exportfs = tools / "exportfs"
    exportfs.write_text(f'#!/bin/sh\ntest ! -e {tmp_path}/broken && echo "$@" >> {tmp_path}/told\n')
    exportfs.chmod(0o755)
    shutil.copy("/bin/sleep", tools / "rpc.mountd")
    (kernel / "threads").write_text("8\n")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    for name, place in {"ETAB": "etab", "EXPORTS_D": "exports.d", "CONTROL": "kernel", "CACHES": "kernel"}.items():
        monkeypatch.setattr(nfs_server, name, tmp_path / place)
    with subprocess.Popen([tools / "rpc.mountd", "600"]) as mountd:
        yield tmp_path
        mountd.kill()


def told(server: Path) -> str:
    text = (server / "told").read_text() if (server / "told").exists() else ""
    return text + "".join(path.read_text() for path in (server / "exports.d").glob("*"))


NONCES = ["0" * 32, "1" * 32]
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def granted(site: Site, volume: Volume) -> NfsGrant:
    grant = NfsGrant(volume, "i", {"b": NfsClientGrant(["192.0.2.2"], NONCES[0])}, ["b"])
    GrantStore(site, NfsGrant).save([grant])
    return grant


def test_an_unexport_that_was_killed_gives_no_right_back(site: Site, volume: Volume, server: Path) -> None:
    grant = granted(site, volume)
    grant.path("b").mkdir(parents=True)
    (server / "etab").write_text(f"{grant.path('b')} 192.0.2.2/32(rw,sync)\n")
    (server / "broken").touch()
    with pytest.raises(CommandFailed):
        Nfs(site).unexport([volume], ["b"])
    ((left,), _) = GrantStore(site, NfsGrant).find()
    assert left.writers == [] and list(left.clients) == ["b"], "it still names what is left"


@root
def test_a_host_whose_fencing_was_killed_is_exported_to_no_more(site: Site, volume: Volume, server: Path) -> None:
    grant = granted(site, volume)
    grant.path("b").mkdir(parents=True)
    (server / "etab").write_text(f"{grant.path('b')} 192.0.2.2/32(rw,sync)\n")
    GrantStore(site, NfsGrant).fence("b")
    Nfs(site).restore()
    assert told(server) == f"-u 192.0.2.2/32:{grant.path('b')}\n"
    # Nor is it when something else changes, and writes what is exported at the next boot.
    pool = NfsPool(site, NfsPoolSettings(path=str(server / "pool")), "p")
    other = pool.create([Volume("db", "68ef4ad6-1cb9-49f8-8773-a1a59a20d669", 1 << 20)])
    Nfs(site).export(other, [Client("c", False, "192.0.2.3")])
    assert "192.0.2.3/32" in told(server) and "192.0.2.2/32(" not in told(server)


@root
def test_a_volume_that_is_not_there_keeps_no_other_from_being_exported(
    site: Site, volume: Volume, server: Path
) -> None:
    gone = replace(
        volume, name="gone", uuid="68ef4ad6-1cb9-49f8-8773-a1a59a20d669", path=str(server / "unmounted/gone.raw")
    )
    GrantStore(site, NfsGrant).save([NfsGrant(gone, "i", {"b": NfsClientGrant(["192.0.2.2"], NONCES[1])})])
    grant = granted(site, volume)
    with pytest.raises(Conflict, match=r"unmounted/\.exports/.*: No such file or directory"):
        Nfs(site).restore()
    assert f"192.0.2.2/32:{grant.path('b')}" in told(server)


@root
def test_an_export_to_a_guest_is_put_back_without_its_address(site: Site, server: Path) -> None:
    (server / "pool").mkdir()
    (server / "source/etc").mkdir(parents=True)
    pool = NfsPool(site, NfsPoolSettings(path=str(server / "pool")), "p")
    (tree,) = pool.import_tree([Volume("web", UUID, 0, kind="tree")], str(server / "source"))
    nfs = Nfs(site)
    with pytest.raises(Unsupported, match="guest:web has none"):
        nfs.export([tree], [Client("guest:web", False)])
    nfs.export([tree], [Client("guest:web", False, "192.0.2.50")])
    before = GrantStore(site, NfsGrant).find()
    nfs.export([tree], [Client("guest:web", False)])
    assert GrantStore(site, NfsGrant).find() == before


# What a server says to the host that mounts


OFFER = Offer(
    "web", UUID, 1 << 20, "here", "nfs", "/pool/.exports/x", f"storkit:{UUID}:1.2", False, server="127.0.0.1",
    port=2049, options={"file": "web.raw", "format": "raw"},
)  # fmt: skip


@pytest.mark.parametrize(
    "lie",
    [
        {"options": {"file": "../x", "format": "raw"}},
        {"options": {"file": "", "format": "raw"}},
        {"options": {"format": "raw"}},
        {"options": {"file": "web.raw", "format": "vmdk"}},
        {"options": {"file": "web.raw"}},
        {"name": "pool"},
        {"name": "/pool/../etc"},
        {"server": ""},
        {"volume": "../web"},
    ],
    ids=str,
)
def test_an_offer_of_something_else_is_refused_before_anything_is_made(site: Site, lie: dict[str, object]) -> None:
    with pytest.raises(StorkitError):
        Nfs(site).attach([replace(OFFER, **lie)])  # type: ignore[arg-type]
    assert not (site.run / "nfs").exists() and not (site.dev / "web").exists()


@pytest.mark.parametrize("what", ["file in it", "link", "file"])
def test_nothing_is_mounted_over_what_is_not_storkits(tmp_path: Path, what: str) -> None:
    point, other = tmp_path / "run/nfs" / UUID, tmp_path / "other"
    point.parent.mkdir(parents=True)
    other.mkdir()
    if what == "link":
        point.symlink_to(other)
    elif what == "file":
        point.write_text("mine")
    else:
        point.mkdir()
        (point / "mine").touch()
    with pytest.raises(Conflict, match="nothing is mounted over it"):
        attach.mount("192.0.2.1", "/x", point, "vers=4.2")
    assert point.is_symlink() or point.exists()


@pytest.mark.parametrize(
    ("own", "client", "said"),
    [
        ("localhost", "127.0.0.2", "address localhost is"),
        ("127.0.0.1", "localhost", "the address of host b, is"),
        ("127.0.0.1", "nowhere.invalid", "is not known here"),
        ("", "127.0.0.2", "host s has no address"),
    ],
)
def test_an_address_that_leads_to_the_server_itself_is_refused(
    own: str, client: str, said: str, tmp_path: Path
) -> None:
    place = Site("s", tmp_path, tmp_path, tmp_path, own)
    volume = Volume("v", str(uuid4()), 1 << 20, "default", "s")
    with pytest.raises(StorkitError, match=said):
        Nfs(place, NfsSettings()).export([volume], [Client("b", False, client)])
    assert list(tmp_path.rglob("*.json")) == []


def test_a_host_without_the_names_of_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nfs = Nfs(Site("h", tmp_path, tmp_path, tmp_path, ""), NfsSettings())
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("socket.getprotobyname", lambda name: 6)
    assert nfs.ready(attaches=True) == []

    def unknown(name: str) -> int:
        raise OSError(f"protocol not found: {name}")

    monkeypatch.setattr("socket.getprotobyname", unknown)
    (found,) = nfs.ready(attaches=True)
    assert "/etc/protocols" in found.message and found.hint == "apt install netbase"
    assert nfs.ready(serves=True) == []


def test_what_mount_says_without_the_names_of_protocols() -> None:
    said = CommandFailed(["mount"], 32, "mount.nfs: Failed to find 'tcp' protocol\n")
    explained = attach._explained("s", "/srv", said)
    assert isinstance(explained, Unsupported) and explained.hint == "apt install netbase"
