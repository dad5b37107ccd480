"""Trees: what an import keeps, what it refuses before it writes, what a kill leaves, and how clones are made."""

from __future__ import annotations

import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import storkit
from storkit.core.backend import Site
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    Problems,
    StorkitError,
    Unsafe,
    Unsupported,
    UsageError,
)
from storkit.core.model import Volume
from storkit.directory import Directory, DirectorySettings
from storkit.nfs import NfsPool, NfsPoolSettings
from storkit.system.timeouts import scaled
from storkit.tech.files import trees
from tests.filesystems import mounted

root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and device nodes take root")


def new(name: str) -> Volume:
    return Volume(name, str(uuid4()), 0, kind="tree")


def pool_at(path: Path) -> NfsPool:
    path.mkdir(exist_ok=True)
    base = path.parent
    return NfsPool(Site("here", base / "state", base / "run", base / "dev"), NfsPoolSettings(path=str(path)))


@pytest.fixture
def pool(tmp_path: Path) -> NfsPool:
    return pool_at(tmp_path / "pool")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A root file system with one of everything."""
    top = tmp_path / "source"
    (top / "bin").mkdir(parents=True)
    (top / "bin/su").write_bytes(b"program" * 1000)
    os.link(top / "bin/su", top / "bin/also-su")
    (top / "link").symlink_to("/etc/passwd")
    (top / "up").symlink_to("../../../../etc")
    with (top / "sparse").open("wb") as file:
        file.truncate(64 << 20)
    os.mkfifo(top / "fifo")
    (top / "name with ' quotes \n and a line").touch()
    os.setxattr(top / "bin/su", "user.kept", b"yes")
    if os.geteuid() == 0:
        os.mknod(top / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.chown(top / "bin/su", 1234, 4321)
        os.setxattr(top / "bin/su", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        # user::rwx user:7:rwx group::r-x mask::rwx other::r-x (acl(5)): what setfacl would write
        acl = "0200000001000700ffffffff020007000700000004000500ffffffff10000700ffffffff20000500ffffffff"
        os.setxattr(top / "bin", "system.posix_acl_access", bytes.fromhex(acl))
    (top / "bin/su").chmod(0o4711)
    top.chmod(0o751)
    return top


XFS_ACL = ("trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT")
"""XFS shows ACLs once more under these names."""


def facts(top: Path) -> dict[str, Any]:
    """Everything of a tree that an import has to keep."""
    seen: dict[str, Any] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        now = path.lstat()
        names = [name for name in os.listxattr(path, follow_symlinks=False) if name not in XFS_ACL]
        xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        content: Any = path.readlink() if path.is_symlink() else path.read_bytes()[:8000] if path.is_file() else None
        seen[str(path.relative_to(top))] = (
            now.st_mode, now.st_uid, now.st_gid, now.st_rdev, int(now.st_mtime), xattrs, content,
            now.st_size if path.is_file() else 0, now.st_nlink if path.is_file() else 0,
        )  # fmt: skip
    return seen


def tar(source: Path, target: Path, *options: str) -> Path:
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "--acls", "-S", *options, "-C", source, "-cf", target, "."],
        check=True,
    )
    return target


@root
@pytest.mark.parametrize("how", ["directory", "link", "tar", "gz", "xz", "zst"])
def test_an_import_keeps_everything(pool: NfsPool, source: Path, tmp_path: Path, how: str) -> None:
    if how == "zst" and not shutil.which("zstd"):
        pytest.skip("zstd is not installed")
    options = {"gz": ["--gzip"], "xz": ["--xz"], "zst": ["--zstd"]}.get(how, [])
    if how == "link":
        given = tmp_path / "latest"
        given.symlink_to(source)
    else:
        given = source if how == "directory" else tar(source, tmp_path / "root.tar", *options)
    volume = new("web")
    (made,) = pool.import_tree([volume], str(given))
    top = Path(made.path)
    assert facts(top) == facts(source)
    assert (made.kind, made.format, made.made) == ("tree", "tree", "imported")
    assert (top / "sparse").stat().st_blocks * 512 < 1 << 20
    # What lies in it may be set-user-ID: nobody but root gets to it.
    assert stat.S_IMODE(top.parent.stat().st_mode) == 0o700
    assert pool.find() == [made] and 7000 <= made.size < 1 << 20
    assert pool.import_tree([volume], str(given)) == [made]
    with pytest.raises(Conflict, match="exists already"):
        pool.import_tree([new("web")], str(given))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
    return made


HOSTILE = {
    "a way up": [member("../escaped")],
    "a way up further down": [member("etc/../../escaped")],
    "an absolute name": [member("/ESCAPED")],
    "a hard link out of it": [member("passwd", tarfile.LNKTYPE, "../../escaped")],
    "a hard link to an absolute name": [member("passwd", tarfile.LNKTYPE, "/etc/passwd")],
    "through a link to an absolute name": [member("out", tarfile.SYMTYPE, "OUT"), member("out/escaped")],
    "through a link upwards": [member("out", tarfile.SYMTYPE, "../.."), member("./out//escaped")],
    "a hard link through a link": [member("out", tarfile.SYMTYPE, "/etc"), member("p", tarfile.LNKTYPE, "out/passwd")],
}


def archive(path: Path, members: list[tarfile.TarInfo], outside: Path) -> Path:
    with tarfile.open(path, "w") as file:
        file.addfile(member("fine"), io.BytesIO(b"fine"))
        for one in members:
            one.name = one.name.replace("/ESCAPED", f"{outside}/escaped")
            one.linkname = one.linkname.replace("OUT", str(outside))
            file.addfile(one, io.BytesIO(b"evil") if one.isreg() else None)
    return path


@pytest.mark.parametrize("what", HOSTILE)
def test_what_leads_out_of_a_tar_is_refused_before_anything_is_written(
    pool: NfsPool, tmp_path: Path, what: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    bad = archive(tmp_path / "bad.tar", HOSTILE[what], outside)
    with pytest.raises((Unsafe, Problems), match=r"absolute path|'\.\.'|leads out"):
        pool.import_tree([new("web")], str(bad))
    assert pool.find() == [] and list(outside.iterdir()) == []
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name or "web" in path.name]


def test_links_that_lead_out_together_lead_nowhere(pool: NfsPool, tmp_path: Path) -> None:
    """Each is harmless by its name; tar itself makes such links only when everything else is unpacked."""
    outside = tmp_path / "outside"
    outside.mkdir()
    members = [
        member("b", tarfile.SYMTYPE, "a"), member("a", tarfile.SYMTYPE, "OUT"), member("b/escaped"),
    ]  # fmt: skip
    bad = archive(tmp_path / "bad.tar", members, outside)
    with pytest.raises(StorkitError):
        pool.import_tree([new("web")], str(bad))
    assert list(outside.iterdir()) == [] and pool.find() == []


def test_every_hostile_name_is_told_and_not_too_many(pool: NfsPool, tmp_path: Path) -> None:
    bad = archive(tmp_path / "bad.tar", [member(f"../{number}") for number in range(100)], tmp_path)
    with pytest.raises(Problems) as caught:
        pool.import_tree([new("web")], str(bad))
    assert len(caught.value.problems) == 6 and "95 more" in caught.value.problems[-1].message


def test_what_is_no_tree_is_refused(pool: NfsPool, tmp_path: Path, source: Path) -> None:
    (tmp_path / "text").write_text("no tar\n" * 1000)
    os.mkfifo(tmp_path / "pipe")  # opened, it would wait for a writer
    with pytest.raises(UsageError, match="no file that can be read twice"):
        pool.import_tree([new("web")], str(tmp_path / "pipe"))
    with pytest.raises(UsageError, match="is no tar"):
        pool.import_tree([new("web")], str(tmp_path / "text"))
    with pytest.raises(NotFound, match="there is no file"):
        pool.import_tree([new("web")], str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="one in the other"):
        pool.import_tree([new("web")], str(tmp_path))
    cut = tar(source, tmp_path / "cut.tar.gz", "--gzip")
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(StorkitError, match=r"cut short|damaged"):
        pool.import_tree([new("web")], str(cut))
    assert pool.find() == [] and list(pool.path.iterdir()) == []


def test_a_pool_without_trees_says_so(tmp_path: Path, source: Path) -> None:
    site = Site("here", tmp_path / "state", tmp_path / "run", tmp_path / "dev")
    with pytest.raises(Unsupported, match="has no trees"):
        Directory(site, DirectorySettings()).import_tree([new("web")], str(source))


@root
@pytest.mark.parametrize(("kind", "made"), [("xfs", "reflink"), ("ext4", "copy")])
def test_clones_say_what_they_cost(tmp_path: Path, source: Path, kind: str, made: str) -> None:
    with (tmp_path / "source/data").open("wb") as file:
        file.write(os.urandom(20 << 20))
    (tmp_path / "disk").mkdir()
    with mounted(kind, tmp_path / "disk", 320 << 20) as path:
        pool = pool_at(path / "pool")
        (web,) = pool.import_tree([new("web")], str(source))
        free = shutil.disk_usage(path).free
        clones = pool.clone(web, [new("one"), new("two")])
        assert [clone.made for clone in clones] == [made] * 2
        assert (free - shutil.disk_usage(path).free < 10 << 20) == (made == "reflink")
        for clone in clones:
            assert facts(Path(clone.path)) == facts(source) and clone.origin == web.uuid and clone.size >= 20 << 20
        Path(clones[0].path, "bin/su").write_text("changed")
        assert facts(Path(web.path)) == facts(source)


def test_what_a_tree_cannot_do_is_refused_with_a_reason(pool: NfsPool, source: Path) -> None:
    (web,) = pool.import_tree([new("web")], str(source))
    with pytest.raises(Unsupported, match="one moment of a directory"):
        pool.snapshot(web, [new("snap")])
    with pytest.raises(Unsupported, match="room of its pool"):
        pool.resize([web])
    with pytest.raises(Unsupported, match="another kind"):
        pool.relabel([web])
    assert pool.find() == [web]


def test_what_is_deleted_is_gone_and_links_are_not_followed(pool: NfsPool, source: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (source / "out").symlink_to(precious)
    (web,) = pool.import_tree([new("web")], str(source))
    pool.delete([web])
    pool.delete([web])
    assert sorted(path.name for path in pool.path.iterdir()) == [".exports", ".storkit.lock"]
    assert (precious / "file").exists()


@root
def test_what_is_mounted_in_a_tree_is_neither_deleted_nor_copied(pool: NfsPool, source: Path, tmp_path: Path) -> None:
    (made,) = pool.import_tree([new("web")], str(source))
    precious, point = tmp_path / "precious", Path(made.path) / "mnt"
    precious.mkdir()
    (precious / "file").touch()
    point.mkdir()
    if subprocess.run(["mount", "--bind", precious, point]).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        for act in (lambda: pool.delete([made]), lambda: pool.clone(made, [new("copy")])):
            with pytest.raises(Conflict, match="something is mounted at") as caught:
                act()
            assert caught.value.hint == f"umount {point}"
        assert (precious / "file").exists() and pool.find() == [made]
    finally:
        subprocess.run(["umount", point], check=True)
    pool.delete([made])
    assert pool.find() == [] and (precious / "file").exists()


def test_a_directory_that_is_not_ours_is_in_the_way(pool: NfsPool, source: Path) -> None:
    (pool.path / "web.tree").mkdir()
    with pytest.raises(Conflict, match="in the way"):
        pool.import_tree([new("web")], str(source))
    assert (pool.path / "web.tree").is_dir()


KILLED = """\
import sys
from pathlib import Path
from storkit.core.model import Volume
from tests.unit.test_trees import pool_at
pool = pool_at(Path(sys.argv[1]))
print("begin", flush=True)
pool.import_tree([Volume("web", sys.argv[3], 0, kind="tree")], sys.argv[2])
print("done", flush=True)
"""


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    top = tmp_path / "large"
    for number in range(30):
        (top / str(number)).mkdir(parents=True)
        for other in range(40):
            (top / str(number) / str(other)).write_bytes(os.urandom(200))
    yield top


def test_a_kill_at_any_moment_leaves_no_name_and_blocks_none(pool: NfsPool, large: Path) -> None:
    first, took = run_killed(pool, large, None)
    assert first == "begin\ndone\n"
    pool.delete(pool.find())
    told = set()
    for part in range(5):
        said, _ = run_killed(pool, large, took * part / 5)
        told.add(said)
        found = pool_at(pool.path).find()
        assert [volume.name for volume in found] == (["web"] if "done" in said or found else [])
        for volume in found:  # it is whole, if it is
            assert facts(Path(volume.path)) == facts(large)
        pool.delete(found)
        (web,) = pool.import_tree([new("web")], str(large))
        pool.delete([web])
        assert sorted(path.name for path in pool.path.iterdir()) == [".exports", ".storkit.lock"]
    assert "begin\n" in told, "no kill came in between"


def run_killed(pool: NfsPool, source: Path, after: float | None) -> tuple[str, float]:
    """What an import said that is killed so many seconds after it began, and how long it took from there."""
    tree = Path(storkit.__file__).parents[1]
    argv = [sys.executable, "-c", KILLED, str(pool.path), str(source), str(uuid4())]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=tree, start_new_session=True)
    assert process.stdout is not None
    begin, began = process.stdout.readline(), time.monotonic()
    try:
        process.wait(timeout=scaled(60) if after is None else after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    said, _ = process.communicate()
    return begin + said, time.monotonic() - began


def test_tars_own_words_come_through(pool: NfsPool, tmp_path: Path) -> None:
    """A hard link to what is not in the tar."""
    with tarfile.open(tmp_path / "odd.tar", "w") as file:
        file.addfile(member("one", tarfile.LNKTYPE, "missing"))
    with pytest.raises(CommandFailed) as caught:
        pool.import_tree([new("web")], str(tmp_path / "odd.tar"))
    assert "Cannot hard link" in caught.value.stderr
    assert pool.find() == [] and sorted(path.name for path in pool.path.iterdir()) == [".exports", ".storkit.lock"]


def test_the_size_is_what_the_files_take(pool: NfsPool, source: Path) -> None:
    (web,) = pool.import_tree([new("web")], str(source))
    assert (
        web.size
        == trees.used(Path(web.path))
        == int(subprocess.run(["du", "-sB1", web.path], capture_output=True, text=True, check=True).stdout.split()[0])
    )
    assert pool.capacity().provisioned == web.size


@root
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    large, disk = tmp_path / "source", tmp_path / "disk"
    for directory in (large, disk):
        directory.mkdir()
    (large / "data").write_bytes(os.urandom(20 << 20))
    with mounted("tmpfs", disk, 8 << 20) as path:
        pool = pool_at(path / "pool")
        with pytest.raises(Conflict, match="no room"):
            pool.import_tree([new("web")], str(tar(large, tmp_path / "root.tar")))
        with pytest.raises(CommandFailed) as caught:
            pool.import_tree([new("web")], str(large))
        assert "No space left" in caught.value.stderr
        assert pool.find() == [] and not [each for each in pool.path.iterdir() if each.name.startswith("web")]
        assert shutil.disk_usage(path).used < 1 << 20
