"""A guest of Xen's into a file and back, by an xl that is played here: what counts as whole, and what is taken back."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storkit.core.backend import Site
from storkit.core.errors import CommandFailed, Conflict, NotFound, StorkitError, Unsafe
from storkit.core.guest import Disk, Guest
from storkit.core.model import DiskSource, Saved
from storkit.hypervisors import _saved as memory
from storkit.hypervisors._qemu.definition import Definition
from storkit.hypervisors._xl import processes, toolstack
from storkit.hypervisors._xl.guests import XenGuests
from storkit.hypervisors._xl.processes import XlProcess
from storkit.hypervisors._xl.saving import XlSave, disk_paths
from storkit.hypervisors.xl import Xl
from storkit.system import locks

UUID, OTHER = "606063c6-f709-4bdf-87e4-d458aa1e59d8", "5b0c4f0e-6f0c-4f6e-9d0a-0d4a0d0f4b11"
HOLD, OLD = "0d4a6a5e-2f7b-4d5c-9a3e-8c6f1b2a3d4e", "cc18ff28-316c-43a9-9f2c-38e3cc63bc95"
SAVED = Saved(UUID, "g", HOLD, {OLD: 1}, "xl", {})
GUEST = Guest("g", UUID, 96 << 20, hypervisor="xl", disks=[Disk("g", uuid=UUID)])
HEADER = "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID"
RUNS, STILL, ARRIVED, SUSPENDED = (
    f"{HEADER}\ng  {id}  96  1  {flags}  {seconds} {UUID}  -  -\n"
    for id, flags, seconds in ((1, "-b----", 1.2), (1, "--p---", 1.2), (2, "--p---", 0.0), (1, "---ss-", 1.2))
)

# Each command writes itself down, and then the list is what AFTER-command has; `fails` has a command's name.
XL = """\
#!/bin/sh
cd "{base}"
case $1 in
list) exec cat list ;;
info) echo "xen_major : 4"; exec echo "xen_minor : 17" ;;
esac
echo "$*" >>done
case $1 in save) cat stream >"$4" ;; esac
[ ! -e "after-$1" ] || cat "after-$1" >list
[ "$(cat fails 2>/dev/null)" != "$1" ] || {{ echo "no space left" >&2; exit 1; }}
"""
XENSTORE = """\
#!/bin/sh
echo '/local/domain/0/backend/vbd/2/51712/hotplug-status = "connected"'
"""


def stream(*disks: str) -> bytes:
    """The beginning of what xl saves: xl.h of Xen 4.17."""
    text = json.dumps({"c_info": {"name": "g"}, "disks": [{"pdev_path": disk} for disk in disks]}).encode() + b"\0"
    start = struct.pack("<32sIIIII", b"Xen saved domain, xl format\n \0 \r", 0x01020304, 3, 0, len(text) + 4, len(text))
    return start + text + b"memory" * 99


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A dom0 where g runs: the directory of what its xl says and does."""
    monkeypatch.setattr(toolstack, "HYPERVISOR", tmp_path)
    monkeypatch.setattr(processes, "_pids", lambda: iter(()))  # other tests have an xl as well
    (tmp_path / "type").write_text("xen\n")
    (tmp_path / "bin").mkdir()
    for name, program in (("xl", XL.format(base=tmp_path)), ("xenstore-ls", XENSTORE)):
        (tmp_path / "bin" / name).write_text(program)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    record = Definition(GUEST, [DiskSource("block", "/dev/storkit/g")], "pvh", "")
    monkeypatch.setattr(XenGuests, "record", lambda self, name: record if name == "g" else None)
    for name, text in (("list", RUNS), ("after-save", STILL), ("after-unpause", RUNS), ("after-restore", ARRIVED)):
        (tmp_path / name).write_text(text)
    (tmp_path / "stream").write_bytes(stream("/dev/storkit/g"))
    yield tmp_path


@pytest.fixture
def xl(there: Path) -> Xl:
    return Xl(Site("here", there / "s", there / "r", there / "dev"))


@pytest.fixture
def file(there: Path) -> str:
    return str(there / "m")


def done(there: Path) -> list[str]:
    return [line.split()[0] for line in (there / "done").read_text().splitlines()] if (there / "done").exists() else []


def left(there: Path) -> list[str]:
    return sorted(path.name for path in there.glob("m*"))


def test_a_saved_guest_stands_still_until_it_is_ended(xl: Xl, there: Path, file: str) -> None:
    saved = xl.save("g", SAVED, file)
    assert (saved.version, saved.size) == ("4.17", len((there / "stream").read_bytes()))
    assert Path(file).stat().st_mode & 0o777 == 0o600 and xl.saved("g", file) == saved
    (state,) = xl.find(["g"])
    assert (state.status, state.reason) == ("paused", "its memory has been saved")
    assert xl.save("g", SAVED, file) == saved and done(there) == ["save"]
    (there / "after-destroy").write_text(HEADER)
    xl.stop("g", force=True)
    with pytest.raises(Unsafe, match="has ended, and sleeps"):
        xl.unsave("g", SAVED, file)
    assert xl.saved("g", file).hold == HOLD


def test_a_save_that_is_taken_back_leaves_no_file(xl: Xl, there: Path, file: str) -> None:
    xl.save("g", SAVED, file)
    xl.unsave("g", SAVED, file)
    assert done(there) == ["save", "unpause"] and left(there) == []
    xl.unsave("g", SAVED, file)
    assert done(there) == ["save", "unpause"]


def test_a_save_that_fails_lets_the_guest_go_on(xl: Xl, there: Path, file: str) -> None:
    (there / "fails").write_text("save")
    (there / "after-save").write_text(RUNS)
    with pytest.raises(CommandFailed, match="no space left"):
        xl.save("g", SAVED, file)
    assert done(there) == ["save"] and left(there) == []


@pytest.mark.parametrize("listed", [STILL, SUSPENDED])
def test_what_a_killed_xl_has_left_is_no_memory(
    xl: Xl, there: Path, file: str, listed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed before its shell could say that it had ended well: the guest goes on, and is saved anew."""
    resumed = list[int]()

    def unsuspend(domain: int) -> None:
        resumed.append(domain)
        (there / "list").write_text(RUNS)

    monkeypatch.setattr(toolstack, "unsuspend", unsuspend)
    xl._guests.make("g")
    (xl._guests.moving("g") / "saving").write_text(HOLD)
    (there / "list").write_text(listed)
    memory.partial(Path(file), HOLD).write_bytes(b"half of it, and more than comes now" * 999)
    assert xl.save("g", SAVED, file).size == len((there / "stream").read_bytes())
    assert done(there) == [*(["pause"] if listed == SUSPENDED else []), "unpause", "save"]
    assert resumed == ([] if listed == STILL else [1])


def test_a_save_whose_command_was_killed_is_finished_by_the_next(xl: Xl, there: Path, file: str) -> None:
    xl.save("g", SAVED, file)
    memory.unseal(Path(file), HOLD)
    assert xl.save("g", SAVED, file).hold == HOLD and done(there) == ["save"]


@pytest.mark.parametrize(("listed", "error"), [(STILL, Conflict), (HEADER, NotFound), ("?", Unsafe)])
def test_a_guest_that_cannot_suspend_itself_is_not_saved(
    xl: Xl, there: Path, file: str, listed: str, error: type[StorkitError]
) -> None:
    (there / "list").write_text(listed)
    with pytest.raises(error):
        xl.save("g", SAVED, file)
    assert done(there) == [] and left(there) == []


def test_a_guest_that_somebody_let_go_on_is_not_whole(xl: Xl, there: Path, file: str) -> None:
    xl.save("g", SAVED, file)
    memory.unseal(Path(file), HOLD)
    xl.wake("g")
    assert not XlSave(xl._guests, "g").begun(HOLD)
    (there / "list").write_text(RUNS)
    assert not XlSave(xl._guests, "g").whole(HOLD)


def test_what_writes_a_memory_is_called_off_by_the_end_of_its_helper(xl: Xl, monkeypatch: pytest.MonkeyPatch) -> None:
    writing = XlSave(xl._guests, "g")
    xl._guests.make("g")
    lock = locks.acquire(writing._lock, "g")
    writer = XlProcess(4, ("xl", "save", "-p", "1", "/m"), "g", False)
    ended = list[XlProcess]()

    def disconnect(process: XlProcess) -> None:
        ended.append(process)
        lock.release()

    monkeypatch.setattr("storkit.hypervisors._xl.saving.xl_processes", lambda: [writer, replace(writer, guest="h")])
    monkeypatch.setattr("storkit.hypervisors._xl.saving.disconnect", disconnect)
    writing.cancel()
    writing.cancel()
    assert ended == [writer]


def woken(there: Path, file: str) -> None:
    """The file of a sleep, on a host where the guest is not."""
    (there / "list").write_text(HEADER)
    descriptor = memory.make(Path(file), False, HOLD)
    os.write(descriptor, (there / "stream").read_bytes())
    memory.seal(Path(file), descriptor, SAVED, own=False)
    os.close(descriptor)


def test_a_memory_that_was_read_stands_still_until_it_may_run(xl: Xl, there: Path, file: str) -> None:
    woken(there, file)
    for _ in range(2):
        xl.load("g", HOLD, file)
    assert done(there) == ["restore"] and [state.status for state in xl.find(["g"])] == ["arrived"]
    xl.resume("g")
    assert [state.status for state in xl.find(["g"])] == ["running"]
    xl.spend("g", UUID, file)
    with pytest.raises(Conflict, match="has run since"):
        xl.load("g", HOLD, file)


def test_a_memory_that_was_read_half_is_no_guest(xl: Xl, there: Path, file: str) -> None:
    """Killed while it was read: what is here goes, and all of it is read anew."""
    woken(there, file)
    xl._guests.make("g")
    xl._guests.expect("g", memory=True)
    for listed in (HEADER, ARRIVED):
        (there / "list").write_text(listed)
        assert [state.status for state in xl.find(["g"])] == ["incoming"]
    (there / "after-destroy").write_text(HEADER)
    xl.load("g", HOLD, file)
    assert done(there) == ["destroy", "restore"] and [state.status for state in xl.find(["g"])] == ["arrived"]
    xl.retire("g")
    assert [state.status for state in xl.find(["g"])] == ["stopped"]


def test_a_memory_that_is_not_read_leaves_nothing(xl: Xl, there: Path, file: str) -> None:
    woken(there, file)
    (there / "fails").write_text("restore")
    (there / "after-destroy").write_text(HEADER)
    with pytest.raises(CommandFailed):
        xl.load("g", HOLD, file)
    assert done(there) == ["restore", "destroy"] and [state.status for state in xl.find(["g"])] == ["stopped"]


def test_a_memory_of_other_disks_is_not_read(xl: Xl, there: Path, file: str) -> None:
    (there / "stream").write_bytes(stream("/dev/storkit/h"))
    woken(there, file)
    with pytest.raises(Unsafe, match="was saved without /dev/storkit/g"):
        xl.load("g", HOLD, file)
    assert done(there) == []


def test_disks_of_a_file_as_xl_wrote_it() -> None:
    assert disk_paths(Path(__file__).parent / "data/xl-4.17-save-head-pvh.bin") == ["/dev/storkit/g1"]


@pytest.mark.parametrize(
    "text",
    [b"", b"Linux", stream("/d")[:40], stream("/d")[:60], stream("/d").replace(b"/d", b'"x'),
     stream("/d").replace(b'[{"pdev_path": "/d"}]', b'[1,2,3,4,5,6,7,8,9,0]')],
    ids=["empty", "other", "short", "cut", "text", "numbers"],
)  # fmt: skip
def test_a_file_that_xl_has_not_written(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(text)
    with pytest.raises(Unsafe, match="does not begin as a file of xl save"):
        disk_paths(tmp_path / "m")
