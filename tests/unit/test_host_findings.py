"""What a host finds wrong with itself: room for its records, its own address, ports that are taken."""

from __future__ import annotations

import os
import socket
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from storkit.core.backend import Site
from storkit.hosts.doors import Doors, reach
from storkit.hosts.facts import state_findings
from storkit.hosts.setup import Setup
from storkit.hosts.site import Performer, site
from storkit.system.addresses import address_problem
from tests.filesystems import mounted

NOBODY = 65534


def place(state: Path, run: Path) -> Site:
    return Site("a", state, run, state / "dev")


def test_a_state_directory_with_room_is_fine_and_one_that_is_gone_is_not(tmp_path: Path) -> None:
    assert state_findings(place(tmp_path, tmp_path)) == []
    (finding,) = state_findings(place(tmp_path / "gone", tmp_path))
    assert "gone" in finding.message and finding.hint.startswith("mkdir -p ")


def test_a_state_directory_without_room_or_files_or_that_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    with mounted("tmpfs", tmp_path / "small", 20 << 20) as small:
        assert state_findings(place(small, tmp_path)) == []
        (small / "filler").write_bytes(b"x" * (8 << 20))
        (finding,) = state_findings(place(small, tmp_path))
        assert "of room" in finding.message and "df -h" in finding.hint
        (small / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,nr_inodes=32", str(small)], check=True)
        (finding,) = state_findings(place(small, tmp_path))
        assert "files more" in finding.message and "df -i" in finding.hint
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        (finding,) = state_findings(place(tmp_path, small))
        assert "run directory" in finding.message and "read-only" in finding.message and "remount,rw" in finding.hint


def test_a_state_directory_of_somebody_else(tmp_path: Path) -> None:
    """Asked as a user who may not write it: root may write anywhere, so that root asks as somebody else."""
    state = tmp_path / "state"
    state.mkdir(mode=0o555)

    def ask() -> str:
        os.chdir(state)  # the way to it may be closed to others, and so is /proc/self to who was root
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        (finding, *_) = state_findings(place(Path(), tmp_path))
        return finding.message

    assert "not this user's" in in_a_child(ask)


def in_a_child(ask: Callable[[], str]) -> str:
    """What `ask` returns in a process of its own, or its traceback."""
    answers, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = ask()
        except BaseException:
            said = traceback.format_exc()
        os.write(end, said.encode())
        os._exit(0)
    os.close(end)
    with os.fdopen(answers) as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return said


def test_a_name_that_is_a_loopback_is_refused_and_a_number_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address_problem("a", "127.0.0.1") is None and address_problem("a", "::1") is None
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answer)
    finding = address_problem("a", "pve1")
    assert finding and "pve1 is 127.0.1.1 on host a itself" in finding.message and "/etc/hosts" in finding.hint
    assert (finding := address_problem("a", "")) and "no address" in finding.message


def performer(tmp_path: Path, first: int, last: int) -> Performer:
    nbd = {"port_first": first, "port_last": last}
    given = Setup("a", address="127.0.0.1", state=str(tmp_path), transports={"nbd": nbd})
    return Performer(given, site(given))


def test_a_door_is_open_until_it_is_closed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        doors = Doors()
        served = doors.listen(performer(tmp_path, port, port), "transport:nbd")
        assert [door.port for door in served.doors] == [port] and served.findings == []
        found = doors.listen(performer(tmp_path, port, min(port + 20, 65535)), "transport:nbd")
        (door,) = found.doors
        assert door.port > port and reach("127.0.0.1", door.port) == ""
        doors.close()
        assert "refused" in reach("127.0.0.1", door.port) and reach("127.0.0.1", port) == ""
