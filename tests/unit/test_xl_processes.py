"""Processes of xl, which still do something with a guest, or run a script of ours."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from storkit.hypervisors._xl.processes import XlProcess, wait_until, xl_above, xl_processes


def test_processes_of_xl_are_found(tmp_path: Path) -> None:
    fake = tmp_path / "xl"
    fake.symlink_to("/usr/bin/sleep")
    with subprocess.Popen([fake, "60"], env={"STORKIT_GUEST": "g"}, stdin=subprocess.PIPE) as process:
        try:
            # its words are there a moment after exec(2) has closed what Popen waits for
            assert wait_until(lambda: any(one.pid == process.pid for one in xl_processes()), 10)
            (found,) = [one for one in xl_processes() if one.pid == process.pid]
        finally:
            process.kill()
    assert (found.guest, found.verb, found.watches) == ("g", "60", False)


@pytest.mark.parametrize(("log", "watches"), [("xl-g.log", True), ("xl-g.log.1", True), ("service.log", False)])
def test_an_xl_in_the_background_has_its_own_log(tmp_path: Path, log: str, watches: bool) -> None:
    """A service's xl has no terminal either, and is not in the background."""
    fake = tmp_path / "xl"
    fake.symlink_to("/usr/bin/sleep")
    with (tmp_path / log).open("w") as out, subprocess.Popen([fake, "60"], stdin=subprocess.DEVNULL, stdout=out) as it:
        try:
            assert wait_until(lambda: xl_above(it.pid) is not None, 10)
            found = xl_above(it.pid)
        finally:
            it.kill()
    assert found and found.watches == watches


def test_the_xl_that_runs_a_script_is_found(tmp_path: Path) -> None:
    fake = tmp_path / "xl"
    fake.symlink_to("/bin/sh")
    # as the script does: a shell, a pipe, and a program in it
    line = 'x=$(sh -c "sleep 60 & echo \\$! >pid; wait"); echo $x'
    with subprocess.Popen([fake, "-c", line, "save"], cwd=tmp_path, stdin=subprocess.DEVNULL) as process:
        inner = process.pid
        try:
            assert wait_until(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text().strip()), 20)
            inner = int((tmp_path / "pid").read_text())
            found = xl_above(inner)
            assert found and (found.pid, found.directory, found.watches) == (process.pid, str(tmp_path), False)
        finally:
            process.kill()
            if inner != process.pid:
                os.kill(inner, signal.SIGKILL)
    assert xl_above(os.getpid()) is None
    assert xl_above(1 << 22) is None


@pytest.mark.parametrize(
    ("line", "verb", "file"),
    [
        ("save g1 /a/b", "save", "/a/b"),
        ("-v save -c 4 b", "save", "/root/b"),
        ("save g1", "save", ""),
        ("restore b", "restore", "/root/b"),
        ("restore -p g1.cfg /b", "restore", "/b"),
        ("restore", "restore", ""),
        ("cr x", "create", ""),
        ("c x", "c", ""),
        ("mig g1 h2", "mig", ""),
        ("migrate g1 h2", "migrate", ""),
        ("migrate-rec", "migrate-receive", ""),
        ("", "", ""),
    ],
)
def test_words_of_xl(line: str, verb: str, file: str) -> None:
    found = XlProcess(1, ("xl", *line.split()), "", False, "/root")
    assert (found.verb, found.file) == (verb, file)
