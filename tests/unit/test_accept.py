"""What a host accepts of coordinators: its file, who may have written it, and what a hello may not change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from storkit.core import registry
from storkit.core.errors import NotAllowed, NotFound, StorkitError, Unsafe, UsageError
from storkit.hosts import accept
from storkit.hosts.accept import Accepted, Limits
from storkit.hosts.setup import PoolSettings, Setup
from storkit.system import beneath

FULL = Accepted(
    state="/var/lib/storkit",
    templates="/etc/storkit/templates",
    import_=["/srv/images"],
    export=["/srv/backup"],
    pools={"fast": {"type": "directory", "path": "/srv/volumes"}, "large": {"type": "lvm", "vg": "vg0"}},
    transports={"nbd": {"tls_dir": "/etc/pki/nbd"}},
    hypervisors={"qemu": {"binary": "/usr/bin/qemu-system-x86_64"}},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "accept.toml"
    accept.save(path, FULL)
    return path


def test_the_file_says_what_was_accepted(file: Path) -> None:
    assert accept.load(file) == FULL
    assert file.stat().st_mode & 0o777 == 0o644
    assert accept.load(file.with_name("none.toml")) is None


def test_everything_wrong_in_the_file_is_said_at_once() -> None:
    with pytest.raises(StorkitError) as caught:
        accept.parse('import = "x"\nexports = []\n[pools]\nfast = 1\n', "F")
    text = " ".join(problem.message for problem in caught.value.each)
    assert "import" in text and "'exports'" in text and "pools.fast" in text
    with pytest.raises(UsageError, match="is not an absolute path"):
        accept.parse('import = ["images"]\n', "F")
    with pytest.raises(UsageError, match="F: "):
        accept.parse("= 1", "F")


@pytest.mark.parametrize("who", ["group", "others", "directory", "link", "linked directory", "owner", "fifo"])
def test_a_file_that_others_could_write_is_not_believed(file: Path, who: str) -> None:
    if who in ("group", "others"):
        file.chmod(0o664 if who == "group" else 0o646)
    elif who == "directory":
        file.parent.chmod(0o777)
    elif who == "link":
        file.rename(file.with_name("real.toml"))
        file.symlink_to("real.toml")
    elif who == "linked directory":
        (file.parent / "d").symlink_to(file.parent)
        file = file.parent / "d" / file.name
    elif who == "owner":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(file, 65534, -1)
    else:
        file.unlink()
        os.mkfifo(file)
    with pytest.raises(Unsafe) as caught:
        accept.load(file)
    assert caught.value.hint
    file.parent.chmod(0o700)


def test_a_sticky_directory_of_root_s_may_lead_to_it(file: Path) -> None:
    """As /tmp: what is in it can be replaced by its owner alone. The file's own directory may not be one."""
    if os.geteuid() != 0:
        pytest.skip("the directory has to be root's")
    below = file.parent / "d"
    below.mkdir()
    moved = file.rename(below / file.name)
    below.parent.chmod(0o1777)
    assert accept.load(moved) == FULL
    below.chmod(0o1777)
    with pytest.raises(Unsafe, match="others may write"):
        accept.load(moved)


# What is below directories


@pytest.fixture
def images(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    (directory / "old").mkdir(parents=True)
    (directory / "old" / "a.img").write_text("a")
    (directory / "latest.img").symlink_to("old/a.img")
    (tmp_path / "secret").write_text("s")
    (directory / "out.img").symlink_to(tmp_path / "secret")
    (directory / "up").symlink_to("..")
    return directory


def test_files_below_a_directory_are_read_through_links_that_stay_there(images: Path) -> None:
    for name in ("old/a.img", "latest.img", "old/../latest.img", "up/images/latest.img"):
        with beneath.reading(f"{images}/{name}", [str(images)]) as there:
            assert Path(there).read_text() == "a"
            # The name stands for another file by now; what was found stays what it was.
            (images / "old" / "a.img").rename(images / "old" / "b.img")
            (images / "old" / "a.img").symlink_to("/etc/passwd")
            assert Path(there).read_text() == "a"
            (images / "old" / "b.img").rename(images / "old" / "a.img")


def test_nothing_else_is_read(images: Path) -> None:
    outside = [images.parent / "secret", "/etc/shadow", images / "out.img", images / "../secret", images / "up/secret"]
    for path in (*map(str, outside), "old/a.img", "", f"{images}/a\0b"):
        with (
            pytest.raises(NotAllowed, match="may not be read"),
            beneath.reading(path, [str(images)]),
        ):
            pass
    with pytest.raises(NotAllowed), beneath.reading(f"{images}/old/a.img", []):
        pass
    with pytest.raises(NotAllowed), beneath.reading(f"{images}-other/a", [str(images)]):
        pass
    with pytest.raises(NotFound), beneath.reading(f"{images}/none", [str(images)]):
        pass


def test_a_link_that_comes_after_the_look_is_not_followed(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """realpath(3) has seen directories; by the time they are opened, one is a link that leads out."""
    real = os.path.realpath

    def late(path: str) -> str:
        found = str(real(path))
        if path.endswith("a.img"):
            (images / "old").rename(images / "was")
            (images / "old").symlink_to(images.parent)
        return found

    monkeypatch.setattr(os.path, "realpath", late)
    with pytest.raises(Unsafe, match="symbolic link"), beneath.reading(f"{images}/old/a.img", [str(images)]):
        pass


def test_a_directory_that_others_can_replace_leads_nowhere(images: Path) -> None:
    """Its owner's neighbour could have made it a link to /root since it was accepted."""
    images.rename(images.parent / "was")
    images.symlink_to("was")
    for open_ in (beneath.reading, beneath.making):
        with pytest.raises(NotAllowed), open_(f"{images}/old/a.img", [str(images)]):
            pass
    images.unlink()
    (images.parent / "was").rename(images)
    images.parent.chmod(0o777)
    for open_ in (beneath.reading, beneath.making):
        with pytest.raises(Unsafe, match="others may write"), open_(f"{images}/old/a.img", [str(images)]):
            pass
    images.parent.chmod(0o700)
    images.chmod(0o777)
    with beneath.reading(f"{images}/old/a.img", [str(images)]) as there:
        assert Path(there).read_text() == "a"


def test_files_are_made_below_a_directory_that_nobody_else_writes(images: Path) -> None:
    with beneath.making(f"{images}/old/new.img", [str(images)]) as there:
        Path(there).write_text("new")
    assert (images / "old/new.img").read_text() == "new"
    for name in ("/etc/cron.d/x", f"{images}/up/x", f"{images}/../x", "x"):
        with pytest.raises(NotAllowed), beneath.making(name, [str(images)]):
            pass
    for name in (f"{images}/", f"{images}/.."):
        with pytest.raises(UsageError), beneath.making(name, [str(images)]):
            pass
    with pytest.raises(UsageError, match="no directory"), beneath.making(f"{images}/none/x", [str(images)]):
        pass
    (images / "old").chmod(0o777)
    with pytest.raises(Unsafe, match="others may write"), beneath.making(f"{images}/old/x", [str(images)]):
        pass


# What a hello may say


def told(**more: Any) -> Setup:
    return Setup("b", **more)


def settings(target: str, type: str, given: dict[str, Any], accepted: Accepted = FULL) -> dict[str, Any]:
    kind = target.partition(":")[0]
    return Limits("storage", accepted, "b").settings(getattr(registry, kind)(type), target, given)


def test_pools_are_as_the_host_has_them() -> None:
    mine = {"path": "/srv/volumes"}
    assert settings("pool:fast", "directory", {}) == settings("pool:fast", "directory", mine) == mine
    assert settings("pool:large", "lvm", {"vg": "vg0", "overcommit": 1.0}) == {"vg": "vg0"}
    for target, kind, given in (
        ("pool:fast", "directory", {"path": "/"}),
        ("pool:fast", "directory", {"format": "qcow2"}),
        ("pool:fast", "nfs", {}),
        ("pool:large", "lvm", {"vg": "vg1"}),
        ("pool:large", "lvm", {"zeroing": False}),
        ("pool:mine", "directory", {"path": "/srv/volumes"}),
    ):
        with pytest.raises(NotAllowed) as caught:
            settings(target, kind, given)
        assert f"host b does not accept {target}" in caught.value.message
        assert caught.value.hint == f"there, as root: storkit host accept {target}"


def test_paths_and_programs_are_the_host_s_and_the_rest_is_the_coordinator_s() -> None:
    assert settings("transport:nbd", "nbd", {"cache": "none"}) == {"cache": "none", "tls_dir": "/etc/pki/nbd"}
    assert settings("transport:iscsi", "iscsi", {"portals": ["10.0.0.1"]}) == {"portals": ["10.0.0.1"]}
    given = {"binary": "/usr/bin/qemu-system-x86_64", "accel": "kvm", "migration_tls_dir": ""}
    assert settings("hypervisor:qemu", "qemu", given) == given
    for target, kind, wrong in (
        ("transport:nbd", "nbd", {"tls_dir": "/tmp/x"}),
        ("transport:nfs", "nfs", {"options": "suid"}),
        ("hypervisor:qemu", "qemu", {"binary": "/tmp/evil"}),
        ("hypervisor:qemu", "qemu", {"templates": "/tmp/evil"}),
        ("hypervisor:libvirt", "libvirt", {"uri": "qemu+ext:///system?command=/tmp/evil"}),
    ):
        with pytest.raises(NotAllowed, match=f"does not accept {target} with {next(iter(wrong))} = "):
            settings(target, kind, wrong)


def test_what_the_file_sets_is_not_the_coordinator_s_any_more() -> None:
    own = Accepted(transports={"nbd": {"tls": "x509", "tls_dir": "/etc/pki/nbd"}})
    assert settings("transport:nbd", "nbd", {}, own)["tls"] == "x509"
    with pytest.raises(NotAllowed, match=r"tls = 'psk' \(there: 'x509'\)"):
        settings("transport:nbd", "nbd", {"tls": "psk"}, own)


def test_state_and_templates_are_the_host_s() -> None:
    limits = Limits("storage", FULL)
    assert limits.setup(told()).state == "/var/lib/storkit"
    assert limits.setup(told(state="/var/lib/../lib/storkit")).templates == "/etc/storkit/templates"
    with pytest.raises(StorkitError) as caught:
        limits.setup(told(state="/etc", templates="/tmp/evil"))
    assert [type(problem) for problem in caught.value.each] == [NotAllowed, NotAllowed]
    assert all("host accept --" in problem.hint for problem in caught.value.each)


def test_without_a_file_only_what_a_grade_keeps_out_is_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "default_file", lambda: tmp_path / "none.toml")
    pool = told(pools={"p": PoolSettings("directory", {"path": "/srv"})}, state="/srv/state")
    for grade in ("", "guests"):
        assert accept.limits(grade).accepted is None
        assert accept.limits(grade).setup(pool) == pool
    for grade in ("read", "storage"):
        assert accept.limits(grade).accepted == Accepted()
    with pytest.raises(UsageError, match="there is no file"):
        accept.limits("", tmp_path / "none.toml")


def test_the_file_s_place_is_not_the_environment_s(monkeypatch: pytest.MonkeyPatch) -> None:
    before = accept.default_file()
    for name in ("XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, "/tmp/evil")
    assert accept.default_file() == before
