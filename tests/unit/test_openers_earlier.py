"""A process that has a volume's bytes open since before they were a volume: which rights it allows beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storkit.core.errors import Conflict, StorkitError
from storkit.core.model import Client, Existing, Volume
from storkit.system import openers
from storkit.tech import strangers
from tests.unit.test_home_exports import Toys, V, granted, toys

__all__ = ["toys"]
S, B, C = Client("s", True), Client("b", False), Client("c", False)


@pytest.fixture
def disk(toys: Toys, tmp_path: Path) -> Volume:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    toys.site.run.mkdir(exist_ok=True)
    return replace(V, path=str(path), format="raw")


@pytest.fixture
def opener(disk: Volume) -> Iterator[subprocess.Popen[str]]:
    """A process that has the disk open for writing."""
    code = f"file = open({disk.path!r}, 'r+b'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "\n"
        yield process
        process.kill()


def note(toys: Toys, disk: Volume, *pids: int) -> None:
    openers.note_earlier(toys.site.run, [(disk, Existing(disk.path, processes=list(pids)))])


def refusal(toys: Toys, disk: Volume, *hosts: str) -> str:
    before = granted(toys)
    with pytest.raises(Conflict) as caught:
        toys.set_writers([disk], list(hosts))
    assert granted(toys) == before
    return str(caught.value)


def test_nobody_is_let_in_beside_a_process_that_is_not_known(
    toys: Toys, disk: Volume, opener: subprocess.Popen[str]
) -> None:
    with pytest.raises(StorkitError, match=rf"open for writing on its home host s: by .*\(pid {opener.pid}\)"):
        toys.export([disk], [S])


def test_it_writes_as_its_host_does(toys: Toys, disk: Volume, opener: subprocess.Popen[str]) -> None:
    note(toys, disk, opener.pid)
    toys.export([disk], [S, B, C])
    said = refusal(toys, disk, "b")
    assert f"(pid {opener.pid}), its guest's since before it was a volume" in said
    refusal(toys, disk, "b", "c")
    toys.set_writers([disk], ["s"])
    toys.set_writers([disk], ["s", "b"])
    refusal(toys, disk, "b")
    with pytest.raises(Conflict, match="since before it was a volume"):
        toys.unexport([disk], ["s"])
    toys.set_writers([disk], ["s"])
    toys.set_writers([disk], [])
    refusal(toys, disk, "b")
    toys.set_writers([disk], ["s", "b"])
    (export, *_) = toys.look_exports([disk.uuid]).exports
    assert f"(pid {opener.pid})" in export.others and "ends when the guest moves or stops" in export.others
    opener.kill()
    opener.wait()
    toys.set_writers([disk], ["b"])  # the guest has moved
    toys.unexport([disk], ["s"])
    assert toys.look_exports([disk.uuid]).exports[0].others == ""


def test_fencing_its_host_says_that_it_writes_on(toys: Toys, disk: Volume, opener: subprocess.Popen[str]) -> None:
    note(toys, disk, opener.pid)
    toys.export([disk], [S, B])
    toys.set_writers([disk], ["s"])
    with pytest.raises(Conflict, match=rf"pid {opener.pid}\), its guest's since before it was a volume"):
        toys.fence("s")
    assert toys.server.rights[disk.uuid].keys() == {"b"}, "all else is taken"
    toys.fence("b")


def test_another_process_of_that_number_is_not_it(toys: Toys, disk: Volume, opener: subprocess.Popen[str]) -> None:
    note(toys, disk, opener.pid)
    kept = toys.site.run / "earlier" / disk.uuid
    pid, started = kept.read_text().split()
    kept.write_text(f"{pid} {int(started) - 1}\n")
    assert openers.earlier(toys.site.run, disk.uuid) == frozenset()
    (found,) = strangers.find(toys.site.run, [disk])
    assert found.unexpected and [each.pid for each in found.processes] == [opener.pid]
    with pytest.raises(StorkitError, match="open for writing"):
        toys.export([disk], [S])


def test_who_has_ended_or_has_it_not_open_is_not_noted_and_a_note_goes_with_its_volume(
    toys: Toys, disk: Volume, opener: subprocess.Popen[str]
) -> None:
    run = toys.site.run
    gone = subprocess.Popen(["true"])
    gone.wait()
    note(toys, disk, gone.pid, os.getppid())
    assert not (run / "earlier" / disk.uuid).exists()
    note(toys, disk, gone.pid, os.getppid(), opener.pid)
    assert openers.earlier(run, disk.uuid) == {opener.pid}
    openers.forget_earlier(run, [disk.uuid])
    assert openers.earlier(run, disk.uuid) == frozenset() and not list((run / "earlier").iterdir())
